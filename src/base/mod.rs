//! What everything else stands on: names and numbers that must not be mixed up, text that does not
//! print, and how an error is put into words.

mod error;
pub mod ids;
pub mod image_ref;
pub mod secret;

pub(crate) use error::chain as error_chain;

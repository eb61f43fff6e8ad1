//! What everything else stands on: names and numbers that must not be mixed up, text that does not
//! print, durations, globs, how often something is tried, and how an error is put into words.

pub(crate) mod backoff;
pub(crate) mod decimal;
pub(crate) mod duration;
mod error;
pub(crate) mod glob;
pub(crate) mod hash;
pub mod ids;
pub mod image_ref;
pub mod paths;
pub(crate) mod random;
pub mod secret;

pub(crate) use error::chain as error_chain;

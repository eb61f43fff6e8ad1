//! Where workloads run: the contract ([`Executor`], [`Session`]), and those who keep it.
//!
//! The log of a job that is prepared in two branches is [`buffered_log`]'s; the helper, seen from
//! outside, is [`helper`]'s.

pub mod buffered_log;
pub mod docker;
mod error;
pub mod executors;
#[cfg(test)]
pub(crate) mod fake;
pub mod helper;
mod session;

pub use error::{ExecutorError, ExecutorFailure};
pub use executors::Executors;
pub use session::{
    Executor, HelperStreams, Piece, Prepared, Removal, Removed, Script, ScriptEnd, ScriptOutput,
    Session, SessionRequest,
};

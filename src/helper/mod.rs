//! The helper: what runs inside a job's helper container, `longshore helper serve`.
//!
//! longshore and its helper speak [`crate::helper::protocol`] on the container's stdin and stdout. [`serve()`]
//! takes the tasks one after another; `sources`, `submodule`, `git`, `credentials`, `hygiene` and
//! `hook` are the stage `get_sources`; `files`, `pack` and `cleanup` are the other tasks. Nothing
//! of that knows of a server or of Docker: what it needs is in the task. [`guard`] is a container of
//! its own, beside an engine on another host.

mod cleanup;
pub mod credentials;
mod error;
mod files;
mod frames;
mod git;
pub mod guard;
mod hook;
mod hygiene;
mod pack;
mod process;
pub mod protocol;
mod serve;
mod sources;
mod submodule;
#[cfg(test)]
mod testing;

pub use serve::{open_umask, serve};

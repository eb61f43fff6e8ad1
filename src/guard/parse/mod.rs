//! Readers of what a job sends, each stricter than the engine's: what two readers could take in two
//! ways is refused. They know nothing of sockets, engines or jobs.

pub mod archive;
pub mod dockerfile;
pub mod head;
pub mod json;
pub(super) mod lines;
pub(super) mod size;
pub mod target;

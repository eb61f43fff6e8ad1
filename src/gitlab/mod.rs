//! GitLab: its jobs are polled for, turned into workloads, reported, and after a crash ended. Its wire
//! types are known in this module alone.

pub mod api;
mod artifacts;
mod failure_reason;
mod incoming;
mod job_client;
pub mod payload;
pub mod poll;
mod provenance;
mod recovery;
mod reporter;
mod runner;
#[cfg(test)]
pub(crate) mod test_server;
pub mod trace;

pub use incoming::incoming;
pub use recovery::end_job;
pub use runner::{GitlabRunner, info};

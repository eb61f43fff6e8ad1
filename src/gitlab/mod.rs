//! GitLab: its runner API, what its jobs come to, and how a job reports to it.

pub mod api;
pub mod failure_reason;
pub(crate) mod job_client;
pub mod payload;
pub mod trace;

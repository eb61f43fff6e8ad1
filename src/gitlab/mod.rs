//! GitLab: its runner API, and how a job reports to it.

pub mod api;
pub(crate) mod job_client;
pub mod trace;

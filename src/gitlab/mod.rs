//! GitLab: its runner API.

pub mod api;

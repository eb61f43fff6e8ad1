//! GitLab's runner API: what is sent (`wire`) and how (`client`).

pub mod reply;
pub mod wire;

//! Jobs in containers of a Docker engine.
//!
//! [`DockerExecutor`] is a runner's, its sessions are `session`'s; what all containers of one job
//! share is `job`'s. [`engine`] is the only door to an engine; what containers look like is [`spec`]'s
//! and is pure.

mod attach;
mod buildkit;
pub mod cgroup;
pub mod clean_up;
mod container;
pub mod dind;
pub mod engine;
mod engines;
mod error;
mod executor;
mod follow;
mod job;
pub mod layers;
mod pool;
mod prepare;
mod service;
mod session;
pub mod socket;
pub mod spec;

pub use buildkit::BuildKitError;
pub use engines::Engines;
pub use error::DockerError;
pub use executor::DockerExecutor;

use container::JobContainer;
use job::DockerJob;

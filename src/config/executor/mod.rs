//! The settings that only one kind of executor has.

pub(super) mod docker;

use self::docker::DockerConfig;

/// What executes a runner's jobs.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecutorConfig {
    /// A Docker engine: `executor = "docker"` and what only that reads of `[runners.docker]`.
    Docker(DockerConfig),
}

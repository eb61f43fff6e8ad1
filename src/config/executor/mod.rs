//! The settings that only one kind of executor has.

pub(super) mod docker;

use self::docker::DockerConfig;

/// What executes a runner's jobs.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecutorConfig {
    /// A Docker engine: `executor = "docker"` and what only that reads of `[runners.docker]`.
    Docker(DockerConfig),
}

impl ExecutorConfig {
    /// Its name, as `executor` has it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Docker(_) => "docker",
        }
    }

    /// The GPUs of its jobs, as the executor takes them; empty for none.
    #[must_use]
    pub fn gpus(&self) -> &str {
        match self {
            Self::Docker(docker) => &docker.devices.gpus,
        }
    }

    /// Where it runs jobs, such as an engine's address, as it is configured; `None` for the
    /// executor's default.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        match self {
            Self::Docker(docker) => docker.engine.host.as_deref(),
        }
    }
}

//! One `[[runners]]` entry.

use std::{collections::BTreeMap, time::Duration};

use super::{
    cache::CacheConfig,
    containers::ContainerConfig,
    executor::{ExecutorConfig, docker::DockerConfig},
    gitlab::GitLabConfig,
};
use crate::base::{
    ids::{RunnerName, ShortToken},
    paths::ContainerPath,
};

/// One `[[runners]]` entry. A job keeps the one it was started with.
#[derive(Debug, Clone, PartialEq)]
pub struct RunnerConfig {
    /// Description, shown in the trace.
    pub name: RunnerName,
    /// Jobs at once of this runner; 0 for no limit of its own.
    pub limit: usize,
    /// Labels, the global ones overlaid by the runner's own.
    pub labels: BTreeMap<String, String>,
    /// Whose jobs it runs.
    pub gitlab: GitLabConfig,
    /// What executes them.
    pub executor: ExecutorConfig,
    /// What they get as containers.
    pub containers: ContainerConfig,
    /// Root of work trees in the containers.
    pub builds_dir: ContainerPath,
    /// Root of local caches in the containers.
    pub cache_dir: ContainerPath,
    /// Variables for every job, `(name, value)`, in file order.
    pub environment: Vec<(String, String)>,
    /// Shell text of the operator around the stages.
    pub scripts: OperatorScripts,
    /// Deadlines of stages.
    pub timeouts: StageTimeouts,
    /// How work trees are made.
    pub sources: SourcesConfig,
    /// Largest size of a job's trace in bytes.
    pub output_limit: u64,
    /// Forbids `CI_DEBUG_TRACE` and `CI_DEBUG_SERVICES`.
    pub debug_trace_disabled: bool,
    /// `[runners.feature_flags]`: they override the job's variables.
    pub feature_flags: BTreeMap<String, bool>,
    /// Remote cache.
    pub cache: CacheConfig,
}

impl RunnerConfig {
    /// The part of the token that may be shown.
    #[must_use]
    pub fn short_token(&self) -> ShortToken {
        self.gitlab.short_token()
    }

    /// The settings of its Docker engine.
    #[must_use]
    pub fn docker(&self) -> &DockerConfig {
        match &self.executor {
            ExecutorConfig::Docker(docker) => docker,
        }
    }
}

/// The operator's shell text around the stages of every job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OperatorScripts {
    /// Before git, in the helper.
    pub pre_get_sources: Option<String>,
    /// After git, in the helper.
    pub post_get_sources: Option<String>,
    /// Before the job's script, in the same shell.
    pub pre_build: Option<String>,
    /// After the job's script, in the same shell, when it succeeded.
    pub post_build: Option<String>,
}

/// Deadlines of stages beside the job's own timeout, which holds where they are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StageTimeouts {
    /// Of preparation.
    pub prepare: Option<Duration>,
    /// Of fetching the sources.
    pub get_sources: Option<Duration>,
}

/// How work trees are made.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcesConfig {
    /// Adds `safe.directory` for the project.
    pub safe_directory_checkout: bool,
    /// Removes git configuration and hooks that an earlier job left.
    pub clean_git_config: bool,
    /// Allows `GIT_CLONE_PATH`.
    pub custom_build_dir: bool,
}

//! A runner and its GitLab.

use std::sync::Arc;

use super::api::{self, Client, wire::Info};
use crate::{config::RunnerConfig, runner::Runner};

/// One `[[runners]]` entry whose jobs come from a GitLab.
pub struct GitlabRunner {
    /// Runs its jobs.
    pub runner: Arc<Runner>,
    /// Its connection to the server.
    pub client: Arc<Client>,
    /// What is said of it in every request.
    pub info: Arc<Info>,
}

impl GitlabRunner {
    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &RunnerConfig {
        &self.runner.config
    }
}

/// What a runner with these settings says of itself.
#[must_use]
pub fn info(config: &RunnerConfig) -> Info {
    api::info(config.executor.name(), "bash", config.executor.gpus(), &config.labels)
}

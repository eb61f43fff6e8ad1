//! All executors of a process.

use std::sync::Arc;

use super::{
    docker::{DockerExecutor, Engines, engine::EngineEnv},
    session::Executor,
};
use crate::{config::RunnerConfig, ledger::StateDir};

/// Makes the executors of a process's runners, with what they share, such as connections.
pub struct Executors {
    docker: Arc<Engines>,
}

impl Executors {
    /// Nothing is connected yet. Environment variables say where a runner's executor is that does not
    /// have that in its configuration, such as `DOCKER_HOST`.
    #[must_use]
    pub fn new(state: &StateDir, variable: impl Fn(&str) -> Option<String>) -> Self {
        Self { docker: Arc::new(Engines::new(state, EngineEnv::of(variable))) }
    }

    /// The executor of a runner.
    #[must_use]
    pub fn executor(&self, config: &Arc<RunnerConfig>) -> Arc<dyn Executor> {
        Arc::new(DockerExecutor::new(Arc::clone(config), Arc::clone(&self.docker)))
    }

    /// Forgets what is kept for runners that are not configured any more.
    pub fn retain(&self, runners: &[Arc<RunnerConfig>], system_id: &str) {
        self.docker.retain_layers(runners, system_id);
    }
}

//! What runners have, and what all of one process share.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::{config::RunnerConfig, executor::Executor, ledger::StateDir};

use super::{
    metrics::{Metrics, RunnerLabels},
    slots::JobSlots,
};

/// What the runners of one process share.
pub struct Process {
    /// The machine's id (`.runner_system_id`).
    pub system_id: String,
    /// The state directory, with the ledger.
    pub state: StateDir,
    /// Slots of running jobs.
    pub slots: JobSlots,
    /// Counts of jobs and requests.
    pub metrics: Arc<Metrics>,
    /// Removals that go on after a job's end; the daemon waits for them.
    pub removals: TaskTracker,
}

impl Process {
    /// A process with this state directory, in which no job runs yet.
    #[must_use]
    pub fn new(system_id: String, state: StateDir) -> Self {
        Self {
            metrics: Arc::new(Metrics::new(system_id.clone())),
            system_id,
            state,
            slots: JobSlots::default(),
            removals: TaskTracker::new(),
        }
    }
}

/// One `[[runners]]` entry at work.
pub struct Runner {
    /// Its settings.
    pub config: Arc<RunnerConfig>,
    /// Where its jobs run.
    pub executor: Arc<dyn Executor>,
    /// What it shares with the others.
    pub process: Arc<Process>,
}

impl Runner {
    /// How metrics name it.
    #[must_use]
    pub fn labels(&self) -> RunnerLabels {
        labels(&self.config)
    }
}

/// How metrics name a runner.
#[must_use]
pub fn labels(config: &RunnerConfig) -> RunnerLabels {
    RunnerLabels { token: config.short_token(), name: config.name.clone() }
}

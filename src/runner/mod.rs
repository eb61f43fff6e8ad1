//! Runners: they ask their server for jobs (`poll`) and run them (`run`).

mod ending;
mod gate;
pub mod layers;
pub mod metrics;
mod opening;
pub mod poll;
mod provenance;
pub mod recover;
mod removal;
mod run;
mod slots;
mod stages;
mod stops;
pub mod warm;

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

use crate::{
    config::RunnerConfig,
    executor::docker::engine::{ConnectError, Engine, EngineEnv},
    gitlab::api::{Client, wire::Info},
    ledger::State,
    runner::metrics::{Metrics, RunnerLabels},
};

pub use gate::Gate;
use layers::Layers;
pub use run::run;
pub use slots::Slots;
pub use stops::{Interrupt, Signal};
use warm::Pool;

/// What runners of one process share.
pub struct Shared {
    /// Id of the machine.
    pub system_id: String,
    /// The state directory.
    pub state: State,
    /// Of the process, for engines whose address is not configured.
    pub engine_env: EngineEnv,
    /// Numbers of running jobs.
    pub slots: Slots,
    /// Layer-cache slots.
    pub layers: Layers,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Removals that go on after a job's end; the daemon waits for them.
    pub removals: TaskTracker,
    /// Connections to engines, by settings.
    engines: Mutex<Vec<(EngineKey, Arc<OnceCell<Engine>>)>>,
}

/// What tells one engine's connection from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EngineKey {
    host: Option<String>,
    tls: Option<std::path::PathBuf>,
}

impl Shared {
    /// Shares these.
    #[must_use]
    pub fn new(system_id: String, state: State, engine_env: EngineEnv) -> Self {
        Self {
            metrics: Arc::new(Metrics::new(system_id.clone())),
            system_id,
            layers: Layers::new(state.slots()),
            state,
            engine_env,
            slots: Slots::default(),
            removals: TaskTracker::new(),
            engines: Mutex::default(),
        }
    }

    /// The engine of a runner; connected when first asked for, and then kept. What an earlier
    /// process left on it is removed before any job gets it.
    ///
    /// # Errors
    /// When it cannot be reached or used; the next call tries again.
    pub async fn engine(
        &self,
        config: &crate::config::DockerConfig,
    ) -> Result<Engine, ConnectError> {
        let key = EngineKey {
            host: config.host.clone(),
            tls: config.tls_verify.then(|| config.tls_cert_path.clone()).flatten(),
        };
        let cell = {
            let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
            match engines.iter().find(|(k, _)| *k == key) {
                Some((_, cell)) => Arc::clone(cell),
                None => {
                    let cell = Arc::default();
                    engines.push((key, Arc::clone(&cell)));
                    cell
                }
            }
        };
        cell.get_or_try_init(|| async {
            let engine = Engine::connect(config, &self.engine_env).await?;
            recover::sweep(&engine, self.state.instance()).await;
            let host = config.host.as_deref();
            layers::sweep(&engine, host, &self.layers, self.state.instance()).await;
            Ok(engine)
        })
        .await
        .cloned()
    }
}

/// One `[[runners]]` entry at work.
pub struct Runner {
    /// Its settings.
    pub config: Arc<RunnerConfig>,
    /// Its connection to the server.
    pub client: Arc<Client>,
    /// What is said of it in every request.
    pub info: Arc<Info>,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Daemons that wait for its jobs.
    pub warm: Pool,
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

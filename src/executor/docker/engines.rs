//! The Docker engines that a process uses, connected when they are first asked for, and then kept.

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::{
    base::error_chain,
    config::{EngineAddress, RunnerConfig},
    ledger::StateDir,
    workload,
};

use super::{
    clean_up::{self, Anonymous},
    engine::{ConnectError, Engine, EngineEnv},
    layers::Layers,
};

/// The engines of one process.
pub struct Engines {
    /// For engines whose address is not configured.
    env: EngineEnv,
    /// The value of the label on everything that this longshore makes.
    instance: String,
    layers: Layers,
    connections: Mutex<Vec<(ConnectionKey, Arc<OnceCell<Engine>>)>>,
}

/// What tells one engine's connection from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ConnectionKey {
    host: Option<String>,
    /// Directory of the certificates, where TLS is used.
    tls: Option<PathBuf>,
}

impl Engines {
    /// Connects to none yet.
    #[must_use]
    pub fn new(state: &StateDir, env: EngineEnv) -> Self {
        Self {
            env,
            instance: state.instance().to_owned(),
            layers: Layers::new(state.slots()),
            connections: Mutex::default(),
        }
    }

    /// The value of the label on everything that this longshore makes.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The layer slots on these engines.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Forgets the layer slots of runners that are not among these; their volumes are removed when
    /// their engine is connected.
    pub fn retain_layers(&self, runners: &[Arc<RunnerConfig>], system_id: &str) {
        let owner = |runner: &Arc<RunnerConfig>| workload::layers::owner(runner, system_id);
        let owners: Vec<String> = runners.iter().map(owner).collect();
        if let Err(error) = self.layers.keep_only(&owners) {
            tracing::warn!(%error, "cannot look through the layer slots");
        }
    }

    /// The engine of a runner. Orphaned resources of earlier processes are removed before any job
    /// gets it.
    ///
    /// # Errors
    /// When it cannot be reached or used; the next call tries again.
    pub async fn connect(&self, config: &EngineAddress) -> Result<Engine, ConnectError> {
        let address = ConnectionKey {
            host: config.host.clone(),
            tls: config.tls_verify.then(|| config.tls_cert_path.clone()).flatten(),
        };
        let connection = {
            let mut connections = self.connections.lock();
            match connections.iter().find(|(known, _)| *known == address) {
                Some((_, connection)) => Arc::clone(connection),
                None => {
                    let connection = Arc::default();
                    connections.push((address, Arc::clone(&connection)));
                    connection
                }
            }
        };
        let connect = || async {
            let engine = Engine::connect(config, &self.env).await?;
            self.sweep(&engine).await;
            self.layers.sweep(&engine, config.host.as_deref(), &self.instance).await;
            Ok(engine)
        };
        connection.get_or_try_init(connect).await.cloned()
    }

    /// Removes everything on an engine that bears this longshore's label. For an engine on which no
    /// job of this process has begun yet.
    async fn sweep(&self, engine: &Engine) {
        let resources = match clean_up::labelled(engine, &self.instance, None).await {
            Ok(resources) => resources,
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "cannot look for orphaned resources");
                return;
            }
        };
        if resources.is_empty() {
            return;
        }
        tracing::info!(count = resources.len(), "removing orphaned resources");
        for error in clean_up::remove(engine, &resources, Anonymous { remove: true }).await {
            tracing::warn!(error = error_chain(&error), "failed to remove an orphaned resource");
        }
    }
}

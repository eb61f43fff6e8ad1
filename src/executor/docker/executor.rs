//! Jobs of one runner on a Docker engine.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use tokio_util::sync::CancellationToken;

use crate::{
    base::error_chain,
    config::RunnerConfig,
    executor::{Executor, ExecutorError, ExecutorFailure, Session, SessionRequest},
    ledger::{JobDirectories, LedgerEntry, Resource, SessionState},
    workload::{Leases, Workload, outcome::FailureReason},
};

use super::{
    clean_up::{self, Anonymous},
    engine::ConnectError,
    engines::Engines,
    pool::{self, Pool},
    session::DockerSession,
    socket,
};

/// See the module. Clones are the same.
#[derive(Clone)]
pub struct DockerExecutor {
    pub(super) config: Arc<RunnerConfig>,
    pub(super) engines: Arc<Engines>,
    /// Daemons that wait for its jobs.
    pub(super) pool: Arc<Pool>,
}

impl DockerExecutor {
    /// Runs jobs of this runner.
    #[must_use]
    pub fn new(config: Arc<RunnerConfig>, engines: Arc<Engines>) -> Self {
        let pool = Arc::new(Pool::new(config.containers.dind.warm));
        Self { config, engines, pool }
    }

    /// How containers of its jobs are removed.
    pub(super) fn anonymous(&self) -> Anonymous {
        Anonymous { remove: !self.config.docker().volumes.keep_anonymous }
    }

    /// Takes back what a workload did not come to use.
    pub(super) async fn take_back(&self, workload: &Workload) {
        self.pool.release(&self.config, &self.engines, workload).await;
        self.engines.layers().release(&self.config, workload).await;
    }
}

impl Executor for DockerExecutor {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn connect(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        async { Ok(self.engines.connect(&self.config.docker().engine).await.map(drop)?) }.boxed()
    }

    fn lease<'a>(&'a self, draft: &'a Workload) -> BoxFuture<'a, Leases> {
        async {
            Leases {
                warm_daemon: self.pool.lease(&self.config, draft),
                layer_slot: self.engines.layers().lease(&self.config, draft).await,
            }
        }
        .boxed()
    }

    fn release<'a>(&'a self, workload: &'a Workload) -> BoxFuture<'a, ()> {
        self.take_back(workload).boxed()
    }

    fn resources(&self, workload: &Workload) -> Vec<Resource> {
        clean_up::resources(workload)
    }

    fn open(&self, request: SessionRequest) -> Arc<dyn Session> {
        Arc::new(DockerSession::new(self.clone(), request))
    }

    /// Not yet: what a job of an earlier process was running is over, and is removed.
    fn reattach<'a>(
        &'a self,
        _state: &'a SessionState,
        _request: SessionRequest,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Session>>, ExecutorError>> {
        async { Ok(None) }.boxed()
    }

    fn remove_orphaned<'a>(
        &'a self,
        entry: &'a LedgerEntry,
        directories: &'a JobDirectories,
    ) -> BoxFuture<'a, bool> {
        async {
            // Where the job ran, which may not be where the runner's jobs run now.
            let mut config = self.config.docker().engine.clone();
            config.host.clone_from(&entry.address);
            let engine = match self.engines.connect(&config).await {
                Ok(engine) => engine,
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(error, "cannot reach the engine of the orphaned job");
                    return false;
                }
            };
            let anonymous = Anonymous { remove: true };
            let mut errors =
                clean_up::remove_containers(&engine, &entry.resources, anonymous).await;
            // Before the volumes, which what comes late may use.
            let instance = self.engines.instance();
            let late = clean_up::remove_late(&engine, instance, entry.owner.job(), anonymous);
            errors.extend(late.await);
            errors.extend(clean_up::remove_rest(&engine, &entry.resources).await);
            // What came late may have had a layer slot.
            let layers = self.engines.layers();
            layers.sweep(&engine, entry.address.as_deref(), instance).await;
            let left = socket::reap(&engine, &directories.guard).await;
            let errors = errors.iter().map(|error| error_chain(error));
            let left: Vec<String> = errors.chain(left).collect();
            for error in &left {
                tracing::warn!(error, "failed to remove an orphaned resource");
            }
            left.is_empty()
        }
        .boxed()
    }

    fn upkeep(&self, stop: CancellationToken) -> Option<BoxFuture<'static, ()>> {
        let (pool, config) = (Arc::clone(&self.pool), Arc::clone(&self.config));
        let engines = Arc::clone(&self.engines);
        (!pool.is_empty()).then(|| pool::tend(pool, config, engines, stop).boxed())
    }
}

impl From<ConnectError> for ExecutorError {
    fn from(error: ConnectError) -> Self {
        let (hint, is_retryable) = (error.hint(), error.is_passing());
        ExecutorFailure::new(FailureReason::RunnerSystemFailure, error)
            .with_hint(hint)
            .retryable(is_retryable)
            .into()
    }
}

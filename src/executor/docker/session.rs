//! One job on a Docker engine, as the runner sees it.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::{
    base::error_chain,
    executor::{
        ExecutorError, ExecutorFailure, HelperStreams, Prepared, Removal, Removed, Script,
        ScriptEnd, ScriptOutput, Session, SessionRequest,
    },
    ledger::Resource,
    workload::{outcome::FailureReason, script::EndMark},
};

use super::{
    DockerJob, JobContainer, clean_up,
    engine::{
        self, Engine,
        auth::{AuthError, AuthSources, Auths},
    },
    executor::DockerExecutor,
};

/// See the module.
pub(super) struct DockerSession {
    executor: DockerExecutor,
    request: SessionRequest,
    /// There once the engine was reached: then something may be on it.
    job: OnceCell<Arc<DockerJob>>,
    /// There once it was created. Whoever runs a script in it holds it.
    container: tokio::sync::Mutex<Option<JobContainer>>,
    /// The engine's id of that container.
    container_id: Mutex<Option<String>>,
    /// Done with the job's first script.
    noted_as_used: std::sync::Once,
    /// Whether the job's layer slot was given back in order, once that is known.
    is_slot_kept: Mutex<Option<bool>>,
}

impl DockerSession {
    pub(super) fn new(executor: DockerExecutor, request: SessionRequest) -> Self {
        Self {
            executor,
            request,
            job: OnceCell::new(),
            container: tokio::sync::Mutex::new(None),
            container_id: Mutex::default(),
            noted_as_used: std::sync::Once::new(),
            is_slot_kept: Mutex::new(None),
        }
    }

    /// The job's place on its engine; whoever asks first connects.
    async fn job(&self) -> Result<&Arc<DockerJob>, ExecutorError> {
        self.job
            .get_or_try_init(|| async {
                let config = &self.executor.config;
                let engine = self.executor.engines.connect(&config.docker().engine).await?;
                let (auths, warnings) = self.credentials().await?;
                let warm = self.executor.pool.leased(&self.request.workload);
                let config = Arc::clone(config);
                let job = DockerJob::new(engine, config, &self.request, auths, warnings, warm);
                Ok(Arc::new(job))
            })
            .await
    }

    async fn credentials(&self) -> Result<(Auths, Vec<String>), AuthError> {
        let workload = &self.request.workload;
        let variable = |name: &str| std::env::var_os(name).map(std::path::PathBuf::from);
        let sources = AuthSources {
            variable: workload.variables.content("DOCKER_AUTH_CONFIG"),
            docker_config: variable("DOCKER_CONFIG"),
            home: variable("HOME"),
            server: &workload.job.registries,
            path: std::env::var_os("PATH"),
        };
        Auths::load(&sources).await
    }

    async fn run(
        &self,
        script: Script<'_>,
        output: &mut ScriptOutput,
    ) -> Result<ScriptEnd, ExecutorError> {
        // Only now, as a daemon that starts for the next job takes processors from this one's start.
        self.noted_as_used.call_once(|| {
            self.executor.pool.note_used(&self.executor.config, &self.request.workload);
        });
        let mut container = self.container.lock().await;
        let container = container.as_mut().ok_or_else(not_prepared)?;
        Ok(container.run(script.text, &EndMark::new(script.nonce), output).await?)
    }

    /// Removes the containers of the job first, then what they used.
    async fn remove_resources(
        &self,
        engine: &Engine,
        is_stopped: bool,
        names_free: &(dyn Fn() + Send + Sync),
    ) -> Vec<engine::Error> {
        let (executor, workload) = (&self.executor, &*self.request.workload);
        let (anonymous, layers) = (executor.anonymous(), executor.engines.layers());
        let mut resources = clean_up::resources(workload);
        let slot = workload.mounts.layer_slot.as_ref().and(workload.mounts.daemon.as_ref());
        let mut orphaned_slot = None;
        if let Some(volume) = slot {
            let known = *self.is_slot_kept.lock();
            let is_kept = match known {
                Some(known) => known,
                None => layers.give_back(&executor.config, engine, workload).await,
            };
            *self.is_slot_kept.lock() = Some(is_kept);
            if !is_kept {
                resources.push(Resource::Volume(volume.name.clone()));
                orphaned_slot = Some(&volume.name);
            }
        }
        let mut errors = clean_up::remove_containers(engine, &resources, anonymous).await;
        if errors.is_empty() {
            names_free();
        }
        if is_stopped {
            // Before the volumes, which what comes late may use.
            let (instance, job) = (executor.engines.instance(), workload.job.id);
            errors.extend(clean_up::remove_late(engine, instance, job, anonymous).await);
        }
        errors.extend(clean_up::remove_rest(engine, &resources).await);
        if let Some(volume) = orphaned_slot
            && errors.is_empty()
        {
            layers.let_go(volume);
        }
        errors
    }

    async fn remove_all(&self, how: Removal, names_free: &(dyn Fn() + Send + Sync)) -> Removed {
        let workload = &*self.request.workload;
        let Some(job) = self.job.get() else {
            if how != Removal::Attempt {
                self.executor.take_back(workload).await;
            }
            return Removed::default();
        };
        if how != Removal::Attempt {
            self.executor.pool.job_ended(workload);
        }
        // What the job made itself uses what longshore made.
        let guarded = job.close_guard().await;
        let errors = match how {
            Removal::Attempt => {
                job.end_following().await;
                let resources = clean_up::resources(workload);
                clean_up::remove(&job.engine, &resources, self.executor.anonymous()).await
            }
            Removal::Job | Removal::StoppedJob => {
                let is_stopped = how == Removal::StoppedJob;
                self.remove_resources(&job.engine, is_stopped, names_free).await
            }
        };
        Removed {
            is_unreachable: errors.iter().any(engine::Error::is_gone),
            is_retryable: !guarded.is_empty(),
            left: errors.iter().map(|error| error_chain(error)).chain(guarded).collect(),
        }
    }
}

/// A call out of order, which is a bug of the caller's.
fn not_prepared() -> ExecutorError {
    let words = "the job's container was asked for before it was prepared";
    ExecutorFailure::new(FailureReason::RunnerSystemFailure, words).into()
}

impl Session for DockerSession {
    fn prepare(&self) -> BoxFuture<'_, Result<Prepared, ExecutorError>> {
        async {
            let image = &self.request.workload.image.name;
            let log = self.request.trace.job_log();
            log.plain(&format!("Using Docker executor with image {image} ..."));
            let job = self.job().await?;
            let container = job.prepare().await?;
            let prepared = Prepared {
                announcement: format!(
                    "Using docker image {} for {image} ...",
                    container.image().id
                ),
                needs_helper: !container.is_root(),
            };
            *self.container_id.lock() = Some(container.id().to_owned());
            *self.container.lock().await = Some(container);
            Ok(prepared)
        }
        .boxed()
    }

    fn start_helper(&self) -> BoxFuture<'_, Result<HelperStreams, ExecutorError>> {
        async { Ok(self.job().await?.start_helper().await?) }.boxed()
    }

    fn run_script<'a>(
        &'a self,
        script: Script<'a>,
        output: &'a mut ScriptOutput,
    ) -> BoxFuture<'a, Result<ScriptEnd, ExecutorError>> {
        self.run(script, output).boxed()
    }

    fn resume_script<'a>(
        &'a self,
        _nonce: &'a str,
        _output: &'a mut ScriptOutput,
    ) -> BoxFuture<'a, Result<ScriptEnd, ExecutorError>> {
        // No session is taken up again yet, so there is none to go on with.
        async { Err(not_prepared()) }.boxed()
    }

    fn renew(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        async {
            let mut container = self.container.lock().await;
            let container = container.as_mut().ok_or_else(not_prepared)?;
            container.renew().await?;
            *self.container_id.lock() = Some(container.id().to_owned());
            Ok(())
        }
        .boxed()
    }

    fn stop_script(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        async {
            let mut container = self.container.lock().await;
            let container = container.as_mut().ok_or_else(not_prepared)?;
            Ok(container.stop().await?)
        }
        .boxed()
    }

    fn explain_failure(&self) -> BoxFuture<'_, ()> {
        async {
            let Some(job) = self.job.get() else { return };
            if let Some(words) = super::dind::lost(job).await {
                self.request.trace.job_log().warning(&words);
            }
        }
        .boxed()
    }

    fn conclude(&self) -> BoxFuture<'_, ()> {
        async {
            let Some(job) = self.job.get() else { return };
            job.log_refusals().await;
            job.end_following().await;
        }
        .boxed()
    }

    fn remove<'a>(
        &'a self,
        how: Removal,
        names_free: &'a (dyn Fn() + Send + Sync),
    ) -> BoxFuture<'a, Removed> {
        self.remove_all(how, names_free).boxed()
    }

    fn container(&self) -> Option<String> {
        self.container_id.lock().clone()
    }
}

impl From<AuthError> for ExecutorError {
    fn from(error: AuthError) -> Self {
        ExecutorFailure::new(FailureReason::RunnerConfigurationError, error).into()
    }
}

//! One job's place on an engine: what its containers share.

use std::sync::Arc;

use bollard::query_parameters::CreateContainerOptionsBuilder;
use tokio::sync::{OnceCell, watch};

use crate::{
    base::error_chain,
    config::RunnerConfig,
    executor::SessionRequest,
    ledger::JobDirectories,
    trace::JobLog,
    workload::{NetworkPlan, Workload},
};

use super::{
    attach::Attached,
    dind::warm::Warm,
    engine::{self, Engine, auth::Auths},
    follow::Followed,
    socket, spec,
};

/// One job's place on an engine. Containers of it are started by several branches at once; what
/// they must wait for, they wait for here.
pub(super) struct DockerJob {
    pub(super) engine: Engine,
    pub(super) workload: Arc<Workload>,
    pub(super) runner: Arc<RunnerConfig>,
    pub(super) auths: Arc<Auths>,
    /// What is wrong with the configured credentials, for the job's author.
    pub(super) warnings: Vec<String>,
    pub(super) directories: JobDirectories,
    /// The daemon that waited for the job, which its workload names.
    pub(super) warm: Option<Arc<Warm>>,
    pub(super) log: JobLog,
    /// With `CI_DEBUG_SERVICES`: what services write is in the job's log.
    pub(super) followed: Option<Followed>,
    pub(super) network: OnceCell<()>,
    pub(super) guarded: OnceCell<socket::Guarded>,
    /// Entries for `/etc/hosts`, once the services have addresses; only without a network that has
    /// names itself. Where the job is in its daemon's network, its container waits for them as well,
    /// as the daemon's must run by then.
    pub(super) hosts: watch::Sender<Option<Vec<String>>>,
}

impl DockerJob {
    /// A job's place on `engine`; nothing is made yet.
    pub(super) fn new(
        engine: Engine,
        runner: Arc<RunnerConfig>,
        request: &SessionRequest,
        auths: Auths,
        warnings: Vec<String>,
        warm: Option<Arc<Warm>>,
    ) -> Self {
        let SessionRequest { workload, trace, directories } = request.clone();
        let has_names = workload.network.has_aliases() && workload.access.network_owner().is_none();
        let hosts = if has_names || workload.services.is_empty() { Some(Vec::new()) } else { None };
        let follows = workload.settings.debug_services;
        Self {
            engine,
            workload,
            runner,
            auths: Arc::new(auths),
            warnings,
            directories,
            warm,
            log: trace.job_log(),
            followed: follows.then(|| Followed::new(trace)),
            network: OnceCell::new(),
            guarded: OnceCell::new(),
            hosts: watch::Sender::new(hosts),
        }
    }

    /// Logs what the job's guarded socket refused, for an author whose tools did not show it.
    pub(super) async fn log_refusals(&self) {
        let summary = match self.guard_summary().await {
            None => return,
            Some(Ok(summary)) => summary,
            Some(Err(error)) => {
                let why = error_chain(&error);
                return self.log.warning(&format!("The guarded Docker socket is gone: {why}"));
            }
        };
        let count: u64 = summary.refused.values().sum();
        if count > 0 {
            self.log.warning(&format!(
                "The guarded Docker socket refused {count} of {} requests:\n{}",
                summary.requests,
                summary.messages.join("\n")
            ));
        }
    }

    /// What services have written so far is in the job's log when this returns, and nothing more of
    /// it comes.
    pub(super) async fn end_following(&self) {
        if let Some(followed) = &self.followed {
            followed.end().await;
        }
    }

    /// Waits for the job's network; the first who asks makes it.
    pub(super) async fn network_ready(&self) -> Result<(), engine::Error> {
        let NetworkPlan::Own { name, mtu, ipv6 } = &self.workload.network else { return Ok(()) };
        self.network
            .get_or_try_init(|| async {
                self.engine
                    .client()
                    .create_network(spec::network(&self.workload, name, *mtu, *ipv6))
                    .await
                    .map(|_| ())
                    .map_err(engine::Error::of("create the network", name))
            })
            .await
            .copied()
    }

    /// Waits for the services' addresses, where names must be written into `/etc/hosts`.
    pub(super) async fn hosts(&self) -> Vec<String> {
        let mut hosts = self.hosts.subscribe();
        hosts.wait_for(Option::is_some).await.ok().and_then(|h| h.clone()).unwrap_or_default()
    }

    /// Creates a container; its id.
    pub(super) async fn create(
        &self,
        name: &str,
        platform: Option<&str>,
        body: bollard::models::ContainerCreateBody,
    ) -> Result<String, engine::Error> {
        let mut options = CreateContainerOptionsBuilder::new().name(name);
        if let Some(platform) = platform {
            options = options.platform(platform);
        }
        self.engine
            .client()
            .create_container(Some(options.build()), body)
            .await
            .map(|created| created.id)
            .map_err(engine::Error::of("create the container", name))
    }

    /// Attaches before the start, so that no output is missed.
    pub(super) async fn attach_and_start(&self, name: &str) -> Result<Attached, engine::Error> {
        let attached = Attached::new(self.engine.client(), name).await?;
        self.network_ready().await?;
        self.engine
            .client()
            .start_container(name, None)
            .await
            .map_err(engine::Error::of("start the container", name))?;
        Ok(attached)
    }
}

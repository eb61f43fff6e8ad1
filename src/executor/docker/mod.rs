//! Jobs in containers of a Docker engine.

mod attach;
pub mod build;
mod buildkit;
pub mod cgroup;
pub mod clean_up;
pub mod dind;
pub mod engine;
mod follow;
pub mod helper;
mod prepare;
mod service;
pub mod socket;
pub mod spec;

use std::{path::PathBuf, sync::Arc};

use bollard::query_parameters::CreateContainerOptionsBuilder;
use tokio::sync::{OnceCell, watch};

use crate::{
    config::RunnerConfig,
    executor::docker::engine::{Engine, auth::Auths, helper_image, image},
    ledger::JobRecord,
    workload::{NetworkPlan, Workload, outcome::FailureReason},
};

pub use build::{Build, ScriptEnd};
pub use buildkit::BuildKitError;
pub use follow::Followed;
pub use helper::Helper;

use attach::Attached;
use dind::warm::Warm;

/// One job's place on an engine. Containers of it are started by several branches at once; what
/// they must wait for, they wait for here.
pub struct Docker {
    engine: Engine,
    plan: Arc<Workload>,
    runner: Arc<RunnerConfig>,
    auths: Arc<Auths>,
    /// The job's own files.
    job_directory: PathBuf,
    /// The directory of its guarded socket.
    guard_directory: PathBuf,
    /// The daemon that waited for the job, which its plan names.
    warm: Option<Arc<Warm>>,
    /// Registries that the server has given the job credentials for.
    server_registries: Vec<String>,
    network: OnceCell<()>,
    guarded: OnceCell<socket::Guarded>,
    /// Entries for `/etc/hosts`, once the services have addresses; only without a network that has
    /// names itself. Where the job is in its daemon's network, its container waits for them as well,
    /// as the daemon's must run by then.
    hosts: watch::Sender<Option<Vec<String>>>,
}

/// Why the engine did not do what a job needs.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// An image could not be had.
    #[error(transparent)]
    Image(#[from] image::PullError),
    /// The helper image could not be made.
    #[error("cannot make the helper image")]
    HelperImage(#[from] helper_image::HelperImageError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The helper did not do its work.
    #[error(transparent)]
    Helper(#[from] helper::HelperError),
    /// The job's own Docker daemon did not become ready.
    #[error(transparent)]
    Daemon(#[from] dind::DaemonError),
    /// The job's own BuildKit did not become ready.
    #[error(transparent)]
    BuildKit(#[from] BuildKitError),
    /// The job's guarded socket could not be made.
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// The job's container is gone.
    #[error("the job's container is gone: something removed it while the job ran")]
    Gone,
}

impl ExecutorError {
    /// What the server is told.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Image(error) => match error.kind() {
                image::PullErrorKind::ExternalDependency => {
                    FailureReason::RunnerExternalDependencyFailure
                }
                image::PullErrorKind::Configuration => FailureReason::RunnerConfigurationError,
                image::PullErrorKind::ImagePull => FailureReason::ImagePullFailure,
                image::PullErrorKind::NeverMissing | image::PullErrorKind::Engine => {
                    FailureReason::RunnerSystemFailure
                }
            },
            // The engine calls a request of ours wrong: so is the setting it came from. A start has
            // no settings: there, it is the image.
            Self::Engine(error) if error.status() == Some(400) && !error.is_at_start() => {
                FailureReason::RunnerConfigurationError
            }
            Self::Daemon(dind::DaemonError::Engine(error)) if error.status() == Some(400) => {
                FailureReason::RunnerConfigurationError
            }
            Self::Socket(error) if error.is_configuration() => {
                FailureReason::RunnerConfigurationError
            }
            Self::HelperImage(_)
            | Self::Engine(_)
            | Self::Helper(_)
            | Self::Daemon(_)
            | Self::BuildKit(_)
            | Self::Socket(_)
            | Self::Gone => FailureReason::RunnerSystemFailure,
        }
    }

    /// Whether it may go better when tried again.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_gone() || error.status().is_some_and(|s| s >= 500),
            Self::Helper(helper::HelperError::Engine(error))
            | Self::Daemon(dind::DaemonError::Engine(error))
            | Self::BuildKit(BuildKitError::Engine(error))
            | Self::Socket(socket::SocketError::Cgroup(cgroup::CgroupError::Engine(error))) => {
                error.is_gone()
            }
            Self::Image(_)
            | Self::HelperImage(_)
            | Self::Helper(_)
            | Self::Daemon(_)
            | Self::BuildKit(_)
            | Self::Socket(_)
            | Self::Gone => false,
        }
    }

    /// What the reader can do now.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Image(error) => error.hint(),
            Self::Daemon(error) => error.hint(),
            Self::BuildKit(error) => error.hint(),
            Self::Engine(error) => engine_hint(error),
            Self::Gone => Some(
                "with the variable EXECUTOR_JOB_SECTION_ATTEMPTS above 1, the script runs again in a \
                 new container",
            ),
            Self::Socket(error) => error.hint(),
            Self::HelperImage(_) | Self::Helper(_) => None,
        }
    }
}

/// What the engine's words mean for the reader; the most telling first.
fn engine_hint(error: &engine::Error) -> Option<&'static str> {
    if error.is_gone() {
        return Some("is the Docker engine running, and is [runners.docker] host its address?");
    }
    let message = error.engine_message()?;
    let says = |words: &str| message.contains(words);
    if says("non running container") {
        Some(
            "the job's Docker daemon has ended, and the job's container is in its network \
             ([runners.docker.dind] network = \"shared\")",
        )
    } else if says("address pool") {
        Some(
            "every job with FF_NETWORK_PER_BUILD has a network of its own: give the engine more of \
             them (default-address-pools), or run fewer jobs at once",
        )
    } else if says("/dev/net/tun") {
        Some(
            "a Docker daemon without root needs the host's /dev/net/tun (modprobe tun), or \
             privileges ([runners.docker] services_privileged = true)",
        )
    } else if says("adding custom device") {
        Some(
            "the engine's host has no such device: look at [runners.docker] devices and \
             services_devices",
        )
    } else if says("exec: \"sh\"") || says("no such file or directory") {
        Some("the job's image needs a shell: sh must be in it")
    } else {
        None
    }
}

impl Docker {
    /// A job's place on `engine`; nothing is made yet.
    #[must_use]
    pub fn new(
        engine: Engine,
        plan: Arc<Workload>,
        runner: Arc<RunnerConfig>,
        auths: Arc<Auths>,
        record: &JobRecord,
        server_registries: Vec<String>,
        warm: Option<Arc<Warm>>,
    ) -> Self {
        let has_names = plan.network.has_aliases() && plan.access.network_owner().is_none();
        let hosts = if has_names || plan.services.is_empty() { Some(Vec::new()) } else { None };
        Self {
            engine,
            plan,
            runner,
            auths,
            job_directory: record.directory().to_owned(),
            guard_directory: record.guard(),
            server_registries,
            warm,
            network: OnceCell::new(),
            guarded: OnceCell::new(),
            hosts: watch::Sender::new(hosts),
        }
    }

    /// Waits for the job's network; the first who asks makes it.
    async fn network_ready(&self) -> Result<(), engine::Error> {
        let NetworkPlan::Own { name, mtu, ipv6 } = &self.plan.network else { return Ok(()) };
        self.network
            .get_or_try_init(|| async {
                self.engine
                    .client()
                    .create_network(spec::network(&self.plan, name, *mtu, *ipv6))
                    .await
                    .map(|_| ())
                    .map_err(engine::Error::of("create the network", name))
            })
            .await
            .copied()
    }

    /// Waits for the services' addresses, where names must be written into `/etc/hosts`.
    async fn hosts(&self) -> Vec<String> {
        let mut hosts = self.hosts.subscribe();
        hosts.wait_for(Option::is_some).await.ok().and_then(|h| h.clone()).unwrap_or_default()
    }

    /// Creates a container; its id.
    async fn create(
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
    async fn attach_and_start(&self, name: &str) -> Result<Attached, engine::Error> {
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

//! A job's guarded socket: the guard's settings made of the plan (what they allow is decided in
//! [`crate::guard`]), where the guard runs, and the socket's place in the job's containers.
//!
//! | engine | guard |
//! |---|---|
//! | sees what is mounted here: reached by a unix socket, in one mount namespace | in this process |
//! | anything else: by TCP, longshore in a container, no right to look | in a `container` beside the engine |
//!
//! Either way binds of the workspace are pinned where the engine sees the pins.

mod container;

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bollard::models::{EndpointSettings, NetworkConnectRequest, VolumeCreateRequest};
use futures_util::{FutureExt as _, future};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    base::error_chain,
    config::{RunnerConfig, SocketBuild, volume::Volume},
    executor::docker::engine::{self, Engine},
    guard::{
        self, AuditEvent, Guard, GuardSettings, Mapping, Summary,
        audit::Log,
        container::{Endpoint, EngineHost},
        image::Reference,
    },
    workload::{
        NetworkPlan, Workload,
        access::{SOCKET_GROUP, Socket},
        mount::VolumePlan,
        names::{self, INSTANCE_LABEL, LABEL_PREFIX},
        spec::RegistryCredentials,
    },
};

use super::{
    DockerError, DockerJob,
    cgroup::{self, CgroupError},
    spec,
};

use container::GuardContainer;
pub use container::GuardContainerError;

/// The label that marks the objects of one job's guard, and no others.
const IDENTITY: &str = "longshore.guard";

/// Why a job has no guarded socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The engine is on another host, and the guard may not follow it there.
    #[error(
        "the engine at {host} is not on this host: a guarded socket is a file here, which its \
         containers cannot have"
    )]
    Elsewhere {
        /// The address of the engine.
        host: String,
    },
    /// The audit log cannot be opened.
    #[error("cannot write the audit log {}", path.display())]
    AuditLog {
        /// The file of the audit log.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// The control group of what the job makes with the socket cannot be made or limited.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The guard in this process did not start.
    #[error("cannot make the job's guarded socket")]
    Start(#[source] io::Error),
    /// The guard container did not do its work.
    #[error("the guard container of the job's guarded socket failed")]
    Container(#[from] GuardContainerError),
}

impl SocketError {
    /// Whether the runner's settings are the reason.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Elsewhere { .. } => true,
            Self::Container(error) => error.is_configuration(),
            Self::Cgroup(error) => error.is_configuration(),
            Self::AuditLog { .. } | Self::Start(_) => false,
        }
    }

    /// What the operator can do.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Elsewhere { .. } => Some(
                "set guard = \"auto\" in [runners.docker.socket], or use a daemon of the job's own",
            ),
            Self::Container(error) => error.hint(),
            Self::Cgroup(error) if error.is_configuration() => {
                Some("run longshore as root on the engine's host, or leave the totals out")
            }
            Self::AuditLog { .. } | Self::Cgroup(_) | Self::Start(_) => None,
        }
    }
}

/// A job's guard, and what its containers need of it.
pub(super) struct Guarded {
    guard: RunningGuard,
    /// Writes the audit log until the guard has ended.
    audit: Mutex<JoinSet<io::Result<()>>>,
    /// How containers get the socket.
    pub(super) place: spec::SocketPlace,
}

/// A guard, by where it runs.
enum RunningGuard {
    Here(Guard),
    Container(GuardContainer),
}

impl DockerJob {
    /// The job's guarded socket; the first call makes it. `None` for a job that has none.
    pub(super) async fn guarded(&self) -> Result<Option<&Guarded>, DockerError> {
        let Some(socket) = self.workload.access.guarded() else { return Ok(None) };
        self.guarded.get_or_try_init(|| self.start_guard(socket).boxed()).await.map(Some)
    }

    async fn start_guard(&self, socket: &Socket) -> Result<Guarded, DockerError> {
        let begun = Instant::now();
        let host = self.engine.host();
        let config = &self.runner.containers.socket;
        let path = config.audit_log.clone();
        let path = path.unwrap_or_else(|| self.directories.files.join("audit.jsonl"));
        let (events, log) =
            Log::open(&path).await.map_err(|source| SocketError::AuditLog { path, source })?;
        let mut audit = JoinSet::new();
        audit.spawn(log.write());
        let is_apart =
            container::is_wanted(config.guard, async || guard::shares_mounts(host).await).await;
        let cgroup_parent;
        let (guard, endpoint) = if is_apart {
            let launch = self.launch_container(events);
            let (mut container, settings) = future::try_join(launch, self.settings(socket)).await?;
            cgroup_parent = settings.cgroup_parent.clone();
            let endpoint = container.start(settings).await.map_err(SocketError::Container)?;
            (RunningGuard::Container(container), endpoint)
        } else {
            let Some(own) = host.strip_prefix("unix://") else {
                return Err(SocketError::Elsewhere { host: host.to_owned() }.into());
            };
            let mut settings = self.settings(socket).await?;
            settings.socket_group = group(Path::new(own));
            cgroup_parent = settings.cgroup_parent.clone();
            let guard = Guard::start(host, settings, Some(events)).await;
            let guard = guard.map_err(SocketError::Start)?;
            let endpoint = Endpoint::of(&guard);
            (RunningGuard::Here(guard), endpoint)
        };
        tracing::debug!(
            is_container = is_apart,
            milliseconds = begun.elapsed().as_millis(),
            "guarded socket is ready"
        );
        let Endpoint { socket: file, group, network, gateway } = endpoint;
        let place = spec::SocketPlace {
            source: file.display().to_string(),
            group,
            hosts: socket.names.iter().map(|name| format!("{name}:{gateway}")).collect(),
            network,
            cgroup_parent,
        };
        Ok(Guarded { guard, audit: audit.into(), place })
    }

    /// The guard's settings, once the job's network and volumes exist.
    async fn settings(&self, socket: &Socket) -> Result<GuardSettings, DockerError> {
        self.network_ready().await?;
        let volumes = self.workload.mounts.volumes.iter().map(|volume| self.mountpoint(volume));
        let volumes = future::try_join_all(volumes).await?;
        let mut settings = settings(&self.workload, &self.runner, socket, &self.directories.guard);
        settings.workspace = workspace(&self.workload, volumes.into_iter().flatten());
        settings.images.registries.extend(registries(&self.workload.job.registries));
        settings.socket_group = Some(SOCKET_GROUP);
        let limits = &self.runner.containers.socket.limits;
        let parent = self.runner.docker().limits.cgroup_parent.as_deref();
        let (names, directory) = (&self.workload.names, &self.directories.guard);
        let group = cgroup::make(&self.engine, limits, parent, names, directory).await;
        settings.cgroup_parent = Some(group.map_err(SocketError::Cgroup)?);
        Ok(settings)
    }

    async fn launch_container(
        &self,
        events: mpsc::Sender<AuditEvent>,
    ) -> Result<GuardContainer, DockerError> {
        let containers = &self.runner.containers;
        let unique = &self.workload.names.unique;
        let record = container::LaunchRecord {
            host: EngineHost {
                engine: container::engine_socket(
                    containers.socket.engine_socket.as_deref(),
                    self.engine.host(),
                ),
                container: format!("{unique}-guard"),
                unique: unique.clone(),
            },
            is_portable: containers.images.helper.as_deref().is_some_and(|name| !name.is_empty()),
            labels: names::typed(&self.workload.labels, "guard"),
            is_begun: false,
        };
        let launched =
            GuardContainer::launch(&self.engine, record, &self.directories.guard, events).await;
        Ok(launched.map_err(SocketError::Container)?)
    }

    /// A volume of the job's and where it is on this host. It is created here, because with the first
    /// container that mounts it, it would be too late to ask where it is.
    pub(super) async fn mountpoint<'a>(
        &self,
        volume: &'a VolumePlan,
    ) -> Result<Option<(&'a str, PathBuf)>, DockerError> {
        let driver = self.runner.docker().volumes.driver.clone();
        if driver.as_deref().is_some_and(|driver| driver != "local") {
            return Ok(None);
        }
        let request = VolumeCreateRequest {
            name: Some(volume.name.clone()),
            driver,
            driver_opts: Some(self.runner.docker().volumes.driver_options.clone()),
            labels: Some(volume.labels.clone().into_iter().collect()),
            ..VolumeCreateRequest::default()
        };
        let made = self
            .engine
            .client()
            .create_volume(request)
            .await
            .map_err(engine::Error::of("create the volume", &volume.name))?;
        Ok(Some((volume.destination.as_str(), made.mountpoint.into())))
    }

    /// Shows the job its own container, and connects that to the network of the job's containers
    /// where it is in another.
    pub(super) async fn show_to_guard(&self, id: &str) -> Result<(), DockerError> {
        let Some(guarded) = self.guarded.get() else { return Ok(()) };
        let name = &self.workload.names.build;
        match &guarded.guard {
            RunningGuard::Here(guard) => guard.adopt(id, name),
            RunningGuard::Container(container) => {
                container.adopt(id, name).await.map_err(SocketError::Container)?;
            }
        }
        let NetworkPlan::Given(mode) = &self.workload.network else { return Ok(()) };
        if matches!(mode.as_str(), "host" | "none") || mode.starts_with("container:") {
            return Ok(());
        }
        let request = NetworkConnectRequest {
            container: id.to_owned(),
            endpoint_config: Some(EndpointSettings {
                aliases: Some(vec!["build".to_owned()]),
                ..EndpointSettings::default()
            }),
        };
        let connected = self.engine.client().connect_network(&guarded.place.network, request).await;
        connected.map_err(engine::Error::of("connect to its guarded network", name))?;
        Ok(())
    }

    /// What the guard has done so far; `None` where there is none.
    pub(super) async fn guard_summary(&self) -> Option<Result<Summary, SocketError>> {
        Some(match &self.guarded.get()?.guard {
            RunningGuard::Here(guard) => Ok(guard.summary()),
            RunningGuard::Container(container) => {
                container.summary().await.map_err(SocketError::Container)
            }
        })
    }

    /// Stops the guard, if there is one, and removes what the job made with it. Returns what could not
    /// be removed; called again, it tries again.
    pub(super) async fn close_guard(&self) -> Vec<String> {
        if let Some(guarded) = self.guarded.get() {
            let left = match &guarded.guard {
                RunningGuard::Here(guard) => guard.stop().await.left,
                RunningGuard::Container(container) => {
                    container.stop().await.unwrap_or_else(|error| {
                        // `reap` removes what is left.
                        tracing::warn!(
                            error = error_chain(&error),
                            "guard container of the job's socket did not end in order"
                        );
                        Vec::new()
                    })
                }
            };
            let mut audit = std::mem::take(&mut *guarded.audit.lock());
            while let Some(written) = audit.join_next().await {
                if let Ok(Err(error)) = written {
                    tracing::warn!(%error, "cannot write the audit log of the job's socket");
                }
            }
            if !left.is_empty() {
                // Another attempt needs its directory.
                return left;
            }
        }
        if self.workload.access.guarded().is_none() {
            return Vec::new();
        }
        reap(&self.engine, &self.directories.guard).await
    }
}

/// Removes what a job's guard left in its directory, on the engine and on the engine's host, if it
/// had one. Returns what could not be removed.
pub async fn reap(engine: &Engine, directory: &Path) -> Vec<String> {
    let mut left = match container::reap(engine, directory).await {
        Some(left) => left,
        None => Guard::reap_directory(engine.host(), directory).await,
    };
    if left.is_empty() {
        left.extend(cgroup::remove(directory).await);
        // A directory that is not empty is still needed.
        drop(std::fs::remove_dir(directory));
    }
    left
}

/// The guard's settings, but for what only the engine knows.
fn settings(
    plan: &Workload,
    runner: &RunnerConfig,
    socket: &Socket,
    directory: &Path,
) -> GuardSettings {
    let config = &runner.containers.socket;
    let identity = (IDENTITY.to_owned(), plan.names.unique.clone());
    let network = match &plan.network {
        NetworkPlan::Own { name, .. } => name,
        NetworkPlan::Default | NetworkPlan::Given(_) => &plan.names.network,
    };
    let job = label(plan, &format!("{LABEL_PREFIX}.job.id"));
    let mut settings = GuardSettings::new(&job, identity, network, directory);
    settings.labels = labels(plan);
    settings.limits = limits(runner);
    settings.build = match config.build {
        SocketBuild::Off => guard::Build::Off,
        SocketBuild::Classic => guard::Build::Classic,
        SocketBuild::Sidecar => guard::Build::Sidecar,
    };
    let own = plan.services.iter().map(|service| &service.image).chain([&plan.image.name]);
    settings.images.shared = own
        .filter_map(|name| Some(Reference::parse(name)?.short()))
        .chain(config.shared_images.iter().cloned())
        .collect();
    settings.images.registries.clone_from(&config.registries);
    settings.images.remove = config.remove_images;
    settings.widening.capabilities.clone_from(&config.extra_capabilities);
    settings.widening.devices.clone_from(&config.allowed_devices);
    settings.widening.runtimes.clone_from(&config.allowed_runtimes);
    for path in &socket.paths {
        if !settings.socket_paths.contains(path) {
            settings.socket_paths.push(path.clone());
        }
    }
    settings
}

fn label(plan: &Workload, name: &str) -> String {
    plan.labels.get(name).cloned().unwrap_or_default()
}

/// The labels of the job by which its objects are found again after a crash.
fn labels(plan: &Workload) -> BTreeMap<String, String> {
    let kept = ["job.id", "project.id", "runner.id", "managed"];
    let kept = kept.into_iter().map(|name| format!("{LABEL_PREFIX}.{name}"));
    kept.chain([INSTANCE_LABEL.to_owned()])
        .map(|name| (name.clone(), label(plan, &name)))
        .chain([
            (format!("{LABEL_PREFIX}.type"), "guarded".to_owned()),
            (format!("{LABEL_PREFIX}.reusable"), "false".to_owned()),
        ])
        .collect()
}

/// The operator's limits; no container has more than the job's own, nor than all together.
pub(super) fn limits(runner: &RunnerConfig) -> guard::Limits {
    let mut limits = guard::Limits::default();
    let config = &runner.containers.socket.limits;
    let own = &runner.docker().limits;
    let set = |limit: &mut i64, value: Option<i64>| *limit = value.unwrap_or(*limit);
    let count = |limit: &mut usize, value: Option<usize>| *limit = value.unwrap_or(*limit);
    set(&mut limits.memory, config.memory.or(own.memory));
    set(&mut limits.nano_cpus, config.nano_cpus.or(own.nano_cpus));
    set(&mut limits.pids, config.pids);
    count(&mut limits.containers, config.containers);
    count(&mut limits.networks, config.networks);
    count(&mut limits.volumes, config.volumes);
    limits.total_memory = config.total_memory;
    limits.total_nano_cpus = config.total_nano_cpus;
    // No container has more than all together: some kernels refuse that for processors.
    let cap =
        |limit: &mut i64, total: Option<i64>| *limit = total.map_or(*limit, |t| t.min(*limit));
    cap(&mut limits.memory, config.total_memory);
    cap(&mut limits.nano_cpus, config.total_nano_cpus);
    cap(&mut limits.pids, config.total_pids);
    limits
}

/// Registries that the CI engine has given the job credentials for.
fn registries(credentials: &[RegistryCredentials]) -> impl Iterator<Item = String> {
    let host = |url: &str| {
        let host = url.split_once("://").map_or(url, |(_, rest)| rest);
        host.split('/').next().unwrap_or_default().to_owned()
    };
    credentials.iter().map(move |c| host(&c.url)).filter(|host| !host.is_empty())
}

/// The directories of the job's own file system that lie on this host, the deepest first.
fn workspace<'a>(
    plan: &'a Workload,
    volumes: impl Iterator<Item = (&'a str, PathBuf)>,
) -> Vec<Mapping> {
    let volumes = volumes.map(|(destination, host)| Mapping {
        job: destination.trim_end_matches('/').to_owned(),
        host,
        read_only: false,
    });
    let binds = plan.mounts.binds.iter().filter_map(|bind| {
        let volume = Volume::parse(bind).ok()?;
        Some(Mapping {
            job: volume.destination.trim_end_matches('/').to_owned(),
            host: volume.source.filter(|source| source.starts_with('/'))?.into(),
            read_only: volume.options.split([':', ',']).any(|option| option == "ro"),
        })
    });
    let mut all: Vec<Mapping> = volumes.chain(binds).collect();
    all.sort_by_key(|mapping| std::cmp::Reverse(mapping.job.len()));
    all
}

/// The group of the engine's socket where it is not root's, as jobs expect it; `None` where this process
/// cannot change the group of a file.
fn group(engine: &Path) -> Option<u32> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let own = std::fs::metadata(engine).map(|metadata| metadata.gid()).unwrap_or_default();
    Some(if own == 0 { SOCKET_GROUP } else { own })
}

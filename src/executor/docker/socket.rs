//! A job's guarded socket: its settings made of the plan (what the guard allows is `proxy`'s), where
//! its guard runs, and its place in the job's containers.
//!
//! | engine | guard |
//! |---|---|
//! | sees what is mounted here: reached by a unix socket, in one mount namespace | in this process |
//! | anything else: by TCP, longshore in a container, no right to look | `sidecar`, in the engine's |
//!
//! Either way binds of the workspace are pinned where the engine sees the pins.

mod sidecar;

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bollard::models::{EndpointSettings, NetworkConnectRequest, VolumeCreateRequest};
use futures_util::{FutureExt as _, future};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    base::error_chain,
    config::{RunnerConfig, SocketBuild, volume::Volume},
    executor::docker::engine::{self, Engine},
    guard::{
        self, AuditEvent, Guard, GuardSettings, Mapping, Summary,
        audit::Log,
        image::Reference,
        sidecar::{Host, Ready},
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

use sidecar::Sidecar;
pub use sidecar::SidecarError;

/// Names this guard's objects, its job's and nobody else's.
const IDENTITY: &str = "longshore.guard";

/// A job whose guarded socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The engine is elsewhere.
    #[error(
        "the engine at {host} is not on this host: a guarded socket is a file here, which its \
         containers cannot have"
    )]
    Elsewhere {
        /// Its address.
        host: String,
    },
    /// What it does could not be noted.
    #[error("cannot write the audit log {}", path.display())]
    AuditLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control group of what the job makes with it could not be made or limited.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// It could not be made.
    #[error("cannot make the job's guarded socket")]
    Start(#[source] io::Error),
    /// The sidecar beside the engine did not do its work.
    #[error("the sidecar of the job's guarded socket failed")]
    Sidecar(#[from] SidecarError),
}

impl SocketError {
    /// Whether the runner's settings are the reason.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Elsewhere { .. } => true,
            Self::Sidecar(error) => error.is_configuration(),
            Self::Cgroup(error) => error.is_configuration(),
            Self::AuditLog { .. } | Self::Start(_) => false,
        }
    }

    /// What the reader can do now.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Elsewhere { .. } => Some(
                "set guard = \"auto\" in [runners.docker.socket], or use a daemon of the job's own",
            ),
            Self::Sidecar(error) => error.hint(),
            Self::Cgroup(error) if error.is_configuration() => {
                Some("run longshore as root on the engine's host, or leave the totals out")
            }
            Self::AuditLog { .. } | Self::Cgroup(_) | Self::Start(_) => None,
        }
    }
}

/// A guard at work.
pub(super) struct Guarded {
    guard: Place,
    /// Writes the audit log until the guard has ended.
    audit: parking_lot::Mutex<JoinSet<io::Result<()>>>,
    /// How containers get it.
    pub(super) place: spec::SocketPlace,
}

/// Where a guard is.
enum Place {
    /// In this process.
    Here(Guard),
    /// In a container beside the engine.
    Sidecar(Sidecar),
}

impl DockerJob {
    /// The job's guarded socket; the first who asks makes it. `None` for a job that has none.
    pub(super) async fn guarded(&self) -> Result<Option<&Guarded>, DockerError> {
        let Some(socket) = self.workload.access.guarded() else { return Ok(None) };
        self.guarded.get_or_try_init(|| self.start_guard(socket).boxed()).await.map(Some)
    }

    async fn start_guard(&self, socket: &Socket) -> Result<Guarded, DockerError> {
        let begun = Instant::now();
        let host = self.engine.host();
        let config = &self.runner.docker.socket;
        let path = config.audit_log.clone();
        let path = path.unwrap_or_else(|| self.directories.files.join("audit.jsonl"));
        let (events, log) =
            Log::open(&path).await.map_err(|source| SocketError::AuditLog { path, source })?;
        let mut audit = JoinSet::new();
        audit.spawn(log.write());
        let is_apart =
            sidecar::is_wanted(config.guard, async || guard::shares_mounts(host).await).await;
        let cgroup_parent;
        let (guard, ready) = if is_apart {
            let launch = self.launch_sidecar(events);
            let (mut sidecar, settings) = future::try_join(launch, self.settings(socket)).await?;
            cgroup_parent = settings.cgroup_parent.clone();
            let ready = sidecar.start(settings).await.map_err(SocketError::Sidecar)?;
            (Place::Sidecar(sidecar), ready)
        } else {
            let Some(own) = host.strip_prefix("unix://") else {
                return Err(SocketError::Elsewhere { host: host.to_owned() }.into());
            };
            let mut settings = self.settings(socket).await?;
            settings.socket_group = group(Path::new(own));
            settings.audit = Some(events);
            cgroup_parent = settings.cgroup_parent.clone();
            let guard = Guard::start(host, settings).await.map_err(SocketError::Start)?;
            let ready = Ready::of(&guard);
            (Place::Here(guard), ready)
        };
        tracing::debug!(
            is_sidecar = is_apart,
            milliseconds = begun.elapsed().as_millis(),
            "guarded socket answers"
        );
        let Ready { socket: file, group, network, gateway } = ready;
        let place = spec::SocketPlace {
            source: file.display().to_string(),
            group,
            hosts: socket.names.iter().map(|name| format!("{name}:{gateway}")).collect(),
            network,
            cgroup_parent,
        };
        Ok(Guarded { guard, audit: audit.into(), place })
    }

    /// The guard's settings, once the engine has what they are about.
    async fn settings(&self, socket: &Socket) -> Result<GuardSettings, DockerError> {
        self.network_ready().await?;
        let volumes = self.workload.mounts.volumes.iter().map(|volume| self.mountpoint(volume));
        let volumes = future::try_join_all(volumes).await?;
        let mut settings = settings(&self.workload, &self.runner, socket, &self.directories.guard);
        settings.workspace = workspace(&self.workload, volumes.into_iter().flatten());
        settings.images.registries.extend(registries(&self.workload.job.registries));
        settings.socket_group = Some(SOCKET_GROUP);
        let config = &self.runner.docker.socket;
        let parent = self.runner.docker.resources.cgroup_parent.as_deref();
        let (names, directory) = (&self.workload.names, &self.directories.guard);
        let group = cgroup::make(&self.engine, config, parent, names, directory).await;
        settings.cgroup_parent = Some(group.map_err(SocketError::Cgroup)?);
        Ok(settings)
    }

    async fn launch_sidecar(
        &self,
        events: mpsc::Sender<AuditEvent>,
    ) -> Result<Sidecar, DockerError> {
        let docker = &self.runner.docker;
        let unique = &self.workload.names.unique;
        let note = sidecar::Note {
            host: Host {
                engine: sidecar::engine_socket(
                    docker.socket.engine_socket.as_deref(),
                    self.engine.host(),
                ),
                container: format!("{unique}-guard"),
                unique: unique.clone(),
            },
            is_portable: docker.helper_image.as_deref().is_some_and(|name| !name.is_empty()),
            labels: names::typed(&self.workload.labels, "guard"),
            is_begun: false,
        };
        let launched = Sidecar::launch(&self.engine, note, &self.directories.guard, events).await;
        Ok(launched.map_err(SocketError::Sidecar)?)
    }

    /// A volume of the job's and where it is on this host. The engine would make it with the first
    /// container that mounts it, but then it is too late to ask.
    pub(super) async fn mountpoint<'a>(
        &self,
        volume: &'a VolumePlan,
    ) -> Result<Option<(&'a str, PathBuf)>, DockerError> {
        let driver = self.runner.docker.volume_driver.clone();
        if driver.as_deref().is_some_and(|driver| driver != "local") {
            return Ok(None);
        }
        let request = VolumeCreateRequest {
            name: Some(volume.name.clone()),
            driver,
            driver_opts: Some(self.runner.docker.volume_driver_ops.clone()),
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

    /// Shows the job its own container, and takes that into the network of the job's containers
    /// where it is in another.
    pub(super) async fn show_to_guard(&self, id: &str) -> Result<(), DockerError> {
        let Some(guarded) = self.guarded.get() else { return Ok(()) };
        let name = &self.workload.names.build;
        match &guarded.guard {
            Place::Here(guard) => guard.adopt(id, name),
            Place::Sidecar(sidecar) => {
                sidecar.adopt(id, name).await.map_err(SocketError::Sidecar)?;
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
            Place::Here(guard) => Ok(guard.summary()),
            Place::Sidecar(sidecar) => sidecar.summary().await.map_err(SocketError::Sidecar),
        })
    }

    /// Ends the guard, if there is one: what the job made with it goes. Says what is left; called
    /// again, it tries again.
    pub(super) async fn close_guard(&self) -> Vec<String> {
        if let Some(guarded) = self.guarded.get() {
            let left = match &guarded.guard {
                Place::Here(guard) => guard.stop().await.left,
                Place::Sidecar(sidecar) => sidecar.stop().await.unwrap_or_else(|error| {
                    // What it could not do is done below.
                    tracing::warn!(
                        error = error_chain(&error),
                        "sidecar of the job's socket did not end in order"
                    );
                    Vec::new()
                }),
            };
            let mut audit = std::mem::take(&mut *guarded.audit.lock());
            while let Some(written) = audit.join_next().await {
                if let Ok(Err(error)) = written {
                    tracing::warn!(%error, "audit log of the job's socket could not be written");
                }
            }
            if !left.is_empty() {
                // Its directory is needed yet.
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
/// had one. Says what is still there.
pub async fn reap(engine: &Engine, directory: &Path) -> Vec<String> {
    let mut left = match sidecar::reap(engine, directory).await {
        Some(left) => left,
        None => Guard::reap_directory(engine.host(), directory).await,
    };
    if left.is_empty() {
        left.extend(cgroup::remove(directory).await);
        // What is not empty is of use yet.
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
    let config = &runner.docker.socket;
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

/// Those labels of the job by which its things are found again after a crash.
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

/// Limits of the operator's; a container has no more than the job's own, nor than all together.
pub(super) fn limits(runner: &RunnerConfig) -> guard::Limits {
    let mut limits = guard::Limits::default();
    let config = &runner.docker.socket;
    let resources = &runner.docker.resources;
    let set = |limit: &mut i64, value: Option<i64>| *limit = value.unwrap_or(*limit);
    let count = |limit: &mut usize, value: Option<usize>| *limit = value.unwrap_or(*limit);
    set(&mut limits.memory, config.memory.or(resources.memory));
    set(&mut limits.nano_cpus, config.nano_cpus.or(resources.nano_cpus));
    set(&mut limits.pids, config.pids);
    count(&mut limits.containers, config.containers);
    count(&mut limits.networks, config.networks);
    count(&mut limits.volumes, config.volumes);
    limits.total_memory = config.total_memory;
    limits.total_nano_cpus = config.total_nano_cpus;
    // No container has more than all together; of processors, some kernels do not take it.
    let cap =
        |limit: &mut i64, total: Option<i64>| *limit = total.map_or(*limit, |t| t.min(*limit));
    cap(&mut limits.memory, config.total_memory);
    cap(&mut limits.nano_cpus, config.total_nano_cpus);
    cap(&mut limits.pids, config.total_pids);
    limits
}

/// What of the job's own file system lies on this host, the deepest first.
/// Registries that the CI engine has given the job credentials for.
fn registries(credentials: &[RegistryCredentials]) -> impl Iterator<Item = String> {
    let host = |url: &str| {
        let host = url.split_once("://").map_or(url, |(_, rest)| rest);
        host.split('/').next().unwrap_or_default().to_owned()
    };
    credentials.iter().map(move |c| host(&c.url)).filter(|host| !host.is_empty())
}

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

/// The group of the engine's socket, to which jobs are used, or another; none where this process
/// cannot give a file away.
fn group(engine: &Path) -> Option<u32> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let own = std::fs::metadata(engine).map(|metadata| metadata.gid()).unwrap_or_default();
    Some(if own == 0 { SOCKET_GROUP } else { own })
}

//! A job's guarded socket: its settings made of the plan (what the guard allows is `proxy`'s), and
//! its place in the job's containers.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bollard::models::{EndpointSettings, NetworkConnectRequest, VolumeCreateRequest};
use futures_util::future;
use tokio::task::JoinSet;

use crate::{
    config::{RunnerConfig, SocketConfig, volume::Volume},
    docker::{self, Engine},
    plan::{
        NetworkPlan, Plan,
        access::{SOCKET_GROUP, Socket},
        mount::VolumePlan,
        names::{INSTANCE_LABEL, LABEL_PREFIX},
    },
    proxy::{self, Guard, GuardSettings, Mapping, Summary, audit::Log, image::Reference},
};

use super::{
    Docker, ExecutorError,
    cgroup::{self, CgroupError},
    spec,
};

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
}

/// A guard at work.
pub(super) struct Guarded {
    guard: Guard,
    /// Writes the audit log until the guard has ended.
    audit: std::sync::Mutex<JoinSet<io::Result<()>>>,
    /// How containers get it.
    pub(super) place: spec::SocketPlace,
}

impl Docker {
    /// The job's guarded socket; the first who asks makes it. `None` for a job that has none.
    pub(super) async fn guarded(&self) -> Result<Option<&Guarded>, ExecutorError> {
        let Some(socket) = self.plan.access.guarded() else { return Ok(None) };
        self.guarded.get_or_try_init(|| self.start_guard(socket)).await.map(Some)
    }

    async fn start_guard(&self, socket: &Socket) -> Result<Guarded, ExecutorError> {
        let host = self.engine.host();
        let Some(own) = host.strip_prefix("unix://") else {
            return Err(SocketError::Elsewhere { host: host.to_owned() }.into());
        };
        self.network_ready().await?;
        let volumes = self.plan.mounts.volumes.iter().map(|volume| self.mountpoint(volume));
        let volumes = future::try_join_all(volumes).await?;
        let mut settings = settings(&self.plan, &self.runner, socket, &self.guard_directory);
        settings.workspace = workspace(&self.plan, volumes.into_iter().flatten());
        settings.images.registries.extend(self.server_registries.iter().cloned());
        settings.socket_group = group(Path::new(own));
        let config = &self.runner.docker.socket;
        let parent = self.runner.docker.resources.cgroup_parent.as_deref();
        let (names, directory) = (&self.plan.names, &self.guard_directory);
        let group = cgroup::make(&self.engine, config, parent, names, directory).await;
        settings.cgroup_parent = Some(group.map_err(SocketError::Cgroup)?);
        let path = config.audit_log.clone();
        let path = path.unwrap_or_else(|| self.job_directory.join("audit.jsonl"));
        let (events, log) =
            Log::open(&path).await.map_err(|source| SocketError::AuditLog { path, source })?;
        settings.audit = Some(events);
        let group = settings.socket_group;
        let guard = Guard::start(host, settings).await.map_err(SocketError::Start)?;
        let mut audit = JoinSet::new();
        audit.spawn(log.write());
        let (network, gateway) = guard.network();
        let place = spec::SocketPlace {
            source: guard.socket().display().to_string(),
            group,
            hosts: socket.names.iter().map(|name| format!("{name}:{gateway}")).collect(),
            network: network.to_owned(),
        };
        Ok(Guarded { guard, audit: audit.into(), place })
    }

    /// A volume of the job's and where it is on this host. The engine would make it with the first
    /// container that mounts it, but then it is too late to ask.
    async fn mountpoint<'a>(
        &self,
        volume: &'a VolumePlan,
    ) -> Result<Option<(&'a str, PathBuf)>, ExecutorError> {
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
            .map_err(docker::Error::of("create the volume", &volume.name))?;
        Ok(Some((volume.destination.as_str(), made.mountpoint.into())))
    }

    /// Shows the job its own container, and takes that into the network of the job's containers
    /// where it is in another.
    pub(super) async fn show_to_guard(&self, id: &str) -> Result<(), ExecutorError> {
        let Some(guarded) = self.guarded.get() else { return Ok(()) };
        let name = &self.plan.names.build;
        guarded.guard.adopt(id, name);
        let NetworkPlan::Given(mode) = &self.plan.network else { return Ok(()) };
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
        connected.map_err(docker::Error::of("connect to its guarded network", name))?;
        Ok(())
    }

    /// What the guard has done so far; `None` where there is none.
    #[must_use]
    pub fn guard_summary(&self) -> Option<Summary> {
        Some(self.guarded.get()?.guard.summary())
    }

    /// Ends the guard, if there is one: what the job made with it goes. Says what is left; called
    /// again, it tries again.
    pub async fn close_guard(&self) -> Vec<String> {
        if let Some(guarded) = self.guarded.get() {
            let summary = guarded.guard.stop().await;
            let mut audit = std::mem::take(
                &mut *guarded.audit.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            );
            while let Some(written) = audit.join_next().await {
                if let Ok(Err(error)) = written {
                    tracing::warn!(%error, "audit log of the job's socket could not be written");
                }
            }
            if !summary.left.is_empty() {
                // Its directory is needed yet.
                return summary.left;
            }
        }
        if self.plan.access.guarded().is_none() {
            return Vec::new();
        }
        reap(&self.engine, &self.guard_directory).await
    }
}

/// Removes what a job's guard left in its directory and on the engine, if it had one. Says what is
/// still there.
pub async fn reap(engine: &Engine, directory: &Path) -> Vec<String> {
    if !directory.exists() {
        return Vec::new();
    }
    let places = GuardSettings::new("", Default::default(), "", directory);
    let mut left = match Guard::reap(engine.host(), &places.private).await {
        Ok(left) => left,
        Err(error) => vec![format!("the guarded socket in {}: {error}", directory.display())],
    };
    if left.is_empty() {
        left.extend(cgroup::remove(directory).await);
    }
    drop(std::fs::remove_file(&places.socket));
    // What is not empty is of use yet.
    drop(std::fs::remove_dir(directory));
    left
}

/// The guard's settings, but for what only the engine knows.
fn settings(
    plan: &Plan,
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
    limit(&mut settings.limits, config, runner);
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

fn label(plan: &Plan, name: &str) -> String {
    plan.labels.get(name).cloned().unwrap_or_default()
}

/// Those labels of the job by which its things are found again after a crash.
fn labels(plan: &Plan) -> BTreeMap<String, String> {
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
fn limit(limits: &mut proxy::Limits, config: &SocketConfig, runner: &RunnerConfig) {
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
}

/// What of the job's own file system lies on this host, the deepest first.
fn workspace<'a>(
    plan: &'a Plan,
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

//! What a runner's jobs get as containers, whatever runs these: images, users, privileges, volumes,
//! networks, services, and ways to Docker. The check of each executor's table fills it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{
    dind::{DindConfig, DindMode},
    socket::{SocketConfig, SocketMode},
    volume::Volume,
};
use crate::base::paths::HostPath;

/// The settings of a job's containers that planning reads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerConfig {
    /// Which images, and when they are pulled.
    pub images: ImagePolicy,
    /// As whom the build container runs.
    pub users: UserPolicy,
    /// Which containers are privileged.
    pub privileges: PrivilegePolicy,
    /// The OCI runtime; `None` for the executor's default.
    pub runtime: Option<String>,
    /// The network of the job's containers.
    pub network: NetworkConfig,
    /// What is mounted.
    pub volumes: VolumeConfig,
    /// Services beside the job.
    pub services: ServicePolicy,
    /// Ignores the entrypoints that jobs ask for.
    pub disable_entrypoint_overwrite: bool,
    /// Extra labels of all containers; variables in their values are expanded.
    pub labels: BTreeMap<String, String>,
    /// Docker daemons of jobs.
    pub dind: DindConfig,
    /// The engine's socket in jobs.
    pub socket: SocketConfig,
}

impl ContainerConfig {
    /// Whether jobs may get a guarded socket: then each has a network of its own, which the
    /// containers that it makes share.
    #[must_use]
    pub fn guards_sockets(&self) -> bool {
        let mounts =
            |text: &String| Volume::parse(text).is_ok_and(|volume| volume.is_engine_socket());
        match self.socket.mode {
            SocketMode::Raw => false,
            SocketMode::Guarded => true,
            SocketMode::Off => {
                self.dind.mode == DindMode::Socket || self.volumes.entries.iter().any(mounts)
            }
        }
    }
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// The registry is asked before every job.
    Always,
    /// Only when the image is not there yet.
    IfNotPresent,
    /// The image has to be there.
    Never,
}

impl PullPolicy {
    /// The word used in files and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::IfNotPresent => "if-not-present",
            Self::Never => "never",
        }
    }
}

/// Which images jobs may use.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePolicy {
    /// Image of jobs that name none, with variables; empty when there is none.
    pub default: String,
    /// Image of the helper container in place of longshore's own, with variables.
    pub helper: Option<String>,
    /// Tried in order; at least one.
    pub pull_policies: Vec<PullPolicy>,
    /// What jobs may ask for; `None` for `pull_policies`.
    pub allowed_pull_policies: Option<Vec<PullPolicy>>,
    /// Globs of the images of jobs; empty for all.
    pub allowed: Vec<String>,
    /// Globs of the images of jobs' services; empty for all.
    pub allowed_services: Vec<String>,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self {
            default: String::new(),
            helper: None,
            pull_policies: vec![PullPolicy::Always],
            allowed_pull_policies: None,
            allowed: Vec::new(),
            allowed_services: Vec::new(),
        }
    }
}

/// As whom the build container runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UserPolicy {
    /// Overrides the user that a job asks for; `None` for the job's or the image's.
    pub user: Option<String>,
    /// The users that a job may ask for; empty for `user`, or all without one.
    pub allowed: Vec<String>,
}

/// Which containers are privileged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PrivilegePolicy {
    /// Runs the job's containers privileged.
    pub privileged: bool,
    /// The same for services; `None` follows `privileged`.
    pub services: Option<bool>,
    /// Globs of the images that this is for; empty for all.
    pub allowed_images: Vec<String>,
    /// Globs of the services' images that this is for; empty for all.
    pub allowed_services: Vec<String>,
}

/// The network of a job's containers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NetworkConfig {
    /// An existing network; `None` for the default bridge, or a network of the job's own.
    pub mode: Option<String>,
    /// MTU of the job's own network in bytes; 0 for the default.
    pub mtu: u32,
    /// IPv6 on the job's own network.
    pub ipv6: bool,
}

/// What is mounted into a job's containers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VolumeConfig {
    /// As written, `[source:]destination[:options]`; each of them can be parsed as a [`Volume`].
    pub entries: Vec<String>,
    /// Directory of the host for caches in place of volumes.
    pub cache_dir: Option<HostPath>,
    /// Removes every cache volume with its job.
    pub disable_cache: bool,
    /// Mount options of file systems in memory, by path in the build and helper containers.
    pub tmpfs: HashMap<String, String>,
    /// The same in services.
    pub services_tmpfs: HashMap<String, String>,
}

/// Services beside the job.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePolicy {
    /// Services that every job has.
    pub entries: Vec<ServiceConfig>,
    /// How many services a job may have, these included; `None` for any number.
    pub limit: Option<usize>,
    /// How long they may take to be ready; `None` does not wait.
    pub ready_timeout: Option<Duration>,
}

impl Default for ServicePolicy {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            limit: None,
            // GitLab Runner: `DefaultWaitForServicesTimeout`.
            ready_timeout: Some(Duration::from_secs(30)),
        }
    }
}

/// A service of every job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceConfig {
    /// The image, with variables.
    pub name: String,
    /// Further host names, separated by commas or spaces.
    pub alias: String,
    /// Overrides the image's command; empty for that.
    pub command: Vec<String>,
    /// Overrides the image's entrypoint; empty for that.
    pub entrypoint: Vec<String>,
    /// Variables of this service alone, `(name, value)`.
    pub environment: Vec<(String, String)>,
}

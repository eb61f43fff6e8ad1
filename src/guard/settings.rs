//! What a guard is told by the one who starts it. Widening settings are the operator's alone.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{audit::AuditEvent, names::Names};

/// Everything about one job's guard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuardSettings {
    /// The job, for the audit log.
    pub job: String,
    /// The label that all of this guard's objects carry, and nobody else's: lists and clean-up go
    /// by it. Its value must be the job's alone.
    pub identity: (String, String),
    /// Further labels for all that is created.
    pub labels: BTreeMap<String, String>,
    /// Beginnings of label keys that the job may not write (G-46). The keys of `identity` and
    /// `labels` are reserved as well.
    pub reserved_labels: Vec<String>,
    /// Beginnings of names that the job may not give (G-48).
    pub reserved_names: Vec<String>,
    /// How what the job names is called on the engine (G-49).
    pub names: Names,
    /// The job's network. It is created, and removed in the end, when it does not exist.
    pub network: String,
    /// The cgroup that everything runs below (G-85), in the form of the engine's driver.
    pub cgroup_parent: Option<String>,
    /// Sizes and counts.
    pub limits: Limits,
    /// What can be bound, first match first: the workspace, then caches.
    pub workspace: Vec<Mapping>,
    /// Which images and registries there are.
    pub images: ImagePolicy,
    /// The guarded socket's file. Its directory must be closed to the host's users.
    pub socket: PathBuf,
    /// The group of the socket's file, where it is not the guard's own.
    pub socket_group: Option<u32>,
    /// A directory for this guard alone (mode 0700): pins and spooled archives. It must not lie
    /// below a mapping.
    pub private: PathBuf,
    /// Where the job sees the socket; binds of these become binds of the guarded one.
    pub socket_paths: Vec<String>,
    /// What the operator allows beyond the defaults.
    pub widening: Widening,
    /// What builds images.
    pub build: Build,
    /// Takes an event for each request.
    #[serde(skip)]
    pub audit: Option<mpsc::Sender<AuditEvent>>,
}

/// What builds images for a job (contract, section 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Build {
    /// Nothing.
    Off,
    /// The engine's classic builder.
    Classic,
    /// The same, and a BuildKit that the job has beside this socket.
    Sidecar,
}

/// A directory of the job and where it really is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// As the job names it: absolute and clean.
    pub job: String,
    /// The directory on the engine's host.
    pub host: PathBuf,
    /// Mounts of it are read-only whatever the job asks.
    pub read_only: bool,
}

/// Which images a job sees, and where it may get others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePolicy {
    /// Globs on short names with a tag (`debian:*`, `registry.example:5000/base/*`).
    pub shared: Vec<String>,
    /// Registries that may be asked, `docker.io` or `HOST[:PORT]`.
    pub registries: Vec<String>,
    /// Whether images that the job made are removed with it.
    pub remove: bool,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self { shared: Vec::new(), registries: vec!["docker.io".to_owned()], remove: true }
    }
}

/// What the operator's configuration opens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Widening {
    /// Beyond the engine's default set, upper case, without `CAP_`.
    pub capabilities: Vec<String>,
    /// Names of runtimes.
    pub runtimes: Vec<String>,
    /// Host paths of devices, with all permissions.
    pub devices: Vec<String>,
    /// Keys of annotations.
    pub annotations: Vec<String>,
    /// Dropped from all containers that do not add them.
    pub drop_capabilities: Vec<String>,
    /// Whether all containers get `no-new-privileges`.
    pub no_new_privileges: bool,
}

/// Sizes in bytes, and counts (contract, section 13).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of a container: the default and the most.
    pub memory: i64,
    /// Processes of a container.
    pub pids: i64,
    /// CPU of a container in billionths.
    pub nano_cpus: i64,
    /// Memory of all containers together, where the cgroup that they run below has a limit; jobs are
    /// shown it.
    pub total_memory: Option<i64>,
    /// CPU of all together, likewise.
    pub total_nano_cpus: Option<i64>,
    /// `/dev/shm` of a container.
    pub shm: i64,
    /// One tmpfs.
    pub tmpfs: i64,
    /// Containers of the job at a time.
    pub containers: usize,
    /// Networks.
    pub networks: usize,
    /// Volumes.
    pub volumes: usize,
    /// Images that the job made or pulled.
    pub images: usize,
    /// Connections.
    pub connections: usize,
    /// One archive that is sent.
    pub upload: u64,
    /// One JSON body.
    pub json: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            pids: 1024,
            nano_cpus: 2_000_000_000,
            total_memory: None,
            total_nano_cpus: None,
            shm: 256 << 20,
            tmpfs: 512 << 20,
            containers: 40,
            networks: 10,
            volumes: 50,
            images: 200,
            connections: 128,
            upload: 4 << 30,
            json: 4 << 20,
        }
    }
}

impl GuardSettings {
    /// Settings with the contract's defaults, no workspace and no images.
    #[must_use]
    pub fn new(job: &str, identity: (String, String), network: &str, directory: &Path) -> Self {
        Self {
            job: job.to_owned(),
            names: Names::of(&identity),
            identity,
            labels: BTreeMap::new(),
            reserved_labels: vec!["longshore.".into(), "com.gitlab.gitlab-runner.".into()],
            reserved_names: vec!["longshore-".into(), "runner-".into()],
            network: network.to_owned(),
            cgroup_parent: None,
            limits: Limits::default(),
            workspace: Vec::new(),
            images: ImagePolicy::default(),
            socket: directory.join("docker.sock"),
            socket_group: None,
            private: directory.join("private"),
            socket_paths: vec!["/var/run/docker.sock".into(), "/run/docker.sock".into()],
            widening: Widening {
                drop_capabilities: vec!["MKNOD".to_owned()],
                ..Widening::default()
            },
            build: Build::Classic,
            audit: None,
        }
    }

    /// All labels of an object: the further ones, then the identity.
    #[must_use]
    pub fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert(self.identity.0.clone(), self.identity.1.clone());
        labels
    }

    /// The labels of an image: a container that somebody else makes of it later inherits them, and
    /// must not be taken for one of the job's.
    #[must_use]
    pub fn image_labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([self.identity.clone()])
    }

    /// Whether a job may not write a label with this key (G-46). Case does not help.
    #[must_use]
    pub fn is_reserved_label(&self, key: &str) -> bool {
        let key = key.trim().to_ascii_lowercase();
        self.reserved_labels.iter().any(|prefix| key.starts_with(&prefix.to_ascii_lowercase()))
            || self.all_labels().keys().any(|own| own.to_ascii_lowercase() == key)
    }
}

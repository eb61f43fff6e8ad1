//! `[runners.docker.socket]`: what jobs get of the engine's own socket.

use std::path::PathBuf;

/// `mode` of `[runners.docker.socket]`: what a job gets of the engine's own socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SocketMode {
    /// Nothing, unless `volumes` mounts it: then a guarded one.
    #[default]
    Off,
    /// A guarded socket, in every job.
    Guarded,
    /// What `volumes` mounts is the engine's socket itself.
    Raw,
}

/// `build` of `[runners.docker.socket]`: what builds images for a job with a guarded socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SocketBuild {
    /// Jobs cannot build images.
    Off,
    /// The engine's classic builder.
    #[default]
    Classic,
    /// The same, and a BuildKit in a container beside the job.
    Sidecar,
}

/// `guard` of `[runners.docker.socket]`: where a job's guard runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuardPlace {
    /// In this process where the engine sees what is mounted here, else in a container.
    #[default]
    Auto,
    /// In this process, which must be on the engine's host.
    Here,
    /// In a container beside the engine.
    Sidecar,
}

/// `[runners.docker.socket]`; see `docs/configuration.md`.
#[derive(Debug, Clone, PartialEq)]
pub struct SocketConfig {
    /// What a job gets.
    pub mode: SocketMode,
    /// What builds images.
    pub build: SocketBuild,
    /// Image of the BuildKit beside a job.
    pub buildkit_image: String,
    /// Where the guard of a job runs.
    pub guard: GuardPlace,
    /// The engine's socket on the engine's own host, where a guard beside it finds it; `None` for
    /// that of `host` where it is one, else the usual one.
    pub engine_socket: Option<PathBuf>,
    /// Globs of images that jobs see without pulling them. Those that a job runs on itself are seen
    /// anyway.
    pub shared_images: Vec<String>,
    /// Registries that the engine may be made to ask, beside those that the server has credentials
    /// for.
    pub registries: Vec<String>,
    /// Removes the images that a job made with the job.
    pub remove_images: bool,
    /// How much of the engine a job may take.
    pub limits: SocketLimits,
    /// Capabilities beyond the engine's default set, without `CAP_`.
    pub extra_capabilities: Vec<String>,
    /// Host paths of devices.
    pub allowed_devices: Vec<String>,
    /// Runtimes beside the engine's default one.
    pub allowed_runtimes: Vec<String>,
    /// File of the audit log of all jobs; without it, each job's log is removed with the job.
    pub audit_log: Option<PathBuf>,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            mode: SocketMode::default(),
            build: SocketBuild::default(),
            buildkit_image: "moby/buildkit:rootless".to_owned(),
            guard: GuardPlace::default(),
            engine_socket: None,
            shared_images: Vec::new(),
            registries: vec!["docker.io".to_owned()],
            remove_images: true,
            limits: SocketLimits::default(),
            extra_capabilities: Vec::new(),
            allowed_devices: Vec::new(),
            allowed_runtimes: Vec::new(),
            audit_log: None,
        }
    }
}

/// `[runners.docker.socket.limits]`; `None` for the guard's own default, or for no limit where it is
/// of all together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SocketLimits {
    /// Memory of a container in bytes: the default and the most.
    pub memory: Option<i64>,
    /// Processors of a container in billionths.
    pub nano_cpus: Option<i64>,
    /// Processes of a container.
    pub pids: Option<i64>,
    /// Memory of all containers that a job makes, together, in bytes.
    pub total_memory: Option<i64>,
    /// Processors of all, in billionths.
    pub total_nano_cpus: Option<i64>,
    /// Processes of all.
    pub total_pids: Option<i64>,
    /// Containers of a job at a time.
    pub containers: Option<usize>,
    /// Networks of a job.
    pub networks: Option<usize>,
    /// Volumes of a job.
    pub volumes: Option<usize>,
}

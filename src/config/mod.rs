//! What the operator asks for: gitlab-runner's `config.toml`, read as written (`file`), checked as
//! a whole into [`Config`] (`check`), watched (`watch`) and edited in place (`edit`).

pub mod check;
pub mod diff;
pub mod edit;
mod file;
pub mod flags;
pub mod system_id;
#[cfg(test)]
pub(crate) mod testing;
pub mod values;
pub mod volume;
pub mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::base::{ids::ShortToken, secret::Secret};

/// The whole configuration, checked: no value in it can be wrong in a way its type forbids.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Jobs at once over all runners; at least 1.
    pub concurrent: usize,
    /// How long one pass over all runners takes at least.
    pub check_interval: Duration,
    /// Level of the daemon's log; `None` leaves it to the command line.
    pub log_level: Option<String>,
    /// Format of the daemon's log; `None` leaves it to the command line.
    pub log_format: Option<String>,
    /// `host:port` of the metrics; `None` for no HTTP server.
    pub listen_address: Option<String>,
    /// How long a forceful stop waits for jobs to be cleaned up.
    pub shutdown_timeout: Duration,
    /// How long idle connections to GitLab live; zero for ever.
    pub connection_max_age: Duration,
    /// The `[[runners]]`, in file order.
    pub runners: Vec<Arc<RunnerConfig>>,
}

/// One `[[runners]]` entry. A job keeps the one it was started with.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the keys of the file are what they are")]
pub struct RunnerConfig {
    /// Description, shown in the trace.
    pub name: String,
    /// GitLab's base URL, as in the file with environment references replaced; see
    /// `api::client` for how the API's address is made of it.
    pub url: String,
    /// The runner's id at its server; 0 when unknown.
    pub id: i64,
    /// The authentication token; empty when the file has none (such a runner is skipped).
    pub token: Secret,
    /// When the token was issued, RFC 3339; only for rotation.
    pub token_obtained_at: Option<String>,
    /// When the token ends, RFC 3339.
    pub token_expires_at: Option<String>,
    /// PEM bundle of CAs that are trusted beside the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// Client certificate, PEM; only with `tls_key_file`.
    pub tls_cert_file: Option<PathBuf>,
    /// Key of the client certificate, PEM.
    pub tls_key_file: Option<PathBuf>,
    /// Jobs at once of this runner; 0 for no limit of its own.
    pub limit: usize,
    /// Job requests at once, at least 1.
    pub request_concurrency: usize,
    /// Waits the whole interval even right after a job was received.
    pub strict_check_interval: bool,
    /// Unhealthy answers in a row before the runner is paused, at least 1.
    pub unhealthy_requests_limit: u32,
    /// How long it is paused.
    pub unhealthy_interval: Duration,
    /// Limit of a job's trace in bytes.
    pub output_limit: u64,
    /// Tries for the final update, at least 1.
    pub final_update_retry_limit: u32,
    /// Labels, the global ones overlaid by the runner's own.
    pub labels: BTreeMap<String, String>,
    /// Root of work trees in the containers.
    pub builds_dir: String,
    /// Root of local caches in the containers.
    pub cache_dir: String,
    /// Other base URL for git.
    pub clone_url: Option<String>,
    /// Variables for every job, `(name, value)`, in file order.
    pub environment: Vec<(String, String)>,
    /// Shell text of the operator around the stages.
    pub scripts: OperatorScripts,
    /// Deadline of preparation; `None` for the job's own timeout.
    pub prepare_timeout: Option<Duration>,
    /// Deadline of fetching the sources; `None` for the job's own timeout.
    pub get_sources_timeout: Option<Duration>,
    /// Forbids `CI_DEBUG_TRACE` and `CI_DEBUG_SERVICES`.
    pub debug_trace_disabled: bool,
    /// Adds `safe.directory` for the project.
    pub safe_directory_checkout: bool,
    /// Removes git configuration and hooks that an earlier job left.
    pub clean_git_config: bool,
    /// Allows `GIT_CLONE_PATH`.
    pub custom_build_dir: bool,
    /// Deadlines of an artifact's upload.
    pub artifact: ArtifactConfig,
    /// `[runners.feature_flags]`: they beat the job's variables.
    pub feature_flags: BTreeMap<String, bool>,
    /// Remote cache.
    pub cache: CacheConfig,
    /// `[runners.docker]`.
    pub docker: DockerConfig,
    /// Sources of `longshore exec`: a git bundle on this host that stands for every job's
    /// repository. No key of the file sets it.
    pub local_bundle: Option<PathBuf>,
}

impl RunnerConfig {
    /// The part of the token that may be shown.
    #[must_use]
    pub fn short_token(&self) -> ShortToken {
        ShortToken::of(self.token.expose())
    }
}

/// The operator's shell text around the stages of every job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OperatorScripts {
    /// Before git, in the helper.
    pub pre_get_sources: Option<String>,
    /// After git, in the helper.
    pub post_get_sources: Option<String>,
    /// Before the job's script, in the same shell.
    pub pre_build: Option<String>,
    /// After the job's script, in the same shell, when it succeeded.
    pub post_build: Option<String>,
}

/// `[runners.artifact]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactConfig {
    /// Deadline of a whole upload.
    pub upload_timeout: Duration,
    /// Deadline of the answer to it.
    pub response_header_timeout: Duration,
}

/// `[runners.cache]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CacheConfig {
    /// Prefix of all objects.
    pub path: String,
    /// Leaves the runner's part out of object names.
    pub shared: bool,
    /// Largest archive that is uploaded, in bytes; 0 for no limit.
    pub max_uploaded_archive_size: u64,
    /// The store; `None` for local caches alone.
    pub s3: Option<S3Config>,
}

/// `[runners.cache.s3]`, with credentials.
#[derive(Debug, Clone, PartialEq)]
pub struct S3Config {
    /// `scheme://host[:port]` of the store.
    pub endpoint: url::Url,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: Secret,
    /// Session token of temporary credentials.
    pub session_token: Option<Secret>,
    /// Bucket.
    pub bucket: String,
    /// Region, `us-east-1` when the file has none.
    pub region: String,
    /// Bucket in the path, not in the host name.
    pub path_style: bool,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// Always asks the registry.
    Always,
    /// Only when the engine does not have it.
    IfNotPresent,
    /// Never.
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

/// A device handed to a container, `host[:container[:permissions]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Path on the engine's host.
    pub host: String,
    /// Path in the container.
    pub container: String,
    /// `rwm` and parts of it.
    pub permissions: String,
}

/// `name = soft[:hard]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit.
    pub hard: i64,
}

/// Limits on memory and processors; `None` leaves the engine's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<i64>,
    /// Bytes.
    pub memory_swap: Option<i64>,
    /// Bytes.
    pub memory_reservation: Option<i64>,
    /// Billionths of a processor.
    pub nano_cpus: Option<i64>,
    /// Such as `0-2`.
    pub cpuset_cpus: Option<String>,
    /// Such as `0`; not for services.
    pub cpuset_mems: Option<String>,
    /// Relative weight.
    pub cpu_shares: Option<i64>,
    /// Parent control group.
    pub cgroup_parent: Option<String>,
}

/// A `[[runners.docker.services]]` entry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceConfig {
    /// Image.
    pub name: String,
    /// Aliases, separated by commas or spaces.
    pub alias: String,
    /// Override of the command.
    pub command: Vec<String>,
    /// Override of the entrypoint.
    pub entrypoint: Vec<String>,
    /// Variables of this service alone.
    pub environment: Vec<(String, String)>,
}

/// What `services: [docker:dind]` becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindMode {
    /// A daemon of the job's own.
    #[default]
    Sidecar,
    /// The engine's own socket in its place, guarded.
    Socket,
    /// The job is refused.
    Refuse,
}

/// `network` of `[runners.docker.dind]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindNetwork {
    /// A place of its own in the job's network, under the name `docker`.
    #[default]
    Own,
    /// The job's container is in the daemon's: what inner containers publish is at `localhost` too.
    Shared,
}

/// Where a job's daemon has its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindStorage {
    /// In a volume that goes with the job.
    #[default]
    Fresh,
    /// In one that later jobs use again, one at a time.
    Slot,
}

/// `[runners.docker.dind]`.
#[derive(Debug, Clone, PartialEq)]
pub struct DindConfig {
    /// What such a service becomes.
    pub mode: DindMode,
    /// Globs of the images that are a Docker daemon.
    pub images: Vec<String>,
    /// Where the daemon is.
    pub network: DindNetwork,
    /// Mirrors that the daemon pulls from.
    pub registry_mirrors: Vec<String>,
    /// Registries, or ranges of addresses of such, that it talks to without TLS or with
    /// certificates of nobody it knows.
    pub insecure_registries: Vec<String>,
    /// How long it may take until it answers.
    pub ready_timeout: Duration,
    /// Where it has its layers.
    pub storage: DindStorage,
    /// Layer-cache slots that are kept at most.
    pub slots: usize,
    /// Bytes that a slot may have to be kept.
    pub slot_size: u64,
    /// Daemons that wait for jobs.
    pub warm: usize,
}

impl Default for DindConfig {
    fn default() -> Self {
        Self {
            mode: DindMode::default(),
            // Tags of the official image alone: its container is privileged, and who may push an
            // image to some other registry should not thereby be root on the build host.
            images: ["docker:*dind*", "docker.io/library/docker:*dind*"]
                .map(str::to_owned)
                .to_vec(),
            network: DindNetwork::default(),
            registry_mirrors: Vec::new(),
            insecure_registries: Vec::new(),
            ready_timeout: Duration::from_mins(1),
            storage: DindStorage::default(),
            slots: 10,
            slot_size: 20 << 30,
            warm: 0,
        }
    }
}

/// `mode` of `[runners.docker.socket]`: what a job gets of the engine's own socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SocketMode {
    /// Nothing, unless `volumes` mounts it: then a guarded one.
    #[default]
    Off,
    /// A guarded one.
    Guarded,
    /// What `volumes` mounts is meant: the socket as it is.
    Raw,
}

/// `build` of `[runners.docker.socket]`: what builds images for a job with a guarded socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SocketBuild {
    /// Nothing.
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
    /// Here where the engine sees what is mounted here, else in a container beside the engine.
    #[default]
    Auto,
    /// In this process.
    Here,
    /// In a container beside the engine.
    Sidecar,
}

/// `[runners.docker.socket]`. Names of keys are those of the guard's policy
/// (docker-socket-guard.md §16).
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
    /// Whether images that a job made go with it.
    pub remove_images: bool,
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
    /// Capabilities beyond the engine's default set, without `CAP_`.
    pub extra_capabilities: Vec<String>,
    /// Host paths of devices.
    pub allowed_devices: Vec<String>,
    /// Runtimes beside the engine's default one.
    pub allowed_runtimes: Vec<String>,
    /// Where the audit log is kept; without it, it goes with the job.
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
            memory: None,
            nano_cpus: None,
            pids: None,
            total_memory: None,
            total_nano_cpus: None,
            total_pids: None,
            containers: None,
            networks: None,
            volumes: None,
            extra_capabilities: Vec::new(),
            allowed_devices: Vec::new(),
            allowed_runtimes: Vec::new(),
            audit_log: None,
        }
    }
}

/// `[runners.docker]`.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the keys of the file are what they are")]
pub struct DockerConfig {
    /// The engine's address; `None` for `DOCKER_HOST` or the platform's socket.
    pub host: Option<String>,
    /// Directory of `ca.pem`, `cert.pem`, `key.pem`.
    pub tls_cert_path: Option<PathBuf>,
    /// Uses TLS towards the engine.
    pub tls_verify: bool,
    /// Default image; empty when the file has none.
    pub image: String,
    /// Other helper image; variables are expanded.
    pub helper_image: Option<String>,
    /// Policies, tried in order; at least one.
    pub pull_policy: Vec<PullPolicy>,
    /// What jobs may ask for; `None` for `pull_policy`.
    pub allowed_pull_policies: Option<Vec<PullPolicy>>,
    /// Globs of job images; empty for all.
    pub allowed_images: Vec<String>,
    /// Globs of job services; empty for all.
    pub allowed_services: Vec<String>,
    /// Globs of images that get `privileged`; empty for all.
    pub allowed_privileged_images: Vec<String>,
    /// Globs of services that get `privileged`; empty for all.
    pub allowed_privileged_services: Vec<String>,
    /// User of the build container.
    pub user: Option<String>,
    /// Users a job may name.
    pub allowed_users: Vec<String>,
    /// Extra groups.
    pub group_add: Vec<String>,
    /// Ignores the entrypoints of jobs.
    pub disable_entrypoint_overwrite: bool,
    /// Runs the job's containers privileged.
    pub privileged: bool,
    /// The same for services alone; `None` follows `privileged`.
    pub services_privileged: Option<bool>,
    /// Added capabilities.
    pub cap_add: Vec<String>,
    /// Dropped capabilities.
    pub cap_drop: Vec<String>,
    /// Security options; `seccomp=<file>` is already replaced by the file's content.
    pub security_opt: Vec<String>,
    /// The same for services.
    pub services_security_opt: Vec<String>,
    /// User namespace.
    pub userns_mode: Option<String>,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// Devices of build and helper.
    pub devices: Vec<Device>,
    /// Device rules.
    pub device_cgroup_rules: Vec<String>,
    /// Devices of services, by glob of the image.
    pub services_devices: Vec<(String, Vec<Device>)>,
    /// As the docker command line takes it; empty for none.
    pub gpus: String,
    /// The same for services.
    pub service_gpus: String,
    /// Limits of build and helper.
    pub resources: Resources,
    /// Limits of services.
    pub service_resources: Resources,
    /// Forbids the OOM killer.
    pub oom_kill_disable: bool,
    /// Its score.
    pub oom_score_adjust: i64,
    /// `/dev/shm` in bytes; 0 for the engine's default.
    pub shm_size: i64,
    /// OCI runtime.
    pub runtime: Option<String>,
    /// Volumes as written: `[source:]destination[:options]`, each of them valid.
    pub volumes: Vec<String>,
    /// Makes every cache volume temporary.
    pub disable_cache: bool,
    /// Host directory for caches instead of volumes.
    pub cache_dir: Option<String>,
    /// Driver of volumes.
    pub volume_driver: Option<String>,
    /// Its options.
    pub volume_driver_ops: HashMap<String, String>,
    /// Keeps anonymous volumes.
    pub volume_keep: bool,
    /// Containers whose volumes are mounted.
    pub volumes_from: Vec<String>,
    /// Path to options.
    pub tmpfs: HashMap<String, String>,
    /// The same for services.
    pub services_tmpfs: HashMap<String, String>,
    /// Network of the job's containers; `None` for the default bridge or a network of its own.
    pub network_mode: Option<String>,
    /// MTU of the job's network; 0 for the engine's default.
    pub network_mtu: u32,
    /// IPv6 on the job's network.
    pub enable_ipv6: bool,
    /// Name servers.
    pub dns: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// `host:address`.
    pub extra_hosts: Vec<String>,
    /// Legacy links.
    pub links: Vec<String>,
    /// Host name of build and helper.
    pub hostname: Option<String>,
    /// MAC address; needs API 1.44.
    pub mac_address: Option<String>,
    /// PID namespace of the build container.
    pub pid_mode: Option<String>,
    /// IPC namespace.
    pub ipc_mode: Option<String>,
    /// Isolation; only Windows has others than `default`.
    pub isolation: Option<String>,
    /// Services a job may have; `None` for any number.
    pub services_limit: Option<usize>,
    /// How long services may take to be ready; `None` does not wait.
    pub wait_for_services: Option<Duration>,
    /// Extra labels; values are expanded.
    pub container_labels: BTreeMap<String, String>,
    /// Options of the log driver: `env` and `labels`.
    pub log_options: HashMap<String, String>,
    /// Services of every job.
    pub services: Vec<ServiceConfig>,
    /// Daemons of jobs.
    pub dind: DindConfig,
    /// The engine's socket in jobs.
    pub socket: SocketConfig,
}

impl DockerConfig {
    /// Whether its jobs may get a guarded socket: then each has a network of its own, which their
    /// containers share.
    #[must_use]
    pub fn guards_sockets(&self) -> bool {
        let mounts = |text: &String| {
            volume::Volume::parse(text).is_ok_and(|volume| volume.is_engine_socket())
        };
        match self.socket.mode {
            SocketMode::Raw => false,
            SocketMode::Guarded => true,
            SocketMode::Off => {
                self.dind.mode == DindMode::Socket || self.volumes.iter().any(mounts)
            }
        }
    }
}

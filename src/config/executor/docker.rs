//! Those settings of `[runners.docker]` that only a Docker engine has a use for.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use crate::base::paths::{ContainerPath, HostPath};

/// How the engine is reached, and what it is told of containers beside the job's plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DockerConfig {
    /// Where the engine is.
    pub engine: EngineAddress,
    /// Limits of the build and helper containers.
    pub limits: ContainerLimits,
    /// Limits of services; `cpuset_mems` is not set there.
    pub service_limits: ContainerLimits,
    /// Capabilities and the like.
    pub security: ContainerSecurity,
    /// Settings of the kernel for a container's processes.
    pub kernel: KernelConfig,
    /// Devices in containers.
    pub devices: DeviceConfig,
    /// Names and addresses in the network.
    pub hosts: HostNames,
    /// How the engine makes volumes.
    pub volumes: EngineVolumes,
    /// Options of the log driver: `env` and `labels`.
    pub log_options: HashMap<String, String>,
}

/// Where an engine is, and how it is talked to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineAddress {
    /// `unix://…` or `tcp://…`; `None` for `DOCKER_HOST` or the usual socket.
    pub host: Option<String>,
    /// Directory of `ca.pem`, `cert.pem` and `key.pem`.
    pub tls_cert_path: Option<PathBuf>,
    /// Uses TLS towards the engine.
    pub tls_verify: bool,
}

/// Limits on memory and processors; `None` leaves the engine's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerLimits {
    /// Bytes.
    pub memory: Option<i64>,
    /// Memory and swap together, in bytes; −1 for swap without limit.
    pub memory_swap: Option<i64>,
    /// Bytes that are kept free for it.
    pub memory_reservation: Option<i64>,
    /// Billionths of a processor.
    pub nano_cpus: Option<i64>,
    /// Numbers of processors, such as `0-2`.
    pub cpuset_cpus: Option<String>,
    /// Numbers of memory nodes, such as `0`.
    pub cpuset_mems: Option<String>,
    /// Weight relative to other containers; the engine's default is 1024.
    pub cpu_shares: Option<i64>,
    /// The control group that the container's own is made in.
    pub cgroup_parent: Option<String>,
}

/// What the processes in containers may do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerSecurity {
    /// Capabilities beyond the engine's default set.
    pub cap_add: Vec<String>,
    /// Capabilities of the default set that are taken away.
    pub cap_drop: Vec<String>,
    /// Options of build and helper; `seccomp=<file>` is already replaced by the file's content.
    pub options: Vec<String>,
    /// The same for services.
    pub service_options: Vec<String>,
    /// Groups beside the user's own.
    pub group_add: Vec<String>,
    /// User namespace mode, `host` or empty.
    pub userns_mode: Option<String>,
}

/// Settings of the kernel for a container's processes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KernelConfig {
    /// Kernel parameters of the container's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// Keeps the kernel from killing processes that are out of memory.
    pub oom_kill_disable: bool,
    /// From −1000 to 1000; the kernel kills those with a higher one first.
    pub oom_score_adjust: i64,
    /// Size of `/dev/shm` in bytes; 0 for the engine's default.
    pub shm_size: i64,
    /// PID namespace of the build container.
    pub pid_mode: Option<String>,
    /// IPC namespace.
    pub ipc_mode: Option<String>,
    /// Isolation; only Windows has others than `default`.
    pub isolation: Option<String>,
}

/// `name = soft[:hard]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// The limit that a process may raise; −1 for none.
    pub soft: i64,
    /// How far it may be raised; −1 for no limit.
    pub hard: i64,
}

/// Devices in containers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DeviceConfig {
    /// Devices of build and helper.
    pub devices: Vec<Device>,
    /// Rules for devices that appear later, such as `c 189:* rmw`.
    pub cgroup_rules: Vec<String>,
    /// Devices of services, by glob of the service's image.
    pub services: Vec<(String, Vec<Device>)>,
    /// GPUs of build and helper, as `docker run --gpus` takes them; empty for none.
    pub gpus: String,
    /// The same for services.
    pub service_gpus: String,
}

/// A device handed to a container, `host[:container[:permissions]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is on the engine's host.
    pub host: HostPath,
    /// Where the container has it.
    pub container: ContainerPath,
    /// `rwm` and parts of it.
    pub permissions: String,
}

/// Names and addresses in the network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostNames {
    /// Addresses of name servers.
    pub dns: Vec<String>,
    /// Domains that short names are looked up in.
    pub dns_search: Vec<String>,
    /// Lines of `/etc/hosts`, `name:address`.
    pub extra_hosts: Vec<String>,
    /// Links to containers on the default bridge, `container:alias`.
    pub links: Vec<String>,
    /// Host name of build and helper.
    pub hostname: Option<String>,
    /// MAC address of the build container; needs API 1.44.
    pub mac_address: Option<String>,
}

/// How the engine makes volumes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineVolumes {
    /// The driver; `None` for `local`.
    pub driver: Option<String>,
    /// Options of the driver.
    pub driver_options: HashMap<String, String>,
    /// Keeps anonymous volumes when their containers are removed.
    pub keep_anonymous: bool,
    /// Containers whose volumes are mounted too.
    pub from: Vec<String>,
}

//! The tables of a container's host configuration and of its update.

use serde_json::{Map, Value};

use crate::guard::{
    policy::{
        body::{
            fields::{Rule, apply, text},
            judging::{ANY, Judging, Table},
            values::{console_size, only_false},
        },
        context::PolicyContext,
    },
    refusal::Refusal,
};

use super::{limits, mounts, ports, rights};

const EMPTY: Rule<Judging> = Rule::Empty("G-37");

const HOST: Table = &[
    ("Binds", Rule::Judge(mounts::binds)),
    ("Mounts", Rule::Judge(mounts::mounts)),
    ("Tmpfs", Rule::Judge(mounts::tmpfs)),
    ("VolumesFrom", Rule::Judge(mounts::volumes_from)),
    ("VolumeDriver", Rule::Judge(mounts::volume_driver)),
    ("NetworkMode", Rule::Judge(ports::network_mode)),
    ("PortBindings", Rule::Judge(ports::port_bindings)),
    ("PublishAllPorts", Rule::Judge(ports::publish_all)),
    ("Links", Rule::Judge(ports::links)),
    ("Dns", Rule::Texts),
    ("DnsOptions", Rule::Texts),
    ("DnsSearch", Rule::Texts),
    ("ExtraHosts", Rule::Judge(ports::extra_hosts)),
    ("GroupAdd", Rule::Texts),
    ("PidMode", Rule::Judge(rights::pid_mode)),
    ("IpcMode", Rule::Judge(rights::ipc_mode)),
    ("UTSMode", EMPTY),
    ("UsernsMode", EMPTY),
    ("Cgroup", EMPTY),
    ("Isolation", Rule::Judge(rights::isolation)),
    ("CgroupnsMode", Rule::Judge(rights::cgroup_namespace)),
    ("CgroupParent", Rule::Judge(rights::cgroup_parent)),
    ("Privileged", Rule::Judge(only_false)),
    ("CapAdd", Rule::Judge(rights::cap_add)),
    ("CapDrop", Rule::Judge(rights::cap_drop)),
    ("SecurityOpt", Rule::Judge(rights::security_opt)),
    ("MaskedPaths", EMPTY),
    ("ReadonlyPaths", EMPTY),
    ("Devices", Rule::Judge(rights::devices)),
    ("DeviceCgroupRules", EMPTY),
    ("DeviceRequests", EMPTY),
    ("Sysctls", Rule::Judge(rights::sysctls)),
    ("Ulimits", Rule::Judge(limits::ulimits)),
    ("Runtime", Rule::Judge(rights::runtime)),
    ("Annotations", Rule::Judge(rights::annotations)),
    ("StorageOpt", EMPTY),
    ("LogConfig", Rule::Judge(limits::log_config)),
    ("RestartPolicy", Rule::Judge(limits::restart_policy)),
    ("AutoRemove", Rule::Flag),
    ("Init", Rule::Flag),
    ("ReadonlyRootfs", Rule::Flag),
    ("ConsoleSize", Rule::Judge(console_size)),
    ("OomScoreAdj", Rule::Whole(0, 1000)),
    ("OomKillDisable", EMPTY),
    ("Memory", Rule::Judge(limits::memory)),
    ("MemorySwap", ANY),
    ("MemoryReservation", Rule::Judge(limits::up_to_memory)),
    ("NanoCpus", ANY),
    ("CpuQuota", ANY),
    ("CpuPeriod", Rule::Whole(0, 1_000_000)),
    ("CpuShares", Rule::Whole(0, 262_144)),
    ("PidsLimit", Rule::Judge(limits::pids)),
    ("ShmSize", Rule::Judge(limits::shm)),
    ("BlkioWeight", Rule::Whole(0, 1000)),
    ("MemorySwappiness", Rule::Judge(limits::swappiness)),
    ("ContainerIDFile", EMPTY),
];

const UPDATE: Table = &[
    ("Memory", Rule::Judge(limits::memory_update)),
    ("MemorySwap", Rule::Judge(limits::memory_update)),
    ("MemoryReservation", Rule::Judge(limits::up_to_memory)),
    ("NanoCpus", ANY),
    ("CpuShares", Rule::Whole(0, 262_144)),
    ("CpuQuota", ANY),
    ("CpuPeriod", Rule::Whole(0, 1_000_000)),
    ("PidsLimit", Rule::Judge(limits::pids_update)),
    ("BlkioWeight", Rule::Whole(0, 1000)),
    ("RestartPolicy", Rule::Judge(limits::restart_policy_update)),
];

/// `POST /containers/{id}/update`.
///
/// # Errors
/// When something in it is refused.
pub fn container_update(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Map<String, Value>, Refusal> {
    let mut judging = Judging::new(context);
    let mut out = apply(UPDATE, body, "", &mut judging)?;
    limits::cpus(&mut out, "", &judging, false)?;
    Ok(out)
}

/// `HostConfig` of a new container.
pub(in crate::guard::policy::body) fn host_config(
    host: &Map<String, Value>,
    judging: &mut Judging,
) -> Result<Map<String, Value>, Refusal> {
    // Other fields depend on these.
    let of = |name: &str| host.get(name).unwrap_or(&Value::Null);
    judging.network = ports::network_of(of("NetworkMode"), judging)?;
    let ipc = text(of("IpcMode"), "HostConfig.IpcMode")?;
    judging.private_ipc = !ipc.starts_with("container:");
    judging.added_capabilities = rights::capabilities(of("CapAdd"), "HostConfig.CapAdd")?;
    let mut out = apply(HOST, host, "HostConfig", judging)?;
    limits::swap(&mut out, judging)?;
    limits::cpus(&mut out, "HostConfig", judging, true)?;
    Ok(out)
}

//! A container's host configuration (6.2) and its update (6.4).

use serde_json::{Map, Value, json};

use super::{ANY, BindNeed, Judging, Network, Table, World, limit, only_false, some};
use crate::proxy::{
    Refusal,
    fields::{Rule, apply, flag, items, join, object, text, texts, whole},
    paths::{self, Place},
};

/// The engine's default capabilities.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// How often a container is restarted at most.
const RESTARTS: i64 = 10;

const EMPTY: Rule<Judging> = Rule::Empty("G-37");

const HOST: Table = &[
    ("Binds", Rule::Judge(binds)),
    ("Mounts", Rule::Judge(mounts)),
    ("Tmpfs", Rule::Judge(tmpfs)),
    ("VolumesFrom", Rule::Judge(volumes_from)),
    ("VolumeDriver", Rule::Judge(volume_driver)),
    ("NetworkMode", Rule::Judge(network_mode)),
    ("PortBindings", Rule::Judge(port_bindings)),
    ("PublishAllPorts", Rule::Judge(publish_all)),
    ("Links", Rule::Judge(links)),
    ("Dns", Rule::Texts),
    ("DnsOptions", Rule::Texts),
    ("DnsSearch", Rule::Texts),
    ("ExtraHosts", Rule::Judge(extra_hosts)),
    ("GroupAdd", Rule::Texts),
    ("PidMode", Rule::Judge(pid_mode)),
    ("IpcMode", Rule::Judge(ipc_mode)),
    ("UTSMode", EMPTY),
    ("UsernsMode", EMPTY),
    ("Cgroup", EMPTY),
    ("Isolation", Rule::Judge(isolation)),
    ("CgroupnsMode", Rule::Judge(cgroup_namespace)),
    ("CgroupParent", Rule::Judge(cgroup_parent)),
    ("Privileged", Rule::Judge(only_false)),
    ("CapAdd", Rule::Judge(cap_add)),
    ("CapDrop", Rule::Judge(cap_drop)),
    ("SecurityOpt", Rule::Judge(security_opt)),
    ("MaskedPaths", EMPTY),
    ("ReadonlyPaths", EMPTY),
    ("Devices", Rule::Judge(devices)),
    ("DeviceCgroupRules", EMPTY),
    ("DeviceRequests", EMPTY),
    ("Sysctls", Rule::Judge(sysctls)),
    ("Ulimits", Rule::Judge(ulimits)),
    ("Runtime", Rule::Judge(runtime)),
    ("Annotations", Rule::Judge(annotations)),
    ("StorageOpt", EMPTY),
    ("LogConfig", Rule::Judge(log_config)),
    ("RestartPolicy", Rule::Judge(restart_policy)),
    ("AutoRemove", Rule::Flag),
    ("Init", Rule::Flag),
    ("ReadonlyRootfs", Rule::Flag),
    ("ConsoleSize", Rule::Judge(super::console_size)),
    ("OomScoreAdj", Rule::Whole(0, 1000)),
    ("OomKillDisable", EMPTY),
    ("Memory", Rule::Judge(memory)),
    ("MemorySwap", ANY),
    ("MemoryReservation", Rule::Judge(up_to_memory)),
    ("NanoCpus", ANY),
    ("CpuQuota", ANY),
    ("CpuPeriod", Rule::Whole(0, 1_000_000)),
    ("CpuShares", Rule::Whole(0, 262_144)),
    ("PidsLimit", Rule::Judge(pids)),
    ("ShmSize", Rule::Judge(shm)),
    ("BlkioWeight", Rule::Whole(0, 1000)),
    ("MemorySwappiness", Rule::Judge(swappiness)),
    ("ContainerIDFile", EMPTY),
];

const UPDATE: Table = &[
    ("Memory", Rule::Judge(memory_update)),
    ("MemorySwap", Rule::Judge(memory_update)),
    ("MemoryReservation", Rule::Judge(up_to_memory)),
    ("NanoCpus", ANY),
    ("CpuShares", Rule::Whole(0, 262_144)),
    ("CpuQuota", ANY),
    ("CpuPeriod", Rule::Whole(0, 1_000_000)),
    ("PidsLimit", Rule::Judge(pids_update)),
    ("BlkioWeight", Rule::Whole(0, 1000)),
    ("RestartPolicy", Rule::Judge(restart_policy_update)),
];

/// `POST /containers/{id}/update`.
///
/// # Errors
/// When something in it is refused.
pub fn container_update(
    body: &Map<String, Value>,
    world: &World,
) -> Result<Map<String, Value>, Refusal> {
    let mut judging = Judging::new(world);
    let mut out = apply(UPDATE, body, "", &mut judging)?;
    cpus(&mut out, "", &judging, false)?;
    Ok(out)
}

/// `HostConfig` of a new container.
pub(super) fn host_config(
    host: &Map<String, Value>,
    judging: &mut Judging,
) -> Result<Map<String, Value>, Refusal> {
    // Other fields depend on these.
    let of = |name: &str| host.get(name).unwrap_or(&Value::Null);
    judging.network = network(of("NetworkMode"), judging)?;
    let ipc = text(of("IpcMode"), "HostConfig.IpcMode")?;
    judging.private_ipc = !ipc.starts_with("container:");
    judging.added_capabilities = capabilities(of("CapAdd"), "HostConfig.CapAdd")?;
    let mut out = apply(HOST, host, "HostConfig", judging)?;
    swap(&mut out, judging)?;
    cpus(&mut out, "HostConfig", judging, true)?;
    Ok(out)
}

fn strings(list: Vec<String>) -> Option<Value> {
    (!list.is_empty()).then(|| Value::from(list))
}

/// Notes a source that must be pinned, and gives what stands for it in the body.
fn bind(
    judging: &mut Judging,
    source: &str,
    make: bool,
    is_mount: bool,
) -> Result<(String, bool), Refusal> {
    let place = paths::place(source, judging.settings())?;
    let read_only = match &place {
        Place::Socket => false,
        Place::Mapped { mapping, .. } => judging.settings().workspace[*mapping].read_only,
    };
    let number = judging.needs.binds.len();
    judging.needs.binds.push(BindNeed { job: source.to_owned(), place, make, is_mount });
    Ok((format!("@bind-{number}@"), read_only))
}

/// Notes a volume that must be the job's.
fn volume(judging: &mut Judging, name: &str) -> Result<(), Refusal> {
    if !judging.world.owned.has_volume(name) {
        super::name(name, judging.settings())?;
        if !judging.needs.volumes.iter().any(|known| known == name) {
            judging.needs.volumes.push(name.to_owned());
        }
        let most = judging.settings().limits.volumes;
        if judging.world.owned.volume_count() + judging.needs.volumes.len() > most {
            return Err(limit("volumes", most));
        }
    }
    Ok(())
}

fn binds(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for bind_text in texts(value, path)? {
        let parts: Vec<&str> = bind_text.split(':').collect();
        let (source, target, mode) = match parts[..] {
            [target] => ("", target, ""),
            [source, target] => (source, target, ""),
            [source, target, mode] => (source, target, mode),
            _ => {
                return Err(Refusal::malformed(
                    &format!("{path}: {bind_text} is not source:target[:mode]"),
                    "G-38",
                ));
            }
        };
        if !target.starts_with('/') {
            return Err(Refusal::malformed(
                &format!("{path}: the target of {bind_text} must be absolute"),
                "G-38",
            ));
        }
        let mut words = Vec::new();
        for word in mode.split(',').filter(|word| !word.is_empty()) {
            match word {
                "ro" | "rw" | "nocopy" => words.push(word),
                "cached" | "delegated" | "consistent" | "private" | "rprivate" => {}
                word => return Err(Refusal::denied(&format!("{path}: the mode {word}"), "G-1")),
            }
        }
        let mut source = source.to_owned();
        if source.starts_with('/') {
            let (token, read_only) = bind(judging, &source, true, false)?;
            source = token;
            words.retain(|word| *word != "nocopy");
            if read_only {
                words = vec!["ro"];
            }
        } else if source.is_empty() {
            // The engine takes an entry without source for an anonymous volume.
            if parts.len() > 1 {
                return Err(Refusal::malformed(
                    &format!("{path}: {bind_text} has no source"),
                    "G-38",
                ));
            }
            out.push(target.to_owned());
            continue;
        } else {
            volume(judging, &source)?;
        }
        let mode = if words.is_empty() { "rw".to_owned() } else { words.join(",") };
        out.push(format!("{source}:{target}:{mode}"));
    }
    Ok(strings(out))
}

const BIND_OPTIONS: Table = &[
    ("Propagation", Rule::Judge(propagation)),
    ("NonRecursive", Rule::Drop),
    ("CreateMountpoint", Rule::Drop),
    ("ReadOnlyNonRecursive", Rule::Flag),
    ("ReadOnlyForceRecursive", Rule::Empty("G-1")),
];
const VOLUME_OPTIONS: Table = &[
    ("NoCopy", Rule::Flag),
    ("Labels", Rule::Judge(super::labels)),
    ("DriverConfig", Rule::Judge(driver_config)),
    ("Subpath", Rule::Judge(subpath)),
];
const TMPFS_OPTIONS: Table = &[
    ("SizeBytes", Rule::Judge(tmpfs_size)),
    ("Mode", Rule::Whole(0, 0o7777)),
    ("Options", Rule::Judge(tmpfs_mount_options)),
];
const IMAGE_OPTIONS: Table = &[("Subpath", Rule::Judge(subpath))];

fn mounts(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for (number, mount) in items(value, path)?.iter().enumerate() {
        let path = format!("{path}[{number}]");
        out.push(Value::Object(one_mount(judging, object(mount, &path)?, &path, number)?));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

fn one_mount(
    judging: &mut Judging,
    mount: &Map<String, Value>,
    path: &str,
    number: usize,
) -> Result<Map<String, Value>, Refusal> {
    const COMMON: [&str; 5] = ["Type", "Source", "Target", "ReadOnly", "Consistency"];
    let of = |name: &str| mount.get(name).unwrap_or(&Value::Null);
    let kind = text(of("Type"), &join(path, "Type"))?;
    let (options_name, options_table): (_, Table) = match kind {
        "bind" => ("BindOptions", BIND_OPTIONS),
        "volume" => ("VolumeOptions", VOLUME_OPTIONS),
        "tmpfs" => ("TmpfsOptions", TMPFS_OPTIONS),
        "image" if judging.world.ground.version >= (1, 48) => ("ImageOptions", IMAGE_OPTIONS),
        kind => return Err(Refusal::denied(&format!("{path}.Type={kind}"), "G-1")),
    };
    for (name, value) in mount {
        if !COMMON.contains(&&**name)
            && name != options_name
            && !crate::proxy::json::is_empty(value)
        {
            return Err(Refusal::malformed(
                &format!("{}: not for a {kind} mount", join(path, name)),
                "G-37",
            ));
        }
    }
    let target = text(of("Target"), &join(path, "Target"))?;
    if !target.starts_with('/') {
        return Err(Refusal::malformed(&format!("{path}.Target must be absolute"), "G-38"));
    }
    let source = text(of("Source"), &join(path, "Source"))?;
    let mut read_only = flag(of("ReadOnly"), &join(path, "ReadOnly"))?;
    let empty = Map::new();
    let options = match of(options_name) {
        Value::Null => &empty,
        value => object(value, &join(path, options_name))?,
    };
    let mut out = Map::new();
    let options_path = join(path, options_name);
    let judged = apply(options_table, options, &options_path, judging)?;
    match kind {
        "bind" => {
            let make =
                flag(options.get("CreateMountpoint").unwrap_or(&Value::Null), &options_path)?;
            let (token, forced) = bind(judging, source, make, true)?;
            read_only |= forced;
            out.insert("Source".to_owned(), Value::String(token));
        }
        "volume" => {
            let most = judging.settings().limits.volumes;
            if source.is_empty() {
                if judging.world.owned.volume_count() >= most {
                    return Err(limit("volumes", most));
                }
            } else {
                if judged.contains_key("Subpath") && !judging.world.owned.has_volume(source) {
                    return Err(Refusal::denied(
                        &format!("{options_path}.Subpath of a new volume"),
                        "G-1",
                    ));
                }
                volume(judging, source)?;
                out.insert("Source".to_owned(), Value::from(source));
            }
        }
        "image" => {
            judging.needs.image_mounts.push((number, source.to_owned()));
            out.insert("Source".to_owned(), Value::from(source));
        }
        _ if !source.is_empty() => {
            return Err(Refusal::malformed(
                &format!("{path}.Source: not for a tmpfs mount"),
                "G-37",
            ));
        }
        _ => {}
    }
    out.insert("Type".to_owned(), Value::from(kind));
    out.insert("Target".to_owned(), Value::from(target));
    out.insert("ReadOnly".to_owned(), Value::Bool(read_only));
    out.insert(options_name.to_owned(), Value::Object(judged));
    Ok(out)
}

fn propagation(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "private" | "rprivate" => Ok(None),
        word => Err(Refusal::denied(&format!("{path}={word}"), "G-1")),
    }
}

const DRIVER: &[(&str, Rule<()>)] =
    &[("Name", Rule::Judge(local_driver)), ("Options", Rule::Empty("G-1"))];

fn driver_config(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    apply(DRIVER, object(value, path)?, path, &mut ())?;
    Ok(None)
}

pub(super) fn local_driver<C>(
    _: &mut C,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "local" => Ok(None),
        // A driver's name is not even forwarded to fail: the engine would look for its socket.
        _ => Err(Refusal::denied(&format!("{path} other than local"), "G-1")),
    }
}

fn volume_driver(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    local_driver(judging, value, path)
}

fn subpath(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let subpath = text(value, path)?;
    if subpath.is_empty() {
        return Ok(None);
    }
    if subpath.starts_with('/') || subpath.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Refusal::denied(&format!("{path}={subpath}"), "G-52"));
    }
    Ok(some(subpath))
}

fn tmpfs_size(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    cap(value, path, judging.settings().limits.tmpfs).map(|size| Some(Value::from(size)))
}

fn tmpfs_mount_options(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for option in items(value, path)? {
        let words = texts(option, path)?;
        let allowed = match words[..] {
            ["exec" | "noexec" | "suid" | "nosuid" | "nodev" | "ro" | "rw"] => true,
            ["uid" | "gid" | "nr_inodes", number] => number.bytes().all(|b| b.is_ascii_digit()),
            _ => false,
        };
        if !allowed {
            return Err(Refusal::denied(&format!("{path}: {}", words.join("=")), "G-1"));
        }
        out.push(Value::from(words.into_iter().map(str::to_owned).collect::<Vec<_>>()));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

fn tmpfs(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let most = judging.settings().limits.tmpfs;
    let mut out = Map::new();
    for (target, options) in object(value, path)? {
        if !target.starts_with('/') {
            return Err(Refusal::malformed(&format!("{path} must have absolute paths"), "G-38"));
        }
        out.insert(target.clone(), Value::String(tmpfs_options(text(options, path)?, most, path)?));
    }
    Ok(Some(Value::Object(out)))
}

/// A tmpfs's options from the list of the contract, with a size of at most `most`.
pub(super) fn tmpfs_options(options: &str, most: i64, path: &str) -> Result<String, Refusal> {
    let denied = |word: &str| Refusal::denied(&format!("{path}: the option {word}"), "G-1");
    let mut out = Vec::new();
    let mut size = most;
    for word in options.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            None if ["rw", "ro", "exec", "noexec", "suid", "nosuid", "nodev"].contains(&word) => {
                out.push(word.to_owned());
            }
            Some(("size", value)) => {
                size =
                    bytes(value).filter(|n| (1..=most).contains(n)).ok_or_else(|| denied(word))?;
            }
            Some(("mode" | "uid" | "gid" | "nr_inodes", value))
                if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                out.push(word.to_owned());
            }
            _ => return Err(denied(word)),
        }
    }
    out.push(format!("size={size}"));
    Ok(out.join(","))
}

/// A number of bytes with one letter for its unit.
pub(in crate::proxy) fn bytes(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, unit) = match lower.char_indices().next_back()? {
        (at, 'k') => (&lower[..at], 1 << 10),
        (at, 'm') => (&lower[..at], 1 << 20),
        (at, 'g') => (&lower[..at], 1 << 30),
        _ => (lower, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<i64>().ok()?.checked_mul(unit)
}

fn volumes_from(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for reference in texts(value, path)? {
        let (reference, mode) = reference.split_once(':').unwrap_or((reference, "rw"));
        if !["ro", "rw"].contains(&mode) {
            return Err(Refusal::denied(&format!("{path}: the mode {mode}"), "G-1"));
        }
        let (id, container) = judging.world.owned.container(reference)?;
        // What the runner mounts into the job's own container may lie anywhere on the host.
        if container.is_self {
            return Err(Refusal::denied(&format!("{path} of the job's own container"), "G-51"));
        }
        let id = id.to_owned();
        out.push(format!("{id}:{mode}"));
        judging.needs.volumes_from.push(id);
    }
    Ok(strings(out))
}

fn network(value: &Value, judging: &Judging) -> Result<Network, Refusal> {
    let path = "HostConfig.NetworkMode";
    let mode = text(value, path)?;
    let ground = &judging.world.ground;
    Ok(match mode {
        "" | "default" | "bridge" => Network::Own(ground.network_id.clone()),
        "none" => Network::None,
        "host" => return Err(Refusal::denied(&format!("{path}=host"), "G-1")),
        mode => match mode.strip_prefix("container:") {
            Some(reference) => {
                Network::Container(judging.world.owned.container(reference)?.0.to_owned())
            }
            None if mode == ground.network => Network::Own(ground.network_id.clone()),
            None => Network::Own(judging.world.owned.network(mode)?.0.to_owned()),
        },
    })
}

#[expect(clippy::unnecessary_wraps, reason = "a table's function")]
fn network_mode(judging: &mut Judging, _: &Value, _: &str) -> Result<Option<Value>, Refusal> {
    Ok(match &judging.network {
        Network::None => some("none"),
        Network::Own(id) => some(id.clone()),
        Network::Container(id) => some(format!("container:{id}")),
    })
}

/// A port as keys have it: `80/tcp`.
pub(super) fn port(text: &str, path: &str) -> Result<(), Refusal> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let range_ok = number
        .split('-')
        .all(|n| n.parse::<u16>().is_ok() && n.bytes().all(|b| b.is_ascii_digit()));
    if range_ok && ["tcp", "udp", "sctp"].contains(&protocol) {
        return Ok(());
    }
    Err(Refusal::malformed(&format!("{path}: {text} is no port"), "G-38"))
}

const PORT_BINDING: Table =
    &[("HostIp", Rule::Judge(host_ip)), ("HostPort", Rule::Judge(host_port))];

fn port_bindings(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let mut out = Map::new();
    for (key, bindings) in object(value, path)? {
        port(key, path)?;
        let path = join(path, key);
        let mut list = Vec::new();
        for binding in items(bindings, &path)? {
            list.push(Value::Object(apply(PORT_BINDING, object(binding, &path)?, &path, judging)?));
        }
        // None means one that the engine picks, on any address.
        if list.is_empty() {
            list.push(Value::Object(apply(PORT_BINDING, &Map::new(), &path, judging)?));
        }
        out.insert(key.clone(), Value::Array(list));
    }
    Ok(Some(Value::Object(out)))
}

fn host_ip(judging: &mut Judging, _: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let gateway = &judging.world.ground.gateway;
    if gateway.is_empty() {
        return Err(Refusal::because(
            &format!("{path}: the job's network has no address to publish at"),
            "G-1",
        ));
    }
    Ok(some(gateway.clone()))
}

fn host_port(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let port = text(value, path)?;
    if port.is_empty() || port == "0" {
        return Ok(some(""));
    }
    for number in port.splitn(2, '-') {
        let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let number = number.parse::<u16>().ok().filter(|_| plain);
        match number {
            Some(1024..) => {}
            Some(_) => return Err(Refusal::denied(&format!("{path} below 1024"), "G-1")),
            None => return Err(Refusal::malformed(&format!("{path}: {port} is no port"), "G-38")),
        }
    }
    Ok(some(port))
}

fn publish_all(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    // Becomes bindings of their own, as the engine would publish on any address.
    judging.needs.publish_all = flag(value, path)?;
    if judging.needs.publish_all {
        host_ip(judging, &Value::Null, path)?;
    }
    Ok(None)
}

/// Links move to the network's endpoint, where networks of one's own have them.
fn links(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    judging.links = super::network::links(judging, value, path)?;
    Ok(None)
}

fn extra_hosts(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let gateway = &judging.world.ground.gateway;
    let list =
        texts(value, path)?.into_iter().map(|host| match host.strip_suffix("host-gateway") {
            Some(name) if name.ends_with([':', '=']) => format!("{name}{gateway}"),
            _ => host.to_owned(),
        });
    Ok(strings(list.collect()))
}

fn of_container(judging: &Judging, mode: &str, path: &str) -> Result<Option<Value>, Refusal> {
    match mode.strip_prefix("container:") {
        Some(reference) => {
            let id = judging.world.owned.container(reference)?.0;
            Ok(some(format!("container:{id}")))
        }
        None => Err(Refusal::denied(&format!("{path}={mode}"), "G-1")),
    }
}

fn pid_mode(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" => Ok(None),
        mode => of_container(judging, mode, path),
    }
}

fn ipc_mode(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" => Ok(some("private")),
        mode @ ("none" | "private" | "shareable") => Ok(some(mode)),
        mode => of_container(judging, mode, path),
    }
}

fn isolation(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "default" => Ok(None),
        word => Err(Refusal::denied(&format!("{path}={word}"), "G-1")),
    }
}

fn cgroup_namespace(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "private" => Ok(some("private")),
        word => Err(Refusal::denied(&format!("{path}={word}"), "G-1")),
    }
}

fn cgroup_parent(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if !text(value, path)?.is_empty() {
        return Err(Refusal::denied(path, "G-85"));
    }
    Ok(judging.settings().cgroup_parent.clone().map(Value::String))
}

/// Names of capabilities, upper case and without their prefix.
fn capabilities(value: &Value, path: &str) -> Result<Vec<String>, Refusal> {
    let plain = |name: &str| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
    };
    Ok(texts(value, path)?.into_iter().map(plain).collect())
}

fn cap_add(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let added = capabilities(value, path)?;
    let allowed = &judging.settings().widening.capabilities;
    for name in &added {
        if !DEFAULT_CAPABILITIES.contains(&&**name) && !allowed.contains(name) {
            return Err(Refusal::denied(&format!("{path}={name}"), "G-1"));
        }
    }
    Ok(strings(added))
}

fn cap_drop(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let mut dropped = capabilities(value, path)?;
    for name in &judging.settings().widening.drop_capabilities {
        if !judging.added_capabilities.contains(name) && !dropped.contains(name) {
            dropped.push(name.clone());
        }
    }
    for name in &dropped {
        if !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
            return Err(Refusal::malformed(&format!("{path}: {name} is no capability"), "G-38"));
        }
    }
    Ok(strings(dropped))
}

fn security_opt(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut wanted = judging.settings().widening.no_new_privileges;
    for option in texts(value, path)? {
        match option {
            "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => {
                wanted = true;
            }
            option => return Err(Refusal::denied(&format!("{path}={option}"), "G-1")),
        }
    }
    Ok(wanted.then(|| json!(["no-new-privileges:true"])))
}

fn devices(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for device in items(value, path)? {
        let device = object(device, path)?;
        let of = |name: &str| text(device.get(name).unwrap_or(&Value::Null), &join(path, name));
        let host = of("PathOnHost")?;
        if !judging.settings().widening.devices.iter().any(|allowed| allowed == host)
            || device.keys().any(|key| {
                !["PathOnHost", "PathInContainer", "CgroupPermissions"].contains(&&**key)
            })
        {
            return Err(Refusal::denied(&format!("{path} {host}"), "G-1"));
        }
        let permissions = of("CgroupPermissions")?;
        if !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(Refusal::malformed(&format!("{path}.CgroupPermissions"), "G-38"));
        }
        out.push(json!({
            "PathOnHost": host,
            "PathInContainer": of("PathInContainer")?,
            "CgroupPermissions": permissions,
        }));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

fn sysctls(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let own_network = !matches!(judging.network, Network::Container(_));
    let mut out = Map::new();
    for (name, value) in object(value, path)? {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !name.contains("..");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p))
            || name == "kernel.sem";
        if !plain || !(name.starts_with("net.") && own_network || ipc && judging.private_ipc) {
            return Err(Refusal::denied(&format!("{path}.{name}"), "G-1"));
        }
        out.insert(name.clone(), Value::String(text(value, path)?.to_owned()));
    }
    Ok(Some(Value::Object(out)))
}

const ULIMIT: Table = &[("Name", Rule::Text), ("Soft", ANY), ("Hard", ANY)];

/// The most of each limit (section 13; the rest as a container of the engine has them).
fn ulimit_most(name: &str) -> Option<i64> {
    Some(match name {
        "nofile" => 1_048_576,
        "memlock" => 64 << 20,
        "nproc" | "sigpending" | "locks" => 65536,
        "core" | "data" | "fsize" | "rss" | "as" | "stack" => 1 << 40,
        "cpu" => 1 << 31,
        "msgqueue" => 819_200,
        "nice" | "rtprio" => 0,
        _ => return None,
    })
}

fn ulimits(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for limit in items(value, path)? {
        let limit = apply(ULIMIT, object(limit, path)?, path, judging)?;
        let name = limit.get("Name").and_then(Value::as_str).unwrap_or_default();
        let most =
            ulimit_most(name).ok_or_else(|| Refusal::denied(&format!("{path} {name}"), "G-80"))?;
        for end in ["Soft", "Hard"] {
            let number = limit.get(end).and_then(Value::as_i64).unwrap_or(0);
            if !(0..=most).contains(&number) {
                return Err(Refusal::denied(&format!("{path} {name}={number}"), "G-80"));
            }
        }
        out.push(Value::Object(limit));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

fn runtime(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let name = text(value, path)?;
    if name.is_empty() {
        return Ok(None);
    }
    let allowed = &judging.settings().widening.runtimes;
    if name == judging.world.ground.runtime || allowed.iter().any(|allowed| allowed == name) {
        return Ok(some(name));
    }
    Err(Refusal::denied(&format!("{path}={name}"), "G-1"))
}

fn annotations(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let mut out = Map::new();
    for (key, value) in object(value, path)? {
        if !judging.settings().widening.annotations.contains(key) {
            return Err(Refusal::denied(&format!("{path}.{key}"), "G-1"));
        }
        out.insert(key.clone(), Value::String(text(value, path)?.to_owned()));
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

const LOG: Table = &[("Type", Rule::Text), ("Config", Rule::TextMap)];

fn log_config(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let empty = Map::new();
    let log = if value.is_null() { &empty } else { object(value, path)? };
    let log = apply(LOG, log, path, judging)?;
    let kind = log.get("Type").and_then(Value::as_str).unwrap_or_default();
    let kind = match kind {
        "" => "json-file",
        "json-file" | "local" | "none" => kind,
        kind => return Err(Refusal::denied(&format!("{path}.Type={kind}"), "G-1")),
    };
    let mut out = Map::new();
    if let Some(Value::Object(options)) = log.get("Config") {
        for (key, value) in options {
            let text = value.as_str().unwrap_or_default();
            let good = match &**key {
                "max-size" => bytes(text).is_some_and(|n| (1..=50 << 20).contains(&n)),
                "max-file" => text.parse::<u8>().is_ok_and(|n| (1..=5).contains(&n)),
                "compress" | "mode" | "tag" | "labels" | "env" => true,
                _ => false,
            };
            if !good || kind == "none" {
                return Err(Refusal::denied(&format!("{path}.Config.{key}={text}"), "G-80"));
            }
            out.insert(key.clone(), value.clone());
        }
    }
    if kind != "none" {
        out.entry("max-size").or_insert_with(|| json!("50m"));
        out.entry("max-file").or_insert_with(|| json!("2"));
    }
    Ok(Some(json!({ "Type": kind, "Config": out })))
}

const RESTART: Table = &[("Name", Rule::Text), ("MaximumRetryCount", Rule::Whole(0, RESTARTS))];

fn restart_policy(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let policy = apply(RESTART, object(value, path)?, path, judging)?;
    let count = policy.get("MaximumRetryCount").and_then(Value::as_i64).unwrap_or(0);
    match policy.get("Name").and_then(Value::as_str).unwrap_or_default() {
        "" | "no" => Ok(None),
        "on-failure" => {
            let count = if count == 0 { RESTARTS } else { count };
            Ok(Some(json!({ "Name": "on-failure", "MaximumRetryCount": count })))
        }
        // They would outlive the job.
        "always" | "unless-stopped" => {
            Ok(Some(json!({ "Name": "on-failure", "MaximumRetryCount": RESTARTS })))
        }
        word => Err(Refusal::denied(&format!("{path}.Name={word}"), "G-1")),
    }
}

fn restart_policy_update(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let wanted = value.get("Name").and_then(Value::as_str).unwrap_or_default();
    if wanted == "no" {
        return Ok(Some(json!({ "Name": "no" })));
    }
    restart_policy(judging, value, path)
}

/// A number that is at most `most`, and `most` when it is not given (G-80).
fn cap(value: &Value, path: &str, most: i64) -> Result<i64, Refusal> {
    match whole(value, path)? {
        0 => Ok(most),
        number if (1..=most).contains(&number) => Ok(number),
        number => Err(Refusal::denied(&format!("{path}={number} (at most {most})"), "G-80")),
    }
}

fn memory(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    cap(value, path, judging.settings().limits.memory).map(|n| Some(Value::from(n)))
}

/// 0 and absent are "unchanged".
fn memory_update(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    up_to_memory(judging, value, path)
}

fn up_to_memory(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if whole(value, path)? == 0 {
        return Ok(None);
    }
    memory(judging, value, path)
}

fn pids(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    cap(value, path, judging.settings().limits.pids).map(|n| Some(Value::from(n)))
}

fn pids_update(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if whole(value, path)? == 0 { Ok(None) } else { pids(judging, value, path) }
}

fn shm(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if whole(value, path)? == 0 {
        return Ok(None);
    }
    cap(value, path, judging.settings().limits.shm).map(|n| Some(Value::from(n)))
}

fn swappiness(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match whole(value, path)? {
        -1 | 0 => Ok(None),
        _ => Err(Refusal::denied(path, "G-37")),
    }
}

/// Memory and swap together: no more than memory where nothing is said.
fn swap(out: &mut Map<String, Value>, judging: &Judging) -> Result<(), Refusal> {
    let memory = out.get("Memory").and_then(Value::as_i64).unwrap_or(0);
    let swap = match out.get("MemorySwap").and_then(Value::as_i64).unwrap_or(0) {
        0 => memory,
        swap if (memory..=judging.settings().limits.memory).contains(&swap) => swap,
        swap => {
            return Err(Refusal::denied(&format!("HostConfig.MemorySwap={swap}"), "G-80"));
        }
    };
    out.insert("MemorySwap".to_owned(), Value::from(swap));
    Ok(())
}

/// The CPU's share, said in one way or the other.
fn cpus(
    out: &mut Map<String, Value>,
    path: &str,
    judging: &Judging,
    is_new: bool,
) -> Result<(), Refusal> {
    let number = |name: &str| out.get(name).and_then(Value::as_i64).unwrap_or(0);
    let mut most = judging.settings().limits.nano_cpus;
    if judging.world.ground.nano_cpus > 0 {
        most = most.min(judging.world.ground.nano_cpus);
    }
    let (nano, quota, period) = (number("NanoCpus"), number("CpuQuota"), number("CpuPeriod"));
    let denied = |name: &str| Refusal::denied(&join(path, name), "G-80");
    if !(0..=most).contains(&nano) {
        return Err(denied("NanoCpus"));
    }
    // The quota is a share of the period, of 100 ms when that is not said.
    let full = i128::from(if period == 0 { 100_000 } else { period });
    if quota < 0 || i128::from(quota) * 1_000_000_000 > i128::from(most) * full {
        return Err(denied("CpuQuota"));
    }
    // A period alone could stretch a quota that was set before.
    if period != 0 && quota == 0 {
        if nano != 0 || !is_new {
            return Err(denied("CpuPeriod"));
        }
        let quota = i128::from(most) * full / 1_000_000_000;
        out.insert("CpuQuota".to_owned(), Value::from(i64::try_from(quota).unwrap_or(i64::MAX)));
    } else if is_new && nano == 0 && quota == 0 {
        out.insert("NanoCpus".to_owned(), Value::from(most));
    }
    Ok(())
}

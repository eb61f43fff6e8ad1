//! What may be in a request that a guard sends, written down once more from
//! `docs/guard.md` and independently of the tables that decide it. Property tests and fuzz targets
//! (`tests/fuzz`) hold what is sent against it.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use longshore::guard::{
    GuardSettings, Mapping,
    ownership::{Owned, OwnedContainer},
    policy::{BindSource, EngineFacts, Needs, PolicyContext},
};
use serde_json::{Map, Value};

pub(crate) const OWN: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub(crate) const SELF: &str = "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";
pub(crate) const NETWORK: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
pub(crate) const DEFAULT_NETWORK: &str =
    "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";
pub(crate) const IMAGE: &str =
    "sha256:eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";
const PARENT: &str = "/jobs/1";
const GATEWAY: &str = "172.18.0.1";
const DEFAULT_CAPABILITIES: &str = "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD \
    NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT";

/// A job that owns a container (and has one of the runner's), a network, a volume and an image.
pub(crate) fn context() -> PolicyContext {
    let identity = ("longshore.job".to_owned(), "1".to_owned());
    let mut settings = GuardSettings::new("1", identity, "net", Path::new("/private"));
    settings.cgroup_parent = Some(PARENT.to_owned());
    settings.images.shared = vec!["busybox:*".to_owned()];
    settings.workspace = vec![
        Mapping { job: "/builds/p".into(), host: "/host".into(), read_only: false },
        Mapping { job: "/cache".into(), host: "/host-cache".into(), read_only: true },
    ];
    let mut owned = Owned::default();
    let own = OwnedContainer::new("own");
    owned.containers.add(OWN.to_owned(), own);
    owned.containers.adopt(SELF.to_owned(), "self".to_owned());
    owned.networks.add(NETWORK.to_owned(), "mine");
    owned.volumes.add("data");
    owned.images.add(IMAGE);
    let facts = EngineFacts {
        version: (1, 47),
        network_id: DEFAULT_NETWORK.to_owned(),
        network: "net".to_owned(),
        gateway: GATEWAY.to_owned(),
        nano_cpus: 8_000_000_000,
        runtime: "runc".to_owned(),
    };
    PolicyContext { settings: Arc::new(settings), facts: Arc::new(facts), owned: Arc::new(owned) }
}

fn map<'a>(value: &'a Value, what: &str) -> &'a Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{what}: {value}"))
}

fn text<'a>(value: &'a Value, what: &str) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{what}: {value}"))
}

fn list<'a>(value: &'a Value, what: &str) -> &'a [Value] {
    value.as_array().unwrap_or_else(|| panic!("{what}: {value}"))
}

fn number(value: &Value, range: std::ops::RangeInclusive<i64>, what: &str) {
    assert!(value.as_i64().is_some_and(|n| range.contains(&n)), "{what}: {value}");
}

fn one_of(word: &str, words: &str, what: &str) {
    assert!(words.split_whitespace().any(|known| known == word), "{what}: {word}");
}

fn texts(value: &Value, what: &str) {
    for item in list(value, what) {
        text(item, what);
    }
}

fn keys(map: &Map<String, Value>, allowed: &str, what: &str) {
    for key in map.keys() {
        one_of(key, allowed, what);
    }
}

fn labels(value: &Value, what: &str) {
    let labels = map(value, what);
    assert_eq!(labels.get("longshore.job"), Some(&Value::from("1")), "{what}: the own label");
    for (key, value) in labels {
        text(value, what);
        let lower = key.trim().to_lowercase();
        let reserved = ["longshore.", "com.gitlab.gitlab-runner."];
        assert!(
            key == "longshore.job" || !reserved.iter().any(|prefix| lower.starts_with(prefix)),
            "{what}: {key}"
        );
    }
}

fn container_of(mode: &str, what: &str) {
    let id = mode.strip_prefix("container:").unwrap_or_else(|| panic!("{what}: {mode}"));
    assert!([OWN, SELF].contains(&id), "{what}: {mode}");
}

/// A configuration as in a new container and in a commit.
fn config(body: &Map<String, Value>, extra: &str) {
    let known = "Cmd Entrypoint Env User WorkingDir Hostname Domainname Tty OpenStdin StdinOnce \
        AttachStdin AttachStdout AttachStderr ExposedPorts Healthcheck StopSignal StopTimeout \
        Shell ArgsEscaped NetworkDisabled Volumes Labels MacAddress";
    keys(body, &format!("{known} {extra}"), "container");
    labels(&body["Labels"], "Labels");
    for (key, value) in body {
        match &**key {
            "Cmd" | "Entrypoint" | "Env" | "Shell" => texts(value, key),
            "User" | "WorkingDir" | "Hostname" | "Domainname" | "StopSignal" | "MacAddress"
            | "Image" => drop(text(value, key)),
            "Tty" | "OpenStdin" | "StdinOnce" | "AttachStdin" | "AttachStdout" | "AttachStderr"
            | "ArgsEscaped" | "NetworkDisabled" => {
                assert!(value.is_boolean(), "{key}: {value}");
            }
            "StopTimeout" => number(value, 0..=86400, key),
            "ExposedPorts" => {
                map(value, key).values().for_each(|v| assert!(map(v, key).is_empty()));
            }
            "Volumes" => {
                for (path, value) in map(value, key) {
                    assert!(path.starts_with('/') && !path.contains(':'), "{path}");
                    assert!(map(value, key).is_empty());
                }
            }
            "Healthcheck" => {
                keys(
                    map(value, key),
                    "Test Interval Timeout StartPeriod StartInterval Retries",
                    key,
                );
            }
            _ => {}
        }
    }
}

/// `POST /commit`.
pub(crate) fn commit(body: &Map<String, Value>) {
    config(body, "");
}

/// `POST /containers/create`.
pub(crate) fn container(body: &Map<String, Value>, needs: &Needs, context: &PolicyContext) {
    config(body, "Image HostConfig NetworkingConfig");
    let host = map(&body["HostConfig"], "HostConfig");
    host_config(host, needs, context);
    let networking = body.get("NetworkingConfig").map(|value| map(value, "NetworkingConfig"));
    for (key, value) in networking.into_iter().flatten() {
        one_of(key, "EndpointsConfig", "NetworkingConfig");
        for (network, endpoint_config) in map(value, key) {
            assert!([NETWORK, DEFAULT_NETWORK].contains(&&**network), "endpoint {network}");
            endpoint(endpoint_config);
        }
    }
}

fn volume_name(name: &str, needs: &Needs) {
    assert!(name == "data" || needs.volumes.iter().any(|need| need == name), "volume {name}");
    assert!(!name.contains(['/', '@', ':']) && !name.is_empty(), "volume {name}");
    for prefix in ["longshore-", "runner-"] {
        assert!(!name.starts_with(prefix), "volume {name}");
    }
}

/// The bind that a token stands for.
fn token(source: &str, needs: &Needs, read_only: bool, what: &str) {
    let digits = source.strip_prefix("@bind-").and_then(|rest| rest.strip_suffix('@'));
    let index: usize = digits.and_then(|d| d.parse().ok()).unwrap_or_else(|| panic!("{what}"));
    let need = &needs.binds[index];
    if let BindSource::Mapped { mapping, rest } = &need.source {
        let plain = rest.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        assert!(plain, "{}", rest.display());
        assert!(*mapping == 0 || read_only, "{what}: a read-only mapping");
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn host_config(host: &Map<String, Value>, needs: &Needs, context: &PolicyContext) {
    let limits = &context.settings.limits;
    keys(
        host,
        "Binds Mounts Tmpfs VolumesFrom NetworkMode PortBindings Dns DnsOptions DnsSearch \
         ExtraHosts GroupAdd PidMode IpcMode CgroupnsMode CgroupParent CapAdd CapDrop SecurityOpt \
         Sysctls Ulimits Runtime LogConfig RestartPolicy AutoRemove Init ReadonlyRootfs \
         ConsoleSize OomScoreAdj Memory MemorySwap MemoryReservation NanoCpus CpuQuota CpuPeriod \
         CpuShares PidsLimit ShmSize BlkioWeight",
        "HostConfig",
    );
    // What is always said, whatever the client says.
    assert_eq!(host["CgroupParent"], PARENT);
    assert_eq!(host["CgroupnsMode"], "private");
    number(&host["Memory"], 1..=limits.memory, "Memory");
    number(&host["MemorySwap"], 1..=limits.memory, "MemorySwap");
    number(&host["PidsLimit"], 1..=limits.pids, "PidsLimit");
    let mode = text(&host["NetworkMode"], "NetworkMode");
    if !["none", NETWORK, DEFAULT_NETWORK].contains(&mode) {
        container_of(mode, "NetworkMode");
    }
    let quota = host.get("CpuQuota").and_then(Value::as_i64).unwrap_or(0);
    let period = host.get("CpuPeriod").and_then(Value::as_i64).filter(|n| *n > 0);
    let nano = host.get("NanoCpus").and_then(Value::as_i64).unwrap_or(0);
    assert!(nano > 0 || quota > 0, "no limit of CPU");
    assert!((0..=limits.nano_cpus).contains(&nano) && quota >= 0, "{nano} {quota}");
    let share = i128::from(quota) * 1_000_000_000;
    assert!(share <= i128::from(limits.nano_cpus) * i128::from(period.unwrap_or(100_000)));
    let added: BTreeSet<&str> = host
        .get("CapAdd")
        .map_or(&[][..], |value| list(value, "CapAdd"))
        .iter()
        .map(|name| text(name, "CapAdd"))
        .collect();
    for name in &added {
        one_of(name, DEFAULT_CAPABILITIES, "CapAdd");
    }
    let drops_mknod =
        host.get("CapDrop").is_some_and(|value| list(value, "CapDrop").contains(&"MKNOD".into()));
    assert!(drops_mknod || added.contains("MKNOD"));
    for (key, value) in host {
        match &**key {
            "Binds" => list(value, key).iter().for_each(|bind| one_bind(text(bind, key), needs)),
            "Mounts" => list(value, key).iter().for_each(|mount| one_mount(mount, needs, context)),
            "Tmpfs" => {
                for (path, options) in map(value, key) {
                    assert!(path.starts_with('/'));
                    tmpfs_options(text(options, key), limits.tmpfs);
                }
            }
            "VolumesFrom" => {
                for from in list(value, key) {
                    let (id, mode) = text(from, key).split_once(':').unwrap();
                    assert!(id == OWN && ["ro", "rw"].contains(&mode), "{from}");
                }
            }
            "PortBindings" => {
                for binding in map(value, key).values().flat_map(|bindings| list(bindings, key)) {
                    let binding = map(binding, key);
                    keys(binding, "HostIp HostPort", key);
                    assert_eq!(binding["HostIp"], GATEWAY);
                    let port = text(&binding["HostPort"], key);
                    let unprivileged = |n: &str| n.parse::<u32>().is_ok_and(|n| n >= 1024);
                    assert!(port.is_empty() || port.split('-').all(unprivileged), "{port}");
                }
            }
            "PidMode" => container_of(text(value, key), key),
            "IpcMode" => match text(value, key) {
                "none" | "private" | "shareable" => {}
                mode => container_of(mode, key),
            },
            "CapDrop" | "Dns" | "DnsOptions" | "DnsSearch" | "GroupAdd" => texts(value, key),
            "ExtraHosts" => {
                for entry in list(value, key) {
                    let entry = text(entry, key);
                    assert!(!entry.ends_with(":host-gateway") && !entry.ends_with("=host-gateway"));
                }
            }
            "SecurityOpt" => assert_eq!(*value, serde_json::json!(["no-new-privileges:true"])),
            "Sysctls" => sysctls(map(value, key), host),
            "Ulimits" => {
                for limit in list(value, key) {
                    let limit = map(limit, key);
                    keys(limit, "Name Soft Hard", key);
                    for end in ["Soft", "Hard"] {
                        number(limit.get(end).unwrap_or(&0.into()), 0..=1 << 40, key);
                    }
                }
            }
            "Runtime" => assert_eq!(value, "runc"),
            "LogConfig" => {
                one_of(text(&value["Type"], key), "json-file local none", key);
                keys(
                    map(&value["Config"], key),
                    "max-size max-file compress mode tag labels env",
                    key,
                );
            }
            "RestartPolicy" => {
                one_of(text(&value["Name"], key), "no on-failure", key);
                number(value.get("MaximumRetryCount").unwrap_or(&0.into()), 0..=10, key);
            }
            "AutoRemove" | "Init" | "ReadonlyRootfs" => assert!(value.is_boolean()),
            "ConsoleSize" => assert_eq!(list(value, key).len(), 2),
            "OomScoreAdj" | "BlkioWeight" => number(value, 0..=1000, key),
            "MemoryReservation" => number(value, 1..=limits.memory, key),
            "ShmSize" => number(value, 1..=limits.shm, key),
            "CpuShares" | "CpuPeriod" => number(value, 0..=1_000_000, key),
            _ => {}
        }
    }
}

fn one_bind(bind: &str, needs: &Needs) {
    let parts: Vec<&str> = bind.split(':').collect();
    match parts[..] {
        [path] => assert!(path.starts_with('/'), "{bind}"),
        [source, target, modes] => {
            assert!(target.starts_with('/'), "{bind}");
            modes.split(',').for_each(|mode| one_of(mode, "ro rw nocopy", "mode"));
            if source.starts_with('@') {
                token(source, needs, modes == "ro", bind);
            } else {
                volume_name(source, needs);
            }
        }
        _ => panic!("{bind}"),
    }
}

fn one_mount(mount: &Value, needs: &Needs, context: &PolicyContext) {
    let fields = map(mount, "Mounts");
    let source = fields.get("Source").map_or("", |value| text(value, "Source"));
    let (options, known) = match text(&mount["Type"], "Type") {
        "bind" => {
            token(source, needs, mount["ReadOnly"] == true, source);
            ("BindOptions", "ReadOnlyNonRecursive")
        }
        "volume" => {
            if !source.is_empty() {
                volume_name(source, needs);
            }
            labels(&mount["VolumeOptions"]["Labels"], "VolumeOptions.Labels");
            ("VolumeOptions", "NoCopy Labels Subpath")
        }
        "tmpfs" => {
            assert_eq!(source, "");
            let size = &mount["TmpfsOptions"]["SizeBytes"];
            number(size, 1..=context.settings.limits.tmpfs, "SizeBytes");
            ("TmpfsOptions", "SizeBytes Mode Options")
        }
        kind => panic!("Mounts: {kind}"),
    };
    keys(fields, &format!("Type Source Target ReadOnly {options}"), "Mounts");
    assert!(text(&mount["Target"], "Target").starts_with('/'));
    keys(map(&mount[options], options), known, options);
    for option in mount[options].get("Options").map_or(&[][..], |value| list(value, options)) {
        let word = text(&option[0], options);
        one_of(word, "exec noexec suid nosuid nodev ro rw uid gid nr_inodes", options);
    }
}

fn tmpfs_options(options: &str, most: i64) {
    let mut size = 0;
    for option in options.split(',') {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        one_of(name, "rw ro exec noexec suid nosuid nodev size mode uid gid nr_inodes", "tmpfs");
        if name == "size" {
            size = value.parse().unwrap();
        }
    }
    assert!((1..=most).contains(&size), "tmpfs {options}");
}

fn sysctls(sysctls: &Map<String, Value>, host: &Map<String, Value>) {
    for name in sysctls.keys() {
        assert!(!name.contains('/') && !name.contains(".."), "{name}");
        if name.starts_with("net.") {
            assert!(!host["NetworkMode"].as_str().unwrap().starts_with("container:"), "{name}");
        } else {
            let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
            assert!(ipc.iter().any(|prefix| name.starts_with(prefix)), "{name}");
            assert!(!host["IpcMode"].as_str().unwrap().starts_with("container:"), "{name}");
        }
    }
}

fn endpoint(value: &Value) {
    let endpoint = map(value, "endpoint");
    keys(endpoint, "Aliases Links IPAMConfig MacAddress GwPriority", "endpoint");
    for (key, value) in endpoint {
        match &**key {
            "Aliases" => texts(value, key),
            "Links" => {
                for link in list(value, key) {
                    let (id, _) = text(link, key).split_once(':').unwrap();
                    assert!([OWN, SELF].contains(&id), "{link}");
                }
            }
            "IPAMConfig" => keys(map(value, key), "IPv4Address IPv6Address LinkLocalIPs", key),
            _ => {}
        }
    }
}

/// `POST /containers/{id}/update`.
pub(crate) fn update(body: &Map<String, Value>, context: &PolicyContext) {
    let limits = &context.settings.limits;
    keys(
        body,
        "Memory MemorySwap MemoryReservation NanoCpus CpuShares CpuQuota CpuPeriod PidsLimit \
         BlkioWeight RestartPolicy",
        "update",
    );
    for (key, value) in body {
        match &**key {
            "Memory" | "MemorySwap" | "MemoryReservation" => number(value, 1..=limits.memory, key),
            "PidsLimit" => number(value, 1..=limits.pids, key),
            "NanoCpus" => number(value, 0..=limits.nano_cpus, key),
            "RestartPolicy" => {
                one_of(text(&value["Name"], key), "no on-failure", key);
                number(value.get("MaximumRetryCount").unwrap_or(&0.into()), 0..=10, key);
            }
            _ => number(value, 0..=i64::MAX, key),
        }
    }
}

/// `POST /containers/{id}/exec`.
pub(crate) fn exec(body: &Map<String, Value>) {
    keys(
        body,
        "Cmd Env User WorkingDir Tty AttachStdin AttachStdout AttachStderr DetachKeys ConsoleSize",
        "exec",
    );
}

/// `POST /exec/{id}/start`.
pub(crate) fn exec_start(body: &Map<String, Value>) {
    keys(body, "Detach Tty ConsoleSize", "exec start");
}

/// `POST /networks/create`.
pub(crate) fn network(body: &Map<String, Value>, needs: &Needs) {
    keys(
        body,
        "Name CheckDuplicate Driver Internal Attachable EnableIPv6 IPAM Options Labels",
        "network",
    );
    let name = text(&body["Name"], "Name");
    assert!(!["bridge", "host", "none", "default", "net", ""].contains(&name), "{name}");
    assert_eq!(body["Driver"], "bridge");
    assert_eq!(body["CheckDuplicate"], true);
    labels(&body["Labels"], "Labels");
    let options = map(&body["Options"], "Options");
    keys(
        options,
        "com.docker.network.bridge.enable_icc com.docker.network.driver.mtu \
         com.docker.network.bridge.host_binding_ipv4",
        "Options",
    );
    assert_eq!(options["com.docker.network.bridge.host_binding_ipv4"], GATEWAY);
    if let Some(ipam) = body.get("IPAM") {
        keys(map(ipam, "IPAM"), "Config", "IPAM");
        let pools = list(&ipam["Config"], "IPAM.Config");
        assert_eq!(pools.len(), needs.subnets.len());
        for pool in pools {
            keys(map(pool, "pool"), "Subnet IPRange Gateway", "pool");
            let (address, prefix) = text(&pool["Subnet"], "Subnet").split_once('/').unwrap();
            let address: std::net::Ipv4Addr = address.parse().unwrap();
            assert!(address.octets()[0] == 172 && (16..32).contains(&address.octets()[1]));
            assert!((20..=32).contains(&prefix.parse::<u8>().unwrap()));
        }
    }
}

/// `POST /networks/{id}/connect`.
pub(crate) fn connect(body: &Map<String, Value>) {
    keys(body, "Container EndpointConfig", "connect");
    assert!([OWN, SELF].contains(&text(&body["Container"], "Container")));
    if let Some(config) = body.get("EndpointConfig") {
        endpoint(config);
    }
}

/// `POST /volumes/create`.
pub(crate) fn volume(body: &Map<String, Value>, context: &PolicyContext) {
    keys(body, "Name Driver DriverOpts Labels", "volume");
    labels(&body["Labels"], "Labels");
    let name = body.get("Name").map_or("", |name| text(name, "Name"));
    assert!(!name.starts_with("longshore-") && !name.contains(['/', '@', ':']), "{name}");
    if let Some(options) = body.get("DriverOpts") {
        keys(map(options, "DriverOpts"), "type device o", "DriverOpts");
        assert_eq!((&options["type"], &options["device"]), (&"tmpfs".into(), &"tmpfs".into()));
        tmpfs_options(text(&options["o"], "o"), context.settings.limits.tmpfs);
    }
}

/// `POST /build`: its parameters.
pub(crate) fn build(query: &[(String, String)], context: &PolicyContext) {
    let limits = &context.settings.limits;
    let known = "dockerfile buildargs labels target q nocache pull platform memory memswap \
        cpuquota cpuperiod cpushares extrahosts networkmode cachefrom cgroupparent rm forcerm";
    let mut seen = BTreeSet::new();
    for (name, value) in query {
        one_of(name, known, "build");
        let several = *name == "extrahosts";
        assert!(seen.insert(name) || several, "{name} twice");
        match &**name {
            "labels" => labels(&serde_json::from_str(value).unwrap(), "labels"),
            "networkmode" => {
                assert!(["none", NETWORK, DEFAULT_NETWORK].contains(&&**value), "{value}");
            }
            "memory" | "memswap" => {
                number(&value.parse::<i64>().unwrap().into(), 1..=limits.memory, name);
            }
            "cgroupparent" => assert_eq!(value, PARENT),
            "rm" | "forcerm" => assert_eq!(value, "1"),
            "cachefrom" => assert_eq!(*value, format!("[\"{IMAGE}\"]")),
            _ => {}
        }
    }
    for forced in ["labels", "networkmode", "memory", "memswap", "cpuquota", "cpuperiod", "rm"] {
        assert!(seen.iter().any(|name| *name == forced), "{forced}");
    }
    assert!(seen.iter().any(|name| *name == "cachefrom" || *name == "nocache"));
}

//! `[runners.docker]`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::base::paths::HostPath;
use crate::config::{
    containers::{
        ContainerConfig, ImagePolicy, NetworkConfig, PrivilegePolicy, PullPolicy, ServiceConfig,
        ServicePolicy, UserPolicy, VolumeConfig,
    },
    executor::docker::{
        ContainerLimits, ContainerSecurity, Device, DeviceConfig, DockerConfig, EngineAddress,
        EngineVolumes, HostNames, KernelConfig, Ulimit,
    },
    file::Section,
    socket::{GuardPlace, SocketBuild, SocketMode},
    values::{self, CPUS_HINT, SIZE_HINT},
    volume::Volume,
};

use super::{
    dind::dind,
    globs::{glob, globs},
    socket::socket,
    variables::environment,
};

/// What jobs get as containers, and what only the engine has a use for.
pub(super) fn docker(section: Section<'_>) -> (ContainerConfig, DockerConfig) {
    let containers = containers(&section);
    let docker = DockerConfig {
        engine: EngineAddress {
            host: host(&section),
            tls_cert_path: section.text("tls_cert_path").map(PathBuf::from),
            tls_verify: on(&section, "tls_verify"),
        },
        limits: limits(&section, ""),
        service_limits: limits(&section, "service_"),
        security: ContainerSecurity {
            cap_add: section.list("cap_add"),
            cap_drop: section.list("cap_drop"),
            options: security_options(&section, "security_opt"),
            service_options: security_options(&section, "services_security_opt"),
            group_add: section.list("group_add"),
            userns_mode: section.text("userns_mode"),
        },
        kernel: KernelConfig {
            sysctls: section.map("sysctls"),
            ulimits: ulimits(&section),
            oom_kill_disable: on(&section, "oom_kill_disable"),
            oom_score_adjust: section.integer("oom_score_adjust").unwrap_or(0),
            shm_size: section.positive("shm_size").unwrap_or(0),
            pid_mode: section.text("pid_mode"),
            ipc_mode: section.text("ipcmode"),
            isolation: isolation(&section),
        },
        devices: DeviceConfig {
            devices: section.parsed_list("devices", "", values::device),
            cgroup_rules: section.list("device_cgroup_rules"),
            services: services_devices(&section),
            gpus: section.text("gpus").unwrap_or_default(),
            service_gpus: section.text("service_gpus").unwrap_or_default(),
        },
        hosts: HostNames {
            dns: section.list("dns"),
            dns_search: section.list("dns_search"),
            extra_hosts: section.list("extra_hosts"),
            links: section.list("links"),
            hostname: section.text("hostname"),
            mac_address: section.text("mac_address"),
        },
        volumes: EngineVolumes {
            driver: section.text("volume_driver"),
            driver_options: section.map("volume_driver_ops").into_iter().collect(),
            keep_anonymous: on(&section, "volume_keep"),
            from: section.list("volumes_from"),
        },
        log_options: log_options(&section),
    };
    without_effect(&section);
    note_socket(&section, &containers);
    if let Some(host) = docker.engine.host.as_deref().filter(|host| !host.starts_with("unix://"))
        && containers.socket.guard == GuardPlace::Here
    {
        let why = format!("the engine at {host} is not reached by a socket of this host");
        section.table("socket").problem("guard", Some("here"), why, "write \"auto\"");
    }
    section.finish();
    (containers, docker)
}

fn containers(section: &Section<'_>) -> ContainerConfig {
    let default = ContainerConfig::default();
    ContainerConfig {
        images: ImagePolicy {
            default: section.text("image").unwrap_or_default(),
            helper: section.text("helper_image"),
            pull_policies: policies(section, "pull_policy").unwrap_or(default.images.pull_policies),
            allowed_pull_policies: policies(section, "allowed_pull_policies"),
            allowed: globs(section, "allowed_images"),
            allowed_services: globs(section, "allowed_services"),
        },
        users: UserPolicy { user: section.text("user"), allowed: section.list("allowed_users") },
        privileges: PrivilegePolicy {
            privileged: on(section, "privileged"),
            services: section.boolean("services_privileged"),
            allowed_images: globs(section, "allowed_privileged_images"),
            allowed_services: globs(section, "allowed_privileged_services"),
        },
        runtime: section.text("runtime"),
        network: NetworkConfig {
            mode: section.text("network_mode"),
            mtu: section.positive("network_mtu").unwrap_or(0),
            ipv6: on(section, "enable_ipv6"),
        },
        volumes: VolumeConfig {
            entries: volumes(section),
            cache_dir: section.text("cache_dir").map(HostPath::new),
            disable_cache: on(section, "disable_cache"),
            tmpfs: section.map("tmpfs").into_iter().collect(),
            services_tmpfs: section.map("services_tmpfs").into_iter().collect(),
        },
        services: ServicePolicy {
            entries: services(section),
            limit: section.integer("services_limit").and_then(|n| usize::try_from(n).ok()),
            ready_timeout: match section.integer("wait_for_services_timeout") {
                None | Some(0) => default.services.ready_timeout,
                Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
            },
        },
        disable_entrypoint_overwrite: on(section, "disable_entrypoint_overwrite"),
        labels: section.map("container_labels"),
        dind: dind(section.table("dind")),
        socket: socket(section.table("socket")),
    }
}

fn on(section: &Section<'_>, key: &str) -> bool {
    section.boolean(key).unwrap_or(false)
}

fn without_effect(section: &Section<'_>) {
    section.unsupported(
        "helper_image_flavor",
        "has no effect: longshore composes its helper image; `helper_image` names another one",
    );
    section.unsupported("service_slot_cgroup_template", "slot cgroups are not supported");
}

/// Says once, at the start, what jobs get where `volumes` mounts the engine's socket.
fn note_socket(section: &Section<'_>, containers: &ContainerConfig) {
    let mounted = containers.volumes.entries.iter().find_map(|text| {
        let volume = Volume::parse(text).ok()?;
        volume.is_engine_socket().then_some(text)
    });
    if containers.socket.mode == SocketMode::Raw && containers.socket.build != SocketBuild::Classic
    {
        section.table("socket").warn("build", "has no effect where mode is raw");
    }
    match (mounted, containers.socket.mode) {
        (Some(_), SocketMode::Raw) => section
            .table("socket")
            .warn("mode", "jobs that `volumes` gives the engine's socket are root on its host"),
        (Some(text), SocketMode::Off | SocketMode::Guarded) => section.warn(
            "volumes",
            format!(
                "`{text}`: jobs get a guarded socket in place of the engine's own; [runners.docker.\
                 socket] mode = \"raw\" gives them the real one, and root on its host"
            ),
        ),
        (None, _) => {}
    }
}

fn host(section: &Section<'_>) -> Option<String> {
    let hint = "write \"unix:///var/run/docker.sock\" or \"tcp://host:2376\"";
    section.parsed("host", hint, |text| match text.split_once("://") {
        Some(("unix" | "tcp" | "http" | "https", rest)) if !rest.is_empty() => Ok(text.to_owned()),
        Some((scheme, _)) => Err(format!("an engine cannot be reached by `{scheme}://`")),
        None => Err("has no scheme".to_owned()),
    })
}

fn policy(text: &str) -> Result<PullPolicy, &'static str> {
    match text {
        "always" => Ok(PullPolicy::Always),
        "if-not-present" => Ok(PullPolicy::IfNotPresent),
        "never" => Ok(PullPolicy::Never),
        _ => Err("must be always, if-not-present or never"),
    }
}

fn policies(section: &Section<'_>, key: &str) -> Option<Vec<PullPolicy>> {
    let mut policies = Vec::new();
    for text in section.text_or_list(key)? {
        match policy(&text) {
            Ok(policy) => policies.push(policy),
            Err(why) => section.problem(key, Some(&text), why, ""),
        }
    }
    (!policies.is_empty()).then_some(policies)
}

/// Security options; a `seccomp` profile is read here, as the engine wants its content.
fn security_options(section: &Section<'_>, key: &str) -> Vec<String> {
    section.parsed_list(key, "write the path of a profile, `unconfined` or `builtin`", |text| {
        let Some(profile) = text.strip_prefix("seccomp=") else { return Ok(text.to_owned()) };
        if profile.starts_with('{') || matches!(profile, "unconfined" | "builtin") {
            return Ok(text.to_owned());
        }
        read_profile(Path::new(profile)).map(|json| format!("seccomp={json}"))
    })
}

fn read_profile(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read `{}`: {error}", path.display()))?;
    serde_json::from_str::<serde_json::Value>(&text)
        .map(|json| json.to_string())
        .map_err(|error| format!("`{}` is not JSON: {error}", path.display()))
}

fn ulimits(section: &Section<'_>) -> Vec<Ulimit> {
    let mut limits = Vec::new();
    let table = section.table("ulimit");
    for (name, text) in section.map("ulimit") {
        match values::ulimit(&name, &text) {
            Ok(limit) => limits.push(limit),
            Err(error) => table.problem_in_map(&name, Some(&text), error),
        }
    }
    limits
}

fn services_devices(section: &Section<'_>) -> Vec<(String, Vec<Device>)> {
    let mut all = Vec::new();
    let table = section.table("services_devices");
    for (pattern, texts) in section.lists("services_devices") {
        if let Err(why) = glob(&pattern) {
            table.problem_in_map(&pattern, None, why);
        }
        let mut devices = Vec::new();
        for text in texts {
            match values::device(&text) {
                Ok(device) => devices.push(device),
                Err(error) => table.problem_in_map(&pattern, Some(&text), error),
            }
        }
        all.push((pattern, devices));
    }
    all
}

/// The limits whose keys begin with `prefix`; services have no `cpuset_mems`.
fn limits(section: &Section<'_>, prefix: &str) -> ContainerLimits {
    let key = |name: &str| format!("{prefix}{name}");
    let size = |name: &str| section.parsed(&key(name), SIZE_HINT, values::memory_size);
    // The engine takes −1 for swap without limit.
    let swap = |text: &str| match text {
        "-1" => Ok(-1),
        _ => values::memory_size(text),
    };
    ContainerLimits {
        memory: size("memory"),
        memory_swap: section.parsed(&key("memory_swap"), SIZE_HINT, swap),
        memory_reservation: size("memory_reservation"),
        nano_cpus: section.parsed(&key("cpus"), CPUS_HINT, values::nano_cpus),
        cpuset_cpus: section.text(&key("cpuset_cpus")),
        cpuset_mems: prefix.is_empty().then(|| section.text("cpuset_mems")).flatten(),
        cpu_shares: section.positive(&key("cpu_shares")),
        cgroup_parent: section.text(&key("cgroup_parent")),
    }
}

fn volumes(section: &Section<'_>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    section
        .parsed_list("volumes", "write [source:]destination[:options]", |text| {
            let volume = Volume::parse(text).map_err(|error| error.to_string())?;
            let destination = volume.destination.trim_end_matches('/').to_owned();
            Ok::<_, String>((text.to_owned(), destination))
        })
        .into_iter()
        .map(|(text, destination)| {
            if !seen.insert(destination) {
                section.problem("volumes", Some(&text), "its destination is there twice", "");
            }
            text
        })
        .collect()
}

fn isolation(section: &Section<'_>) -> Option<String> {
    section.parsed("isolation", "", |text| match text {
        "default" | "hyperv" | "process" => Ok(text.to_owned()),
        _ => Err("must be default, hyperv or process"),
    })
}

fn log_options(section: &Section<'_>) -> HashMap<String, String> {
    let options: BTreeMap<String, String> = section.map("log_options");
    let table = section.table("log_options");
    for key in options.keys().filter(|key| !matches!(key.as_str(), "env" | "labels")) {
        table.problem_in_map(key, None, "only `env` and `labels` are allowed here");
    }
    options.into_iter().collect()
}

fn services(section: &Section<'_>) -> Vec<ServiceConfig> {
    section.tables("services").into_iter().map(service).collect()
}

fn service(section: Section<'_>) -> ServiceConfig {
    let name = section.text("name").unwrap_or_default();
    if name.trim().is_empty() {
        section.problem("name", None, "a service needs an image", "write its `name`");
    }
    let service = ServiceConfig {
        name,
        alias: section.text("alias").unwrap_or_default(),
        command: section.list("command"),
        entrypoint: section.list("entrypoint"),
        environment: environment(&section),
    };
    section.unsupported("suspend_data_path", "suspended environments are not supported");
    section.finish();
    service
}

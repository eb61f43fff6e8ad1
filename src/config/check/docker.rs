//! `[runners.docker]`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use globset::GlobBuilder;

use crate::config::{
    Device, DindConfig, DindMode, DindNetwork, DindStorage, DockerConfig, GuardPlace, PullPolicy,
    Resources, ServiceConfig, SocketBuild, SocketConfig, SocketMode, Ulimit, file::Section, values,
    volume::Volume,
};

const SIZE_HINT: &str = "write for example \"512m\" or \"2g\"";
const ENGINE_SOCKET_HINT: &str = "write the path on the engine's host, without unix://";
const CPUS_HINT: &str = "write for example \"1.5\" or \"1/2\"";

/// How long services may take when the file says nothing, in seconds (GitLab Runner:
/// `DefaultWaitForServicesTimeout`).
const WAIT_FOR_SERVICES: u64 = 30;

/// Most daemons that wait: a mistyped number should not start hundreds.
const WARM_LIMIT: usize = 50;

pub(super) fn docker(section: Section<'_>) -> DockerConfig {
    let docker = DockerConfig {
        host: host(&section),
        tls_cert_path: section.text("tls_cert_path").map(PathBuf::from),
        tls_verify: on(&section, "tls_verify"),
        image: section.text("image").unwrap_or_default(),
        helper_image: section.text("helper_image"),
        pull_policy: policies(&section, "pull_policy").unwrap_or(vec![PullPolicy::Always]),
        allowed_pull_policies: policies(&section, "allowed_pull_policies"),
        allowed_images: globs(&section, "allowed_images"),
        allowed_services: globs(&section, "allowed_services"),
        allowed_privileged_images: globs(&section, "allowed_privileged_images"),
        allowed_privileged_services: globs(&section, "allowed_privileged_services"),
        user: section.text("user"),
        allowed_users: section.list("allowed_users"),
        group_add: section.list("group_add"),
        disable_entrypoint_overwrite: on(&section, "disable_entrypoint_overwrite"),
        privileged: on(&section, "privileged"),
        services_privileged: section.boolean("services_privileged"),
        cap_add: section.list("cap_add"),
        cap_drop: section.list("cap_drop"),
        security_opt: security_options(&section, "security_opt"),
        services_security_opt: security_options(&section, "services_security_opt"),
        userns_mode: section.text("userns_mode"),
        sysctls: section.map("sysctls"),
        ulimits: ulimits(&section),
        devices: section.parsed_list("devices", "", values::device),
        device_cgroup_rules: section.list("device_cgroup_rules"),
        services_devices: services_devices(&section),
        gpus: section.text("gpus").unwrap_or_default(),
        service_gpus: section.text("service_gpus").unwrap_or_default(),
        resources: resources(&section, ""),
        service_resources: resources(&section, "service_"),
        oom_kill_disable: on(&section, "oom_kill_disable"),
        oom_score_adjust: section.integer("oom_score_adjust").unwrap_or(0),
        shm_size: section.positive("shm_size").unwrap_or(0),
        runtime: section.text("runtime"),
        volumes: volumes(&section),
        disable_cache: on(&section, "disable_cache"),
        cache_dir: section.text("cache_dir"),
        volume_driver: section.text("volume_driver"),
        volume_driver_ops: section.map("volume_driver_ops").into_iter().collect(),
        volume_keep: on(&section, "volume_keep"),
        volumes_from: section.list("volumes_from"),
        tmpfs: section.map("tmpfs").into_iter().collect(),
        services_tmpfs: section.map("services_tmpfs").into_iter().collect(),
        network_mode: section.text("network_mode"),
        network_mtu: section.positive("network_mtu").unwrap_or(0),
        enable_ipv6: on(&section, "enable_ipv6"),
        dns: section.list("dns"),
        dns_search: section.list("dns_search"),
        extra_hosts: section.list("extra_hosts"),
        links: section.list("links"),
        hostname: section.text("hostname"),
        mac_address: section.text("mac_address"),
        pid_mode: section.text("pid_mode"),
        ipc_mode: section.text("ipcmode"),
        isolation: isolation(&section),
        services_limit: section.integer("services_limit").and_then(|n| usize::try_from(n).ok()),
        wait_for_services: match section.integer("wait_for_services_timeout") {
            None | Some(0) => Some(Duration::from_secs(WAIT_FOR_SERVICES)),
            Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
        },
        container_labels: section.map("container_labels"),
        log_options: log_options(&section),
        services: services(&section),
        dind: dind(section.table("dind")),
        socket: socket(section.table("socket")),
    };
    without_effect(&section);
    note_socket(&section, &docker);
    if let Some(host) = docker.host.as_deref().filter(|host| !host.starts_with("unix://"))
        && docker.socket.guard == GuardPlace::Here
    {
        let why = format!("the engine at {host} is not reached by a socket of this host");
        section.table("socket").problem("guard", Some("here"), why, "write \"auto\"");
    }
    section.finish();
    docker
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

fn dind(section: Section<'_>) -> DindConfig {
    let default = DindConfig::default();
    let mut dind = DindConfig {
        mode: section
            .parsed("mode", "", |text| match text {
                "sidecar" => Ok(DindMode::Sidecar),
                "socket" => Ok(DindMode::Socket),
                "refuse" => Ok(DindMode::Refuse),
                _ => Err("wanted sidecar, socket or refuse"),
            })
            .unwrap_or_default(),
        images: if section.has("images") { globs(&section, "images") } else { default.images },
        network: section
            .parsed("network", "", |text| match text {
                "own" => Ok(DindNetwork::Own),
                "shared" => Ok(DindNetwork::Shared),
                _ => Err("wanted own or shared"),
            })
            .unwrap_or_default(),
        insecure_registries: section.parsed_list(
            "insecure_registries",
            "write for example \"registry.example:5000\" or \"10.0.0.0/8\"",
            |text| {
                let is_plain = !text.is_empty() && !text.contains(char::is_whitespace);
                if is_plain && !text.contains("://") {
                    Ok(text.to_owned())
                } else {
                    Err("not a registry's name or a range of addresses")
                }
            },
        ),
        registry_mirrors: section.parsed_list(
            "registry_mirrors",
            "write for example \"https://mirror.example\"",
            |text| match text.split_once("://") {
                Some(("http" | "https", rest)) if !rest.is_empty() => Ok(text.to_owned()),
                _ => Err("not the address of a mirror"),
            },
        ),
        ready_timeout: section.positive_duration("ready_timeout").unwrap_or(default.ready_timeout),
        storage: match one_of(&section, "storage", &["fresh", "slot"]).as_deref() {
            Some("slot") => DindStorage::Slot,
            _ => DindStorage::Fresh,
        },
        slots: section.positive("slots").unwrap_or(default.slots),
        slot_size: section
            .parsed("slot_size", SIZE_HINT, values::memory_size)
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(default.slot_size),
        warm: warm(&section).unwrap_or(default.warm),
    };
    if let Some(why) = never_warm(&dind) {
        section.warn("warm", format!("no daemon waits: {why}"));
        dind.warm = 0;
    }
    section.finish();
    dind
}

/// How many daemons wait.
fn warm(section: &Section<'_>) -> Option<usize> {
    let count = section.number::<usize>("warm")?;
    if count > WARM_LIMIT {
        let why = format!("is above {WARM_LIMIT}; each is a daemon that runs all the time");
        section.problem("warm", Some(&count.to_string()), why, "");
    }
    Some(count)
}

/// Why no job could take a daemon that waits.
fn never_warm(dind: &DindConfig) -> Option<&'static str> {
    match (dind.mode, dind.storage, dind.network) {
        _ if dind.warm == 0 => None,
        (DindMode::Socket | DindMode::Refuse, ..) => Some("jobs get none of their own (`mode`)"),
        (_, DindStorage::Slot, _) => Some("each begins with a slot's layers (`storage`)"),
        (.., DindNetwork::Shared) => Some("jobs are in their daemon's network (`network`)"),
        (DindMode::Sidecar, DindStorage::Fresh, DindNetwork::Own) => None,
    }
}

/// A text that is one of these.
fn one_of(section: &Section<'_>, key: &str, words: &[&str]) -> Option<String> {
    section.parsed(key, "", |text| {
        if words.contains(&text) {
            Ok(text.to_owned())
        } else {
            Err(format!("wanted {}", words.join(" or ")))
        }
    })
}

fn socket(section: Section<'_>) -> SocketConfig {
    let default = SocketConfig::default();
    let limits = section.table("limits");
    let socket = SocketConfig {
        mode: section
            .parsed("mode", "", |text| match text {
                "off" => Ok(SocketMode::Off),
                "guarded" => Ok(SocketMode::Guarded),
                "raw" => Ok(SocketMode::Raw),
                _ => Err("wanted off, guarded or raw"),
            })
            .unwrap_or_default(),
        build: section
            .parsed("build", "", |text| match text {
                "off" => Ok(SocketBuild::Off),
                "classic" => Ok(SocketBuild::Classic),
                "sidecar" => Ok(SocketBuild::Sidecar),
                _ => Err("wanted off, classic or sidecar"),
            })
            .unwrap_or_default(),
        buildkit_image: section.text("buildkit_image").unwrap_or(default.buildkit_image),
        guard: section
            .parsed("guard", "", |text| match text {
                "auto" => Ok(GuardPlace::Auto),
                "here" => Ok(GuardPlace::Here),
                "sidecar" => Ok(GuardPlace::Sidecar),
                _ => Err("wanted auto, here or sidecar"),
            })
            .unwrap_or_default(),
        engine_socket: section.parsed("engine_socket", ENGINE_SOCKET_HINT, |text| {
            match PathBuf::from(text) {
                path if text.contains("://") || !path.is_absolute() => Err("not an absolute path"),
                path => Ok(path),
            }
        }),
        shared_images: globs(&section, "shared_images"),
        registries: if section.has("registries") {
            section.parsed_list("registries", "write docker.io, or HOST[:PORT]", registry)
        } else {
            default.registries
        },
        remove_images: section.boolean("remove_images").unwrap_or(default.remove_images),
        memory: limits.parsed("memory", SIZE_HINT, values::memory_size),
        nano_cpus: limits.parsed("cpus", CPUS_HINT, values::nano_cpus),
        pids: limits.positive("pids"),
        total_memory: limits
            .parsed("total_memory", SIZE_HINT, |text| some_of(values::memory_size(text))),
        total_nano_cpus: limits
            .parsed("total_cpus", CPUS_HINT, |text| some_of(values::nano_cpus(text))),
        total_pids: limits.positive("total_pids"),
        containers: limits.positive("containers"),
        networks: limits.positive("networks"),
        volumes: limits.positive("volumes"),
        extra_capabilities: section.parsed_list("extra_capabilities", "", |text| {
            match text.to_ascii_uppercase() {
                text if text == "ALL" => Err("would make jobs root on this host; name them"),
                text => Ok(text.trim_start_matches("CAP_").to_owned()),
            }
        }),
        allowed_devices: section.list("allowed_devices"),
        allowed_runtimes: section.list("allowed_runtimes"),
        audit_log: section.parsed(
            "audit_log",
            "write an absolute path",
            |text| match PathBuf::from(text) {
                path if path.is_absolute() => Ok(path),
                _ => Err("not an absolute path"),
            },
        ),
    };
    limits.finish();
    section.finish();
    socket
}

/// An amount that is not nothing: there, 0 is no word for "no limit".
fn some_of(amount: Result<i64, values::ValueError>) -> Result<i64, String> {
    match amount {
        Ok(0) => Err("must be more than 0; without the key there is no limit".to_owned()),
        amount => amount.map_err(|error| error.to_string()),
    }
}

fn registry(text: &str) -> Result<String, &'static str> {
    let is_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if !text.is_empty() && text.chars().all(is_host) {
        Ok(text.to_owned())
    } else {
        Err("not the name of a registry")
    }
}

/// Says once, at the start, what jobs get where `volumes` mounts the engine's socket.
fn note_socket(section: &Section<'_>, docker: &DockerConfig) {
    let mounted = docker.volumes.iter().find_map(|text| {
        let volume = Volume::parse(text).ok()?;
        volume.is_engine_socket().then_some(text)
    });
    if docker.socket.mode == SocketMode::Raw && docker.socket.build != SocketBuild::Classic {
        section.table("socket").warn("build", "has no effect where mode is raw");
    }
    match (mounted, docker.socket.mode) {
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
        _ => Err("wanted always, if-not-present or never"),
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

fn glob(text: &str) -> Result<String, String> {
    match GlobBuilder::new(text).literal_separator(true).build() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("not a pattern: {}", error.kind())),
    }
}

fn globs(section: &Section<'_>, key: &str) -> Vec<String> {
    section.parsed_list(key, "", glob)
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
fn resources(section: &Section<'_>, prefix: &str) -> Resources {
    let key = |name: &str| format!("{prefix}{name}");
    let size = |name: &str| section.parsed(&key(name), SIZE_HINT, values::memory_size);
    // The engine takes −1 for swap without limit.
    let swap = |text: &str| match text {
        "-1" => Ok(-1),
        _ => values::memory_size(text),
    };
    Resources {
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
        _ => Err("wanted default, hyperv or process"),
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
        environment: super::runner::environment(&section),
    };
    section.unsupported("suspend_data_path", "suspended environments are not supported");
    section.finish();
    service
}

//! A plan as the engine's own requests. Pure.

pub mod buildkit;

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointSettings, HostConfig,
    HostConfigLogConfig, Mount, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig,
    NetworkCreateRequest, NetworkingConfig, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

use crate::{
    config::{ContainerLimits, Device, DockerConfig, RunnerConfig},
    executor::docker::engine::ApiVersion,
    workload::{
        NetworkPlan, Workload, mount::VolumePlan, names, policy, script, service::ServicePlan,
    },
};

/// The first API in which an endpoint has its MAC address (Docker Engine API: version history).
const MAC_ADDRESS_API: ApiVersion = ApiVersion { major: 1, minor: 44 };

/// How containers of the job get its guarded socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPlace {
    /// The socket's file on the engine's host.
    pub source: String,
    /// A group that may use it.
    pub group: Option<u32>,
    /// Entries for `/etc/hosts` that lead to published ports.
    pub hosts: Vec<String>,
    /// The network of the job's containers.
    pub network: String,
    /// The control group of what the job makes.
    pub cgroup_parent: Option<String>,
}

impl SocketPlace {
    fn put_into(&self, host: &mut HostConfig, plan: &Workload) {
        let paths = plan.access.guarded().map(|socket| socket.paths.as_slice());
        for path in paths.unwrap_or_default() {
            // A mount, not a bind: of a bind, the engine would make a directory where nothing is.
            host.mounts.get_or_insert_default().push(Mount {
                typ: Some(MountType::BIND),
                source: Some(self.source.clone()),
                target: Some(path.clone()),
                ..Mount::default()
            });
        }
        let group = self.group.map(|group| group.to_string());
        host.group_add.get_or_insert_default().extend(group);
        host.extra_hosts.get_or_insert_default().extend(self.hosts.iter().cloned());
    }
}

/// The build container: a shell that waits for its script on stdin.
#[must_use]
pub fn build(
    plan: &Workload,
    runner: &RunnerConfig,
    image: &str,
    hosts: &[String],
    socket: Option<&SocketPlace>,
) -> ContainerCreateBody {
    let docker = runner.docker();
    let mut body = job_container(plan, runner, image, hosts, "build");
    body.cmd = Some(words(&["sh", "-c", script::SHELL_DETECTION]));
    body.entrypoint.clone_from(&plan.image.entrypoint);
    body.user.clone_from(&plan.image.user);
    if let Some(host) = &mut body.host_config {
        host.privileged = Some(plan.image.privileged);
        host.pid_mode.clone_from(&docker.kernel.pid_mode);
        host.init = plan.flags.on("FF_USE_INIT_WITH_DOCKER_EXECUTOR").then_some(true);
        if let Some(volume) = &plan.mounts.socket {
            host.mounts.get_or_insert_default().push(mount(volume, docker));
        }
        if let Some(socket) = plan.access.dind().and_then(|sidecar| sidecar.socket.as_ref()) {
            host.group_add.get_or_insert_default().push(socket.group.to_string());
        }
        if let Some(buildkit) = plan.access.buildkit() {
            host.group_add.get_or_insert_default().push(buildkit.group.to_string());
        }
        if let Some(socket) = socket {
            socket.put_into(host, plan);
        }
    }
    match plan.access.network_owner() {
        Some(owner) => join(&mut body, &owner.container),
        None => body.networking_config = job_endpoint(plan, docker, Vec::new()),
    }
    body
}

/// The job's place in its network. Of its containers at once only one can have the address.
fn job_endpoint(
    plan: &Workload,
    docker: &DockerConfig,
    mut aliases: Vec<String>,
) -> Option<NetworkingConfig> {
    aliases.extend(["build".to_owned(), plan.names.build.clone()]);
    endpoint(plan, docker.hosts.mac_address.clone(), aliases)
}

/// Puts a container into another's network, whose names, name servers and hosts it then has
/// (moby: `validateNetContainerMode`).
fn join(body: &mut ContainerCreateBody, owner: &str) {
    body.hostname = None;
    body.networking_config = None;
    if let Some(host) = &mut body.host_config {
        host.network_mode = Some(format!("container:{owner}"));
        (host.dns, host.dns_search) = (None, None);
        (host.extra_hosts, host.links) = (None, None);
    }
}

/// Makes the daemon's container what the job's would be to the network that they share: reached
/// by the same names, and finding others by theirs. Without a network that has names, `hosts` are
/// the other services', and the daemon's own lead back to it.
pub fn own_network(
    body: &mut ContainerCreateBody,
    plan: &Workload,
    docker: &DockerConfig,
    service: &ServicePlan,
    hosts: &[String],
) {
    body.hostname = Some(docker.hosts.hostname.clone().unwrap_or_else(|| plan.names.host.clone()));
    body.networking_config = job_endpoint(plan, docker, service.aliases.clone());
    if let Some(host) = &mut body.host_config {
        host.links = some(&docker.hosts.links);
        let extra = host.extra_hosts.get_or_insert_default();
        extra.extend_from_slice(hosts);
        if !plan.network.has_aliases() {
            extra.extend(service.aliases.iter().map(|alias| format!("{alias}:127.0.0.1")));
        }
    }
}

/// How the helper container's program is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperCommand {
    /// The image.
    pub image: String,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// The helper container. Its output is a protocol, not text: the engine keeps no log of it.
#[must_use]
pub fn helper(
    plan: &Workload,
    runner: &RunnerConfig,
    command: &HelperCommand,
    hosts: &[String],
) -> ContainerCreateBody {
    let privileges = &runner.containers.privileges;
    let mut body = job_container(plan, runner, &command.image, hosts, "predefined");
    // Tasks bring the variables they need; the container's own environment is the image's.
    body.env = None;
    body.entrypoint = Some(command.command.clone());
    body.cmd = Some(Vec::new());
    body.user = Some("0:0".to_owned());
    if let Some(host) = &mut body.host_config {
        host.privileged = Some(privileges.privileged && privileges.allowed_images.is_empty());
        host.log_config = Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None });
    }
    body.networking_config = endpoint(plan, None, vec![plan.names.helper.clone()]);
    body
}

/// A service's container.
#[must_use]
pub fn service(
    plan: &Workload,
    runner: &RunnerConfig,
    service: &ServicePlan,
    image: &str,
    socket: Option<&SocketPlace>,
) -> ContainerCreateBody {
    let docker = runner.docker();
    let mut labels = names::typed(&plan.labels, "service");
    for (name, value) in &runner.containers.labels {
        labels.insert(format!("{}.{name}", names::LABEL_PREFIX), plan.variables.expand(value));
    }
    labels.insert(format!("{}.service", names::LABEL_PREFIX), service.name.clone());
    labels.insert(format!("{}.service.version", names::LABEL_PREFIX), service.version.clone());
    let mut host = shared_host(plan, runner);
    limit(&mut host, &docker.service_limits);
    host.devices = devices(
        &docker
            .devices
            .services
            .iter()
            .filter(|(glob, _)| policy::matches_any(std::slice::from_ref(glob), &service.image))
            .flat_map(|(_, devices)| devices.clone())
            .collect::<Vec<_>>(),
    );
    host.device_requests = gpus(&docker.devices.service_gpus);
    host.security_opt = some(&docker.security.service_options);
    host.tmpfs = Some(runner.containers.volumes.services_tmpfs.clone()).filter(|t| !t.is_empty());
    host.privileged = Some(service.privileged);
    host.extra_hosts = some(&docker.hosts.extra_hosts);
    host.init = plan.flags.on("FF_USE_INIT_WITH_DOCKER_EXECUTOR").then_some(true);
    if service.unconfined {
        unconfine(&mut host);
    }
    if let Some(socket) = socket {
        socket.put_into(&mut host, plan);
    }
    if plan.access.dind_of(service).is_some() {
        let own = plan.mounts.daemon.iter().chain(&plan.mounts.socket);
        host.mounts.get_or_insert_default().extend(own.map(|volume| mount(volume, docker)));
    }
    ContainerCreateBody {
        image: Some(image.to_owned()),
        env: Some(service.environment.clone()),
        cmd: some(&service.command),
        entrypoint: some(&service.entrypoint),
        labels: Some(labels.into_iter().collect()),
        host_config: Some(host),
        networking_config: endpoint(plan, None, service.aliases.clone()),
        ..ContainerCreateBody::default()
    }
}

/// The job's own network.
#[must_use]
pub fn network(plan: &Workload, name: &str, mtu: u32, ipv6: bool) -> NetworkCreateRequest {
    let mut options = HashMap::new();
    if mtu != 0 {
        options.insert("com.docker.network.driver.mtu".to_owned(), mtu.to_string());
    }
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        enable_ipv6: Some(ipv6),
        options: Some(options),
        labels: Some(names::typed(&plan.labels, "network").into_iter().collect()),
        ..NetworkCreateRequest::default()
    }
}

/// What build and helper have in common.
fn job_container(
    plan: &Workload,
    runner: &RunnerConfig,
    image: &str,
    hosts: &[String],
    kind: &str,
) -> ContainerCreateBody {
    let docker = runner.docker();
    let mut host = shared_host(plan, runner);
    limit(&mut host, &docker.limits);
    host.devices = devices(&docker.devices.devices);
    host.device_requests = gpus(&docker.devices.gpus);
    host.device_cgroup_rules = some(&docker.devices.cgroup_rules);
    host.ulimits = Some(
        docker
            .kernel
            .ulimits
            .iter()
            .map(|limit| ResourcesUlimits {
                name: Some(limit.name.clone()),
                soft: Some(limit.soft),
                hard: Some(limit.hard),
            })
            .collect::<Vec<_>>(),
    )
    .filter(|u| !u.is_empty());
    host.oom_kill_disable = docker.kernel.oom_kill_disable.then_some(true);
    host.oom_score_adj = Some(docker.kernel.oom_score_adjust).filter(|score| *score != 0);
    host.group_add = some(&docker.security.group_add);
    host.cap_add = some(&docker.security.cap_add);
    host.cap_drop = some(&docker.security.cap_drop);
    host.security_opt = some(&docker.security.options);
    host.sysctls = Some(docker.kernel.sysctls.clone().into_iter().collect())
        .filter(|s: &HashMap<_, _>| !s.is_empty());
    host.ipc_mode.clone_from(&docker.kernel.ipc_mode);
    host.links = some(&docker.hosts.links);
    host.volume_driver.clone_from(&docker.volumes.driver);
    host.volumes_from = some(&docker.volumes.from);
    host.tmpfs = Some(runner.containers.volumes.tmpfs.clone()).filter(|t| !t.is_empty());
    let mut extra: Vec<String> = docker.hosts.extra_hosts.clone();
    extra.extend_from_slice(hosts);
    host.extra_hosts = some(&extra);
    // A container in another's network cannot have a host name of its own.
    let own_name =
        !matches!(&plan.network, NetworkPlan::Given(mode) if mode.starts_with("container:"));
    ContainerCreateBody {
        image: Some(image.to_owned()),
        hostname: own_name
            .then(|| docker.hosts.hostname.clone().unwrap_or_else(|| plan.names.host.clone())),
        env: Some(plan.variables.environment()),
        tty: Some(false),
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        labels: Some(names::typed(&plan.labels, kind).into_iter().collect()),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// What all containers of a job have in common.
fn shared_host(plan: &Workload, runner: &RunnerConfig) -> HostConfig {
    let docker = runner.docker();
    HostConfig {
        binds: some(&plan.mounts.binds),
        mounts: Some(mounts(plan, docker)).filter(|m| !m.is_empty()),
        network_mode: Some(plan.network.mode().to_owned()),
        dns: some(&docker.hosts.dns),
        dns_search: some(&docker.hosts.dns_search),
        runtime: runner.containers.runtime.clone(),
        userns_mode: docker.security.userns_mode.clone(),
        shm_size: Some(docker.kernel.shm_size).filter(|size| *size > 0),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(docker.log_options.clone()).filter(|o| !o.is_empty()),
        }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..HostConfig::default()
    }
}

/// Volumes of longshore's: the engine makes those that do not exist, with their labels, when it
/// makes a container that mounts them.
fn mounts(plan: &Workload, docker: &DockerConfig) -> Vec<Mount> {
    plan.mounts.volumes.iter().map(|volume| mount(volume, docker)).collect()
}

/// A volume of longshore's in a container.
pub(super) fn mount(volume: &VolumePlan, docker: &DockerConfig) -> Mount {
    Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.name.clone()),
        target: Some(volume.destination.clone()),
        volume_options: Some(MountVolumeOptions {
            labels: Some(volume.labels.clone().into_iter().collect()),
            driver_config: docker.volumes.driver.clone().map(|name| {
                MountVolumeOptionsDriverConfig {
                    name: Some(name),
                    options: Some(docker.volumes.driver_options.clone()),
                }
            }),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

/// What a daemon without root needs in a container without privileges: user namespaces, mounts in
/// them, and a device for its network (docs.docker.com, "Rootless Docker in Docker").
fn unconfine(host: &mut HostConfig) {
    unfilter(host);
    host.devices.get_or_insert_default().push(DeviceMapping {
        path_on_host: Some("/dev/net/tun".to_owned()),
        path_in_container: Some("/dev/net/tun".to_owned()),
        cgroup_permissions: Some("rwm".to_owned()),
    });
}

/// Takes the engine's filters off, for programs without root that make user namespaces and mount
/// in them (moby/buildkit: `docs/rootless.md`; `systempaths=unconfined` is docker run's word for no
/// hidden and no read-only paths).
fn unfilter(host: &mut HostConfig) {
    let options = host.security_opt.get_or_insert_default();
    options.extend(words(&["seccomp=unconfined", "apparmor=unconfined"]));
    host.masked_paths = Some(Vec::new());
    host.readonly_paths = Some(Vec::new());
}

fn limit(host: &mut HostConfig, resources: &ContainerLimits) {
    host.memory = resources.memory;
    host.memory_swap = resources.memory_swap;
    host.memory_reservation = resources.memory_reservation;
    host.nano_cpus = resources.nano_cpus;
    host.cpuset_cpus.clone_from(&resources.cpuset_cpus);
    host.cpuset_mems.clone_from(&resources.cpuset_mems);
    host.cpu_shares = resources.cpu_shares;
    host.cgroup_parent.clone_from(&resources.cgroup_parent);
}

fn devices(devices: &[Device]) -> Option<Vec<DeviceMapping>> {
    let mapped: Vec<_> = devices
        .iter()
        .map(|device| DeviceMapping {
            path_on_host: Some(device.host.to_string()),
            path_in_container: Some(device.container.to_string()),
            cgroup_permissions: Some(device.permissions.clone()),
        })
        .collect();
    Some(mapped).filter(|m| !m.is_empty())
}

/// `all`, a count, or `device=…` (docker run: `--gpus`).
fn gpus(text: &str) -> Option<Vec<DeviceRequest>> {
    let text = text.trim().trim_matches('"');
    if text.is_empty() {
        return None;
    }
    let mut request = DeviceRequest {
        count: Some(0),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    };
    if text == "all" {
        request.count = Some(-1);
    } else if let Ok(count) = text.parse() {
        request.count = Some(count);
    } else {
        let ids = text.strip_prefix("device=").unwrap_or(text);
        request.device_ids = Some(ids.split(',').map(str::to_owned).collect());
    }
    Some(vec![request])
}

/// What to tell of a `mac_address` that this engine does not take with an endpoint.
#[must_use]
pub fn ignored_mac_address(docker: &DockerConfig, engine: ApiVersion) -> Option<String> {
    let address = docker.hosts.mac_address.as_ref()?;
    (engine < MAC_ADDRESS_API).then(|| {
        format!(
            "mac_address {address} is not used: it needs API {MAC_ADDRESS_API}, the engine has \
             {engine}"
        )
    })
}

fn endpoint(
    plan: &Workload,
    mac_address: Option<String>,
    aliases: Vec<String>,
) -> Option<NetworkingConfig> {
    if !plan.network.has_aliases() && mac_address.is_none() {
        return None;
    }
    let settings = EndpointSettings {
        aliases: plan.network.has_aliases().then_some(aliases),
        mac_address,
        ..EndpointSettings::default()
    };
    Some(NetworkingConfig {
        endpoints_config: Some([(plan.network.mode().to_owned(), settings)].into()),
    })
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// Labels as the engine's list filter takes them.
#[must_use]
pub fn label_filter(labels: &BTreeMap<&str, &str>) -> HashMap<String, Vec<String>> {
    let wanted = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    HashMap::from([("label".to_owned(), wanted)])
}

#[cfg(test)]
mod tests;

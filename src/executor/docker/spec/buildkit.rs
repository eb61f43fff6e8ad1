//! The container of a job's BuildKit. It has nothing of the job's but its network and its limits:
//! no workspace, no socket of an engine, no variables.

use bollard::models::ContainerCreateBody;

use crate::{
    config::RunnerConfig,
    guard::Limits,
    workload::{Workload, access::BuildKit, names},
};

use super::{SocketPlace, limit, mount, shared_host, some, unfilter};

/// Variables by which it reaches registries, where the job has them.
const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];

/// See the module. `place` has the network and the group of the job's containers, and `limits` are
/// what each of these may have.
#[must_use]
pub fn buildkit(
    plan: &Workload,
    runner: &RunnerConfig,
    buildkit: &BuildKit,
    image: &str,
    place: &SocketPlace,
    limits: &Limits,
) -> ContainerCreateBody {
    let docker = runner.docker();
    let mut host = shared_host(plan, runner);
    limit(&mut host, &docker.limits);
    host.memory = Some(limits.memory);
    host.memory_swap = Some(limits.memory);
    // One of the job's that is larger would be refused.
    host.memory_reservation = host.memory_reservation.map(|size| size.min(limits.memory));
    host.nano_cpus = Some(limits.nano_cpus);
    host.pids_limit = Some(limits.pids);
    host.binds = None;
    let own = plan.mounts.daemon.iter().chain(&plan.mounts.socket);
    host.mounts = Some(own.map(|volume| mount(volume, docker)).collect());
    host.network_mode = Some(place.network.clone());
    host.cgroup_parent.clone_from(&place.cgroup_parent);
    host.extra_hosts = some(&docker.hosts.extra_hosts);
    host.privileged = Some(false);
    if buildkit.unconfined {
        unfilter(&mut host);
    }
    let proxies = PROXIES
        .iter()
        .filter_map(|name| plan.variables.value(name).map(|value| format!("{name}={value}")));
    ContainerCreateBody {
        image: Some(image.to_owned()),
        env: Some(proxies.collect()),
        cmd: Some(buildkit.arguments()),
        labels: Some(names::typed(&plan.labels, "buildkit").into_iter().collect()),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::testing::Case;

    fn place() -> SocketPlace {
        SocketPlace {
            source: String::new(),
            group: None,
            hosts: Vec::new(),
            network: "job-net".to_owned(),
            cgroup_parent: Some("/longshore/job".to_owned()),
        }
    }

    fn body(more: &str) -> ContainerCreateBody {
        let case = Case::new().variable("SECRET", "s").variable("HTTPS_PROXY", "http://p").docker(
            &format!(
                "volumes = [\"/cache\", \"/etc:/etc-of-host\"]\nprivileged = true\n\
                 memory_reservation = \"8g\"\n{more}[runners.docker.socket]\nmode = \"guarded\"\n\
                 build = \"sidecar\"\n[runners.docker.socket.limits]\nmemory = \"1g\"\npids = 300",
            ),
        );
        let (plan, config) = (case.plan(), case.config());
        let limits = Limits { memory: 1 << 30, pids: 300, ..Limits::default() };
        let kit = plan.access.buildkit().unwrap();
        buildkit(&plan, &config, kit, "sha256:kit", &place(), &limits)
    }

    #[test]
    fn g_11_3_the_container_has_the_jobs_limits_and_network_and_nothing_else_of_it() {
        let body = body("");
        let host = body.host_config.unwrap();
        assert_eq!((host.privileged, host.binds), (Some(false), None));
        assert_eq!((host.cap_add, host.devices, host.group_add), (None, None, None));
        assert_eq!(host.network_mode.as_deref(), Some("job-net"));
        assert_eq!(host.cgroup_parent.as_deref(), Some("/longshore/job"));
        let gigabyte = Some(1 << 30);
        assert_eq!(
            (host.memory, host.memory_swap, host.memory_reservation),
            (gigabyte, gigabyte, gigabyte)
        );
        assert_eq!((host.pids_limit, host.nano_cpus), (Some(300), Some(2_000_000_000)));
        let targets: Vec<_> = host.mounts.unwrap().into_iter().filter_map(|m| m.target).collect();
        assert_eq!(targets, ["/home/user/.local/share/buildkit", "/run/longshore"]);
        assert_eq!(body.env.unwrap(), ["HTTPS_PROXY=http://p"]);
        assert_eq!(host.security_opt.unwrap(), ["seccomp=unconfined", "apparmor=unconfined"]);
    }

    #[test]
    fn an_image_that_is_not_rootless_keeps_the_engines_filters() {
        let body = body("");
        assert!(body.host_config.is_some());
        let case = Case::new().docker(
            "runtime = \"sysbox-runc\"\n[runners.docker.socket]\nmode = \"guarded\"\n\
             build = \"sidecar\"\nbuildkit_image = \"moby/buildkit:latest\"",
        );
        let (plan, config) = (case.plan(), case.config());
        let kit = plan.access.buildkit().unwrap();
        let body = buildkit(&plan, &config, kit, "sha256:kit", &place(), &Limits::default());
        let host = body.host_config.unwrap();
        assert_eq!(
            (host.privileged, host.security_opt, host.masked_paths),
            (Some(false), None, None)
        );
        assert_eq!(host.runtime.as_deref(), Some("sysbox-runc"));
    }
}

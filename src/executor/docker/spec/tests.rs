//! What the engine is asked for, from a payload and a file of settings.

use bollard::models::{ContainerCreateBody, HostConfig, MountType};
use serde_json::{Value, json};

use crate::{
    executor::docker::engine::ApiVersion,
    workload::{NetworkPlan, names::LABEL_PREFIX, testing::Case},
};

fn build_of(case: &Case) -> ContainerCreateBody {
    super::build(&case.plan(), &case.config(), "sha256:image", &["db:172.17.0.3".to_owned()], None)
}

fn helper_of(case: &Case) -> ContainerCreateBody {
    let command = super::HelperCommand {
        image: "sha256:helper".to_owned(),
        command: ["/longshore", "helper", "serve"].map(str::to_owned).to_vec(),
    };
    super::helper(&case.plan(), &case.config(), &command, &["db:172.17.0.3".to_owned()])
}

fn service_of(case: &Case) -> ContainerCreateBody {
    let plan = case.plan();
    super::service(&plan, &case.config(), &plan.services[0], "sha256:service", None)
}

/// Build, helper, and the first service.
fn all(case: &Case) -> [ContainerCreateBody; 3] {
    [build_of(case), helper_of(case), service_of(case)]
}

fn host(body: ContainerCreateBody) -> HostConfig {
    body.host_config.unwrap()
}

fn with_service() -> Case {
    Case::new().with("services", json!([{"name": "redis:7", "alias": "db"}]))
}

fn label<'a>(body: &'a ContainerCreateBody, name: &str) -> Option<&'a str> {
    body.labels.as_ref()?.get(&format!("{LABEL_PREFIX}.{name}")).map(String::as_str)
}

/// A job and a runner that use about all there is.
fn rich() -> Case {
    Case::new()
        .with(
            "image",
            json!({
                "name": "reg.example/ruby:3.3", "entrypoint": ["/entry", "--"],
                "executor_opts": {"docker": {"platform": "linux/amd64", "user": "1000:1000"}},
            }),
        )
        .with(
            "services",
            json!([{
                "name": "reg.example:5000/ns/postgres:17", "alias": "db,main",
                "command": ["-c", "fsync=off"], "entrypoint": ["/pg"],
                "variables": [{"key": "POSTGRES_DB", "value": "$NAME"}],
            }]),
        )
        .with("cache", json!([{"key": "gems", "paths": ["vendor"]}]))
        .git("protected", true)
        .variable("NAME", "turbine")
        .variable("CI_JOB_URL", "https://gitlab.example.net/acme/turbine/-/jobs/88213")
        .variable_with("PUBLIC", "1", &json!({"public": true}))
        .variable_with("CERT", "pem", &json!({"file": true}))
        .variable("FF_NETWORK_PER_BUILD", "true")
        .variable("FF_USE_INIT_WITH_DOCKER_EXECUTOR", "true")
        .docker(RICH)
}

const RICH: &str = r#"
privileged = true
services_privileged = false
memory = "2g"
memory_swap = "3g"
memory_reservation = "1g"
cpus = "1/2"
cpuset_cpus = "0,1"
cpuset_mems = "0"
cpu_shares = 512
cgroup_parent = "/ci"
service_memory = "512m"
service_cpus = "0.25"
service_cpuset_cpus = "1"
service_cpu_shares = 128
service_cgroup_parent = "/ci-services"
devices = ["/dev/kvm", "/dev/fuse:/dev/f:r"]
device_cgroup_rules = ["c 10:200 rwm"]
gpus = "all"
service_gpus = "device=0,1"
cap_add = ["SYS_PTRACE"]
cap_drop = ["NET_RAW"]
security_opt = ["seccomp=unconfined"]
services_security_opt = ["no-new-privileges"]
dns = ["10.0.0.53"]
dns_search = ["example.net"]
extra_hosts = ["gitlab:10.0.0.1"]
links = ["old:old"]
group_add = ["docker"]
hostname = "worker"
mac_address = "92:d0:c6:0a:29:33"
ipc_mode = "shareable"
pid_mode = "host"
userns_mode = "host"
runtime = "crun"
oom_kill_disable = true
oom_score_adjust = 100
shm_size = 134217728
enable_ipv6 = true
network_mtu = 1400
volumes = ["/certs/client", "/var/run/docker.sock:/var/run/docker.sock"]
volume_driver = "local"
volumes_from = ["data:ro"]
[runners.docker.volume_driver_ops]
type = "tmpfs"
[runners.docker.sysctls]
"net.core.somaxconn" = "1024"
[runners.docker.ulimit]
nofile = "1024:2048"
[runners.docker.tmpfs]
"/run" = "rw,noexec"
[runners.docker.services_tmpfs]
"/var/lib/postgresql/data" = "rw"
[runners.docker.services_devices]
"reg.example:5000/ns/*" = ["/dev/dri"]
"other" = ["/dev/other"]
[runners.docker.container_labels]
"team" = "$NAME"
[runners.docker.log_options]
labels = "team"
"#;

#[test]
fn requests_for_a_job_that_uses_about_all_there_is() {
    let case = rich();
    assert_eq!(case.plan().warnings, Vec::<String>::new());
    let [build, helper, service] = all(&case);
    let plan = case.plan();
    let NetworkPlan::Own { name, mtu, ipv6 } = &plan.network else { panic!("{:?}", plan.network) };
    let network = super::network(&plan, name, *mtu, *ipv6);
    let without_flags = |body: ContainerCreateBody| {
        let mut value = serde_json::to_value(body).unwrap();
        if let Some(Value::Array(env)) = value.get_mut("Env") {
            env.retain(|line| !line.as_str().unwrap().starts_with("FF_"));
            for line in env {
                if line.as_str().unwrap().starts_with("CI_RUNNER_REVISION=") {
                    *line = json!("CI_RUNNER_REVISION=…");
                }
            }
        }
        value
    };
    let mut settings = insta::Settings::clone_current();
    settings.set_sort_maps(true);
    settings.add_filter(
        &format!("CI_RUNNER_VERSION={}", env!("CARGO_PKG_VERSION")),
        "CI_RUNNER_VERSION=…",
    );
    settings.bind(|| {
        insta::assert_json_snapshot!("build", without_flags(build));
        insta::assert_json_snapshot!("helper", without_flags(helper));
        insta::assert_json_snapshot!("service", without_flags(service));
        insta::assert_json_snapshot!("network", serde_json::to_value(network).unwrap());
    });
}

#[test]
fn docker_26_names_tell_runner_project_and_slot() {
    let plan = with_service().plan();
    let host = "runner-abcdefghi-project-42-concurrent-1";
    let unique = "runner-abcdefghi-project-42-concurrent-1-00112233445566aa";
    assert_eq!((plan.names.host.as_str(), plan.names.unique.as_str()), (host, unique));
    assert_eq!(plan.names.build, format!("{unique}-build"));
    assert_eq!(plan.names.helper, format!("{unique}-predefined"));
    assert_eq!(plan.services[0].container, format!("{unique}-redis-0"));
}

#[test]
fn docker_27_everything_bears_its_labels() {
    let case = with_service()
        .variable("FF_NETWORK_PER_BUILD", "1")
        .with("cache", json!([{"key": "k", "paths": ["a"]}]));
    let plan = case.plan();
    let bodies = all(&case);
    for (body, kind) in bodies.iter().zip(["build", "predefined", "service"]) {
        for (name, value) in [
            ("managed", "true"),
            ("type", kind),
            ("job.id", "88213"),
            ("job.url", ""),
            ("job.sha", "3d1f0c5a9b7e4c62a1f5d8e0b4c7a9d2e6f31b08"),
            ("job.before_sha", "a94c1e5d2f7b8036c4d9e1f2a3b4c5d6e7f80912"),
            ("job.ref", "main"),
            ("job.timeout", "1h0m0s"),
            ("project.id", "42"),
            ("project.runner_id", "1"),
            ("pipeline.id", "5120"),
            ("runner.id", "ABCDEFGHI"),
            ("runner.local_id", "3"),
            ("runner.system_id", "s_0123456789ab"),
        ] {
            assert_eq!(label(body, name), Some(value), "{kind} {name}");
        }
        assert_eq!(body.labels.as_ref().unwrap()["longshore.instance"], "here");
    }
    assert_eq!(label(&bodies[2], "service"), Some("redis"));
    assert_eq!(label(&bodies[2], "service.version"), Some("7"));
    let NetworkPlan::Own { name, .. } = &plan.network else { panic!("no network") };
    let network = super::network(&plan, name, 0, false).labels.unwrap();
    assert_eq!(network[&format!("{LABEL_PREFIX}.type")], "network");
    assert_eq!(network[&format!("{LABEL_PREFIX}.job.id")], "88213");
    let mounts = host(build_of(&case)).mounts.unwrap();
    assert_eq!(mounts.len(), 2);
    for mount in mounts {
        let labels = mount.volume_options.unwrap().labels.unwrap();
        let of = |name: &str| labels[&format!("{LABEL_PREFIX}.{name}")].clone();
        assert_eq!((of("managed"), of("type")), ("true".into(), "cache".into()));
        assert_eq!(Some(of("destination")), mount.target);
        assert_eq!((of("protected"), of("reusable")), ("false".into(), "true".into()));
    }
}

#[test]
fn docker_28_labels_of_the_operator_are_expanded() {
    let case = with_service()
        .variable("WHO", "me")
        .docker("[runners.docker.container_labels]\n\"com.example.team\" = \"x-$WHO\"");
    for body in all(&case) {
        assert_eq!(body.labels.unwrap()["com.example.team"], "x-me");
    }
    assert_eq!(label(&service_of(&case), "com.example.team"), Some("x-me"));
}

#[test]
fn docker_29_nothing_is_restarted_and_logs_are_json_files() {
    for body in all(&with_service()) {
        let is_helper = label(&body, "type") == Some("predefined");
        let host = host(body);
        assert_eq!(host.restart_policy.unwrap().name.unwrap().to_string(), "no");
        // Only what the helper says in frames is of no use to anybody.
        let driver = if is_helper { "none" } else { "json-file" };
        assert_eq!(host.log_config.unwrap().typ.as_deref(), Some(driver));
    }
}

#[test]
fn docker_31_stdin_is_open_once_and_there_is_no_terminal() {
    for body in [build_of(&Case::new()), helper_of(&Case::new())] {
        assert_eq!(body.tty, Some(false));
        assert_eq!((body.open_stdin, body.stdin_once), (Some(true), Some(true)));
        let attached = [body.attach_stdin, body.attach_stdout, body.attach_stderr];
        assert_eq!(attached, [Some(true); 3]);
    }
}

#[test]
fn docker_33_the_host_name_is_the_settings_or_the_slots() {
    let name = |case: &Case| [build_of(case), helper_of(case)].map(|body| body.hostname);
    let default = Some("runner-abcdefghi-project-42-concurrent-1".to_owned());
    assert_eq!(name(&Case::new()), [default.clone(), default.clone()]);
    let own = Some("worker".to_owned());
    assert_eq!(name(&Case::new().docker("hostname = \"worker\"")), [own.clone(), own]);
    let on_host = Case::new().docker("network_mode = \"host\"");
    assert_eq!(name(&on_host), [default.clone(), default]);
    // The engine refuses one there.
    let joined = Case::new().docker("network_mode = \"container:x\"");
    assert_eq!(name(&joined), [None, None]);
}

#[test]
fn docker_34_35_the_entrypoint_is_the_jobs_and_the_command_is_the_shell() {
    let case = |entrypoint: Value| {
        Case::new().with("image", json!({"name": "a", "entrypoint": entrypoint, "command": ["x"]}))
    };
    let words = |list: &[&str]| Some(list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
    assert_eq!(build_of(&case(json!(["/e"]))).entrypoint, words(&["/e"]));
    assert_eq!(build_of(&case(json!([""]))).entrypoint, words(&[""]));
    assert_eq!(build_of(&case(Value::Null)).entrypoint, None);
    let forbidden = case(json!(["/e"])).docker("disable_entrypoint_overwrite = true");
    assert_eq!(build_of(&forbidden).entrypoint, None);
    for case in [case(Value::Null), case(json!(["/e"]))] {
        let command = build_of(&case).cmd.unwrap();
        assert_eq!(command[..2], ["sh", "-c"]);
        assert!(command[2].starts_with("for shell in") && command.len() == 3);
    }
}

#[test]
fn docker_36_the_user_is_the_build_containers() {
    let case = with_service().docker("user = \"ci\"");
    assert_eq!(build_of(&case).user.as_deref(), Some("ci"));
    assert_eq!(helper_of(&case).user.as_deref(), Some("0:0"));
    assert_eq!(service_of(&case).user, None);
}

#[test]
fn docker_41_services_have_their_own_limits_and_no_others() {
    let limits = "memory = \"1g\"\ncpus = \"1\"\ncpuset_mems = \"0\"\ncap_add = [\"SYS_ADMIN\"]\n\
                  devices = [\"/dev/kvm\"]\ngpus = \"all\"\nsecurity_opt = [\"label=disable\"]\n\
                  pid_mode = \"host\"\noom_score_adjust = 5\n[runners.docker.sysctls]\n\
                  \"net.core.somaxconn\" = \"1\"\n[runners.docker.ulimit]\nnofile = \"1\"\n\
                  [runners.docker.tmpfs]\n\"/run\" = \"\"";
    let service = host(service_of(&with_service().docker(limits)));
    let plain = host(service_of(&with_service()));
    assert_eq!(service, plain);
    let own = "service_memory = \"1g\"\nservice_cpus = \"0.5\"";
    let service = host(service_of(&with_service().docker(own)));
    assert_eq!((service.memory, service.nano_cpus), (Some(1 << 30), Some(500_000_000)));
    assert_eq!(host(build_of(&with_service().docker(own))).memory, None);
}

#[test]
fn docker_44_security_options_are_passed_on() {
    let profile = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(profile.path(), "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n").unwrap();
    let case = with_service().docker(&format!(
        "security_opt = [\"seccomp={}\", \"seccomp=unconfined\", \"apparmor=x\"]\n\
         services_security_opt = [\"seccomp=unconfined\"]",
        profile.path().display()
    ));
    for body in [build_of(&case), helper_of(&case)] {
        let options = host(body).security_opt.unwrap();
        let inlined = options[0].strip_prefix("seccomp=").unwrap();
        let inlined: Value = serde_json::from_str(inlined).unwrap();
        assert_eq!(inlined, json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        assert_eq!(options[1..], ["seccomp=unconfined", "apparmor=x"]);
    }
    assert_eq!(host(service_of(&case)).security_opt.unwrap(), ["seccomp=unconfined"]);
}

#[test]
fn docker_47_a_mac_address_is_the_build_containers_where_the_engine_takes_it() {
    let case = with_service().docker("mac_address = \"92:d0:c6:0a:29:33\"");
    let [build, helper, service] = all(&case);
    let endpoints = build.networking_config.unwrap().endpoints_config.unwrap();
    let endpoint = &endpoints["default"];
    assert_eq!(endpoint.mac_address.as_deref(), Some("92:d0:c6:0a:29:33"));
    assert_eq!(endpoint.aliases, None);
    assert_eq!((helper.networking_config, service.networking_config), (None, None));
    let warning = |case: &Case, minor: u32| {
        super::ignored_mac_address(case.config().docker(), ApiVersion { major: 1, minor })
    };
    let text = "mac_address 92:d0:c6:0a:29:33 is not used: it needs API 1.44, the engine has 1.43";
    assert_eq!(warning(&case, 43).as_deref(), Some(text));
    assert_eq!(warning(&case, 44), None);
    assert_eq!(warning(&with_service(), 43), None);
}

#[test]
fn docker_76_the_build_container_has_all_variables() {
    let case = Case::new()
        .variable("A", "1")
        .variable_with("F", "content", &json!({"file": true}))
        .variable_with("S", "secret", &json!({"masked": true}));
    let env = build_of(&case).env.unwrap();
    for line in ["A=1", "F=/builds/acme/turbine.tmp/F", "S=secret", "CI_SERVER=yes"] {
        assert!(env.iter().any(|l| l == line), "{line}");
    }
    assert!(env.iter().any(|line| line == "FF_TIMESTAMPS=true"));
    assert_eq!(helper_of(&case).env, None, "its tasks bring what they need");
}

#[test]
fn docker_87_on_the_default_bridge_names_are_entries_of_the_hosts_file() {
    let case = with_service().docker(r#"extra_hosts = ["gitlab:10.0.0.1"]"#);
    for body in [build_of(&case), helper_of(&case)] {
        assert_eq!(body.networking_config, None);
        let host = host(body);
        assert_eq!(host.extra_hosts.unwrap(), ["gitlab:10.0.0.1", "db:172.17.0.3"]);
        assert_eq!(host.network_mode.as_deref(), Some("default"));
    }
    assert_eq!(host(service_of(&case)).extra_hosts.unwrap(), ["gitlab:10.0.0.1"]);
}

#[test]
fn docker_88_115_117_119_networks_and_their_names() {
    let of = |case: Case| {
        let plan = case.plan();
        let unique = plan.names.unique.clone();
        let aliases = |body: ContainerCreateBody| {
            let mode = body.host_config.unwrap().network_mode.unwrap();
            let aliases = body.networking_config.map(|config| {
                let endpoints = config.endpoints_config.unwrap();
                assert_eq!(endpoints.len(), 1);
                let names = endpoints[&mode].aliases.clone().unwrap();
                names.into_iter().map(|name| name.replace(&unique, "U")).collect::<Vec<_>>()
            });
            (mode, aliases)
        };
        let made = matches!(plan.network, NetworkPlan::Own { .. });
        (all(&case).map(aliases), made)
    };
    let named = |mode: &str| {
        let names = |list: &[&str]| Some(list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        let mode = mode.to_owned();
        [
            (mode.clone(), names(&["build", "U-build"])),
            (mode.clone(), names(&["U-predefined"])),
            (mode, names(&["redis", "db"])),
        ]
    };
    let own = with_service().variable("FF_NETWORK_PER_BUILD", "true");
    assert_eq!(of(own), (named("runner-abcdefghi-42-1-88213"), true));
    let given = |mode: &str| {
        let docker = format!("network_mode = \"{mode}\"");
        of(with_service().variable("FF_NETWORK_PER_BUILD", "true").docker(&docker))
    };
    assert_eq!(given("ours"), (named("ours"), false));
    for mode in ["host", "none", "bridge", "container:x"] {
        let unnamed = || (mode.to_owned(), None);
        assert_eq!(given(mode), ([unnamed(), unnamed(), unnamed()], false), "{mode}");
    }
}

#[test]
fn docker_116_118_the_jobs_network_is_as_the_settings_say() {
    let case = |docker: &str| Case::new().variable("FF_NETWORK_PER_BUILD", "true").docker(docker);
    let request = |case: &Case| {
        let plan = case.plan();
        let NetworkPlan::Own { name, mtu, ipv6 } = &plan.network else { panic!("none") };
        assert_eq!(plan.variables.value("CI_BUILD_NETWORK_NAME"), Some(name.as_str()));
        super::network(&plan, name, *mtu, *ipv6)
    };
    let plain = request(&case(""));
    assert_eq!((plain.enable_ipv6, plain.options.unwrap().len()), (Some(false), 0));
    let set = request(&case("enable_ipv6 = true\nnetwork_mtu = 1400"));
    assert_eq!(set.enable_ipv6, Some(true));
    assert_eq!(set.options.unwrap()["com.docker.network.driver.mtu"], "1400");
    let plan = Case::new().docker("network_mode = \"ours\"").plan();
    assert_eq!(plan.variables.value("CI_BUILD_NETWORK_NAME"), None);
}

#[test]
fn docker_95_113_114_volumes_are_everywhere_and_each_has_its_tmpfs() {
    let case = with_service().docker(
        "volumes = [\"/host:/dst:ro\", \"/keep\"]\nvolume_driver = \"nfs\"\n\
         volumes_from = [\"data\"]\n\
         [runners.docker.volume_driver_ops]\nshare = \"x\"\n\
         [runners.docker.tmpfs]\n\"/run\" = \"rw\"\n\
         [runners.docker.services_tmpfs]\n\"/data\" = \"ro\"",
    );
    for body in all(&case) {
        let is_service = label(&body, "type") == Some("service");
        let host = host(body);
        assert_eq!(host.binds.unwrap(), ["/host:/dst:ro"]);
        let mounts = host.mounts.unwrap();
        let targets: Vec<_> = mounts.iter().map(|m| m.target.as_deref().unwrap()).collect();
        assert_eq!(targets, ["/keep", "/builds"]);
        for mount in &mounts {
            assert_eq!(mount.typ, Some(MountType::VOLUME));
            let options = mount.volume_options.as_ref().unwrap();
            let driver = options.driver_config.as_ref().unwrap();
            assert_eq!(driver.name.as_deref(), Some("nfs"));
            assert_eq!(driver.options.as_ref().unwrap()["share"], "x");
        }
        let (path, options) = if is_service { ("/data", "ro") } else { ("/run", "rw") };
        let tmpfs = host.tmpfs.unwrap();
        assert_eq!((tmpfs.len(), tmpfs[path].as_str()), (1, options));
        let from = (!is_service).then(|| vec!["data".to_owned()]);
        assert_eq!(host.volumes_from, from);
    }
}

#[test]
fn docker_97_98_each_container_has_its_own_privileges() {
    let of =
        |docker: &str| all(&with_service().docker(docker)).map(|b| host(b).privileged.unwrap());
    assert_eq!(of(""), [false, false, false]);
    assert_eq!(of("privileged = true"), [true, true, true]);
    assert_eq!(of("privileged = true\nservices_privileged = false"), [true, true, false]);
    assert_eq!(of("services_privileged = true"), [false, false, true]);
    let lists = "privileged = true\nallowed_privileged_images = [\"docker:*\"]";
    assert_eq!(of(lists), [false, false, true]);
}

#[test]
fn init_is_the_flags_to_ask_for() {
    let of = |case: Case| all(&case).map(|body| host(body).init);
    assert_eq!(of(with_service()), [None; 3]);
    let on = with_service().variable("FF_USE_INIT_WITH_DOCKER_EXECUTOR", "1");
    assert_eq!(of(on), [Some(true), None, Some(true)]);
}

#[test]
fn gpus_are_all_of_them_a_count_or_devices() {
    let of = |text: &str| {
        let request = super::gpus(text)?.remove(0);
        Some((request.count, request.device_ids))
    };
    let ids = |list: &[&str]| Some(list.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
    assert_eq!(of(" "), None);
    assert_eq!(of("all"), Some((Some(-1), None)));
    assert_eq!(of("2"), Some((Some(2), None)));
    assert_eq!(of("\"device=0,GPU-x\""), Some((Some(0), ids(&["0", "GPU-x"]))));
}

fn with_dind(docker: &str) -> Case {
    Case::new()
        .with("services", json!([{"name": "docker:dind"}, {"name": "redis:7"}]))
        .variable("FF_NETWORK_PER_BUILD", "true")
        .docker(docker)
}

/// Where a volume of the body with this destination comes from.
fn source(body: &ContainerCreateBody, destination: &str) -> Option<String> {
    let mounts = body.host_config.as_ref()?.mounts.as_ref()?;
    mounts.iter().find(|m| m.target.as_deref() == Some(destination))?.source.clone()
}

#[test]
fn the_daemons_socket_is_for_the_daemon_and_the_jobs_container_alone() {
    let case = with_dind("group_add = [\"audio\"]");
    let [build, helper, daemon] = all(&case);
    let volume = source(&build, "/run/longshore");
    assert!(volume.is_some());
    assert_eq!(source(&daemon, "/run/longshore"), volume);
    assert_eq!(source(&helper, "/run/longshore"), None);
    let plan = case.plan();
    let other = super::service(&plan, &case.config(), &plan.services[1], "sha256:service", None);
    assert_eq!(source(&other, "/run/longshore"), None);
    assert!(plan.mounts.temporary().any(|made| Some(&made.name) == volume.as_ref()));
    // Whoever the job's user is.
    assert_eq!(host(build).group_add.unwrap(), ["audio", "2375"]);
    assert_eq!(host(helper).group_add.unwrap(), ["audio"]);
    let none = with_service();
    assert_eq!(host(build_of(&none)).group_add, None);
}

#[test]
fn in_a_shared_network_the_daemon_is_what_the_job_would_be() {
    let case = with_dind(
        "hostname = \"worker\"\nmac_address = \"92:d0:c6:0a:29:33\"\nlinks = [\"old:old\"]\n\
         dns = [\"10.0.0.53\"]\nextra_hosts = [\"gitlab:10.0.0.1\"]\n\
         [runners.docker.dind]\nnetwork = \"shared\"",
    );
    let plan = case.plan();
    let build = build_of(&case);
    assert_eq!((build.hostname, build.networking_config), (None, None));
    let joined = build.host_config.unwrap();
    let mode = format!("container:{}", plan.services[0].container);
    assert_eq!(joined.network_mode, Some(mode));
    assert_eq!((joined.dns, joined.extra_hosts, joined.links), (None, None, None));

    let mut daemon = service_of(&case);
    let config = case.config();
    super::own_network(&mut daemon, &plan, config.docker(), &plan.services[0], &[]);
    assert_eq!(daemon.hostname.as_deref(), Some("worker"));
    let endpoints = daemon.networking_config.unwrap().endpoints_config.unwrap();
    let endpoint = &endpoints[plan.network.mode()];
    let aliases = endpoint.aliases.as_ref().unwrap();
    assert_eq!(*aliases, ["docker", "build", &plan.names.build]);
    assert_eq!(endpoint.mac_address.as_deref(), Some("92:d0:c6:0a:29:33"));
    let host = daemon.host_config.unwrap();
    assert_eq!(host.network_mode.as_deref(), Some(plan.network.mode()));
    assert_eq!(host.dns.unwrap(), ["10.0.0.53"]);
    assert_eq!(host.extra_hosts.unwrap(), ["gitlab:10.0.0.1"]);
    assert_eq!(host.links.unwrap(), ["old:old"]);
}

#[test]
fn without_names_a_shared_network_has_them_in_the_daemons_hosts() {
    let case = with_dind("network_mode = \"bridge\"\n[runners.docker.dind]\nnetwork = \"shared\"");
    let plan = case.plan();
    let mut daemon = service_of(&case);
    let others = ["redis:172.17.0.3".to_owned()];
    super::own_network(&mut daemon, &plan, case.config().docker(), &plan.services[0], &others);
    let hosts = host(daemon).extra_hosts.unwrap();
    assert_eq!(hosts, ["redis:172.17.0.3", "docker:127.0.0.1"]);
}

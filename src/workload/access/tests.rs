use super::{inputs::Inputs, plan::decide, *};
use crate::{
    config::{ContainerConfig, DindConfig, DindMode, DindNetwork, SocketBuild, SocketMode},
    workload::{
        NetworkPlan,
        service::ServicePlan,
        variable::{Variable, Variables},
    },
};

/// A job's services and variables, and what the runner says.
struct Case {
    services: Vec<ServicePlan>,
    variables: Variables,
    network: NetworkPlan,
    containers: ContainerConfig,
}

fn service(name: &str, aliases: &[&str]) -> ServicePlan {
    ServicePlan {
        container: format!("c-{name}"),
        written: name.to_owned(),
        image: name.to_owned(),
        name: name.to_owned(),
        version: String::new(),
        aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        policies: Vec::new(),
        platform: None,
        command: Vec::new(),
        entrypoint: Vec::new(),
        environment: Vec::new(),
        declared: Vec::new(),
        privileged: false,
        unconfined: false,
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// A job with `services: [docker:dind]` and these variables, which services see.
fn dind(variables: &[(&str, &str)]) -> Case {
    let mut case = Case {
        services: vec![service("docker:dind", &["docker"])],
        variables: Variables::default(),
        network: NetworkPlan::Own { name: "n".to_owned(), mtu: 0, ipv6: false },
        containers: ContainerConfig::default(),
    };
    for (key, value) in variables {
        let (key, value) = ((*key).to_owned(), (*value).to_owned());
        case.services[0].environment.push(format!("{key}={value}"));
        case.variables.push(Variable { key, value, ..Variable::default() });
    }
    case
}

/// The variable by which a rootless image opens ports.
const ROOTLESSKIT: &str = "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS";

impl Case {
    fn request(&self) -> Request<'_> {
        Request { containers: &self.containers, network: &self.network, warm: None }
    }

    fn decide(&self) -> Result<Access, AccessError> {
        let variables = self.variables.expand("");
        decide(&Inputs {
            services: &self.services,
            variables: &variables,
            network: &self.network,
            containers: &self.containers,
        })
    }

    fn daemon(&self) -> DindPlan {
        match self.decide() {
            Ok(Access::Dind(daemon)) => *daemon,
            other => panic!("{other:?}"),
        }
    }

    /// The service as it will run.
    fn applied(&self) -> ServicePlan {
        let mut services = self.services.clone();
        self.daemon().apply(&mut services);
        services.remove(0)
    }
}

/// Flags of every daemon, for the socket that it shares with its job.
const SHARED: [&str; 2] = ["--host=unix:///run/longshore/docker.sock", "--group=2375"];

/// The command without these.
fn but_for_the_socket(mut command: Vec<String>) -> Vec<String> {
    command.retain(|word| !SHARED.contains(&word.as_str()));
    command
}

fn variables(daemon: &DindPlan) -> Vec<String> {
    daemon.variables.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[test]
fn a_job_that_says_nothing_more_gets_a_daemon_with_tls_under_the_usual_name() {
    let case = dind(&[]);
    let daemon = case.daemon();
    assert_eq!(
        variables(&daemon),
        ["DOCKER_HOST=tcp://docker:2376", "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=/certs/client"]
    );
    assert_eq!(daemon.notes, [""; 0]);
    let service = case.applied();
    assert!(service.privileged && !service.unconfined);
    assert_eq!(service.variable("DOCKER_TLS_CERTDIR"), Some("/certs"));
    assert_eq!(service.command, [&["--host=tcp://0.0.0.0:2375"], &SHARED[..]].concat());
    assert_eq!(
        case.decide().unwrap().to_string(),
        "Docker for this job: a daemon of its own (docker:dind) at tcp://docker:2376, with TLS"
    );
}

#[test]
fn docker_100_the_documented_variables_are_taken_as_they_are() {
    let daemon = dind(&[
        ("DOCKER_HOST", "tcp://docker:2376"),
        ("DOCKER_TLS_CERTDIR", "/certs"),
        ("DOCKER_TLS_VERIFY", "1"),
        ("DOCKER_CERT_PATH", "/certs/client"),
    ])
    .daemon();
    assert_eq!((daemon.port, variables(&daemon), daemon.notes.len()), (2376, vec![], 0));
    let names = daemon.certificates.unwrap().names;
    assert_eq!(names, ["docker", "localhost", "127.0.0.1", "::1", "c-docker:dind"]);
}

#[test]
fn docker_101_an_empty_directory_of_certificates_turns_tls_off_without_a_wait() {
    for given in [
        &[("DOCKER_TLS_CERTDIR", "")][..],
        &[("DOCKER_TLS_CERTDIR", ""), ("DOCKER_HOST", "tcp://docker:2375")],
    ] {
        let case = dind(given);
        let daemon = case.daemon();
        assert_eq!((daemon.port, daemon.certificates.is_none()), (2375, true));
        assert_eq!(but_for_the_socket(case.applied().command), ["--tls=false"]);
        assert_eq!(daemon.notes, [""; 0]);
    }
    assert_eq!(
        variables(&dind(&[("DOCKER_TLS_CERTDIR", "")]).daemon()),
        ["DOCKER_HOST=tcp://docker:2375"]
    );
}

#[test]
fn the_port_without_tls_is_believed_where_nothing_says_more() {
    let case = dind(&[("DOCKER_HOST", "tcp://docker:2375")]);
    let access = case.decide().unwrap();
    assert_eq!(
        access.to_string(),
        "Docker for this job: a daemon of its own (docker:dind) at tcp://docker:2375, without \
         TLS, as DOCKER_HOST has the port without it"
    );
    assert_eq!(case.applied().variable("DOCKER_TLS_CERTDIR"), Some(""));
    // The daemon reads it too, and would want certificates that nobody has.
    let off = dind(&[("DOCKER_TLS_CERTDIR", ""), ("DOCKER_TLS_VERIFY", "1")]);
    assert_eq!(off.applied().variable("DOCKER_TLS_VERIFY"), None);
    assert_eq!(
        off.daemon().notes,
        ["DOCKER_TLS_VERIFY is set, but DOCKER_TLS_CERTDIR is empty, and so the job's daemon has \
          no TLS: remove one of the two"]
    );
}

#[test]
fn the_port_without_tls_has_it_where_the_job_turns_it_on() {
    let case = dind(&[("DOCKER_HOST", "tcp://docker:2375"), ("DOCKER_TLS_CERTDIR", "/c/")]);
    let daemon = case.daemon();
    assert_eq!(daemon.port, 2375);
    assert_eq!(but_for_the_socket(case.applied().command), ["--host=tcp://0.0.0.0:2375"]);
    assert_eq!(variables(&daemon), ["DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH=/c/client"]);
    assert_eq!(
        daemon.notes,
        ["DOCKER_HOST has the port without TLS, but DOCKER_TLS_CERTDIR is set: the job's daemon \
          has TLS on port 2375 too, and DOCKER_TLS_VERIFY is set for it"]
    );
}

#[test]
fn a_port_that_nobody_expects_is_listened_on_too() {
    let case = dind(&[("DOCKER_HOST", "tcp://docker:2376"), ("DOCKER_TLS_CERTDIR", "")]);
    let command = but_for_the_socket(case.applied().command);
    assert_eq!(command, ["--tls=false", "--host=tcp://0.0.0.0:2376"]);
}

#[test]
fn an_address_that_is_not_the_daemons_is_said_with_the_variables_name() {
    for host in ["tcp://localhost:2375", "unix://docker.sock", "tcp://docker:x"] {
        let daemon = dind(&[("DOCKER_HOST", host)]).daemon();
        assert_eq!(variables(&daemon), [""; 0]);
        let wanted = format!(
            "DOCKER_HOST is {host}, which is not the job's daemon: that is at tcp://docker:2376; \
             without the variable it is found"
        );
        assert_eq!(daemon.notes, [wanted]);
    }
    // Docker takes an address without a scheme for one of tcp.
    let daemon = dind(&[("DOCKER_HOST", "docker:2375")]).daemon();
    assert_eq!((daemon.port, daemon.certificates, daemon.notes), (2375, None, vec![]));
    let daemon = dind(&[("DOCKER_CERT_PATH", "/elsewhere")]).daemon();
    assert_eq!(daemon.notes.len(), 1);
    assert!(daemon.notes[0].starts_with("DOCKER_CERT_PATH is /elsewhere, but"));
}

#[test]
fn its_own_aliases_are_names_of_the_daemon_too() {
    let mut case = dind(&[("DOCKER_HOST", "tcp://builder:2376")]);
    case.containers.dind.images = words(&["**/docker:*dind*"]);
    case.services[0] = service("reg.example/docker:24-dind", &["reg.example__docker", "builder"]);
    let daemon = case.daemon();
    assert_eq!(daemon.aliases, ["reg.example__docker", "builder", "docker"]);
    assert_eq!((daemon.port, daemon.notes.len()), (2376, 0));
    assert!(daemon.certificates.unwrap().names.contains(&"builder".to_owned()));
    // Another service may have the usual name.
    case.services.push(service("other", &["docker"]));
    assert_eq!(case.daemon().aliases, ["reg.example__docker", "builder"]);
    assert_eq!(case.daemon().host, "reg.example__docker");
}

#[test]
fn the_settings_say_which_images_are_daemons_and_what_becomes_of_them() {
    let is_daemon = |name: &str| {
        let mut case = dind(&[]);
        case.services[0] = service(name, &["x"]);
        case.decide().unwrap() != Access::None
    };
    for name in [
        "docker:dind",
        "docker:29-dind",
        "docker:28.5.1-dind-alpine3.22",
        "docker:dind-rootless",
        "docker.io/library/docker:dind",
        "docker:dind@sha256:0123",
    ] {
        assert!(is_daemon(name), "{name}");
    }
    // What others push is no daemon of ours: it would be privileged.
    let others = "gitlab.example:443/group/dependency_proxy/containers/docker:29-dind";
    for name in ["docker:latest", "docker:29-cli", "redis", "my/dind", "postgres:dind", others] {
        assert!(!is_daemon(name), "{name}");
    }
    let mut case = dind(&[]);
    case.containers.dind = DindConfig { mode: DindMode::Refuse, ..DindConfig::default() };
    assert_eq!(
        case.decide().unwrap_err().to_string(),
        "the service docker:dind is a Docker daemon, and this runner gives jobs none \
         ([runners.docker.dind] mode = \"refuse\")"
    );
}

#[test]
fn docker_98_99_what_forbids_privileged_services_forbids_the_daemon() {
    let mut case = dind(&[]);
    case.containers.privileges.allowed_services = words(&["docker:29-dind"]);
    let error = case.decide().unwrap_err().to_string();
    assert!(error.contains("[runners.docker] allowed_privileged_services forbids it"), "{error}");
    case.containers.privileges.allowed_services = words(&["docker:*"]);
    assert!(case.daemon().privileged);
    case.containers.privileges.services = Some(false);
    let error = case.decide().unwrap_err().to_string();
    assert!(error.contains("services_privileged = false forbids it"), "{error}");
    // Neither is needed here.
    case.containers.runtime = Some("sysbox-runc".to_owned());
    assert!(!case.daemon().privileged);
}

#[test]
fn a_rootless_daemon_is_privileged_only_where_services_are() {
    let mut case = dind(&[]);
    case.services[0] = service("docker:dind-rootless", &["docker"]);
    let daemon = case.daemon();
    assert!(daemon.unconfined && !daemon.privileged);
    assert_eq!(daemon.data_root, "/home/rootless/.local/share/docker");
    assert_eq!(daemon.certificates.as_ref().unwrap().owner, 1000);
    assert_eq!(case.applied().variable(ROOTLESSKIT), Some("-p 0.0.0.0:2375:2375/tcp"));
    // Its own group inside is root's.
    assert_eq!(case.applied().command[1..], [SHARED[0], "--group=0"]);
    let socket = daemon.socket.unwrap();
    assert_eq!((socket.owner, socket.group), (1000, 1000));
    case.services[0].privileged = true;
    assert!(case.daemon().privileged && !case.daemon().unconfined);
}

#[test]
fn every_port_of_a_rootless_daemon_is_opened_once_beside_the_jobs_own() {
    let opened = |command: &[&str], own: Option<&str>| {
        let mut case = dind(&[("DOCKER_HOST", "tcp://docker:2377")]);
        case.services[0] = service("docker:dind-rootless", &["docker"]);
        case.services[0].command = words(command);
        case.services[0].environment.extend(own.map(|own| format!("{ROOTLESSKIT}={own}")));
        case.applied().variable(ROOTLESSKIT).unwrap().to_owned()
    };
    let (asked, plain) = ("-p 0.0.0.0:2377:2377/tcp", "-p 0.0.0.0:2375:2375/tcp");
    assert_eq!(opened(&[], None), format!("{asked} {plain}"));
    // The image does not know what the job's own flags are.
    assert_eq!(opened(&["--host=tcp://0.0.0.0:2377"], None), format!("{asked} {plain}"));
    assert_eq!(opened(&[], Some("--debug")), format!("--debug {asked} {plain}"));
    assert_eq!(opened(&[], Some(asked)), format!("{asked} {plain}"));
}

#[test]
fn docker_94_the_jobs_command_is_kept_and_flags_follow_it() {
    let command = |entrypoint: &[&str], command: &[&str]| {
        let mut case = dind(&[("DOCKER_TLS_CERTDIR", "")]);
        case.services[0].entrypoint = words(entrypoint);
        case.services[0].command = words(command);
        (case.daemon().is_understood, but_for_the_socket(case.applied().command))
    };
    assert_eq!(command(&[], &["--mtu=1400"]), (true, words(&["--mtu=1400", "--tls=false"])));
    assert_eq!(command(&[], &["--tls=false"]), (true, words(&["--tls=false"])));
    let documented = command(&["env", "-u", "DOCKER_HOST"], &["dockerd-entrypoint.sh", "--debug"]);
    assert_eq!(documented, (true, words(&["dockerd-entrypoint.sh", "--debug", "--tls=false"])));
    assert_eq!(command(&["dockerd-entrypoint.sh"], &[]), (true, words(&["--tls=false"])));
    for own in [&["dockerd", "--host=fd://"][..], &["sh", "-c", "dockerd-entrypoint.sh"]] {
        assert_eq!(command(&[], own), (false, words(own)));
    }
    assert_eq!(command(&["/my/start"], &[]), (false, vec![]));
}

#[test]
fn a_command_that_turns_tls_off_is_believed() {
    let mut case = dind(&[]);
    case.services[0].command = words(&["--tls=false"]);
    assert!(case.daemon().certificates.is_none());
    assert_eq!(case.applied().variable("DOCKER_TLS_CERTDIR"), Some(""));
}

#[test]
fn registries_and_ipv6_are_passed_on_where_nothing_says_otherwise() {
    let mut case = dind(&[]);
    case.containers.dind.registry_mirrors = words(&["https://m.example"]);
    case.containers.dind.insecure_registries = words(&["r:5000"]);
    case.network = NetworkPlan::Own { name: "n".to_owned(), mtu: 1400, ipv6: true };
    let all = [
        "--host=tcp://0.0.0.0:2375",
        "--registry-mirror=https://m.example",
        "--insecure-registry=r:5000",
        "--ipv6",
        "--fixed-cidr-v6=fd6c:6f6e:6773::/64",
    ];
    assert_eq!(but_for_the_socket(case.applied().command), all);
    case.services[0].command = words(&["--mtu", "1300", "--host=tcp://0.0.0.0:2375", "--ipv6"]);
    let own = but_for_the_socket(case.applied().command).split_off(4);
    assert_eq!(own, ["--registry-mirror=https://m.example", "--insecure-registry=r:5000"]);
    // The daemon does not start when a file and a flag say the same.
    case.containers.volumes.entries = words(&["/srv/daemon.json:/etc/docker/daemon.json:ro"]);
    assert_eq!(case.applied().command[4..], SHARED[..1]);
}

#[test]
fn in_the_hosts_network_the_daemon_is_at_the_hosts_own_address() {
    let mut case = dind(&[]);
    case.network = NetworkPlan::Given("host".to_owned());
    assert_eq!(variables(&case.daemon())[0], "DOCKER_HOST=tcp://127.0.0.1:2376");
}

/// A job without services on a runner that mounts the engine's socket.
fn dood(variables: &[(&str, &str)]) -> Case {
    let mut case = dind(variables);
    case.services.clear();
    case.containers.volumes.entries = words(&["/cache", "/run/docker.sock:/var/run/docker.sock"]);
    case
}

impl Case {
    fn socket(&self) -> Socket {
        match self.decide().unwrap() {
            Access::Socket(socket) => socket,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn docker_102_a_socket_that_volumes_mounts_is_guarded_unless_raw_is_written() {
    let mut case = dood(&[]);
    assert_eq!(
        case.decide().unwrap().to_string(),
        "Docker for this job: the engine's own socket at /var/run/docker.sock, guarded, as the \
         runner's configuration says"
    );
    assert!(case.containers.guards_sockets());
    case.containers.socket.mode = SocketMode::Raw;
    assert!(case.decide().unwrap().to_string().contains("which makes it root on its host"));
    assert!(!case.containers.guards_sockets() && case.decide().unwrap().is_raw());
    assert_eq!(case.socket().variables, []);
    case.containers.volumes.entries.clear();
    assert_eq!(case.decide().unwrap(), Access::None);
    case.containers.socket.mode = SocketMode::Off;
    assert_eq!(case.decide().unwrap(), Access::None);
    case.containers.socket.mode = SocketMode::Guarded;
    assert_eq!(case.socket().paths, ["/var/run/docker.sock"]);
}

#[test]
fn a_guarded_job_finds_its_socket_and_keeps_what_it_says_itself() {
    let socket = dood(&[]).socket();
    let wanted = [
        ("DOCKER_HOST", Some("unix:///var/run/docker.sock".to_owned())),
        ("DOCKER_BUILDKIT", Some("0".to_owned())),
        ("TESTCONTAINERS_HOST_OVERRIDE", Some("docker".to_owned())),
        ("TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE", Some("/var/run/docker.sock".to_owned())),
        ("TESTCONTAINERS_RYUK_CONTAINER_PRIVILEGED", Some("false".to_owned())),
    ];
    assert_eq!(socket.variables, wanted);
    let own = dood(&[("DOCKER_HOST", "tcp://elsewhere:2375"), ("DOCKER_BUILDKIT", "1")]).socket();
    assert_eq!(own.variables, wanted[2..]);
}

#[test]
fn a_guarded_job_finds_its_buildkit_and_keeps_builders_of_its_own() {
    let with = |variables: &[(&str, &str)]| {
        let mut case = dood(variables);
        case.containers.socket.build = SocketBuild::Sidecar;
        case
    };
    let case = with(&[]);
    let access = case.decide().unwrap();
    assert_eq!(access.buildkit().unwrap().image, "moby/buildkit:rootless");
    assert_eq!(
        access.to_string(),
        "Docker for this job: the engine's own socket at /var/run/docker.sock, guarded, as the \
         runner's configuration says; BuildKit of its own at unix:///run/longshore/buildkitd.sock"
    );
    let wanted = [
        ("BUILDKIT_HOST", Some("unix:///run/longshore/buildkitd.sock".to_owned())),
        ("BUILDX_CONFIG", Some("/run/longshore/buildx".to_owned())),
        ("BUILDX_BUILDER", Some("longshore".to_owned())),
    ];
    let variables = case.socket().variables;
    assert_eq!(variables[1..4], wanted);
    assert!(variables.iter().all(|(name, _)| *name != "DOCKER_BUILDKIT"));

    // The builder is in the directory alone that is not the job's.
    let own = with(&[("BUILDX_CONFIG", "/own")]).socket().variables;
    assert!(own.iter().all(|(name, _)| !name.starts_with("BUILDX_")), "{own:?}");
    let own = with(&[("BUILDX_BUILDER", "own")]).socket().variables;
    assert!(own.iter().all(|(name, _)| *name != "BUILDX_BUILDER"), "{own:?}");

    let mut raw = with(&[]);
    raw.containers.socket.mode = SocketMode::Raw;
    assert_eq!(raw.socket().buildkit, None);
    let mut dind = dind(&[]);
    dind.containers.socket.build = SocketBuild::Sidecar;
    assert_eq!(dind.decide().unwrap().buildkit(), None);
}

#[test]
fn a_service_of_the_daemons_name_keeps_it_beside_a_guarded_socket() {
    let mut case = dood(&[]);
    case.services.push(service("example/other", &["other", "docker"]));
    let socket = case.socket();
    assert_eq!(socket.names, [""; 0]);
    assert!(socket.variables.iter().all(|(name, _)| *name != "TESTCONTAINERS_HOST_OVERRIDE"));
}

#[test]
fn a_daemon_that_is_mapped_to_the_socket_leaves_the_job_as_it_is() {
    let mut case = dind(&[
        ("DOCKER_HOST", "tcp://docker:2376"),
        ("DOCKER_TLS_VERIFY", "1"),
        ("DOCKER_TLS_CERTDIR", "/certs"),
        ("DOCKER_CERT_PATH", "/certs/client"),
    ]);
    case.containers.dind.mode = DindMode::Socket;
    case.services.push(service("redis:7", &["redis"]));
    let mut variables = case.variables.expand("");
    let mut notes = Vec::new();
    let mut services = case.services.clone();
    let access = plan(&case.request(), &mut services, &mut variables, &mut notes).unwrap();
    assert_eq!(
        access.to_string(),
        "Docker for this job: the engine's own socket at /var/run/docker.sock, guarded, in place \
         of the service docker:dind"
    );
    assert_eq!(services.len(), 1);
    assert_eq!(variables.value("DOCKER_HOST"), Some("unix:///var/run/docker.sock"));
    for gone in ["DOCKER_TLS_VERIFY", "DOCKER_TLS_CERTDIR", "DOCKER_CERT_PATH"] {
        assert_eq!(variables.value(gone), None, "{gone}");
    }
    assert_eq!(access.guarded().unwrap().names, ["docker"]);
    assert!(notes[0].contains("DOCKER_HOST is tcp://docker:2376 in this job"), "{notes:?}");
}

#[test]
fn a_unix_socket_in_docker_host_is_the_daemons_own() {
    for (host, links) in [
        ("unix:///var/run/docker.sock", &["/var/run/docker.sock"][..]),
        ("unix:///run/longshore/docker.sock", &["/var/run/docker.sock"]),
        ("unix:///tmp/d.sock", &["/var/run/docker.sock", "/tmp/d.sock"]),
    ] {
        let case = dind(&[("DOCKER_HOST", host)]);
        let daemon = case.daemon();
        assert_eq!(daemon.socket.as_ref().unwrap().links, links, "{host}");
        assert_eq!((variables(&daemon), &daemon.notes[..]), (vec![], &[][..]), "{host}");
        assert_eq!(
            case.decide().unwrap().to_string(),
            format!(
                "Docker for this job: a daemon of its own (docker:dind) at {host}, as DOCKER_HOST \
                 has it"
            )
        );
        // The image's entrypoint would have the daemon listen there instead.
        assert_eq!(case.applied().variable("DOCKER_HOST"), None);
    }
    let daemon = dind(&[("DOCKER_HOST", "unix://")]).daemon();
    assert_eq!(daemon.socket.as_ref().and_then(SocketPlan::asked), Some("/var/run/docker.sock"));
    let daemon = dind(&[("DOCKER_HOST", "unix:///a.sock"), ("DOCKER_TLS_VERIFY", "1")]).daemon();
    assert_eq!(
        daemon.notes,
        ["DOCKER_TLS_VERIFY is set, but DOCKER_HOST is a unix socket, which has no TLS: docker \
          fails with both, so remove one of the two"]
    );
}

#[test]
fn what_the_operator_mounts_is_not_taken_for_the_daemons_socket() {
    for volume in ["/run/docker.sock:/var/run/docker.sock", "/var/run:/run/", "/var/run"] {
        let mut case = dind(&[("DOCKER_HOST", "unix:///var/run/docker.sock")]);
        case.containers.volumes.entries = words(&[volume]);
        let daemon = case.daemon();
        assert_eq!(daemon.socket.as_ref().unwrap().links, [""; 0], "{volume}");
        assert!(daemon.notes[0].contains("which is not the job's daemon"), "{volume}");
    }
}

#[test]
fn a_command_that_is_not_understood_shares_no_socket() {
    let mut case = dind(&[("DOCKER_HOST", "unix:///var/run/docker.sock")]);
    case.services[0].command = words(&["dockerd", "--host=fd://"]);
    assert_eq!(case.daemon().socket, None);
    assert!(case.daemon().notes[0].contains("which is not the job's daemon"));
    // A group of the job's own is its own.
    let mut case = dind(&[]);
    case.services[0].command = words(&["--group=docker"]);
    assert_eq!(case.applied().command[2..], SHARED[..1]);
}

#[test]
fn in_a_shared_network_the_daemon_is_local_too() {
    let mut case = dind(&[("DOCKER_HOST", "tcp://localhost:2375"), ("DOCKER_TLS_CERTDIR", "")]);
    assert_eq!(case.daemon().notes.len(), 1);
    case.containers.dind.network = DindNetwork::Shared;
    let daemon = case.daemon();
    assert_eq!(daemon.network, DindNetwork::Shared);
    assert_eq!((daemon.port, &daemon.notes[..], variables(&daemon)), (2375, &[][..], vec![]));
    // There is nothing to share where all are in one network.
    case.network = NetworkPlan::Given("host".to_owned());
    let daemon = case.daemon();
    assert_eq!((daemon.network, daemon.port), (DindNetwork::Own, 2375));
    assert_eq!(daemon.notes, [""; 0]);
}

#[test]
fn the_mtu_is_for_all_of_the_daemons_networks_where_it_knows_how() {
    let flags = |case: &Case, outer, version: &str| {
        let networks = case.daemon().networks.unwrap();
        let outer = networks.outer().and(outer);
        networks.flags(outer, &[format!("DOCKER_VERSION={version}")])
    };
    let all = "--default-network-opt=bridge=com.docker.network.driver.mtu=1400";
    // What the engine's network has, if it is not the usual.
    let mut case = dind(&[]);
    assert_eq!(case.daemon().networks.unwrap().outer(), Some("bridge"));
    assert_eq!(flags(&case, Some(1400), "28.5.1"), ["--mtu=1400", all]);
    assert_eq!(flags(&case, Some(1400), "24.0.0-rc.1"), ["--mtu=1400", all]);
    for older in ["23.0.6", "", "dev"] {
        assert_eq!(flags(&case, Some(1400), older), ["--mtu=1400"], "{older}");
    }
    assert_eq!(case.daemon().networks.unwrap().flags(Some(1400), &[]), ["--mtu=1400"]);
    assert_eq!(flags(&case, Some(1500), "28.0.0"), [""; 0]);
    assert_eq!(flags(&case, None, "28.0.0"), [""; 0]);
    // The settings' own stands above it, and the job's above all.
    case.containers.network.mtu = 1400;
    assert_eq!(flags(&case, Some(9000), "28.0.0"), ["--mtu=1400", all]);
    for own in [&["--mtu=1300"][..], &["--mtu", "1300"]] {
        case.services[0].command = words(own);
        assert_eq!(flags(&case, Some(9000), "28.0.0"), [all.replace("1400", "1300")]);
    }
    case.services[0].command = words(&["--default-network-opt=bridge=a=b"]);
    assert_eq!(case.daemon().networks, None);
    // Networks that somebody else made are asked themselves.
    for (mode, outer) in [("corp", Some("corp")), ("default", Some("bridge")), ("host", None)] {
        let mut case = dind(&[]);
        case.network = NetworkPlan::Given(mode.to_owned());
        assert_eq!(case.daemon().networks.unwrap().outer(), outer, "{mode}");
    }
    // IPv6 of later networks too.
    let mut case = dind(&[]);
    case.network = NetworkPlan::Own { name: "n".to_owned(), mtu: 0, ipv6: true };
    let ipv6 = "--default-network-opt=bridge=com.docker.network.enable_ipv6=true";
    assert_eq!(flags(&case, None, "28.0.0"), [ipv6]);
    assert_eq!(flags(&case, None, "27.5.1"), [""; 0]);
}

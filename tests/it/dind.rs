//! Jobs with a Docker daemon of their own.

use serde_json::{Value, json};

use crate::{
    counter::Counter,
    crash::killed_at_any_moment,
    engine::{UNTIL_GO, engine},
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
};

/// A job beside a daemon.
fn docker_job(script: &[&str]) -> JobSpec {
    engine().needs_dind();
    job(script).image("docker:cli").service(json!({"name": "docker:dind"}))
}

/// Builds an image with `docker build`, the classic way, without a registry.
const BUILD: [&str; 3] = [
    "mkdir ctx && cp /bin/true ctx/ && printf 'FROM scratch\\nCOPY true /true\\n' > ctx/Dockerfile",
    "DOCKER_BUILDKIT=0 docker build -t inner:1 ctx",
    "docker images --format '{{.Repository}}:{{.Tag}}'",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_only_names_the_service_has_docker_and_no_privileges() {
    let case = Case::start().await;
    let look = [
        "grep CapEff /proc/self/status",
        "test ! -e /dev/kmsg -a ! -e /dev/mem && echo confined",
        "echo $DOCKER_HOST $DOCKER_TLS_VERIFY $DOCKER_CERT_PATH",
    ];
    let ended = case.run(docker_job(&[&BUILD[..], &look].concat())).await;
    ended.assert_success();
    ended.assert_lines(&["inner:1", "confined", "tcp://docker:2376 1 /certs/client"]);
    // The engine's default set (moby, `oci/caps/defaults.go`).
    assert!(ended.story().contains("00000000a80425fb"), "{}", ended.story());
    assert!(ended.story().contains(
        "Docker for this job: a daemon of its own (docker:dind) at tcp://docker:2376, with TLS"
    ));
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_100_the_documented_recipe_with_tls_works() {
    let docker = "privileged = true";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let spec = docker_job(&[&BUILD[..], &["stat -c %a $DOCKER_CERT_PATH/key.pem"]].concat())
        .variable("DOCKER_TLS_CERTDIR", "/certs")
        .variable("DOCKER_HOST", "tcp://docker:2376")
        .variable("DOCKER_TLS_VERIFY", "1")
        .variable("DOCKER_CERT_PATH", "$DOCKER_TLS_CERTDIR/client");
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["inner:1", "644"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_101_a_daemon_without_tls_works_at_2375() {
    let case = Case::start().await;
    let spec = docker_job(&["docker info > /dev/null && echo answered", "echo $DOCKER_HOST"])
        .variable("DOCKER_TLS_CERTDIR", "");
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["answered", "tcp://docker:2375"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_without_tls_works_with_and_without_a_directory_of_certificates() {
    let case = Case::start().await;
    let script = ["docker info > /dev/null && echo answered"];
    let spec = || docker_job(&script).variable("DOCKER_HOST", "tcp://docker:2375");
    let (plain, contradicted) =
        tokio::join!(case.run(spec()), case.run(spec().variable("DOCKER_TLS_CERTDIR", "/certs")));
    plain.assert_success();
    plain.assert_lines(&["answered"]);
    assert!(plain.story().contains("without TLS, as DOCKER_HOST has the port without it"));
    contradicted.assert_success();
    contradicted.assert_lines(&["answered"]);
    assert!(contradicted.story().contains("DOCKER_TLS_CERTDIR is set"), "{}", contradicted.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_of_its_own_and_as_another_user_it_is_found_too() {
    let case =
        Case::with(Options { docker: "network_mode = \"bridge\"", ..Options::default() }).await;
    let spec = docker_job(&["id -u", "docker info > /dev/null && echo answered"]).set(
        "/image",
        json!({"name": "docker:cli", "executor_opts": {"docker": {"user": "65534"}}}),
    );
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["65534", "answered"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_fails_the_job_at_once_with_its_last_words() {
    let case = Case::start().await;
    engine().needs_dind();
    let spec =
        job(&["echo never"]).service(json!({"name": "docker:dind", "command": ["--no-such-flag"]}));
    let ended = case.run(spec).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_no_line("never");
    let story = ended.story();
    for wanted in [
        "unknown flag: --no-such-flag",
        "hint: a flag is wrong",
        "the job's Docker daemon (docker:dind) ended with exit code",
    ] {
        assert!(story.contains(wanted), "no `{wanted}` in:\n{story}");
    }
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_is_privileged_alone_and_reported_when_it_dies_under_a_script() {
    let case = Case::start().await;
    let script =
        ["echo started", "while docker version > /dev/null 2>&1; do sleep 0.1; done", "false"];
    let other = json!({"name": "busybox", "command": ["sleep", "600"]});
    let id = case.gitlab.submit(docker_job(&script).service(other));
    case.gitlab.until_output(id, "started").await;
    let things = engine().inspect(|line| line.contains(&id.to_string()));
    let is_privileged = |thing: &&Value| thing["HostConfig"]["Privileged"] == true;
    let privileged: Vec<_> = things.iter().filter(is_privileged).collect();
    let [daemon] = &privileged[..] else { panic!("{privileged:#?}") };
    assert!(daemon["Name"].as_str().unwrap().contains("-docker-"), "{daemon:#}");
    let containers = engine().running_containers(id);
    let mut names = containers.iter().filter_map(|line| line.split(' ').next());
    let daemon = names.find(|name| name.contains("-docker-"));
    engine().docker(&["kill", daemon.unwrap()]);
    let ended = case.gitlab.ended(id).await;
    ended.assert_contains("The job's Docker daemon (docker:dind) ended with exit code 137");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_late_fails_the_job() {
    let docker = "[runners.docker.dind]\nready_timeout = \"10ms\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let spec = docker_job(&["echo never"]);
    let ended = case.run(spec).await;
    ended.assert_failed("runner_system_failure", None);
    assert!(ended.story().contains("was not ready in 0.01s"), "{}", ended.story());
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_refuses_daemons_says_so() {
    let docker = "[runners.docker.dind]\nmode = \"refuse\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let ended = case.run(job(&["echo never"]).service(json!({"name": "docker:dind"}))).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    assert!(ended.story().contains("this runner gives jobs none"), "{}", ended.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_costs_three_starts_and_thirty_requests() {
    let counter = Counter::start(engine().socket());
    let options = Options { engine: Some(counter.host()), ..Options::default() };
    let case = Case::with(options).await;
    let warm = case.run(docker_job(&["true"])).await;
    warm.assert_success();
    engine().nothing_left_of(warm.id).await;
    let before = counter.count();
    let ended = case.run(docker_job(&["docker info > /dev/null"])).await;
    ended.assert_success();
    engine().nothing_left_of(ended.id).await;
    let count = counter.count().since(&before);
    assert!(count.starts() <= 3 && count.requests.len() <= 30, "{count:#?}");
}

/// What is left when only `DOCKER_HOST` and TLS are taken away: docker's own default.
const USUAL_SOCKET: &str =
    "(unset DOCKER_HOST DOCKER_TLS_VERIFY; docker info > /dev/null && echo at the socket)";

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_unix_socket_is_where_the_job_says_it_is() {
    let case = Case::start().await;
    let build = [&BUILD[..], &["(unset DOCKER_HOST; docker info > /dev/null && echo unset)"]];
    let build = build.concat();
    let usual = docker_job(&build).variable("DOCKER_HOST", "unix:///var/run/docker.sock");
    let own = docker_job(&["docker info > /dev/null && echo elsewhere"])
        .variable("DOCKER_HOST", "unix:///srv/x/d.sock");
    let (usual, own) = tokio::join!(case.run(usual), case.run(own));
    usual.assert_success();
    usual.assert_lines(&["inner:1", "unset"]);
    assert!(usual.story().contains("at unix:///var/run/docker.sock, as DOCKER_HOST has it"));
    own.assert_success();
    own.assert_lines(&["elsewhere"]);
    engine().nothing_left_of(usual.id).await;
    engine().nothing_left_of(own.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_only_know_the_usual_socket_find_it_beside_tcp() {
    let case = Case::start().await;
    let plain = ["(unset DOCKER_HOST; docker info > /dev/null && echo unset)", USUAL_SOCKET];
    let plain = docker_job(&plain).variable("DOCKER_TLS_CERTDIR", "");
    // An image that knows nothing of Docker.
    let ask = "perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(\"/var/run/docker.sock\") or die; \
               print $s \"GET /_ping HTTP/1.0\\r\\n\\r\\n\"; print while <$s>; print \"\\n\"'";
    let (tls, plain, debian) = tokio::join!(
        case.run(docker_job(&[USUAL_SOCKET])),
        case.run(plain),
        case.run(docker_job(&[ask]).image("debian:stable"))
    );
    tls.assert_success();
    tls.assert_lines(&["at the socket"]);
    plain.assert_success();
    plain.assert_lines(&["unset", "at the socket"]);
    debian.assert_success();
    debian.assert_lines(&["OK"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_may_use_the_socket() {
    let case = Case::start().await;
    let spec = docker_job(&[
        "id -u",
        "docker info > /dev/null && echo answered",
        "ls -l /var/run/docker.sock",
    ])
    .variable("DOCKER_HOST", "unix:///var/run/docker.sock")
    .set("/image", json!({"name": "docker:cli", "executor_opts": {"docker": {"user": "65534"}}}));
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["65534", "answered"]);
    engine().nothing_left_of(ended.id).await;
}

/// Has `perl` write an archive with perl alone.
pub(crate) const PERL: &str = "perl() { tar -ch /usr/bin/perl /usr/lib/*/perl-base \
     $(ldd /usr/bin/perl | grep -o '/[^ ]*') 2> /dev/null; }";

/// A container of an image that has it, which answers HTTP at port 8080.
pub(crate) const RUN: &str = r#"docker run --detach --publish 8080:80 inner:1 perl -MSocket -e '
    socket(S, PF_INET, SOCK_STREAM, 6) && bind(S, sockaddr_in(80, INADDR_ANY)) && listen(S, 9) or die;
    while (accept(C, S)) { sysread(C, $_, 4096); print C "HTTP/1.0 200 OK\r\n\r\ninner\n"; close C }'"#;

/// An image with perl alone, and such a container of it.
const SERVE: [&str; 3] = [PERL, "perl | docker import - inner:1", RUN];

/// Asks it, once it listens.
pub(crate) fn get(address: &str) -> String {
    format!(
        "curl --silent --show-error --retry 50 --retry-delay 1 --retry-all-errors \
         --max-time 5 http://{address}/ && echo of {address}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_inner_containers_publish_is_at_the_daemons_name() {
    let case = Case::start().await;
    let get = get("docker:8080");
    let script = [&SERVE[..], &[&get]].concat();
    let ended = case.run(docker_job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&["inner", "of docker:8080"]);
    engine().nothing_left_of(ended.id).await;
}

/// A job in its daemon's network, beside a service that the job asks and one that asks the job.
fn shared_job() -> JobSpec {
    let gets = ["docker:8080", "localhost:8080", "web"].map(get);
    let script = [
        &SERVE[..],
        &gets.each_ref().map(String::as_str),
        &[
            // Docker's own default with TLS (docker: `tcp://localhost:2376`).
            "(unset DOCKER_HOST; docker info > /dev/null && echo local)",
            "docker run --rm inner:1 perl -e 'print qq(ran\\n)'",
        ],
    ];
    let web = "mkdir w && echo outer > w/index.html && httpd -f -p 80 -h w";
    docker_job(&script.concat())
        .service(json!({"name": "busybox", "alias": "web", "command": ["sh", "-c", web]}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_network_has_published_ports_at_localhost_and_all_names() {
    let docker = "[runners.docker.dind]\nnetwork = \"shared\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let bridge = Case::with(Options { docker, default_bridge: true, ..Options::default() }).await;
    let ask = "until wget -qO /builds/asked http://build:8080; do sleep 0.2; done; sleep 600";
    let own = shared_job()
        .service(json!({"name": "busybox", "alias": "asker", "command": ["sh", "-c", ask]}))
        .after(&[
            "until grep inner /builds/asked; do sleep 0.2; done && echo asked",
            "hostname",
            "docker ps",
        ]);
    let (own, bridge) = tokio::join!(case.run(own), bridge.run(shared_job()));
    for ended in [&own, &bridge] {
        ended.assert_success();
        ended.assert_lines(&["of docker:8080", "of localhost:8080", "outer", "local", "ran"]);
        engine().nothing_left_of(ended.id).await;
    }
    own.assert_lines(&["asked"]);
    own.assert_contains("runner-integrati-project-");
    own.assert_contains("0.0.0.0:8080->80/tcp");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_has_its_networks_mtu_and_the_runners_registries() {
    let network = engine().network_with(&["--opt=com.docker.network.driver.mtu=1400"]);
    let mode = format!("network_mode = {:?}", network.name);
    let docker = "#mode\n[runners.docker.dind]\n\
                  insecure_registries = [\"registry.example:5000\", \"10.9.0.0/16\"]\n\
                  registry_mirrors = [\"https://mirror.example\"]";
    let edit = Box::new(move |config: String| config.replace("#mode", &mode));
    let case = Case::with(Options { docker, edit: Some(edit), ..Options::default() }).await;
    let mtu = "docker network inspect bridge -f \
               '{{index .Options \"com.docker.network.driver.mtu\"}}'";
    let ended = case.run(docker_job(&[mtu, "docker info"])).await;
    ended.assert_success();
    ended.assert_lines(&["1400"]);
    for wanted in ["registry.example:5000", "10.9.0.0/16", "https://mirror.example"] {
        ended.assert_contains(wanted);
    }
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_job_says_of_its_daemon_is_kept() {
    let case = Case::start().await;
    engine().needs_dind();
    let service = json!({
        "name": "docker:dind", "alias": "builder", "entrypoint": ["env", "-u", "NOTHING"],
        "command": ["dockerd-entrypoint.sh", "--label=mine=1", "--mtu=1390"],
        "variables": [{"key": "DOCKER_TLS_CERTDIR", "value": "/own"}],
    });
    let script = [
        "docker info --format '{{.Labels}}'",
        "docker network inspect bridge -f '{{index .Options \"com.docker.network.driver.mtu\"}}'",
        "echo $DOCKER_HOST $DOCKER_CERT_PATH",
        "DOCKER_HOST=tcp://docker:2375 docker info > /dev/null && echo by the usual name",
    ];
    let spec = job(&script).image("docker:cli").service(service);
    let ended = case.run(spec.variable("DOCKER_HOST", "tcp://builder:2376")).await;
    ended.assert_success();
    ended.assert_lines(&[
        "[mine=1]",
        "1390",
        "tcp://builder:2376 /own/client",
        "by the usual name",
    ]);
    engine().nothing_left_of(ended.id).await;
}

/// sysbox-runc itself is in no Debian release; `tests/engine/sysbox-stand-in` has its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_in_a_runtime_that_needs_no_privileges_has_none() {
    let runtimes = engine().docker(&["info", "--format", "{{json .Runtimes}}"]);
    if !runtimes.contains("sysbox-runc") {
        println!("NOT TESTED: the engine has no runtime sysbox-runc");
        return;
    }
    let docker = "runtime = \"sysbox-runc\"\nallowed_privileged_services = [\"none\"]";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let script = [&BUILD[..], &[UNTIL_GO]].concat();
    let id = case.gitlab.submit(docker_job(&script));
    case.gitlab.until_output(id, "started").await;
    let containers = engine().inspect(|line| line.contains(&id.to_string()));
    for container in containers.iter().filter(|thing| thing["HostConfig"].is_object()) {
        assert_eq!(container["HostConfig"]["Privileged"], false, "{container:#}");
        assert_eq!(container["HostConfig"]["CapAdd"], Value::Null, "{container:#}");
    }
    let in_runtime = |thing: &&Value| thing["HostConfig"]["Runtime"] == "sysbox-runc";
    assert!(containers.iter().filter(in_runtime).count() >= 2, "{containers:#?}");
    engine().go(id);
    case.gitlab.ended(id).await.assert_success();
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_allows_no_privileges_says_so() {
    let docker = "allowed_privileged_services = [\"docker:29-dind\"]";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let ended = case.run(job(&["echo never"]).service(json!({"name": "docker:dind"}))).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("allowed_privileged_services forbids it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_network_that_went_with_its_daemon_is_explained() {
    let docker = "[runners.docker.dind]\nnetwork = \"shared\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let script = ["echo started", "while docker version > /dev/null 2>&1; do sleep 0.1; done"];
    let id = case.gitlab.submit(docker_job(&script).after(&["echo never"]));
    case.gitlab.until_output(id, "started").await;
    let containers = engine().running_containers(id);
    let mut names = containers.iter().filter_map(|line| line.split(' ').next());
    engine().docker(&["kill", names.find(|name| name.contains("-docker-")).unwrap()]);
    let ended = case.gitlab.ended(id).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("hint: the job's Docker daemon has ended, and the job's container is in");
    engine().nothing_left_of(id).await;
}

/// A runner whose jobs' daemons have layer-cache slots, with more keys of `[runners.docker.dind]`.
fn with_slots(docker: &'static str) -> Options {
    Options { docker, ..Options::default() }
}

const SLOT: &str = "[runners.docker.dind]\nstorage = \"slot\"";

/// What a job says of a slot that is new, and of one that earlier jobs have used.
const NEW: &str = "Docker layers: none yet";
const REUSED: &str = "MiB of earlier jobs";

/// Volumes of the case's layer-cache slots.
fn slot_volumes(case: &Case) -> Vec<String> {
    let id = case.gitlab.project_id.to_string();
    let all = engine().docker(&["volume", "ls", "--format", "{{.Name}} {{.Labels}}"]);
    let own = all.lines().filter(|line| line.contains(&id) && line.contains("-layers-"));
    own.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_job_builds_on_the_firsts_layers_and_finds_nothing_else_of_it() {
    let case = Case::with(with_slots(SLOT)).await;
    let leave = [
        "docker run -d --name left -v left:/v -v /w inner:1 /true || docker create -v left:/v inner:1 /true",
        "docker network create left",
        "docker volume create other",
    ];
    let look = [
        "echo containers $(docker ps --all --quiet | wc -l)",
        "echo volumes $(docker volume ls --quiet | wc -l)",
        "echo networks $(docker network ls --quiet | wc -l)",
    ];
    let first = case.run_over(docker_job(&[&look[..], &BUILD, &leave].concat())).await;
    first.assert_success();
    first.assert_contains(NEW);
    first.assert_lines(&["containers 0", "volumes 0", "networks 3"]);
    first.assert_no_line(" ---> Using cache");
    let volumes = slot_volumes(&case);
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    let second = case.run_over(docker_job(&[&look[..], &BUILD].concat())).await;
    second.assert_success();
    second.assert_contains(REUSED);
    second.assert_lines(&["containers 0", "volumes 0", "networks 3", " ---> Using cache"]);
    assert_eq!(slot_volumes(&case), volumes);
    // A job that is trusted less does not see it.
    let other = case.run_over(docker_job(&BUILD).unprotected()).await;
    other.assert_success();
    other.assert_contains(NEW);
    other.assert_no_line(" ---> Using cache");
    assert_eq!(slot_volumes(&case).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_at_once_have_slots_of_their_own_and_wait_for_none() {
    let case = Case::with(with_slots(SLOT)).await;
    case.run_over(docker_job(&["docker info"])).await.assert_success();
    let long = case.gitlab.submit(docker_job(&["docker info > /dev/null; echo has it; sleep 600"]));
    case.gitlab.until_output(long, "has it").await;
    // It ends while the other one runs.
    let beside = case.run(docker_job(&["docker info"])).await;
    beside.assert_success();
    beside.assert_contains(NEW);
    let during = slot_volumes(&case);
    assert_eq!(during.len(), 2, "{during:?}");
    case.gitlab.set_status(long, "canceling");
    case.gitlab.ended(long).await.assert_contains(REUSED);
    case.until_idle().await;
    // One that was canceled leaves its slot in order too.
    assert_eq!(slot_volumes(&case), during);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_in_use_at_kill_9_is_removed() {
    let mut case = Case::with(with_slots(SLOT)).await;
    case.run_over(docker_job(&["docker info"])).await.assert_success();
    let before = slot_volumes(&case);
    let id = case.gitlab.submit(docker_job(&["docker info > /dev/null; echo has it; sleep 600"]));
    case.gitlab.until_output(id, "has it").await;
    case.kill().await;
    case.gitlab.allow_jump(id);
    case.restart();
    case.gitlab.ended(id).await.assert_contains(REUSED);
    case.until_idle().await;
    assert_eq!(slot_volumes(&case), [""; 0]);
    let next = case.run_over(docker_job(&["docker info"])).await;
    next.assert_success();
    next.assert_contains(NEW);
    let after = slot_volumes(&case);
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    // One that nobody has survives a restart.
    case.kill().await;
    case.restart();
    case.run_over(docker_job(&["docker info"])).await.assert_contains(REUSED);
    assert_eq!(slot_volumes(&case), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_above_their_number_or_size_and_those_of_a_daemon_that_was_killed_go() {
    let case = Case::with(with_slots("[runners.docker.dind]\nstorage = \"slot\"\nslots = 1")).await;
    case.run_over(docker_job(&["docker info"])).await.assert_success();
    let first = slot_volumes(&case);
    case.run_over(docker_job(&["docker info"]).unprotected()).await.assert_success();
    let second = slot_volumes(&case);
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
    // Its daemon cannot clean up any more.
    let id = case.gitlab.submit(docker_job(&["docker info; echo has it; sleep 600"]).unprotected());
    case.gitlab.until_output(id, "has it").await;
    let containers = engine().running_containers(id);
    let mut names = containers.iter().filter_map(|line| line.split(' ').next());
    engine().docker(&["kill", names.find(|name| name.contains("-docker-")).unwrap()]);
    case.gitlab.set_status(id, "canceling");
    case.gitlab.ended(id).await.assert_contains(REUSED);
    case.until_idle().await;
    assert_eq!(slot_volumes(&case), [""; 0]);
    case.edit(|text| text.replace("slots = 1", "slot_size = \"1k\""));
    case.until_log("configuration loaded", 1).await;
    let small = case.run_over(docker_job(&["docker info"])).await;
    small.assert_success();
    assert_eq!(slot_volumes(&case), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_at_any_moment_only_slots_in_order_are_left() {
    fn spec() -> JobSpec {
        docker_job(&["docker info"])
    }
    killed_at_any_moment(with_slots(SLOT), spec, async |case, _| {
        let noted = std::fs::read_dir(case.state().join("slots")).unwrap();
        let mut noted: Vec<_> =
            noted.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let mut there = slot_volumes(case);
        noted.sort();
        there.sort();
        assert_eq!(there, noted);
        case.run_over(spec()).await.assert_success();
    })
    .await;
}

//! Jobs with a Docker daemon of their own.

use serde_json::json;

use crate::{
    counter::Counter,
    engine::engine,
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
async fn a_daemon_that_dies_under_a_script_is_reported() {
    let case = Case::start().await;
    let script =
        ["echo started", "while docker version > /dev/null 2>&1; do sleep 0.1; done", "false"];
    let id = case.gitlab.submit(docker_job(&script));
    case.gitlab.until_output(id, "started").await;
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

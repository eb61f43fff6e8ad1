//! Jobs with a Docker daemon that has no root, in a container that has no privileges.

use serde_json::{Value, json};

use crate::{
    dind::{PERL, RUN, get},
    engine::{UNTIL_GO, engine},
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
};

const IMAGE: &str = "docker:dind-rootless";

/// A job beside such a daemon.
fn rootless_job(script: &[&str]) -> JobSpec {
    engine().needs_dind();
    job(script).image("docker:cli").service(json!({"name": IMAGE}))
}

/// Makes an image of perl alone with `docker build`, runs it, and has it answer HTTP at port 8080.
const WORK: [&str; 5] = [
    PERL,
    "mkdir ctx && perl > ctx/perl.tar",
    "printf 'FROM scratch\\nADD perl.tar /\\nRUN [\"perl\", \"-e\", \"print qq(built\\\\n)\"]\\n' > ctx/Dockerfile",
    "DOCKER_BUILDKIT=0 docker build -t inner:1 ctx",
    RUN,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_root_does_its_work_and_nothing_is_privileged() {
    let docker = "[runners.docker.dind]\nwarm = 1";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let published = get("docker:8080");
    let look = [
        published.as_str(),
        "docker info --format '{{.SecurityOptions}} {{.Driver}} of {{.DockerRootDir}}'",
        "grep CapEff /proc/self/status",
        "echo $DOCKER_HOST $DOCKER_TLS_VERIFY $DOCKER_CERT_PATH",
        "(unset DOCKER_HOST DOCKER_TLS_VERIFY; docker info > /dev/null && echo at the socket)",
        UNTIL_GO,
    ];
    let id = case.gitlab.submit(rootless_job(&[&WORK[..], &look].concat()));
    case.gitlab.until_output(id, "started").await;
    let things = engine().inspect(|line| line.contains(&id.to_string()));
    assert!(things.iter().all(|thing| thing["HostConfig"]["Privileged"] != true), "{things:#?}");
    let daemon = daemon_of(&things);
    assert_eq!(daemon["Config"]["User"], "rootless");
    assert_eq!(daemon["HostConfig"]["CapAdd"], Value::Null);
    engine().go(id);
    let ended = case.gitlab.ended(id).await;
    ended.assert_success();
    ended.assert_lines(&[
        "built",
        "inner",
        "of docker:8080",
        "tcp://docker:2376 1 /certs/client",
        "at the socket",
    ]);
    // The engine's default set (moby, `oci/caps/defaults.go`).
    ended.assert_contains("00000000a80425fb");
    ended.assert_contains("name=rootless] overlay2 of /home/rootless/.local/share/docker");
    // None waits for a job.
    let log = case.log();
    let declined = log.lines().find(|line| line.contains("take no warm Docker daemon"));
    assert!(declined.is_some_and(|line| line.contains("the daemon has no privileges")), "{log}");
    engine().nothing_left_of(id).await;
}

/// The daemon's container among a job's things.
fn daemon_of(things: &[Value]) -> &Value {
    let is_daemon = |thing: &&Value| {
        thing["Config"]["Image"].is_string() && thing["Config"]["User"] == "rootless"
    };
    things.iter().find(is_daemon).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_a_daemon_without_root_answers() {
    let case = Case::start().await;
    let answered = ["docker info > /dev/null && echo answered"];
    let plain = rootless_job(&["docker info > /dev/null && echo answered", "echo $DOCKER_HOST"])
        .variable("DOCKER_TLS_CERTDIR", "");
    let usual = rootless_job(&answered).variable("DOCKER_HOST", "tcp://docker:2375");
    let both = [
        "docker info > /dev/null && echo answered",
        "(unset DOCKER_TLS_VERIFY; DOCKER_HOST=tcp://docker:2375 docker --tls info > /dev/null && echo with TLS)",
        "DOCKER_HOST=tcp://docker:2376 docker info > /dev/null && echo at 2376",
    ];
    let other = job(&both)
        .image("docker:cli")
        .service(json!({"name": IMAGE, "alias": "builder"}))
        .variable("DOCKER_HOST", "tcp://builder:2377");
    let own = rootless_job(&["id -u", "docker info > /dev/null && echo answered"])
        .variable("DOCKER_HOST", "unix:///srv/x/d.sock")
        .set(
            "/image",
            json!({"name": "docker:cli", "executor_opts": {"docker": {"user": "65534"}}}),
        );
    let (plain, usual, other, own) =
        tokio::join!(case.run(plain), case.run(usual), case.run(other), case.run(own));
    for ended in [&plain, &usual, &other, &own] {
        ended.assert_success();
        ended.assert_lines(&["answered"]);
        engine().nothing_left_of(ended.id).await;
    }
    plain.assert_lines(&["tcp://docker:2375"]);
    other.assert_lines(&["with TLS", "at 2376"]);
    own.assert_lines(&["65534"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_daemon_without_root_works_too() {
    let docker = "services_privileged = true";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let script = ["grep CapEff /proc/self/status", UNTIL_GO];
    let id = case.gitlab.submit(rootless_job(&[&WORK[..], &script].concat()));
    case.gitlab.until_output(id, "started").await;
    let things = engine().inspect(|line| line.contains(&id.to_string()));
    assert_eq!(daemon_of(&things)["HostConfig"]["Privileged"], true);
    engine().go(id);
    let ended = case.gitlab.ended(id).await;
    ended.assert_success();
    ended.assert_lines(&["built"]);
    ended.assert_contains("00000000a80425fb");
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_the_network_of_a_daemon_without_root_has_published_ports_at_localhost() {
    let docker = "[runners.docker.dind]\nnetwork = \"shared\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let gets = ["docker:8080", "localhost:8080"].map(get);
    let script = [&WORK[..], &gets.each_ref().map(String::as_str)].concat();
    let ended = case.run(rootless_job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&["of docker:8080", "of localhost:8080"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_root_finds_the_layers_of_earlier_jobs() {
    let docker = "[runners.docker.dind]\nstorage = \"slot\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let build = &WORK[..4];
    let first = case
        .run_over(rootless_job(&[build, &["docker create -v left:/v inner:1 /true"]].concat()))
        .await;
    first.assert_success();
    first.assert_no_line(" ---> Using cache");
    let look =
        ["echo containers $(docker ps --all --quiet | wc -l) $(docker volume ls --quiet | wc -l)"];
    let second = case.run_over(rootless_job(&[&look, build].concat())).await;
    second.assert_success();
    second.assert_contains("MiB of earlier jobs");
    second.assert_lines(&["containers 0 0", " ---> Using cache"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_daemon_without_root_from_starting_is_said() {
    let docker = "services_security_opt = [\"no-new-privileges\"]";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let ended = case.run(rootless_job(&["echo never"])).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("newuidmap: write to uid_map failed");
    ended.assert_contains("hint: a daemon without root needs newuidmap's");
    ended.assert_contains("the job's Docker daemon (docker:dind-rootless) ended with exit code 1");
    engine().nothing_left_of(ended.id).await;
}

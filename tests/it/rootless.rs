//! Jobs with a Docker daemon that has no root, in a container that has no privileges.

use serde_json::{Value, json};

use crate::{
    engine::engine,
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
    "mkdir ctx && libraries=$(ldd /usr/bin/perl | grep -o '/[^ ]*')",
    "tar -chf ctx/perl.tar /usr/bin/perl /usr/lib/*/perl-base $libraries 2> /dev/null",
    "printf 'FROM scratch\\nADD perl.tar /\\nRUN [\"perl\", \"-e\", \"print qq(built\\\\n)\"]\\n' > ctx/Dockerfile",
    "DOCKER_BUILDKIT=0 docker build -t inner:1 ctx",
    r#"docker run --detach --publish 8080:80 inner:1 perl -MSocket -e '
    socket(S, PF_INET, SOCK_STREAM, 6) && bind(S, sockaddr_in(80, INADDR_ANY)) && listen(S, 9) or die;
    while (accept(C, S)) { sysread(C, $_, 4096); print C "HTTP/1.0 200 OK\r\n\r\ninner\n"; close C }'"#,
];

/// Asks it, once it listens.
fn get(address: &str) -> String {
    format!(
        "curl --silent --show-error --retry 50 --retry-delay 1 --retry-all-errors \
         --max-time 5 http://{address}/ && echo of {address}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_without_root_does_its_work_and_nothing_is_privileged() {
    let case = Case::start().await;
    let published = get("docker:8080");
    let look = [
        published.as_str(),
        "docker info --format '{{.SecurityOptions}} {{.Driver}} of {{.DockerRootDir}}'",
        "grep CapEff /proc/self/status",
        "echo $DOCKER_HOST $DOCKER_TLS_VERIFY $DOCKER_CERT_PATH",
        "(unset DOCKER_HOST DOCKER_TLS_VERIFY; docker info > /dev/null && echo at the socket)",
        "echo looked; until [ -e /builds/go ]; do sleep 0.1; done",
    ];
    let id = case.gitlab.submit(rootless_job(&[&WORK[..], &look].concat()));
    case.gitlab.until_output(id, "looked").await;
    let things = engine().inspect(|line| line.contains(&id.to_string()));
    assert!(things.iter().all(|thing| thing["HostConfig"]["Privileged"] != true), "{things:#?}");
    let is_daemon = |thing: &&Value| {
        thing["Config"]["Image"].is_string() && thing["Name"].as_str().unwrap().ends_with("docker-0")
    };
    let daemon = things.iter().find(is_daemon);
    println!("{:#}", daemon.unwrap()["HostConfig"]);
    let build = engine().running_containers(id);
    println!("{build:#?}");
    case.gitlab.set_status(id, "canceling");
    let ended = case.gitlab.ended(id).await;
    println!("{}", ended.story());
    ended.assert_lines(&[
        "built",
        "inner",
        "of docker:8080",
        "tcp://docker:2376 1 /certs/client",
        "at the socket",
    ]);
    // The engine's default set (moby, `oci/caps/defaults.go`).
    ended.assert_contains("00000000a80425fb");
    ended.assert_contains("name=rootless");
    engine().nothing_left_of(id).await;
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
        println!("{}", ended.story());
    }
    for ended in [&plain, &usual, &other, &own] {
        ended.assert_success();
        ended.assert_lines(&["answered"]);
        engine().nothing_left_of(ended.id).await;
    }
    plain.assert_lines(&["tcp://docker:2375"]);
    other.assert_lines(&["with TLS", "at 2376"]);
    own.assert_lines(&["65534"]);
}

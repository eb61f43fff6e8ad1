//! Jobs with the engine's own socket, guarded.

use longshore::base::ids::random_hex;
use serde_json::json;

use crate::{
    engine::engine,
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
};

/// The usual recipe: the runner mounts the engine's socket.
const MOUNTED: &str = r#"["/cache", "/var/run/docker.sock:/var/run/docker.sock"]"#;

async fn case(docker: &'static str) -> Case {
    let volumes = Some(MOUNTED.to_owned());
    Case::with(Options { docker, volumes, ..Options::default() }).await
}

fn docker_job(script: &[&str]) -> JobSpec {
    engine().needs_dind();
    job(script).image("docker:cli")
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_102_a_job_with_the_mounted_socket_has_docker_but_not_the_host() {
    let case = case("").await;
    let script = [
        "docker run --rm docker:cli echo from-inside",
        "docker run --rm --privileged docker:cli true || echo refused-privileged",
        "docker run --rm --volume /:/host docker:cli true || echo refused-host",
        "docker run --rm --pid host docker:cli true || echo refused-pid",
        "docker run --rm --volume /var/run/docker.sock:/var/run/docker.sock docker:cli \
         docker ps --all --quiet | wc -l",
    ];
    let ended = case.run(docker_job(&script)).await;
    ended.assert_success();
    // A reaper's case: the container that asks sees itself alone.
    let lines = ["from-inside", "refused-privileged", "refused-host", "refused-pid", "1"];
    ended.assert_lines(&lines);
    let story = ended.story();
    assert!(story.contains("the engine's own socket at /var/run/docker.sock, guarded"), "{story}");
    assert!(story.contains("The guarded Docker socket refused 3 of"), "{story}");
    assert!(story.contains("HostConfig.Privileged is not available on this runner"), "{story}");
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workspace_can_be_mounted_and_no_link_leads_out_of_it() {
    let case = case("").await;
    let script = [
        "mkdir data && echo payload > data/file && ln -s / out",
        "docker run --rm --volume $PWD/data:/data docker:cli cat /data/file",
        "docker run --rm --volume $CI_PROJECT_DIR/made:/made docker:cli touch /made/here",
        "ls made",
        "docker run --rm --volume $KEY:/key docker:cli cat /key && echo",
        "docker run --rm --volume $PWD/out/etc:/etc-of-host docker:cli true || echo refused-link",
    ];
    let spec = docker_job(&script).variable_as(
        json!({"key": "KEY", "value": "of-a-file-variable", "public": true, "file": true}),
    );
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["payload", "here", "of-a-file-variable", "refused-link"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_made_and_left_goes_with_it() {
    let case = case("").await;
    let name = format!("left-{}", random_hex::<8>());
    let script = [
        "docker run --detach --name $NAME --restart always docker:cli sleep 1000",
        "docker network create $NAME && docker volume create $NAME",
        "printf 'FROM docker:cli\\nRUN touch /made\\n' | docker build --tag $NAME:1 -",
        "docker create --volume /anonymous $NAME:1",
        "docker ps --all --quiet | wc -l",
    ];
    let ended = case.run(docker_job(&script).variable("NAME", &name)).await;
    ended.assert_success();
    ended.assert_lines(&["2"]);
    engine().nothing_left_of(ended.id).await;
    engine().nothing_left_with(&name).await;
    case.until_idle().await;
    assert_eq!(engine().images_named(&name), [""; 0]);
    let guards = std::fs::read_dir(case.state().join("guards")).unwrap();
    assert_eq!(guards.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_do_not_see_each_other_and_reach_what_they_publish() {
    let case = case("").await;
    let script = [
        "mkdir www && echo served > www/index.html",
        "docker run --detach --publish 8080:80 --volume $PWD/www:/www busybox:latest \
         httpd -f -p 80 -h /www > id",
        "get() { exec 3<>/dev/tcp/$1/$2 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && tail -n 1 <&3; }",
        "until get docker 8080; do sleep 0.1; done",
        // On the job's network by default, and thus reached by its address as well.
        "ip=$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' \
         $(cat id)); get $ip 80",
        "docker ps --format '{{.Image}}' | sort",
    ];
    let spec = || job(&script).image("docker:cli").service(json!({"name": "busybox:latest"}));
    engine().needs_dind();
    let (one, other) = tokio::join!(case.run(spec()), case.run(spec()));
    for ended in [one, other] {
        ended.assert_success();
        ended.assert_lines(&["served", "served", "busybox:latest"]);
        engine().nothing_left_of(ended.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_is_mapped_to_the_guarded_socket_where_the_runner_says_so() {
    let docker = "[runners.docker.dind]\nmode = \"socket\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let spec = docker_job(&["docker run --rm docker:cli echo mapped", "echo $DOCKER_HOST."])
        .service(json!({"name": "docker:dind"}))
        .variable("DOCKER_HOST", "tcp://docker:2376")
        .variable("DOCKER_TLS_VERIFY", "1")
        .variable("DOCKER_CERT_PATH", "/certs/client");
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["mapped", "unix:///var/run/docker.sock."]);
    assert!(ended.story().contains("in place of the service docker:dind"), "{}", ended.story());
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_users_may_use_the_socket_and_an_audit_log_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("audit.jsonl");
    let line = format!("audit_log = \"{}\"", log.display());
    let options = Options {
        docker: "[runners.docker.socket]\nmode = \"guarded\"\n#audit",
        edit: Some(Box::new(move |text| text.replace("#audit", &line))),
        ..Options::default()
    };
    let case = Case::with(options).await;
    let spec =
        docker_job(&["id -u", "docker run --rm --privileged docker:cli true || docker ps -q"]).set(
            "/image",
            json!({"name": "docker:cli", "executor_opts": {"docker": {"user": "65534"}}}),
        );
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["65534"]);
    case.until_idle().await;
    let text = std::fs::read_to_string(log).unwrap();
    let refused = text.lines().find(|line| line.contains("\"decision\":\"refused\"")).unwrap();
    assert!(
        refused.contains("/containers/create") && refused.contains("\"rule\":\"G-1\""),
        "{refused}"
    );
    assert!(text.contains(&format!("\"job\":\"{}\"", ended.id)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_is_the_real_socket() {
    let docker = "[runners.docker.socket]\nmode = \"raw\"";
    // The engine of the tests has its socket elsewhere.
    let volumes = format!(r#"["/cache", "{}:/var/run/docker.sock"]"#, engine().socket().display());
    let options = Options { docker, volumes: Some(volumes), ..Options::default() };
    let case = Case::with(options).await;
    let ended = case.run(docker_job(&["docker version > /dev/null && echo answered"])).await;
    ended.assert_success();
    ended.assert_lines(&["answered"]);
    assert!(ended.story().contains("which makes it root on its host"), "{}", ended.story());
    case.until_log("are root on its host", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_nothing_of_a_guarded_job_is_left() {
    let mut case = case("").await;
    let name = format!("killed-{}", random_hex::<8>());
    let script = [
        "mkdir data && echo kept > data/file",
        "docker run --detach --name $NAME --volume $PWD/data:/data docker:cli sleep 1000",
        "echo made",
        "sleep 1000",
    ];
    let id = case.gitlab.submit(docker_job(&script).variable("NAME", &name));
    case.gitlab.until_output(id, "made").await;
    case.kill().await;
    case.gitlab.allow_jump(id);
    case.restart();
    case.gitlab.ended(id).await.assert_failed("runner_system_failure", None);
    engine().nothing_left_of(id).await;
    engine().nothing_left_with(&name).await;
    case.until_idle().await;
    let guards = std::fs::read_dir(case.state().join("guards")).unwrap();
    assert_eq!(guards.count(), 0, "a directory of a guard is left");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(case.state().to_str().unwrap()), "a pin is left");
}

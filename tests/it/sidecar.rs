//! Jobs with the engine's own socket, guarded by a container beside the engine.

use std::{path::Path, process::Command};

use longshore::base::ids::random_hex;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::{
    engine::engine,
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
    relay::Relay,
};

/// The usual recipe: the runner mounts the engine's socket.
const MOUNTED: &str = r#"["/cache", "/var/run/docker.sock:/var/run/docker.sock"]"#;

/// A job that its server cancels hears of it when it says something.
const TICK: &str = "while sleep 1; do echo tick; done";

fn options(docker: &'static str) -> Options {
    Options { docker, volumes: Some(MOUNTED.to_owned()), ..Options::default() }
}

/// Longshore with the engine at a TCP address.
async fn far() -> (Relay, Case) {
    let relay = Relay::start(engine().socket()).await;
    let line = format!("engine_socket = \"{}\"", engine().socket().display());
    let options = Options {
        engine: Some(relay.host()),
        edit: Some(Box::new(move |text| text.replace("#socket", &line))),
        ..options("[runners.docker.socket]\n#socket")
    };
    let case = Case::with(options).await;
    (relay, case)
}

fn docker_job(script: &[&str]) -> JobSpec {
    engine().needs_dind();
    job(script).image("docker:cli")
}

/// What a job does with its workspace, and tries.
fn workspace() -> JobSpec {
    docker_job(&[
        "mkdir data && echo payload > data/file && ln -s / out",
        "docker run --rm --volume $PWD/data:/data docker:cli cat /data/file",
        "docker run --rm --volume $CI_PROJECT_DIR/made:/made docker:cli touch /made/here",
        "ls made",
        "docker run --rm --volume $PWD/out/etc:/etc-of-host docker:cli true || echo refused-link",
        "docker run --rm --volume /:/host docker:cli true || echo refused-host",
        "docker run --rm --volume /var/run/docker.sock:/var/run/docker.sock docker:cli \
         docker ps --all --quiet | wc -l",
        "docker run --detach --publish 8080:80 --volume $PWD/data:/www busybox:latest \
         httpd -f -p 80 -h /www > /dev/null",
        // In a shell of its own: what is not ready yet may hang up on it.
        "get() { (exec 3<>/dev/tcp/docker/8080 && printf 'GET /file HTTP/1.0\r\n\r\n' >&3 && \
         tail -n 1 <&3 | grep payload); }",
        "until get; do sleep 0.1; done",
    ])
    .service(json!({"name": "busybox:latest"}))
}

const LINES: [&str; 6] = ["payload", "here", "refused-link", "refused-host", "1", "payload"];

/// Directories of guards on the engine's host: it is this one, wherever longshore thinks it is.
fn guards() -> Vec<String> {
    let root = engine().docker(&["info", "--format", "{{.DockerRootDir}}"]);
    let entries = std::fs::read_dir(Path::new(root.trim())).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("longshore-guard-")).collect()
}

/// The directory of the guard of a job of this case, and pins in it.
pub(crate) async fn left_of_guards(case: &Case) -> Vec<String> {
    let project = format!("-project-{}-", case.gitlab.project_id);
    // Of its mount namespace, whichever it is.
    let stream = UnixStream::connect(engine().socket()).await.unwrap();
    let process = stream.peer_cred().unwrap().pid().unwrap();
    let mounts = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let mounts = mounts.lines().map(str::to_owned).filter(|line| line.contains("longshore-guard-"));
    guards().into_iter().chain(mounts).filter(|name| name.contains(&project)).collect()
}

async fn nothing_left(case: &Case, id: i64) {
    engine().nothing_left_of(id).await;
    case.until_idle().await;
    assert_eq!(
        left_of_guards(case).await,
        [""; 0],
        "something of a guard is left on the engine's host"
    );
    let guards = case.state().join("guards");
    let left = std::fs::read_dir(guards).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a note of a sidecar is left");
}

/// Nothing is left of what a job made under this name.
async fn nothing_made(name: &str) {
    engine().nothing_left_with(name).await;
    assert_eq!(engine().images_named(name), [""; 0]);
}

/// A killed longshore is started again, tells the server of the job, and leaves nothing of it.
async fn ended_by_the_next(case: &mut Case, id: i64) {
    case.gitlab.allow_jump(id);
    case.restart();
    case.gitlab.ended(id).await.assert_failed("runner_system_failure", None);
    nothing_left(case, id).await;
}

/// The sidecar's container of a job that runs.
fn sidecar_of(id: i64) -> String {
    let job = format!("label=com.gitlab.gitlab-runner.job.id={id}");
    let kind = "label=com.gitlab.gitlab-runner.type=guard";
    engine()
        .docker(&["ps", "--format", "{{.Names}}", "--filter", &job, "--filter", kind])
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_the_engines_host_are_known_beside_it_too() {
    let (_relay, case) = far().await;
    let _taken = engine().network_with(&["--subnet=172.29.77.0/24"]);
    // The engine would say in other words that it has one there itself.
    let ended = case.run(docker_job(&["docker network create --subnet 172.29.77.0/25 over"])).await;
    ended.assert_failed("script_failure", Some(1));
    ended.assert_contains("guard: this subnet overlaps a network of the host (G-1)");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_at_a_tcp_address_has_guarded_sockets_too() {
    let (_relay, case) = far().await;
    let ended = case.run(workspace()).await;
    ended.assert_success();
    ended.assert_lines(&LINES);
    let story = ended.story();
    assert!(story.contains("The guarded Docker socket refused 2 of"), "{story}");
    nothing_left(&case, ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_a_sidecar_are_in_the_audit_log_here() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("audit.jsonl");
    let line = format!("audit_log = \"{}\"", log.display());
    let options = Options {
        docker: "[runners.docker.socket]\nmode = \"guarded\"\nguard = \"sidecar\"\n#audit",
        edit: Some(Box::new(move |text| text.replace("#audit", &line))),
        ..Options::default()
    };
    let case = Case::with(options).await;
    let script = "docker run --rm --privileged docker:cli true || docker ps -q";
    let spec = docker_job(&["id -u", script]).set(
        "/image",
        json!({"name": "docker:cli", "executor_opts": {"docker": {"user": "65534"}}}),
    );
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["65534"]);
    nothing_left(&case, ended.id).await;
    let text = std::fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused: Vec<_> = lines.iter().filter(|line| line["decision"] == "refused").collect();
    assert_eq!(refused.len(), 1, "{text}");
    assert_eq!(
        (&refused[0]["rule"], &refused[0]["route"], &refused[0]["job"]),
        (&"G-1".into(), &"/containers/create".into(), &ended.id.to_string().into()),
    );
    // The last request as well as the first.
    assert!(lines.iter().any(|line| line["route"] == "/containers/json"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn longshore_with_mounts_of_its_own_has_its_guard_beside_the_engine_by_itself() {
    let wrapper = ["unshare", "--mount", "--propagation", "private"].map(str::to_owned).to_vec();
    let case = Case::with(Options { wrapper, ..options("") }).await;
    let ended = case.run(workspace()).await;
    ended.assert_success();
    ended.assert_lines(&LINES);
    nothing_left(&case, ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn longshore_in_a_container_has_its_guard_beside_the_engine_by_itself() {
    // The sidecar's image has longshore and all that it needs.
    let first = Case::with(options("[runners.docker.socket]\nguard = \"sidecar\"")).await;
    let id = first.gitlab.submit(docker_job(&["echo all-there", TICK]));
    first.gitlab.until_output(id, "all-there").await;
    let image = engine().docker(&["inspect", "--format", "{{.Image}}", &sidecar_of(id)]);
    first.gitlab.set_status(id, "canceled");
    let directory = std::env::temp_dir().display().to_string();
    let socket = engine().socket().display().to_string();
    let volumes = [format!("{directory}:{directory}"), format!("{socket}:/var/run/docker.sock")];
    let mut wrapper = vec!["docker".to_owned(), "--host".to_owned(), engine().host.clone()];
    wrapper.extend(["run", "--rm", "--network", "host"].map(str::to_owned));
    wrapper.extend(volumes.into_iter().flat_map(|volume| ["--volume".to_owned(), volume]));
    wrapper.push(image.trim().to_owned());
    // The first argument is the program outside.
    wrapper.extend(["sh", "-c", "shift; exec longshore \"$@\"", "sh"].map(str::to_owned));
    let line = format!("engine_socket = \"{socket}\"");
    let case = Case::with(Options {
        wrapper,
        engine: Some("unix:///var/run/docker.sock".to_owned()),
        edit: Some(Box::new(move |text| text.replace("#socket", &line))),
        ..options("[runners.docker.socket]\n#socket")
    })
    .await;
    let ended = case.run(workspace()).await;
    ended.assert_success();
    ended.assert_lines(&LINES);
    nothing_left(&case, ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_is_of_no_image_of_the_operators() {
    let docker = "helper_image = \"docker:cli\"\n[runners.docker.socket]\nguard = \"sidecar\"";
    let case = Case::with(options(docker)).await;
    let ended = case.run(workspace()).await;
    ended.assert_success();
    ended.assert_lines(&LINES);
    nothing_left(&case, ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_is_not_the_jobs_and_has_no_secret() {
    let case = Case::with(options("[runners.docker.socket]\nguard = \"sidecar\"")).await;
    let script = ["echo sees-$(docker ps --all --quiet | wc -l)", TICK];
    let id =
        case.gitlab.submit(docker_job(&script).variable("CANARY", "in-no-container-but-its-own"));
    case.gitlab.until_output(id, "sees-0").await;
    let sidecar = sidecar_of(id);
    let inspected = engine().docker(&["inspect", &sidecar]);
    let value: Value = serde_json::from_str(&inspected).unwrap();
    let host = &value[0]["HostConfig"];
    assert_eq!((&host["Privileged"], &host["NetworkMode"]), (&false.into(), &"none".into()));
    assert!(!inspected.contains("in-no-container-but-its-own"), "{inspected}");
    case.gitlab.set_status(id, "canceled");
    nothing_left(&case, id).await;
}

/// A job that has made a container with a pin, a network, a volume and an image when it says `made`.
fn making(name: &str) -> JobSpec {
    docker_job(&[
        "mkdir data && echo kept > data/file",
        "docker run --detach --name $NAME --restart always --volume $PWD/data:/data docker:cli \
         sleep 1000",
        "docker network create $NAME && docker volume create $NAME",
        "printf 'FROM docker:cli\\nLABEL made=1\\n' | docker build --tag $NAME:1 -",
        "echo all-there",
        "for i in $(seq 1000); do docker version > /dev/null || break; sleep 0.2; done; echo lost",
    ])
    .variable("NAME", name)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_of_longshore_nothing_is_left_on_the_engines_host() {
    let (_relay, mut case) = far().await;
    let name = format!("killed-{}", random_hex::<8>());
    let id = case.gitlab.submit(making(&name));
    case.gitlab.until_output(id, "all-there").await;
    let made = left_of_guards(&case).await;
    assert!(made.len() > 1, "neither directory nor pin: {made:?}");
    case.kill().await;
    ended_by_the_next(&mut case, id).await;
    nothing_made(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_longshore_is_gone_removes_what_the_job_made() {
    let (_relay, mut case) = far().await;
    let name = format!("alone-{}", random_hex::<8>());
    let id = case.gitlab.submit(making(&name));
    case.gitlab.until_output(id, "all-there").await;
    let sidecar = sidecar_of(id);
    case.kill().await;
    nothing_made(&name).await;
    // What remains is longshore's own, for its next start.
    engine().nothing_left_with(&sidecar).await;
    assert_eq!(left_of_guards(&case).await, [""; 0]);
    ended_by_the_next(&mut case, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_of_the_sidecar_another_removes_what_it_left() {
    let (_relay, case) = far().await;
    let name = format!("orphan-{}", random_hex::<8>());
    let id = case.gitlab.submit(making(&name));
    case.gitlab.until_output(id, "all-there").await;
    engine().docker(&["kill", &sidecar_of(id)]);
    let ended = case.gitlab.ended(id).await;
    ended.assert_success();
    ended.assert_lines(&["lost"]);
    assert!(ended.story().contains("The guarded Docker socket is gone"), "{}", ended.story());
    nothing_left(&case, id).await;
    nothing_made(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_of_both_nothing_is_left() {
    let (_relay, mut case) = far().await;
    let name = format!("both-{}", random_hex::<8>());
    let id = case.gitlab.submit(making(&name));
    case.gitlab.until_output(id, "all-there").await;
    let sidecar = sidecar_of(id);
    case.kill().await;
    // It may be about to end by itself.
    drop(
        Command::new("docker").args(["kill", &sidecar]).env("DOCKER_HOST", &engine().host).output(),
    );
    ended_by_the_next(&mut case, id).await;
    nothing_made(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_the_engine_does_not_have_is_said_with_its_key() {
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\nguard = \"sidecar\"\n\
                  engine_socket = \"/no/such/engine.sock\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let ended = case.run(docker_job(&["true"])).await;
    // Its server does not know `runner_configuration_error`.
    ended.assert_failed("script_failure", None);
    let story = ended.story();
    assert!(story.contains("hint: engine_socket in [runners.docker.socket]"), "{story}");
    nothing_left(&case, ended.id).await;
}

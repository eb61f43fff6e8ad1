//! What `kill -9` leaves: nothing, and a server that knows.

use crate::{
    counter::Counter,
    engine::engine,
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
    scripts::web,
    sidecar::left_of_guards,
};

/// At how many moments of a job it is tried.
const MOMENTS: usize = 10;

fn spec() -> JobSpec {
    job(&["echo started", "wget -q -O - http://web:8000/index.html", "sleep 2", "echo finished"])
        .service(web())
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_196_after_kill_9_at_any_moment_nothing_is_left_and_the_server_knows() {
    killed_at_any_moment(Options::default(), spec, &["started", "served", "finished"]).await;
}

/// A job with the guarded socket makes things itself, some without a label.
fn guarded(tag: &str) -> JobSpec {
    engine().needs_dind();
    job(&[
        "mkdir data && docker run --detach --volume $PWD/data:/data docker:cli sleep 1000",
        "docker network create net && docker volume create volume",
        "printf 'FROM docker:cli\nLABEL made=1\n' | docker build --tag $TAG:1 -",
        "echo finished",
    ])
    .image("docker:cli")
    .variable("TAG", tag)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_at_any_moment_nothing_is_left_of_what_a_guarded_job_made() {
    let docker = "[runners.docker.socket]\nmode = \"guarded\"";
    let spec = || guarded("made-in-crash");
    killed_at_any_moment(Options { docker, ..Options::default() }, spec, &["finished"]).await;
    assert_eq!(engine().docker(&["images", "--quiet", "made-in-crash"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_at_any_moment_nothing_is_left_of_a_job_with_a_sidecar() {
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\nguard = \"sidecar\"";
    let spec = || guarded("made-beside-crash");
    killed_at_any_moment(Options { docker, ..Options::default() }, spec, &["finished"]).await;
    assert_eq!(engine().docker(&["images", "--quiet", "made-beside-crash"]), "");
}

/// Kills longshore at moments of a job, by the requests that it has made to the engine.
async fn killed_at_any_moment(options: Options, spec: fn() -> JobSpec, lines: &[&str]) {
    let counter = Counter::start(engine().socket());
    let options = Options { engine: Some(counter.host()), ..options };
    let mut case = Case::with(options).await;
    // The first job makes what is made once a host, the second shows how many requests a job is.
    let mut needed = 0;
    for _ in 0..2 {
        let before = counter.count();
        let ended = case.run(spec()).await;
        ended.assert_success();
        engine().nothing_left_of(ended.id).await;
        needed = counter.count().since(&before).requests.len();
    }
    for moment in 0..MOMENTS {
        let reached = counter.count().requests.len() + 1 + needed * moment / MOMENTS;
        let id = case.gitlab.submit(spec());
        // The last requests of a job come after its end; there may be fewer this time.
        tokio::select! {
            () = counter.until(reached) => {}
            _ = case.gitlab.ended(id) => {}
        }
        case.kill().await;
        case.gitlab.allow_jump(id);
        case.restart();
        let ended = case.gitlab.ended(id).await;
        let known = matches!(
            (ended.state(), ended.failure_reason()),
            ("success", None) | ("failed", Some("runner_system_failure"))
        );
        assert!(known, "killed at moment {moment}: {}", ended.story());
        if ended.state() == "success" {
            ended.assert_lines(lines);
        }
        engine().nothing_left_of(id).await;
        // Killed once more while it tells of this job, it would tell again, and be noted for it.
        case.until_idle().await;
        assert_eq!(left_of_guards(&case).await, [""; 0], "killed at moment {moment}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_of_this_longshore_is_left_alone_by_its_sweep() {
    let mut case = Case::start().await;
    let other = Case::start().await;
    let running = other.gitlab.submit(job(&["echo started; while sleep 1; do echo tick; done"]));
    other.gitlab.until_output(running, "started").await;
    case.kill().await;
    case.restart();
    case.run(job(&["true"])).await.assert_success();
    assert!(!engine().running_containers(running).is_empty(), "a neighbour's job was removed");
    other.gitlab.set_status(running, "canceled");
    engine().nothing_left_of(running).await;
}

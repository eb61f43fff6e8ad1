//! What `kill -9` leaves, of longshore, of a job's own daemon and of the engine: nothing, and a
//! server that knows.

use std::time::Duration;

use serde_json::json;

use crate::{
    apart::{Apart, Containers},
    cgroup,
    counter::Counter,
    engine::{Engine, engine, patient},
    gitlab::{Ended, JobSpec, job},
    longshore::{Case, Options},
    scripts::web,
    sidecar::left_of_guards,
};

/// At how many moments of a job it is tried.
pub(crate) const MOMENTS: usize = 10;

fn spec() -> JobSpec {
    job(&["echo started", "wget -q -O - http://web:8000/index.html", "sleep 2", "echo finished"])
        .service(web())
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_196_after_kill_9_at_any_moment_nothing_is_left_and_the_server_knows() {
    let all = ["started", "served", "finished"];
    killed_at_any_moment(Options::default(), spec, async |_, ended| {
        if ended.state() == "success" {
            ended.assert_lines(&all);
        }
    })
    .await;
}

/// A runner whose jobs have a guarded socket.
fn guarding() -> Options {
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\n\
                  [runners.docker.socket.limits]\ntotal_pids = 400";
    Options { docker, ..Options::default() }
}

/// A job with the guarded socket makes things itself, some without a label.
fn guarded(tag: &str) -> JobSpec {
    engine().needs_dind();
    job(&[
        "mkdir data && docker run --detach --volume $PWD/data:/data docker:cli sleep 1000",
        "docker network create net && docker volume create volume",
        "printf \"FROM docker:cli\\nLABEL made=$TAG\\n\" | docker build --tag $TAG:1 -",
        "echo finished",
    ])
    .image("docker:cli")
    .variable("TAG", tag)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_at_any_moment_nothing_is_left_of_what_a_guarded_job_made() {
    let spec = || guarded("made-in-crash");
    killed_at_any_moment(guarding(), spec, async |case, ended| {
        if ended.state() == "success" {
            ended.assert_lines(&["finished"]);
        }
        assert_eq!(cgroup::groups_of(case.gitlab.project_id), [""; 0]);
    })
    .await;
    assert_eq!(made(engine(), "made-in-crash"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_at_any_moment_nothing_is_left_of_a_job_with_a_sidecar() {
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\nguard = \"sidecar\"";
    let spec = || guarded("made-beside-crash");
    killed_at_any_moment(Options { docker, ..Options::default() }, spec, async |case, ended| {
        if ended.state() == "success" {
            ended.assert_lines(&["finished"]);
        }
        assert_eq!(left_of_guards(case).await, [""; 0]);
    })
    .await;
    assert_eq!(made(engine(), "made-beside-crash"), "");
}

/// Images that jobs with this tag have built, under whatever name. A step of a build that was cut
/// short has none yet, nor a label that tells whose it is.
fn made(engine: &Engine, tag: &str) -> String {
    let label = format!("label=made={tag}");
    engine.docker(&["images", "--quiet", "--filter", &label, "--filter", "dangling=false"])
}

/// How many requests to the engine a job is. The first makes what is made once a host, the second
/// is like all others.
async fn requests_of_one(case: &Case, counter: &Counter, spec: fn() -> JobSpec) -> usize {
    let mut needed = 0;
    for _ in 0..2 {
        let before = counter.count();
        case.run(spec()).await.assert_success();
        case.until_idle().await;
        needed = counter.count().since(&before).requests.len();
    }
    needed
}

/// Kills longshore once it has made so many requests, most of them for this job, and starts it again;
/// it has told of the job and forgotten it when this returns.
pub(crate) async fn killed_at(
    case: &mut Case,
    counter: &Counter,
    spec: JobSpec,
    reached: usize,
) -> Ended {
    let id = case.gitlab.submit(spec);
    // The last requests of a job come after its end; there may be fewer this time.
    tokio::select! {
        () = counter.until(reached) => {}
        _ = case.gitlab.ended(id) => {}
    }
    case.kill().await;
    case.gitlab.allow_jump(id);
    case.restart();
    let ended = case.gitlab.ended(id).await;
    // Killed once more while it tells of this job, it would tell again, and be noted for it.
    case.until_idle().await;
    ended
}

/// Kills longshore at moments of a job, by the requests that it has made to the engine. `check` looks
/// at what is left, beside what must be so for all jobs.
pub(crate) async fn killed_at_any_moment(
    options: Options,
    spec: fn() -> JobSpec,
    check: impl AsyncFn(&Case, &Ended),
) {
    let counter = Counter::start(engine().socket());
    let options = Options { engine: Some(counter.host()), ..options };
    let mut case = Case::with(options).await;
    let needed = requests_of_one(&case, &counter, spec).await;
    for moment in 0..MOMENTS {
        let reached = counter.count().requests.len() + 1 + needed * moment / MOMENTS;
        let ended = killed_at(&mut case, &counter, spec(), reached).await;
        let known = matches!(
            (ended.state(), ended.failure_reason()),
            ("success", None) | ("failed", Some("runner_system_failure"))
        );
        assert!(known, "killed at moment {moment} of {needed} requests: {}", ended.story());
        engine().nothing_left_of(ended.id).await;
        check(&case, &ended).await;
    }
}

/// Says where a job is; where it is meant to lose its daemon, it waits until that has happened.
const AT: &str = "at() { echo at $1; [ $1 != \"$KILL_AT\" ] || \
                  while docker version > /dev/null 2>&1; do sleep 0.1; done; }";

/// A job beside its own daemon, which it uses to build and to run something.
fn with_daemon(kill_at: usize) -> JobSpec {
    engine().needs_dind();
    job(&[
        AT,
        "at 1",
        "tar -ch /usr/bin/sleep $(ldd /usr/bin/sleep | grep -o '/[^ ]*') 2> /dev/null \
         | docker import - inner:1",
        "printf 'FROM inner:1\\nRUN [\"sleep\", \"5\"]\\n' > D && docker build -f D . > log & \
         until grep -q 'Step 2' log; do sleep 0.1; done; at 2",
        "docker run --detach --volume /v inner:1 sleep 1000",
        "at 3",
        "docker ps --quiet",
        "at 4",
    ])
    .image("docker:cli")
    .service(json!({"name": "docker:dind"}))
    .after(&[AT, "at 5"])
    .variable("KILL_AT", &kill_at.to_string())
}

/// The container of a job's daemon, once it is there, and the volumes that it uses.
fn daemon_of(id: i64) -> Option<(String, Vec<String>)> {
    let containers = engine().running_containers(id);
    let names = containers.iter().filter_map(|line| line.split(' ').next());
    let name = names.into_iter().find(|name| name.contains("-docker-"))?.to_owned();
    let template = "{{range .Mounts}}{{println .Name}}{{end}}";
    let volumes = engine().docker(&["inspect", "--format", template, &name]);
    Some((name, volumes.split_whitespace().map(str::to_owned).collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_daemon_is_killed_at_any_moment_ends_by_itself_and_leaves_nothing() {
    let counter = Counter::start(engine().socket());
    let case = Case::with(Options { engine: Some(counter.host()), ..Options::default() }).await;
    // What is asked once an engine is asked.
    case.run(short_with_daemon()).await.assert_success();
    case.until_idle().await;
    // Where in a job's requests the daemon is started, and where its script begins.
    let before = counter.count();
    let id = case.gitlab.submit(with_daemon(1));
    case.gitlab.until_output(id, "at 1\n").await;
    let prepared = counter.count().since(&before).requests;
    let started = prepared.iter().position(|line| line.contains("/start")).unwrap() + 1;
    engine().docker(&["kill", &daemon_of(id).unwrap().0]);
    case.gitlab.ended(id).await.assert_failed("script_failure", Some(1));
    case.until_idle().await;
    let half = MOMENTS / 2;
    let mut endings = Vec::new();
    for moment in 0..MOMENTS {
        let reached = (prepared.len() - started) * moment / half;
        let reached = counter.count().requests.len() + started + reached;
        let at = moment.checked_sub(half).map(|place| place + 1);
        if at.is_none() {
            counter.hold_after(reached);
        }
        let id = case.gitlab.submit(with_daemon(at.unwrap_or_default()));
        match at {
            // One that is held has been counted.
            None => counter.until(reached + 1).await,
            Some(place) => case.gitlab.until_output(id, &format!("at {place}\n")).await,
        }
        // Its start has been asked for.
        let mut again = tokio::time::interval(Duration::from_millis(50));
        let (daemon, volumes) = loop {
            again.tick().await;
            if let Some(found) = daemon_of(id) {
                break found;
            }
        };
        engine().docker(&["kill", &daemon]);
        counter.go_on();
        let ended = case.gitlab.ended(id).await;
        case.until_idle().await;
        engine().nothing_left_of(id).await;
        // Anonymous ones have no label that tells whose they are.
        let there = engine().volumes();
        let left: Vec<_> = volumes.iter().filter(|name| there.contains(name)).collect();
        assert!(left.is_empty(), "moment {moment}: {left:?}\n{}", ended.story());
        endings.push((moment, ended));
    }
    for (moment, ended) in endings {
        let story = ended.plain();
        let says_so = story.contains("ended with exit code 137");
        let has_begun = story.contains("$ at 1");
        match (ended.state(), ended.failure_reason()) {
            ("failed", Some("runner_system_failure")) => {
                assert!(!has_begun && says_so && moment < half, "moment {moment}: {story}");
            }
            ("failed", Some("script_failure")) => {
                assert!(has_begun && says_so, "moment {moment}: {story}");
            }
            // Nothing of the script needs it any more.
            ending => assert!(ending.0 == "success" && moment >= MOMENTS - 2, "{moment}: {story}"),
        }
    }
}

/// One of the jobs that run when the engine is killed.
struct Victim {
    case: Case,
    counter: Counter,
    spec: fn() -> JobSpec,
    needed: usize,
}

impl Victim {
    async fn new(apart: &Apart, options: Options, spec: fn() -> JobSpec) -> Self {
        let counter = Counter::start(apart.engine.socket());
        let case = Case::with(Options { engine: Some(counter.host()), ..options }).await;
        let needed = requests_of_one(&case, &counter, spec).await;
        Self { case, counter, spec, needed }
    }

    /// Brings a job to a moment; it is held there.
    async fn reach(&self, moment: usize) -> i64 {
        let before = self.counter.count().requests.len();
        let reached = before + self.needed * moment / MOMENTS;
        self.counter.hold_after(reached);
        let id = self.case.gitlab.submit((self.spec)());
        tokio::select! {
            () = self.counter.until(reached + 1) => {}
            _ = self.case.gitlab.ended(id) => {}
        }
        id
    }

    /// The job ends, and longshore forgets it. False when that took a new start.
    async fn ends(&mut self, id: i64, moment: usize) -> bool {
        let ended = self.case.gitlab.ended(id).await;
        let known = matches!(
            (ended.state(), ended.failure_reason()),
            ("success", None) | ("failed", Some("runner_system_failure"))
        );
        assert!(known, "killed at moment {moment} of {}: {}", self.needed, ended.story());
        if self.case.is_idle_in(patient(Duration::from_secs(20))).await {
            return true;
        }
        self.case.kill().await;
        self.case.gitlab.allow_jump(id);
        self.case.restart();
        self.case.until_idle().await;
        false
    }
}

/// Two jobs at once, so that an engine is killed and started as seldom as possible: that takes up to
/// ten seconds, as it first stops what outlived it.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_killed_at_any_moment_of_jobs_with_docker_keeps_nothing_of_them() {
    let Some(apart) = Apart::start() else { return };
    let (mut daemon, mut guard) = tokio::join!(
        Victim::new(&apart, Options::default(), short_with_daemon),
        Victim::new(&apart, guarding(), || guarded("made-in-engine")),
    );
    assert_eq!(apart.engine.left(), [""; 0]);
    let mut restarts = Vec::new();
    for moment in 0..MOMENTS {
        let ids = tokio::join!(daemon.reach(moment), guard.reach(moment));
        apart.kill(if moment % 4 == 0 { Containers::Live } else { Containers::Die }).await;
        daemon.counter.go_on();
        guard.counter.go_on();
        Apart::up();
        let alone = tokio::join!(daemon.ends(ids.0, moment), guard.ends(ids.1, moment));
        if alone != (true, true) {
            restarts.push((moment, alone));
        }
        assert_eq!(apart.engine.left(), [""; 0], "killed at moment {moment}");
        assert_eq!(made(&apart.engine, "made-in-engine"), "", "killed at moment {moment}");
        let project = guard.case.gitlab.project_id;
        assert_eq!(cgroup::groups_of(project), [""; 0], "moment {moment}");
        let guards = std::fs::read_dir(guard.case.state().join("guards")).unwrap();
        assert_eq!(guards.count(), 0, "a directory of a guard is left at moment {moment}");
    }
    assert_eq!(restarts, [], "moments after which it took a new start of longshore");
}

/// A job beside its own daemon, as short as can be.
fn short_with_daemon() -> JobSpec {
    engine().needs_dind();
    job(&["docker info > /dev/null", "docker volume create vv"])
        .image("docker:cli")
        .service(json!({"name": "docker:dind"}))
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

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use super::{terminal::tests::Screen, *};
use crate::gitlab::api::wire::JobPayload;

/// A runner that does what it is told about each job: its exit code and what it prints.
#[derive(Clone, Default)]
struct FakeRunner {
    exit_codes: BTreeMap<&'static str, i32>,
    /// Jobs in the order they were taken, and what was left running then.
    taken: Arc<Mutex<Vec<String>>>,
    setup: Arc<Mutex<Option<RunnerSetup>>>,
    /// Cancelled when a job says something.
    user_stop: Option<CancellationToken>,
}

type RunnerResult = Result<(), reqwest::Error>;

impl FakeRunner {
    async fn run(self, setup: RunnerSetup, stop: CancellationToken) -> RunnerResult {
        *self.setup.lock().unwrap() = Some(setup.clone());
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut workers = JoinSet::new();
        for _ in 0..setup.concurrent {
            let (runner, client) = (self.clone(), client.clone());
            let (setup, stop) = (setup.clone(), stop.clone());
            workers.spawn(async move { runner.work(&client, &setup, &stop).await });
        }
        while let Some(worker) = workers.join_next().await {
            worker.unwrap()?;
        }
        Ok(())
    }

    async fn work(
        &self,
        client: &reqwest::Client,
        setup: &RunnerSetup,
        stop: &CancellationToken,
    ) -> RunnerResult {
        while !stop.is_cancelled() {
            let body = serde_json::json!({ "token": setup.token });
            let request = client.post(format!("{}/api/v4/jobs/request", setup.url)).json(&body);
            let response = request.send().await?;
            if response.status() == 204 {
                stop.cancelled().await;
                return Ok(());
            }
            self.job(client, setup, response.json().await?).await?;
        }
        Ok(())
    }

    async fn job(
        &self,
        client: &reqwest::Client,
        setup: &RunnerSetup,
        job: JobPayload,
    ) -> RunnerResult {
        let name = job.job_info.name.clone();
        self.taken.lock().unwrap().push(name.clone());
        let url = format!("{}/api/v4/jobs/{}", setup.url, job.id);
        let trace = format!("section_start:1:s\r\x1b[0K$ {name}\n");
        let patched = client
            .patch(format!("{url}/trace"))
            .header("JOB-TOKEN", job.token.expose())
            .header("Content-Range", format!("0-{}", trace.len() - 1))
            .body(trace)
            .send()
            .await?;
        assert_eq!(patched.status(), 202);
        if let Some(user_stop) = &self.user_stop {
            user_stop.cancel();
            loop {
                let body = serde_json::json!({ "token": job.token, "state": "running" });
                let answer = client.put(&url).json(&body).send().await?;
                if answer.headers()["job-status"] == "canceling" {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let code = self.exit_codes.get(name.as_str()).copied().unwrap_or_default();
        let failed = code != 0 || self.user_stop.is_some();
        let body = serde_json::json!({
            "token": job.token,
            "state": if failed { "failed" } else { "success" },
            "failure_reason": failed.then_some("script_failure"),
            "exit_code": code,
            "output": {},
        });
        let ended = client.put(&url).json(&body).send().await?;
        assert_eq!(ended.status(), 200);
        Ok(())
    }
}

struct Ran {
    status: Result<ExitStatus, ExecError>,
    taken: Vec<String>,
    screen: String,
    setup: Option<RunnerSetup>,
    project: tempfile::TempDir,
}

fn options(project: &Path, jobs: &[&str]) -> (Exec, Screen) {
    let screen = Screen::default();
    let options = Exec {
        directory: project.to_owned(),
        file: None,
        jobs: jobs.iter().map(|&job| job.to_owned()).collect(),
        no_needs: false,
        variables: Vec::new(),
        concurrent: Some(1),
        artifacts: None,
        list: false,
        colour: false,
        output: Box::new(screen.clone()),
        stop: CancellationToken::new(),
    };
    (options, screen)
}

async fn run(yaml: &str, jobs: &[&str], mut runner: FakeRunner) -> Ran {
    let project = tempfile::tempdir().unwrap();
    std::fs::write(project.path().join(".gitlab-ci.yml"), yaml).unwrap();
    let (mut options, screen) = options(project.path(), jobs);
    if runner.user_stop.is_some() {
        runner.user_stop = Some(options.stop.clone());
    }
    options.variables.push(("GIVEN".to_owned(), "1".to_owned()));
    let inside = runner.clone();
    let status = exec(options, |setup, stop| inside.run(setup, stop)).await;
    let taken = runner.taken.lock().unwrap().clone();
    let setup = runner.setup.lock().unwrap().take();
    Ran { status, taken, screen: screen.text(), setup, project }
}

fn failing(jobs: &[(&'static str, i32)]) -> FakeRunner {
    FakeRunner { exit_codes: jobs.iter().copied().collect(), ..FakeRunner::default() }
}

const PIPELINE: &str = "\
stages: [build, test, deploy]
build: {stage: build, script: make}
lint: {stage: build, script: lint, allow_failure: {exit_codes: [3]}}
unit: {stage: test, script: test, needs: [build]}
all: {stage: test, script: test, rules: [{if: $GIVEN}]}
clean: {stage: deploy, script: clean, when: always}
alarm: {stage: deploy, script: alarm, when: on_failure}
ship: {stage: deploy, script: ship, when: manual}
";

#[tokio::test]
async fn a_pipeline_runs_in_order_and_succeeds() {
    let ran = run(PIPELINE, &[], failing(&[("lint", 3)])).await;
    assert_eq!(ran.status.unwrap(), ExitStatus::Success);
    assert_eq!(ran.taken, ["build", "lint", "unit", "all", "clean"]);
    assert!(ran.screen.contains("build | $ build\n"), "{}", ran.screen);
    for line in ["lint   failed (allowed)", "alarm  skipped", "ship   manual", "all    success"] {
        assert!(ran.screen.contains(line), "{line} in {}", ran.screen);
    }
    assert!(!ran.screen.contains("section_"));
    let ignore = ran.project.path().join(".longshore/artifacts/.gitignore");
    assert_eq!(std::fs::read_to_string(ignore).unwrap(), "*\n");
}

#[tokio::test]
async fn a_failure_skips_and_alarms_and_is_the_exit_status() {
    let ran = run(PIPELINE, &[], failing(&[("build", 1)])).await;
    assert_eq!(ran.status.unwrap().code(), 1);
    assert_eq!(ran.taken, ["build", "lint", "clean", "alarm"]);
    assert!(ran.screen.contains("unit   skipped"), "{}", ran.screen);
}

#[tokio::test]
async fn named_jobs_run_with_what_they_need() {
    let ran = run(PIPELINE, &["unit", "ship"], FakeRunner::default()).await;
    assert_eq!(ran.status.unwrap(), ExitStatus::Success);
    assert_eq!(ran.taken, ["build", "unit", "ship"]);
}

#[tokio::test]
async fn a_manual_job_that_was_named_may_not_fail_unnoticed() {
    let ran = run(PIPELINE, &["ship"], failing(&[("ship", 1)])).await;
    assert_eq!(ran.status.unwrap(), ExitStatus::Failed);
}

#[tokio::test]
async fn several_jobs_run_at_once() {
    let project = tempfile::tempdir().unwrap();
    std::fs::write(project.path().join(".gitlab-ci.yml"), "j: {script: x, parallel: 12}\n")
        .unwrap();
    let (mut options, _) = options(project.path(), &[]);
    options.concurrent = Some(4);
    let runner = FakeRunner::default();
    let inside = runner.clone();
    let status = exec(options, |setup, stop| inside.run(setup, stop)).await.unwrap();
    assert_eq!((status, runner.taken.lock().unwrap().len()), (ExitStatus::Success, 12));
}

#[tokio::test]
async fn the_runner_gets_the_sources_and_a_token_that_begins_alike() {
    let ran = run("a: {script: x}\n", &[], FakeRunner::default()).await;
    let setup = ran.setup.unwrap();
    assert!(setup.url.starts_with("http://127.0.0.1:"));
    assert_eq!(setup.bundle.file_name().unwrap(), "sources.bundle");
    assert!(!setup.bundle.exists(), "it goes when the pipeline has ended");
    let short = crate::base::ids::ShortToken::of(setup.token.expose());
    assert!(short.as_str().starts_with("exec") && short.as_str().len() == 9, "{short}");
}

#[tokio::test]
async fn a_user_who_stops_gets_canceled_jobs() {
    let stopped = FakeRunner { user_stop: Some(CancellationToken::new()), ..FakeRunner::default() };
    let ran = run("a: {script: x, stage: build}\nb: {script: x}\n", &[], stopped).await;
    assert_eq!(ran.status.unwrap(), ExitStatus::Failed);
    assert_eq!(ran.taken, ["a"]);
    assert!(ran.screen.contains("a | canceled") && ran.screen.contains("b | canceled"));
}

#[tokio::test]
async fn a_runner_that_fails_or_leaves_is_an_error() {
    let project = tempfile::tempdir().unwrap();
    std::fs::write(project.path().join(".gitlab-ci.yml"), "a: {script: x}\n").unwrap();
    let (gone, _) = options(project.path(), &[]);
    let error = exec(gone, |_, _| async { Ok::<(), io::Error>(()) }).await.unwrap_err();
    assert!(matches!(error, ExecError::RunnerEnded));
    let (broken, _) = options(project.path(), &[]);
    let error =
        exec(broken, |_, _| async { Err(io::Error::other("no engine")) }).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.code()), ("the runner failed", 3));
    assert_eq!(error.source().unwrap().to_string(), "no engine");
}

#[tokio::test]
async fn a_wrong_file_is_exit_status_2_and_nothing_runs() {
    let ran = run("a: {trigger: x}\n", &[], FakeRunner::default()).await;
    assert_eq!(ran.status.unwrap_err().code(), 2);
    assert!(ran.setup.is_none());
    let ran = run("a: {script: x}\n", &["b"], FakeRunner::default()).await;
    assert_eq!(ran.status.unwrap_err().code(), 2);
    let empty = tempfile::tempdir().unwrap();
    let (options, _) = options(empty.path(), &[]);
    let missing = exec(options, |_, _| async { Ok::<(), io::Error>(()) }).await.unwrap_err();
    assert_eq!(missing.code(), 2);
}

#[tokio::test]
async fn a_pipeline_of_manual_jobs_needs_no_runner() {
    let ran = run("a: {script: x, when: manual}\n", &[], FakeRunner::default()).await;
    assert_eq!(ran.status.unwrap(), ExitStatus::Success);
    assert!(ran.setup.is_none());
    assert_eq!(ran.screen, "a | manual\n");
}

#[tokio::test]
async fn the_list_runs_nothing_and_shows_warnings() {
    let project = tempfile::tempdir().unwrap();
    let file = project.path().join("ci.yml");
    std::fs::write(&file, "a: {script: x, tags: [t]}\n").unwrap();
    let (mut options, screen) = options(project.path(), &[]);
    options.list = true;
    options.file = Some("ci.yml".into());
    exec(options, |_, _| async { Err(io::Error::other("not called")) }).await.unwrap();
    let expected = "warning: ci.yml:1: a.tags: has no effect here\n\
                    NAME  STAGE  WHEN        NEEDS\na     test   on_success\n";
    assert_eq!(screen.text(), expected);
}

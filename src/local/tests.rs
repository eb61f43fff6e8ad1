//! Whole pipelines on an executor in memory.

use std::{
    collections::HashMap,
    convert::Infallible,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{terminal::tests::Screen, *};
use crate::{
    base::{
        ids::{JobId, RunnerName, ShortToken},
        secret::Secret,
    },
    config::{LocalRunner, PullPolicy, RunnerConfig},
    executor::{
        Executor, ExecutorError, Session, SessionRequest,
        fake::{FakeExecutor, FakeHost, Play, Step, Trouble},
    },
    ledger::{JobDirectories, LedgerEntry, Owner, Resource, SessionState, StateDir},
    runner::{Process, Runner},
    workload::{Leases, Workload},
};

/// An executor with a host in memory for each job.
#[derive(Default)]
struct Hosts {
    hosts: Mutex<HashMap<String, Arc<FakeHost>>>,
    /// The jobs in the order in which they began.
    began: Mutex<Vec<String>>,
}

impl Hosts {
    fn host(&self, job: &str) -> Arc<FakeHost> {
        Arc::clone(self.hosts.lock().entry(job.to_owned()).or_default())
    }

    /// The jobs that fail, with their exit codes.
    fn failing(jobs: &[(&str, i32)]) -> Arc<Self> {
        let hosts = Arc::new(Self::default());
        for &(job, exit_code) in jobs {
            hosts.host(job).play("step_script", Play { exit_code, ..Play::default() });
        }
        hosts
    }

    fn of(&self, workload: &Workload) -> FakeExecutor {
        FakeExecutor::new(&self.host(&name(workload)))
    }
}

fn name(workload: &Workload) -> String {
    workload.variables.value("CI_JOB_NAME").unwrap().to_owned()
}

/// The executor of a pipeline's runner.
struct HostsExecutor(Arc<Hosts>);

impl Executor for HostsExecutor {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn connect(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        async { Ok(()) }.boxed()
    }

    fn lease<'a>(&'a self, draft: &'a Workload) -> BoxFuture<'a, Leases> {
        async { self.0.of(draft).lease(draft).await }.boxed()
    }

    fn release<'a>(&'a self, workload: &'a Workload) -> BoxFuture<'a, ()> {
        async { self.0.of(workload).release(workload).await }.boxed()
    }

    fn resources(&self, workload: &Workload) -> Vec<Resource> {
        self.0.of(workload).resources(workload)
    }

    fn open(&self, request: SessionRequest) -> Arc<dyn Session> {
        self.0.began.lock().push(name(&request.workload));
        self.0.of(&request.workload).open(request)
    }

    fn reattach<'a>(
        &'a self,
        _state: &'a SessionState,
        _request: SessionRequest,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Session>>, ExecutorError>> {
        async { Ok(None) }.boxed()
    }

    fn remove_orphaned<'a>(
        &'a self,
        entry: &'a LedgerEntry,
        _directories: &'a JobDirectories,
    ) -> BoxFuture<'a, bool> {
        self.0.began.lock().push(format!("removal of {}", entry.owner.job()));
        async { true }.boxed()
    }
}

/// A project with a pipeline, and what runs it.
struct Pipeline {
    project: tempfile::TempDir,
    state: tempfile::TempDir,
    hosts: Arc<Hosts>,
    screen: Screen,
    stop: CancellationToken,
    /// The token that the runner was to have.
    token: Mutex<Option<Secret>>,
}

impl Pipeline {
    fn new(yaml: &str, hosts: Arc<Hosts>) -> Self {
        let project = tempfile::tempdir().unwrap();
        std::fs::write(project.path().join(".gitlab-ci.yml"), yaml).unwrap();
        Self {
            project,
            state: tempfile::tempdir().unwrap(),
            hosts,
            screen: Screen::default(),
            stop: CancellationToken::new(),
            token: Mutex::default(),
        }
    }

    fn options(&self, jobs: &[&str]) -> Exec {
        Exec {
            directory: self.project.path().to_owned(),
            file: None,
            jobs: jobs.iter().map(|&job| job.to_owned()).collect(),
            no_needs: false,
            variables: vec![("GIVEN".to_owned(), "1".to_owned())],
            concurrent: Some(1),
            artifacts: None,
            list: false,
            colour: false,
            output: Box::new(self.screen.clone()),
            stop: self.stop.clone(),
        }
    }

    fn runner(&self, token: Secret) -> Arc<Runner> {
        *self.token.lock() = Some(token.clone());
        let state = StateDir::open(self.state.path()).unwrap();
        Arc::new(Runner {
            config: Arc::new(RunnerConfig::local(LocalRunner {
                token,
                image: "busybox".to_owned(),
                pull_policy: PullPolicy::IfNotPresent,
                volumes: vec!["/cache".to_owned()],
                privileged: false,
            })),
            executor: Arc::new(HostsExecutor(Arc::clone(&self.hosts))),
            process: Arc::new(Process::new("exec".to_owned(), state)),
        })
    }

    async fn exec(&self, options: Exec) -> Result<ExitStatus, ExecError> {
        exec(options, |token| Ok::<_, Infallible>(self.runner(token))).await
    }

    /// Runs these jobs, or all.
    async fn run(&self, jobs: &[&str]) -> Result<ExitStatus, ExecError> {
        self.exec(self.options(jobs)).await
    }

    fn began(&self) -> Vec<String> {
        self.hosts.began.lock().clone()
    }

    fn artifacts(&self) -> PathBuf {
        self.project.path().join(".longshore/artifacts")
    }

    #[track_caller]
    fn assert_shown(&self, texts: &[&str]) {
        let screen = self.screen.text();
        for text in texts {
            assert!(screen.contains(text), "no `{text}` in:\n{screen}");
        }
    }

    /// Nothing is left of the jobs, on their hosts or in the ledger.
    fn assert_clean(&self) {
        for (job, host) in &*self.hosts.hosts.lock() {
            assert_eq!(host.resources(), [], "resources of {job}");
            assert_eq!(host.leases(), 0, "leases of {job}");
        }
        let jobs = std::fs::read_dir(self.state.path().join("jobs")).unwrap();
        assert_eq!(jobs.count(), 0, "jobs in the ledger");
    }
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
    let pipeline = Pipeline::new(PIPELINE, Hosts::failing(&[("lint", 3)]));
    let out = "hello from build\n".to_owned();
    pipeline.hosts.host("build").play("step_script", Play { out, ..Play::default() });
    assert_eq!(pipeline.run(&[]).await.unwrap(), ExitStatus::Success);
    assert_eq!(pipeline.began(), ["build", "lint", "unit", "all", "clean"]);
    pipeline.assert_shown(&[
        "build | started\n",
        "build | hello from build\n",
        "build | Job succeeded\n",
        "lint   failed (allowed)",
        "alarm  skipped",
        "ship   manual",
        "all    success",
    ]);
    assert!(!pipeline.screen.text().contains("section_"));
    let ignore = pipeline.artifacts().join(".gitignore");
    assert_eq!(std::fs::read_to_string(ignore).unwrap(), "*\n");
    pipeline.assert_clean();
}

#[tokio::test]
async fn a_failure_skips_and_alarms_and_is_the_exit_status() {
    let pipeline = Pipeline::new(PIPELINE, Hosts::failing(&[("build", 1)]));
    assert_eq!(pipeline.run(&[]).await.unwrap(), ExitStatus::Failed);
    assert_eq!(pipeline.began(), ["build", "lint", "clean", "alarm"]);
    pipeline.assert_shown(&["unit   skipped", "build | failed  0"]);
    pipeline.assert_clean();
}

#[tokio::test]
async fn a_system_that_fails_is_told_with_its_reason() {
    let pipeline = Pipeline::new("a: {script: x}\n", Arc::default());
    pipeline.hosts.host("a").trouble(Step::Prepare, Trouble::Fails);
    assert_eq!(pipeline.run(&[]).await.unwrap(), ExitStatus::Failed);
    pipeline.assert_shown(&["Prepare: it broke", "hint: mend it", "(runner system failure)"]);
    pipeline.assert_clean();
}

#[tokio::test]
async fn named_jobs_run_with_what_they_need() {
    let pipeline = Pipeline::new(PIPELINE, Arc::default());
    assert_eq!(pipeline.run(&["unit", "ship"]).await.unwrap(), ExitStatus::Success);
    assert_eq!(pipeline.began(), ["build", "unit", "ship"]);
}

#[tokio::test]
async fn a_manual_job_that_was_named_may_not_fail_unnoticed() {
    let pipeline = Pipeline::new(PIPELINE, Hosts::failing(&[("ship", 1)]));
    assert_eq!(pipeline.run(&["ship"]).await.unwrap(), ExitStatus::Failed);
}

#[tokio::test]
async fn several_jobs_run_at_once_and_no_more_than_are_allowed() {
    let yaml = "j: {script: x, parallel: 4}\n";
    let pipeline = Pipeline::new(yaml, Arc::default());
    let hosts: Vec<_> = (1..=4).map(|n| pipeline.hosts.host(&format!("j {n}/4"))).collect();
    for host in &hosts[..3] {
        host.trouble(Step::RunScript, Trouble::Hangs);
    }
    let options = Exec { concurrent: Some(3), ..pipeline.options(&[]) };
    let (status, ()) = tokio::join!(pipeline.exec(options), async {
        for host in &hosts[..3] {
            host.reached(Step::RunScript, 1).await;
        }
        assert_eq!(pipeline.began().len(), 3);
        pipeline.stop.cancel();
    });
    assert_eq!(status.unwrap(), ExitStatus::Failed);
    assert_eq!(pipeline.began().len(), 3, "the fourth was canceled before it began");
    pipeline.assert_clean();
}

#[tokio::test]
async fn artifacts_go_to_the_user_and_to_the_jobs_that_depend_on_them() {
    let yaml = "a: {stage: build, script: x, artifacts: {paths: [out]}}\n\
                b: {stage: build, script: x}\nc: {script: x, needs: [a]}\nd: {script: x, needs: [b]}\n";
    let pipeline = Pipeline::new(yaml, Arc::default());
    assert_eq!(pipeline.run(&[]).await.unwrap(), ExitStatus::Success);
    assert!(pipeline.artifacts().join("a/artifacts.zip").exists());
    pipeline.assert_shown(&[
        "a | archive: ",
        "a/artifacts.zip (0 B)",
        "c | Downloading artifacts for a (",
    ]);
    assert!(!pipeline.screen.text().contains("d | Downloading"), "{}", pipeline.screen.text());
    pipeline.assert_clean();
}

#[tokio::test]
async fn an_artifact_that_cannot_be_kept_fails_its_job() {
    let yaml = "a: {script: x, artifacts: {paths: [out]}}\n";
    let pipeline = Pipeline::new(yaml, Arc::default());
    // A file is where the job's folder would be.
    std::fs::create_dir_all(pipeline.artifacts()).unwrap();
    std::fs::write(pipeline.artifacts().join("a"), "").unwrap();
    assert_eq!(pipeline.run(&[]).await.unwrap(), ExitStatus::Failed);
    pipeline.assert_shown(&["a | ERROR: cannot keep the artifact artifacts.zip: cannot write to"]);
    pipeline.assert_clean();
}

#[tokio::test]
async fn the_runner_gets_the_sources_and_a_token_that_is_the_projects_own() {
    let pipeline = Pipeline::new("a: {script: x}\n", Arc::default());
    pipeline.run(&[]).await.unwrap();
    let token = pipeline.token.lock().take().unwrap();
    let short = ShortToken::of(token.expose());
    assert!(short.as_str().starts_with("exec") && short.as_str().len() == 9, "{short}");
    pipeline.run(&[]).await.unwrap();
    assert_eq!(*pipeline.token.lock(), Some(token));
    pipeline.assert_shown(&["a | Getting source from Git repository"]);
    assert_eq!(pipeline.hosts.host("a").count(Step::StartHelper), 2);
}

#[tokio::test]
async fn a_user_who_stops_gets_canceled_jobs_with_their_after_script() {
    let yaml = "a: {script: x, stage: build, after_script: [y]}\nb: {script: x}\n";
    let pipeline = Pipeline::new(yaml, Arc::default());
    let host = pipeline.hosts.host("a");
    host.trouble(Step::RunScript, Trouble::Hangs);
    let (status, ()) = tokio::join!(pipeline.run(&[]), async {
        host.reached(Step::RunScript, 1).await;
        pipeline.stop.cancel();
    });
    assert_eq!(status.unwrap(), ExitStatus::Failed);
    assert_eq!(pipeline.began(), ["a"]);
    assert_eq!(host.stages(), ["step_script", "after_script"]);
    pipeline.assert_shown(&["a | canceled", "(job canceled)", "b | canceled"]);
    pipeline.assert_clean();
}

#[tokio::test]
async fn jobs_that_an_earlier_run_left_are_removed() {
    let pipeline = Pipeline::new("a: {script: x}\n", Arc::default());
    let state = StateDir::open(pipeline.state.path()).unwrap();
    let entry = LedgerEntry {
        owner: Owner::Local { job: JobId(7) },
        runner: RunnerName::new("exec"),
        address: None,
        resources: Vec::new(),
    };
    drop(state.begin("exec-7", &entry).unwrap());
    drop(state);
    pipeline.run(&[]).await.unwrap();
    assert!(pipeline.began().contains(&"removal of 7".to_owned()));
    pipeline.assert_clean();
}

#[tokio::test]
async fn a_runner_that_cannot_be_made_is_an_error() {
    let pipeline = Pipeline::new("a: {script: x}\n", Arc::default());
    let broken = exec(pipeline.options(&[]), |_| Err(io::Error::other("no state"))).await;
    let error = broken.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.code()), ("the runner failed", 3));
    assert_eq!(error.source().unwrap().to_string(), "no state");
}

#[tokio::test]
async fn a_wrong_file_is_exit_status_2_and_nothing_runs() {
    let pipeline = Pipeline::new("a: {trigger: x}\n", Arc::default());
    assert_eq!(pipeline.run(&[]).await.unwrap_err().code(), 2);
    let pipeline = Pipeline::new("a: {script: x}\n", Arc::default());
    assert_eq!(pipeline.run(&["b"]).await.unwrap_err().code(), 2);
    assert!(pipeline.token.lock().is_none());
    std::fs::remove_file(pipeline.project.path().join(".gitlab-ci.yml")).unwrap();
    assert_eq!(pipeline.run(&[]).await.unwrap_err().code(), 2);
}

#[tokio::test]
async fn a_pipeline_of_manual_jobs_needs_no_runner() {
    let pipeline = Pipeline::new("a: {script: x, when: manual}\n", Arc::default());
    assert_eq!(pipeline.run(&[]).await.unwrap(), ExitStatus::Success);
    assert!(pipeline.token.lock().is_none());
    assert_eq!(pipeline.screen.text(), "a | manual\n");
}

#[tokio::test]
async fn the_list_runs_nothing_and_shows_warnings() {
    let pipeline = Pipeline::new("", Arc::default());
    let file = pipeline.project.path().join("ci.yml");
    std::fs::write(&file, "a: {script: x, tags: [t]}\n").unwrap();
    let file = Some(Path::new("ci.yml").to_owned());
    pipeline.exec(Exec { list: true, file, ..pipeline.options(&[]) }).await.unwrap();
    let expected = "warning: ci.yml:1: a.tags: has no effect here\n\
                    NAME  STAGE  WHEN        NEEDS\na     test   on_success\n";
    assert_eq!(pipeline.screen.text(), expected);
    assert!(pipeline.token.lock().is_none());
}

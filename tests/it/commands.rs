//! The commands, as an operator or a script gives them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

use crate::{
    engine::{engine, patient},
    gitlab::{Gitlab, LEGACY_TOKEN, REGISTRATION_TOKEN, RUNNER_TOKEN, job},
    longshore::Case,
};

/// How long a command may take.
const ENDING: Duration = Duration::from_mins(1);

/// What a command said and how it ended.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    #[track_caller]
    fn assert(&self, code: i32, wanted: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.all());
        for text in wanted {
            assert!(self.all().contains(text), "no `{text}` in:\n{}", self.all());
        }
    }
}

/// A command to be run.
pub(crate) struct Longshore {
    command: Command,
    input: String,
}

/// `longshore` with these arguments, and nothing of the test's environment that it listens to.
pub(crate) fn longshore(arguments: &[&str]) -> Longshore {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("DOCKER_HOST", &engine().host)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Longshore { command, input: String::new() }
}

impl Longshore {
    pub(crate) fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.command.args(arguments);
        self
    }

    fn config(mut self, path: &Path) -> Self {
        self.command.arg("--config").arg(path);
        self
    }

    fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    fn input(mut self, text: &str) -> Self {
        text.clone_into(&mut self.input);
        self
    }

    pub(crate) async fn run(mut self) -> Said {
        let mut child = self.command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // It may have ended without reading it.
        drop(input.write_all(self.input.as_bytes()).await);
        drop(input);
        let output = tokio::time::timeout(patient(ENDING), child.wait_with_output());
        let output = output.await.expect("the command does not end").unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A server and a place for a configuration file.
struct Desk {
    gitlab: Gitlab,
    directory: TempDir,
}

impl Desk {
    async fn new() -> Self {
        let gitlab = Gitlab::start(&engine().gateway).await;
        Self { gitlab, directory: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap()
    }

    async fn register(&self, more: &[&str]) -> Said {
        let given = ["register", "--non-interactive", "--url", &self.gitlab.url];
        let rest = ["--executor", "docker", "--docker-image", "busybox:latest"];
        longshore(&[&given, &rest, more].concat()).config(&self.config()).run().await
    }

    async fn run(&self, arguments: &[&str]) -> Said {
        longshore(arguments).config(&self.config()).run().await
    }

    fn calls(&self, method: &str, path: &str) -> usize {
        let path = format!("/api/v4/{path}");
        self.gitlab.with(|state| {
            let fits = |request: &&crate::gitlab::Recorded| {
                request.method == method && request.path == path
            };
            state.requests.iter().filter(fits).count()
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_29_a_runner_is_registered_listed_verified_and_unregistered() {
    let desk = Desk::new().await;
    let said = desk.register(&["--token", RUNNER_TOKEN, "--name", "one"]).await;
    said.assert(0, &["is valid", "is registered"]);
    assert!(!said.all().contains(RUNNER_TOKEN), "{}", said.all());
    assert!(
        desk.text().contains(RUNNER_TOKEN) && desk.text().contains("id = 1"),
        "{}",
        desk.text()
    );

    let said = desk.run(&["list"]).await;
    said.assert(0, &["one", "Executor=docker", RUNNER_TOKEN, &desk.gitlab.url]);
    desk.run(&["verify"]).await.assert(0, &["`one`", "is valid"]);
    desk.run(&["lint"]).await.assert(0, &["in order"]);

    let said = desk.run(&["unregister", "--name", "two"]).await;
    said.assert(1, &["no runner with name `two`", "hint: "]);
    desk.run(&["unregister", "--name", "one"]).await.assert(0, &["is unregistered"]);
    assert_eq!(desk.calls("DELETE", "runners/managers"), 1);
    assert!(!desk.text().contains(RUNNER_TOKEN), "{}", desk.text());
    let said = desk.run(&["list"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_runner_runs_a_job() {
    let desk = Desk::new().await;
    let policy = ["--docker-pull-policy", "if-not-present"];
    let given = ["--token", RUNNER_TOKEN, "--name", "one"];
    desk.register(&[given.as_slice(), &policy].concat()).await.assert(0, &[]);
    let id = desk.gitlab.submit(job(&["echo works"]));
    let state = desk.directory.path().join("state");
    let single = ["run-single", "--runner", "one", "--max-builds", "1", "--state-dir"];
    let said = longshore(&single).args([state.to_str().unwrap()]).config(&desk.config());
    said.run().await.assert(0, &["job succeeded"]);
    desk.gitlab.ended(id).await.assert_success();
    engine().nothing_left_of(id).await;
    engine().clear(desk.gitlab.project_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_33_a_registration_token_makes_a_runner_that_is_removed_as_a_whole() {
    let desk = Desk::new().await;
    let registered = ["--registration-token", REGISTRATION_TOKEN, "--tag-list", "a,b"];
    desk.register(&registered).await.assert(0, &["is registered"]);
    assert!(desk.text().contains(LEGACY_TOKEN), "{}", desk.text());
    assert_eq!(desk.calls("POST", "runners"), 1);
    desk.run(&["unregister", "--all-runners"]).await.assert(0, &["is unregistered"]);
    assert_eq!(desk.calls("DELETE", "runners"), 1);
    assert!(!desk.text().contains(LEGACY_TOKEN), "{}", desk.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn api_31_an_unknown_token_registers_nothing() {
    let desk = Desk::new().await;
    let unknown = "glrt-unknown00000000000000";
    let said = desk.register(&["--token", unknown]).await;
    said.assert(1, &["the server does not know runner", "hint: "]);
    assert!(!said.all().contains(unknown), "{}", said.all());
    assert!(!desk.config().exists(), "{}", desk.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_registers_nothing() {
    let desk = Desk::new().await;
    // A port that was free a moment ago; nobody listens to it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let arguments = [
        "register",
        "--non-interactive",
        "--url",
        &url,
        "--token",
        RUNNER_TOKEN,
        "--executor",
        "docker",
        "--docker-image",
        "busybox",
    ];
    let said = desk.run(&arguments).await;
    said.assert(1, &["cannot verify runner", &url]);
    assert!(!said.all().contains(RUNNER_TOKEN), "{}", said.all());
    assert!(!desk.config().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_on_stdin() {
    let desk = Desk::new().await;
    let answers =
        format!("{}\n{RUNNER_TOKEN}\nmy-runner\nshell\ndocker\nbusybox:latest\n", desk.gitlab.url);
    let said = longshore(&["register"]).config(&desk.config()).input(&answers).run().await;
    said.assert(0, &["GitLab instance URL", "the executor `shell` is not supported", "registered"]);
    assert!(!said.all().contains(RUNNER_TOKEN), "{}", said.all());
    desk.run(&["list"]).await.assert(0, &["my-runner", "Executor=docker"]);
    let short = format!("{}\n", desk.gitlab.url);
    let said = longshore(&["register"]).config(&desk.config()).input(&short).run().await;
    said.assert(1, &["was not answered"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_26_verify_removes_what_is_unknown_only_when_told_to() {
    let desk = Desk::new().await;
    desk.register(&["--token", RUNNER_TOKEN, "--name", "known"]).await.assert(0, &[]);
    let gone =
        desk.text().replace("known", "gone").replace(RUNNER_TOKEN, "glrt-gone00000000000000");
    let runner = gone.split_once("[[runners]]").unwrap().1;
    let both = format!("{}\n[[runners]]{runner}", desk.text());
    std::fs::write(desk.config(), &both).unwrap();
    let said = desk.run(&["verify"]).await;
    said.assert(1, &["`known`", "is valid", "`gone`", "is not valid", "verify --delete"]);
    assert_eq!(desk.text(), both);
    desk.run(&["verify", "--name", "known"]).await.assert(0, &[]);
    desk.run(&["verify", "--delete"]).await.assert(0, &["Updated"]);
    assert!(desk.text().contains("known") && !desk.text().contains("gone"), "{}", desk.text());
    desk.run(&["verify"]).await.assert(0, &["`known`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_30_run_single_ends_when_no_job_comes() {
    let desk = Desk::new().await;
    let state = desk.directory.path().join("state");
    let arguments = [
        "run-single",
        "--url",
        &desk.gitlab.url,
        "--token",
        RUNNER_TOKEN,
        "--executor",
        "docker",
        "--docker-image",
        "busybox:latest",
        "--wait-timeout",
        "2",
        "--state-dir",
        state.to_str().unwrap(),
    ];
    let begun = std::time::Instant::now();
    desk.run(&arguments).await.assert(0, &[]);
    assert!(begun.elapsed() >= Duration::from_secs(2), "it took {:?}", begun.elapsed());
    assert!(desk.calls("POST", "jobs/request") >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn config_30_run_single_ends_after_its_jobs_and_takes_no_more() {
    let desk = Desk::new().await;
    let ids: Vec<i64> = (0..3).map(|_| desk.gitlab.submit(job(&["echo works"]))).collect();
    let state = desk.directory.path().join("state");
    let arguments = [
        "run-single",
        "--url",
        &desk.gitlab.url,
        "--token",
        RUNNER_TOKEN,
        "--executor",
        "docker",
        "--docker-image",
        "busybox:latest",
        "--docker-pull-policy",
        "if-not-present",
        "--max-builds",
        "1",
        "--state-dir",
        state.to_str().unwrap(),
    ];
    desk.run(&arguments).await.assert(0, &["job succeeded"]);
    desk.gitlab.ended(ids[0]).await.assert_success();
    engine().nothing_left_of(ids[0]).await;
    for id in &ids[1..] {
        desk.gitlab.with(|state| assert_eq!(state.jobs[id].status, "pending"));
    }
    engine().clear(desk.gitlab.project_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_single_names_a_runner_that_is_not_there() {
    let desk = Desk::new().await;
    desk.run(&["run-single", "--runner", "nobody"]).await.assert(1, &["--runner nobody"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_in_use_is_refused_and_another_is_asked_for() {
    let case = Case::start().await;
    case.run(job(&["true"])).await.assert_success();
    let said = longshore(&["run", "--state-dir", case.state().to_str().unwrap()])
        .config(&case.config())
        .run()
        .await;
    said.assert(1, &["in use by another longshore", "--state-dir", case.state().to_str().unwrap()]);
    case.run(job(&["echo still-here"])).await.assert_success();
}

#[tokio::test]
async fn the_version_help_and_completions_go_to_stdout() {
    let said = longshore(&["--version"]).run().await;
    said.assert(0, &[]);
    assert_eq!(said.out.trim(), format!("longshore {}", env!("CARGO_PKG_VERSION")));
    let said = longshore(&["--help"]).run().await;
    assert!(said.code == Some(0) && said.out.contains("run-single"), "{}", said.all());
    assert!(said.out.contains("78  the configuration file cannot be used"), "{}", said.out);
    let said = longshore(&["completions", "bash"]).run().await;
    assert!(said.code == Some(0) && said.out.contains("complete -F"), "{}", said.all());
    let parsed = Command::new("bash").args(["-n", "-c", &said.out]).status().await.unwrap();
    assert!(parsed.success(), "bash does not read its completions");
    let said = longshore(&["runn"]).run().await;
    said.assert(1, &["runn"]);
    assert_eq!(said.out, "");
}

/// A pipeline in a project of its own.
struct Pipeline {
    project: TempDir,
    state: TempDir,
}

impl Pipeline {
    fn new(text: &str) -> Self {
        let (project, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(project.path().join(".gitlab-ci.yml"), text).unwrap();
        Self { project, state }
    }

    fn exec(&self) -> Longshore {
        longshore(&["exec", "--state-dir", self.state.path().to_str().unwrap()])
            .directory(self.project.path())
    }

    /// Waits until nothing that was made with this state is on the engine.
    async fn nothing_left(&self) {
        let instance = std::fs::read_to_string(self.state.path().join("instance")).unwrap();
        engine().nothing_left_with(instance.trim()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_says_by_its_exit_code_how_the_pipeline_ended() {
    let good = Pipeline::new("j: {image: 'busybox:latest', script: ['echo in-j']}");
    good.exec().run().await.assert(0, &["in-j"]);
    good.nothing_left().await;
    let bad = Pipeline::new("j: {image: 'busybox:latest', script: ['exit 3']}");
    bad.exec().run().await.assert(1, &["j"]);
    bad.nothing_left().await;
    let none = Pipeline::new("j: {image: 'busybox:latest', script: ['true']}");
    none.exec().args(["k"]).run().await.assert(2, &["k"]);
    let wrong = Pipeline::new("j: [");
    wrong.exec().run().await.assert(2, &[".gitlab-ci.yml"]);
    let missing = tempfile::tempdir().unwrap();
    let said = longshore(&["exec"]).directory(missing.path()).run().await;
    said.assert(2, &[".gitlab-ci.yml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_names_what_it_does_not_support_and_where() {
    let text = "j:\n  image: busybox:latest\n  script: [\"echo in-j\"]\n  pages: true\n  \
                trigger: other/project\n";
    let said = Pipeline::new(text).exec().run().await;
    assert!(said.all().contains("trigger"), "{}", said.all());
    assert_eq!(said.code, Some(2), "{}", said.all());
    assert!(!said.all().contains("\nin-j"), "{}", said.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_without_an_engine_ends_with_its_reason() {
    let pipeline = Pipeline::new("j: {image: 'busybox:latest', script: ['echo never']}");
    let mut exec = pipeline.exec();
    exec.command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    let said = exec.run().await;
    assert!(matches!(said.code, Some(1 | 3)), "{:?} {}", said.code, said.all());
    said.assert(
        said.code.unwrap(),
        &["no Docker engine answers at `unix:///nonexistent/docker.sock`"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_exec_leaves_nothing_behind() {
    let text = "j:\n  image: busybox:latest\n  script: [\"while sleep 1; do echo tick; done\"]\n";
    let pipeline = Pipeline::new(text);
    let mut exec = pipeline.exec();
    let mut child = exec.command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = String::new();
    let ticks = async {
        while let Some(line) = out.next_line().await.unwrap() {
            said = said + &line + "\n";
            if line.ends_with("tick") {
                return;
            }
        }
        panic!("it ended: {said}");
    };
    tokio::time::timeout(patient(ENDING), ticks).await.expect("the job does not start");
    let id = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(id, Signal::INT).unwrap();
    let ended = async {
        while out.next_line().await.unwrap().is_some() {}
        child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(patient(ENDING), ended).await.expect("it does not end");
    assert_eq!(status.code(), Some(1), "{status}");
    // At once: whoever pressed the keys may switch the machine off.
    let instance = std::fs::read_to_string(pipeline.state.path().join("instance")).unwrap();
    let left = engine().docker(&["ps", "--all", "--format", "{{.Names}} {{.Labels}}"]);
    assert!(!left.contains(instance.trim()), "{left}");
    pipeline.nothing_left().await;
}

//! The program under test, run as an operator runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{process::Command, task::JoinSet};

use crate::{
    engine::{engine, patient},
    gitlab::{Ended, Gitlab, JobSpec, RUNNER_TOKEN},
};

/// How long the process may take to end.
const ENDING: Duration = Duration::from_mins(1);
/// How long a longshore that is not needed any more may take to clean up.
const GRACE: Duration = Duration::from_secs(5);

/// What a test wants otherwise than usual in the configuration.
#[derive(Default)]
pub(crate) struct Options {
    /// Keys of `[[runners]]`.
    pub(crate) runner: &'static str,
    /// Keys of `[runners.docker]`.
    pub(crate) docker: &'static str,
    /// `pull_policy`, where it is not `if-not-present`.
    pub(crate) pull_policy: Option<&'static str>,
    /// `volumes`, where it is not `["/cache"]`.
    pub(crate) volumes: Option<String>,
    /// The jobs' containers are on the engine's default bridge.
    pub(crate) default_bridge: bool,
    /// The engine's address, where it is not the engine's own.
    pub(crate) engine: Option<String>,
    /// The state directory, where it is not a fresh one.
    pub(crate) state: Option<PathBuf>,
    /// What runs it, and its arguments; nothing by default.
    pub(crate) wrapper: Vec<String>,
    /// A last change to the configuration's text.
    pub(crate) edit: Option<Box<dyn Fn(String) -> String + Send>>,
}

/// A GitLab and a longshore that takes jobs from it.
pub(crate) struct Case {
    pub(crate) gitlab: Gitlab,
    directory: TempDir,
    state: PathBuf,
    wrapper: Vec<String>,
    process: Process,
}

/// The running program. It ends with this value.
struct Process {
    id: Pid,
    end: JoinSet<ExitStatus>,
}

impl Options {
    /// Without a network for each job: an engine has some thirty of them, and a job whose network
    /// does not matter needs none.
    pub(crate) fn on_bridge() -> Self {
        Self { default_bridge: true, ..Self::default() }
    }
}

impl Case {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn on_bridge() -> Self {
        Self::with(Options::on_bridge()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let engine = engine();
        let gitlab = Gitlab::start(&engine.gateway).await;
        let directory = tempfile::tempdir().unwrap();
        let config = format!(
            r#"
            concurrent = 4
            check_interval = 1
            shutdown_timeout = 20
            [[runners]]
            name = "integration"
            url = "{url}"
            id = 1
            token = "{RUNNER_TOKEN}"
            executor = "docker"
            {runner}
            [runners.feature_flags]
            FF_NETWORK_PER_BUILD = {network_per_build}
            [runners.docker]
            host = "{host}"
            image = "busybox:latest"
            pull_policy = ["{policy}"]
            volumes = {volumes}
            {docker}
            "#,
            url = gitlab.url,
            runner = options.runner,
            host = options.engine.as_ref().unwrap_or(&engine.host),
            policy = options.pull_policy.unwrap_or("if-not-present"),
            volumes = options.volumes.as_deref().unwrap_or(r#"["/cache"]"#),
            network_per_build = !options.default_bridge,
            docker = options.docker,
        );
        let config = options.edit.map_or(config.clone(), |edit| edit(config));
        fs::write(directory.path().join("config.toml"), config).unwrap();
        let state = options.state.unwrap_or_else(|| directory.path().join("state"));
        let wrapper = options.wrapper;
        let process = Process::start(directory.path(), &state, &wrapper, &gitlab);
        Self { gitlab, directory, state, wrapper, process }
    }

    /// Runs a job to its end.
    pub(crate) async fn run(&self, spec: JobSpec) -> Ended {
        let id = self.gitlab.submit(spec);
        self.gitlab.ended(id).await
    }

    /// Runs jobs at the same time to their ends.
    pub(crate) async fn run_all(&self, specs: impl IntoIterator<Item = JobSpec>) -> Vec<Ended> {
        let ids: Vec<i64> = specs.into_iter().map(|spec| self.gitlab.submit(spec)).collect();
        let mut all = Vec::new();
        for id in ids {
            all.push(self.gitlab.ended(id).await);
        }
        all
    }

    /// Runs a job until nothing of it is left and its slot, with the volumes that go by it, is free.
    pub(crate) async fn run_over(&self, spec: JobSpec) -> Ended {
        let ended = self.run(spec).await;
        self.until_idle().await;
        engine().nothing_left_of(ended.id).await;
        ended
    }

    /// Waits until it has done with every job. The directory of a job is the last of it that is
    /// removed; there is no other sign, so it is looked at until then.
    pub(crate) async fn until_idle(&self) {
        assert!(self.is_idle_in(patient(ENDING)).await, "a job is not forgotten");
    }

    /// The same, and false where it takes longer.
    pub(crate) async fn is_idle_in(&self, limit: Duration) -> bool {
        let jobs = self.state.join("jobs");
        let mut again = tokio::time::interval(Duration::from_millis(20));
        let wait = async {
            while fs::read_dir(&jobs).unwrap().next().is_some() {
                again.tick().await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.process.id, signal).unwrap();
    }

    /// Waits until longshore has ended by itself.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(patient(ENDING), self.process.end.join_next()).await;
        ended.expect("longshore does not end").expect("longshore's end is known already").unwrap()
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.exit().await;
    }

    /// Starts it again with the same configuration and state.
    pub(crate) fn restart(&mut self) {
        self.process =
            Process::start(self.directory.path(), &self.state, &self.wrapper, &self.gitlab);
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Waits until it has said `text` more than `before` times; a file does not tell when it grows,
    /// so it is read until then.
    pub(crate) async fn until_log(&self, text: &str, before: usize) {
        let mut again = tokio::time::interval(Duration::from_millis(50));
        let read = async {
            while self.log().matches(text).count() <= before {
                again.tick().await;
            }
        };
        let found = tokio::time::timeout(patient(ENDING), read).await;
        assert!(found.is_ok(), "longshore does not say `{text}`");
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Changes the configuration as an editor does: a new file in the place of the old one.
    pub(crate) fn edit(&self, change: impl FnOnce(String) -> String) {
        let text = change(fs::read_to_string(self.config()).unwrap());
        let new = self.config().with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.config()).unwrap();
    }

    /// The most memory it has held at once, in KiB (proc(5), `VmHWM`).
    pub(crate) fn peak_memory(&self) -> u64 {
        let id = self.process.id.as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Whether a process runs: a dead one that nobody has waited for yet does not.
fn runs(id: Pid) -> bool {
    let path = format!("/proc/{}/stat", id.as_raw_nonzero());
    let stat = fs::read_to_string(path).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

impl Drop for Case {
    fn drop(&mut self) {
        if !self.process.end.is_empty() {
            // Asked first, so that what it has under way at the engine is not left to others.
            kill_process(self.process.id, Signal::TERM).unwrap_or(());
            let deadline = Instant::now() + patient(GRACE);
            while runs(self.process.id) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            // It may have ended by itself just now.
            kill_process(self.process.id, Signal::KILL).unwrap_or(());
        }
        if std::thread::panicking() {
            println!("--- longshore's log\n{}", self.log());
        }
        engine().clear(self.gitlab.project_id);
        // What waits for jobs bears no project's number.
        if let Ok(instance) = fs::read_to_string(self.state.join("instance")) {
            engine().clear_with(&format!("longshore.instance={}", instance.trim()));
        }
    }
}

impl Process {
    fn start(directory: &Path, state: &Path, wrapper: &[String], gitlab: &Gitlab) -> Self {
        let log = directory.join("log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let program = env!("CARGO_BIN_EXE_longshore");
        let mut command = match wrapper {
            [] => Command::new(program),
            [wrapper, arguments @ ..] => {
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(program);
                command
            }
        };
        let mut child = command
            .arg("run")
            .arg("--config")
            .arg(directory.join("config.toml"))
            .arg("--state-dir")
            .arg(state)
            .current_dir(directory)
            .env_remove("DOCKER_HOST")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let id = i32::try_from(child.id().unwrap()).unwrap();
        // Whoever waits for the server to hear something need not go on when there is nobody left
        // to say it.
        let ended = gitlab.runner_starts();
        let mut end = JoinSet::new();
        end.spawn(async move {
            let status = child.wait().await.unwrap();
            ended(status);
            status
        });
        Self { id: Pid::from_raw(id).unwrap(), end }
    }
}

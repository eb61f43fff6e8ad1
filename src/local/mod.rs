//! `longshore exec`: runs the jobs of a pipeline file on this machine. The file is read and
//! scheduled here (`pipeline`), the work tree is packed (`worktree`), and a job server in this
//! process hands the jobs out (`server`) to the same runner loop and executor that serve GitLab,
//! which the caller passes in. This module knows no executor.

mod choice;
mod coordinator;
mod dotenv;
mod lines;
mod multipart;
mod payload;
mod pipeline;
mod project;
mod server;
mod terminal;
mod upload;
mod worktree;

use std::{
    collections::BTreeMap,
    error::Error,
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use self::{
    coordinator::Coordinator,
    payload::Plan,
    pipeline::{Pipeline, Source},
    project::Project,
    terminal::Terminal,
};
pub use self::{
    pipeline::{PipelineError, Problem},
    worktree::WorktreeError,
};
use crate::{
    base::{ids::random_hex, secret::Secret},
    gitlab::api::wire::Variable,
};

/// The file GitLab reads when a project does not say otherwise.
const DEFAULT_FILE: &str = ".gitlab-ci.yml";
/// Where artifacts go, in the project.
const DEFAULT_ARTIFACTS: &str = ".longshore/artifacts";
/// Events that may wait for the terminal; each holds at most one piece of a trace, 1 MiB.
const EVENTS: usize = 16;
/// How long the last answers of the server may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What to run, and how.
pub struct Exec {
    /// Where the command was called: the project, or a directory in it.
    pub directory: PathBuf,
    /// The pipeline file, relative to `directory`; `None` for `.gitlab-ci.yml` of the project.
    pub file: Option<PathBuf>,
    /// The jobs to run, with what they need; none for the whole pipeline. A name before
    /// `parallel` stands for all of its jobs.
    pub jobs: Vec<String>,
    /// Runs named jobs without what they need.
    pub no_needs: bool,
    /// Variables over those of the file, as a pipeline started by hand has them.
    pub variables: Vec<(String, String)>,
    /// Jobs at once; `None` for the number of processors.
    pub concurrent: Option<usize>,
    /// Folder for artifacts; `None` for `.longshore/artifacts` in the project.
    pub artifacts: Option<PathBuf>,
    /// Only lists the jobs.
    pub list: bool,
    /// Whether `output` shows colours.
    pub colour: bool,
    /// For what the user sees.
    pub output: Box<dyn Write + Send>,
    /// Cancelled when the user wants to stop: no more jobs start, running ones are canceled as
    /// GitLab cancels them, `after_script` included.
    pub stop: CancellationToken,
}

/// What the runner needs to know to serve the pipeline.
#[derive(Debug, Clone)]
pub struct RunnerSetup {
    /// Base URL of the job server.
    pub url: String,
    /// The runner's token. Its first characters are the same for every run in a project, so that
    /// what is named after them, such as caches, is found again.
    pub token: Secret,
    /// For `RunnerConfig.local_bundle`.
    pub bundle: PathBuf,
    /// Jobs at once; also the number of requests to make at once.
    pub concurrent: usize,
}

/// How the pipeline ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// All jobs that ran ended well, or may fail.
    Success,
    /// A job failed or was canceled.
    Failed,
}

impl ExitStatus {
    /// The exit code of the command.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Success => 0,
            ExitStatus::Failed => 1,
        }
    }
}

/// Why the pipeline could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The file is wrong.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A job was named that is not there.
    #[error("there is no job `{name}` in this pipeline; there are: {known}")]
    UnknownJob {
        /// As named.
        name: String,
        /// All that are there.
        known: String,
    },
    /// There is nothing to run.
    #[error("no job is in this pipeline; left out by their rules: {left_out}")]
    NoJobs {
        /// The jobs of the file.
        left_out: String,
    },
    /// A job was named that its rules leave out.
    #[error("the job `{name}` is not in this pipeline: its rules leave it out")]
    LeftOut {
        /// As named.
        name: String,
    },
    /// The sources cannot be packed.
    #[error("cannot pack the work tree")]
    Worktree(#[from] WorktreeError),
    /// A directory cannot be made.
    #[error("cannot use the directory `{}`", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The job server cannot listen or serve.
    #[error("the job server failed")]
    Server(#[source] io::Error),
    /// The terminal cannot be written to.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// The runner failed.
    #[error("the runner failed")]
    Runner(#[source] Box<dyn Error + Send + Sync>),
    /// The runner ended while jobs were left.
    #[error("the runner ended before the pipeline did")]
    RunnerEnded,
    /// Something panicked.
    #[error("a task failed")]
    Task(#[from] JoinError),
}

impl ExecError {
    /// The exit code of the command: 2 if what was asked for is wrong, 3 if it could not be done.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            ExecError::Pipeline(_)
            | ExecError::UnknownJob { .. }
            | ExecError::NoJobs { .. }
            | ExecError::LeftOut { .. } => 2,
            ExecError::Worktree(_)
            | ExecError::Directory { .. }
            | ExecError::Server(_)
            | ExecError::Output(_)
            | ExecError::Runner(_)
            | ExecError::RunnerEnded
            | ExecError::Task(_) => 3,
        }
    }
}

/// Runs the pipeline. `run` is the runner: it serves the job server until its token is cancelled,
/// which happens when all jobs have ended, and returns when it has cleaned up.
pub async fn exec<R, F, E>(options: Exec, run: R) -> Result<ExitStatus, ExecError>
where
    R: FnOnce(RunnerSetup, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let directory = std::fs::canonicalize(&options.directory)
        .map_err(|source| ExecError::Directory { path: options.directory.clone(), source })?;
    let facts = worktree::facts(&directory).await?;
    let project = Project::new(facts, jiff::Timestamp::now());
    let file = options
        .file
        .as_ref()
        .map_or_else(|| project.facts.root.join(DEFAULT_FILE), |file| directory.join(file));
    let given: BTreeMap<String, String> = options.variables.iter().cloned().collect();
    let (mut pipeline, cache_keys) = read(&project, file.clone(), given.clone()).await?;
    let mut output = options.output;
    if options.list {
        warn(&mut output, &pipeline).map_err(ExecError::Output)?;
        terminal::list(&mut output, &pipeline).map_err(ExecError::Output)?;
        return Ok(ExitStatus::Success);
    }
    let chosen = choice::choose(&mut pipeline, &options.jobs, !options.no_needs)?;
    warn(&mut output, &pipeline).map_err(ExecError::Output)?;

    let temporary = tempfile::Builder::new()
        .prefix("longshore-exec-")
        .tempdir()
        .map_err(|source| ExecError::Directory { path: std::env::temp_dir(), source })?;
    let artifacts = options.artifacts.map_or_else(
        || project.facts.root.join(DEFAULT_ARTIFACTS),
        |folder| directory.join(folder),
    );
    prepare(&artifacts)?;
    let bundle = worktree::bundle(&project.facts, temporary.path()).await?;
    let setup = RunnerSetup {
        url: String::new(),
        token: Secret::new(format!("glrt-exec{}{}", project.mark(), random_hex::<16>())),
        bundle: bundle.path,
        concurrent: options.concurrent.unwrap_or_else(processors).max(1),
    };
    let plan = Plan {
        predefined: project.variables(&bundle.sha, &shown(&file, &project.facts.root)),
        project,
        pipeline,
        chosen,
        sha: bundle.sha,
        given,
        cache_keys,
    };
    let names = plan.pipeline.jobs.iter().map(|job| job.name.clone()).collect();
    let terminal = Terminal::new(output, options.colour, names, directory);
    serve(plan, setup, &artifacts, terminal, options.stop, run).await
}

/// Reads the file and what its caches' keys depend on, away from the runtime's threads.
async fn read(
    project: &Project,
    file: PathBuf,
    given: BTreeMap<String, String>,
) -> Result<(Pipeline, Vec<Vec<String>>), ExecError> {
    let root = project.facts.root.clone();
    let sha = project.facts.commit.sha.clone();
    let variables: Vec<Variable> = project.variables(&sha, &shown(&file, &root));
    let predefined = variables.into_iter().map(|v| (v.key, v.value)).collect();
    let read = tokio::task::spawn_blocking(move || {
        let source = Source { root: &root, file: &file, predefined: &predefined, given: &given };
        let pipeline = Pipeline::read(source)?;
        let cache_keys = payload::cache_keys(&root, &pipeline);
        Ok((pipeline, cache_keys))
    });
    read.await?
}

/// Runs server, terminal and runner until the pipeline has ended.
async fn serve<R, F, E>(
    plan: Plan,
    mut setup: RunnerSetup,
    artifacts: &Path,
    terminal: Terminal,
    user_stop: CancellationToken,
    run: R,
) -> Result<ExitStatus, ExecError>
where
    R: FnOnce(RunnerSetup, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(ExecError::Server)?;
    let address = listener.local_addr().map_err(ExecError::Server)?;
    setup.url = format!("http://{address}");
    let (sender, events) = mpsc::channel(EVENTS);
    let coordinator = Arc::new(Coordinator::new(plan, setup.token.clone(), artifacts, sender));
    let (stop_server, stop_runner) = (CancellationToken::new(), CancellationToken::new());
    let mut tasks = JoinSet::new();
    let (served, stop) = (Arc::clone(&coordinator), stop_server.clone());
    tasks.spawn(
        async move { server::serve(listener, served, stop).await.map_err(ExecError::Server) },
    );
    let mut screen = JoinSet::new();
    let finished = CancellationToken::new();
    let end = finished.clone();
    screen.spawn(async move { terminal.show(events, end).await.map_err(ExecError::Output) });

    coordinator.flush().await;
    let ran = drive(&coordinator, setup, &stop_runner, &user_stop, run).await;
    stop_server.cancel();
    let stopped = tokio::time::timeout(STOP_TIMEOUT, tasks.join_next()).await;
    // A connection that is never closed holds nothing that is still wanted.
    tasks.shutdown().await;
    coordinator.flush().await;
    let status = if coordinator.failed() { ExitStatus::Failed } else { ExitStatus::Success };
    finished.cancel();
    let shown = screen.join_next().await;
    ran?;
    if let Ok(Some(served)) = stopped {
        served??;
    }
    if let Some(shown) = shown {
        shown??;
    }
    Ok(status)
}

/// Lets the runner run until the pipeline has ended.
async fn drive<R, F, E>(
    coordinator: &Coordinator,
    setup: RunnerSetup,
    stop_runner: &CancellationToken,
    user_stop: &CancellationToken,
    run: R,
) -> Result<(), ExecError>
where
    R: FnOnce(RunnerSetup, CancellationToken) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    if coordinator.done().is_cancelled() {
        return Ok(());
    }
    let mut running = std::pin::pin!(run(setup, stop_runner.clone()));
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break Some(ended),
            () = coordinator.done().cancelled() => break None,
            () = user_stop.cancelled(), if !stopping => {
                stopping = true;
                coordinator.cancel();
                coordinator.flush().await;
            }
        }
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        stop_runner.cancel();
        running.await
    };
    ended.map_err(|error| ExecError::Runner(error.into()))?;
    if coordinator.done().is_cancelled() { Ok(()) } else { Err(ExecError::RunnerEnded) }
}

fn warn(output: &mut dyn Write, pipeline: &Pipeline) -> io::Result<()> {
    pipeline.warnings.iter().try_for_each(|problem| writeln!(output, "warning: {problem}"))
}

/// Makes the folder for artifacts; git does not see what is in it.
fn prepare(artifacts: &Path) -> Result<(), ExecError> {
    let make = || -> io::Result<()> {
        if !artifacts.exists() {
            std::fs::create_dir_all(artifacts)?;
            std::fs::write(artifacts.join(".gitignore"), "*\n")?;
        }
        Ok(())
    };
    make().map_err(|source| ExecError::Directory { path: artifacts.to_owned(), source })
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A file as seen from the project.
fn shown(file: &Path, root: &Path) -> String {
    file.strip_prefix(root).unwrap_or(file).display().to_string()
}

#[cfg(test)]
mod tests;

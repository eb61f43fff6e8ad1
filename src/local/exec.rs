//! A pipeline from its file to the end of its last job.

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    choice,
    error::ExecError,
    event::Event,
    folders::folders,
    pipeline::{self, Pipeline, Source},
    plan::{self, Plan},
    progress::Progress,
    project::Project,
    scheduler::Scheduler,
    terminal::{self, Terminal},
    worktree,
};
use crate::{
    base::{error_chain, secret::Secret},
    runner::Runner,
};

/// The file that GitLab reads when a project does not say otherwise.
const DEFAULT_FILE: &str = ".gitlab-ci.yml";
/// Where artifacts go, in the project.
const DEFAULT_ARTIFACTS: &str = ".longshore/artifacts";
/// Events that may wait for the terminal; each holds at most one piece of a trace.
const EVENTS: usize = 16;

/// What to run, and how.
pub(crate) struct Exec {
    /// Where the command was called: the project, or a directory in it.
    pub(crate) directory: PathBuf,
    /// The pipeline file, relative to `directory`; `None` for `.gitlab-ci.yml` of the project.
    pub(crate) file: Option<PathBuf>,
    /// The jobs to run, with what they need; none for the whole pipeline. A name before
    /// `parallel` stands for all of its jobs.
    pub(crate) jobs: Vec<String>,
    /// Runs named jobs without what they need.
    pub(crate) no_needs: bool,
    /// Variables that override those of the file, as a pipeline started by hand has them.
    pub(crate) variables: Vec<(String, String)>,
    /// Jobs at once; `None` for the number of processors.
    pub(crate) concurrent: Option<usize>,
    /// Folder for artifacts; `None` for `.longshore/artifacts` in the project.
    pub(crate) artifacts: Option<PathBuf>,
    /// Only lists the jobs.
    pub(crate) list: bool,
    /// Whether `output` shows colours.
    pub(crate) colour: bool,
    /// For what the user sees.
    pub(crate) output: Box<dyn Write + Send>,
    /// Cancelled when the user wants to stop: no more jobs start, running ones are canceled as
    /// GitLab cancels them, `after_script` included.
    pub(crate) stop: CancellationToken,
}

/// How the pipeline ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// All jobs that ran ended well, or may fail.
    Success,
    /// A job failed or was canceled.
    Failed,
}

/// Runs the pipeline. `make_runner` makes the runner of its jobs; it is given the token that the runner
/// is to have, which is the same for every run in a project, so that what is named after it, such as
/// caches, is found again. It is not called where no job is to run.
pub(crate) async fn exec<E>(
    options: Exec,
    make_runner: impl FnOnce(Secret) -> Result<Arc<Runner>, E>,
) -> Result<ExitStatus, ExecError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let directory = std::fs::canonicalize(&options.directory)
        .map_err(|source| ExecError::Directory { path: options.directory.clone(), source })?;
    let given = options.variables.iter().cloned().collect();
    let mut input = Input::read(&directory, options.file.as_deref(), given).await?;
    let mut output = options.output;
    if options.list {
        warn(&mut output, &input.pipeline).map_err(ExecError::Output)?;
        terminal::list(&mut output, &input.pipeline).map_err(ExecError::Output)?;
        return Ok(ExitStatus::Success);
    }
    let chosen = choice::choose(&mut input.pipeline, &options.jobs, !options.no_needs)?;
    warn(&mut output, &input.pipeline).map_err(ExecError::Output)?;

    let artifacts = options.artifacts.map_or_else(
        || input.project.facts.root.join(DEFAULT_ARTIFACTS),
        |folder| directory.join(folder),
    );
    let terminal = Terminal::new(output, options.colour, input.names(), directory);
    let screen = Screen::new(terminal);
    let mut progress = Progress::new(&input.pipeline.jobs, &chosen, screen.events.clone());
    progress.begin().await;
    let ran = if progress.is_done() {
        Ok(Removals::default())
    } else {
        let concurrent = options.concurrent.unwrap_or_else(processors).max(1);
        let limits = Limits { artifacts, concurrent, stop: options.stop };
        run_jobs(input, limits, make_runner, &mut progress).await
    };
    // The user reads how it ended while the last containers go.
    let status = screen.end(progress).await;
    ran?.wait().await?;
    status
}

/// What is known before the first job runs.
struct Input {
    project: Project,
    pipeline: Pipeline,
    /// The pipeline file as seen from the project.
    file: String,
    given: BTreeMap<String, String>,
    /// Keys of each job's caches.
    cache_keys: Vec<Vec<String>>,
}

impl Input {
    /// Reads the file and what its caches' keys depend on.
    async fn read(
        directory: &Path,
        file: Option<&Path>,
        given: BTreeMap<String, String>,
    ) -> Result<Self, ExecError> {
        let facts = worktree::facts(directory).await?;
        let project = Project::new(facts, jiff::Timestamp::now());
        let root = &project.facts.root;
        let path = file.map_or_else(|| root.join(DEFAULT_FILE), |file| directory.join(file));
        let file = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let variables = project.variables(&project.facts.commit.sha, &file);
        let predefined = variables.into_iter().map(|v| (v.key, v.value)).collect();
        // Away from the runtime's threads, as the project may have many files.
        let read = tokio::task::spawn_blocking(move || {
            let root = &project.facts.root;
            let source = Source { root, file: &path, predefined: &predefined, given: &given };
            let pipeline = pipeline::read(source)?;
            let cache_keys = plan::cache_keys(root, &pipeline);
            Ok(Self { project, pipeline, file, given, cache_keys })
        });
        read.await?
    }

    /// The names of the jobs.
    fn names(&self) -> Vec<String> {
        self.pipeline.jobs.iter().map(|job| job.name.clone()).collect()
    }

    /// Packs the work tree into the directory `into`.
    async fn pack(self, into: &Path) -> Result<Plan, ExecError> {
        let bundle = worktree::bundle(&self.project.facts, into).await?;
        Ok(Plan {
            predefined: self.project.variables(&bundle.sha, &self.file),
            project: self.project,
            pipeline: self.pipeline,
            sha: bundle.sha,
            bundle: bundle.path,
            given: self.given,
            cache_keys: self.cache_keys,
        })
    }
}

/// How the jobs are run.
struct Limits {
    /// Folder for artifacts.
    artifacts: PathBuf,
    /// Jobs at once, at least 1.
    concurrent: usize,
    /// Cancelled when the user wants to stop.
    stop: CancellationToken,
}

/// Runs the jobs; what they made may still be being removed after that.
async fn run_jobs<E>(
    input: Input,
    limits: Limits,
    make_runner: impl FnOnce(Secret) -> Result<Arc<Runner>, E>,
    progress: &mut Progress,
) -> Result<Removals, ExecError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    prepare(&limits.artifacts)?;
    let token = Secret::new(format!("exec{}", input.project.mark()));
    let runner = make_runner(token).map_err(|error| ExecError::Runner(error.into()))?;
    // Meanwhile the engine is connected to, and what earlier runs left is removed.
    let orphans = remove_orphans(&runner)?;
    let temporary = tempfile::Builder::new()
        .prefix("longshore-exec-")
        .tempdir()
        .map_err(|source| ExecError::Directory { path: std::env::temp_dir(), source })?;
    let folders = folders(&input.names());
    let scheduler = Scheduler {
        plan: input.pack(temporary.path()).await?,
        runner: Arc::clone(&runner),
        concurrent: limits.concurrent,
        folders: folders.into_iter().map(|name| limits.artifacts.join(name)).collect(),
        stop: limits.stop,
    };
    scheduler.run(progress).await;
    Ok(Removals { runner: Some(runner), orphans })
}

/// What is being removed when the last job has ended.
#[derive(Default)]
struct Removals {
    /// Removes what the jobs made; `None` where none ran.
    runner: Option<Arc<Runner>>,
    /// What earlier runs left.
    orphans: JoinSet<()>,
}

impl Removals {
    async fn wait(mut self) -> Result<(), ExecError> {
        if let Some(runner) = &self.runner {
            let removals = &runner.process.removals;
            removals.close();
            removals.wait().await;
        }
        while let Some(removed) = self.orphans.join_next().await {
            removed?;
        }
        Ok(())
    }
}

/// The terminal at work.
struct Screen {
    events: mpsc::Sender<Event>,
    showing: JoinSet<io::Result<()>>,
}

impl Screen {
    fn new(terminal: Terminal) -> Self {
        let (events, received) = mpsc::channel(EVENTS);
        let mut showing = JoinSet::new();
        showing.spawn(terminal.show(received));
        Self { events, showing }
    }

    /// Shows the last events and the summary; how the pipeline ended.
    async fn end(mut self, progress: Progress) -> Result<ExitStatus, ExecError> {
        let status = if progress.failed() { ExitStatus::Failed } else { ExitStatus::Success };
        // It ends when nobody is left who sends events.
        drop((progress, self.events));
        while let Some(shown) = self.showing.join_next().await {
            shown?.map_err(ExecError::Output)?;
        }
        Ok(status)
    }
}

/// Begins to remove what earlier runs left: the jobs that are in the ledger, and what the executor
/// finds.
fn remove_orphans(runner: &Arc<Runner>) -> Result<JoinSet<()>, ExecError> {
    let mut tasks = JoinSet::new();
    for (record, entry) in runner.process.state.unfinished_jobs()? {
        let executor = Arc::clone(&runner.executor);
        tasks.spawn(async move {
            let is_removed = match entry {
                Ok(entry) => executor.remove_orphaned(&entry, &record.directories()).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the entry of an earlier job; it is dropped");
                    true
                }
            };
            if is_removed && let Err(error) = record.close() {
                tracing::warn!(%error, "failed to remove the job's directory");
            }
        });
    }
    let executor = Arc::clone(&runner.executor);
    tasks.spawn(async move {
        if let Err(error) = executor.connect().await {
            let error = error_chain(&error);
            tracing::warn!(error, "executor cannot be used; jobs will fail until it can");
        }
    });
    Ok(tasks)
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

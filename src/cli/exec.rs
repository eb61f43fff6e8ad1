//! `exec`: runs jobs of a `.gitlab-ci.yml` on this machine, through the same runner loop and executor
//! that serve GitLab, without a GitLab.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    exit::{Exit, Failure, Outcome},
    paths::User,
};
use crate::{
    config::{Config, check},
    daemon::{Daemon, DaemonError, Stop},
    executor::Executors,
    ledger::{StateDir, StateError},
    local::{self, Exec, RunnerSetup},
    runner::Process,
};

/// State directories that are tried when others use the first.
const STATE_DIRECTORIES: usize = 16;

/// Arguments of `exec`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ExecArgs {
    /// Jobs to run, with what they need; none for the whole pipeline
    pub jobs: Vec<String>,
    /// The pipeline's file [default: .gitlab-ci.yml of the project]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Only lists the jobs
    #[arg(long)]
    pub list: bool,
    /// A variable over those of the file; may be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
    pub variables: Vec<String>,
    /// Runs named jobs without what they need
    #[arg(long)]
    pub no_needs: bool,
    /// Jobs at once [default: the number of processors]
    #[arg(short = 'j', long, value_name = "NUMBER")]
    pub concurrent: Option<usize>,
    /// Folder for artifacts [default: .longshore/artifacts in the project]
    #[arg(long, value_name = "DIRECTORY")]
    pub artifacts: Option<PathBuf>,
    /// Image of jobs that name none
    #[arg(long, default_value = "debian:stable", value_name = "IMAGE")]
    pub image: String,
    /// When images are pulled: always, if-not-present or never
    #[arg(long, default_value = "if-not-present", value_name = "POLICY")]
    pub pull_policy: String,
    /// Volumes of jobs, as in config.toml; may be repeated
    #[arg(long = "volume", value_name = "VOLUME")]
    pub volumes: Vec<String>,
    /// Runs the jobs' containers privileged
    #[arg(long)]
    pub privileged: bool,
}

/// Runs the pipeline.
pub(super) fn exec(args: &ExecArgs, state_dir: Option<&Path>) -> Outcome {
    let directory = std::env::current_dir()?;
    let variables = args
        .variables
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(Failure::new(format!("--env {text}: expected NAME=VALUE"))),
        })
        .collect::<Result<_, _>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let options = Exec {
            directory: directory.clone(),
            file: args.file.clone(),
            jobs: args.jobs.clone(),
            no_needs: args.no_needs,
            variables,
            concurrent: args.concurrent,
            artifacts: args.artifacts.clone(),
            list: args.list,
            colour,
            output: Box::new(io::stdout()),
            stop: stop.clone(),
        };
        let serve = |setup: RunnerSetup, end: CancellationToken| async move {
            let config = config(args, &setup)?;
            let shared = shared(&directory, state_dir)?;
            serve(config, shared, end).await.map_err(Failure::into_boxed)
        };
        tokio::select! {
            status = local::exec(options, serve) => status,
            () = interrupts(stop) => Err(local::ExecError::RunnerEnded),
        }
    });
    runtime.shutdown_background();
    match outcome {
        Ok(local::ExitStatus::Success) => Ok(Exit::Success),
        Ok(local::ExitStatus::Failed) => Ok(Exit::Failure),
        Err(error) => {
            let exit = if error.code() == 2 { Exit::BadPipeline } else { Exit::System };
            Err(Failure::from(error).with_exit(exit))
        }
    }
}

/// The daemon, until the pipeline has ended.
async fn serve(
    config: Config,
    (process, executors): (Arc<Process>, Arc<Executors>),
    end: CancellationToken,
) -> Result<(), Failure> {
    let (stop, stopped) = watch::channel(Stop::Not);
    let (_changes, changed) = mpsc::channel(1);
    let ended = async {
        end.cancelled().await;
        stop.send_replace(Stop::Drain);
    };
    let (ran, ()) =
        tokio::join!(Daemon::new(process, executors, None).run(config, changed, stopped), ended);
    ran.map_err(|error: DaemonError| Failure::from(error))
}

/// One runner for the pipeline's job server.
fn config(
    args: &ExecArgs,
    setup: &RunnerSetup,
) -> Result<Config, Box<dyn std::error::Error + Send + Sync>> {
    let mut file = toml_edit::DocumentMut::new();
    let concurrent = i64::try_from(setup.concurrent).unwrap_or(i64::MAX);
    file["concurrent"] = toml_edit::value(concurrent);
    file["check_interval"] = toml_edit::value(1);
    let mut docker = toml_edit::Table::new();
    docker["image"] = toml_edit::value(args.image.as_str());
    docker["pull_policy"] = toml_edit::value(args.pull_policy.as_str());
    docker["allowed_pull_policies"] =
        toml_edit::value(toml_edit::Array::from_iter(["always", "if-not-present", "never"]));
    docker["privileged"] = toml_edit::value(args.privileged);
    let volumes = args.volumes.iter().map(String::as_str).chain(["/cache"]);
    docker["volumes"] = toml_edit::value(volumes.collect::<toml_edit::Array>());
    let mut flags = toml_edit::Table::new();
    flags["FF_NETWORK_PER_BUILD"] = toml_edit::value(true);
    flags["FF_USE_ADAPTIVE_REQUEST_CONCURRENCY"] = toml_edit::value(false);
    let mut runner = toml_edit::Table::new();
    runner["name"] = toml_edit::value("exec");
    runner["url"] = toml_edit::value(setup.url.as_str());
    runner["token"] = toml_edit::value(setup.token.expose());
    runner["executor"] = toml_edit::value("docker");
    runner["request_concurrency"] = toml_edit::value(concurrent);
    runner["output_limit"] = toml_edit::value(1 << 20);
    runner["docker"] = toml_edit::Item::Table(docker);
    runner["feature_flags"] = toml_edit::Item::Table(flags);
    let mut runners = toml_edit::ArrayOfTables::new();
    runners.push(runner);
    file["runners"] = toml_edit::Item::ArrayOfTables(runners);
    let checked = check::check(&file.to_string(), Path::new("(options of exec)"), &|_| None)?;
    let mut config = checked.config;
    for runner in &mut config.runners {
        Arc::make_mut(runner).local_bundle = Some(setup.bundle.clone());
    }
    Ok(config)
}

/// State of runs in this directory: one of its own, as the daemon's is in use.
fn shared(
    directory: &Path,
    state_dir: Option<&Path>,
) -> Result<(Arc<Process>, Arc<Executors>), Box<dyn std::error::Error + Send + Sync>> {
    let state = match state_dir {
        Some(state_dir) => StateDir::open(state_dir)?,
        None => {
            let base = User::current().state_dir_of(&directory.join("longshore-exec"));
            free_state(&base)?
        }
    };
    let executors = Executors::new(&state, |name| std::env::var(name).ok());
    Ok((Arc::new(Process::new("exec".to_owned(), state)), Arc::new(executors)))
}

/// The first of several directories that nobody uses: pipelines may run side by side.
fn free_state(base: &Path) -> Result<StateDir, StateError> {
    for number in 1..STATE_DIRECTORIES {
        match StateDir::open(&base.join(number.to_string())) {
            Err(StateError::InUse { .. }) => {}
            opened => return opened,
        }
    }
    StateDir::open(&base.join(STATE_DIRECTORIES.to_string()))
}

/// The first interrupt cancels the pipeline, the second ends the process.
async fn interrupts(stop: CancellationToken) {
    let interrupt = || async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    interrupt().await;
    stop.cancel();
    interrupt().await;
}

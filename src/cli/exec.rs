//! `exec`: runs jobs of a `.gitlab-ci.yml` on this machine, through the same runner and executor that
//! serve GitLab, without a GitLab.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use super::{
    exit::{Exit, Failure, Outcome},
    paths::User,
};
use crate::{
    base::secret::Secret,
    config::{LocalRunner, PullPolicy, RunnerConfig, volume::Volume},
    executor::Executors,
    ledger::{StateDir, StateError},
    local::{self, Exec},
    runner::{Process, Runner},
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
    /// A variable that overrides those of the file; may be repeated
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
    let variables = args.variables.iter().map(|text| variable(text)).collect::<Result<_, _>>()?;
    let (pull_policy, volumes) = (pull_policy(&args.pull_policy)?, volumes(&args.volumes)?);
    let make_runner = |token: Secret| {
        let config = RunnerConfig::local(LocalRunner {
            token,
            image: args.image.clone(),
            pull_policy,
            volumes,
            privileged: args.privileged,
        });
        state(&directory, state_dir).map(|state| runner(config, state))
    };
    let stop = CancellationToken::new();
    let options = Exec {
        directory: directory.clone(),
        file: args.file.clone(),
        jobs: args.jobs.clone(),
        no_needs: args.no_needs,
        variables,
        concurrent: args.concurrent,
        artifacts: args.artifacts.clone(),
        list: args.list,
        colour: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        output: Box::new(io::stdout()),
        stop: stop.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            status = local::exec(options, make_runner) => status,
            () = interrupts(stop) => Err(local::ExecError::Interrupted),
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

fn variable(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Failure::new(format!("--env {text}: expected NAME=VALUE"))),
    }
}

fn pull_policy(text: &str) -> Result<PullPolicy, Failure> {
    [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never]
        .into_iter()
        .find(|policy| policy.as_str() == text)
        .ok_or_else(|| {
            Failure::new(format!("--pull-policy {text}: expected always, if-not-present or never"))
        })
}

/// The volumes that are asked for, and one for caches.
fn volumes(texts: &[String]) -> Result<Vec<String>, Failure> {
    const CACHES: &str = "/cache";
    let mut destinations = BTreeSet::new();
    for text in texts {
        let volume = Volume::parse(text)
            .map_err(|error| Failure::new(format!("--volume {text}: {error}")))?;
        if !destinations.insert(volume.destination.trim_end_matches('/').to_owned()) {
            return Err(Failure::new(format!("--volume {text}: its destination is there twice")));
        }
    }
    let caches = (!destinations.contains(CACHES)).then(|| CACHES.to_owned());
    Ok(texts.iter().cloned().chain(caches).collect())
}

fn runner(config: RunnerConfig, state: StateDir) -> Arc<Runner> {
    let config = Arc::new(config);
    let executors = Executors::new(&state, |name| std::env::var(name).ok());
    Arc::new(Runner {
        executor: executors.executor(&config),
        config,
        process: Arc::new(Process::new("exec".to_owned(), state)),
    })
}

/// State of runs in this directory: one of its own, as the daemon's is in use.
fn state(directory: &Path, state_dir: Option<&Path>) -> Result<StateDir, StateError> {
    match state_dir {
        Some(state_dir) => StateDir::open(state_dir),
        None => free_state(&User::current().state_dir_of(&directory.join("longshore-exec"))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_have_a_volume_unless_one_is_mounted_there() {
        let volumes = |texts: &[&str]| {
            super::volumes(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(volumes(&[]).unwrap(), ["/cache"]);
        assert_eq!(volumes(&["/a:/b"]).unwrap(), ["/a:/b", "/cache"]);
        assert_eq!(volumes(&["mine:/cache/"]).unwrap(), ["mine:/cache/"]);
        let twice = volumes(&["/a:/b", "/c:/b"]).unwrap_err();
        assert_eq!(twice.to_string(), "error: --volume /c:/b: its destination is there twice");
        assert!(volumes(&["b"]).unwrap_err().to_string().contains("--volume b: the destination"));
    }

    #[test]
    fn pull_policies_are_those_of_the_file() {
        assert_eq!(pull_policy("if-not-present").unwrap(), PullPolicy::IfNotPresent);
        assert!(pull_policy("often").unwrap_err().to_string().contains("expected always"));
    }
}

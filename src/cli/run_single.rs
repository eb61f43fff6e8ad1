//! `run-single`: its arguments. One runner, from options or from an entry of the file, until its
//! work is done.

use std::{path::Path, time::Duration};

use super::{
    exit::{Failure, Outcome},
    run::{self, LogChoice},
    runner_options::RunnerOptions,
};
use crate::{
    config::{Config, check},
    daemon::Quota,
};

/// Arguments of `run-single`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunSingleArgs {
    /// Name of the entry in the file to use
    #[arg(short = 'r', long, value_name = "NAME")]
    pub runner: Option<String>,
    /// Seconds to wait for a job; 0 waits forever
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub wait_timeout: u64,
    /// Number of jobs to run; 0 for no limit
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    pub max_builds: u64,
    /// Keys of the runner.
    #[command(flatten)]
    pub options: RunnerOptions,
}

/// Runs until its quota is used up or a signal arrives.
pub(super) fn run(
    args: &RunSingleArgs,
    path: &Path,
    state_dir: Option<&Path>,
    choice: &LogChoice,
) -> Outcome {
    let path = std::path::absolute(path)?;
    let config = match &args.runner {
        Some(name) => {
            let mut config = run::load(&path)?;
            config.runners.retain(|runner| runner.name.as_str() == name);
            if config.runners.is_empty() {
                return Err(Failure::new(format!(
                    "--runner {name}: there is no such runner in {}",
                    path.display()
                )));
            }
            config
        }
        None => from_options(&args.options)?,
    };
    let quota = Quota {
        jobs: (args.max_builds > 0).then_some(args.max_builds),
        wait: (args.wait_timeout > 0).then(|| Duration::from_secs(args.wait_timeout)),
    };
    run::serve(config, &path, None, quota, state_dir, choice)
}

/// A configuration of the one runner that the options describe.
fn from_options(options: &RunnerOptions) -> Result<Config, Failure> {
    let mut runners = toml_edit::ArrayOfTables::new();
    runners.push(options.entry.clone());
    let mut file = toml_edit::DocumentMut::new();
    file["runners"] = toml_edit::Item::ArrayOfTables(runners);
    let checked =
        check::check(&file.to_string(), Path::new("(options)"), &|name| std::env::var(name).ok())?;
    for warning in &checked.warnings {
        tracing::warn!("{warning}");
    }
    Ok(checked.config)
}

//! `run-single`: its arguments. One runner, from options or from an entry of the file, until its
//! work is done.

use super::runner_options::RunnerOptions;

/// Arguments of `run-single`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunSingleArgs {
    /// Takes the entry of that name from the file
    #[arg(short = 'r', long, value_name = "NAME")]
    pub runner: Option<String>,
    /// Seconds to wait for a job; 0 waits for ever
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub wait_timeout: u64,
    /// Ends after that many jobs; 0 for any number
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    pub max_builds: u64,
    /// Keys of the runner.
    #[command(flatten)]
    pub options: RunnerOptions,
}

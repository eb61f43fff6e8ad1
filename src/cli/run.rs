//! `run`: its arguments. What it does is the daemon's business.

use std::path::PathBuf;

/// Arguments of `run`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunArgs {
    /// host:port of the metrics; goes before the file's
    #[arg(long, env = "LISTEN_ADDRESS")]
    pub listen_address: Option<String>,
    /// Changes to this directory first
    #[arg(short = 'd', long)]
    pub working_directory: Option<PathBuf>,
    /// No effect: it is for an executor that is not supported
    #[arg(short = 'u', long)]
    pub user: Option<String>,
    /// No effect: the name of the service, for gitlab-runner's unit files
    #[arg(short = 'n', long)]
    pub service: Option<String>,
    /// No effect: the log goes to stderr, where the service manager takes it
    #[arg(long, env = "LOG_SYSLOG")]
    pub syslog: bool,
}

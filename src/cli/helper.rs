//! `helper`: what longshore runs inside a job's containers. Not for people.

use super::{Exit, Outcome};
use crate::helper;

/// Subcommands of `helper`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum HelperCommand {
    /// Serves the tasks of one job on stdin and stdout
    Serve,
}

/// Serves until stdin ends. Files it makes are for every user: the job's may be another.
pub(super) fn serve() -> Outcome {
    helper::open_umask();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(helper::serve(tokio::io::stdin(), tokio::io::stdout()))?;
    // A thread may still wait for stdin.
    runtime.shutdown_background();
    Ok(Exit::Success)
}

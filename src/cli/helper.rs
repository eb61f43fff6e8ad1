//! `helper`: what longshore runs inside a job's containers. Not for people.

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Failure, Outcome};
use crate::{guard::container, helper};

/// Subcommands of `helper`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum HelperCommand {
    /// Serves the tasks of one job on stdin and stdout
    Serve,
    /// Guards the socket of one job, as it is told on stdin and stdout
    Guard,
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

/// Guards until stdin ends.
pub(super) fn guard() -> Outcome {
    // While this is the only thread.
    helper::guard::enter(Path::new(container::ENGINE_SOCKET)).map_err(|error| {
        let hint = error.hint();
        Failure::from(error).hint(hint)
    })?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let terminated = async {
            if terminate.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        };
        helper::guard::serve(tokio::io::stdin(), tokio::io::stdout(), terminated).await
    })?;
    runtime.shutdown_background();
    Ok(Exit::Success)
}

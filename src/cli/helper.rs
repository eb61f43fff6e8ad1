//! `helper`: what longshore runs inside a job's containers. Not for people.

/// Subcommands of `helper`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum HelperCommand {
    /// Serves the tasks of one job on stdin and stdout
    Serve,
}

//! Why a pipeline could not be run to its end.

use std::{error::Error, io, path::PathBuf};

use tokio::task::JoinError;

use super::{pipeline::PipelineError, worktree::WorktreeError};
use crate::ledger::StateError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("there is no job `{name}` in this pipeline; there are: {known}")]
    UnknownJob {
        name: String,
        /// The names of all jobs.
        known: String,
    },
    #[error("no job is in this pipeline; left out by their rules: {left_out}")]
    NoJobs {
        /// The names of all jobs of the file.
        left_out: String,
    },
    /// A job was named that its rules leave out.
    #[error("the job `{name}` is not in this pipeline: its rules leave it out")]
    LeftOut { name: String },
    #[error("cannot pack the work tree")]
    Worktree(#[from] WorktreeError),
    #[error("cannot use the directory `{}`", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// There is no runner for the jobs.
    #[error("the runner failed")]
    Runner(#[source] Box<dyn Error + Send + Sync>),
    /// Jobs of earlier runs cannot be looked up.
    #[error("the runner failed")]
    State(#[from] StateError),
    #[error("interrupted before the jobs were cleaned up; the next run does it")]
    Interrupted,
    #[error("a task panicked; this is a bug in longshore")]
    Task(#[from] JoinError),
}

impl ExecError {
    /// The exit code of the command: 2 if what was asked for is wrong, 3 if it could not be done.
    pub(crate) fn code(&self) -> u8 {
        match self {
            ExecError::Pipeline(_)
            | ExecError::UnknownJob { .. }
            | ExecError::NoJobs { .. }
            | ExecError::LeftOut { .. } => 2,
            ExecError::Worktree(_)
            | ExecError::Directory { .. }
            | ExecError::Output(_)
            | ExecError::Runner(_)
            | ExecError::State(_)
            | ExecError::Interrupted
            | ExecError::Task(_) => 3,
        }
    }
}

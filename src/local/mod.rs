//! `longshore exec`: runs the jobs of a pipeline file on this machine. The file is read and scheduled
//! here (`pipeline`), the work tree is packed (`worktree`), and each job goes straight to the runner
//! that serves any CI engine (`scheduler`), which the caller passes in. The reporter of the jobs is the
//! terminal, and their artifacts are files of the project. This module knows no executor.

mod artifacts;
mod choice;
mod dotenv;
mod error;
mod event;
mod exec;
mod folders;
mod lines;
mod pipeline;
mod plan;
mod progress;
mod project;
mod reporter;
mod scheduler;
mod terminal;
#[cfg(test)]
mod tests;
mod worktree;

pub(crate) use self::{
    error::ExecError,
    exec::{Exec, ExitStatus, exec},
};

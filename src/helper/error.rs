//! Why a task failed, and the exit code that says so.

use std::io;
use std::path::{Path, PathBuf};

use crate::{base::error_chain, helper::protocol::Done};

/// Why a task failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Git failed; its message is in the trace already.
    #[error("`{command}` failed with exit code {code}")]
    Git { command: String, code: i32 },
    #[error("hook `{hook}` failed with exit code {code}")]
    Hook { hook: &'static str, code: i32 },
    #[error(
        "commit {sha} of ref `{reference}` is not among what was fetched{hint}: it may have been \
         removed from the ref by a force push, or the ref deleted"
    )]
    Unreachable { sha: String, reference: String, hint: String },
    #[error("commit id `{0}` is shorter than 8 characters")]
    ShortSha(String),
    #[error("cannot run `{program}`, is it in the helper image?")]
    Spawn { program: String, source: io::Error },
    #[error("`{0}` in GIT_SUBMODULE_PATHS lacks its path")]
    SubmodulePath(String),
    #[error("no shell for hook `{0}`: neither `bash` nor `sh` is in the helper image")]
    NoShell(&'static str),
    #[error("cannot {action} `{path}`")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Pack(String),
    #[error("task was not understood, is the helper of another version?")]
    Task(#[source] serde_json::Error),
    #[error("task ended before its time")]
    Interrupted(#[source] tokio::task::JoinError),
    #[error("clean-up is not complete: {0}")]
    CleanUp(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    fn exit_code(&self) -> i32 {
        match self {
            Self::Git { code, .. } | Self::Hook { code, .. } => *code,
            Self::Unreachable { .. }
            | Self::ShortSha(_)
            | Self::Spawn { .. }
            | Self::SubmodulePath(_)
            | Self::NoShell(_)
            | Self::File { .. }
            | Self::Pack(_)
            | Self::Task(_)
            | Self::Interrupted(_)
            | Self::CleanUp(_) => 1,
        }
    }

    /// The reply of a task that failed with this error.
    pub(super) fn done(&self) -> Done {
        Done { exit_code: self.exit_code(), error: Some(error_chain(self)), ..Done::default() }
    }
}

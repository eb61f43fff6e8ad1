//! How a command ends: its exit code, and how a failure is shown. Decided here and nowhere else.

use std::{
    error::Error,
    fmt,
    io::{self, Write},
    iter,
    process::ExitCode,
};

use crate::config::{Problems, check::LoadError, edit::EditError};

/// What the help says of them.
pub(super) const CODES: &str = "\
Exit codes:
   0  done
   1  failed
   2  exec: the pipeline's file is wrong
   3  exec: the pipeline could not be run
  78  the configuration file cannot be used";

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Failed: the same code as gitlab-runner's for everything that is fatal, wrong arguments and
    /// findings of `lint` included.
    Failure = 1,
    /// `exec`: the pipeline's file is wrong, or a job was named that is not in it.
    BadPipeline = 2,
    /// `exec`: the pipeline could not be run, through no fault of its own.
    System = 3,
    /// The configuration file cannot be used (`EX_CONFIG` of sysexits.h): trying again is of no use
    /// before the file is corrected.
    BadConfiguration = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command: the error, and what the reader can do now.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    exit: Option<Exit>,
}

/// An error, and what was tried when it happened.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Context {
    message: String,
    source: Box<dyn Error + Send + Sync>,
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), hint: None, exit: None }
    }
}

impl Failure {
    /// A failure without a cause beneath it.
    pub fn new(message: impl fmt::Display) -> Self {
        Self { error: message.to_string().into(), hint: None, exit: None }
    }

    /// Says what was tried when the error happened.
    #[must_use]
    pub fn context(self, message: impl fmt::Display) -> Self {
        let context = Context { message: message.to_string(), source: self.error };
        Self { error: context.into(), ..self }
    }

    /// Says what the reader can do now.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Says with which code the process ends.
    #[must_use]
    pub fn with_exit(self, exit: Exit) -> Self {
        Self { exit: Some(exit), ..self }
    }

    /// The error with its causes, for those who take any.
    #[must_use]
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync> {
        self.error
    }

    /// The error, then its causes.
    fn chain(&self) -> impl Iterator<Item = &(dyn Error + 'static)> {
        let first: &(dyn Error + 'static) = &*self.error;
        iter::successors(Some(first), |&error| error.source())
    }

    /// The code that the process ends with.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let bad = self.chain().any(|cause| {
            cause.is::<Problems>()
                || matches!(cause.downcast_ref(), Some(LoadError::Check(_)))
                || matches!(
                    cause.downcast_ref(),
                    Some(EditError::Syntax { .. } | EditError::Runners { .. })
                )
        });
        if bad { Exit::BadConfiguration } else { Exit::Failure }
    }

    /// Shows it: `error:`, one `caused by:` for each cause, `hint:`.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "error: {}", self.error)?;
        let mut shown = self.error.to_string();
        for cause in self.chain().skip(1) {
            // A transparent error shows its source as itself.
            let text = cause.to_string();
            if text != shown {
                writeln!(out, "caused by: {text}")?;
                shown = text;
            }
        }
        if let Some(hint) = &self.hint {
            writeln!(out, "hint: {hint}")?;
        }
        out.flush()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.print(&mut text).map_err(|_| fmt::Error)?;
        f.write_str(String::from_utf8_lossy(&text).trim_end())
    }
}

/// What a command gives back.
pub type Outcome = Result<Exit, Failure>;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::check;

    #[test]
    fn a_failure_is_shown_with_its_causes_and_a_hint() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = LoadError::Read { path: PathBuf::from("/etc/x"), source };
        let failure = Failure::from(error).context("cannot start").hint("run it as root");
        assert_eq!(
            failure.to_string(),
            "error: cannot start\ncaused by: cannot read `/etc/x`\ncaused by: permission denied\n\
             hint: run it as root"
        );
        assert_eq!(failure.exit(), Exit::Failure);
    }

    #[test]
    fn a_wrong_file_has_an_exit_code_of_its_own() {
        let problems = check::check("concurrent = 0", "c".as_ref(), &|_| None).unwrap_err();
        let failure = Failure::from(LoadError::from(problems));
        assert_eq!(failure.exit(), Exit::BadConfiguration);
        assert_eq!(failure.to_string().matches("concurrent").count(), 1);
        assert_eq!(Exit::BadConfiguration as u8, 78);
    }
}

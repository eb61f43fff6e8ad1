//! Why an executor did not do what a job needs, in words that no executor's own types appear in.

use std::{error::Error, fmt};

use crate::workload::outcome::FailureReason;

/// An executor failed, as against a script that did.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// What the job's scripts ran in is gone: [`Session::renew`](super::Session::renew) makes it
    /// anew.
    #[error("the job's container is gone: something removed it while the job ran")]
    Gone,
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] ExecutorFailure),
}

/// A failure of an executor, with what its readers are told of it.
#[derive(Debug)]
pub struct ExecutorFailure {
    error: Box<dyn Error + Send + Sync>,
    reason: FailureReason,
    hint: Option<String>,
    is_retryable: bool,
}

impl fmt::Display for ExecutorFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for ExecutorFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl ExecutorFailure {
    /// A failure that trying again does not mend.
    pub fn new(reason: FailureReason, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: error.into(), reason, hint: None, is_retryable: false }
    }

    /// The same, with what the reader can do now.
    #[must_use]
    pub fn with_hint(mut self, hint: Option<&str>) -> Self {
        self.hint = hint.map(str::to_owned);
        self
    }

    /// The same; `is_retryable` says whether it may go better when it is tried again.
    #[must_use]
    pub fn retryable(mut self, is_retryable: bool) -> Self {
        self.is_retryable = is_retryable;
        self
    }
}

impl ExecutorError {
    /// What the CI engine is told.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Gone => FailureReason::RunnerSystemFailure,
            Self::Failed(failure) => failure.reason,
        }
    }

    /// What the reader can do now.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Gone => Some(
                "with the variable EXECUTOR_JOB_SECTION_ATTEMPTS above 1, the script runs again in a \
                 new container",
            ),
            Self::Failed(failure) => failure.hint.as_deref(),
        }
    }

    /// Whether it may go better when it is tried again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Gone => false,
            Self::Failed(failure) => failure.is_retryable,
        }
    }
}

//! How a job ended, and what is said of it: to its author in the trace, to the server, to the
//! operator.

use crate::{
    base::error_chain,
    executor::{ExecutorError, helper::HelperError},
    ledger::StateError,
    trace::JobLog,
    workload::{
        WorkloadError,
        outcome::{Deadline, FailureReason, Outcome, StopReason},
    },
};

use super::reporter::{Conclusion, NotDelivered};

/// The system failed, as against a script that did.
#[derive(Debug, Clone)]
pub struct SystemFailure {
    /// What the CI engine is told.
    pub reason: FailureReason,
    /// What failed and why, in one line.
    pub error: String,
    /// What the reader can do.
    pub hint: Option<String>,
    /// An exit code that CI engines are told though no script ran.
    pub exit_code: Option<i32>,
    /// Whether it may go better when it is tried again.
    pub is_retryable: bool,
}

/// How a job or a stage ended.
pub(super) type Ending = Result<Outcome, SystemFailure>;

impl SystemFailure {
    /// A failure in words of longshore's own.
    #[must_use]
    pub fn new(reason: FailureReason, error: &str) -> Self {
        Self { reason, error: error.to_owned(), hint: None, exit_code: None, is_retryable: false }
    }

    /// A failure with its causes.
    #[must_use]
    pub fn of(reason: FailureReason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(reason, &error_chain(error))
    }

    /// Writes the last lines of a trace.
    pub fn show(&self, log: &JobLog) {
        if let Some(hint) = &self.hint {
            log.plain(&format!("hint: {hint}"));
        }
        log.failed(&self.error, self.reason == FailureReason::RunnerSystemFailure);
    }

    /// There is no space on disk for the trace.
    pub(super) fn spool(error: &std::io::Error) -> Self {
        Self::new(
            FailureReason::RunnerSystemFailure,
            &format!("cannot keep the job's trace on the build host: {error}"),
        )
    }

    /// A task of longshore's panicked, which is a bug.
    pub(super) fn panicked(error: &tokio::task::JoinError) -> Self {
        Self::new(FailureReason::RunnerSystemFailure, &format!("a task panicked: {error}"))
    }
}

impl From<ExecutorError> for SystemFailure {
    fn from(error: ExecutorError) -> Self {
        let mut failure = Self::of(error.failure_reason(), &error);
        failure.hint = error.hint().map(str::to_owned);
        failure.is_retryable = error.is_retryable();
        failure
    }
}

impl From<HelperError> for SystemFailure {
    fn from(error: HelperError) -> Self {
        ExecutorError::from(error).into()
    }
}

impl From<WorkloadError> for SystemFailure {
    fn from(error: WorkloadError) -> Self {
        Self::of(error.failure_reason(), &error)
    }
}

impl From<StateError> for SystemFailure {
    fn from(error: StateError) -> Self {
        let mut failure = Self::of(FailureReason::RunnerSystemFailure, &error);
        failure.hint = Some("the build host's disk may be full".to_owned());
        failure
    }
}

/// The last line of the trace.
pub(super) fn show(ending: &Ending, log: &JobLog) {
    match ending {
        Ok(Outcome::Success) => log.succeeded(),
        Ok(Outcome::ScriptFailed { exit_code }) => {
            log.failed(&format!("exit code {exit_code}"), false);
        }
        Ok(Outcome::Stopped(reason)) => log.failed(&reason.to_string(), false),
        Err(failure) => failure.show(log),
    }
}

/// Why it failed, if it did.
pub(super) fn reason(ending: &Ending) -> Option<FailureReason> {
    match ending {
        Ok(Outcome::Success) => None,
        Ok(Outcome::ScriptFailed { .. }) => Some(FailureReason::ScriptFailure),
        Ok(Outcome::Stopped(reason)) => Some(reason.failure_reason()),
        Err(failure) => Some(failure.reason),
    }
}

impl Conclusion {
    /// An ending as the CI engine is told of it.
    pub(super) fn of(ending: &Ending) -> Self {
        let exit_code = match ending {
            Ok(Outcome::ScriptFailed { exit_code }) => Some(*exit_code),
            Ok(_) => None,
            Err(failure) => failure.exit_code,
        };
        match reason(ending) {
            None => Self::Success,
            Some(reason) => Self::Failed { reason, exit_code },
        }
    }
}

/// Whether nothing of the job may run after this.
pub(super) fn is_hard(reason: &StopReason) -> bool {
    match reason {
        StopReason::Canceled => false,
        StopReason::TimedOut { deadline, .. } => *deadline != Deadline::Script,
        StopReason::Aborted | StopReason::Interrupted(_) => true,
    }
}

/// Tells the operator.
pub(super) fn log_end(ending: &Ending, delivered: &Result<(), NotDelivered>) {
    match ending {
        Ok(Outcome::Success) => tracing::info!("job succeeded"),
        Ok(outcome) => tracing::info!(?outcome, "job failed"),
        Err(failure) => tracing::warn!(error = failure.error, "job failed: system failure"),
    }
    if let Err(error) = delivered {
        tracing::error!(error = error_chain(error), "failed to report the job's end");
    }
}

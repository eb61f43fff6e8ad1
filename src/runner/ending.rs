//! How a job ended, and what is said of it: to its author in the trace, to the server, to the
//! operator.

use crate::{
    base::error_chain,
    executor::docker::{ExecutorError, engine, helper::HelperError},
    gitlab::{
        api::wire::JobState,
        failure_reason::for_server,
        payload::InvalidJob,
        trace::{Final, FinishError},
    },
    ledger::StateError,
    trace::JobLog,
    workload::{
        WorkloadError,
        outcome::{Deadline, FailureReason, Outcome, StopReason},
    },
};

/// The system failed, as against a script that did.
#[derive(Debug, Clone)]
pub(super) struct SystemFailure {
    pub(super) reason: FailureReason,
    /// What failed and why, in one line.
    pub(super) error: String,
    /// What the reader can do.
    pub(super) hint: Option<String>,
    pub(super) exit_code: Option<i32>,
    /// Whether it may go better when tried again.
    pub(super) is_passing: bool,
}

/// How a job or a stage ended.
pub(super) type Ending = Result<Outcome, SystemFailure>;

impl SystemFailure {
    /// A failure in words of ours.
    pub(super) fn new(reason: FailureReason, error: &str) -> Self {
        Self { reason, error: error.to_owned(), hint: None, exit_code: None, is_passing: false }
    }

    /// A payload that cannot be understood.
    pub(super) fn undecodable(error: &str) -> Self {
        Self::new(
            FailureReason::RunnerSystemFailure,
            &format!("the job that the server sent cannot be understood: {error}"),
        )
    }

    /// The trace has no place on disk.
    pub(super) fn spool(error: &std::io::Error) -> Self {
        Self::new(
            FailureReason::RunnerSystemFailure,
            &format!("cannot keep the job's trace on the build host: {error}"),
        )
    }

    /// A bug of ours.
    pub(super) fn panicked(error: &tokio::task::JoinError) -> Self {
        Self::new(FailureReason::RunnerSystemFailure, &format!("a task panicked: {error}"))
    }

    fn of(reason: FailureReason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { reason, error: error_chain(error), hint: None, exit_code: None, is_passing: false }
    }
}

impl From<ExecutorError> for SystemFailure {
    fn from(error: ExecutorError) -> Self {
        let mut failure = Self::of(error.failure_reason(), &error);
        failure.hint = error.hint().map(str::to_owned);
        failure.is_passing = error.is_passing();
        failure
    }
}

impl From<HelperError> for SystemFailure {
    fn from(error: HelperError) -> Self {
        ExecutorError::from(error).into()
    }
}

impl From<engine::ConnectError> for SystemFailure {
    fn from(error: engine::ConnectError) -> Self {
        let mut failure = Self::of(FailureReason::RunnerSystemFailure, &error);
        failure.hint = error.hint().map(str::to_owned);
        failure.is_passing = error.is_passing();
        failure
    }
}

impl From<engine::auth::AuthError> for SystemFailure {
    fn from(error: engine::auth::AuthError) -> Self {
        Self::of(FailureReason::RunnerConfigurationError, &error)
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

impl From<InvalidJob> for SystemFailure {
    fn from(error: InvalidJob) -> Self {
        let mut failure = Self::of(error.failure_reason(), &error);
        failure.exit_code = error.exit_code();
        failure
    }
}

/// The last line of the trace.
pub(super) fn show(ending: &Ending, job_log: &JobLog) {
    match ending {
        Ok(Outcome::Success) => job_log.succeeded(),
        Ok(Outcome::ScriptFailed { exit_code }) => {
            job_log.failed(&format!("exit code {exit_code}"), false);
        }
        Ok(Outcome::Stopped(reason)) => job_log.failed(&reason.to_string(), false),
        Err(failure) => {
            if let Some(hint) = &failure.hint {
                job_log.plain(&format!("hint: {hint}"));
            }
            let system = failure.reason == FailureReason::RunnerSystemFailure;
            job_log.failed(&failure.error, system);
        }
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

/// The ending in the server's words.
pub(super) fn last_word(ending: &Ending, announced: &[String]) -> Final {
    let failed = |reason: FailureReason, exit_code: Option<i32>| Final {
        state: JobState::Failed,
        reason: Some(for_server(reason, announced).to_owned()),
        exit_code,
    };
    match ending {
        Ok(Outcome::Success) => Final { state: JobState::Success, reason: None, exit_code: None },
        Ok(Outcome::ScriptFailed { exit_code }) => {
            failed(FailureReason::ScriptFailure, Some(*exit_code))
        }
        Ok(Outcome::Stopped(reason)) => failed(reason.failure_reason(), None),
        Err(failure) => failed(failure.reason, failure.exit_code),
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
pub(super) fn log_end(ending: &Ending, delivered: &Result<(), FinishError>) {
    match ending {
        Ok(Outcome::Success) => tracing::info!("job succeeded"),
        Ok(outcome) => tracing::info!(?outcome, "job failed"),
        Err(failure) => tracing::warn!(error = failure.error, "job failed: system failure"),
    }
    if let Err(error) = delivered {
        tracing::error!(error = error_chain(error), "job's end could not be delivered");
    }
}

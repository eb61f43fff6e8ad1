//! How a job ends. Three endings are kept apart to the last call: the script failed (the runner did
//! its work), the job was stopped (by whom, or by which deadline), the system failed.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::base::duration;

/// How a job, or a stage of it, ended when the system worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All went well.
    Success,
    /// A script or a helper's task ended with a code that is not 0.
    ScriptFailed {
        /// The code.
        exit_code: i32,
    },
    /// Something from outside ended it.
    Stopped(StopReason),
}

/// What ended a job from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The server asked for a graceful end (`Job-Status: canceling`).
    Canceled,
    /// The server does not want the job any more (`canceled`, `failed`, 403): nothing further runs.
    Aborted,
    /// longshore was told to stop, by this signal.
    Interrupted(&'static str),
    /// A deadline passed.
    TimedOut {
        /// Which one.
        deadline: Deadline,
        /// Its length.
        after: Duration,
    },
}

/// Deadlines of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// `runner_info.timeout`.
    Job,
    /// `prepare_timeout`.
    Prepare,
    /// `get_sources_timeout`.
    Sources,
    /// `RUNNER_SCRIPT_TIMEOUT`.
    Script,
}

impl StopReason {
    /// What the server is told.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Canceled | Self::Aborted => FailureReason::JobCanceled,
            Self::Interrupted(_) => FailureReason::RunnerInterrupted,
            Self::TimedOut { .. } => FailureReason::JobExecutionTimeout,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Canceled | Self::Aborted => f.write_str("canceled"),
            Self::Interrupted(signal) => write!(f, "aborted: {signal}"),
            Self::TimedOut { deadline, after } => {
                let what = match deadline {
                    Deadline::Job => "execution",
                    Deadline::Prepare => "preparation (prepare_timeout)",
                    Deadline::Sources => "fetching the sources (get_sources_timeout)",
                    Deadline::Script => "script (RUNNER_SCRIPT_TIMEOUT)",
                };
                write!(f, "{what} took longer than {} seconds", duration::format_seconds(*after))
            }
        }
    }
}

/// Why a job failed, as servers and metrics tell failures apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// A script ended with a code that is not 0.
    ScriptFailure,
    /// Anything that is the system's fault and no other reason fits.
    RunnerSystemFailure,
    /// A deadline passed.
    JobExecutionTimeout,
    /// An image could not be pulled.
    ImagePullFailure,
    /// The job or the runner asks for what cannot or may not be.
    RunnerConfigurationError,
    /// Something the runner depends on did not answer.
    RunnerExternalDependencyFailure,
    /// longshore was told to stop.
    RunnerInterrupted,
    /// The server canceled the job.
    JobCanceled,
}

impl FailureReason {
    /// The word for it in metrics and logs, and at servers that know it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ScriptFailure => "script_failure",
            Self::RunnerSystemFailure => "runner_system_failure",
            Self::JobExecutionTimeout => "job_execution_timeout",
            Self::ImagePullFailure => "image_pull_failure",
            Self::RunnerConfigurationError => "runner_configuration_error",
            Self::RunnerExternalDependencyFailure => "runner_external_dependency_failure",
            Self::RunnerInterrupted => "runner_interrupted",
            Self::JobCanceled => "job_canceled",
        }
    }
}

/// Status of a job as `after_script` sees it in `CI_JOB_STATUS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// The script is running.
    Running,
    /// It succeeded.
    Success,
    /// It failed.
    Failed,
    /// It was canceled.
    Canceled,
    /// Its deadline passed.
    TimedOut,
}

impl JobStatus {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::TimedOut => "timedout",
        }
    }

    /// Status after a script that ended so.
    #[must_use]
    pub fn after(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::Success,
            Outcome::ScriptFailed { .. } => Self::Failed,
            Outcome::Stopped(StopReason::TimedOut { .. }) => Self::TimedOut,
            Outcome::Stopped(_) => Self::Canceled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_the_incumbent_writes_them() {
        let stop = StopReason::TimedOut { deadline: Deadline::Job, after: Duration::from_hours(1) };
        assert_eq!(stop.to_string(), "execution took longer than 1h0m0s seconds");
        let stop = StopReason::TimedOut { deadline: Deadline::Job, after: Duration::from_secs(90) };
        assert_eq!(stop.to_string(), "execution took longer than 1m30s seconds");
    }
}

//! Why a payload is no job that can be run.

use crate::workload::outcome::FailureReason;

use super::input::InputError;

/// Why a payload is no job that can be run. The job's author reads this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJob {
    /// An option that no executor has.
    #[error(
        "unsupported executor_opts key `{key}` in {section}; supported are: {}",
        supported.join(", ")
    )]
    ExecutorOption {
        /// Where it stands, such as `image.executor_opts.docker`.
        section: String,
        /// The unknown key.
        key: String,
        /// The keys that may stand there.
        supported: &'static [&'static str],
    },
    /// An option of the wrong type.
    #[error("{key} must be {expected}, not {found}")]
    OptionType {
        /// The option's path, such as `image.executor_opts.docker.user`.
        key: String,
        /// The type it must have.
        expected: &'static str,
        /// Its value, as JSON.
        found: String,
    },
    /// A pull policy that does not exist.
    #[error(
        "unknown pull_policy `{policy}` of image `{image}`; known are always, if-not-present and never"
    )]
    PullPolicy {
        /// The image, before the expansion of variables.
        image: String,
        /// The unknown policy.
        policy: String,
    },
    /// A keyword with a value that it cannot have.
    #[error("{keyword} is `{value}`; it must be {expected}")]
    Keyword {
        /// The keyword, such as `cache:when`.
        keyword: &'static str,
        /// Its value.
        value: String,
        /// The values that it can have.
        expected: &'static str,
    },
    /// `run:` and `script:` in one job.
    #[error("the keywords `run` and `script` exclude each other in one job")]
    RunAndScript,
    /// A secret that would have to be fetched.
    #[error(
        "the variable `{variable}` is a secret of the provider `{provider}`, which this runner \
         cannot get; the job is not run without it"
    )]
    Secret {
        /// The variable that would hold it.
        variable: String,
        /// The key of the provider, such as `vault`.
        provider: &'static str,
    },
    /// An input that cannot be used.
    #[error(transparent)]
    Input(#[from] InputError),
    /// `run:` needs the step runner.
    #[error("the keyword `run` (native steps) is not supported; use `script`")]
    RunUnsupported,
}

impl InvalidJob {
    /// The failure reason that the job ends with.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Input(InputError::Type { .. })
            | Self::ExecutorOption { .. }
            | Self::OptionType { .. }
            | Self::PullPolicy { .. }
            | Self::Keyword { .. }
            | Self::RunAndScript
            | Self::RunUnsupported
            | Self::Secret { .. } => FailureReason::RunnerSystemFailure,
            Self::Input(_) => FailureReason::RunnerConfigurationError,
        }
    }

    /// The exit code that GitLab Runner gives for it, if any.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::ExecutorOption { .. }
            | Self::OptionType { .. }
            | Self::PullPolicy { .. }
            | Self::RunAndScript
            | Self::RunUnsupported => Some(3),
            Self::Keyword { .. } | Self::Secret { .. } | Self::Input(_) => None,
        }
    }
}

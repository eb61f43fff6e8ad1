//! Why a job cannot be planned, and what its server is told then.

use super::{
    access::AccessError, directories::ClonePathError, mount::MountError, outcome::FailureReason,
    policy::Refusal, service::ServiceError, settings::SettingError,
};

/// Why a job cannot be planned. The job's author reads this.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Neither job nor runner name an image.
    #[error("the job names no image and the runner has no default ([runners.docker] image)")]
    NoImage,
    /// The runner forbids the image, its user or its pull policies.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// `GIT_CLONE_PATH` cannot be used.
    #[error(transparent)]
    ClonePath(#[from] ClonePathError),
    /// A setting has a value that it cannot have.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A volume cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A service cannot be started.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The job cannot have the Docker that it asks for.
    #[error(transparent)]
    Access(#[from] AccessError),
}

impl WorkloadError {
    /// The failure reason that the job ends with.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Setting(_) | Self::Service(ServiceError::TooMany { .. }) => {
                FailureReason::RunnerSystemFailure
            }
            Self::NoImage
            | Self::Refused(_)
            | Self::ClonePath(_)
            | Self::Mount(_)
            | Self::Service(_)
            | Self::Access(_) => FailureReason::RunnerConfigurationError,
        }
    }
}

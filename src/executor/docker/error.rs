//! Why a Docker engine did not do what a job needs, and what that means for the job.

use super::{
    BuildKitError, cgroup, dind,
    engine::{self, helper_image, image},
    socket,
};
use crate::{
    executor::{ExecutorError, ExecutorFailure, helper::HelperError},
    workload::outcome::FailureReason,
};

/// Why the engine did not do what a job needs.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// An image could not be had.
    #[error(transparent)]
    Image(#[from] image::PullError),
    /// The helper image could not be made.
    #[error("cannot make the helper image")]
    HelperImage(#[from] helper_image::HelperImageError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The helper did not do its work.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The job's own Docker daemon did not become ready.
    #[error(transparent)]
    Daemon(#[from] dind::DaemonError),
    /// The job's own BuildKit did not become ready.
    #[error(transparent)]
    BuildKit(#[from] BuildKitError),
    /// The job's guarded socket could not be made.
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// The job's container is gone.
    #[error("the job's container is gone: something removed it while the job ran")]
    Gone,
}

impl DockerError {
    /// What the server is told.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Image(error) => match error.kind() {
                image::PullErrorKind::ExternalDependency => {
                    FailureReason::RunnerExternalDependencyFailure
                }
                image::PullErrorKind::Configuration => FailureReason::RunnerConfigurationError,
                image::PullErrorKind::ImagePull => FailureReason::ImagePullFailure,
                image::PullErrorKind::NeverMissing | image::PullErrorKind::Engine => {
                    FailureReason::RunnerSystemFailure
                }
            },
            // The engine calls a request of ours wrong: so is the setting it came from. A start has
            // no settings: there, it is the image.
            Self::Engine(error) if error.status() == Some(400) && !error.is_at_start() => {
                FailureReason::RunnerConfigurationError
            }
            Self::Daemon(dind::DaemonError::Engine(error)) if error.status() == Some(400) => {
                FailureReason::RunnerConfigurationError
            }
            Self::Socket(error) if error.is_configuration() => {
                FailureReason::RunnerConfigurationError
            }
            Self::HelperImage(_)
            | Self::Engine(_)
            | Self::Helper(_)
            | Self::Daemon(_)
            | Self::BuildKit(_)
            | Self::Socket(_)
            | Self::Gone => FailureReason::RunnerSystemFailure,
        }
    }

    /// Whether it may go better when it is tried again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_gone() || error.status().is_some_and(|s| s >= 500),
            Self::Daemon(dind::DaemonError::Engine(error))
            | Self::BuildKit(BuildKitError::Engine(error))
            | Self::Socket(socket::SocketError::Cgroup(cgroup::CgroupError::Engine(error))) => {
                error.is_gone()
            }
            Self::Image(_)
            | Self::HelperImage(_)
            | Self::Helper(_)
            | Self::Daemon(_)
            | Self::BuildKit(_)
            | Self::Socket(_)
            | Self::Gone => false,
        }
    }

    /// What the reader can do now.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Image(error) => error.hint(),
            Self::Daemon(error) => error.hint(),
            Self::BuildKit(error) => error.hint(),
            Self::Engine(error) => engine_hint(error),
            Self::Socket(error) => error.hint(),
            Self::HelperImage(_) | Self::Helper(_) | Self::Gone => None,
        }
    }
}

/// What the engine's words mean for the reader; the most telling first.
fn engine_hint(error: &engine::Error) -> Option<&'static str> {
    if error.is_gone() {
        return Some("is the Docker engine running, and is [runners.docker] host its address?");
    }
    let message = error.engine_message()?;
    let says = |words: &str| message.contains(words);
    if says("non running container") {
        Some(
            "the job's Docker daemon has ended, and the job's container is in its network \
             ([runners.docker.dind] network = \"shared\")",
        )
    } else if says("address pool") {
        Some(
            "every job with FF_NETWORK_PER_BUILD has a network of its own: give the engine more of \
             them (default-address-pools), or run fewer jobs at once",
        )
    } else if says("/dev/net/tun") {
        Some(
            "a Docker daemon without root needs the host's /dev/net/tun (modprobe tun), or \
             privileges ([runners.docker] services_privileged = true)",
        )
    } else if says("adding custom device") {
        Some(
            "the engine's host has no such device: look at [runners.docker] devices and \
             services_devices",
        )
    } else if says("exec: \"sh\"") || says("no such file or directory") {
        Some("the job's image needs a shell: sh must be in it")
    } else {
        None
    }
}

impl From<DockerError> for ExecutorError {
    fn from(error: DockerError) -> Self {
        match error {
            DockerError::Gone => Self::Gone,
            DockerError::Helper(error) => error.into(),
            error => {
                let (reason, hint) = (error.failure_reason(), error.hint());
                let is_retryable = error.is_retryable();
                ExecutorFailure::new(reason, error).with_hint(hint).retryable(is_retryable).into()
            }
        }
    }
}

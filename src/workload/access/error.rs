//! Why a job cannot have its Docker daemon.

/// Why a job cannot have its Docker daemon. The job's author reads this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The runner gives none.
    #[error(
        "the service {service} is a Docker daemon, and this runner gives jobs none \
         ([runners.docker.dind] mode = \"refuse\")"
    )]
    Refused {
        /// The service, as the job writes it.
        service: String,
    },
    /// It would need what the runner forbids.
    #[error(
        "the service {service} is a Docker daemon, which needs a privileged container, and {key} \
         forbids it; a rootless image or a runtime such as sysbox-runc needs none"
    )]
    Forbidden {
        /// The service, as the job writes it.
        service: String,
        /// The key of the settings that forbids it.
        key: &'static str,
    },
}

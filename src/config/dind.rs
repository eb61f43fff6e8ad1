//! `[runners.docker.dind]`: what jobs get that ask for a Docker daemon as a service.

use std::time::Duration;

/// What `services: [docker:dind]` becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindMode {
    /// A daemon of the job's own.
    #[default]
    Sidecar,
    /// The engine's own socket in its place, guarded.
    Socket,
    /// The job is refused.
    Refuse,
}

/// `network` of `[runners.docker.dind]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindNetwork {
    /// A place of its own in the job's network, under the name `docker`.
    #[default]
    Own,
    /// The job's container is in the daemon's: what inner containers publish is at `localhost` too.
    Shared,
}

/// Where a job's daemon has its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindStorage {
    /// In a volume that goes with the job.
    #[default]
    Fresh,
    /// In one that later jobs use again, one at a time.
    Slot,
}

/// `[runners.docker.dind]`.
#[derive(Debug, Clone, PartialEq)]
pub struct DindConfig {
    /// What such a service becomes.
    pub mode: DindMode,
    /// Globs of the images that are a Docker daemon.
    pub images: Vec<String>,
    /// Where the daemon is.
    pub network: DindNetwork,
    /// Mirrors that the daemon pulls from.
    pub registry_mirrors: Vec<String>,
    /// Registries, or ranges of addresses of such, that it talks to without TLS or with
    /// certificates of nobody it knows.
    pub insecure_registries: Vec<String>,
    /// How long it may take until it answers.
    pub ready_timeout: Duration,
    /// Where it has its layers.
    pub storage: DindStorage,
    /// Layer-cache slots that are kept at most.
    pub slots: usize,
    /// Bytes that a slot may have to be kept.
    pub slot_size: u64,
    /// Daemons that wait for jobs.
    pub warm: usize,
}

impl Default for DindConfig {
    fn default() -> Self {
        Self {
            mode: DindMode::default(),
            // Tags of the official image alone: its container is privileged, and who may push an
            // image to some other registry should not thereby be root on the build host.
            images: ["docker:*dind*", "docker.io/library/docker:*dind*"]
                .map(str::to_owned)
                .to_vec(),
            network: DindNetwork::default(),
            registry_mirrors: Vec::new(),
            insecure_registries: Vec::new(),
            ready_timeout: Duration::from_mins(1),
            storage: DindStorage::default(),
            slots: 10,
            slot_size: 20 << 30,
            warm: 0,
        }
    }
}

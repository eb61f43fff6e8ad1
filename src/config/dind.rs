//! `[runners.docker.dind]`: what jobs get that ask for a Docker daemon as a service.

use std::time::Duration;

/// What `services: [docker:dind]` becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindMode {
    /// A Docker daemon of the job's own, in the service's container.
    #[default]
    Sidecar,
    /// No daemon: a guarded socket of the engine takes its place.
    Socket,
    /// The job is refused.
    Refuse,
}

/// `network` of `[runners.docker.dind]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindNetwork {
    /// A container of its own in the job's network, with the name `docker`.
    #[default]
    Own,
    /// The job's container is in the daemon's: what inner containers publish is at `localhost` too.
    Shared,
}

/// Where the layers of a job's daemon come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DindStorage {
    /// In a volume that is removed with the job.
    #[default]
    Fresh,
    /// In a layer-cache slot: a volume that later jobs use again, one at a time.
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
    /// certificates that it does not know.
    pub insecure_registries: Vec<String>,
    /// How long it may take until it answers; a job without its daemon fails.
    pub ready_timeout: Duration,
    /// Where its layers come from.
    pub storage: DindStorage,
    /// Layer-cache slots of the runner that are kept; the least recently used are removed.
    pub slots: usize,
    /// Largest size in bytes of a slot that is kept.
    pub slot_size: u64,
    /// Daemons that are started before a job needs them.
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

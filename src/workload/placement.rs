//! Where a job runs: what planning must know beside the job and the runner's settings.

use crate::base::secret::Secret;

/// Where a job runs, and what is lent to it there.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The machine's id (`.runner_system_id`).
    pub system_id: String,
    /// Marks everything that this longshore makes.
    pub instance: String,
    /// The job's slot among those of its runner, from 0.
    pub slot: usize,
    /// The job's slot among those of its runner and project, from 0.
    pub project_slot: usize,
    /// Sixteen random hex digits.
    pub random: String,
    /// The executor's architecture as Go names it, such as `amd64`.
    pub architecture: String,
    /// The id under which the server logged the request that brought the job.
    pub correlation_id: Option<String>,
    /// PEM of CAs for the server.
    pub server_ca: Option<String>,
    /// Client certificate and key towards the server, PEM.
    pub client_certificate: Option<(String, Secret)>,
    /// What is there already, and is the job's while it runs.
    pub leases: Leases,
}

/// What is lent to one job. A workload that is planned without any says what the job could use; it is
/// planned again with what it got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    /// The data root that earlier jobs left for its Docker daemon.
    pub layer_slot: Option<LayerSlotLease>,
    /// A Docker daemon that is running already.
    pub warm_daemon: Option<WarmDaemonLease>,
}

/// A data root of a job's Docker daemon with the layers of earlier jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSlotLease {
    /// Its volume.
    pub volume: String,
    /// Bytes that are in it.
    pub size: u64,
}

/// A Docker daemon that waited for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmDaemonLease {
    /// Its container.
    pub container: String,
    /// The volume of its data root.
    pub data: String,
    /// The volume of its socket.
    pub socket: String,
    /// The volume of its clients' certificates; `None` without TLS.
    pub certificates: Option<String>,
}

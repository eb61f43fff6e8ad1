//! The whole configuration.

use std::{sync::Arc, time::Duration};

use super::runner::RunnerConfig;

/// The whole configuration, checked: no value in it can be wrong in a way its type forbids.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Jobs at once over all runners; at least 1.
    pub concurrent: usize,
    /// How long one pass over all runners takes at least.
    pub check_interval: Duration,
    /// Level of the daemon's log; `None` leaves it to the command line.
    pub log_level: Option<String>,
    /// Format of the daemon's log; `None` leaves it to the command line.
    pub log_format: Option<String>,
    /// `host:port` of the metrics; `None` for no HTTP server.
    pub listen_address: Option<String>,
    /// How long a forceful stop waits for jobs to be cleaned up.
    pub shutdown_timeout: Duration,
    /// How long idle connections to GitLab live; zero for ever.
    pub connection_max_age: Duration,
    /// The `[[runners]]`, in file order.
    pub runners: Vec<Arc<RunnerConfig>>,
}

//! What the runner asks of a CI engine: the job reporter hears how a job goes, and the artifact store
//! keeps what jobs leave to each other. A CI engine implements both; the runner knows none.

use std::path::Path;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    executor::buffered_log::BufferedLog,
    trace::Trace,
    workload::{
        Workload,
        outcome::FailureReason,
        spec::{ArtifactSpec, Dependency},
    },
};

/// Reports one job to its CI engine. Calls come in the order of the methods.
pub trait Reporter: Send + Sync {
    /// Tells that the job was taken, before anything of it runs.
    fn accept(&self) -> BoxFuture<'_, Acceptance>;

    /// Sends the trace while the job runs, until `done`; then it returns, however much of the trace
    /// is still to be sent. Wishes of the CI engine to stop the job go to `requests`, never a weaker
    /// one after a stronger.
    fn stream(
        &self,
        trace: Trace,
        options: StreamOptions,
        requests: watch::Sender<StopRequest>,
        done: CancellationToken,
    ) -> BoxFuture<'_, ()>;

    /// Sends the rest of the trace and then how the job ended, for as long as there is hope.
    fn finish<'a>(
        &'a self,
        trace: &'a Trace,
        conclusion: &'a Conclusion,
    ) -> BoxFuture<'a, Result<(), NotDelivered>>;
}

/// What a CI engine answers to a runner that takes a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// The job is this runner's.
    Run,
    /// The job is not to be run, and nothing more is to be reported of it.
    Unwanted,
}

/// What a job's workload says of how its trace is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    /// The trace may have secrets in it (`CI_DEBUG_TRACE`, `CI_DEBUG_SERVICES`): the CI engine shows
    /// it to fewer people.
    pub is_debug: bool,
    /// The CI engine may hear less often of a job that writes nothing
    /// (`FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL`).
    pub is_dynamic: bool,
}

/// How a CI engine wants a job to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum StopRequest {
    /// By itself.
    #[default]
    None,
    /// Now, with what follows a failed script.
    Cancel,
    /// Now, with nothing more.
    Abort,
}

/// How a job ended, for its CI engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// Its script ended well.
    Success,
    /// It did not.
    Failed {
        /// Why.
        reason: FailureReason,
        /// The script's exit code, where there is one.
        exit_code: Option<i32>,
    },
}

/// The CI engine does not know how the job ended.
#[derive(Debug, thiserror::Error)]
#[error("the end of the job could not be reported")]
pub struct NotDelivered(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Keeps the artifacts of a CI engine's jobs. What fails is in the job's log by the time a method
/// returns.
pub trait ArtifactStore: Send + Sync {
    /// Writes the artifacts of another job to the file `to`. False when they cannot be had.
    fn download<'a>(
        &'a self,
        job: &'a Dependency,
        to: &'a Path,
        is_direct: bool,
        log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool>;

    /// Takes an artifact, which is in `file` under this name. False when it could not be kept.
    fn upload<'a>(
        &'a self,
        artifact: &'a ArtifactSpec,
        file_name: &'a str,
        file: &'a Path,
        log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool>;

    /// The statement of provenance that goes into an artifact's archive, for those that have one.
    fn provenance(&self, artifact: &ArtifactSpec, workload: &Workload) -> Option<String>;
}

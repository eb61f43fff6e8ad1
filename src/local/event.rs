//! What the user is shown of a pipeline that runs.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;

use super::pipeline::State;
use crate::workload::outcome::FailureReason;

/// What happened to a job; jobs are numbered as in the pipeline.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Started {
        job: usize,
    },
    /// Its trace has grown.
    Trace {
        job: usize,
        bytes: Bytes,
    },
    /// It left an artifact.
    Artifact {
        job: usize,
        artifact: KeptArtifact,
    },
    Ended {
        job: usize,
        state: State,
        /// Why it failed; `None` where it did not.
        reason: Option<FailureReason>,
        took: Duration,
    },
    /// It does not run.
    NotRun {
        job: usize,
        /// Why: skipped, manual or canceled.
        state: State,
    },
}

/// An artifact in the folder of its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptArtifact {
    /// `archive`, `junit`, …
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
    /// In bytes.
    pub(crate) size: u64,
}

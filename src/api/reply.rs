//! What the server's answers about a running job mean (`PUT /jobs/:id`, `PATCH /jobs/:id/trace`),
//! once statuses and headers have been read.

use std::time::Duration;

/// What the server wants of a job, as said by `Job-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteState {
    /// `canceling`: stop the script, then finish as usual.
    Canceling,
    /// `canceled` or `failed`: stop everything.
    Canceled,
}

/// Answer to `PUT /jobs/:id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateReply {
    /// What came of it.
    pub outcome: UpdateOutcome,
    /// A stop that was asked for.
    pub remote: Option<RemoteState>,
    /// `X-GitLab-Trace-Update-Interval`.
    pub interval: Option<Duration>,
    /// HTTP status; none when there was no answer.
    pub status: Option<u16>,
}

/// What came of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOutcome {
    /// 200.
    Success,
    /// 202: taken, but to be repeated.
    Accepted,
    /// 412: the server's trace is not ours.
    TraceInvalid,
    /// 403, 404, or the job has ended: nothing more to say.
    Abort,
    /// Anything else.
    Failed,
}

/// Answer to `PATCH /jobs/:id/trace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchReply {
    /// What came of it.
    pub outcome: PatchOutcome,
    /// A stop that was asked for.
    pub remote: Option<RemoteState>,
    /// `X-GitLab-Trace-Update-Interval`.
    pub interval: Option<Duration>,
    /// HTTP status; none when there was no answer.
    pub status: Option<u16>,
}

/// What came of a chunk of trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchOutcome {
    /// 202.
    Accepted,
    /// 416.
    Mismatch {
        /// Where to go on: how many bytes the server has.
        next: u64,
    },
    /// 404.
    NotFound,
    /// 403, or the job has ended.
    Abort,
    /// Anything else.
    Failed,
}

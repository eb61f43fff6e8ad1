//! What a server's answer to an update or a piece of trace means. Pure: status and headers in,
//! a decision out.

use std::time::Duration;

use reqwest::header::{HeaderMap, RANGE};

/// Longest update interval a server can set.
const MAX_INTERVAL: Duration = Duration::from_mins(15);

/// What the server wants of the job, from `Job-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteState {
    /// Stop, run `after_script`, report.
    Canceling,
    /// Stop: the server is done with the job (`canceled` or `failed`).
    Canceled,
}

/// The outcome of `PUT jobs/:id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOutcome {
    /// Taken.
    Success,
    /// Taken, but not yet done: send it again after the interval.
    Accepted,
    /// The trace does not match its checksum: send all of it again.
    TraceInvalid,
    /// The server wants nothing more of this job.
    Abort,
    /// Not taken; try again.
    Failed,
}

/// The answer to an update.
#[derive(Debug, Clone)]
pub struct UpdateReply {
    /// What came of it.
    pub outcome: UpdateOutcome,
    /// What the server wants of the job.
    pub remote: Option<RemoteState>,
    /// New update interval.
    pub interval: Option<Duration>,
    /// `None` when there was no answer.
    pub status: Option<u16>,
    /// For the operator, when the call failed.
    pub problem: Option<String>,
}

/// The outcome of `PATCH jobs/:id/trace`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchOutcome {
    /// Stored.
    Accepted,
    /// The server has another length.
    Mismatch {
        /// The offset it wants next.
        next: u64,
    },
    /// No such job, or not yet; the job goes on.
    NotFound,
    /// The server wants nothing more of this job.
    Abort,
    /// Not stored; try again.
    Failed,
}

/// The answer to a piece of trace.
#[derive(Debug, Clone)]
pub struct PatchReply {
    /// What came of it.
    pub outcome: PatchOutcome,
    /// What the server wants of the job.
    pub remote: Option<RemoteState>,
    /// New update interval.
    pub interval: Option<Duration>,
    /// `None` when there was no answer.
    pub status: Option<u16>,
    /// For the operator, when the call failed.
    pub problem: Option<String>,
}

impl UpdateReply {
    /// The meaning of an answer.
    pub(super) fn of(status: u16, headers: &HeaderMap, problem: Option<String>) -> Self {
        let remote = remote_state(headers);
        let outcome = match status {
            _ if remote == Some(RemoteState::Canceled) => UpdateOutcome::Abort,
            403 | 404 => UpdateOutcome::Abort,
            200 => UpdateOutcome::Success,
            202 => UpdateOutcome::Accepted,
            412 => UpdateOutcome::TraceInvalid,
            _ => UpdateOutcome::Failed,
        };
        Self { outcome, remote, interval: interval(headers), status: Some(status), problem }
    }

    /// No answer.
    pub(super) fn lost(problem: String) -> Self {
        let outcome = UpdateOutcome::Failed;
        Self { outcome, remote: None, interval: None, status: None, problem: Some(problem) }
    }
}

impl PatchReply {
    /// The meaning of an answer.
    pub(super) fn of(status: u16, headers: &HeaderMap, problem: Option<String>) -> Self {
        let remote = remote_state(headers);
        let outcome = match status {
            _ if remote == Some(RemoteState::Canceled) => PatchOutcome::Abort,
            403 => PatchOutcome::Abort,
            202 => PatchOutcome::Accepted,
            404 => PatchOutcome::NotFound,
            416 => PatchOutcome::Mismatch { next: stored_length(headers) },
            _ => PatchOutcome::Failed,
        };
        Self { outcome, remote, interval: interval(headers), status: Some(status), problem }
    }

    /// No answer.
    pub(super) fn lost(problem: String) -> Self {
        let outcome = PatchOutcome::Failed;
        Self { outcome, remote: None, interval: None, status: None, problem: Some(problem) }
    }
}

/// A header as text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

fn remote_state(headers: &HeaderMap) -> Option<RemoteState> {
    match text(headers, "job-status")? {
        "canceling" => Some(RemoteState::Canceling),
        "canceled" | "failed" => Some(RemoteState::Canceled),
        _ => None,
    }
}

fn interval(headers: &HeaderMap) -> Option<Duration> {
    let seconds: i64 = text(headers, "x-gitlab-trace-update-interval")?.parse().ok()?;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(seconds).min(MAX_INTERVAL))
}

/// The count of stored bytes in `Range: 0-<n>`, which is the next offset as it is, unlike the second
/// number of the request's `Content-Range`. 0 when the header makes no sense.
fn stored_length(headers: &HeaderMap) -> u64 {
    let Some((_, length)) = text(headers, RANGE.as_str()).and_then(|range| range.split_once('-'))
    else {
        return 0;
    };
    length.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    fn patched(status: u16, pairs: &[(&'static str, &'static str)]) -> PatchReply {
        PatchReply::of(status, &headers(pairs), None)
    }

    fn updated(status: u16, pairs: &[(&'static str, &'static str)]) -> UpdateReply {
        UpdateReply::of(status, &headers(pairs), None)
    }

    #[test]
    fn api_99_100_101_the_next_offset_is_the_number_of_stored_bytes() {
        let next = |range| match patched(416, &[("range", range)]).outcome {
            PatchOutcome::Mismatch { next } => next,
            other => panic!("{other:?}"),
        };
        assert_eq!(next("0-10"), 10);
        assert_eq!(next("0-"), 0);
        assert_eq!(next("10"), 0);
        assert_eq!(next("0-10-20"), 0);
        assert_eq!(next("0-x"), 0);
        assert_eq!(patched(416, &[]).outcome, PatchOutcome::Mismatch { next: 0 });
        for status in [200, 201, 204, 302, 400, 401, 429, 500] {
            assert_eq!(patched(status, &[("range", "0-10")]).outcome, PatchOutcome::Failed);
        }
        assert_eq!(patched(202, &[]).outcome, PatchOutcome::Accepted);
    }

    #[test]
    fn api_102_103_104_105_the_interval_is_read_from_every_answer_and_clamped() {
        let interval = |value| updated(200, &[("x-gitlab-trace-update-interval", value)]).interval;
        assert_eq!(interval("10"), Some(Duration::from_secs(10)));
        for ignored in ["0", "-5", "abc", "", "1.5"] {
            assert_eq!(interval(ignored), None, "{ignored}");
        }
        assert_eq!(interval("100000"), Some(Duration::from_mins(15)));
        for status in [416, 403, 500] {
            let reply = patched(status, &[("x-gitlab-trace-update-interval", "7")]);
            assert_eq!(reply.interval, Some(Duration::from_secs(7)), "{status}");
        }
    }

    #[test]
    fn api_106_107_108_109_a_patch_is_aborted_by_403_or_the_jobs_status() {
        assert_eq!(patched(404, &[]).outcome, PatchOutcome::NotFound);
        assert_eq!(patched(403, &[]).outcome, PatchOutcome::Abort);
        for status in ["failed", "canceled"] {
            let reply = patched(202, &[("job-status", status)]);
            assert_eq!(reply.outcome, PatchOutcome::Abort);
            assert_eq!(reply.remote, Some(RemoteState::Canceled));
        }
        for status in ["success", "running", "Canceled"] {
            let reply = patched(202, &[("job-status", status)]);
            assert_eq!((reply.outcome, reply.remote), (PatchOutcome::Accepted, None));
        }
        let reply = patched(416, &[("job-status", "canceling"), ("range", "0-3")]);
        assert_eq!(reply.outcome, PatchOutcome::Mismatch { next: 3 });
        assert_eq!(reply.remote, Some(RemoteState::Canceling));
    }

    #[test]
    fn api_127_128_129_an_update_is_taken_accepted_refused_or_ended() {
        for (status, outcome) in [
            (200, UpdateOutcome::Success),
            (202, UpdateOutcome::Accepted),
            (412, UpdateOutcome::TraceInvalid),
            (403, UpdateOutcome::Abort),
            (404, UpdateOutcome::Abort),
            (204, UpdateOutcome::Failed),
            (400, UpdateOutcome::Failed),
            (401, UpdateOutcome::Failed),
            (409, UpdateOutcome::Failed),
            (500, UpdateOutcome::Failed),
        ] {
            assert_eq!(updated(status, &[]).outcome, outcome, "{status}");
        }
        assert_eq!(updated(200, &[("job-status", "canceled")]).outcome, UpdateOutcome::Abort);
        let reply = updated(200, &[("job-status", "canceling")]);
        assert_eq!(reply.outcome, UpdateOutcome::Success);
        assert_eq!(reply.remote, Some(RemoteState::Canceling));
    }
}

//! When a call is made again, and after which wait. Deciding is all this does; `transport` waits.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::{StatusCode, header::HeaderMap};

use super::reply::text;
use crate::base::{
    backoff::{Backoff, Pauses},
    random,
};

/// As the job API has it (GitLab Runner: `network/retry_requester.go`).
pub(super) const JOB_API: Backoff =
    Backoff { attempts: 5, first: Duration::from_millis(100), longest: Duration::from_mins(1) };
pub(super) const NEVER: Backoff = Backoff { attempts: 1, ..JOB_API };

/// Whether another attempt may bring another status.
pub(super) fn is_retriable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504 | 512..)
}

/// What is left of a call's attempts.
#[derive(Debug)]
pub(super) struct Retries {
    shortest: Duration,
    pauses: Pauses,
}

impl Retries {
    pub(super) fn new(policy: Backoff) -> Self {
        Self { shortest: policy.first, pauses: policy.pauses() }
    }

    /// How long to wait before the next attempt; `None` when there is none. What a server asks for
    /// in `headers` overrides the policy, and is not capped.
    pub(super) fn next(&mut self, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
        let longest = self.pauses.next()?;
        if let Some(asked) = reset_time(headers, now).or_else(|| retry_after(headers)) {
            return Some(asked);
        }
        // As GitLab Runner's, the jitter lies between the first pause and the current one.
        Some(random::duration(self.shortest..=longest))
    }
}

/// `RateLimit-ResetTime`, if it lies in the future.
fn reset_time(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = text(headers, "ratelimit-resettime")?;
    let reset = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Duration::try_from(reset.duration_since(now)).ok().filter(|wait| !wait.is_zero())
}

/// `Retry-After` in seconds; the other form, a date, is not understood.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: i64 = text(headers, "retry-after")?.parse().ok()?;
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn first_wait(pairs: &[(&'static str, &'static str)]) -> Duration {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers = pairs.iter().map(pair).collect();
        Retries::new(JOB_API).next(&headers, now()).unwrap()
    }

    #[test]
    fn api_8_9_which_statuses_are_tried_again() {
        let retriable = |status| is_retriable(StatusCode::from_u16(status).unwrap());
        for status in [408, 429, 500, 502, 503, 504, 512, 520, 599] {
            assert!(retriable(status), "{status}");
        }
        for status in [200, 201, 204, 302, 400, 403, 404, 409, 412, 416, 422, 501, 505, 507, 511] {
            assert!(!retriable(status), "{status}");
        }
    }

    #[test]
    fn api_10_retry_after_in_seconds_is_the_wait() {
        assert_eq!(first_wait(&[("retry-after", "2")]), Duration::from_secs(2));
        assert_eq!(first_wait(&[("retry-after", "86400")]), Duration::from_hours(24));
    }

    #[test]
    fn api_11_a_reset_time_ahead_beats_retry_after() {
        let wait = first_wait(&[
            ("ratelimit-resettime", "Fri, 02 Jan 2026 03:04:08 GMT"),
            ("retry-after", "60"),
        ]);
        assert_eq!(wait, Duration::from_secs(3));
    }

    #[test]
    fn api_12_a_reset_time_in_the_past_leaves_it_to_retry_after() {
        let wait = first_wait(&[
            ("ratelimit-resettime", "Wed, 21 Oct 2015 07:28:00 GMT"),
            ("retry-after", "1"),
        ]);
        assert_eq!(wait, Duration::from_secs(1));
    }

    #[test]
    fn api_13_a_date_in_retry_after_is_ignored() {
        let base = Duration::from_millis(100);
        assert_eq!(first_wait(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), base);
        for ignored in ["0", "-3", "soon", ""] {
            assert_eq!(first_wait(&[("retry-after", ignored)]), base, "{ignored}");
        }
    }

    #[test]
    fn api_14_without_headers_waits_double_between_100_ms_and_800_ms() {
        for _ in 0..200 {
            let mut retries = Retries::new(JOB_API);
            let waits: Vec<_> =
                std::iter::from_fn(|| retries.next(&HeaderMap::new(), now())).collect();
            assert_eq!(waits.len(), 4);
            assert_eq!(waits[0], Duration::from_millis(100));
            for (wait, longest) in waits.iter().zip([100, 200, 400, 800]) {
                let (shortest, longest) =
                    (Duration::from_millis(100), Duration::from_millis(longest));
                assert!((shortest..=longest).contains(wait), "{wait:?} not up to {longest:?}");
            }
        }
    }

    #[test]
    fn waits_end_at_the_cap() {
        let mut retries = Retries::new(Backoff { attempts: 40, ..JOB_API });
        while let Some(wait) = retries.next(&HeaderMap::new(), now()) {
            assert!(wait <= Duration::from_mins(1));
        }
    }
}

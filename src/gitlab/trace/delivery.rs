//! How far the trace has come, and how often the server wants to hear of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Bytes of a request at most (GitLab Runner: `maxTracePatchSize` in `network/gitlab.go`).
pub(super) const CHUNK: usize = 1024 * 1024;
/// Between two requests, until the server says otherwise.
const INTERVAL: Duration = Duration::from_secs(1);
/// No interval of the server's is taken to be longer.
const LONGEST_INTERVAL: Duration = Duration::from_mins(15);

/// How much of a trace the server has; clones are the same. It outlives the pump, so that the
/// final delivery goes on where the pump was, however the pump ended.
#[derive(Debug, Clone, Default)]
pub struct Delivery(Arc<AtomicU64>);

impl Delivery {
    /// The server has `offset` bytes. After a crash, when that is not known, begin at 0: the server
    /// then says what it has.
    #[must_use]
    pub fn starting_at(offset: u64) -> Self {
        Self(Arc::new(AtomicU64::new(offset)))
    }

    /// Where to go on sending.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, offset: u64) {
        self.0.store(offset, Ordering::Release);
    }
}

/// Time between two requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval(Duration);

impl Interval {
    /// The one to use before the server has named one.
    pub(super) fn new() -> Self {
        Self(INTERVAL)
    }

    /// Takes over what a reply asks for (GitLab: `X-GitLab-Trace-Update-Interval`).
    pub(super) fn update(&mut self, asked: Option<Duration>) {
        if let Some(asked) = asked.filter(|asked| !asked.is_zero()) {
            self.0 = asked.min(LONGEST_INTERVAL);
        }
    }

    pub(super) fn get(self) -> Duration {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_103_an_interval_of_nothing_is_ignored() {
        let mut interval = Interval::new();
        interval.update(None);
        interval.update(Some(Duration::ZERO));
        assert_eq!(interval.get(), INTERVAL);
    }

    #[test]
    fn api_104_an_interval_is_at_most_fifteen_minutes() {
        let mut interval = Interval::new();
        interval.update(Some(Duration::from_secs(100_000)));
        assert_eq!(interval.get(), Duration::from_mins(15));
    }
}

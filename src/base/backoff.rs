//! How often something is tried, and how long to wait between two tries: the one policy of the
//! crate. Only this file names the `backoff` crate, whose defaults give up after 15 minutes and
//! whose retry functions let a server's `Retry-After` go on for ever; here attempts are counted,
//! and who tries decides what deserves another one.

use std::time::Duration;

use ::backoff::{ExponentialBackoff, backoff::Backoff as _};

/// Pauses that double from `first` to `longest`. Equal ones make all pauses alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Attempts in total; below 1 means 1.
    pub(crate) attempts: u32,
    /// The pause after the first attempt.
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    /// Pauses that are all alike.
    pub(crate) const fn constant(attempts: u32, pause: Duration) -> Self {
        Self { attempts, first: pause, longest: pause }
    }

    /// The pauses of one task.
    pub(crate) fn pauses(self) -> Pauses {
        let interval = ExponentialBackoff {
            current_interval: self.first,
            initial_interval: self.first,
            // Callers that want jitter add it: the crate's lies around a pause, GitLab Runner's
            // between the first pause and the current one.
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: self.longest,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Pauses { left: self.attempts.saturating_sub(1), interval }
    }

    /// The pause after `made` attempts, at least one; `None` when there is no further attempt. For
    /// those whose policy depends on how the last attempt failed.
    pub(crate) fn pause_after(self, made: u32) -> Option<Duration> {
        self.pauses().nth(usize::try_from(made.saturating_sub(1)).ok()?)
    }
}

/// The pause before each further attempt, as long as there is one.
#[derive(Debug)]
pub(crate) struct Pauses {
    left: u32,
    interval: ExponentialBackoff,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        self.interval.next_backoff()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(policy: Backoff) -> Vec<Duration> {
        policy.pauses().collect()
    }

    #[test]
    fn pauses_double_up_to_the_longest_to_the_nanosecond() {
        let first = Duration::from_secs(5);
        let policy = Backoff { attempts: 9, first, longest: Duration::from_mins(5) };
        let expected = [5, 10, 20, 40, 80, 160, 300, 300].map(Duration::from_secs);
        assert_eq!(pauses(policy), expected);
        for made in 1..9 {
            assert_eq!(
                policy.pause_after(made),
                Some(expected[usize::try_from(made).unwrap() - 1])
            );
        }
        assert_eq!(policy.pause_after(9), None);
    }

    #[test]
    fn one_attempt_has_no_pause_and_constant_ones_do_not_grow() {
        let pause = Duration::from_millis(100);
        for attempts in [0, 1] {
            assert_eq!(pauses(Backoff::constant(attempts, pause)), Vec::<Duration>::new());
        }
        assert_eq!(pauses(Backoff::constant(4, pause)), [pause; 3]);
    }
}

//! What a new configuration changes, as a pure function of what is in force and what is new.

use std::time::Duration;

use super::{global::Config, runner::RunnerConfig};

/// What becomes of the runners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunnersDiff {
    /// One for each runner of the new configuration, in its order.
    pub changes: Vec<RunnerChange>,
    /// Runners in force that the new configuration does not have, by their place in the old list:
    /// they get no new jobs, and running ones finish.
    pub gone: Vec<usize>,
}

/// What a new configuration means for one runner of it. The numbers are places in the old list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerChange {
    /// No runner in force is this one.
    New,
    /// This one in force is as it should be.
    Unchanged(usize),
    /// This one in force is the same to its server, and has other settings or another schedule.
    Changed(usize),
}

impl RunnerChange {
    /// The place of this runner in the old list.
    #[must_use]
    pub fn before(self) -> Option<usize> {
        match self {
            Self::New => None,
            Self::Unchanged(at) | Self::Changed(at) => Some(at),
        }
    }
}

/// When a runner asks for jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// Between two of its requests.
    pub interval: Duration,
    /// After those of the first runner.
    pub offset: Duration,
}

impl Schedule {
    /// That of the runner at this place: the runners of a configuration share the interval evenly.
    #[must_use]
    pub fn of(config: &Config, place: usize) -> Self {
        let saturated = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let count = saturated(config.runners.len()).max(1);
        let interval = config.check_interval;
        Self { interval, offset: interval * saturated(place) / count }
    }
}

/// Compares the runners in force with those of a new configuration.
#[must_use]
pub fn runners(in_force: &[(&RunnerConfig, Schedule)], new: &Config) -> RunnersDiff {
    let mut left: Vec<usize> = (0..in_force.len()).collect();
    let changes = new
        .runners
        .iter()
        .enumerate()
        .map(|(place, runner)| {
            let same = |at: &usize| is_same_runner(in_force[*at].0, runner);
            let Some(found) = left.iter().position(same) else { return RunnerChange::New };
            let at = left.remove(found);
            let (before, schedule) = in_force[at];
            if *before == **runner && schedule == Schedule::of(new, place) {
                RunnerChange::Unchanged(at)
            } else {
                RunnerChange::Changed(at)
            }
        })
        .collect();
    RunnersDiff { changes, gone: left }
}

/// Whether they are one runner to their server. Its token may have been rotated.
fn is_same_runner(before: &RunnerConfig, after: &RunnerConfig) -> bool {
    let (old, new) = (&before.gitlab, &after.gitlab);
    let is_known = old.id != 0 && old.id == new.id && old.url == new.url;
    before.name == after.name && (is_known || old.token == new.token)
}

/// Global keys that differ and cannot change while longshore runs.
#[must_use]
pub fn refused(in_force: &Config, new: &Config) -> Vec<&'static str> {
    // The listener is opened once, at the start.
    let listen_address = in_force.listen_address != new.listen_address;
    listen_address.then_some("listen_address").into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write, path::Path};

    use super::{
        RunnerChange::{Changed, New, Unchanged},
        *,
    };
    use crate::config::check::check;

    /// Runners by name, number at the server, token and limit.
    fn config(global: &str, runners: &[(&str, i64, &str, i64)]) -> Config {
        let mut text = global.to_owned();
        for (name, id, token, limit) in runners {
            write!(
                text,
                "\n[[runners]]\nname = \"{name}\"\nid = {id}\ntoken = \"{token}\"\n\
                 limit = {limit}\nurl = \"https://a.example\"\nexecutor = \"docker\"\n\
                 [runners.docker]\n"
            )
            .unwrap();
        }
        check(&text, Path::new("config.toml"), &|_| None).unwrap().config
    }

    fn diff(old: &Config, new: &Config) -> RunnersDiff {
        let scheduled = |(place, runner)| {
            let runner: &std::sync::Arc<RunnerConfig> = runner;
            (&**runner, Schedule::of(old, place))
        };
        let in_force: Vec<_> = old.runners.iter().enumerate().map(scheduled).collect();
        runners(&in_force, new)
    }

    #[test]
    fn runners_are_told_apart_by_name_and_token() {
        let old = config("", &[("a", 0, "1", 0), ("b", 0, "2", 0), ("c", 0, "3", 0)]);
        let new = config("", &[("a", 0, "1", 0), ("b", 0, "2", 5), ("c", 0, "33", 0)]);
        let diff = diff(&old, &new);
        assert_eq!(diff.changes, [Unchanged(0), Changed(1), New]);
        assert_eq!(diff.gone, [2]);
    }

    #[test]
    fn a_runner_with_a_number_keeps_it_when_its_token_is_rotated() {
        let old = config("", &[("a", 7, "1", 0), ("b", 8, "2", 0)]);
        let new = config("", &[("a", 7, "11", 0), ("other", 8, "22", 0)]);
        assert_eq!(diff(&old, &new), RunnersDiff { changes: vec![Changed(0), New], gone: vec![1] });
    }

    #[test]
    fn a_runner_that_asks_at_other_times_is_changed() {
        let two = [("a", 0, "1", 0), ("b", 0, "2", 0)];
        let old = config("check_interval = 4", &two);
        assert_eq!(diff(&old, &old).changes, [Unchanged(0), Unchanged(1)]);
        let slower = config("check_interval = 6", &two);
        assert_eq!(diff(&old, &slower).changes, [Changed(0), Changed(1)]);
        // One more makes the second ask earlier after the first.
        let three = config("check_interval = 4", &[two[0], two[1], ("c", 0, "3", 0)]);
        assert_eq!(diff(&old, &three).changes, [Unchanged(0), Changed(1), New]);
        let offset = |place| Schedule::of(&three, place).offset.as_millis();
        assert_eq!([offset(0), offset(1), offset(2)], [0, 1333, 2666]);
    }

    #[test]
    fn the_listener_does_not_move_and_other_globals_do() {
        let old = config("listen_address = ':9252'\ncheck_interval = 3", &[]);
        let new = config("listen_address = ':9999'\ncheck_interval = 5\nconcurrent = 9", &[]);
        assert_eq!(refused(&old, &new), ["listen_address"]);
        assert_eq!(refused(&old, &old), [""; 0]);
    }

    #[test]
    fn two_runners_of_one_name_and_token_are_matched_in_order() {
        let old = config("", &[("a", 0, "1", 0), ("a", 0, "1", 0)]);
        let new = config("", &[("a", 0, "1", 0)]);
        assert_eq!(diff(&old, &new), RunnersDiff { changes: vec![Unchanged(0)], gone: vec![1] });
    }

    proptest::proptest! {
        #[test]
        fn every_runner_in_force_is_in_the_new_configuration_once_or_gone(
            old in proptest::collection::vec(("[ab]", 0..3_i64, "[12]", 0..2_i64), 0..6),
            new in proptest::collection::vec(("[ab]", 0..3_i64, "[12]", 0..2_i64), 0..6),
        ) {
            let make = |list: &[(String, i64, String, i64)]| {
                let list: Vec<_> =
                    list.iter().map(|(n, id, t, limit)| (n.as_str(), *id, t.as_str(), *limit)).collect();
                config("", &list)
            };
            let (old, new) = (make(&old), make(&new));
            let diff = diff(&old, &new);
            let before = diff.changes.iter().filter_map(|change| change.before());
            let mut all: Vec<usize> = before.chain(diff.gone.iter().copied()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..old.runners.len()).collect::<Vec<_>>());
            assert_eq!(diff.changes.len(), new.runners.len());
        }
    }
}

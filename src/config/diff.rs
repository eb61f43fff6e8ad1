//! What a new configuration changes, as a pure function of both.

use std::sync::Arc;

use super::{global::Config, runner::RunnerConfig};

/// The difference between two configurations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigDiff {
    /// Runners that only the new one has.
    pub added: Vec<Arc<RunnerConfig>>,
    /// Runners that only the old one has: they get no new jobs, running ones finish.
    pub removed: Vec<Arc<RunnerConfig>>,
    /// Runners of both, told by name and token, that differ: `(old, new)`.
    pub changed: Vec<(Arc<RunnerConfig>, Arc<RunnerConfig>)>,
    /// Global keys whose new value takes effect.
    pub globals: Vec<&'static str>,
    /// Global keys whose new value needs a restart.
    pub refused: Vec<&'static str>,
}

impl ConfigDiff {
    /// Compares `old` with `new`.
    #[must_use]
    pub fn new(old: &Config, new: &Config) -> Self {
        let mut diff = Self::default();
        let mut left: Vec<&Arc<RunnerConfig>> = old.runners.iter().collect();
        for runner in &new.runners {
            match left.iter().position(|other| same_runner(other, runner)) {
                None => diff.added.push(runner.clone()),
                Some(at) => {
                    let before = left.remove(at);
                    if before != runner {
                        diff.changed.push((before.clone(), runner.clone()));
                    }
                }
            }
        }
        diff.removed = left.into_iter().cloned().collect();
        for (key, differs) in [
            ("concurrent", old.concurrent != new.concurrent),
            ("check_interval", old.check_interval != new.check_interval),
            ("log_level", old.log_level != new.log_level),
            ("log_format", old.log_format != new.log_format),
            ("shutdown_timeout", old.shutdown_timeout != new.shutdown_timeout),
            ("connection_max_age", old.connection_max_age != new.connection_max_age),
        ] {
            if differs {
                diff.globals.push(key);
            }
        }
        // The listener is opened once, at the start.
        if old.listen_address != new.listen_address {
            diff.refused.push("listen_address");
        }
        diff
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The way back.
    #[must_use]
    pub fn flip(self) -> Self {
        Self {
            added: self.removed,
            removed: self.added,
            changed: self.changed.into_iter().map(|(old, new)| (new, old)).collect(),
            globals: self.globals,
            refused: self.refused,
        }
    }
}

fn same_runner(a: &RunnerConfig, b: &RunnerConfig) -> bool {
    a.name == b.name && a.gitlab.token == b.gitlab.token
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write, path::Path};

    use super::*;
    use crate::config::check::check;

    fn config(global: &str, runners: &[(&str, &str, i64)]) -> Config {
        let mut text = global.to_owned();
        for (name, token, limit) in runners {
            write!(
                text,
                "\n[[runners]]\nname = \"{name}\"\ntoken = \"{token}\"\nlimit = {limit}\n\
                 url = \"https://a.example\"\nexecutor = \"docker\"\n[runners.docker]\n"
            )
            .unwrap();
        }
        check(&text, Path::new("config.toml"), &|_| None).unwrap().config
    }

    fn names(runners: &[Arc<RunnerConfig>]) -> Vec<&str> {
        runners.iter().map(|runner| runner.name.as_str()).collect()
    }

    #[test]
    fn runners_are_told_apart_by_name_and_token() {
        let old = config("", &[("a", "1", 0), ("b", "2", 0), ("c", "3", 0)]);
        let new = config("", &[("d", "4", 0), ("a", "1", 0), ("b", "2", 5), ("c", "33", 0)]);
        let diff = ConfigDiff::new(&old, &new);
        assert_eq!(names(&diff.added), ["d", "c"]);
        assert_eq!(names(&diff.removed), ["c"]);
        let changed: Vec<_> = diff.changed.iter().map(|(o, n)| (o.limit, n.limit)).collect();
        assert_eq!(changed, [(0, 5)]);
    }

    #[test]
    fn the_flipped_difference_is_that_of_the_way_back() {
        let old = config("concurrent = 1", &[("a", "1", 0), ("b", "2", 0)]);
        let new = config("concurrent = 2", &[("b", "2", 1), ("c", "3", 0)]);
        assert_eq!(ConfigDiff::new(&old, &new).flip(), ConfigDiff::new(&new, &old));
        assert!(ConfigDiff::new(&old, &old).is_empty());
    }

    #[test]
    fn the_listener_does_not_move_and_other_globals_do() {
        let old = config("listen_address = ':9252'\ncheck_interval = 3", &[]);
        let new = config("listen_address = ':9999'\ncheck_interval = 5\nconcurrent = 9", &[]);
        let diff = ConfigDiff::new(&old, &new);
        assert_eq!(diff.globals, ["concurrent", "check_interval"]);
        assert_eq!(diff.refused, ["listen_address"]);
    }

    #[test]
    fn two_runners_of_one_name_and_token_are_matched_in_order() {
        let old = config("", &[("a", "1", 0), ("a", "1", 0)]);
        let new = config("", &[("a", "1", 0)]);
        let diff = ConfigDiff::new(&old, &new);
        assert_eq!((diff.added.len(), diff.removed.len(), diff.changed.len()), (0, 1, 0));
    }
}

//! What the container of a daemon runs, as far as flags can be added to it.

use super::super::service::ServicePlan;

/// The image's program that turns its environment into flags.
const ENTRYPOINT: &str = "dockerd-entrypoint.sh";

/// What a daemon's container runs.
pub(super) struct Command<'a> {
    /// Words after the image's entrypoint.
    pub(super) words: Vec<&'a str>,
    /// Whether these are flags of the daemon, so that others may follow.
    pub(super) takes_flags: bool,
    pub(super) turns_tls_off: bool,
}

impl<'a> Command<'a> {
    pub(super) fn of(service: &'a ServicePlan) -> Self {
        let words = |list: &'a [String]| list.iter().map(String::as_str).filter(|w| !w.is_empty());
        let mut all: Vec<&str> =
            words(&service.entrypoint).chain(words(&service.command)).collect();
        // As GitLab's documentation has it: `env -u DOCKER_HOST dockerd-entrypoint.sh`.
        let is_entrypoint = |word: &&str| word.rsplit('/').next() == Some(ENTRYPOINT);
        let position = all.iter().position(is_entrypoint);
        let (found, before) = match position {
            Some(position) => (true, all.drain(..=position).collect()),
            None => (service.entrypoint.is_empty(), Vec::new()),
        };
        let is_flags = all.first().is_none_or(|word| word.starts_with('-'));
        Self {
            takes_flags: found && is_flags && !before.contains(&"-c"),
            turns_tls_off: all.iter().any(|w| matches!(*w, "--tls=false" | "--tlsverify=false")),
            words: all,
        }
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.value(flag).is_some()
    }

    /// What follows a flag, in its own word or in the next.
    pub(super) fn value(&self, flag: &str) -> Option<&'a str> {
        let mut words = self.words.iter();
        words
            .by_ref()
            .find_map(|word| {
                word.strip_prefix(flag).filter(|rest| rest.is_empty() || rest.starts_with('='))
            })
            .map(|rest| {
                rest.strip_prefix('=').unwrap_or_else(|| words.next().copied().unwrap_or_default())
            })
    }
}

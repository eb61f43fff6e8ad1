//! Feature flags of one job, resolved.

use std::collections::BTreeMap;

use crate::config::flags::{self, FLAGS};

/// Every known flag with the value that counts for the job.
#[derive(Debug, Clone)]
pub struct Flags(BTreeMap<&'static str, bool>);

impl Flags {
    pub(super) fn resolve(
        file: &BTreeMap<String, bool>,
        variable: &dyn Fn(&str) -> Option<String>,
        warnings: &mut Vec<String>,
    ) -> Self {
        let mut values = BTreeMap::new();
        for flag in FLAGS {
            let written = variable(flag.name);
            let resolved = flags::resolve(flag, file, written.as_deref());
            if resolved.malformed {
                let written = written.unwrap_or_default();
                warnings.push(format!(
                    "{}: expected true or false, got {written:?}; it counts as off",
                    flag.name
                ));
            } else if written.is_some()
                && let Some(why) = flags::warning(flag.name, resolved.on)
            {
                warnings.push(format!("{}: {why}", flag.name));
            }
            values.insert(flag.name, resolved.on);
        }
        Self(values)
    }

    /// Whether a flag is on.
    ///
    /// # Panics
    /// When there is no such flag: names are literals of ours.
    #[must_use]
    pub fn on(&self, name: &str) -> bool {
        *self.0.get(name).unwrap_or_else(|| panic!("{name} is in the table of flags"))
    }

    /// Whether a name is a flag's.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.0.iter().map(|(name, on)| (*name, *on))
    }

    /// Those that differ from their default, as the trace's header shows them.
    #[must_use]
    pub fn changed(&self) -> Vec<(&'static str, bool)> {
        FLAGS
            .iter()
            .filter(|flag| self.0.get(flag.name).is_some_and(|on| *on != flag.default))
            .map(|flag| (flag.name, !flag.default))
            .collect()
    }
}

//! Caches of a job.

use super::{
    settings::SettingError,
    spec::{JobSpec, When},
    variable::Expanded,
};

/// A cache that the job restores or saves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePlan {
    /// Key, with variables expanded.
    pub key: String,
    /// Keys tried in order when it misses, with variables expanded.
    pub fallback_keys: Vec<String>,
    /// Globs relative to the project directory.
    pub paths: Vec<String>,
    /// Adds files git does not track.
    pub untracked: bool,
    /// Restored before the script.
    pub pull: bool,
    /// Saved after it.
    pub push: bool,
    /// With which end of the job it is saved.
    pub when: When,
}

impl CachePlan {
    /// Whether its key says that only protected refs may use it.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.key.ends_with("-protected") && !self.key.ends_with("-non_protected")
    }
}

pub(super) fn plan(job: &JobSpec, variables: &Expanded) -> Result<Vec<CachePlan>, SettingError> {
    let mut plans = Vec::new();
    for cache in job.caches.iter().filter(|cache| !cache.paths.is_empty() || cache.untracked) {
        let policy = variables.expand(&cache.policy);
        let (pull, push) = match policy.as_str() {
            "" | "pull-push" => (true, true),
            "pull" => (true, false),
            "push" => (false, true),
            _ => {
                return Err(SettingError {
                    name: "cache:policy",
                    value: policy,
                    expected: "pull-push, pull or push",
                });
            }
        };
        let key = variables.expand(&cache.key);
        let key =
            if key.is_empty() { format!("{}/{}", job.name, job.source.reference) } else { key };
        let mut fallback_keys: Vec<String> =
            cache.fallback_keys.iter().map(|key| variables.expand(key)).collect();
        fallback_keys.retain(|key| !key.is_empty());
        plans.push(CachePlan {
            key,
            fallback_keys,
            paths: cache.paths.clone(),
            untracked: cache.untracked,
            pull,
            push,
            when: cache.when,
        });
    }
    Ok(plans)
}

//! Caches and artifacts of a job.

use crate::{
    helper::protocol::Format,
    workload::job::{Job, variable::Expanded},
};

use super::PlanError;

/// After which end something is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The job succeeded.
    OnSuccess,
    /// The job failed.
    OnFailure,
    /// Always.
    Always,
}

impl When {
    fn parse(keyword: &str, text: &str) -> Result<Self, PlanError> {
        match text {
            "" | "on_success" => Ok(Self::OnSuccess),
            "on_failure" => Ok(Self::OnFailure),
            "always" => Ok(Self::Always),
            other => Err(PlanError::Setting {
                variable: keyword.to_owned(),
                value: other.to_owned(),
                expected: "on_success, on_failure or always",
            }),
        }
    }

    /// Whether this end is one of them.
    #[must_use]
    pub fn matches(self, succeeded: bool) -> bool {
        match self {
            Self::OnSuccess => succeeded,
            Self::OnFailure => !succeeded,
            Self::Always => true,
        }
    }
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePlan {
    /// Key, with variables replaced.
    pub key: String,
    /// Keys tried when it misses, with variables replaced.
    pub fallback_keys: Vec<String>,
    /// Globs.
    pub paths: Vec<String>,
    /// Adds files git does not track.
    pub untracked: bool,
    /// Restored before the script.
    pub pull: bool,
    /// Saved after it.
    pub push: bool,
    /// Saved after which end.
    pub when: When,
}

impl CachePlan {
    /// Whether its key says that only protected refs may use it.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.key.ends_with("-protected") && !self.key.ends_with("-non_protected")
    }
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactPlan {
    /// Name, before expansion; empty for the default.
    pub name: String,
    /// Globs.
    pub paths: Vec<String>,
    /// Globs taken out again.
    pub exclude: Vec<String>,
    /// Adds files git does not track.
    pub untracked: bool,
    /// Uploaded after which end.
    pub when: When,
    /// `archive`, `junit`, …; empty is left out of the request.
    pub kind: String,
    /// Format as written; empty is left out of the request.
    pub written_format: String,
    /// Format.
    pub format: Format,
    /// Passed through.
    pub expire_in: String,
}

pub(super) fn caches(job: &Job, variables: &Expanded) -> Result<Vec<CachePlan>, PlanError> {
    let mut plans = Vec::new();
    for cache in &job.payload.cache {
        if cache.paths.is_empty() && !cache.untracked {
            continue;
        }
        let policy = variables.expand(&cache.policy);
        let (pull, push) = match policy.as_str() {
            "" | "pull-push" => (true, true),
            "pull" => (true, false),
            "push" => (false, true),
            _ => {
                return Err(PlanError::Setting {
                    variable: "cache:policy".to_owned(),
                    value: policy,
                    expected: "pull-push, pull or push",
                });
            }
        };
        let key = variables.expand(&cache.key);
        let key = if key.is_empty() {
            format!("{}/{}", job.payload.job_info.name, job.payload.git_info.reference)
        } else {
            key
        };
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
            when: When::parse("cache:when", &cache.when)?,
        });
    }
    Ok(plans)
}

pub(super) fn artifacts(job: &Job) -> Result<Vec<ArtifactPlan>, PlanError> {
    let mut plans = Vec::new();
    for artifact in &job.payload.artifacts {
        if artifact.paths.is_empty() && artifact.exclude.is_empty() && !artifact.untracked {
            continue;
        }
        let format = match artifact.artifact_format.as_str() {
            "" | "zip" => Format::Zip,
            "gzip" => Format::Gzip,
            "raw" => Format::Raw,
            "zipzstd" => Format::ZipZstd,
            "tarzstd" => Format::TarZstd,
            other => {
                return Err(PlanError::Setting {
                    variable: "artifact_format".to_owned(),
                    value: other.to_owned(),
                    expected: "zip, gzip, raw, zipzstd or tarzstd",
                });
            }
        };
        plans.push(ArtifactPlan {
            name: artifact.name.clone(),
            paths: artifact.paths.clone(),
            exclude: artifact.exclude.clone(),
            untracked: artifact.untracked,
            when: When::parse("artifacts:when", &artifact.when)?,
            kind: artifact.artifact_type.clone(),
            written_format: artifact.artifact_format.clone(),
            format,
            expire_in: artifact.expire_in.clone(),
        });
    }
    Ok(plans)
}

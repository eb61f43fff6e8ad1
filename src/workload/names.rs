//! Names and labels of what a job makes on the engine.

use std::collections::BTreeMap;

use crate::{
    config::RunnerConfig,
    workload::job::{Job, variable::Expanded},
};

use super::{Place, timeout_label};

/// Prefix of the incumbent's labels, which tools and operators know.
pub const LABEL_PREFIX: &str = "com.gitlab.gitlab-runner";

/// Marks everything one longshore made; the sweep after a crash goes by it.
pub const INSTANCE_LABEL: &str = "longshore.instance";

/// Longest name of a host (RFC 1123).
const HOST_NAME_LENGTH: usize = 63;

/// Names, fixed before anything is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// `runner-<short token>-project-<id>-concurrent-<n>`; also the host name.
    pub host: String,
    /// `host` and sixteen random hex digits: the beginning of all other names.
    pub unique: String,
    /// The build container.
    pub build: String,
    /// The helper container.
    pub helper: String,
    /// The container of its BuildKit.
    pub buildkit: String,
    /// The job's network.
    pub network: String,
}

impl Names {
    pub(super) fn new(job: &Job, runner: &RunnerConfig, place: &Place) -> Self {
        let token = runner.short_token();
        let project = job.payload.job_info.project_id;
        let host = host_name(&format!(
            "runner-{token}-project-{project}-concurrent-{}",
            place.project_slot
        ));
        let unique = format!("{host}-{}", place.random);
        Self {
            build: format!("{unique}-build"),
            helper: format!("{unique}-predefined"),
            buildkit: format!("{unique}-buildkit"),
            network: host_name(&format!(
                "runner-{token}-{project}-{}-{}",
                place.project_slot, job.id
            )),
            host,
            unique,
        }
    }

    /// Name of a service's container; `index` counts from 0.
    #[must_use]
    pub fn service(&self, slug: &str, index: usize) -> String {
        format!("{}-{}-{index}", self.unique, slug.replace('/', "__"))
    }
}

/// Makes text a host name: lower case letters, digits and dashes, a letter or digit first, at most
/// 63 characters.
fn host_name(text: &str) -> String {
    text.to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' { c } else { '-' })
        .collect::<String>()
        .trim_start_matches('-')
        .chars()
        .take(HOST_NAME_LENGTH)
        .collect()
}

/// Labels of docker-executor.md §3.4, without `.type`, and the operator's own.
pub(super) fn labels(
    job: &Job,
    runner: &RunnerConfig,
    place: &Place,
    variables: &Expanded,
) -> BTreeMap<String, String> {
    let payload = &job.payload;
    let value = |name: &str| variables.value(name).unwrap_or_default().to_owned();
    let mut labels: BTreeMap<String, String> = [
        ("job.id", job.id.to_string()),
        ("job.url", value("CI_JOB_URL")),
        ("job.sha", payload.git_info.sha.clone()),
        ("job.before_sha", payload.git_info.before_sha.clone()),
        ("job.ref", payload.git_info.reference.clone()),
        ("job.timeout", timeout_label(job.timeout)),
        ("project.id", payload.job_info.project_id.to_string()),
        ("project.runner_id", place.project_slot.to_string()),
        ("pipeline.id", payload.job_info.pipeline_id.to_string()),
        ("runner.id", runner.short_token().to_string()),
        ("runner.local_id", place.slot.to_string()),
        ("runner.system_id", place.system_id.clone()),
        ("managed", "true".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("{LABEL_PREFIX}.{name}"), value))
    .collect();
    for (name, value) in &runner.docker.container_labels {
        labels.insert(name.clone(), variables.expand(value));
    }
    labels.insert(INSTANCE_LABEL.to_owned(), place.instance.clone());
    labels
}

/// Labels with the type of the thing.
#[must_use]
pub fn typed(labels: &BTreeMap<String, String>, kind: &str) -> BTreeMap<String, String> {
    let mut labels = labels.clone();
    labels.insert(format!("{LABEL_PREFIX}.type"), kind.to_owned());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_26_names_are_host_names_of_at_most_63_characters() {
        assert_eq!(host_name("runner-AbC_d.E-project-1"), "runner-abc-d-e-project-1");
        assert_eq!(host_name("--x"), "x");
        assert_eq!(host_name(&"a".repeat(80)).len(), 63);
    }
}

//! Names and labels of what a job makes on the engine.

use std::collections::BTreeMap;

use crate::config::RunnerConfig;

use super::{placement::Placement, spec::JobSpec, variable::Expanded};

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
    pub(super) fn new(job: &JobSpec, runner: &RunnerConfig, placement: &Placement) -> Self {
        let token = runner.short_token();
        let project = job.project.id;
        let host = host_name(&format!(
            "runner-{token}-project-{project}-concurrent-{}",
            placement.project_slot
        ));
        let unique = format!("{host}-{}", placement.random);
        Self {
            build: format!("{unique}-build"),
            helper: format!("{unique}-predefined"),
            buildkit: format!("{unique}-buildkit"),
            network: host_name(&format!(
                "runner-{token}-{project}-{}-{}",
                placement.project_slot, job.id
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

/// A runner by what its token's rotation does not change: its number.
pub(super) fn lasting_name(runner: &RunnerConfig) -> String {
    match runner.gitlab.id {
        0 => runner.short_token().to_string(),
        id => format!("{}-{id}", runner.gitlab.url),
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

/// Labels of all that a job makes (docs/compatibility.md, "Labels"), without `.type`, and the
/// operator's own.
pub(super) fn labels(
    job: &JobSpec,
    runner: &RunnerConfig,
    placement: &Placement,
    variables: &Expanded,
) -> BTreeMap<String, String> {
    let value = |name: &str| variables.value(name).unwrap_or_default().to_owned();
    let mut labels: BTreeMap<String, String> = [
        ("job.id", job.id.to_string()),
        ("job.url", value("CI_JOB_URL")),
        ("job.sha", job.source.sha.clone()),
        ("job.before_sha", job.source.before_sha.clone()),
        ("job.ref", job.source.reference.clone()),
        ("job.timeout", crate::base::duration::format_seconds(job.timeout)),
        ("project.id", job.project.id.to_string()),
        ("project.runner_id", placement.project_slot.to_string()),
        ("pipeline.id", job.pipeline.to_string()),
        ("runner.id", runner.short_token().to_string()),
        ("runner.local_id", placement.slot.to_string()),
        ("runner.system_id", placement.system_id.clone()),
        ("managed", "true".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("{LABEL_PREFIX}.{name}"), value))
    .collect();
    for (name, value) in &runner.containers.labels {
        labels.insert(name.clone(), variables.expand(value));
    }
    labels.insert(INSTANCE_LABEL.to_owned(), placement.instance.clone());
    labels
}

/// `labels` with the type of what they are for, such as `service`.
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

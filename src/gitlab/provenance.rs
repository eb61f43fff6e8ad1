//! The statement of provenance that goes into an artifact (SLSA v1, in-toto v0.1; GitLab Runner:
//! `PROVENANCE.md`), but for its subjects: the helper adds those, as it has the files.

use serde_json::json;

use crate::workload::{Workload, spec::ArtifactSpec, transfer::Format, variable::parse_bool};

/// What a job's statements say of where the job comes from.
#[derive(Debug, Clone)]
pub(super) struct Provenance {
    /// The job's name.
    pub(super) name: String,
    /// The commit that it runs.
    pub(super) sha: String,
    /// The runner's name.
    pub(super) runner: String,
    /// The name of the runner's executor.
    pub(super) executor: &'static str,
}

impl Provenance {
    /// The statement for an artifact that is to have one.
    pub(super) fn statement(&self, artifact: &ArtifactSpec, plan: &Workload) -> Option<String> {
        let is_wanted = plan
            .variables
            .value("RUNNER_GENERATE_ARTIFACTS_METADATA")
            .and_then(parse_bool)
            .unwrap_or(false);
        if !is_wanted || artifact.format != Some(Format::Zip) {
            return None;
        }
        let value = |name: &str| plan.variables.value(name).unwrap_or_default();
        let repository = value("CI_PROJECT_URL");
        let mut parameters: serde_json::Map<String, serde_json::Value> =
            plan.variables.iter().map(|v| (v.key.clone(), json!(""))).collect();
        parameters.insert("entryPoint".into(), json!(self.name));
        parameters.insert("source".into(), json!(repository));
        let version = env!("CARGO_PKG_VERSION");
        Some(
            json!({
                "_type": "https://in-toto.io/Statement/v0.1",
                "predicateType": "https://slsa.dev/provenance/v1",
                "subject": [],
                "predicate": {
                    "buildDefinition": {
                        "buildType": format!(
                            "https://gitlab.com/gitlab-org/gitlab-runner/-/blob/{}/PROVENANCE.md",
                            crate::REVISION
                        ),
                        "externalParameters": parameters,
                        "internalParameters": {
                            "name": self.runner,
                            "executor": self.executor,
                            "architecture": std::env::consts::ARCH,
                            "job": plan.job.id.to_string(),
                        },
                        "resolvedDependencies": [{
                            "uri": repository,
                            "digest": {"sha256": self.sha},
                        }],
                    },
                    "runDetails": {
                        "builder": {
                            "id": format!("{repository}/-/runners/{}", value("CI_RUNNER_ID")),
                            "version": {"longshore": version},
                        },
                        "metadata": {
                            "invocationId": plan.job.id.to_string(),
                            "startedOn": value("CI_JOB_STARTED_AT"),
                            "finishedOn": jiff::Timestamp::now().to_string(),
                        },
                    },
                },
            })
            .to_string(),
        )
    }
}

//! A job that came from GitLab, as the runner takes it.

use std::sync::Arc;

use super::{
    api::wire::JobPayload, artifacts::GitlabArtifacts, job_client::JobClient, payload,
    poll::Arrived, provenance::Provenance, reporter::GitlabReporter, runner::GitlabRunner,
};
use crate::{
    ledger::Owner,
    runner::{IncomingJob, ServerFacts, SystemFailure},
    workload::{JobSpec, outcome::FailureReason},
};

/// Makes what arrived at a runner a job that can be run, or one whose failure can be reported.
#[must_use]
pub fn incoming(
    runner: &GitlabRunner,
    arrived: Arrived,
    correlation_id: Option<String>,
) -> IncomingJob {
    let (spec, refused, failure_reasons) = match arrived {
        Arrived::Job(payload) => understand(runner, &payload),
        Arrived::Undecodable { id, token, error } => {
            let error = format!("the job that the server sent cannot be understood: {error}");
            let refused = SystemFailure::new(FailureReason::RunnerSystemFailure, &error);
            (JobSpec::unknown(id, token), Some(refused), Vec::new())
        }
    };
    let config = runner.config();
    let client = JobClient {
        client: Arc::clone(&runner.client),
        info: Arc::clone(&runner.info),
        job: spec.id,
        token: spec.token.clone(),
        debug_trace: false,
        counted: Some((Arc::clone(&runner.runner.process.metrics), config.short_token())),
    };
    let artifacts = GitlabArtifacts {
        client: client.clone(),
        config: config.gitlab.artifact.clone(),
        provenance: Provenance {
            name: spec.name.clone(),
            sha: spec.source.sha.clone(),
            runner: config.name.as_str().to_owned(),
            executor: config.executor.name(),
        },
    };
    let passes = config.gitlab.final_update_retry_limit;
    let reasons = failure_reasons.clone();
    let reporter = GitlabReporter::new(client, reasons, spec.timeout, passes);
    IncomingJob {
        owner: Owner::Gitlab {
            job: spec.id,
            token: spec.token.clone(),
            url: config.gitlab.url.clone(),
            failure_reasons,
        },
        spec: Box::new(spec),
        refused,
        server: ServerFacts {
            correlation_id,
            ca: runner.client.server_ca(),
            client_certificate: runner.client.client_certificate(),
        },
        reporter: Arc::new(reporter),
        artifacts: Arc::new(artifacts),
    }
}

/// What a payload asks for, or why it cannot be had; and the failure reasons that its server knows.
fn understand(
    runner: &GitlabRunner,
    payload: &JobPayload,
) -> (JobSpec, Option<SystemFailure>, Vec<String>) {
    let known = payload.features.failure_reasons.clone();
    match payload::job_spec(payload, &runner.config().feature_flags) {
        Ok(spec) => (spec, None, known),
        Err(error) => {
            let mut failure = SystemFailure::of(error.failure_reason(), &error);
            failure.exit_code = error.exit_code();
            (payload::outline(payload), Some(failure), known)
        }
    }
}

//! Failure reasons in the words of a GitLab server (`failure_reason` of `PUT /jobs/:id`).

use crate::workload::outcome::FailureReason;

/// The name under which a server understands `reason`. `announced` are the names that it listed in
/// `features.failure_reasons`, beside the three that every server knows; others fall back to an
/// older name (docs/compatibility.md, "Failure reasons").
pub(super) fn for_server(reason: FailureReason, announced: &[String]) -> &'static str {
    use FailureReason as R;
    if is_universal(reason) || announced.iter().any(|name| name == reason.as_str()) {
        return reason.as_str();
    }
    match reason {
        R::ImagePullFailure | R::RunnerExternalDependencyFailure => R::RunnerSystemFailure.as_str(),
        R::RunnerConfigurationError => R::ScriptFailure.as_str(),
        R::RunnerInterrupted | R::JobCanceled => "unknown_failure",
        R::ScriptFailure | R::RunnerSystemFailure | R::JobExecutionTimeout => reason.as_str(),
    }
}

/// Whether every server knows the reason, announced or not.
fn is_universal(reason: FailureReason) -> bool {
    matches!(
        reason,
        FailureReason::ScriptFailure
            | FailureReason::RunnerSystemFailure
            | FailureReason::JobExecutionTimeout
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_119_133_134_docker_183_reasons_fall_back_to_what_the_server_knows() {
        let none: &[String] = &[];
        let of = |reason| for_server(reason, none);
        assert_eq!(of(FailureReason::JobCanceled), "unknown_failure");
        assert_eq!(of(FailureReason::RunnerInterrupted), "unknown_failure");
        assert_eq!(of(FailureReason::RunnerConfigurationError), "script_failure");
        assert_eq!(of(FailureReason::ImagePullFailure), "runner_system_failure");
        assert_eq!(of(FailureReason::RunnerExternalDependencyFailure), "runner_system_failure");
        let announced = ["runner_interrupted".to_owned(), "image_pull_failure".to_owned()];
        let of = |reason| for_server(reason, &announced);
        assert_eq!(of(FailureReason::RunnerInterrupted), "runner_interrupted");
        assert_eq!(of(FailureReason::ImagePullFailure), "image_pull_failure");
    }
}

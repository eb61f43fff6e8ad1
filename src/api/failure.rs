//! Which failure reason a server is told.

use super::wire::ServerFeatures;

/// Reasons every server knows.
const ALWAYS: [&str; 3] = ["script_failure", "runner_system_failure", "job_execution_timeout"];

/// The word for `reason` that the job's server understands: itself if the server announced it,
/// else the nearest that it must know (GitLab Runner: `common/failure_reason_mapper.go`).
#[must_use]
pub fn accepted_reason<'a>(reason: &'a str, server: &ServerFeatures) -> &'a str {
    if reason.is_empty() {
        return "script_failure";
    }
    if ALWAYS.contains(&reason) || server.failure_reasons.iter().any(|known| known == reason) {
        return reason;
    }
    match reason {
        "image_pull_failure" | "runner_external_dependency_failure" => "runner_system_failure",
        "runner_configuration_error" => "script_failure",
        _ => "unknown_failure",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_119_133_134_reasons_that_were_not_announced_are_replaced() {
        let none = ServerFeatures::default();
        for (reason, sent) in [
            ("", "script_failure"),
            ("script_failure", "script_failure"),
            ("runner_system_failure", "runner_system_failure"),
            ("job_execution_timeout", "job_execution_timeout"),
            ("image_pull_failure", "runner_system_failure"),
            ("runner_external_dependency_failure", "runner_system_failure"),
            ("runner_configuration_error", "script_failure"),
            ("runner_interrupted", "unknown_failure"),
            ("job_canceled", "unknown_failure"),
            ("something_new", "unknown_failure"),
        ] {
            assert_eq!(accepted_reason(reason, &none), sent, "{reason}");
        }
        let announced = ServerFeatures {
            failure_reasons: vec!["job_canceled".to_owned(), "image_pull_failure".to_owned()],
            ..ServerFeatures::default()
        };
        assert_eq!(accepted_reason("job_canceled", &announced), "job_canceled");
        assert_eq!(accepted_reason("image_pull_failure", &announced), "image_pull_failure");
    }
}

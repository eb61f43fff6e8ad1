//! How far a job is trusted, by its ref and by where its merge request comes from.

use crate::{gitlab::api::wire::JobPayload, workload::spec::Trust};

/// The project of the branch that a merge request brings.
const SOURCE_PROJECT: &str = "CI_MERGE_REQUEST_SOURCE_PROJECT_ID";

/// How far a job is trusted, and the project that a job from outside comes from.
///
/// The server's own variables come first in the payload, and a job may define them again but cannot
/// take them away: so whatever any definition says counts against it.
pub(super) fn of(payload: &JobPayload, protected: bool) -> (Trust, Option<String>) {
    let project = payload.job_info.project_id.to_string();
    let values = |name: &'static str| {
        let all = payload.variables.iter().filter(move |variable| variable.key == name);
        all.map(|variable| variable.value.as_str()).filter(|value| !value.is_empty())
    };
    let differs = |source: &'static str, target: &'static str| {
        values(source).any(|source| values(target).any(|target| target != source))
    };
    let is_outside = values(SOURCE_PROJECT).any(|id| id != project)
        || differs(SOURCE_PROJECT, "CI_MERGE_REQUEST_PROJECT_ID")
        || differs("CI_MERGE_REQUEST_SOURCE_PROJECT_PATH", "CI_MERGE_REQUEST_PROJECT_PATH")
        || differs(
            "CI_EXTERNAL_PULL_REQUEST_SOURCE_REPOSITORY",
            "CI_EXTERNAL_PULL_REQUEST_TARGET_REPOSITORY",
        );
    if is_outside {
        let source = payload.variables.iter().find(|variable| variable.key == SOURCE_PROJECT);
        return (Trust::Outside, source.map(|variable| variable.value.clone()));
    }
    (if protected { Trust::Protected } else { Trust::Project }, None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn trust(variables: &[(&str, &str)], protected: bool) -> Trust {
        let variables: Vec<_> =
            variables.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let payload = json!({
            "id": 1, "token": "t", "job_info": {"project_id": 42}, "variables": variables,
        });
        of(&serde_json::from_value(payload).unwrap(), protected).0
    }

    #[test]
    fn trust_goes_by_the_ref_and_by_where_a_merge_request_comes_from() {
        assert_eq!(trust(&[], true), Trust::Protected);
        assert_eq!(trust(&[], false), Trust::Project);
        let source = "CI_MERGE_REQUEST_SOURCE_PROJECT_ID";
        let target = "CI_MERGE_REQUEST_PROJECT_ID";
        let own = [(source, "42"), (target, "42")];
        assert_eq!(trust(&own, false), Trust::Project);
        assert_eq!(trust(&[(source, "43"), (target, "42")], true), Trust::Outside);
        // The pipeline of a fork's merge request in the fork itself.
        assert_eq!(trust(&[(source, "42"), (target, "41")], false), Trust::Outside);
        let paths = ["CI_MERGE_REQUEST_SOURCE_PROJECT_PATH", "CI_MERGE_REQUEST_PROJECT_PATH"];
        assert_eq!(trust(&[(paths[0], "eve/x"), (paths[1], "acme/x")], true), Trust::Outside);
        assert_eq!(trust(&[(paths[0], "acme/x"), (paths[1], "acme/x")], true), Trust::Protected);
    }

    #[test]
    fn a_job_from_outside_cannot_write_itself_in() {
        let source = "CI_MERGE_REQUEST_SOURCE_PROJECT_ID";
        let target = "CI_MERGE_REQUEST_PROJECT_ID";
        for again in ["42", "43", ""] {
            let forged = [(source, "43"), (target, "42"), (source, again), (target, again)];
            assert_eq!(trust(&forged, true), Trust::Outside, "{again}");
        }
    }
}

//! What a payload makes the runner announce or refuse before anything of the job runs: secrets of
//! providers, and the notice of a policy.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::gitlab::api::wire::PolicyOptions;

use super::error::InvalidJob;

/// Providers that GitLab knows (GitLab: `secrets` of a job payload).
const PROVIDERS: [&str; 5] = [
    "vault",
    "gcp_secret_manager",
    "azure_key_vault",
    "aws_secrets_manager",
    "gitlab_secrets_manager",
];

/// Refuses a job with secrets: no provider is asked, and a job that runs without its secret may do
/// harm. A secret that nobody could get is warned of, as GitLab Runner does.
pub(super) fn secrets(secrets: &BTreeMap<String, Value>) -> Result<Vec<String>, InvalidJob> {
    let mut warnings = Vec::new();
    for (variable, secret) in secrets {
        let given = |provider: &&&str| secret.get(**provider).is_some_and(|v| !v.is_null());
        if let Some(provider) = PROVIDERS.iter().find(given) {
            return Err(InvalidJob::Secret { variable: variable.clone(), provider });
        }
        warnings.push(format!(
            "Not resolved: the secret `{variable}` has no known provider, and is not set"
        ));
    }
    Ok(warnings)
}

/// What a policy has put into the pipeline, line by line, for the author of a job; empty for a job
/// that no policy injected.
pub(super) fn policy(options: &PolicyOptions) -> Vec<String> {
    if !options.execution_policy_job {
        return Vec::new();
    }
    let name = &options.policy_name;
    let head = if name.is_empty() {
        "Job triggered by a policy.".to_owned()
    } else {
        format!("Job triggered by policy \"{name}\".")
    };
    let Some(allowed) = options.policy_variables_override_allowed else {
        let precedence =
            "Variables of the policy take precedence over user-defined CI/CD variables.";
        return vec![head, precedence.to_owned()];
    };
    let what = if allowed { "allowed" } else { "ignored" };
    let exceptions = options.policy_variables_override_exceptions.as_deref().unwrap_or_default();
    let except = if exceptions.is_empty() {
        String::new()
    } else {
        format!(" (except for {})", exceptions.join(", "))
    };
    let precedence = format!(
        "User-defined CI/CD variables are {what} in this job{except} according to the pipeline \
         execution policy."
    );
    vec![head, precedence]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Value) -> Result<Vec<String>, InvalidJob> {
        secrets(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_job_with_a_secret_of_a_provider_is_refused_by_name() {
        let error = of(json!({"DB_PASSWORD": {"file": false, "vault": {"path": "p"}}}));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("`DB_PASSWORD`") && text.contains("`vault`"), "{text}");
        assert_eq!(of(json!({})), Ok(Vec::new()));
    }

    #[test]
    fn api_152_a_secret_of_no_known_provider_is_warned_of() {
        let warnings = of(json!({"A": {"file": true, "vault": null}, "B": {"other": {}}})).unwrap();
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("Not resolved: ") && warnings[0].contains("`A`"));
    }

    #[test]
    fn a_policy_is_noticed_with_what_it_says_of_variables() {
        let of = |value| policy(&serde_json::from_value(value).unwrap());
        assert_eq!(of(json!({"policy_name": "scan"})), [""; 0]);
        let lines = of(json!({"execution_policy_job": true, "policy_name": "scan"}));
        assert_eq!(lines[0], "Job triggered by policy \"scan\".");
        assert!(lines[1].starts_with("Variables of the policy"));
        let lines = of(json!({
            "execution_policy_job": true,
            "policy_name": "scan",
            "policy_variables_override_allowed": false,
            "policy_variables_override_exceptions": ["A", "B"],
        }));
        assert!(lines[1].contains("are ignored in this job (except for A, B) according"));
    }
}

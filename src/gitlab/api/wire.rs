//! The job payload and the bodies of the job API, as they are sent (GitLab: `/api/v4/jobs`,
//! `/api/v4/runners`). Every field of a payload that a server may leave out or send as `null` has
//! a default; unknown fields are ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::base::{
    ids::{JobId, ProjectId},
    secret::Secret,
};

/// Reads `null` as the type's default.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Body of a 201 from `POST jobs/request`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobPayload {
    /// The job.
    pub id: JobId,
    /// Authenticates everything about the job.
    pub token: Secret,
    /// Default git strategy: fetch if true, else clone.
    #[serde(default, deserialize_with = "nullable")]
    pub allow_git_fetch: bool,
    /// Who and what.
    #[serde(default, deserialize_with = "nullable")]
    pub job_info: JobInfo,
    /// The sources.
    #[serde(default, deserialize_with = "nullable")]
    pub git_info: GitInfo,
    /// What the server says of the runner.
    #[serde(default, deserialize_with = "nullable")]
    pub runner_info: RunnerInfo,
    /// Values for `${{ job.inputs.… }}`.
    #[serde(default, deserialize_with = "nullable")]
    pub inputs: Vec<Input>,
    /// The job's variables, in order; later ones win.
    #[serde(default, deserialize_with = "nullable")]
    pub variables: Vec<Variable>,
    /// Scripts.
    #[serde(default, deserialize_with = "nullable")]
    pub steps: Vec<Step>,
    /// The job's image.
    #[serde(default, deserialize_with = "nullable")]
    pub image: Image,
    /// Its services.
    #[serde(default, deserialize_with = "nullable")]
    pub services: Vec<Image>,
    /// What to upload.
    #[serde(default, deserialize_with = "nullable")]
    pub artifacts: Vec<Artifact>,
    /// Caches.
    #[serde(default, deserialize_with = "nullable")]
    pub cache: Vec<Cache>,
    /// Of registries.
    #[serde(default, deserialize_with = "nullable")]
    pub credentials: Vec<Credentials>,
    /// Jobs whose artifacts are wanted.
    #[serde(default, deserialize_with = "nullable")]
    pub dependencies: Vec<Dependency>,
    /// What the server understands.
    #[serde(default, deserialize_with = "nullable")]
    pub features: ServerFeatures,
    /// Secrets to fetch from providers, by variable name; kept as sent.
    #[serde(default, deserialize_with = "nullable")]
    pub secrets: BTreeMap<String, serde_json::Value>,
    /// Scripts around fetching the sources.
    #[serde(default, deserialize_with = "nullable")]
    pub hooks: Vec<Hook>,
    /// Steps of a `run:` job, as JSON text; empty for an ordinary job.
    #[serde(default, deserialize_with = "nullable")]
    pub run: String,
    /// Notice about a policy.
    #[serde(default, deserialize_with = "nullable")]
    pub policy_options: PolicyOptions,
}

impl JobPayload {
    /// A job of which nothing more is known.
    #[must_use]
    pub fn unknown(id: JobId, token: Secret) -> Self {
        Self {
            id,
            token,
            allow_git_fetch: false,
            job_info: JobInfo::default(),
            git_info: GitInfo::default(),
            runner_info: RunnerInfo::default(),
            inputs: Vec::new(),
            variables: Vec::new(),
            steps: Vec::new(),
            image: Image::default(),
            services: Vec::new(),
            artifacts: Vec::new(),
            cache: Vec::new(),
            credentials: Vec::new(),
            dependencies: Vec::new(),
            features: ServerFeatures::default(),
            secrets: BTreeMap::new(),
            hooks: Vec::new(),
            run: String::new(),
            policy_options: PolicyOptions::default(),
        }
    }
}

/// `job_info`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobInfo {
    /// Name in the pipeline.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Stage in the pipeline.
    #[serde(deserialize_with = "nullable")]
    pub stage: String,
    /// Pipeline.
    #[serde(deserialize_with = "nullable")]
    pub pipeline_id: i64,
    /// Project; used in names of containers and caches.
    #[serde(deserialize_with = "nullable")]
    pub project_id: ProjectId,
    /// Last part of the project's path.
    #[serde(deserialize_with = "nullable")]
    pub project_name: String,
    /// The project's path.
    #[serde(deserialize_with = "nullable")]
    pub project_full_path: String,
    /// Seconds in the queue.
    #[serde(deserialize_with = "nullable")]
    pub time_in_queue_seconds: f64,
    /// Digits, `+Inf` or `<N>+`.
    #[serde(deserialize_with = "nullable")]
    pub project_jobs_running_on_instance_runners_count: String,
}

/// `git_info`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GitInfo {
    /// Clone URL, with `gitlab-ci-token:<token>@`: a secret.
    #[serde(deserialize_with = "nullable")]
    pub repo_url: Secret,
    /// `sha1` (also when empty) or `sha256`.
    #[serde(deserialize_with = "nullable")]
    pub repo_object_format: String,
    /// Branch or tag.
    #[serde(rename = "ref", deserialize_with = "nullable")]
    pub reference: String,
    /// Commit.
    #[serde(deserialize_with = "nullable")]
    pub sha: String,
    /// Commit before it.
    #[serde(deserialize_with = "nullable")]
    pub before_sha: String,
    /// `branch` or `tag`.
    #[serde(deserialize_with = "nullable")]
    pub ref_type: String,
    /// For `git fetch`, as they are.
    #[serde(deserialize_with = "nullable")]
    pub refspecs: Vec<String>,
    /// Depth; 0 for the full history.
    #[serde(deserialize_with = "nullable")]
    pub depth: i64,
    /// Whether the ref is protected.
    pub protected: Option<bool>,
}

/// `runner_info`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunnerInfo {
    /// Seconds for the whole job; 0 or less means 7200.
    #[serde(deserialize_with = "nullable")]
    pub timeout: i64,
}

/// One of `inputs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Input {
    /// Name.
    pub key: String,
    /// Value.
    pub value: InputValue,
}

/// Value of an input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InputValue {
    /// `string`, `number`, `boolean`, `array` or `struct`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Content of that type.
    pub content: serde_json::Value,
    /// May not be used in text.
    #[serde(default)]
    pub sensitive: bool,
}

/// One of `variables`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "as the API sends it")]
pub struct Variable {
    /// Name.
    pub key: String,
    /// Value.
    #[serde(deserialize_with = "nullable")]
    pub value: String,
    /// Given to services too.
    #[serde(deserialize_with = "nullable")]
    pub public: bool,
    /// The value goes to a file, the environment has its path.
    #[serde(deserialize_with = "nullable")]
    pub file: bool,
    /// Masked in the trace.
    #[serde(deserialize_with = "nullable")]
    pub masked: bool,
    /// Not expanded.
    #[serde(deserialize_with = "nullable")]
    pub raw: bool,
}

/// One of `steps`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// `script`, `after_script`, `release`, …
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Commands.
    #[serde(deserialize_with = "nullable")]
    pub script: Vec<String>,
}

/// `image` and each of `services`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// Reference; empty for the runner's default.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Aliases, separated by commas or spaces.
    #[serde(deserialize_with = "nullable")]
    pub alias: String,
    /// Override of the command; only services use it.
    pub command: Option<Vec<String>>,
    /// Override of the entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Variables of the service.
    #[serde(deserialize_with = "nullable")]
    pub variables: Vec<Variable>,
    /// Policies the job asks for.
    #[serde(deserialize_with = "nullable")]
    pub pull_policy: Vec<String>,
    /// Options by executor, as sent; `job` checks them.
    #[serde(deserialize_with = "nullable")]
    pub executor_opts: serde_json::Map<String, serde_json::Value>,
}

/// One of `artifacts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Artifact {
    /// Base name of the archive.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Adds files git does not track.
    #[serde(deserialize_with = "nullable")]
    pub untracked: bool,
    /// Globs relative to the project directory.
    #[serde(deserialize_with = "nullable")]
    pub paths: Vec<String>,
    /// Globs taken out again.
    #[serde(deserialize_with = "nullable")]
    pub exclude: Vec<String>,
    /// `on_success` (also when empty), `on_failure` or `always`.
    #[serde(deserialize_with = "nullable")]
    pub when: String,
    /// `archive`, `junit`, `dotenv`, …
    #[serde(deserialize_with = "nullable")]
    pub artifact_type: String,
    /// `zip` (also when empty), `gzip`, `raw`, `zipzstd`, `tarzstd`.
    #[serde(deserialize_with = "nullable")]
    pub artifact_format: String,
    /// Passed through.
    #[serde(deserialize_with = "nullable")]
    pub expire_in: String,
}

/// One of `cache`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// Key, with variables.
    #[serde(deserialize_with = "nullable")]
    pub key: String,
    /// Adds files git does not track.
    #[serde(deserialize_with = "nullable")]
    pub untracked: bool,
    /// `pull-push` (also when empty), `pull` or `push`, with variables.
    #[serde(deserialize_with = "nullable")]
    pub policy: String,
    /// Globs relative to the project directory.
    #[serde(deserialize_with = "nullable")]
    pub paths: Vec<String>,
    /// `on_success` (also when empty), `on_failure` or `always`.
    #[serde(deserialize_with = "nullable")]
    pub when: String,
    /// Tried in order when the key misses.
    #[serde(deserialize_with = "nullable")]
    pub fallback_keys: Vec<String>,
}

/// One of `credentials`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// Only `registry` is used.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// Registry.
    #[serde(deserialize_with = "nullable")]
    pub url: String,
    /// User.
    #[serde(deserialize_with = "nullable")]
    pub username: String,
    /// Password.
    #[serde(deserialize_with = "nullable")]
    pub password: Secret,
}

/// One of `dependencies`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dependency {
    /// The job whose artifacts are wanted.
    pub id: JobId,
    /// Token for that download.
    #[serde(default, deserialize_with = "nullable")]
    pub token: Secret,
    /// Its name, for the trace.
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    /// Empty when the job has none.
    #[serde(default, deserialize_with = "nullable")]
    pub artifacts_file: ArtifactsFile,
}

/// `dependencies[].artifacts_file`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ArtifactsFile {
    /// Empty when the job has no artifacts.
    #[serde(deserialize_with = "nullable")]
    pub filename: String,
    /// Bytes.
    #[serde(deserialize_with = "nullable")]
    pub size: i64,
}

/// `features`: what the server understands.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerFeatures {
    /// Section markers in the trace.
    #[serde(deserialize_with = "nullable")]
    pub trace_sections: bool,
    /// Token prefixes to mask beside the known ones.
    #[serde(deserialize_with = "nullable")]
    pub token_mask_prefixes: Vec<String>,
    /// Failure reasons it accepts.
    #[serde(deserialize_with = "nullable")]
    pub failure_reasons: Vec<String>,
}

/// One of `hooks`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// `pre_get_sources_script` or `post_get_sources_script`.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// Commands.
    #[serde(deserialize_with = "nullable")]
    pub script: Vec<String>,
}

/// `policy_options`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyOptions {
    /// The job was injected by a policy.
    #[serde(deserialize_with = "nullable")]
    pub execution_policy_job: bool,
    /// Its name.
    #[serde(deserialize_with = "nullable")]
    pub policy_name: String,
    /// Whether users' variables win over the policy's; `None` from a policy that does not say.
    pub policy_variables_override_allowed: Option<bool>,
    /// Variables for which it is the other way round.
    pub policy_variables_override_exceptions: Option<Vec<String>>,
}

/// `info`: what longshore says of itself in every JSON request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Info {
    /// Product.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    /// Version.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub version: String,
    /// Commit.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub revision: String,
    /// Such as `linux`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub platform: String,
    /// Such as `amd64`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub architecture: String,
    /// Such as `docker`; not in a registration.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub executor: String,
    /// Such as `bash`; not in a registration.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub shell: String,
    /// All 31 of them.
    pub features: BTreeMap<String, bool>,
    /// `{"gpus": …}`.
    pub config: BTreeMap<String, String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
}

/// Body of `POST jobs/request`.
#[derive(Debug, Clone, Serialize)]
pub struct JobRequest<'a> {
    /// See [`Info`].
    pub info: &'a Info,
    /// The runner's token.
    pub token: &'a Secret,
    /// The machine; left out when empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub system_id: &'a str,
    /// Queue cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_update: Option<String>,
}

/// `state` of `PUT jobs/:id`; no other is ever sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Acknowledges the job, and later keeps it alive.
    Running,
    /// Final.
    Success,
    /// Final.
    Failed,
}

/// Checksum and size of the trace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceOutput {
    /// `crc32:` and eight hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Bytes; left out when 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytesize: Option<u64>,
}

/// Body of `PUT jobs/:id`.
#[derive(Debug, Clone, Serialize)]
pub struct JobUpdate<'a> {
    /// See [`Info`].
    pub info: &'a Info,
    /// The job's token.
    pub token: &'a Secret,
    /// State.
    pub state: JobState,
    /// Only with `failed`; already one the server knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// Repeats `output.checksum`, for old servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Checksum and size of the trace; `{}` in the acknowledgement.
    pub output: TraceOutput,
    /// Left out when 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_72_missing_and_null_keys_have_defaults() {
        let job: JobPayload = serde_json::from_str(
            r#"{"id": 7, "token": "t", "image": null, "variables": null, "run": null,
                "git_info": {"ref": null, "depth": null}, "unknown": {"a": 1},
                "services": [{"name": "redis", "command": null, "executor_opts": null}]}"#,
        )
        .unwrap();
        assert_eq!(job.id, JobId(7));
        assert!(job.variables.is_empty() && job.run.is_empty() && job.image.name.is_empty());
        assert_eq!(job.runner_info.timeout, 0);
        assert_eq!(job.services[0].name, "redis");
    }

    #[test]
    fn a_payload_does_not_print_its_token() {
        let job: JobPayload =
            serde_json::from_str(r#"{"id": 7, "token": "glcbt-secret"}"#).unwrap();
        assert!(!format!("{job:?}").contains("secret-"));
        assert!(!format!("{job:?}").contains("glcbt"));
    }
}

//! A job as longshore understands it: made from the payload once, after which nothing in it can be
//! wrong in a way that a type could forbid.

pub mod input;
pub mod notice;
pub mod outcome;
pub mod variable;

use std::time::Duration;

use serde_json::{Map, Value};

use self::outcome::FailureReason;
use crate::{
    base::{ids::JobId, secret::Secret},
    config::PullPolicy,
    gitlab::api::wire::{Image, JobPayload, Variable},
};

/// Deadline of a job whose server names none (GitLab Runner: `DefaultTimeout`).
const DEFAULT_TIMEOUT: Duration = Duration::from_hours(2);

/// A job that can be planned.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Authenticates everything about it.
    pub token: Secret,
    /// Deadline of the whole job.
    pub timeout: Duration,
    /// The image it asks for; an empty name means the runner's default.
    pub image: JobImage,
    /// Services it asks for.
    pub services: Vec<JobService>,
    /// Scripts in order, without `after_script`.
    pub steps: Vec<JobStep>,
    /// `after_script`; empty when there is none.
    pub after_script: Vec<String>,
    /// Warnings for the job's author, one line each.
    pub warnings: Vec<String>,
    /// All the rest, as it was sent.
    pub payload: JobPayload,
}

/// The image of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobImage {
    /// Reference, before the expansion of variables.
    pub name: String,
    /// Override of the entrypoint; `[""]` resets the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Policies the job asks for.
    pub pull_policy: Vec<PullPolicy>,
    /// `executor_opts.docker.platform`, before expansion.
    pub platform: Option<String>,
    /// `executor_opts.docker.user`, before expansion.
    pub user: Option<String>,
}

/// A service of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobService {
    /// Image and its options.
    pub image: JobImage,
    /// Aliases, before expansion, separated by commas or spaces.
    pub alias: String,
    /// Override of the command.
    pub command: Vec<String>,
    /// Variables of its own.
    pub variables: Vec<Variable>,
}

/// A script that runs in the job's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobStep {
    /// `script`, `release`, …; its stage is `step_<name>` in lower case.
    pub name: String,
    /// Commands.
    pub script: Vec<String>,
}

/// Why a payload is no job that can be run. The job's author reads this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJob {
    /// An option no executor has.
    #[error(
        "unsupported executor_opts key `{key}` in {section}; supported are: {}",
        supported.join(", ")
    )]
    ExecutorOption {
        /// Where it stands, such as `image.executor_opts.docker`.
        section: String,
        /// The key.
        key: String,
        /// What could stand there.
        supported: &'static [&'static str],
    },
    /// An option of the wrong type.
    #[error("{key} must be {expected}, not {found}")]
    OptionType {
        /// Where it stands.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A pull policy nobody knows.
    #[error(
        "unknown pull_policy `{policy}` of image `{image}`; known are always, if-not-present and never"
    )]
    PullPolicy {
        /// The image.
        image: String,
        /// The policy.
        policy: String,
    },
    /// `run:` and `script:` in one job.
    #[error("the keywords `run` and `script` exclude each other in one job")]
    RunAndScript,
    /// A secret that would have to be fetched.
    #[error(
        "the variable `{variable}` is a secret of the provider `{provider}`, which this runner \
         cannot get; the job is not run without it"
    )]
    Secret {
        /// The variable.
        variable: String,
        /// The key of the provider, such as `vault`.
        provider: &'static str,
    },
    /// An input cannot be used.
    #[error(transparent)]
    Input(#[from] input::InputError),
    /// `run:` needs the step runner.
    #[error("the keyword `run` (native steps) is not supported; use `script`")]
    RunUnsupported,
}

impl InvalidJob {
    /// What the server is told.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Input(input::InputError::Type { .. })
            | Self::ExecutorOption { .. }
            | Self::OptionType { .. }
            | Self::PullPolicy { .. }
            | Self::RunAndScript
            | Self::RunUnsupported
            | Self::Secret { .. } => FailureReason::RunnerSystemFailure,
            Self::Input(_) => FailureReason::RunnerConfigurationError,
        }
    }

    /// Exit code that the incumbent gives (gitlab-job-api.md §5.9, §12.2).
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::ExecutorOption { .. }
            | Self::OptionType { .. }
            | Self::PullPolicy { .. }
            | Self::RunAndScript
            | Self::RunUnsupported => Some(3),
            Self::Secret { .. } | Self::Input(_) => None,
        }
    }
}

impl TryFrom<JobPayload> for Job {
    type Error = InvalidJob;

    fn try_from(payload: JobPayload) -> Result<Self, InvalidJob> {
        if !payload.run.trim().is_empty() && payload.run.trim() != "[]" {
            return Err(if payload.steps.iter().any(|s| !s.script.is_empty()) {
                InvalidJob::RunAndScript
            } else {
                InvalidJob::RunUnsupported
            });
        }
        input::validate(&payload.inputs)?;
        let warnings = notice::secrets(&payload.secrets)?;
        let image = job_image(&payload.image, "image")?;
        let services = payload
            .services
            .iter()
            .enumerate()
            .map(|(index, service)| {
                Ok(JobService {
                    image: job_image(service, &format!("services[{index}]"))?,
                    alias: service.alias.clone(),
                    command: service.command.clone().unwrap_or_default(),
                    variables: service.variables.clone(),
                })
            })
            .collect::<Result<_, InvalidJob>>()?;
        let (after, steps): (Vec<_>, Vec<_>) =
            payload.steps.iter().partition(|step| step.name == "after_script");
        Ok(Self {
            id: payload.id,
            token: payload.token.clone(),
            timeout: match u64::try_from(payload.runner_info.timeout) {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
                _ => DEFAULT_TIMEOUT,
            },
            image,
            services,
            steps: steps
                .into_iter()
                .map(|step| JobStep { name: step.name.clone(), script: step.script.clone() })
                .collect(),
            after_script: after.into_iter().flat_map(|step| step.script.clone()).collect(),
            warnings,
            payload,
        })
    }
}

fn job_image(image: &Image, section: &str) -> Result<JobImage, InvalidJob> {
    let pull_policy = image
        .pull_policy
        .iter()
        .map(|policy| match policy.as_str() {
            "always" => Ok(PullPolicy::Always),
            "if-not-present" => Ok(PullPolicy::IfNotPresent),
            "never" => Ok(PullPolicy::Never),
            _ => Err(InvalidJob::PullPolicy { image: image.name.clone(), policy: policy.clone() }),
        })
        .collect::<Result<_, _>>()?;
    let section = format!("{section}.executor_opts");
    only_keys(&image.executor_opts, &section, &["docker", "kubernetes"])?;
    let docker = options(&image.executor_opts, "docker", &section)?;
    only_keys(&docker, &format!("{section}.docker"), &["platform", "user"])?;
    let kubernetes = options(&image.executor_opts, "kubernetes", &section)?;
    only_keys(&kubernetes, &format!("{section}.kubernetes"), &["user"])?;
    Ok(JobImage {
        name: image.name.clone(),
        entrypoint: image.entrypoint.clone(),
        pull_policy,
        platform: text(&docker, "platform", &section)?,
        user: text(&docker, "user", &section)?,
    })
}

fn only_keys(
    options: &Map<String, Value>,
    section: &str,
    supported: &'static [&'static str],
) -> Result<(), InvalidJob> {
    match options.keys().find(|key| !supported.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(InvalidJob::ExecutorOption {
            section: section.to_owned(),
            key: key.clone(),
            supported,
        }),
    }
}

fn options(
    of: &Map<String, Value>,
    key: &str,
    section: &str,
) -> Result<Map<String, Value>, InvalidJob> {
    match of.get(key) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(other) => Err(InvalidJob::OptionType {
            key: format!("{section}.{key}"),
            expected: "a map",
            found: other.to_string(),
        }),
    }
}

/// Text, or a number written without quotes, as `user: 1000` is.
fn text(of: &Map<String, Value>, key: &str, section: &str) -> Result<Option<String>, InvalidJob> {
    match of.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(InvalidJob::OptionType {
            key: format!("{section}.docker.{key}"),
            expected: "text or a number",
            found: other.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(extra: &Value) -> Result<Job, InvalidJob> {
        let mut payload = json!({"id": 1, "token": "t"});
        payload.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::from_value::<JobPayload>(payload).unwrap().try_into()
    }

    #[test]
    fn api_69_docker_14_an_unknown_executor_option_is_named() {
        let error =
            job(&json!({"image": {"name": "a", "executor_opts": {"docker": {"blammo": 1}}}}))
                .unwrap_err();
        assert_eq!(
            error.to_string(),
            "unsupported executor_opts key `blammo` in image.executor_opts.docker; supported are: \
             platform, user"
        );
        let error = job(&json!({"services": [{"name": "a", "executor_opts": {"vm": {}}}]}));
        assert!(error.unwrap_err().to_string().contains("`vm` in services[0].executor_opts"));
    }

    #[test]
    fn api_70_a_user_may_be_a_number() {
        let job =
            job(&json!({"image": {"name": "a", "executor_opts": {"docker": {"user": 1000}}}}));
        assert_eq!(job.unwrap().image.user.as_deref(), Some("1000"));
    }

    #[test]
    fn api_71_run_and_script_exclude_each_other() {
        let run = r#"[{"name": "a", "script": "true"}]"#;
        let both = job(&json!({"run": run, "steps": [{"name": "script", "script": ["true"]}]}));
        assert_eq!(both.unwrap_err(), InvalidJob::RunAndScript);
        assert_eq!(job(&json!({"run": run})).unwrap_err(), InvalidJob::RunUnsupported);
        assert!(job(&json!({"run": ""})).is_ok());
    }

    #[test]
    fn api_72_a_job_without_a_timeout_has_two_hours() {
        assert_eq!(job(&json!({})).unwrap().timeout, Duration::from_hours(2));
        let five = job(&json!({"runner_info": {"timeout": 5}})).unwrap();
        assert_eq!(five.timeout, Duration::from_secs(5));
    }

    #[test]
    fn docker_15_only_name_and_script_of_a_step_count() {
        let job = job(&json!({"steps": [
            {"name": "script", "script": ["a"], "timeout": 1, "when": "never", "allow_failure": true},
            {"name": "release", "script": ["b"]},
            {"name": "after_script", "script": ["c"]},
        ]}))
        .unwrap();
        assert_eq!(
            job.steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["script", "release"]
        );
        assert_eq!(job.after_script, ["c"]);
    }
}

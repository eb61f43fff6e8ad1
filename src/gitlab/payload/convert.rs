//! The conversion itself.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::flags,
    gitlab::api::wire::{self, JobPayload},
    workload::{
        spec::{
            ArtifactSpec, CacheSpec, Dependency, GitSource, JobSpec, PipelineId, Project, RefKind,
            RegistryCredentials, ScriptSpec, ServiceSpec, StepSpec, TraceFeatures, When,
        },
        transfer::{Format, ObjectFormat},
        variable::{Variable, parse_bool},
    },
};

use super::{error::InvalidJob, image::image_spec, input, notice, trust};

/// Timeout of a job for which the server names none (GitLab Runner: `DefaultTimeout`).
const DEFAULT_TIMEOUT: Duration = Duration::from_hours(2);

/// The feature flag for expressions of inputs. It is resolved before all others, as those may be
/// set by variables of the job.
const INTERPOLATION: &str = "FF_ENABLE_JOB_INPUTS_INTERPOLATION";

/// The job that a payload describes. `feature_flags` are the runner's own.
///
/// # Errors
/// When the payload asks for what no runner could give, or contradicts itself.
pub fn job_spec(
    payload: &JobPayload,
    feature_flags: &BTreeMap<String, bool>,
) -> Result<JobSpec, InvalidJob> {
    let mut payload = payload.clone();
    if interpolates(&payload, feature_flags) {
        input::interpolate(&mut payload)?;
    }
    convert(&payload)
}

/// What can be told of a job without looking at what it asks for: who it is, where it comes from,
/// what to mask in its log. For a job that ends before it begins, as [`job_spec`] failed.
#[must_use]
pub fn outline(payload: &JobPayload) -> JobSpec {
    let info = &payload.job_info;
    let page = payload.variables.iter().rev().find(|variable| variable.key == "CI_JOB_URL");
    JobSpec {
        name: info.name.clone(),
        page: page.map(|variable| variable.value.clone()).unwrap_or_default(),
        pipeline: PipelineId(info.pipeline_id),
        project: Project {
            id: info.project_id,
            name: info.project_name.clone(),
            full_path: info.project_full_path.clone(),
        },
        timeout: match u64::try_from(payload.runner_info.timeout) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => DEFAULT_TIMEOUT,
        },
        source: git_source(payload),
        variables: payload.variables.iter().map(variable).collect(),
        trace: TraceFeatures {
            sections: payload.features.trace_sections,
            mask_prefixes: payload.features.token_mask_prefixes.clone(),
        },
        notices: notice::policy(&payload.policy_options),
        ..JobSpec::unknown(payload.id, payload.token.clone())
    }
}

fn interpolates(payload: &JobPayload, feature_flags: &BTreeMap<String, bool>) -> bool {
    let written = payload.variables.iter().rev().find(|v| v.key == INTERPOLATION);
    let written = written.map(|variable| variable.value.as_str());
    flags::find(INTERPOLATION).is_none_or(|flag| flags::resolve(flag, feature_flags, written).on)
}

fn convert(payload: &JobPayload) -> Result<JobSpec, InvalidJob> {
    if !payload.run.trim().is_empty() && payload.run.trim() != "[]" {
        return Err(if payload.steps.iter().any(|s| !s.script.is_empty()) {
            InvalidJob::RunAndScript
        } else {
            InvalidJob::RunUnsupported
        });
    }
    input::validate(&payload.inputs)?;
    let warnings = notice::secrets(&payload.secrets)?;
    let job = outline(payload);
    Ok(JobSpec {
        image: image_spec(&payload.image, "image")?,
        services: payload.services.iter().enumerate().map(service).collect::<Result<_, _>>()?,
        scripts: scripts(payload),
        caches: payload.cache.iter().map(cache).collect::<Result<_, _>>()?,
        artifacts: payload.artifacts.iter().map(artifact).collect::<Result<_, _>>()?,
        dependencies: dependencies(payload),
        registries: registries(payload),
        warnings,
        ..job
    })
}

fn git_source(payload: &JobPayload) -> GitSource {
    let git = &payload.git_info;
    let protected = is_protected(payload);
    let (trust, fork) = trust::of(payload, protected);
    GitSource {
        repo_url: git.repo_url.clone(),
        bundle: None,
        object_format: match git.repo_object_format.as_str() {
            "sha256" => ObjectFormat::Sha256,
            _ => ObjectFormat::Sha1,
        },
        reference: git.reference.clone(),
        ref_kind: if git.ref_type == "tag" { RefKind::Tag } else { RefKind::Branch },
        sha: git.sha.clone(),
        before_sha: git.before_sha.clone(),
        refspecs: git.refspecs.clone(),
        depth: git.depth,
        allow_fetch: payload.allow_git_fetch,
        protected,
        trust,
        fork,
    }
}

/// Whether the job's ref is protected: `git_info.protected`, or else the first definition of
/// `CI_COMMIT_REF_PROTECTED`, which is the server's own.
fn is_protected(payload: &JobPayload) -> bool {
    payload.git_info.protected.unwrap_or_else(|| {
        let own = payload.variables.iter().find(|v| v.key == "CI_COMMIT_REF_PROTECTED");
        own.is_some_and(|variable| parse_bool(&variable.value) == Some(true))
    })
}

fn variable(variable: &wire::Variable) -> Variable {
    Variable {
        key: variable.key.clone(),
        value: variable.value.clone(),
        public: variable.public,
        file: variable.file,
        masked: variable.masked,
        raw: variable.raw,
    }
}

fn service((index, service): (usize, &wire::Image)) -> Result<ServiceSpec, InvalidJob> {
    Ok(ServiceSpec {
        image: image_spec(service, &format!("services[{index}]"))?,
        alias: service.alias.clone(),
        command: service.command.clone().unwrap_or_default(),
        variables: service.variables.iter().map(variable).collect(),
    })
}

fn scripts(payload: &JobPayload) -> ScriptSpec {
    let (after, steps): (Vec<_>, Vec<_>) =
        payload.steps.iter().partition(|step| step.name == "after_script");
    let hook = |name: &str| {
        let hooks = payload.hooks.iter().filter(|hook| hook.name == name);
        hooks.flat_map(|hook| hook.script.iter().cloned()).collect()
    };
    ScriptSpec {
        steps: steps
            .into_iter()
            .map(|step| StepSpec { name: step.name.clone(), script: step.script.clone() })
            .collect(),
        after_script: after.into_iter().flat_map(|step| step.script.clone()).collect(),
        before_sources: hook("pre_get_sources_script"),
        after_sources: hook("post_get_sources_script"),
    }
}

fn cache(cache: &wire::Cache) -> Result<CacheSpec, InvalidJob> {
    Ok(CacheSpec {
        key: cache.key.clone(),
        fallback_keys: cache.fallback_keys.clone(),
        policy: cache.policy.clone(),
        paths: cache.paths.clone(),
        untracked: cache.untracked,
        when: when("cache:when", &cache.when)?,
    })
}

fn artifact(artifact: &wire::Artifact) -> Result<ArtifactSpec, InvalidJob> {
    let format = match artifact.artifact_format.as_str() {
        "" => None,
        "zip" => Some(Format::Zip),
        "gzip" => Some(Format::Gzip),
        "raw" => Some(Format::Raw),
        "zipzstd" => Some(Format::ZipZstd),
        "tarzstd" => Some(Format::TarZstd),
        other => {
            return Err(InvalidJob::Keyword {
                keyword: "artifact_format",
                value: other.to_owned(),
                expected: "zip, gzip, raw, zipzstd or tarzstd",
            });
        }
    };
    Ok(ArtifactSpec {
        name: artifact.name.clone(),
        paths: artifact.paths.clone(),
        exclude: artifact.exclude.clone(),
        untracked: artifact.untracked,
        when: when("artifacts:when", &artifact.when)?,
        kind: artifact.artifact_type.clone(),
        format,
        expire_in: artifact.expire_in.clone(),
    })
}

fn when(keyword: &'static str, text: &str) -> Result<When, InvalidJob> {
    match text {
        "" | "on_success" => Ok(When::OnSuccess),
        "on_failure" => Ok(When::OnFailure),
        "always" => Ok(When::Always),
        other => Err(InvalidJob::Keyword {
            keyword,
            value: other.to_owned(),
            expected: "on_success, on_failure or always",
        }),
    }
}

/// Jobs that have artifacts; the others are named in a payload too.
fn dependencies(payload: &JobPayload) -> Vec<Dependency> {
    let with_artifacts =
        payload.dependencies.iter().filter(|d| !d.artifacts_file.filename.is_empty());
    with_artifacts
        .map(|dependency| Dependency {
            id: dependency.id,
            name: dependency.name.clone(),
            token: dependency.token.clone(),
        })
        .collect()
}

fn registries(payload: &JobPayload) -> Vec<RegistryCredentials> {
    let registries = payload.credentials.iter().filter(|c| c.kind == "registry");
    registries
        .map(|credentials| RegistryCredentials {
            url: credentials.url.clone(),
            username: credentials.username.clone(),
            password: credentials.password.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::workload::outcome::FailureReason;

    fn job(extra: &Value) -> Result<JobSpec, InvalidJob> {
        let mut payload = json!({"id": 1, "token": "t"});
        payload.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        job_spec(&serde_json::from_value(payload).unwrap(), &BTreeMap::new())
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
            job.scripts.steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["script", "release"]
        );
        assert_eq!(job.scripts.after_script, ["c"]);
    }

    #[test]
    fn only_credentials_of_registries_count() {
        let job = job(&json!({"credentials": [
            {"type": "registry", "url": "r.example", "username": "u", "password": "p"},
            {"type": "other", "url": "d.example", "username": "u", "password": "p"},
        ]}))
        .unwrap();
        let urls: Vec<_> = job.registries.iter().map(|r| r.url.as_str()).collect();
        assert_eq!(urls, ["r.example"]);
    }

    #[test]
    fn keywords_with_values_that_they_cannot_have_are_named() {
        for (payload, text) in [
            (
                json!({"cache": [{"paths": ["a"], "when": "never"}]}),
                "cache:when is `never`; it must be on_success, on_failure or always",
            ),
            (
                json!({"artifacts": [{"paths": ["a"], "when": "never"}]}),
                "artifacts:when is `never`; it must be on_success, on_failure or always",
            ),
            (
                json!({"artifacts": [{"paths": ["a"], "artifact_format": "rar"}]}),
                "artifact_format is `rar`; it must be zip, gzip, raw, zipzstd or tarzstd",
            ),
        ] {
            let error = job(&payload).unwrap_err();
            assert_eq!(error.to_string(), text);
            assert_eq!(error.failure_reason(), FailureReason::RunnerSystemFailure);
        }
    }

    #[test]
    fn a_ref_is_protected_as_the_server_says_or_its_variable() {
        let variable = json!([{"key": "CI_COMMIT_REF_PROTECTED", "value": "true"}]);
        let protected = |payload| job(&payload).unwrap().source.protected;
        assert!(protected(json!({"variables": variable})));
        assert!(!protected(json!({"variables": variable, "git_info": {"protected": false}})));
        assert!(protected(json!({"git_info": {"protected": true}})));
        assert!(!protected(json!({})));
    }
}

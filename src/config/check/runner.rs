//! One `[[runners]]` entry.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    cache, docker,
    labels::{MAX_LABELS, check_label_count, labels},
    variables::environment,
};
use crate::{
    base::{ids::RunnerName, paths::ContainerPath, secret::Secret},
    config::{
        executor::ExecutorConfig,
        file::Section,
        flags,
        gitlab::{ArtifactConfig, GitLabConfig, TlsFiles},
        runner::{OperatorScripts, RunnerConfig, SourcesConfig, StageTimeouts},
        values,
    },
};

/// Executors that gitlab-runner has and longshore does not.
const OTHER_EXECUTORS: &[&str] = &[
    "shell",
    "custom",
    "kubernetes",
    "ssh",
    "parallels",
    "virtualbox",
    "docker+machine",
    "docker-ssh",
    "docker-ssh+machine",
    "docker-windows",
    "docker-autoscaler",
    "instance",
];

/// What [`RunnerConfig`] may be executed by.
pub(crate) const SUPPORTED_EXECUTORS: &[&str] = &["docker"];

pub(super) fn runner(
    section: Section<'_>,
    global_labels: &BTreeMap<String, String>,
    env: &dyn Fn(&str) -> Option<String>,
) -> RunnerConfig {
    let name = section.text("name").unwrap_or_default();
    let supported = executor(&section, &name);
    let docker_section = section.table("docker");
    if supported && !docker_section.is_present() {
        let hint = "add a `[runners.docker]` table with an `image`";
        section.problem("docker", None, "the docker executor needs this table", hint);
    }
    let (builds_dir, cache_dir) =
        (directory(&section, "builds_dir", "/builds"), directory(&section, "cache_dir", "/cache"));
    let (containers, docker) = docker::docker(docker_section);
    let runner = RunnerConfig {
        gitlab: gitlab(&section, env),
        executor: ExecutorConfig::Docker(docker),
        containers,
        limit: section.positive("limit").unwrap_or(0),
        output_limit: section.positive::<u32>("output_limit").map_or(4096, u64::from) * 1024,
        labels: all_labels(&section, global_labels),
        builds_dir,
        cache_dir,
        environment: environment(&section),
        scripts: scripts(&section),
        timeouts: StageTimeouts {
            prepare: stage_timeout(&section, "prepare_timeout"),
            get_sources: stage_timeout(&section, "get_sources_timeout"),
        },
        debug_trace_disabled: section.boolean("debug_trace_disabled").unwrap_or(false),
        sources: SourcesConfig {
            safe_directory_checkout: section.boolean("safe_directory_checkout").unwrap_or(true),
            clean_git_config: section.boolean("clean_git_config").unwrap_or(true),
            custom_build_dir: custom_build_dir(&section),
        },
        feature_flags: feature_flags(&section),
        cache: cache::cache(section.table("cache")),
        name: RunnerName::new(name),
    };
    without_effect(&section);
    section.finish();
    runner
}

fn gitlab(section: &Section<'_>, env: &dyn Fn(&str) -> Option<String>) -> GitLabConfig {
    GitLabConfig {
        url: url(section, env),
        clone_url: section.text("clone_url"),
        id: section.integer("id").unwrap_or(0),
        token: token(section, env),
        token_obtained_at: section.timestamp("token_obtained_at"),
        token_expires_at: section.timestamp("token_expires_at"),
        tls: TlsFiles {
            ca: existing_file(section, "tls-ca-file"),
            cert: existing_file(section, "tls-cert-file"),
            key: existing_file(section, "tls-key-file"),
        },
        request_concurrency: section.positive("request_concurrency").unwrap_or(1),
        strict_check_interval: section.boolean("strict_check_interval").unwrap_or(false),
        unhealthy_requests_limit: section.positive("unhealthy_requests_limit").unwrap_or(3),
        unhealthy_interval: section
            .positive_duration("unhealthy_interval")
            .unwrap_or(Duration::from_hours(1)),
        final_update_retry_limit: section
            .positive("job_status_final_update_retry_limit")
            .unwrap_or(10),
        artifact: artifact(section),
    }
}

fn scripts(section: &Section<'_>) -> OperatorScripts {
    OperatorScripts {
        pre_get_sources: section
            .text("pre_get_sources_script")
            .or_else(|| section.text("pre_clone_script")),
        post_get_sources: section
            .text("post_get_sources_script")
            .or_else(|| section.text("post_clone_script")),
        pre_build: section.text("pre_build_script"),
        post_build: section.text("post_build_script"),
    }
}

/// Whether the executor is one of ours; any other is a problem.
fn executor(section: &Section<'_>, name: &str) -> bool {
    let who = if name.is_empty() { "this runner".to_owned() } else { format!("runner `{name}`") };
    let supported = SUPPORTED_EXECUTORS.join(", ");
    let hint = format!("supported: {supported}; move this runner to a file of its own");
    match section.text("executor") {
        Some(text) if SUPPORTED_EXECUTORS.contains(&text.as_str()) => return true,
        None => section.problem(
            "executor",
            None,
            format!("{who} has no executor"),
            &format!("supported: {supported}"),
        ),
        Some(text) if OTHER_EXECUTORS.contains(&text.as_str()) => {
            let why = format!("{who} has an executor that is not supported");
            section.problem("executor", Some(&text), why, &hint);
        }
        Some(text) => {
            let why = format!("{who} has an executor that does not exist");
            section.problem("executor", Some(&text), why, &format!("supported: {supported}"));
        }
    }
    false
}

fn url(section: &Section<'_>, env: &dyn Fn(&str) -> Option<String>) -> String {
    let hint = "write the address of GitLab, such as \"https://gitlab.example.com/\"";
    let Some(written) = section.text("url") else {
        section.problem("url", None, "is missing", hint);
        return String::new();
    };
    // The value is shown as written only when it cannot hold a password.
    let shown = (!written.contains('@')).then_some(written.as_str());
    let (url, unset) = values::expand_environment(&written, env);
    if let Some(name) = unset.first() {
        let why = format!("the environment variable `{name}` is not set");
        section.problem("url", shown, why, "");
        return url;
    }
    match url::Url::parse(&url) {
        Ok(parsed) if !matches!(parsed.scheme(), "http" | "https") => {
            section.problem("url", shown, "the scheme must be http or https", hint);
        }
        Ok(parsed) => {
            if parsed.path().trim_end_matches('/').ends_with("/ci") {
                section.warn("url", "the ending `/ci` is a legacy of old servers and is ignored");
            }
        }
        Err(error) => section.problem("url", shown, format!("not a URL: {error}"), hint),
    }
    url
}

fn token(section: &Section<'_>, env: &dyn Fn(&str) -> Option<String>) -> Secret {
    let written = section.secret("token");
    let (token, unset) = values::expand_environment(written.expose(), env);
    if let Some(name) = unset.first() {
        section.warn("token", format!("the environment variable `{name}` is not set"));
    }
    let token = Secret::new(token.trim());
    if token.is_empty() {
        section.warn("token", "is missing, so this runner asks for no jobs");
    }
    token
}

fn existing_file(section: &Section<'_>, key: &str) -> Option<PathBuf> {
    let path = PathBuf::from(section.text(key)?);
    if !path.exists() {
        section.warn(key, format!("there is no file `{}`", path.display()));
    }
    Some(path)
}

fn directory(section: &Section<'_>, key: &str, default: &str) -> ContainerPath {
    let parse = |text: &str| {
        if !text.starts_with('/') {
            Err("must be an absolute path in the container")
        } else if text.trim_matches('/').is_empty() {
            Err("must not be `/`")
        } else {
            Ok(ContainerPath::new(text.trim_end_matches('/')))
        }
    };
    section.parsed(key, "", parse).unwrap_or_else(|| ContainerPath::new(default))
}

fn all_labels(
    section: &Section<'_>,
    global: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let own = labels(section);
    let mut all = global.clone();
    all.extend(own.clone());
    // Either of them alone being above the limit is already reported.
    if own.len().max(global.len()) <= MAX_LABELS {
        check_label_count(section, &all);
    }
    all
}

fn stage_timeout(section: &Section<'_>, key: &str) -> Option<Duration> {
    let timeout = section.duration(key)?;
    match timeout {
        (false, timeout) if !timeout.is_zero() => Some(timeout),
        _ => {
            section.warn(key, "must be more than zero, ignored");
            None
        }
    }
}

fn custom_build_dir(section: &Section<'_>) -> bool {
    let table = section.table("custom_build_dir");
    let enabled = table.boolean("enabled").unwrap_or(true);
    table.finish();
    enabled
}

fn artifact(section: &Section<'_>) -> ArtifactConfig {
    let table = section.table("artifact");
    let artifact = ArtifactConfig {
        upload_timeout: table
            .positive_duration("upload_timeout")
            .unwrap_or(Duration::from_hours(1)),
        response_header_timeout: table
            .positive_duration("response_header_timeout")
            .unwrap_or(Duration::from_mins(10)),
    };
    table.finish();
    artifact
}

fn feature_flags(section: &Section<'_>) -> BTreeMap<String, bool> {
    let switches = section.switches("feature_flags");
    let table = section.table("feature_flags");
    for (name, &on) in &switches {
        if let Some(message) = flags::warning(name, on) {
            table.warn_in_map(name, message);
        }
    }
    switches
}

/// Keys that are known and do nothing here.
fn without_effect(section: &Section<'_>) {
    if let Some(shell) = section.text("shell")
        && !matches!(shell.as_str(), "bash" | "sh")
    {
        section.warn("shell", "only bash and sh are supported; the image decides which of them");
    }
    section.unsupported("use_slot_cgroups", "slot cgroups are not supported");
    section.unsupported("slot_cgroup_template", "slot cgroups are not supported");
    section.unsupported("proxy_exec", "this wrapper of helper commands is not supported");
    section.unsupported("step_runner_image", "native steps are not supported");
    for table in ["monitoring", "referees", "experimental"] {
        section.unsupported(table, "this table is not supported");
    }
    for table in [
        "kubernetes",
        "custom",
        "ssh",
        "parallels",
        "virtualbox",
        "machine",
        "instance",
        "autoscaler",
    ] {
        section.unsupported(table, "this table belongs to an executor that is not supported");
    }
}

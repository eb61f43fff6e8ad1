//! Where the sources go and how they are fetched.

use url::Url;

use crate::{
    base::secret::Secret,
    config::RunnerConfig,
    gitlab::api::wire::JobPayload,
    helper::protocol::{Sources, Strategy},
    workload::job::{Job, variable::Expanded},
};

use super::{Directories, Place, PlanError, flags::Flags, script, settings::Settings, written};

/// Where the helper finds the bundle of `longshore exec`, below the temporary directory.
pub const BUNDLE: &str = "sources.bundle";

/// Whether a job begins with the work tree that an earlier one left. It is asked before the job has
/// a place, so a strategy that is written with other variables is not known yet.
#[must_use]
pub fn reuses_tree(payload: &JobPayload, runner: &RunnerConfig) -> bool {
    let asked = written(payload, runner, "GIT_STRATEGY").filter(|value| !value.is_empty());
    strategy(asked, payload.allow_git_fetch).is_ok_and(|strategy| strategy == Strategy::Fetch)
}

/// The git strategy: `GIT_STRATEGY`, else what the server allows.
pub(super) fn strategy(asked: Option<&str>, allow_fetch: bool) -> Result<Strategy, PlanError> {
    match asked {
        None => Ok(if allow_fetch { Strategy::Fetch } else { Strategy::Clone }),
        Some("fetch") => Ok(Strategy::Fetch),
        Some("clone") => Ok(Strategy::Clone),
        Some("none") => Ok(Strategy::None),
        Some("empty") => Ok(Strategy::Empty),
        Some(other) => Err(PlanError::Setting {
            variable: "GIT_STRATEGY".to_owned(),
            value: other.to_owned(),
            expected: "fetch, clone, none or empty",
        }),
    }
}

/// Directories of docker-executor.md §8.3 and §8.4, as long as no variable says otherwise.
pub(super) fn directories(
    job: &Job,
    runner: &RunnerConfig,
    place: &Place,
    shared: bool,
) -> Directories {
    let builds = runner.builds_dir.trim_end_matches('/').to_owned();
    let path = project_path(job);
    let project = if shared {
        format!("{builds}/{}/{}/{path}", runner.short_token(), place.project_slot)
    } else {
        format!("{builds}/{path}")
    };
    let cache = runner.cache_dir.trim_end_matches('/').to_owned();
    Directories {
        temp: format!("{project}.tmp"),
        project_cache: format!("{cache}/{path}"),
        builds,
        project,
        cache,
    }
}

/// `<namespace>/<project>` out of the repository's address, or `project-<id>`.
fn project_path(job: &Job) -> String {
    let info = &job.payload.job_info;
    Url::parse(job.payload.git_info.repo_url.expose())
        .ok()
        .map(|url| url.path().trim_matches('/').trim_end_matches(".git").to_owned())
        .filter(|path| {
            !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        })
        .or_else(|| Some(info.project_full_path.clone()).filter(|path| !path.is_empty()))
        .unwrap_or_else(|| format!("project-{}", info.project_id))
}

/// `GIT_CLONE_PATH` without `.` and `..`. It must lie in the builds directory, and the runner must
/// allow it.
pub(super) fn clone_path(
    path: &str,
    runner: &RunnerConfig,
    directories: &Directories,
) -> Result<String, PlanError> {
    let refuse = |why: String| PlanError::ClonePath { path: path.to_owned(), why };
    if !runner.custom_build_dir {
        return Err(refuse(
            "may not be used: the runner sets [runners.custom_build_dir] enabled = false".into(),
        ));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let clean = format!("/{}", parts.join("/"));
    let inside = clean.strip_prefix(&directories.builds).is_some_and(|rest| rest.starts_with('/'));
    if path.starts_with('/') && inside {
        Ok(clean)
    } else {
        Err(refuse(format!("is not inside CI_BUILDS_DIR, {}", directories.builds)))
    }
}

/// The task for the helper; `None` when there is nothing for it to do.
#[expect(clippy::too_many_arguments, reason = "all of the plan's parts meet here")]
pub(super) fn task(
    job: &Job,
    runner: &RunnerConfig,
    place: &Place,
    strategy: Strategy,
    shared_builds: bool,
    directories: &Directories,
    variables: &Expanded,
    settings: &Settings,
    flags: &Flags,
) -> Result<Option<Box<Sources>>, PlanError> {
    let with_sources = matches!(strategy, Strategy::Fetch | Strategy::Clone);
    // Without sources the helper is there for git's configuration, and to empty a directory that
    // other jobs have used.
    let tokens_in_environment_only = flags.on("FF_GIT_URLS_WITHOUT_TOKENS");
    let used = strategy == Strategy::Empty && shared_builds;
    if !with_sources && !tokens_in_environment_only && !used {
        return Ok(None);
    }
    if with_sources && let Some(wrong) = &settings.wrong_submodule_strategy {
        return Err(PlanError::Setting {
            variable: "GIT_SUBMODULE_STRATEGY".to_owned(),
            value: wrong.clone(),
            expected: "none, normal or recursive",
        });
    }
    let git = &job.payload.git_info;
    let (url, server) = match &runner.local_bundle {
        Some(_) => (format!("{}/{BUNDLE}", directories.temp), None),
        None => match remote(job, runner, variables) {
            Err(_) if !with_sources => (String::new(), None),
            remote => remote?,
        },
    };
    let exports = script::exports(&directories.temp, variables);
    Ok(Some(Box::new(Sources {
        project_dir: directories.project.clone(),
        temp_dir: directories.temp.clone(),
        strategy,
        url,
        server,
        token: job.token.clone(),
        reference: git.reference.clone(),
        sha: git.sha.clone(),
        object_format: if git.repo_object_format.is_empty() {
            "sha1".to_owned()
        } else {
            git.repo_object_format.clone()
        },
        refspecs: git.refspecs.clone(),
        depth: git.depth,
        checkout: settings.checkout,
        clean_flags: settings.clean_flags.clone(),
        fetch_flags: settings.fetch_flags.clone(),
        clone_flags: settings.clone_flags.clone(),
        native_clone: flags.on("FF_USE_GIT_NATIVE_CLONE"),
        submodules: settings.submodules.clone(),
        skip_lfs: settings.skip_lfs,
        safe_directory: runner.safe_directory_checkout,
        clean_config: runner.clean_git_config,
        tokens_in_environment_only,
        proactive_auth: flags.on("FF_USE_GIT_PROACTIVE_AUTH"),
        user_agent: format!("longshore {} linux/{}", env!("CARGO_PKG_VERSION"), place.architecture),
        correlation_id: place
            .correlation_id
            .clone()
            .filter(|_| flags.on("FF_USE_GITALY_CORRELATION_ID")),
        bundle_uri: flags.on("FF_USE_GIT_BUNDLE_URIS"),
        ca: place.server_ca.clone(),
        client_certificate: place.client_certificate.clone(),
        pre_script: hooks(
            job,
            "pre_get_sources_script",
            runner.scripts.pre_get_sources.as_deref(),
            true,
            &exports,
        ),
        post_script: hooks(
            job,
            "post_get_sources_script",
            runner.scripts.post_get_sources.as_deref(),
            false,
            &exports,
        ),
        env: variables.iter().map(|v| (v.key.clone(), Secret::new(v.value.clone()))).collect(),
        retry: false,
    })))
}

/// The remote without credentials, and its server.
fn remote(
    job: &Job,
    runner: &RunnerConfig,
    variables: &Expanded,
) -> Result<(String, Option<String>), PlanError> {
    let text = match &runner.clone_url {
        Some(base) => {
            let path = variables
                .value("CI_PROJECT_PATH")
                .unwrap_or(&job.payload.job_info.project_full_path);
            format!("{}/{path}.git", base.trim_end_matches('/'))
        }
        None => job.payload.git_info.repo_url.expose().to_owned(),
    };
    let mut url = Url::parse(&text).map_err(|_| PlanError::Setting {
        variable: "git_info.repo_url".to_owned(),
        value: "(not shown: it may hold a token)".to_owned(),
        expected: "a URL",
    })?;
    // A host path would let a server read files of the build host.
    if !matches!(url.scheme(), "http" | "https" | "ssh") {
        return Err(PlanError::Setting {
            variable: "git_info.repo_url".to_owned(),
            value: format!("{}:…", url.scheme()),
            expected: "a URL of http, https or ssh",
        });
    }
    let is_ssh = url.scheme() == "ssh";
    let cleared = url.set_username(if is_ssh { "git" } else { "" }).and(url.set_password(None));
    debug_assert!(cleared.is_ok(), "http, https and ssh URLs have a host");
    let server = (!is_ssh).then(|| {
        let host = url.host_str().unwrap_or_default();
        match url.port() {
            Some(port) => format!("{}://{host}:{port}", url.scheme()),
            None => format!("{}://{host}", url.scheme()),
        }
    });
    Ok((url.to_string(), server))
}

/// The runner's and the job's hooks as one script; the runner's stands outside.
fn hooks(
    job: &Job,
    name: &str,
    runners: Option<&str>,
    runners_first: bool,
    exports: &str,
) -> Option<String> {
    let mut commands: Vec<String> = job
        .payload
        .hooks
        .iter()
        .filter(|hook| hook.name == name)
        .flat_map(|hook| hook.script.clone())
        .collect();
    if let Some(text) = runners {
        commands.insert(if runners_first { 0 } else { commands.len() }, text.to_owned());
    }
    (!commands.is_empty()).then(|| script::hook(exports, &commands))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(payload: &serde_json::Value) -> Job {
        let mut whole = json!({"id": 1, "token": "t"});
        whole.as_object_mut().unwrap().extend(payload.as_object().unwrap().clone());
        Job::try_from(
            serde_json::from_value::<crate::gitlab::api::wire::JobPayload>(whole).unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn a_project_has_the_path_of_its_repository() {
        let path = |url: &str| {
            project_path(&job(
                &json!({"git_info": {"repo_url": url}, "job_info": {"project_id": 7}}),
            ))
        };
        assert_eq!(path("https://u:p@h/group/demo.git"), "group/demo");
        assert_eq!(path("https://h/a/b/c.git"), "a/b/c");
        assert_eq!(path("https://h/"), "project-7");
        assert_eq!(path(""), "project-7");
    }

    #[test]
    fn the_strategy_is_the_variables_or_the_servers() {
        assert_eq!(strategy(None, true).unwrap(), Strategy::Fetch);
        assert_eq!(strategy(None, false).unwrap(), Strategy::Clone);
        assert_eq!(strategy(Some("none"), true).unwrap(), Strategy::None);
        let error = strategy(Some("pull"), true).unwrap_err().to_string();
        assert_eq!(error, "GIT_STRATEGY is `pull`; it must be fetch, clone, none or empty");
    }
}

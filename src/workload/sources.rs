//! How the sources are fetched.

use url::Url;

use crate::{base::secret::Secret, config::RunnerConfig};

use super::{
    directories::Directories,
    environment::written,
    flags::Flags,
    placement::Placement,
    script,
    settings::{SettingError, Settings},
    spec::JobSpec,
    transfer::{Sources, Strategy},
    variable::Expanded,
};

/// Where the helper finds the bundle of a job that has one, below the temporary directory.
pub const BUNDLE: &str = "sources.bundle";

/// Whether a job begins with the work tree that an earlier one left. It is asked before the job has
/// a slot, so a strategy that is written with other variables is not known yet.
#[must_use]
pub fn reuses_tree(job: &JobSpec, runner: &RunnerConfig) -> bool {
    let asked = written(job, runner, "GIT_STRATEGY").filter(|value| !value.is_empty());
    strategy(asked, job.source.allow_fetch).is_ok_and(|strategy| strategy == Strategy::Fetch)
}

/// The git strategy: `GIT_STRATEGY`, else what the server allows.
pub(super) fn strategy(asked: Option<&str>, allow_fetch: bool) -> Result<Strategy, SettingError> {
    match asked {
        None => Ok(if allow_fetch { Strategy::Fetch } else { Strategy::Clone }),
        Some("fetch") => Ok(Strategy::Fetch),
        Some("clone") => Ok(Strategy::Clone),
        Some("none") => Ok(Strategy::None),
        Some("empty") => Ok(Strategy::Empty),
        Some(other) => Err(SettingError {
            name: "GIT_STRATEGY",
            value: other.to_owned(),
            expected: "fetch, clone, none or empty",
        }),
    }
}

/// What the helper's task is made of.
pub(super) struct Request<'a> {
    pub(super) job: &'a JobSpec,
    pub(super) runner: &'a RunnerConfig,
    pub(super) placement: &'a Placement,
    pub(super) strategy: Strategy,
    /// Whether the builds directory is one for all jobs on the machine.
    pub(super) shared_builds: bool,
    pub(super) directories: &'a Directories,
    pub(super) variables: &'a Expanded,
    pub(super) settings: &'a Settings,
    pub(super) flags: &'a Flags,
}

/// The helper's task; `None` when there is nothing for it to do.
pub(super) fn plan(request: &Request<'_>) -> Result<Option<Box<Sources>>, SettingError> {
    if !request.is_needed() {
        return Ok(None);
    }
    if request.fetches()
        && let Some(wrong) = &request.settings.wrong_submodule_strategy
    {
        return Err(SettingError {
            name: "GIT_SUBMODULE_STRATEGY",
            value: wrong.clone(),
            expected: "none, normal or recursive",
        });
    }
    Ok(Some(Box::new(request.task(request.remote()?))))
}

/// Where git fetches from.
#[derive(Default)]
struct Remote {
    /// Without credentials; it may be a bundle's path.
    url: String,
    /// `scheme://host[:port]`, for credentials and CA; `None` for a bundle and for SSH.
    server: Option<String>,
}

impl Request<'_> {
    fn fetches(&self) -> bool {
        matches!(self.strategy, Strategy::Fetch | Strategy::Clone)
    }

    /// Without sources the helper is there for git's configuration, and to empty a directory that
    /// other jobs have used.
    fn is_needed(&self) -> bool {
        self.fetches()
            || self.flags.on("FF_GIT_URLS_WITHOUT_TOKENS")
            || self.strategy == Strategy::Empty && self.shared_builds
    }

    fn task(&self, remote: Remote) -> Sources {
        let Self { job, runner, placement, directories, variables, settings, flags, .. } = self;
        let exports = script::exports(&directories.temp, variables);
        let (before, after) = (&runner.scripts.pre_get_sources, &runner.scripts.post_get_sources);
        let (own_before, own_after) = (&job.scripts.before_sources, &job.scripts.after_sources);
        // The runner's hooks stand outside the job's.
        let before: Vec<&str> = before.iter().chain(own_before).map(String::as_str).collect();
        let after: Vec<&str> = own_after.iter().chain(after).map(String::as_str).collect();
        Sources {
            project_dir: directories.project.clone(),
            temp_dir: directories.temp.clone(),
            strategy: self.strategy,
            url: remote.url,
            server: remote.server,
            token: job.token.clone(),
            reference: job.source.reference.clone(),
            sha: job.source.sha.clone(),
            object_format: job.source.object_format,
            refspecs: job.source.refspecs.clone(),
            depth: job.source.depth,
            checkout: settings.checkout,
            clean_flags: settings.clean_flags.clone(),
            fetch_flags: settings.fetch_flags.clone(),
            clone_flags: settings.clone_flags.clone(),
            native_clone: flags.on("FF_USE_GIT_NATIVE_CLONE"),
            submodules: settings.submodules.clone(),
            skip_lfs: settings.skip_lfs,
            safe_directory: runner.sources.safe_directory_checkout,
            clean_config: runner.sources.clean_git_config,
            tokens_in_environment_only: flags.on("FF_GIT_URLS_WITHOUT_TOKENS"),
            proactive_auth: flags.on("FF_USE_GIT_PROACTIVE_AUTH"),
            user_agent: user_agent(&placement.architecture),
            correlation_id: placement
                .correlation_id
                .clone()
                .filter(|_| flags.on("FF_USE_GITALY_CORRELATION_ID")),
            bundle_uri: flags.on("FF_USE_GIT_BUNDLE_URIS"),
            ca: placement.server_ca.clone(),
            client_certificate: placement.client_certificate.clone(),
            pre_script: hooks(&before, &exports),
            post_script: hooks(&after, &exports),
            env: variables.iter().map(|v| (v.key.clone(), Secret::new(v.value.clone()))).collect(),
            retry: false,
        }
    }

    fn remote(&self) -> Result<Remote, SettingError> {
        if self.job.source.bundle.is_some() {
            let url = format!("{}/{BUNDLE}", self.directories.temp);
            return Ok(Remote { url, server: None });
        }
        match self.server_remote() {
            Err(_) if !self.fetches() => Ok(Remote::default()),
            remote => remote,
        }
    }

    fn server_remote(&self) -> Result<Remote, SettingError> {
        let refuse =
            |value: String, expected| SettingError { name: "git_info.repo_url", value, expected };
        let text = match &self.runner.gitlab.clone_url {
            Some(base) => {
                let path = self.variables.value("CI_PROJECT_PATH");
                let path = path.unwrap_or(&self.job.project.full_path);
                format!("{}/{path}.git", base.trim_end_matches('/'))
            }
            None => self.job.source.repo_url.expose().to_owned(),
        };
        let mut url = Url::parse(&text)
            .map_err(|_| refuse("(not shown: it may hold a token)".to_owned(), "a URL"))?;
        // A host path would let a server read files of the build host.
        if !matches!(url.scheme(), "http" | "https" | "ssh") {
            return Err(refuse(format!("{}:…", url.scheme()), "a URL of http, https or ssh"));
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
        Ok(Remote { url: url.to_string(), server })
    }
}

fn user_agent(architecture: &str) -> String {
    format!("longshore {} linux/{architecture}", env!("CARGO_PKG_VERSION"))
}

fn hooks(commands: &[&str], exports: &str) -> Option<String> {
    (!commands.is_empty()).then(|| script::hook(exports, commands))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strategy_is_the_variables_or_the_servers() {
        assert_eq!(strategy(None, true).unwrap(), Strategy::Fetch);
        assert_eq!(strategy(None, false).unwrap(), Strategy::Clone);
        assert_eq!(strategy(Some("none"), true).unwrap(), Strategy::None);
        let error = strategy(Some("pull"), true).unwrap_err().to_string();
        assert_eq!(error, "GIT_STRATEGY is `pull`; it must be fetch, clone, none or empty");
    }
}

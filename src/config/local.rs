//! The settings of the runner of `longshore exec`, which are in no file.

use std::{collections::BTreeMap, time::Duration};

use super::{
    cache::CacheConfig,
    containers::{ContainerConfig, ImagePolicy, PrivilegePolicy, PullPolicy, VolumeConfig},
    executor::{ExecutorConfig, docker::DockerConfig},
    gitlab::{ArtifactConfig, GitLabConfig, TlsFiles},
    runner::{OperatorScripts, RunnerConfig, SourcesConfig, StageTimeouts},
};
use crate::base::{ids::RunnerName, paths::ContainerPath, secret::Secret};

/// What can be chosen of it.
#[derive(Debug, Clone)]
pub struct LocalRunner {
    /// Names of volumes, and so caches, are made of its first characters.
    pub token: Secret,
    /// Image of jobs that name none.
    pub image: String,
    /// When images are pulled, unless the job says otherwise.
    pub pull_policy: PullPolicy,
    /// As in `volumes` of `[runners.docker]`; each can be parsed as a
    /// [`Volume`](super::volume::Volume).
    pub volumes: Vec<String>,
    /// Runs the jobs' containers privileged.
    pub privileged: bool,
}

impl RunnerConfig {
    /// The settings for jobs of this machine: what is not chosen is as in a file without that key.
    #[must_use]
    pub fn local(runner: LocalRunner) -> Self {
        let policies = [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never];
        Self {
            name: RunnerName::new("exec"),
            limit: 0,
            labels: BTreeMap::new(),
            gitlab: no_gitlab(runner.token),
            executor: ExecutorConfig::Docker(DockerConfig::default()),
            containers: ContainerConfig {
                images: ImagePolicy {
                    default: runner.image,
                    pull_policies: vec![runner.pull_policy],
                    allowed_pull_policies: Some(policies.to_vec()),
                    ..ImagePolicy::default()
                },
                privileges: PrivilegePolicy {
                    privileged: runner.privileged,
                    ..PrivilegePolicy::default()
                },
                volumes: VolumeConfig { entries: runner.volumes, ..VolumeConfig::default() },
                ..ContainerConfig::default()
            },
            builds_dir: ContainerPath::new("/builds"),
            cache_dir: ContainerPath::new("/cache"),
            environment: Vec::new(),
            scripts: OperatorScripts::default(),
            timeouts: StageTimeouts::default(),
            sources: SourcesConfig {
                safe_directory_checkout: true,
                clean_git_config: true,
                custom_build_dir: true,
            },
            // The terminal has no limit, but the disk has.
            output_limit: 1 << 30,
            debug_trace_disabled: false,
            feature_flags: BTreeMap::from([("FF_NETWORK_PER_BUILD".to_owned(), true)]),
            cache: CacheConfig::default(),
        }
    }
}

/// The settings of a runner without a server, but for its token.
fn no_gitlab(token: Secret) -> GitLabConfig {
    GitLabConfig {
        url: String::new(),
        clone_url: None,
        id: 0,
        token,
        token_obtained_at: None,
        token_expires_at: None,
        tls: TlsFiles::default(),
        request_concurrency: 1,
        strict_check_interval: false,
        unhealthy_requests_limit: 3,
        unhealthy_interval: Duration::from_hours(1),
        final_update_retry_limit: 10,
        artifact: ArtifactConfig {
            upload_timeout: Duration::from_hours(1),
            response_header_timeout: Duration::from_mins(10),
        },
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check;

    #[test]
    fn what_is_not_chosen_is_as_in_a_file_without_that_key() {
        let text = "[[runners]]\nname = \"exec\"\nurl = \"https://h\"\ntoken = \"exec12345\"\n\
            executor = \"docker\"\noutput_limit = 1048576\n[runners.feature_flags]\n\
            FF_NETWORK_PER_BUILD = true\n[runners.docker]\nimage = \"i\"\npull_policy = \"never\"\n\
            allowed_pull_policies = [\"always\", \"if-not-present\", \"never\"]\n\
            privileged = true\nvolumes = [\"/mine:/mine\", \"/cache\"]\n";
        let checked = check::check(text, "config.toml".as_ref(), &|_| None).unwrap();
        let mut of_file = RunnerConfig::clone(&checked.config.runners[0]);
        of_file.gitlab.url.clear();
        let local = RunnerConfig::local(LocalRunner {
            token: Secret::new("exec12345"),
            image: "i".to_owned(),
            pull_policy: PullPolicy::Never,
            volumes: vec!["/mine:/mine".to_owned(), "/cache".to_owned()],
            privileged: true,
        });
        assert_eq!(local, of_file);
        assert_eq!(local.short_token().as_str(), "exec12345");
    }
}

//! Directories in the job's containers.

use url::Url;

use crate::config::RunnerConfig;

use super::{placement::Placement, spec::JobSpec};

/// Directories in the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// `CI_BUILDS_DIR`.
    pub builds: String,
    /// `CI_PROJECT_DIR`.
    pub project: String,
    /// `RUNNER_TEMP_PROJECT_DIR`.
    pub temp: String,
    /// Root of local caches.
    pub cache: String,
    /// Directory of the project's caches below it.
    pub project_cache: String,
}

/// Why `GIT_CLONE_PATH` cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClonePathError {
    /// The runner does not let jobs choose.
    #[error(
        "GIT_CLONE_PATH `{path}` may not be used: the runner sets [runners.custom_build_dir] \
         enabled = false"
    )]
    Forbidden {
        /// The path that the job asks for.
        path: String,
    },
    /// The path leads out of the builds directory.
    #[error("GIT_CLONE_PATH `{path}` is not inside CI_BUILDS_DIR, {builds}")]
    Outside {
        /// The path that the job asks for.
        path: String,
        /// The builds directory.
        builds: String,
    },
}

impl Directories {
    /// The usual ones (docs/compatibility.md, "Build and cache directories"). `shared_builds` when
    /// the builds directory is one for all jobs on the machine.
    pub(super) fn new(
        job: &JobSpec,
        runner: &RunnerConfig,
        placement: &Placement,
        shared_builds: bool,
    ) -> Self {
        let builds = runner.builds_dir.as_str().trim_end_matches('/').to_owned();
        let path = project_path(job);
        let project = if shared_builds {
            format!("{builds}/{}/{}/{path}", runner.short_token(), placement.project_slot)
        } else {
            format!("{builds}/{path}")
        };
        let cache = runner.cache_dir.as_str().trim_end_matches('/').to_owned();
        Self {
            temp: temp_of(&project),
            project_cache: format!("{cache}/{path}"),
            builds,
            project,
            cache,
        }
    }

    /// With another directory for the project.
    pub(super) fn with_project(self, project: String) -> Self {
        Self { temp: temp_of(&project), project, ..self }
    }

    /// `GIT_CLONE_PATH` without `.` and `..`. It must be in the builds directory, and the runner
    /// must allow it.
    pub(super) fn clone_path(
        &self,
        path: &str,
        runner: &RunnerConfig,
    ) -> Result<String, ClonePathError> {
        if !runner.sources.custom_build_dir {
            return Err(ClonePathError::Forbidden { path: path.to_owned() });
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
        let inside = clean.strip_prefix(&self.builds).is_some_and(|rest| rest.starts_with('/'));
        if path.starts_with('/') && inside {
            return Ok(clean);
        }
        Err(ClonePathError::Outside { path: path.to_owned(), builds: self.builds.clone() })
    }
}

fn temp_of(project: &str) -> String {
    format!("{project}.tmp")
}

/// `<namespace>/<project>` out of the repository's address, or `project-<id>`.
fn project_path(job: &JobSpec) -> String {
    Url::parse(job.source.repo_url.expose())
        .ok()
        .map(|url| url.path().trim_matches('/').trim_end_matches(".git").to_owned())
        .filter(|path| {
            !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
        })
        .or_else(|| Some(job.project.full_path.clone()).filter(|path| !path.is_empty()))
        .unwrap_or_else(|| format!("project-{}", job.project.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{
        ids::{JobId, ProjectId},
        secret::Secret,
    };

    #[test]
    fn a_project_has_the_path_of_its_repository() {
        let path = |url: &str| {
            let mut job = JobSpec::unknown(JobId(1), Secret::new("t"));
            job.source.repo_url = Secret::new(url);
            job.project.id = ProjectId(7);
            project_path(&job)
        };
        assert_eq!(path("https://u:p@h/group/demo.git"), "group/demo");
        assert_eq!(path("https://h/a/b/c.git"), "a/b/c");
        assert_eq!(path("https://h/"), "project-7");
        assert_eq!(path(""), "project-7");
    }
}

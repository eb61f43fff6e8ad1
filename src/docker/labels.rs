//! Names of the labels on everything that longshore makes in an engine, and the set of a job.

use std::{collections::HashMap, time::Duration};

use crate::ids::{JobId, ShortToken};

/// Prefix of the labels that gitlab-runner sets too, so that its tools find our things.
pub const PREFIX: &str = "com.gitlab.gitlab-runner";

/// `true` on everything that belongs to a job.
pub const MANAGED: &str = "com.gitlab.gitlab-runner.managed";
/// What the thing is: a [`Kind`].
pub const TYPE: &str = "com.gitlab.gitlab-runner.type";
/// The job's number.
pub const JOB_ID: &str = "com.gitlab.gitlab-runner.job.id";
/// Image of a service, without its version.
pub const SERVICE: &str = "com.gitlab.gitlab-runner.service";
/// Version of a service's image.
pub const SERVICE_VERSION: &str = "com.gitlab.gitlab-runner.service.version";
/// Where a volume is mounted.
pub const DESTINATION: &str = "com.gitlab.gitlab-runner.destination";
/// Whether a volume belongs to protected refs.
pub const PROTECTED: &str = "com.gitlab.gitlab-runner.protected";
/// Whether a volume is kept for later jobs.
pub const REUSABLE: &str = "com.gitlab.gitlab-runner.reusable";

/// The installation that made the thing. The sweep at start removes only what carries its own.
pub const INSTANCE: &str = "longshore.instance";
/// `true` on helper images that longshore composed.
pub const HELPER: &str = "longshore.helper";

/// What a labelled thing is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The job's own container.
    Build,
    /// The helper container.
    Helper,
    /// A service.
    Service,
    /// Waits for a service.
    Wait,
    /// A cache volume.
    Cache,
    /// Prepares a cache volume.
    CacheInit,
    /// The job's network.
    Network,
}

impl Kind {
    /// The label's value. gitlab-runner leaves it out on networks.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Helper => "predefined",
            Self::Service => "service",
            Self::Wait => "wait",
            Self::Cache => "cache",
            Self::CacheInit => "cache-init",
            Self::Network => "network",
        }
    }
}

/// What is said of a job on everything that is made for it.
#[derive(Debug, Clone)]
pub struct JobLabels {
    /// Of the installation.
    pub instance: String,
    /// The job.
    pub job: JobId,
    /// Its page.
    pub url: String,
    /// Commit.
    pub sha: String,
    /// Commit before it.
    pub before_sha: String,
    /// Branch or tag.
    pub reference: String,
    /// Of the job.
    pub timeout: Duration,
    /// Project.
    pub project_id: i64,
    /// The job's slot among those of the runner and the project.
    pub project_runner_id: usize,
    /// Pipeline.
    pub pipeline_id: i64,
    /// Runner.
    pub runner: ShortToken,
    /// The job's slot among those of the runner.
    pub runner_slot: usize,
    /// This machine's id at the server.
    pub system_id: String,
}

impl JobLabels {
    /// The labels of a `kind` of thing.
    #[must_use]
    pub fn of(&self, kind: Kind) -> HashMap<String, String> {
        let ours = [
            ("job.id", self.job.to_string()),
            ("job.url", self.url.clone()),
            ("job.sha", self.sha.clone()),
            ("job.before_sha", self.before_sha.clone()),
            ("job.ref", self.reference.clone()),
            ("job.timeout", go_duration(self.timeout)),
            ("project.id", self.project_id.to_string()),
            ("project.runner_id", self.project_runner_id.to_string()),
            ("pipeline.id", self.pipeline_id.to_string()),
            ("runner.id", self.runner.to_string()),
            ("runner.local_id", self.runner_slot.to_string()),
            ("runner.system_id", self.system_id.clone()),
            ("managed", "true".to_owned()),
            ("type", kind.as_str().to_owned()),
        ];
        ours.into_iter()
            .map(|(suffix, value)| (format!("{PREFIX}.{suffix}"), value))
            .chain([(INSTANCE.to_owned(), self.instance.clone())])
            .collect()
    }
}

/// Whole seconds as Go prints a `time.Duration`: `1h0m0s`, `5m30s`, `45s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_27_everything_of_a_job_carries_the_whole_set() {
        let labels = JobLabels {
            instance: "a1".into(),
            job: JobId(7),
            url: "https://gitlab.example.com/g/p/-/jobs/7".into(),
            sha: "abc".into(),
            before_sha: "abb".into(),
            reference: "main".into(),
            timeout: Duration::from_hours(1),
            project_id: 3,
            project_runner_id: 1,
            pipeline_id: 5,
            runner: ShortToken::of("glrt-abcdefghijk"),
            runner_slot: 2,
            system_id: "s_1".into(),
        }
        .of(Kind::Helper);
        let mut lines: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "com.gitlab.gitlab-runner.job.before_sha=abb",
                "com.gitlab.gitlab-runner.job.id=7",
                "com.gitlab.gitlab-runner.job.ref=main",
                "com.gitlab.gitlab-runner.job.sha=abc",
                "com.gitlab.gitlab-runner.job.timeout=1h0m0s",
                "com.gitlab.gitlab-runner.job.url=https://gitlab.example.com/g/p/-/jobs/7",
                "com.gitlab.gitlab-runner.managed=true",
                "com.gitlab.gitlab-runner.pipeline.id=5",
                "com.gitlab.gitlab-runner.project.id=3",
                "com.gitlab.gitlab-runner.project.runner_id=1",
                "com.gitlab.gitlab-runner.runner.id=abcdefghi",
                "com.gitlab.gitlab-runner.runner.local_id=2",
                "com.gitlab.gitlab-runner.runner.system_id=s_1",
                "com.gitlab.gitlab-runner.type=predefined",
                "longshore.instance=a1",
            ]
        );
    }

    #[test]
    fn timeouts_are_written_as_go_writes_them() {
        let text = |s| go_duration(Duration::from_secs(s));
        assert_eq!([text(0), text(59), text(330), text(7200)], ["0s", "59s", "5m30s", "2h0m0s"]);
    }
}

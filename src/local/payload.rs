//! A job of the plan as the server hands it out.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    pipeline::{self, CacheKey, Job, Pipeline},
    project::{Project, public, slug},
};
use crate::{
    base::{
        glob::{self, Wildcards},
        ids::{JobId, ProjectId, hex},
        secret::Secret,
    },
    gitlab::api::wire::{
        ArtifactsFile, Dependency, GitInfo, JobInfo, JobPayload, RunnerInfo, ServerFeatures, Step,
        Variable,
    },
};

/// GitLab's default for a project.
const DEFAULT_TIMEOUT_SECONDS: i64 = 3600;

/// The reasons a server of today accepts (GitLab: `Enums::Ci::CommitStatus.failure_reasons`).
const FAILURE_REASONS: &[&str] = &[
    "unknown_failure",
    "script_failure",
    "api_failure",
    "stuck_or_timeout_failure",
    "runner_system_failure",
    "missing_dependency_failure",
    "runner_unsupported",
    "job_execution_timeout",
    "unmet_prerequisites",
    "data_integrity_failure",
    "image_pull_failure",
    "runner_configuration_error",
    "runner_external_dependency_failure",
    "runner_interrupted",
    "job_canceled",
];

/// All that is decided before the first job runs.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The project.
    pub(crate) project: Project,
    /// Its pipeline.
    pub(crate) pipeline: Pipeline,
    /// Which jobs run.
    pub(crate) chosen: Vec<bool>,
    /// The commit that stands for the work tree.
    pub(crate) sha: String,
    /// The variables of all jobs.
    pub(crate) predefined: Vec<Variable>,
    /// Variables over all others.
    pub(crate) given: BTreeMap<String, String>,
    /// Keys of each job's caches.
    pub(crate) cache_keys: Vec<Vec<String>>,
}

/// What is known only when a job is handed out.
#[derive(Debug)]
pub(crate) struct Handed<'a> {
    /// Its token.
    pub(crate) token: &'a Secret,
    /// Artifacts for it: job and archive.
    pub(crate) artifacts: Vec<(usize, ArtifactsFile)>,
    /// Variables that jobs before it left.
    pub(crate) dotenv: Vec<(String, String)>,
    /// When, ISO 8601.
    pub(crate) now: String,
}

impl Plan {
    /// The job's number at the server.
    pub(crate) fn id(&self, job: usize) -> JobId {
        // A thousand numbers a second keep those of two runs apart, as containers carry them.
        JobId(self.project.pipeline_id * 1000 + i64::try_from(job).unwrap_or(i64::MAX) + 1)
    }

    /// The job with that number.
    pub(crate) fn index(&self, id: JobId) -> Option<usize> {
        (0..self.pipeline.jobs.len()).find(|&job| self.id(job) == id)
    }

    /// The body of a 201.
    pub(crate) fn payload(&self, index: usize, handed: &Handed<'_>) -> JobPayload {
        let job = &self.pipeline.jobs[index];
        let dependencies = handed
            .artifacts
            .iter()
            .map(|(source, file)| Dependency {
                id: self.id(*source),
                token: handed.token.clone(),
                name: self.pipeline.jobs[*source].name.clone(),
                artifacts_file: file.clone(),
            })
            .collect();
        let cache = job.work.cache.iter().zip(&self.cache_keys[index]).map(|(cache, key)| {
            let mut wire = cache.wire.clone();
            wire.key.clone_from(key);
            wire
        });
        let timeout = job.work.timeout.and_then(|timeout| i64::try_from(timeout.as_secs()).ok());
        JobPayload {
            id: self.id(index),
            token: handed.token.clone(),
            allow_git_fetch: true,
            job_info: self.job_info(job),
            git_info: self.git_info(),
            runner_info: RunnerInfo { timeout: timeout.unwrap_or(DEFAULT_TIMEOUT_SECONDS) },
            inputs: Vec::new(),
            variables: self.variables(index, handed),
            steps: steps(job),
            image: job.work.image.clone().unwrap_or_default(),
            services: job.work.services.clone(),
            artifacts: job.work.artifacts.clone(),
            cache: cache.collect(),
            credentials: Vec::new(),
            dependencies,
            features: ServerFeatures {
                trace_sections: true,
                token_mask_prefixes: Vec::new(),
                failure_reasons: FAILURE_REASONS.iter().map(|&r| r.to_owned()).collect(),
            },
            secrets: BTreeMap::new(),
            hooks: job.work.hooks.clone(),
            run: String::new(),
            policy_options: crate::gitlab::api::wire::PolicyOptions::default(),
        }
    }

    fn job_info(&self, job: &Job) -> JobInfo {
        JobInfo {
            name: job.name.clone(),
            stage: self.pipeline.stages[job.stage].clone(),
            pipeline_id: self.project.pipeline_id,
            project_id: ProjectId(self.project.id),
            project_name: self.project.name.clone(),
            project_full_path: self.project.path.clone(),
            time_in_queue_seconds: 0.0,
            project_jobs_running_on_instance_runners_count: "+Inf".to_owned(),
        }
    }

    fn git_info(&self) -> GitInfo {
        let facts = &self.project.facts;
        let reference = facts.reference();
        GitInfo {
            repo_url: Secret::new(format!("{}/{}.git", self.project.server, self.project.path)),
            repo_object_format: facts.object_format.clone(),
            reference: reference.to_owned(),
            sha: self.sha.clone(),
            before_sha: "0".repeat(self.sha.len()),
            ref_type: if facts.tag.is_some() { "tag" } else { "branch" }.to_owned(),
            refspecs: vec![format!("+refs/heads/{reference}:refs/remotes/origin/{reference}")],
            depth: 0,
            protected: Some(false),
        }
    }

    /// Predefined ones, those of the file and the job, of jobs before it, given ones: later ones
    /// win. All are expanded as far as they are known here, as the runner expands only once.
    fn variables(&self, index: usize, handed: &Handed<'_>) -> Vec<Variable> {
        let job = &self.pipeline.jobs[index];
        let mut out = self.predefined.clone();
        out.extend(self.job_variables(index, handed));
        out.extend(job.work.variables.iter().cloned());
        let raw = |(key, value): (&String, &String)| Variable { raw: true, ..public(key, value) };
        out.extend(handed.dotenv.iter().map(|(key, value)| raw((key, value))));
        out.extend(self.given.iter().map(raw));
        // Headers of lines would only be taken off again.
        out.push(public("FF_TIMESTAMPS", "false"));
        let values: BTreeMap<String, String> =
            out.iter().map(|v| (v.key.clone(), v.value.clone())).collect();
        let lookup = |name: &str| values.get(name).cloned();
        for variable in out.iter_mut().filter(|variable| !variable.raw) {
            let own = |name: &str| lookup(name).filter(|_| name != variable.key);
            variable.value = pipeline::expand_known(&variable.value, &own);
        }
        out
    }

    fn job_variables(&self, index: usize, handed: &Handed<'_>) -> Vec<Variable> {
        let job = &self.pipeline.jobs[index];
        let id = self.id(index).to_string();
        let url = format!("{}/{}/-/jobs/{id}", self.project.server, self.project.path);
        let secret = |key: &str| Variable {
            public: false,
            masked: true,
            raw: true,
            ..public(key, handed.token.expose())
        };
        let mut out = vec![
            public("CI_JOB_ID", &id),
            public("CI_JOB_URL", &url),
            secret("CI_JOB_TOKEN"),
            public("CI_JOB_NAME", &job.name),
            public("CI_JOB_NAME_SLUG", &slug(&job.name)),
            public("CI_JOB_STAGE", &self.pipeline.stages[job.stage]),
            public("CI_JOB_STARTED_AT", &handed.now),
            public("CI_REPOSITORY_URL", self.git_info().repo_url.expose()),
            public("CI_NODE_TOTAL", &job.node.map_or(1, |(_, total)| total).to_string()),
        ];
        if let Some((index, _)) = job.node {
            out.push(public("CI_NODE_INDEX", &index.to_string()));
        }
        if job.when == pipeline::When::Manual {
            out.push(public("CI_JOB_MANUAL", "true"));
        }
        if let Some((name, url)) = &job.work.environment {
            out.push(public("CI_ENVIRONMENT_NAME", name));
            out.push(public("CI_ENVIRONMENT_SLUG", &slug(name)));
            out.extend(url.iter().map(|url| public("CI_ENVIRONMENT_URL", url)));
        }
        out
    }
}

fn steps(job: &Job) -> Vec<Step> {
    let mut out = vec![Step { name: "script".to_owned(), script: job.work.script.clone() }];
    if !job.work.after_script.is_empty() {
        let script = job.work.after_script.clone();
        out.push(Step { name: "after_script".to_owned(), script });
    }
    out
}

/// The keys of every job's caches; files in them are read here.
pub(crate) fn cache_keys(root: &Path, pipeline: &Pipeline) -> Vec<Vec<String>> {
    let key = |cache: &pipeline::Cache| match &cache.key {
        CacheKey::Text(text) => text.clone(),
        CacheKey::Files { files, prefix } => {
            let digest = files_digest(root, files).unwrap_or_else(|| "default".to_owned());
            prefix.as_ref().map_or(digest.clone(), |prefix| format!("{prefix}-{digest}"))
        }
    };
    pipeline.jobs.iter().map(|job| job.work.cache.iter().map(key).collect()).collect()
}

/// A hash of the names and contents of the files that match; `None` if there are none.
fn files_digest(root: &Path, globs: &[String]) -> Option<String> {
    let mut files = BTreeSet::new();
    for glob in globs {
        matching(root, glob.trim_start_matches("./"), &mut files);
    }
    let mut digest = Sha256::new();
    let mut any = false;
    for name in files {
        if let Ok(content) = std::fs::read(root.join(&name)) {
            any = true;
            digest.update(name.as_os_str().as_encoded_bytes());
            digest.update((content.len() as u64).to_be_bytes());
            digest.update(content);
        }
    }
    any.then(|| hex(&digest.finalize()[..20]))
}

/// Adds the files that match a glob; only a real one needs to look at all files.
fn matching(root: &Path, glob: &str, files: &mut BTreeSet<PathBuf>) {
    if !glob.contains(['*', '?', '[', '{']) {
        files.insert(PathBuf::from(glob));
        return;
    }
    let Ok(glob) = glob::compile(glob, Wildcards::WithinComponent) else { return };
    let walk = walkdir::WalkDir::new(root);
    for entry in walk.into_iter().filter_entry(|e| e.file_name() != ".git").flatten() {
        let Ok(name) = entry.path().strip_prefix(root) else { continue };
        if entry.file_type().is_file() && glob.is_match(name) {
            files.insert(name.to_owned());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{super::worktree::Facts, *};
    use crate::local::pipeline::testing;

    /// A plan that runs every job.
    pub(crate) fn plan(yaml: &str, given: &[(&str, &str)]) -> Plan {
        let pipeline = testing::read(yaml, given).unwrap();
        let facts = Facts {
            root: "/home/ann/demo".into(),
            branch: Some("main".into()),
            object_format: "sha1".into(),
            ..Facts::default()
        };
        let project = Project::new(facts, jiff::Timestamp::from_second(1_800_000_000).unwrap());
        let sha = "a".repeat(40);
        Plan {
            predefined: project.variables(&sha, ".gitlab-ci.yml"),
            chosen: vec![true; pipeline.jobs.len()],
            cache_keys: cache_keys(Path::new("/nonexistent"), &pipeline),
            given: given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            project,
            pipeline,
            sha,
        }
    }

    fn handed(token: &Secret) -> Handed<'_> {
        Handed { token, artifacts: Vec::new(), dotenv: Vec::new(), now: "now".to_owned() }
    }

    fn value(payload: &JobPayload, key: &str) -> Option<String> {
        payload.variables.iter().rev().find(|v| v.key == key).map(|v| v.value.clone())
    }

    #[test]
    fn a_payload_has_all_that_the_job_says() {
        let plan = plan(
            "build: {stage: build, script: x}\n\
             test:\n  image: {name: 'rust:$V', entrypoint: ['']}\n  services: [redis]\n  script: [a, b]\n\
             \x20 after_script: [c]\n  timeout: 10m\n  parallel: 2\n  environment: {name: Stage/1, url: http://s}\n\
             \x20 cache: {key: k-$CI_COMMIT_REF_SLUG, paths: [p]}\n  artifacts: {paths: [o]}\n",
            &[],
        );
        let token = Secret::new("glcbt-token");
        let file = ArtifactsFile { filename: "artifacts.zip".into(), size: 3 };
        let handed = Handed { artifacts: vec![(0, file)], ..handed(&token) };
        let payload = plan.payload(2, &handed);
        assert_eq!(payload.id, JobId(1_800_000_000_003));
        assert_eq!(plan.index(payload.id), Some(2));
        assert_eq!(
            (payload.job_info.name.as_str(), payload.job_info.stage.as_str()),
            ("test 2/2", "test")
        );
        assert_eq!(payload.git_info.refspecs, ["+refs/heads/main:refs/remotes/origin/main"]);
        assert_eq!((payload.git_info.depth, payload.runner_info.timeout), (0, 600));
        let steps: Vec<_> =
            payload.steps.iter().map(|s| (s.name.as_str(), s.script.len())).collect();
        assert_eq!(steps, [("script", 2), ("after_script", 1)]);
        assert_eq!(payload.image.name, "rust:$V");
        assert_eq!(payload.cache[0].key, "k-$CI_COMMIT_REF_SLUG");
        assert_eq!(payload.dependencies[0].id, JobId(1_800_000_000_001));
        assert_eq!(payload.dependencies[0].artifacts_file.filename, "artifacts.zip");
        for (key, expected) in [
            ("CI_NODE_INDEX", "2"),
            ("CI_NODE_TOTAL", "2"),
            ("CI_JOB_NAME_SLUG", "test-2-2"),
            ("CI_ENVIRONMENT_SLUG", "stage-1"),
            ("CI_JOB_TOKEN", "glcbt-token"),
            ("FF_TIMESTAMPS", "false"),
        ] {
            assert_eq!(value(&payload, key).as_deref(), Some(expected), "{key}");
        }
        assert!(payload.features.trace_sections);
        let sent = serde_json::to_string(&payload).unwrap();
        let back: JobPayload = serde_json::from_str(&sent).unwrap();
        assert_eq!(back.variables, payload.variables);
    }

    #[test]
    fn later_variables_win_and_are_expanded_as_far_as_they_are_known() {
        let plan = plan(
            "variables: {A: file, DIR: $CI_PROJECT_DIR/$NAME, NAME: n-$CI_COMMIT_REF_NAME, G: file}\n\
             test: {script: x, variables: {A: job, D: job, PATH: '$PATH:/x', R: {value: $A, expand: false}}}\n",
            &[("G", "$given")],
        );
        let token = Secret::new("t");
        let dotenv = vec![("D".to_owned(), "dot".to_owned())];
        let payload = plan.payload(0, &Handed { dotenv, ..handed(&token) });
        for (key, expected) in [
            ("A", "job"),
            ("D", "dot"),
            ("G", "$given"),
            ("DIR", "$CI_PROJECT_DIR/n-main"),
            ("PATH", "$PATH:/x"),
            ("R", "$A"),
        ] {
            assert_eq!(value(&payload, key).as_deref(), Some(expected), "{key}");
        }
    }

    #[test]
    fn keys_of_caches_follow_the_contents_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let pipeline = testing::read(
            "a:\n  script: x\n  cache:\n    - {paths: [p], key: {files: ['*.lock'], prefix: v1}}\n\
             \x20   - {paths: [p], key: {files: [gone]}}\n",
            &[],
        )
        .unwrap();
        let keys = || cache_keys(dir.path(), &pipeline)[0].clone();
        assert_eq!(keys(), ["v1-default", "default"]);
        std::fs::write(dir.path().join("a.lock"), "1").unwrap();
        let first = keys();
        assert_eq!((first[0].len(), first.clone()), (43, keys()));
        std::fs::write(dir.path().join("a.lock"), "2").unwrap();
        assert_ne!(first[0], keys()[0]);
    }
}

//! The jobs of a pipeline as the runner takes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{
    pipeline::{self, Cache, CacheKey, Pipeline},
    project::{Project, public, slug},
};
use crate::{
    base::{
        glob::{self, Wildcards},
        ids::{JobId, hex, random_hex},
        secret::Secret,
    },
    workload::{
        JobSpec,
        spec::{
            self, CacheSpec, Dependency, GitSource, RefKind, ScriptSpec, StepSpec, TraceFeatures,
            Trust,
        },
        transfer::ObjectFormat,
        variable::Variable,
    },
};

/// GitLab's default for a project.
const DEFAULT_TIMEOUT: Duration = Duration::from_hours(1);

/// All that is decided before the first job runs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) project: Project,
    pub(crate) pipeline: Pipeline,
    /// The commit that stands for the work tree.
    pub(crate) sha: String,
    /// The git bundle that has that commit.
    pub(crate) bundle: PathBuf,
    /// The variables of all jobs.
    pub(crate) predefined: Vec<Variable>,
    /// Variables that override all others.
    pub(crate) given: BTreeMap<String, String>,
    /// Keys of each job's caches.
    pub(crate) cache_keys: Vec<Vec<String>>,
}

/// What is known only when a job starts.
#[derive(Debug)]
pub(crate) struct JobInputs {
    /// Jobs whose archives it gets.
    pub(crate) dependencies: Vec<usize>,
    /// Variables that jobs before it left.
    pub(crate) variables: Vec<(String, String)>,
    /// The time, ISO 8601.
    pub(crate) started_at: String,
}

impl Plan {
    /// The job's number: unlike that of any job of another run, as containers carry it.
    pub(crate) fn id(&self, job: usize) -> JobId {
        // The number of the run is its time in seconds.
        JobId(self.project.pipeline_id.0 * 1000 + i64::try_from(job).unwrap_or(i64::MAX) + 1)
    }

    /// The job, for the runner.
    pub(crate) fn spec(&self, index: usize, inputs: &JobInputs) -> JobSpec {
        let job = &self.pipeline.jobs[index];
        let id = self.id(index);
        let token = Secret::new(format!("glcbt-{}", random_hex::<20>()));
        let dependency = |&source: &usize| Dependency {
            id: self.id(source),
            token: token.clone(),
            name: self.pipeline.jobs[source].name.clone(),
        };
        JobSpec {
            name: job.name.clone(),
            page: self.page(id),
            pipeline: self.project.pipeline_id,
            project: spec::Project {
                id: self.project.id,
                name: self.project.name.clone(),
                full_path: self.project.path.clone(),
            },
            timeout: job.work.timeout.unwrap_or(DEFAULT_TIMEOUT),
            source: self.source(),
            image: job.work.image.clone().unwrap_or_default(),
            services: job.work.services.clone(),
            scripts: ScriptSpec {
                steps: vec![StepSpec {
                    name: "script".to_owned(),
                    script: job.work.script.clone(),
                }],
                after_script: job.work.after_script.clone(),
                before_sources: job.work.before_sources.clone(),
                after_sources: Vec::new(),
            },
            variables: self.variables(index, inputs, &token),
            caches: self.caches(index),
            artifacts: job.work.artifacts.clone(),
            dependencies: inputs.dependencies.iter().map(dependency).collect(),
            trace: TraceFeatures { sections: true, mask_prefixes: Vec::new() },
            ..JobSpec::unknown(id, token.clone())
        }
    }

    fn page(&self, id: JobId) -> String {
        format!("{}/{}/-/jobs/{id}", self.project.server, self.project.path)
    }

    fn caches(&self, index: usize) -> Vec<CacheSpec> {
        let caches = self.pipeline.jobs[index].work.cache.iter().zip(&self.cache_keys[index]);
        caches.map(|(cache, key)| CacheSpec { key: key.clone(), ..cache.spec.clone() }).collect()
    }

    fn repo_url(&self) -> String {
        format!("{}/{}.git", self.project.server, self.project.path)
    }

    fn source(&self) -> GitSource {
        let facts = &self.project.facts;
        let reference = facts.reference();
        GitSource {
            repo_url: Secret::new(self.repo_url()),
            bundle: Some(self.bundle.clone()),
            object_format: match facts.object_format.as_str() {
                "sha256" => ObjectFormat::Sha256,
                _ => ObjectFormat::Sha1,
            },
            reference: reference.to_owned(),
            ref_kind: if facts.tag.is_some() { RefKind::Tag } else { RefKind::Branch },
            sha: self.sha.clone(),
            before_sha: "0".repeat(self.sha.len()),
            refspecs: vec![format!("+refs/heads/{reference}:refs/remotes/origin/{reference}")],
            depth: 0,
            allow_fetch: true,
            protected: false,
            trust: Trust::Project,
            fork: None,
        }
    }

    /// Predefined ones, those of the file and the job, of jobs before it, given ones: later ones take
    /// precedence. All are expanded as far as they are known here, as the runner expands only once.
    fn variables(&self, index: usize, inputs: &JobInputs, token: &Secret) -> Vec<Variable> {
        let job = &self.pipeline.jobs[index];
        let mut out = self.predefined.clone();
        out.extend(self.job_variables(index, inputs, token));
        out.extend(job.work.variables.iter().cloned());
        let raw = |(key, value): (&String, &String)| Variable { raw: true, ..public(key, value) };
        out.extend(inputs.variables.iter().map(|(key, value)| raw((key, value))));
        out.extend(self.given.iter().map(raw));
        // The terminal would show lines without the time and the stream that they begin with.
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

    fn job_variables(&self, index: usize, inputs: &JobInputs, token: &Secret) -> Vec<Variable> {
        let job = &self.pipeline.jobs[index];
        let id = self.id(index);
        let secret = |key: &str| Variable {
            public: false,
            masked: true,
            raw: true,
            ..public(key, token.expose())
        };
        let mut out = vec![
            public("CI_JOB_ID", &id.to_string()),
            public("CI_JOB_URL", &self.page(id)),
            secret("CI_JOB_TOKEN"),
            public("CI_JOB_NAME", &job.name),
            public("CI_JOB_NAME_SLUG", &slug(&job.name)),
            public("CI_JOB_STAGE", &self.pipeline.stages[job.stage]),
            public("CI_JOB_STARTED_AT", &inputs.started_at),
            public("CI_REPOSITORY_URL", &self.repo_url()),
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

/// The keys of every job's caches; files in them are read here.
pub(crate) fn cache_keys(root: &Path, pipeline: &Pipeline) -> Vec<Vec<String>> {
    let key = |cache: &Cache| match &cache.key {
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

    /// A plan for every job.
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
            cache_keys: cache_keys(Path::new("/nonexistent"), &pipeline),
            given: given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            project,
            pipeline,
            sha,
            bundle: "/tmp/sources.bundle".into(),
        }
    }

    fn inputs() -> JobInputs {
        JobInputs {
            dependencies: Vec::new(),
            variables: Vec::new(),
            started_at: "2027-01-15T08:00:00Z".to_owned(),
        }
    }

    fn value(spec: &JobSpec, key: &str) -> Option<String> {
        spec.variables.iter().rev().find(|v| v.key == key).map(|v| v.value.clone())
    }

    #[test]
    fn a_spec_has_all_that_the_job_says() {
        let plan = plan(
            "build: {stage: build, script: x}\n\
             test:\n  image: {name: 'rust:$V', entrypoint: ['']}\n  services: [redis]\n  script: [a, b]\n\
             \x20 after_script: [c]\n  timeout: 10m\n  parallel: 2\n  environment: {name: Stage/1, url: http://s}\n\
             \x20 cache: {key: k-$CI_COMMIT_REF_SLUG, paths: [p]}\n  artifacts: {paths: [o]}\n",
            &[],
        );
        let spec = plan.spec(2, &JobInputs { dependencies: vec![0], ..inputs() });
        assert_eq!(spec.id, JobId(1_800_000_000_003));
        assert_eq!(spec.name, "test 2/2");
        assert_eq!(spec.source.refspecs, ["+refs/heads/main:refs/remotes/origin/main"]);
        assert_eq!((spec.source.depth, spec.timeout), (0, Duration::from_mins(10)));
        assert_eq!(spec.source.bundle.as_deref(), Some(Path::new("/tmp/sources.bundle")));
        assert_eq!((spec.source.trust, spec.source.protected), (Trust::Project, false));
        assert_eq!(spec.scripts.steps.len(), 1);
        assert_eq!(
            (&*spec.scripts.steps[0].name, spec.scripts.steps[0].script.len()),
            ("script", 2)
        );
        assert_eq!(spec.scripts.after_script, ["c"]);
        assert_eq!(spec.image.name, "rust:$V");
        assert_eq!(spec.services[0].image.name, "redis");
        assert_eq!(spec.caches[0].key, "k-$CI_COMMIT_REF_SLUG");
        assert_eq!(spec.artifacts[0].paths, ["o"]);
        assert_eq!(spec.dependencies[0].id, JobId(1_800_000_000_001));
        assert_eq!(spec.dependencies[0].name, "build");
        for (key, expected) in [
            ("CI_NODE_INDEX", "2"),
            ("CI_NODE_TOTAL", "2"),
            ("CI_JOB_NAME_SLUG", "test-2-2"),
            ("CI_JOB_STAGE", "test"),
            ("CI_ENVIRONMENT_SLUG", "stage-1"),
            ("CI_JOB_TOKEN", spec.token.expose()),
            ("CI_JOB_URL", &spec.page),
            ("FF_TIMESTAMPS", "false"),
        ] {
            assert_eq!(value(&spec, key).as_deref(), Some(expected), "{key}");
        }
        assert!(spec.trace.sections);
        let masked = spec.variables.iter().filter(|v| v.masked).map(|v| v.key.as_str());
        assert_eq!(masked.collect::<Vec<_>>(), ["CI_JOB_TOKEN"]);
    }

    #[test]
    fn later_variables_take_precedence_and_are_expanded_as_far_as_they_are_known() {
        let plan = plan(
            "variables: {A: file, DIR: $CI_PROJECT_DIR/$NAME, NAME: n-$CI_COMMIT_REF_NAME, G: file}\n\
             test: {script: x, variables: {A: job, D: job, PATH: '$PATH:/x', R: {value: $A, expand: false}}}\n",
            &[("G", "$given")],
        );
        let variables = vec![("D".to_owned(), "dot".to_owned())];
        let spec = plan.spec(0, &JobInputs { variables, ..inputs() });
        for (key, expected) in [
            ("A", "job"),
            ("D", "dot"),
            ("G", "$given"),
            ("DIR", "$CI_PROJECT_DIR/n-main"),
            ("PATH", "$PATH:/x"),
            ("R", "$A"),
        ] {
            assert_eq!(value(&spec, key).as_deref(), Some(expected), "{key}");
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

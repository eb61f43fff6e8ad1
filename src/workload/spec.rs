//! A job as a CI engine asks for it, in words that belong to no engine: what is wanted, before the
//! runner's settings decide what of it there will be. Plain data; variables are not expanded yet.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{
    base::{
        ids::{JobId, ProjectId},
        secret::Secret,
    },
    config::PullPolicy,
};

use super::{
    transfer::{Format, ObjectFormat},
    variable::Variable,
};

/// A job that can be planned.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// The job's number at its server.
    pub id: JobId,
    /// Authenticates everything about the job at its server.
    pub token: Secret,
    /// Name in its pipeline.
    pub name: String,
    /// Address of the job's page for people; empty when there is none.
    pub page: String,
    /// The pipeline it is part of.
    pub pipeline: PipelineId,
    /// The project it belongs to.
    pub project: Project,
    /// Deadline of the whole job, from its start.
    pub timeout: Duration,
    /// Where its sources come from.
    pub source: GitSource,
    /// The image it asks for; an empty name means the runner's default.
    pub image: ImageSpec,
    /// Services it asks for.
    pub services: Vec<ServiceSpec>,
    /// What it runs.
    pub scripts: ScriptSpec,
    /// Its variables, in order; later ones take precedence.
    pub variables: Vec<Variable>,
    /// Caches it restores and saves.
    pub caches: Vec<CacheSpec>,
    /// Artifacts it uploads.
    pub artifacts: Vec<ArtifactSpec>,
    /// Jobs whose artifacts it downloads.
    pub dependencies: Vec<Dependency>,
    /// Credentials that its server has given it for registries.
    pub registries: Vec<RegistryCredentials>,
    /// What its log may and must do.
    pub trace: TraceFeatures,
    /// Announcements for the job's author, one line each.
    pub notices: Vec<String>,
    /// Warnings for the job's author, one line each.
    pub warnings: Vec<String>,
}

impl JobSpec {
    /// A job of which nothing but its number is known: it asks for nothing.
    #[must_use]
    pub fn unknown(id: JobId, token: Secret) -> Self {
        Self {
            id,
            token,
            name: String::new(),
            page: String::new(),
            pipeline: PipelineId::default(),
            project: Project::default(),
            timeout: Duration::ZERO,
            source: GitSource::default(),
            image: ImageSpec::default(),
            services: Vec::new(),
            scripts: ScriptSpec::default(),
            variables: Vec::new(),
            caches: Vec::new(),
            artifacts: Vec::new(),
            dependencies: Vec::new(),
            registries: Vec::new(),
            trace: TraceFeatures::default(),
            notices: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// The value of a variable as the job writes it, not expanded.
    #[must_use]
    pub fn written(&self, name: &str) -> Option<&str> {
        let last = self.variables.iter().rev().find(|variable| variable.key == name);
        last.map(|variable| variable.value.as_str())
    }
}

/// A pipeline's number at its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PipelineId(pub i64);

impl fmt::Display for PipelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The project of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Project {
    /// The project's number at its server.
    pub id: ProjectId,
    /// Last part of the path.
    pub name: String,
    /// Path with all groups, such as `acme/turbine`; may be empty.
    pub full_path: String,
}

/// Where a job's sources come from, and how far they are trusted.
#[derive(Debug, Clone, Default)]
pub struct GitSource {
    /// Clone URL; it may contain credentials.
    pub repo_url: Secret,
    /// A git bundle on this host that is fetched from instead.
    pub bundle: Option<PathBuf>,
    /// Hash of the repository's objects.
    pub object_format: ObjectFormat,
    /// Branch or tag.
    pub reference: String,
    /// What `reference` names.
    pub ref_kind: RefKind,
    /// The commit to check out.
    pub sha: String,
    /// The ref's commit before the push that made the pipeline.
    pub before_sha: String,
    /// For `git fetch`, as they are.
    pub refspecs: Vec<String>,
    /// Commits to fetch; 0 for the full history.
    pub depth: i64,
    /// Whether the work tree of an earlier job may be used again, unless `GIT_STRATEGY` says
    /// otherwise.
    pub allow_fetch: bool,
    /// Whether the ref is protected.
    pub protected: bool,
    /// How far what the job runs is trusted.
    pub trust: Trust,
    /// The project outside that an untrusted job comes from, as its server names it.
    pub fork: Option<String>,
}

/// What a reference names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RefKind {
    /// A branch, or the head of a merge request.
    #[default]
    Branch,
    /// A tag.
    Tag,
}

/// How far a job is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// Its ref is protected.
    Protected,
    /// A ref of the project's that is not.
    Project,
    /// It runs what somebody outside the project wrote: a merge request from a fork.
    #[default]
    Outside,
}

impl Trust {
    /// The word for it in names of volumes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Project => "project",
            Self::Outside => "outside",
        }
    }
}

/// The image of a job or of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSpec {
    /// Reference, before the expansion of variables.
    pub name: String,
    /// Override of the entrypoint; `[""]` resets the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Policies the job asks for.
    pub pull_policy: Vec<PullPolicy>,
    /// Platform, before expansion.
    pub platform: Option<String>,
    /// User, before expansion.
    pub user: Option<String>,
}

/// A service of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its image, with options.
    pub image: ImageSpec,
    /// Aliases, before expansion, separated by commas or spaces.
    pub alias: String,
    /// Override of the command; empty for the image's.
    pub command: Vec<String>,
    /// Variables for the service alone.
    pub variables: Vec<Variable>,
}

/// What a job runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScriptSpec {
    /// Scripts in order, without `after_script`.
    pub steps: Vec<StepSpec>,
    /// Commands of `after_script`; empty when there is none.
    pub after_script: Vec<String>,
    /// Commands that the helper runs before it fetches the sources.
    pub before_sources: Vec<String>,
    /// Commands that the helper runs when it has fetched the sources.
    pub after_sources: Vec<String>,
}

/// A script that runs in the job's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSpec {
    /// `script`, `release`, …; its stage is `step_<name>` in lower case.
    pub name: String,
    /// Commands, each run after the one before it has succeeded.
    pub script: Vec<String>,
}

/// With which end of the job something is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The job succeeded.
    OnSuccess,
    /// The job failed.
    OnFailure,
    /// Whatever the end.
    Always,
}

impl When {
    /// Whether it is saved after this end.
    #[must_use]
    pub fn matches(self, succeeded: bool) -> bool {
        match self {
            Self::OnSuccess => succeeded,
            Self::OnFailure => !succeeded,
            Self::Always => true,
        }
    }
}

/// A cache as the job asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSpec {
    /// Key, before expansion; empty for the default.
    pub key: String,
    /// Keys to try in order when the key misses, before expansion.
    pub fallback_keys: Vec<String>,
    /// `pull-push` (also when empty), `pull` or `push`, before expansion.
    pub policy: String,
    /// Globs relative to the project directory.
    pub paths: Vec<String>,
    /// Adds files git does not track.
    pub untracked: bool,
    /// With which end of the job it is saved.
    pub when: When,
}

/// An archive to upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactSpec {
    /// Base name of the archive, before expansion; empty for the default.
    pub name: String,
    /// Globs relative to the project directory.
    pub paths: Vec<String>,
    /// Globs taken out again.
    pub exclude: Vec<String>,
    /// Adds files git does not track.
    pub untracked: bool,
    /// With which end of the job it is uploaded.
    pub when: When,
    /// `archive`, `junit`, `dotenv`, …, as the server sorts uploads; empty when it does not say.
    pub kind: String,
    /// How it is packed; `None` when the server does not say, for the default, [`Format::Zip`].
    pub format: Option<Format>,
    /// How long the server keeps it, as the job writes it; passed through.
    pub expire_in: String,
}

/// A job whose artifacts are downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Its number.
    pub id: JobId,
    /// Its name, for the trace.
    pub name: String,
    /// Token for that download.
    pub token: Secret,
}

/// Credentials for a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// Address of the registry, with or without a scheme.
    pub url: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: Secret,
}

/// What a job's log may and must do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceFeatures {
    /// The server shows sections as such.
    pub sections: bool,
    /// Prefixes of tokens to mask, beside those that are always masked.
    pub mask_prefixes: Vec<String>,
}

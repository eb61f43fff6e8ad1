//! A pipeline as it was read: its jobs, when they run, and what they do.

use std::time::Duration;

use super::{parts::Cache, problem::Problem};
use crate::workload::{
    spec::{ArtifactSpec, ImageSpec, ServiceSpec},
    variable::Variable,
};

/// When a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// All jobs before it succeeded.
    OnSuccess,
    /// A job before it failed.
    OnFailure,
    /// All jobs before it ended.
    Always,
    /// Somebody names it.
    Manual,
    /// As `OnSuccess`; there is no delay here.
    Delayed,
}

impl When {
    /// The keyword.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            When::OnSuccess => "on_success",
            When::OnFailure => "on_failure",
            When::Always => "always",
            When::Manual => "manual",
            When::Delayed => "delayed",
        }
    }
}

/// Whether the pipeline survives the failure of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowFailure {
    No,
    Always,
    /// Always, as the job is manual and the file does not say otherwise.
    Manual,
    /// When its script ends with one of these.
    ExitCodes(Vec<i32>),
}

impl AllowFailure {
    /// Whether a failure with this exit code is allowed; `None` is one without an exit code.
    pub(crate) fn allows(&self, exit_code: Option<i32>) -> bool {
        match self {
            AllowFailure::No => false,
            AllowFailure::Always | AllowFailure::Manual => true,
            AllowFailure::ExitCodes(codes) => {
                exit_code.is_some_and(|exit_code| codes.contains(&exit_code))
            }
        }
    }

    /// Whether every failure is allowed.
    pub(crate) fn is_always(&self) -> bool {
        matches!(self, AllowFailure::Always | AllowFailure::Manual)
    }
}

/// A job that a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// Index in the pipeline.
    pub(crate) job: usize,
    /// Whether its artifacts are wanted.
    pub(crate) artifacts: bool,
}

/// A job of the pipeline.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Name, with what `parallel` adds.
    pub(crate) name: String,
    /// Name in the file.
    pub(crate) base: String,
    /// Index of its stage.
    pub(crate) stage: usize,
    pub(crate) when: When,
    pub(crate) allow_failure: AllowFailure,
    /// The jobs it waits for; `None`: all of earlier stages.
    pub(crate) needs: Option<Vec<Need>>,
    /// Jobs whose artifacts it gets, by index in the pipeline.
    pub(crate) sources: Vec<usize>,
    /// What it does; its variables are those of the file, the job, the matrix and the rule, in this
    /// order.
    pub(crate) work: Work,
    /// Number and count among the jobs of `parallel`.
    pub(crate) node: Option<(usize, usize)>,
}

/// What a job does, whatever keeps it from running and however often it runs.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) image: Option<ImageSpec>,
    pub(crate) services: Vec<ServiceSpec>,
    /// Those of the file that the job inherits, then its own.
    pub(crate) variables: Vec<Variable>,
    /// `before_script` and `script`.
    pub(crate) script: Vec<String>,
    pub(crate) after_script: Vec<String>,
    /// `hooks:pre_get_sources_script`.
    pub(crate) before_sources: Vec<String>,
    pub(crate) artifacts: Vec<ArtifactSpec>,
    pub(crate) cache: Vec<Cache>,
    pub(crate) timeout: Option<Duration>,
    /// Name and URL of the environment.
    pub(crate) environment: Option<(String, Option<String>)>,
    /// Why it cannot run here, should it have to.
    pub(crate) refused: Vec<Problem>,
}

/// A pipeline, ready to run.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// Names of the stages, in order.
    pub(crate) stages: Vec<String>,
    /// The jobs, by stage and then as written.
    pub(crate) jobs: Vec<Job>,
    /// Names of the jobs that the rules leave out.
    pub(crate) left_out: Vec<String>,
    /// What the author should know.
    pub(crate) warnings: Vec<Problem>,
}

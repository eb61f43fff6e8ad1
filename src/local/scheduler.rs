//! Runs the jobs of a pipeline as they become ready, each by the runner that serves any CI engine.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    artifacts::{Left, LocalArtifacts},
    plan::{JobInputs, Plan},
    progress::Progress,
    reporter::LocalReporter,
};
use crate::{
    base::ids::JobId,
    ledger::Owner,
    runner::{self, Conclusion, IncomingJob, Interrupt, Runner, ServerFacts},
    workload::outcome::FailureReason,
};

/// Runs the jobs of one pipeline.
pub(crate) struct Scheduler {
    pub(crate) plan: Plan,
    pub(crate) runner: Arc<Runner>,
    /// Jobs at once, at most; at least 1.
    pub(crate) concurrent: usize,
    /// A folder for the artifacts of each job.
    pub(crate) folders: Vec<PathBuf>,
    /// Cancelled when the user wants to stop: no more jobs start, and those that run are canceled.
    pub(crate) stop: CancellationToken,
}

/// How a job ended, and what it has left.
type JobEnd = (Conclusion, Left);

/// Jobs that run, and what those before them have left.
#[derive(Default)]
struct Jobs {
    running: JoinSet<JobEnd>,
    tasks: HashMap<Id, usize>,
    left: HashMap<usize, Left>,
}

impl Scheduler {
    /// Runs until every job has its final state.
    pub(crate) async fn run(&self, progress: &mut Progress) {
        let mut jobs = Jobs::default();
        let mut is_stopping = false;
        loop {
            while !self.stop.is_cancelled() && jobs.running.len() < self.concurrent {
                let Some(job) = progress.start_next().await else { break };
                self.start(job, &mut jobs, progress);
            }
            if progress.is_done() {
                return;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    progress.cancel_waiting().await;
                }
                Some(ended) = jobs.running.join_next_with_id() => {
                    let Some((job, conclusion)) = jobs.end(ended) else { continue };
                    progress.end(job, &conclusion, self.stop.is_cancelled()).await;
                }
                else => return,
            }
        }
    }

    fn start(&self, job: usize, jobs: &mut Jobs, progress: &Progress) {
        let events = progress.events();
        let (inputs, archives) = inputs(&self.plan, job, &jobs.left);
        let spec = self.plan.spec(job, &inputs);
        let folder = self.folders[job].clone();
        let artifacts = Arc::new(LocalArtifacts::new(job, folder, archives, events.clone()));
        let reporter = Arc::new(LocalReporter::new(job, events.clone(), self.stop.clone()));
        let span = tracing::info_span!("job", job.id = %spec.id, job.name = spec.name);
        let incoming = IncomingJob {
            owner: Owner::Local { job: spec.id },
            spec: Box::new(spec),
            refused: None,
            server: ServerFacts::default(),
            reporter: Arc::clone(&reporter) as _,
            artifacts: Arc::clone(&artifacts) as _,
        };
        let runner = Arc::clone(&self.runner);
        let work = async move {
            runner::run(&runner, incoming, &Interrupt::default()).await;
            (reporter.conclusion().unwrap_or(SYSTEM_FAILURE), artifacts.take())
        };
        let task = jobs.running.spawn(work.instrument(span));
        jobs.tasks.insert(task.id(), job);
    }
}

/// What a job gets of those before it, and where their archives are.
fn inputs(
    plan: &Plan,
    job: usize,
    left: &HashMap<usize, Left>,
) -> (JobInputs, HashMap<JobId, PathBuf>) {
    let mut inputs = JobInputs {
        dependencies: Vec::new(),
        variables: Vec::new(),
        started_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    };
    let mut archives = HashMap::new();
    for &source in &plan.pipeline.jobs[job].sources {
        let Some(left) = left.get(&source) else { continue };
        inputs.variables.extend(left.variables.iter().cloned());
        if let Some(archive) = left.archive() {
            inputs.dependencies.push(source);
            archives.insert(plan.id(source), archive.to_owned());
        }
    }
    (inputs, archives)
}

/// How a job ended that never said how.
const SYSTEM_FAILURE: Conclusion =
    Conclusion::Failed { reason: FailureReason::RunnerSystemFailure, exit_code: None };

impl Jobs {
    fn end(&mut self, ended: Result<(Id, JobEnd), JoinError>) -> Option<(usize, Conclusion)> {
        match ended {
            Ok((id, (conclusion, left))) => {
                let job = self.tasks.remove(&id)?;
                self.left.insert(job, left);
                Some((job, conclusion))
            }
            Err(error) => {
                tracing::error!(%error, "a task panicked; this is a bug in longshore");
                Some((self.tasks.remove(&error.id())?, SYSTEM_FAILURE))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plan::tests::plan, *};

    #[test]
    fn a_dotenv_report_gives_variables_to_the_jobs_that_depend_on_its_job() {
        let plan = plan(
            "a: {stage: build, script: x}\nb: {script: x, variables: {V: own, A: a-$V}}\n\
             c: {script: x, dependencies: []}\n",
            &[],
        );
        let variables = vec![("V".to_owned(), "1.2.3".to_owned())];
        let left = HashMap::from([(0, Left { variables, ..Left::default() })]);
        let value = |job: usize, key: &str| {
            let spec = plan.spec(job, &inputs(&plan, job, &left).0);
            spec.written(key).map(str::to_owned)
        };
        assert_eq!(value(1, "V").as_deref(), Some("1.2.3"), "it overrides the job's own");
        assert_eq!(value(1, "A").as_deref(), Some("a-1.2.3"));
        assert_eq!(value(2, "V"), None, "no dependency, no variables");
    }
}

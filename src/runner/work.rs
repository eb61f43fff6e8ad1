//! A job at work: preparation in two branches, scripts, and what is kept of them.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::{sleep, timeout};

use crate::{
    base::ids::random_hex,
    executor::{
        ExecutorError, Prepared, Removal, Script, ScriptOutput, Session,
        buffered_log::{BufferedLog, LogEvent},
    },
    ledger::{RunningScript, SessionState},
    trace::{JobLog, Source, Stream},
    workload::{
        StepPlan, Workload,
        outcome::{Deadline, JobStatus, Outcome, StopReason},
    },
};

use super::{
    ending::{self, Ending, SystemFailure},
    intake::OpenJob,
    removal::{Remains, log_left},
    stages::Stages,
    stops::Stops,
};

/// How often a preparation is tried, and the pause between two tries (GitLab Runner:
/// `PreparationRetries`, `RetryDelay`).
const PREPARE_TRIES: u32 = 3;
const PREPARE_PAUSE: Duration = Duration::from_secs(3);

/// Section of the first branch of preparation.
const PREPARE: &str = "prepare_executor";

/// A job at work.
pub(super) struct Work<'a> {
    job: &'a OpenJob,
    workload: &'a Arc<Workload>,
    stops: Stops,
    log: JobLog,
    /// What the second branch of preparation writes is held until the first has finished.
    buffer: BufferedLog,
}

/// A section of the trace that ends however its stage ends.
struct OpenSection {
    log: JobLog,
    name: String,
}

impl OpenSection {
    fn new(log: &JobLog, name: &str) -> Self {
        log.section_start(name);
        Self { log: log.clone(), name: name.to_owned() }
    }
}

impl Drop for OpenSection {
    fn drop(&mut self) {
        self.log.section_end(&self.name);
    }
}

/// How a preparation ended, if no system failed.
enum Preparation<'a> {
    /// Scripts can run.
    Ready(Ready<'a>),
    /// No script will run: the job has ended.
    Ended(Outcome),
}

/// Where scripts run.
struct ScriptHost {
    session: Arc<dyn Session>,
    announcement: String,
}

/// What there is before the first script.
struct Ready<'a> {
    host: ScriptHost,
    /// `None` where the job needs no helper.
    stages: Option<Stages<'a>>,
    /// How sources, caches and artifacts were got.
    outcome: Outcome,
}

impl<'a> Work<'a> {
    pub(super) fn new(job: &'a OpenJob, workload: &'a Arc<Workload>, stops: Stops) -> Self {
        let (log, buffer) = (job.trace.job_log(), BufferedLog::new(&job.trace));
        Self { job, workload, stops, log, buffer }
    }

    /// Runs the job; also says what there may be to remove.
    pub(super) async fn run(&self) -> (Ending, Remains) {
        let mut remains = Remains::default();
        let ending = self.prepare_and_run(&mut remains).await;
        if let Some(session) = &remains.session {
            session.conclude().await;
        }
        (ending, remains)
    }

    async fn prepare_and_run(&self, remains: &mut Remains) -> Ending {
        let prepared = tokio::select! {
            prepared = self.prepare_with_tries(remains) => prepared,
            reason = self.stops.any() => Ok(Preparation::Ended(Outcome::Stopped(reason))),
        };
        // A preparation that did not come to its end has dropped requests that were under way.
        remains.is_uncertain = true;
        let mut ready = match prepared? {
            Preparation::Ready(ready) => ready,
            Preparation::Ended(outcome) => return Ok(outcome),
        };
        let ending = tokio::select! {
            ending = self.run_scripts(&mut ready) => ending,
            reason = self.stops.hard() => Ok(Outcome::Stopped(reason)),
        };
        remains.is_uncertain =
            matches!(&ending, Ok(Outcome::Stopped(reason)) if ending::is_hard(reason));
        ending
    }

    /// Prepares, and again after a failure that may pass.
    async fn prepare_with_tries<'b>(
        &'b self,
        remains: &mut Remains,
    ) -> Result<Preparation<'b>, SystemFailure> {
        let config = &self.job.runner.config;
        let mut tries = 1;
        loop {
            let session = self.job.runner.executor.open(self.job.session_request(self.workload));
            remains.session = Some(Arc::clone(&session));
            let prepared = match config.timeouts.prepare {
                None => self.prepare(&session).await,
                Some(after) => match timeout(after, self.prepare(&session)).await {
                    Ok(prepared) => prepared,
                    Err(_) => {
                        let reason = StopReason::TimedOut { deadline: Deadline::Prepare, after };
                        return Ok(Preparation::Ended(Outcome::Stopped(reason)));
                    }
                },
            };
            match prepared {
                Err(failure) if failure.is_retryable && tries < PREPARE_TRIES => {
                    self.log.error(&format!("Preparation failed: {}", failure.error));
                    self.log.plain(&format!("Will be retried in {}s ...", PREPARE_PAUSE.as_secs()));
                    let is_clean = remove_attempt(&*session).await;
                    sleep(PREPARE_PAUSE).await;
                    if !is_clean {
                        // The executor was away: what is there yet would be in the next try's way.
                        remove_attempt(&*session).await;
                    }
                    tries += 1;
                }
                prepared => return prepared,
            }
        }
    }

    /// Two branches at once: what scripts run in; and, with the helper, sources, caches and
    /// artifacts.
    async fn prepare<'b>(
        &'b self,
        session: &Arc<dyn Session>,
    ) -> Result<Preparation<'b>, SystemFailure> {
        // Boxed, as the compiler cannot see through both at once that they may change threads.
        let mut first = self.prepare_session(Arc::clone(session)).boxed();
        let mut second = self.with_helper(Arc::clone(session)).boxed();
        let (prepared, (mut stages, outcome)) = tokio::select! {
            biased;
            prepared = &mut first => (prepared?, second.await?),
            got = &mut second => {
                let (stages, outcome) = got?;
                if outcome != Outcome::Success {
                    // No script will run: images and services are not waited for.
                    drop(first);
                    self.buffer.flush();
                    return Ok(Preparation::Ended(self.after_failed_sources(stages, outcome).await?));
                }
                (first.await?, (stages, outcome))
            }
        };
        if stages.is_none() && prepared.needs_helper {
            stages = Some(self.start_helper(&**session).await?);
        }
        let host = ScriptHost { session: Arc::clone(session), announcement: prepared.announcement };
        Ok(Preparation::Ready(Ready { host, stages, outcome }))
    }

    async fn prepare_session(&self, session: Arc<dyn Session>) -> Result<Prepared, SystemFailure> {
        let executor = self.job.runner.executor.name();
        self.stage(PREPARE, "prepare");
        let section = OpenSection::new(&self.log, PREPARE);
        self.log.title(&format!("Preparing the \"{executor}\" executor"));
        let prepared = session.prepare().await?;
        drop(section);
        self.buffer.flush();
        Ok(prepared)
    }

    /// What the helper does before the script.
    async fn with_helper(
        &self,
        session: Arc<dyn Session>,
    ) -> Result<(Option<Stages<'_>>, Outcome), SystemFailure> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let section = self.buffer.section("prepare_script", "Preparing environment");
        let name = &self.workload.names.host;
        self.buffer.log(LogEvent::Plain(format!("Running on {name} via {host}...")));
        drop(section);
        if !self.workload.transfers.needs_helper {
            return Ok((None, Outcome::Success));
        }
        let mut stages = self.start_helper(&*session).await?;
        let before = stages.before_script();
        let outcome = match self.job.runner.config.timeouts.get_sources {
            None => before.await?,
            Some(after) => match timeout(after, before).await {
                Ok(ending) => ending?,
                Err(_) => {
                    Outcome::Stopped(StopReason::TimedOut { deadline: Deadline::Sources, after })
                }
            },
        };
        Ok((Some(stages), outcome))
    }

    async fn start_helper<'b>(
        &'b self,
        session: &dyn Session,
    ) -> Result<Stages<'b>, SystemFailure> {
        let streams = session.start_helper().await?;
        let mut stages = Stages::new(streams, self.job, self.workload, &self.buffer);
        stages.open_directories().await?;
        Ok(stages)
    }

    /// Sources that failed end the job; what is to be kept of a failed job is kept.
    async fn after_failed_sources(&self, stages: Option<Stages<'_>>, outcome: Outcome) -> Ending {
        if let (Some(mut stages), Outcome::ScriptFailed { .. }) = (stages, &outcome) {
            self.keep_results(&mut stages, false).await?;
            stages.clean_up().await?;
        }
        Ok(outcome)
    }

    /// Scripts, then what is kept of them.
    async fn run_scripts(&self, ready: &mut Ready<'_>) -> Ending {
        if ready.outcome != Outcome::Success {
            let stages = ready.stages.take();
            return self.after_failed_sources(stages, ready.outcome.clone()).await;
        }
        let mut outcome = self.run_steps(&ready.host).await?;
        if let Outcome::Stopped(reason) = &outcome
            && ending::is_hard(reason)
        {
            return Ok(outcome);
        }
        if !self.workload.scripts.after_script.is_empty() {
            let after = self.run_after_script(&*ready.host.session, &outcome).await?;
            if outcome == Outcome::Success && !self.workload.settings.after_script_ignore_errors {
                outcome = after;
            }
        }
        if let Some(stages) = &mut ready.stages {
            self.buffer.end_streams(&self.job.trace);
            let kept = self.keep_results(stages, outcome == Outcome::Success).await?;
            stages.clean_up().await?;
            if outcome == Outcome::Success {
                outcome = kept;
            }
        }
        Ok(outcome)
    }

    /// Caches, then artifacts; the first failure counts.
    async fn keep_results(&self, stages: &mut Stages<'_>, is_success: bool) -> Ending {
        self.stage("archive_cache", "run");
        let saved = stages.save_caches(is_success).await?;
        self.stage("upload_artifacts", "run");
        let uploaded = stages.upload_artifacts(is_success).await?;
        Ok(if saved == Outcome::Success { uploaded } else { saved })
    }

    /// The job's steps, up to the first that fails or to a stop.
    async fn run_steps(&self, host: &ScriptHost) -> Ending {
        let reason = tokio::select! {
            ending = self.run_all_steps(host) => return ending,
            reason = self.stops.any() => reason,
            reason = script_deadline(self.workload.settings.script_timeout) => reason,
        };
        if ending::is_hard(&reason) {
            return Ok(Outcome::Stopped(reason));
        }
        if reason == StopReason::Canceled {
            self.log.warning("script canceled externally (UI, API)");
        } else {
            self.log.warning(&reason.to_string());
        }
        host.session.stop_script().await?;
        Ok(Outcome::Stopped(reason))
    }

    async fn run_all_steps(&self, host: &ScriptHost) -> Ending {
        for step in &self.workload.scripts.steps {
            let outcome = self.run_step(host, step).await?;
            if outcome != Outcome::Success {
                host.session.explain_failure().await;
                return Ok(outcome);
            }
        }
        Ok(Outcome::Success)
    }

    async fn run_step(&self, host: &ScriptHost, step: &StepPlan) -> Ending {
        let stage = &step.stage;
        self.stage(stage, "run");
        let _section = OpenSection::new(&self.log, stage);
        self.log.title(&format!("Executing \"{stage}\" stage of the job script"));
        self.log.plain(&host.announcement);
        let nonce = random_hex::<8>();
        let text = self.workload.step_script(step, &nonce);
        self.run_script(&*host.session, stage, &text, &nonce).await
    }

    async fn run_after_script(&self, session: &dyn Session, outcome: &Outcome) -> Ending {
        const STAGE: &str = "after_script";
        self.stage(STAGE, "run");
        let _section = OpenSection::new(&self.log, STAGE);
        self.log.title("Running after_script");
        let nonce = random_hex::<8>();
        let text = self.workload.after_script(JobStatus::after(outcome), &nonce);
        let settings = &self.workload.settings;
        let limit = settings.after_script_timeout.min(self.stops.left());
        let script = self.run_script(session, STAGE, &text, &nonce);
        let after = match timeout(limit, script).await {
            Ok(ending) => ending?,
            Err(_) => {
                session.stop_script().await?;
                let seconds = limit.as_secs();
                self.log.warning(&format!(
                    "after_script took longer than {seconds} seconds and was stopped"
                ));
                Outcome::ScriptFailed { exit_code: 1 }
            }
        };
        if let Outcome::ScriptFailed { exit_code } = &after
            && settings.after_script_ignore_errors
        {
            self.log.warning(&format!(
                "after_script failed, but job will continue unaffected: exit code {exit_code}"
            ));
        }
        Ok(after)
    }

    /// Runs a script, and anew when what it ran in is gone, as often as the job wants that.
    async fn run_script(
        &self,
        session: &dyn Session,
        stage: &str,
        text: &str,
        nonce: &str,
    ) -> Ending {
        let mut output = ScriptOutput {
            out: self.job.trace.writer(Source::Job, Stream::Out),
            err: self.job.trace.writer(Source::Job, Stream::Err),
        };
        let attempts = self.workload.settings.attempts.section;
        let mut attempt = 1;
        let end = loop {
            self.note(
                session,
                Some(RunningScript {
                    stage: stage.to_owned(),
                    nonce: nonce.to_owned(),
                    trace_offset: self.job.trace.size(),
                }),
            );
            let script = session.run_script(Script { stage, text, nonce }, &mut output);
            match script.await {
                Err(ExecutorError::Gone) if attempt < attempts => attempt += 1,
                end => break end?,
            }
            self.log.warning(&format!(
                "the job's container is gone; attempt {attempt} of {attempts} in a new one"
            ));
            session.renew().await?;
        };
        self.note(session, None);
        Ok(match end.exit_code {
            0 => Outcome::Success,
            exit_code => Outcome::ScriptFailed { exit_code },
        })
    }

    /// Counts the job as in this stage; `phase` is that of its executor (GitLab Runner:
    /// `executor_stage` of its metrics, such as `docker_run`).
    fn stage(&self, stage: &str, phase: &str) {
        let executor = self.job.runner.executor.name();
        self.job.running.stage(stage, &format!("{executor}_{phase}"));
    }

    /// Writes down which script runs, so that a later process can go on with it.
    fn note(&self, session: &dyn Session, script: Option<RunningScript>) {
        let state = SessionState { container: session.container(), script };
        if let Err(error) = self.job.record.note_session(&state) {
            tracing::warn!(%error, "cannot write down which script of the job runs");
        }
    }
}

/// Removes what a preparation that failed has made. False when something is left.
async fn remove_attempt(session: &dyn Session) -> bool {
    let removed = session.remove(Removal::Attempt, &|| ()).await;
    log_left(&removed);
    removed.is_clean()
}

/// Waits for the end of the scripts' time, if they have one of their own.
async fn script_deadline(limit: Option<Duration>) -> StopReason {
    match limit {
        None => std::future::pending().await,
        Some(after) => {
            sleep(after).await;
            StopReason::TimedOut { deadline: Deadline::Script, after }
        }
    }
}

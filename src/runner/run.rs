//! The story of a job, from the server's payload to the last word about it.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{error_chain, ids::random_hex},
    executor::{
        curtain::{Curtain, Said},
        docker::{
            Build, Docker, ExecutorError, Followed,
            clean_up::{self, Anonymous},
            engine::auth::{AuthSources, Auths},
        },
    },
    gitlab::{
        api::wire::JobPayload,
        job_client::JobClient,
        payload,
        trace::{Delivery, KeepAlive, Limits, Remote, finish, pump},
    },
    ledger::JobRecord,
    runner::metrics::Running,
    trace::{JobLog, Source, Stream, Trace},
    workload::{
        JobSpec, StepPlan, Workload,
        outcome::{Deadline, JobStatus, Outcome, StopReason},
        script::EndMark,
        sources,
        spec::RegistryCredentials,
    },
};

use super::{
    Runner,
    ending::{self, Ending, SystemFailure, log_end},
    layers,
    opening::{Planned, PlannedJob, TOKEN_GRACE, greet, open, plan_job, timeout_of},
    poll::Arrived,
    removal::{Made, close, log_errors, log_left, remove},
    stages::Stages,
    stops::{Interrupt, Stops},
    warm::{self, Lease},
};

/// Tries of a preparation that may go better, and the pause between them (GitLab Runner:
/// `PreparationRetries`, `RetryDelay`).
const PREPARE_TRIES: u32 = 3;
const PREPARE_PAUSE: Duration = Duration::from_secs(3);

/// Section of the first branch of preparation.
const PREPARE: &str = "prepare_executor";

/// Runs a job to its end at the server. Removal of what it made may go on after this returns; the
/// runner's `shared.removals` has it.
pub async fn run(
    runner: &Arc<Runner>,
    arrived: Arrived,
    correlation_id: Option<String>,
    interrupt: &Interrupt,
) {
    let (payload, undecodable) = match arrived {
        Arrived::Job(payload) => (payload, None),
        Arrived::Undecodable { id, token, error } => {
            (Box::new(JobPayload::unknown(id, token)), Some(SystemFailure::undecodable(&error)))
        }
    };
    let mut channel = JobClient {
        client: Arc::clone(&runner.client),
        info: Arc::clone(&runner.info),
        job: payload.id,
        token: payload.token.clone(),
        debug_trace: false,
        counted: Some((Arc::clone(&runner.shared.metrics), runner.config.short_token())),
    };
    let page = payload.variables.iter().rev().find(|variable| variable.key == "CI_JOB_URL");
    let page = page.map(|variable| variable.value.clone()).unwrap_or_default();
    let running = runner.shared.metrics.job(payload.id, runner.labels(), page);
    let announced = payload.features.failure_reasons.clone();
    let token = runner.config.short_token();
    let job = match undecodable {
        None => payload::job_spec(&payload, &runner.config.feature_flags).map_err(Into::into),
        Some(failure) => Err(failure),
    };
    let reuse = job.as_ref().is_ok_and(|job| sources::reuses_tree(job, &runner.config));
    let slot = runner.shared.slots.take(&token, payload.job_info.project_id.0, reuse).await;
    let mut planned: Planned = job.and_then(|job| plan_job(runner, job, &slot, correlation_id));
    let lease = warm::lease(runner, &mut planned);
    let opened = open(runner, &channel, &payload, &planned, &running).await;
    let Some((record, trace)) = opened else {
        warm::put_back(runner, lease);
        return;
    };
    if let Ok(job) = &mut planned {
        layers::lease(runner, job).await;
    }
    greet(&trace.job_log(), runner, &planned);
    channel.debug_trace = planned
        .as_ref()
        .is_ok_and(|job| job.plan.settings.debug_trace || job.plan.settings.debug_services);

    // The trace is sent while the job runs; the server's answers may stop the job.
    let delivery = Delivery::default();
    let (remote, asked) = watch::channel(Remote::None);
    let done = CancellationToken::new();
    let dynamic = planned
        .as_ref()
        .is_ok_and(|job| job.plan.flags.on("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL"));
    let keep_alive = if dynamic { KeepAlive::Dynamic } else { KeepAlive::Fixed };
    let pump = pump(trace.clone(), &channel, delivery.clone(), remote, keep_alive, done.clone());
    let work =
        work(runner, &planned, &lease, &trace, &record, asked, interrupt, &done, &running).boxed();
    let ((), (ending, made)) = tokio::join!(pump, work);

    if let Some(reason) = ending::reason(&ending) {
        running.failed(reason.as_str());
    }
    running.stage("", "cleanup");

    // Removal does not wait for the server, nor the server for removal.
    slot.leave();
    if made.engine.is_none() {
        warm::put_back(runner, lease);
    }
    runner.warm.job_ended();
    let plan = planned.ok().map(|job| job.plan);
    let removal = remove(Arc::clone(runner), plan, made, payload.id, slot);
    let removal = runner.shared.removals.spawn(removal);
    let until = Instant::now() + timeout_of(&payload) + TOKEN_GRACE;
    let limits = Limits { passes: runner.config.final_update_retry_limit, until: Some(until) };
    let last_word = ending::last_word(&ending, &announced);
    // Should this process end before the server has it, the next one says it.
    if let Err(error) = record.note_end(&last_word) {
        tracing::warn!(%error, "job's end could not be noted");
    }
    let delivered = finish(&trace, &channel, &delivery, &last_word, limits).await;
    if delivered.is_ok()
        && let Err(error) = record.note_told()
    {
        tracing::warn!(%error, "delivery of the job's end could not be noted");
    }
    log_end(&ending, &delivered);
    runner.shared.removals.spawn(close(record, delivered.is_ok(), removal));
}

/// Does the job's work and says in the trace how it ended; then the pump has nothing more to send.
#[expect(clippy::too_many_arguments, reason = "all that a job needs meets here")]
async fn work(
    runner: &Arc<Runner>,
    planned: &Planned,
    lease: &Lease,
    trace: &Trace,
    record: &JobRecord,
    asked: watch::Receiver<Remote>,
    interrupt: &Interrupt,
    done: &CancellationToken,
    running: &Running,
) -> (Ending, Made) {
    let mut made = Made::default();
    let job_log = trace.job_log();
    let ending = match planned {
        Err(failure) => Err(failure.clone()),
        Ok(PlannedJob { job, plan, .. }) => {
            let stops = Stops::new(job.timeout, asked, interrupt.subscribe());
            let followed = plan.settings.debug_services.then(|| Followed::new(trace.clone()));
            let job_log = job_log.clone();
            let work =
                Work { runner, job, plan, lease, trace, job_log, stops, record, followed, running };
            let ending = work.run(&mut made).await;
            if let Some(followed) = &work.followed {
                followed.end().await;
            }
            ending
        }
    };
    ending::show(&ending, &job_log);
    done.cancel();
    (ending, made)
}

/// A job at work.
struct Work<'a> {
    runner: &'a Arc<Runner>,
    job: &'a JobSpec,
    plan: &'a Arc<Workload>,
    lease: &'a Lease,
    trace: &'a Trace,
    job_log: JobLog,
    stops: Stops,
    record: &'a JobRecord,
    /// With `CI_DEBUG_SERVICES`.
    followed: Option<Followed>,
    running: &'a Running,
}

/// A section of the trace that ends however its stage ends.
struct OpenSection {
    job_log: JobLog,
    name: String,
}

impl OpenSection {
    fn new(job_log: &JobLog, name: &str) -> Self {
        job_log.section_start(name);
        Self { job_log: job_log.clone(), name: name.to_owned() }
    }
}

impl Drop for OpenSection {
    fn drop(&mut self) {
        self.job_log.section_end(&self.name);
    }
}

/// What is ready before the first script.
struct Ready<'a> {
    build: Build,
    stages: Option<Stages<'a>>,
    /// How sources, caches and artifacts were got.
    outcome: Outcome,
}

impl Work<'_> {
    async fn run(&self, made: &mut Made) -> Ending {
        let curtain = Curtain::new(self.trace);
        let prepared = tokio::select! {
            prepared = self.prepare_with_tries(&curtain, made) => prepared,
            reason = self.stops.any() => {
                made.uncertain = true;
                Ok(Err(Outcome::Stopped(reason)))
            }
        };
        let mut ready = match prepared {
            Ok(Ok(ready)) => ready,
            Ok(Err(outcome)) => return Ok(outcome),
            Err(failure) => {
                made.uncertain = true;
                return Err(failure);
            }
        };
        // Only now, as a daemon that starts takes processors from the job's start.
        self.runner.warm.note(self.lease);
        let ending = tokio::select! {
            ending = self.run_scripts(&mut ready, &curtain) => ending,
            reason = self.stops.hard() => Ok(Outcome::Stopped(reason)),
        };
        if let Ok(Outcome::Stopped(reason)) = &ending
            && ending::is_hard(reason)
        {
            made.uncertain = true;
        }
        self.show_refusals(made).await;
        ending
    }

    /// What the job's guarded socket refused, for an author whose tools did not show it.
    async fn show_refusals(&self, made: &Made) {
        let Some(docker) = &made.docker else { return };
        let summary = match docker.guard_summary().await {
            None => return,
            Some(Ok(summary)) => summary,
            Some(Err(error)) => {
                let why = error_chain(&error);
                return self.job_log.warning(&format!("The guarded Docker socket is gone: {why}"));
            }
        };
        let count: u64 = summary.refused.values().sum();
        if count > 0 {
            self.job_log.warning(&format!(
                "The guarded Docker socket refused {count} of {} requests:\n{}",
                summary.requests,
                summary.messages.join("\n")
            ));
        }
    }

    /// Prepares, and again after a failure that may pass.
    async fn prepare_with_tries<'b>(
        &'b self,
        curtain: &'b Curtain,
        made: &mut Made,
    ) -> Result<Result<Ready<'b>, Outcome>, SystemFailure> {
        let mut tries = 1;
        loop {
            let prepared = match self.runner.config.prepare_timeout {
                None => self.prepare(curtain, made).await,
                Some(limit) => match timeout(limit, self.prepare(curtain, made)).await {
                    Ok(prepared) => prepared,
                    Err(_) => {
                        let deadline = Deadline::Prepare;
                        made.uncertain = true;
                        return Ok(Err(Outcome::Stopped(StopReason::TimedOut {
                            deadline,
                            after: limit,
                        })));
                    }
                },
            };
            match prepared {
                Err(failure) if failure.is_passing && tries < PREPARE_TRIES => {
                    self.job_log.error(&format!("Preparation failed: {}", failure.error));
                    self.job_log
                        .plain(&format!("Will be retried in {}s ...", PREPARE_PAUSE.as_secs()));
                    let is_clean = self.remove_tried(made).await;
                    tokio::time::sleep(PREPARE_PAUSE).await;
                    if !is_clean {
                        // The engine was away: what is there yet would be in the next try's way.
                        self.remove_tried(made).await;
                    }
                    tries += 1;
                }
                prepared => return prepared,
            }
        }
    }

    /// Removes what a preparation that failed has made. False when something is left.
    async fn remove_tried(&self, made: &Made) -> bool {
        let left = match &made.docker {
            Some(docker) => docker.close_guard().await,
            None => Vec::new(),
        };
        log_left(&left);
        let Some(engine) = &made.engine else { return left.is_empty() };
        let things = clean_up::things(self.plan);
        let errors = clean_up::remove(engine, &things, self.anonymous()).await;
        log_errors(&errors);
        left.is_empty() && errors.is_empty()
    }

    /// Two branches at once: images, services and the build container; and, with the helper,
    /// sources, caches and artifacts.
    async fn prepare<'b>(
        &'b self,
        curtain: &'b Curtain,
        made: &mut Made,
    ) -> Result<Result<Ready<'b>, Outcome>, SystemFailure> {
        self.running.stage(PREPARE, "docker_prepare");
        let section = OpenSection::new(&self.job_log, PREPARE);
        self.job_log.title("Preparing the \"docker\" executor");
        self.job_log
            .plain(&format!("Using Docker executor with image {} ...", self.plan.image.name));
        let engine = self.runner.shared.engine(&self.runner.config.docker).await?;
        made.engine = Some(engine.clone());
        let auths = self.credentials().await?;
        let config = Arc::clone(&self.runner.config);
        let registries = registries(&self.job.registries);
        let warm = self.lease.warm.clone();
        let docker = Docker::new(
            engine,
            Arc::clone(self.plan),
            config,
            auths,
            self.record,
            registries,
            warm,
        );
        let docker = Arc::new(docker);
        made.docker = Some(Arc::clone(&docker));

        // Boxed, as the compiler cannot see through both at once that they may change threads.
        let mut first = self.images_and_services(Arc::clone(&docker), curtain, section).boxed();
        let mut second = self.with_helper(Arc::clone(&docker), curtain).boxed();
        let (build, (mut stages, outcome)) = tokio::select! {
            build = &mut first => (build?, second.await?),
            got = &mut second => {
                let (stages, outcome) = got?;
                if outcome != Outcome::Success {
                    // No script will run: images and services are not waited for.
                    drop(first);
                    curtain.rise();
                    return Ok(Err(self.after_failed_sources(stages, outcome).await?));
                }
                (first.await?, (stages, outcome))
            }
        };
        if stages.is_none() && !build.is_root() {
            stages = Some(self.start_helper(docker, curtain).await?);
        }
        Ok(Ok(Ready { build, stages, outcome }))
    }

    async fn images_and_services(
        &self,
        docker: Arc<Docker>,
        curtain: &Curtain,
        section: OpenSection,
    ) -> Result<Build, SystemFailure> {
        let build = docker.prepare(self.job_log.clone(), self.followed.as_ref()).await?;
        drop(section);
        curtain.rise();
        Ok(build)
    }

    async fn credentials(&self) -> Result<Arc<Auths>, SystemFailure> {
        let variable = |name: &str| std::env::var_os(name).map(std::path::PathBuf::from);
        let sources = AuthSources {
            variable: self.plan.variables.content("DOCKER_AUTH_CONFIG"),
            docker_config: variable("DOCKER_CONFIG"),
            home: variable("HOME"),
            server: &self.job.registries,
            path: std::env::var_os("PATH"),
        };
        let (auths, warnings) = Auths::load(&sources).await?;
        for warning in warnings {
            self.job_log.warning(&warning);
        }
        Ok(Arc::new(auths))
    }

    /// What the helper does before the script.
    async fn with_helper<'b>(
        &'b self,
        docker: Arc<Docker>,
        curtain: &'b Curtain,
    ) -> Result<(Option<Stages<'b>>, Outcome), SystemFailure> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let section = curtain.section("prepare_script", "Preparing environment");
        curtain.say(Said::Plain(format!("Running on {} via {host}...", self.plan.names.host)));
        drop(section);
        if !self.plan.transfers.needs_helper {
            return Ok((None, Outcome::Success));
        }
        let mut stages = self.start_helper(docker, curtain).await?;
        let before = stages.before_script();
        let outcome = match self.runner.config.get_sources_timeout {
            None => before.await?,
            Some(limit) => match timeout(limit, before).await {
                Ok(ending) => ending?,
                Err(_) => Outcome::Stopped(StopReason::TimedOut {
                    deadline: Deadline::Sources,
                    after: limit,
                }),
            },
        };
        Ok((Some(stages), outcome))
    }

    async fn start_helper<'b>(
        &'b self,
        docker: Arc<Docker>,
        curtain: &'b Curtain,
    ) -> Result<Stages<'b>, SystemFailure> {
        let helper = docker.start_helper(curtain, self.job_log.clone()).await?;
        Ok(Stages {
            helper,
            curtain,
            plan: self.plan,
            job: self.job,
            runner: &self.runner.config,
            client: &self.runner.client,
            spool: self.record.directory().to_owned(),
        })
    }

    /// Sources that failed end the job; what is to be kept of a failed job is kept.
    async fn after_failed_sources(
        &self,
        stages: Option<Stages<'_>>,
        outcome: Outcome,
    ) -> Result<Outcome, SystemFailure> {
        if let (Some(mut stages), Outcome::ScriptFailed { .. }) = (stages, &outcome) {
            self.keep_results(&mut stages, false).await?;
            stages.clean_up().await?;
        }
        Ok(outcome)
    }

    /// Scripts, then what is kept of them.
    async fn run_scripts(&self, ready: &mut Ready<'_>, curtain: &Curtain) -> Ending {
        if ready.outcome != Outcome::Success {
            let stages = ready.stages.take();
            return self.after_failed_sources(stages, ready.outcome.clone()).await;
        }
        let mut outcome = self.run_steps(&mut ready.build).await?;
        if let Outcome::Stopped(reason) = &outcome
            && ending::is_hard(reason)
        {
            return Ok(outcome);
        }
        if !self.plan.scripts.after_script.is_empty() {
            let after = self.run_after_script(&mut ready.build, &outcome).await?;
            if outcome == Outcome::Success && !self.plan.settings.after_script_ignore_errors {
                outcome = after;
            }
        }
        if let Some(stages) = &mut ready.stages {
            curtain.flush(self.trace);
            let kept = self.keep_results(stages, outcome == Outcome::Success).await?;
            stages.clean_up().await?;
            if outcome == Outcome::Success {
                outcome = kept;
            }
        }
        Ok(outcome)
    }

    /// Caches, then artifacts; the first failure counts.
    async fn keep_results(&self, stages: &mut Stages<'_>, succeeded: bool) -> Ending {
        self.running.stage("archive_cache", "docker_run");
        let saved = stages.save_caches(succeeded).await?;
        self.running.stage("upload_artifacts", "docker_run");
        let uploaded = stages.upload_artifacts(succeeded).await?;
        Ok(if saved == Outcome::Success { uploaded } else { saved })
    }

    /// The job's steps, up to the first that fails or to a stop.
    async fn run_steps(&self, build: &mut Build) -> Ending {
        let reason = tokio::select! {
            ending = self.run_all_steps(build) => return ending,
            reason = self.stops.any() => reason,
            reason = script_deadline(self.plan.settings.script_timeout) => reason,
        };
        if ending::is_hard(&reason) {
            return Ok(Outcome::Stopped(reason));
        }
        if reason == StopReason::Canceled {
            self.job_log.warning("script canceled externally (UI, API)");
        } else {
            self.job_log.warning(&reason.to_string());
        }
        build.stop().await?;
        Ok(Outcome::Stopped(reason))
    }

    async fn run_all_steps(&self, build: &mut Build) -> Ending {
        for step in &self.plan.scripts.steps {
            let outcome = self.run_step(build, step).await?;
            if outcome != Outcome::Success {
                if let Some(words) = build.lost_daemon().await {
                    self.job_log.warning(&words);
                }
                return Ok(outcome);
            }
        }
        Ok(Outcome::Success)
    }

    async fn run_step(&self, build: &mut Build, step: &StepPlan) -> Ending {
        self.running.stage(&step.stage, "docker_run");
        let _section = OpenSection::new(&self.job_log, &step.stage);
        self.job_log.title(&format!("Executing \"{}\" stage of the job script", step.stage));
        let image = build.image();
        self.job_log
            .plain(&format!("Using docker image {} for {} ...", image.id, self.plan.image.name));
        let nonce = nonce();
        let script = self.plan.step_script(step, &self.runner.config, &nonce);
        self.run_script(build, &script, &nonce).await
    }

    async fn run_after_script(&self, build: &mut Build, outcome: &Outcome) -> Ending {
        self.running.stage("after_script", "docker_run");
        let _section = OpenSection::new(&self.job_log, "after_script");
        self.job_log.title("Running after_script");
        let nonce = nonce();
        let script = self.plan.after_script(JobStatus::after(outcome), &nonce);
        let limit = self.plan.settings.after_script_timeout.min(self.stops.left());
        let after = match timeout(limit, self.run_script(build, &script, &nonce)).await {
            Ok(ending) => ending?,
            Err(_) => {
                build.stop().await?;
                self.job_log.warning(&format!(
                    "after_script took longer than {} seconds and was stopped",
                    limit.as_secs()
                ));
                Outcome::ScriptFailed { exit_code: 1 }
            }
        };
        if let Outcome::ScriptFailed { exit_code } = &after
            && self.plan.settings.after_script_ignore_errors
        {
            self.job_log.warning(&format!(
                "after_script failed, but job will continue unaffected: exit code {exit_code}"
            ));
        }
        Ok(after)
    }

    async fn run_script(&self, build: &mut Build, script: &str, nonce: &str) -> Ending {
        let mut out = self.trace.writer(Source::Job, Stream::Out);
        let mut err = self.trace.writer(Source::Job, Stream::Err);
        let mark = EndMark::new(nonce);
        let attempts = self.plan.settings.attempts.section;
        let mut attempt = 1;
        let end = loop {
            match build.run(script, &mark, &mut out, &mut err).await {
                Err(ExecutorError::Gone) if attempt < attempts => attempt += 1,
                end => break end?,
            }
            self.job_log.warning(&format!(
                "the job's container is gone; attempt {attempt} of {attempts} in a new one"
            ));
            build.renew().await?;
        };
        Ok(match end.exit_code {
            0 => Outcome::Success,
            exit_code => Outcome::ScriptFailed { exit_code },
        })
    }

    fn anonymous(&self) -> Anonymous {
        Anonymous { remove: !self.runner.config.docker.volume_keep }
    }
}

/// Registries that the server has given the job credentials for.
fn registries(credentials: &[RegistryCredentials]) -> Vec<String> {
    let host = |url: &str| {
        let host = url.split_once("://").map_or(url, |(_, rest)| rest);
        host.split('/').next().unwrap_or_default().to_owned()
    };
    credentials.iter().map(|c| host(&c.url)).filter(|host| !host.is_empty()).collect()
}

/// Waits for the end of the scripts' time, if they have one of their own.
async fn script_deadline(limit: Option<Duration>) -> StopReason {
    match limit {
        None => std::future::pending().await,
        Some(after) => {
            tokio::time::sleep(after).await;
            StopReason::TimedOut { deadline: Deadline::Script, after }
        }
    }
}

/// A word that no script can guess.
fn nonce() -> String {
    random_hex::<8>()
}

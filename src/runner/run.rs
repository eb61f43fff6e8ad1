//! The story of a job, from the server's payload to the last word about it.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::wire::JobPayload,
    config::flags,
    docker::{
        Engine,
        auth::{AuthSources, Auths},
    },
    executor::{
        curtain::{Curtain, Said},
        docker::{
            Build, Docker, ExecutorError, Followed,
            clean_up::{self, Anonymous},
        },
    },
    job::{
        self, InvalidJob, Job,
        outcome::{Deadline, JobStatus, Outcome, StopReason},
    },
    ledger::{Entry, JobRecord},
    metrics::Running,
    plan::{self, Place, Plan, StepPlan, script::EndMark},
    secret::Secret,
    trace::{
        self, Channel as Stream, Delivery, Greeting, KeepAlive, Limits, Masks, Remote, Source,
        Trace, Voice,
    },
};

use super::{
    Runner,
    channel::{Acknowledged, Channel},
    ending::{self, Ending, SystemFailure},
    poll::Arrived,
    slots::Slot,
    stages::Stages,
    stops::{Interrupt, Stops},
};

/// Tries of a preparation that may go better, and the pause between them (GitLab Runner:
/// `PreparationRetries`, `RetryDelay`).
const PREPARE_TRIES: u32 = 3;
const PREPARE_PAUSE: Duration = Duration::from_secs(3);

/// Flag that must be known before there is a plan.
const INTERPOLATION: &str = "FF_ENABLE_JOB_INPUTS_INTERPOLATION";

/// Section of the first branch of preparation.
const PREPARE: &str = "prepare_executor";

/// How long the server may be asked to take a job's end, beyond the job's own time: its token is no
/// good for longer.
const TOKEN_GRACE: Duration = Duration::from_hours(1);

/// How long a job's removal may take before it is left to the next start.
const REMOVAL_DEADLINE: Duration = Duration::from_mins(5);

/// How long an engine that went away is left alone before the removal is tried again.
const REMOVAL_PAUSE: Duration = Duration::from_secs(2);

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
    let mut channel = Channel {
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
    let reuse = plan::sources::reuses_tree(&payload, &runner.config);
    let slot = runner.shared.slots.take(&token, payload.job_info.project_id, reuse).await;
    let planned = match undecodable {
        None => plan_job(runner, &payload, &slot, correlation_id),
        Some(failure) => Err(failure),
    };
    // Noted before the server hears that the job is taken: from then on it waits for the end.
    let noted = begin(runner, &payload, &planned).await;
    match channel.acknowledge().await {
        Acknowledged::Go => {}
        Acknowledged::Unwanted => {
            tracing::info!("job is not wanted any more");
            return forget(noted);
        }
        Acknowledged::Canceled => {
            channel.give_back_canceled().await;
            return forget(noted);
        }
    }
    let record = match noted {
        Ok(record) => record,
        Err(failure) => {
            running.failed(failure.reason.as_str());
            refuse(runner, &channel, &payload, &planned, failure).await;
            return;
        }
    };
    let trace = match Trace::create(&record.trace(), trace_settings(&payload, runner, &planned)) {
        Ok(trace) => trace,
        Err(error) => {
            let failure = SystemFailure::spool(&error);
            running.failed(failure.reason.as_str());
            if refuse(runner, &channel, &payload, &planned, failure).await {
                close_record(record);
            }
            return;
        }
    };
    greet(&trace.voice(), runner, &planned);
    channel.debug_trace = planned
        .as_ref()
        .is_ok_and(|(_, plan)| plan.settings.debug_trace || plan.settings.debug_services);

    // The trace is sent while the job runs; the server's answers may stop the job.
    let delivery = Delivery::default();
    let (remote, asked) = watch::channel(Remote::None);
    let done = CancellationToken::new();
    let dynamic = planned
        .as_ref()
        .is_ok_and(|(_, plan)| plan.flags.on("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL"));
    let keep_alive = if dynamic { KeepAlive::Dynamic } else { KeepAlive::Fixed };
    let pump =
        trace::pump(trace.clone(), &channel, delivery.clone(), remote, keep_alive, done.clone());
    let work = work(runner, &planned, &trace, &record, asked, interrupt, &done, &running).boxed();
    let ((), (ending, made)) = tokio::join!(pump, work);

    if let Some(reason) = ending::reason(&ending) {
        running.failed(reason.as_str());
    }
    running.stage("", "cleanup");

    // Removal does not wait for the server, nor the server for removal.
    slot.leave();
    let plan = planned.ok().map(|(_, plan)| plan);
    let removal = remove(Arc::clone(runner), plan, made, payload.id, slot);
    let removal = runner.shared.removals.spawn(removal);
    let until = Instant::now() + timeout_of(&payload) + TOKEN_GRACE;
    let limits = Limits { passes: runner.config.final_update_retry_limit, until: Some(until) };
    let last_word = ending::last_word(&ending, &announced);
    // Should this process end before the server has it, the next one says it.
    if let Err(error) = record.note_end(&last_word) {
        tracing::warn!(%error, "job's end could not be noted");
    }
    let delivered = trace::finish(&trace, &channel, &delivery, &last_word, limits).await;
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
    trace: &Trace,
    record: &JobRecord,
    asked: watch::Receiver<Remote>,
    interrupt: &Interrupt,
    done: &CancellationToken,
    running: &Running,
) -> (Ending, Made) {
    let mut made = Made::default();
    let voice = trace.voice();
    let ending = match planned {
        Err(failure) => Err(failure.clone()),
        Ok((job, plan)) => {
            let stops = Stops::new(job.timeout, asked, interrupt.subscribe());
            let followed = plan.settings.debug_services.then(|| Followed::new(trace.clone()));
            let voice = voice.clone();
            let work = Work { runner, job, plan, trace, voice, stops, record, followed, running };
            let ending = work.run(&mut made).await;
            if let Some(followed) = &work.followed {
                followed.end().await;
            }
            ending
        }
    };
    ending::show(&ending, &voice);
    done.cancel();
    (ending, made)
}

/// Makes the job and its plan.
fn plan_job(
    runner: &Arc<Runner>,
    payload: &JobPayload,
    slot: &Slot,
    correlation_id: Option<String>,
) -> Planned {
    let mut payload = payload.clone();
    let written = payload.variables.iter().rev().find(|v| v.key == INTERPOLATION);
    let interpolates = flags::find(INTERPOLATION).is_none_or(|flag| {
        let written = written.map(|variable| variable.value.as_str());
        flags::resolve(flag, &runner.config.feature_flags, written).on
    });
    if interpolates {
        job::input::interpolate(&mut payload).map_err(InvalidJob::from)?;
    }
    let job = Job::try_from(payload)?;
    let place = Place {
        system_id: runner.shared.system_id.clone(),
        instance: runner.shared.state.instance().to_owned(),
        slot: slot.runner,
        project_slot: slot.project,
        random: format!("{:016x}", rand::random::<u64>()),
        architecture: std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        correlation_id,
        server_ca: runner.client.server_ca(),
        client_certificate: runner.client.client_certificate(),
    };
    let plan = plan::plan(&job, &runner.config, &place)?;
    Ok((job, Arc::new(plan)))
}

/// Notes the job and all it will make, on disk, before anything is made.
async fn begin(
    runner: &Arc<Runner>,
    payload: &JobPayload,
    planned: &Planned,
) -> Result<JobRecord, SystemFailure> {
    let entry = Entry {
        job: payload.id,
        token: payload.token.clone(),
        url: runner.config.url.clone(),
        runner: runner.config.name.clone(),
        failure_reasons: payload.features.failure_reasons.clone(),
        engine: runner.config.docker.host.clone(),
        things: planned.as_ref().map(|(_, plan)| clean_up::things(plan)).unwrap_or_default(),
    };
    let key = format!("{}-{}", runner.config.short_token(), payload.id);
    let shared = Arc::clone(&runner.shared);
    match tokio::task::spawn_blocking(move || shared.state.begin(&key, &entry)).await {
        Ok(record) => Ok(record?),
        Err(panicked) => Err(SystemFailure::panicked(&panicked)),
    }
}

fn timeout_of(payload: &JobPayload) -> Duration {
    Duration::from_secs(u64::try_from(payload.runner_info.timeout).unwrap_or_default())
}

fn trace_settings(payload: &JobPayload, runner: &Runner, planned: &Planned) -> trace::Settings {
    let phrases: Vec<String> = match planned {
        Ok((_, plan)) => plan.masks.clone(),
        Err(_) => payload
            .variables
            .iter()
            .filter(|variable| variable.masked)
            .map(|variable| variable.value.clone())
            .collect(),
    };
    let flag = |name: &str| planned.as_ref().map_or(true, |(_, plan)| plan.flags.on(name));
    trace::Settings {
        limit: runner.config.output_limit,
        timestamps: flag("FF_TIMESTAMPS"),
        sections: payload.features.trace_sections,
        masks: Masks {
            phrases: phrases.into_iter().map(Secret::new).collect(),
            prefixes: payload.features.token_mask_prefixes.clone(),
            all_default_prefixes: flag("FF_MASK_ALL_DEFAULT_TOKENS"),
        },
    }
}

fn greet(voice: &Voice, runner: &Runner, planned: &Planned) {
    let flags = planned.as_ref().map(|(_, plan)| plan.flags.changed()).unwrap_or_default();
    voice.greet(&Greeting {
        name: "longshore",
        version: env!("CARGO_PKG_VERSION"),
        revision: crate::REVISION,
        runner: &runner.config.name,
        token: &runner.config.short_token(),
        system_id: &runner.shared.system_id,
        flags: &flags,
    });
    let Ok((job, plan)) = planned else { return };
    for warning in &plan.warnings {
        voice.warning(warning);
    }
    if plan.flags.on("FF_LOG_IMAGES_CONFIGURED_FOR_JOB") {
        let services: Vec<&str> = plan.services.iter().map(|s| s.image.as_str()).collect();
        tracing::info!(image = plan.image.name, ?services, "images of the job");
    }
    if let Some(notice) = job::notice::policy(&job.payload.policy_options) {
        for line in notice.lines() {
            voice.plain(line);
        }
    }
}

/// A job of which nothing has begun.
fn forget(noted: Result<JobRecord, SystemFailure>) {
    if let Ok(record) = noted
        && let Err(error) = record.close()
    {
        tracing::warn!(%error, "job's directory could not be removed");
    }
}

/// A job for which there is no place on disk: its end and the reason are said all the same. True
/// when the server has them.
async fn refuse(
    runner: &Runner,
    channel: &Channel,
    payload: &JobPayload,
    planned: &Planned,
    failure: SystemFailure,
) -> bool {
    let trace = Trace::in_memory(trace_settings(payload, runner, planned));
    greet(&trace.voice(), runner, planned);
    let ending = Err(failure);
    ending::show(&ending, &trace.voice());
    let last_word = ending::last_word(&ending, &payload.features.failure_reasons);
    let limits = Limits { passes: runner.config.final_update_retry_limit, until: None };
    let delivered = trace::finish(&trace, channel, &Delivery::default(), &last_word, limits).await;
    log_end(&ending, &delivered);
    delivered.is_ok()
}

/// A job with its plan, or why there is none.
type Planned = Result<(Job, Arc<Plan>), SystemFailure>;

/// What a job has made, as far as its removal must know.
#[derive(Default)]
struct Made {
    /// Set once something may be there.
    engine: Option<Engine>,
    /// Something may have been under way when the job was stopped.
    uncertain: bool,
}

/// A job at work.
struct Work<'a> {
    runner: &'a Arc<Runner>,
    job: &'a Job,
    plan: &'a Arc<Plan>,
    trace: &'a Trace,
    voice: Voice,
    stops: Stops,
    record: &'a JobRecord,
    /// With `CI_DEBUG_SERVICES`.
    followed: Option<Followed>,
    running: &'a Running,
}

/// A section of the trace that ends however its stage ends.
struct OpenSection {
    voice: Voice,
    name: String,
}

impl OpenSection {
    fn new(voice: &Voice, name: &str) -> Self {
        voice.section_start(name);
        Self { voice: voice.clone(), name: name.to_owned() }
    }
}

impl Drop for OpenSection {
    fn drop(&mut self) {
        self.voice.section_end(&self.name);
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
        let ending = tokio::select! {
            ending = self.run_scripts(&mut ready, &curtain) => ending,
            reason = self.stops.hard() => Ok(Outcome::Stopped(reason)),
        };
        if let Ok(Outcome::Stopped(reason)) = &ending
            && ending::is_hard(reason)
        {
            made.uncertain = true;
        }
        ending
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
                    self.voice.error(&format!("Preparation failed: {}", failure.error));
                    self.voice
                        .plain(&format!("Will be retried in {}s ...", PREPARE_PAUSE.as_secs()));
                    if let Some(engine) = &made.engine {
                        log_errors(
                            &clean_up::remove(
                                engine,
                                &clean_up::things(self.plan),
                                self.anonymous(),
                            )
                            .await,
                        );
                    }
                    tokio::time::sleep(PREPARE_PAUSE).await;
                    tries += 1;
                }
                prepared => return prepared,
            }
        }
    }

    /// Two branches at once: images, services and the build container; and, with the helper,
    /// sources, caches and artifacts.
    async fn prepare<'b>(
        &'b self,
        curtain: &'b Curtain,
        made: &mut Made,
    ) -> Result<Result<Ready<'b>, Outcome>, SystemFailure> {
        self.running.stage(PREPARE, "docker_prepare");
        let section = OpenSection::new(&self.voice, PREPARE);
        self.voice.title("Preparing the \"docker\" executor");
        self.voice.plain(&format!("Using Docker executor with image {} ...", self.plan.image.name));
        let engine = self.runner.shared.engine(&self.runner.config.docker).await?;
        made.engine = Some(engine.clone());
        let auths = self.credentials().await?;
        let config = Arc::clone(&self.runner.config);
        let docker = Arc::new(Docker::new(engine, Arc::clone(self.plan), config, auths));

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
        let build = docker.prepare(self.voice.clone(), self.followed.as_ref()).await?;
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
            payload: &self.job.payload.credentials,
            path: std::env::var_os("PATH"),
        };
        let (auths, warnings) = Auths::load(&sources).await?;
        for warning in warnings {
            self.voice.warning(&warning);
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
        if !self.plan.needs_helper {
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
        let helper = docker.start_helper(curtain, self.voice.clone()).await?;
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
        if !self.plan.after_script.is_empty() {
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
            self.voice.warning("script canceled externally (UI, API)");
        } else {
            self.voice.warning(&reason.to_string());
        }
        build.stop().await?;
        Ok(Outcome::Stopped(reason))
    }

    async fn run_all_steps(&self, build: &mut Build) -> Ending {
        for step in &self.plan.steps {
            let outcome = self.run_step(build, step).await?;
            if outcome != Outcome::Success {
                if let Some(words) = build.lost_daemon().await {
                    self.voice.warning(&words);
                }
                return Ok(outcome);
            }
        }
        Ok(Outcome::Success)
    }

    async fn run_step(&self, build: &mut Build, step: &StepPlan) -> Ending {
        self.running.stage(&step.stage, "docker_run");
        let _section = OpenSection::new(&self.voice, &step.stage);
        self.voice.title(&format!("Executing \"{}\" stage of the job script", step.stage));
        let image = build.image();
        self.voice
            .plain(&format!("Using docker image {} for {} ...", image.id, self.plan.image.name));
        let nonce = nonce();
        let script = self.plan.step_script(step, &self.runner.config, &nonce);
        self.run_script(build, &script, &nonce).await
    }

    async fn run_after_script(&self, build: &mut Build, outcome: &Outcome) -> Ending {
        self.running.stage("after_script", "docker_run");
        let _section = OpenSection::new(&self.voice, "after_script");
        self.voice.title("Running after_script");
        let nonce = nonce();
        let script = self.plan.after_script(JobStatus::after(outcome), &nonce);
        let limit = self.plan.settings.after_script_timeout.min(self.stops.left());
        let after = match timeout(limit, self.run_script(build, &script, &nonce)).await {
            Ok(ending) => ending?,
            Err(_) => {
                build.stop().await?;
                self.voice.warning(&format!(
                    "after_script took longer than {} seconds and was stopped",
                    limit.as_secs()
                ));
                Outcome::ScriptFailed { exit_code: 1 }
            }
        };
        if let Outcome::ScriptFailed { exit_code } = &after
            && self.plan.settings.after_script_ignore_errors
        {
            self.voice.warning(&format!(
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
            self.voice.warning(&format!(
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
    format!("{:016x}", rand::random::<u64>())
}

/// Removes what a job made. True when nothing is left; the job's numbers are free after it.
async fn remove(
    runner: Arc<Runner>,
    plan: Option<Arc<Plan>>,
    made: Made,
    job: crate::ids::JobId,
    slot: Slot,
) -> bool {
    let (Some(plan), Some(engine)) = (plan, made.engine) else { return true };
    let mut slot = Some(slot);
    let mut known = false;
    loop {
        let late_of = made.uncertain.then_some(job);
        let removal = remove_once(&runner, &engine, &plan, late_of, &mut slot);
        let Ok(errors) = timeout(REMOVAL_DEADLINE, removal).await else {
            tracing::warn!("removal of the job's containers took too long; the next start goes on");
            return false;
        };
        // The last tries are made when the daemon ends; the next start goes on.
        let waits =
            errors.iter().any(crate::docker::Error::is_gone) && !runner.shared.removals.is_closed();
        if !waits {
            log_errors(&errors);
            return errors.is_empty();
        }
        if !known {
            log_errors(&errors);
            tracing::warn!("engine went away; removal goes on when it is back");
            known = true;
        }
        tokio::time::sleep(REMOVAL_PAUSE).await;
    }
}

/// Removes all that is planned, and what came late of a job that was stopped. The job's numbers are
/// free once its containers are gone.
async fn remove_once(
    runner: &Runner,
    engine: &Engine,
    plan: &Plan,
    late_of: Option<crate::ids::JobId>,
    slot: &mut Option<Slot>,
) -> Vec<crate::docker::Error> {
    let anonymous = Anonymous { remove: !runner.config.docker.volume_keep };
    let things = clean_up::things(plan);
    let mut errors = clean_up::remove_containers(engine, &things, anonymous).await;
    if errors.is_empty() {
        drop(slot.take());
    }
    if let Some(job) = late_of {
        // Before the volumes, which what comes late may use.
        let instance = runner.shared.state.instance();
        errors.extend(clean_up::remove_late(engine, instance, job, anonymous).await);
    }
    errors.extend(clean_up::remove_rest(engine, &things).await);
    errors
}

/// Forgets the job once its server has its end and nothing of it is left.
async fn close(record: JobRecord, delivered: bool, removal: tokio::task::JoinHandle<bool>) {
    let removed = removal.await.unwrap_or(false);
    if delivered && removed {
        close_record(record);
    }
}

fn close_record(record: JobRecord) {
    if let Err(error) = record.close() {
        tracing::warn!(%error, "job's directory could not be removed");
    }
}

fn log_errors(errors: &[crate::docker::Error]) {
    for error in errors {
        tracing::warn!(error = crate::docker::chain(error), "something of the job is left");
    }
}

fn log_end(ending: &Ending, delivered: &Result<(), trace::FinishError>) {
    match ending {
        Ok(Outcome::Success) => tracing::info!("job succeeded"),
        Ok(outcome) => tracing::info!(?outcome, "job failed"),
        Err(failure) => tracing::warn!(error = failure.error, "job failed: system failure"),
    }
    if let Err(error) = delivered {
        tracing::error!(error = crate::docker::chain(error), "job's end could not be delivered");
    }
}

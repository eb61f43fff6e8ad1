//! What comes before a job's first stage: its plan, its entry in the ledger, the first lines of its
//! trace; and what is said of a job for which that cannot be had.

use std::{sync::Arc, time::Duration};

use crate::{
    base::{ids::random_hex, secret::Secret},
    executor::docker::clean_up,
    gitlab::{
        api::wire::JobPayload,
        job_client::{Acknowledged, JobClient},
        trace::{Delivery, Limits, finish},
    },
    ledger::{Entry, JobRecord},
    runner::metrics::Running,
    trace::{self, Greeting, JobLog, Masks, Trace},
    workload::{JobSpec, Leases, Placement, Workload},
};

use super::{
    Runner,
    ending::{self, SystemFailure, log_end},
    removal::close_record,
    slots::Slot,
};

/// How long the server may be asked to take a job's end, beyond the job's own time: its token is no
/// good for longer.
pub(super) const TOKEN_GRACE: Duration = Duration::from_hours(1);

/// A job with its workload, or why there is none.
pub(super) type Planned = Result<PlannedJob, SystemFailure>;

/// A job with its workload, and what that was planned from.
pub(super) struct PlannedJob {
    pub(super) job: JobSpec,
    pub(super) plan: Arc<Workload>,
    placement: Placement,
}

impl PlannedJob {
    /// What is lent to the job by now.
    pub(super) fn leases(&self) -> &Leases {
        &self.placement.leases
    }

    /// Plans the job again, with what is lent to it.
    pub(super) fn plan_again(&mut self, runner: &Runner, leases: Leases) {
        self.placement.leases = leases;
        match Workload::plan(&self.job, &runner.config, &self.placement) {
            Ok(plan) => self.plan = Arc::new(plan),
            Err(error) => debug_assert!(false, "what is lent refuses nothing: {error}"),
        }
    }
}

/// Plans a job, without anything that is lent to it yet.
pub(super) fn plan_job(
    runner: &Arc<Runner>,
    job: JobSpec,
    slot: &Slot,
    correlation_id: Option<String>,
) -> Planned {
    let placement = Placement {
        system_id: runner.shared.system_id.clone(),
        instance: runner.shared.state.instance().to_owned(),
        slot: slot.runner,
        project_slot: slot.project,
        random: random_hex::<8>(),
        architecture: std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        correlation_id,
        server_ca: runner.client.server_ca(),
        client_certificate: runner.client.client_certificate(),
        leases: Leases::default(),
    };
    let plan = Arc::new(Workload::plan(&job, &runner.config, &placement)?);
    Ok(PlannedJob { job, plan, placement })
}

/// Takes the job: notes it, tells its server, opens its trace. `None` for one that ends here.
pub(super) async fn open(
    runner: &Arc<Runner>,
    channel: &JobClient,
    payload: &JobPayload,
    planned: &Planned,
    running: &Running,
) -> Option<(JobRecord, Trace)> {
    // Noted before the server hears that the job is taken: from then on it waits for the end.
    let noted = begin(runner, payload, planned).await;
    match channel.acknowledge().await {
        Acknowledged::Go => {}
        Acknowledged::Unwanted => {
            tracing::info!("job is not wanted any more");
            forget(noted);
            return None;
        }
        Acknowledged::Canceled => {
            channel.give_back_canceled().await;
            forget(noted);
            return None;
        }
    }
    let record = match noted {
        Ok(record) => record,
        Err(failure) => {
            running.failed(failure.reason.as_str());
            refuse(runner, channel, payload, planned, failure).await;
            return None;
        }
    };
    match Trace::create(&record.trace(), trace_settings(payload, runner, planned)) {
        Ok(trace) => Some((record, trace)),
        Err(error) => {
            let failure = SystemFailure::spool(&error);
            running.failed(failure.reason.as_str());
            if refuse(runner, channel, payload, planned, failure).await {
                close_record(record);
            }
            None
        }
    }
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
        things: planned.as_ref().map(|job| clean_up::things(&job.plan)).unwrap_or_default(),
    };
    let key = format!("{}-{}", runner.config.short_token(), payload.id);
    let shared = Arc::clone(&runner.shared);
    match tokio::task::spawn_blocking(move || shared.state.begin(&key, &entry)).await {
        Ok(record) => Ok(record?),
        Err(panicked) => Err(SystemFailure::panicked(&panicked)),
    }
}

pub(super) fn timeout_of(payload: &JobPayload) -> Duration {
    Duration::from_secs(u64::try_from(payload.runner_info.timeout).unwrap_or_default())
}

fn trace_settings(payload: &JobPayload, runner: &Runner, planned: &Planned) -> trace::Settings {
    let phrases: Vec<Secret> = match planned {
        Ok(job) => job.plan.masks.clone(),
        Err(_) => payload
            .variables
            .iter()
            .filter(|variable| variable.masked)
            .map(|variable| Secret::new(&variable.value))
            .collect(),
    };
    let flag = |name: &str| planned.as_ref().map_or(true, |job| job.plan.flags.on(name));
    trace::Settings {
        limit: runner.config.output_limit,
        timestamps: flag("FF_TIMESTAMPS"),
        sections: payload.features.trace_sections,
        masks: Masks {
            phrases,
            prefixes: payload.features.token_mask_prefixes.clone(),
            all_default_prefixes: flag("FF_MASK_ALL_DEFAULT_TOKENS"),
        },
    }
}

pub(super) fn greet(job_log: &JobLog, runner: &Runner, planned: &Planned) {
    let flags = planned.as_ref().map(|job| job.plan.flags.changed()).unwrap_or_default();
    job_log.greet(&Greeting {
        name: "longshore",
        version: env!("CARGO_PKG_VERSION"),
        revision: crate::REVISION,
        runner: &runner.config.name,
        token: &runner.config.short_token(),
        system_id: &runner.shared.system_id,
        flags: &flags,
    });
    let Ok(PlannedJob { job, plan, .. }) = planned else { return };
    for warning in &plan.warnings {
        job_log.warning(warning);
    }
    if plan.flags.on("FF_LOG_IMAGES_CONFIGURED_FOR_JOB") {
        let services: Vec<&str> = plan.services.iter().map(|s| s.image.as_str()).collect();
        tracing::info!(image = plan.image.name, ?services, "images of the job");
    }
    for notice in &job.notices {
        job_log.plain(notice);
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
    channel: &JobClient,
    payload: &JobPayload,
    planned: &Planned,
    failure: SystemFailure,
) -> bool {
    let trace = Trace::in_memory(trace_settings(payload, runner, planned));
    greet(&trace.job_log(), runner, planned);
    let ending = Err(failure);
    ending::show(&ending, &trace.job_log());
    let last_word = ending::last_word(&ending, &payload.features.failure_reasons);
    let limits = Limits { passes: runner.config.final_update_retry_limit, until: None };
    let delivered = finish(&trace, channel, &Delivery::default(), &last_word, limits).await;
    log_end(&ending, &delivered);
    delivered.is_ok()
}

//! What comes before a job's first stage: its slot, its workload, its entry in the ledger, the word to
//! its CI engine that it is taken, its trace. And what is reported of a job for which one of these
//! cannot be had.

use std::sync::Arc;

use crate::{
    base::{ids::random_hex, secret::Secret},
    executor::SessionRequest,
    ledger::{JobRecord, LedgerEntry, Owner},
    trace::{self, Greeting, JobLog, Masks, Trace},
    workload::{self, JobSpec, Leases, Placement, Workload},
};

use super::{
    Runner,
    ending::{self, SystemFailure, log_end},
    metrics::Running,
    removal::close_record,
    reporter::{Acceptance, ArtifactStore, Conclusion, Reporter, StreamOptions},
    slots::JobSlot,
};

/// A job as its CI engine hands it over.
pub struct IncomingJob {
    /// Whose job it is.
    pub owner: Owner,
    /// What it asks for, as far as that can be understood.
    pub spec: Box<JobSpec>,
    /// Why it cannot run, where that is known already.
    pub refused: Option<SystemFailure>,
    /// What its jobs are told of the CI engine's server.
    pub server: ServerFacts,
    /// Hears how it goes.
    pub reporter: Arc<dyn Reporter>,
    /// Keeps its artifacts.
    pub artifacts: Arc<dyn ArtifactStore>,
}

/// What jobs are told of the server that they come from.
#[derive(Debug, Clone, Default)]
pub struct ServerFacts {
    /// The id under which the server logged the request that brought the job.
    pub correlation_id: Option<String>,
    /// PEM of CAs for the server.
    pub ca: Option<String>,
    /// Client certificate and key towards the server, PEM.
    pub client_certificate: Option<(String, Secret)>,
}

/// A job that is taken, with all that there must be before it runs.
pub(super) struct OpenJob {
    pub(super) runner: Arc<Runner>,
    /// What will run, or why nothing will.
    pub(super) workload: Result<Arc<Workload>, SystemFailure>,
    pub(super) slot: JobSlot,
    pub(super) record: JobRecord,
    pub(super) trace: Trace,
    pub(super) reporter: Arc<dyn Reporter>,
    pub(super) artifacts: Arc<dyn ArtifactStore>,
    pub(super) running: Running,
}

impl OpenJob {
    /// How the trace of this job is to be sent.
    pub(super) fn stream_options(&self) -> StreamOptions {
        let Ok(workload) = &self.workload else { return StreamOptions::default() };
        StreamOptions {
            is_debug: workload.settings.debug_trace || workload.settings.debug_services,
            is_dynamic: workload.flags.on("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL"),
        }
    }

    /// What a session of this job is opened for.
    pub(super) fn session_request(&self, workload: &Arc<Workload>) -> SessionRequest {
        SessionRequest {
            workload: Arc::clone(workload),
            trace: self.trace.clone(),
            directories: self.record.directories(),
        }
    }
}

/// Takes a job. `None` for one that ends here: its CI engine does not want it any more, or knows why
/// it does not run.
pub(super) async fn open(runner: &Arc<Runner>, incoming: IncomingJob) -> Option<OpenJob> {
    let id = incoming.owner.job();
    let running = runner.process.metrics.job(id, runner.labels(), incoming.spec.page.clone());
    let slot = take_slot(runner, &incoming.spec).await;
    let workload = plan(runner, &incoming, &slot).await;
    // Written down before the CI engine hears that the job is taken: from then on it waits for the
    // job's end.
    let recorded = record(runner, &incoming, &workload).await;
    if incoming.reporter.accept().await == Acceptance::Unwanted {
        tracing::info!("job is not wanted any more");
        release(runner, &workload).await;
        if let Ok(record) = recorded {
            close_record(record);
        }
        return None;
    }
    let settings = trace_settings(runner, &incoming.spec, &workload);
    let opened = match recorded {
        Ok(record) => match Trace::create(&record.trace(), settings) {
            Ok(trace) => Ok((record, trace)),
            Err(error) => Err((Some(record), SystemFailure::spool(&error))),
        },
        Err(failure) => Err((None, failure)),
    };
    let (record, trace) = match opened {
        Ok(opened) => opened,
        Err((record, failure)) => {
            running.failed(failure.reason.as_str());
            release(runner, &workload).await;
            let is_reported = refuse(runner, &incoming, &workload, failure).await;
            // What could not be reported, the next process reports.
            if let Some(record) = record
                && is_reported
            {
                close_record(record);
            }
            return None;
        }
    };
    greet(&trace.job_log(), runner, &workload);
    Some(OpenJob {
        runner: Arc::clone(runner),
        workload,
        slot,
        record,
        trace,
        reporter: incoming.reporter,
        artifacts: incoming.artifacts,
        running,
    })
}

async fn take_slot(runner: &Runner, spec: &JobSpec) -> JobSlot {
    let is_reused = workload::sources::reuses_tree(spec, &runner.config);
    runner.process.slots.take(&runner.config.short_token(), spec.project.id, is_reused).await
}

/// Plans the job: first without what is kept between jobs, then with what of that fits it.
async fn plan(
    runner: &Runner,
    incoming: &IncomingJob,
    slot: &JobSlot,
) -> Result<Arc<Workload>, SystemFailure> {
    if let Some(refused) = &incoming.refused {
        return Err(refused.clone());
    }
    let ServerFacts { correlation_id, ca, client_certificate } = incoming.server.clone();
    let mut placement = Placement {
        system_id: runner.process.system_id.clone(),
        instance: runner.process.state.instance().to_owned(),
        slot: slot.runner,
        project_slot: slot.project,
        random: random_hex::<8>(),
        architecture: std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        correlation_id,
        server_ca: ca,
        client_certificate,
        leases: Leases::default(),
    };
    let draft = Workload::plan(&incoming.spec, &runner.config, &placement)?;
    placement.leases = runner.executor.lease(&draft).await;
    if placement.leases == Leases::default() {
        return Ok(Arc::new(draft));
    }
    Ok(Arc::new(Workload::plan(&incoming.spec, &runner.config, &placement)?))
}

/// Gives back what was leased for a job that does not run.
async fn release(runner: &Runner, workload: &Result<Arc<Workload>, SystemFailure>) {
    if let Ok(workload) = workload {
        runner.executor.release(workload).await;
    }
}

/// Writes down the job and all that it will make, on disk before anything is made.
async fn record(
    runner: &Arc<Runner>,
    incoming: &IncomingJob,
    workload: &Result<Arc<Workload>, SystemFailure>,
) -> Result<JobRecord, SystemFailure> {
    let resources = workload.as_ref().map(|workload| runner.executor.resources(workload));
    let entry = LedgerEntry {
        owner: incoming.owner.clone(),
        runner: runner.config.name.clone(),
        address: runner.config.executor.address().map(str::to_owned),
        resources: resources.unwrap_or_default(),
    };
    let key = format!("{}-{}", runner.config.short_token(), incoming.owner.job());
    let process = Arc::clone(&runner.process);
    match tokio::task::spawn_blocking(move || process.state.begin(&key, &entry)).await {
        Ok(record) => Ok(record?),
        Err(panicked) => Err(SystemFailure::panicked(&panicked)),
    }
}

fn trace_settings(
    runner: &Runner,
    spec: &JobSpec,
    workload: &Result<Arc<Workload>, SystemFailure>,
) -> trace::Settings {
    let phrases = match workload {
        Ok(workload) => workload.masks.clone(),
        Err(_) => {
            let masked = spec.variables.iter().filter(|variable| variable.masked);
            masked.map(|variable| Secret::new(variable.value.clone())).collect()
        }
    };
    let flag = |name: &str| workload.as_ref().map_or(true, |workload| workload.flags.on(name));
    trace::Settings {
        limit: runner.config.output_limit,
        timestamps: flag("FF_TIMESTAMPS"),
        sections: spec.trace.sections,
        masks: Masks {
            phrases,
            prefixes: spec.trace.mask_prefixes.clone(),
            all_default_prefixes: flag("FF_MASK_ALL_DEFAULT_TOKENS"),
        },
    }
}

/// The first lines of the trace.
fn greet(log: &JobLog, runner: &Runner, workload: &Result<Arc<Workload>, SystemFailure>) {
    let flags = workload.as_ref().map(|workload| workload.flags.changed()).unwrap_or_default();
    log.greet(&Greeting {
        name: "longshore",
        version: env!("CARGO_PKG_VERSION"),
        revision: crate::REVISION,
        runner: runner.config.name.as_str(),
        token: &runner.config.short_token(),
        system_id: &runner.process.system_id,
        flags: &flags,
    });
    let Ok(workload) = workload else { return };
    for warning in &workload.warnings {
        log.warning(warning);
    }
    if workload.flags.on("FF_LOG_IMAGES_CONFIGURED_FOR_JOB") {
        let services: Vec<&str> = workload.services.iter().map(|s| s.image.as_str()).collect();
        tracing::info!(image = workload.image.name, ?services, "images of the job");
    }
    for line in &workload.job.notices {
        log.plain(line);
    }
}

/// Reports the end of a job for which there is no space on disk: its trace is kept in memory. True
/// when the CI engine knows.
async fn refuse(
    runner: &Runner,
    incoming: &IncomingJob,
    workload: &Result<Arc<Workload>, SystemFailure>,
    failure: SystemFailure,
) -> bool {
    let trace = Trace::in_memory(trace_settings(runner, &incoming.spec, workload));
    greet(&trace.job_log(), runner, workload);
    let ending = Err(failure);
    ending::show(&ending, &trace.job_log());
    let delivered = incoming.reporter.finish(&trace, &Conclusion::of(&ending)).await;
    log_end(&ending, &delivered);
    delivered.is_ok()
}

//! After a crash: jobs that an earlier process was running are over. Their servers are told at once,
//! and what they made is removed.

use std::sync::Arc;

use crate::{
    base::error_chain,
    config::DockerConfig,
    executor::docker::{
        clean_up::{self, Anonymous},
        engine::Engine,
        socket,
    },
    gitlab::{
        api::Client,
        job_client::{Acknowledged, JobClient},
        trace::{Delivery, Final, Limits, finish},
    },
    ledger::{Entry, JobRecord},
    trace::{self, Masks, Trace},
    workload::outcome::FailureReason,
};

use super::{
    Shared,
    ending::{self, SystemFailure},
    layers,
    removal::log_left,
};

/// Removes everything on an engine that bears this longshore's mark. For an engine on which no job
/// of this process has begun yet.
pub(super) async fn sweep(engine: &Engine, instance: &str) {
    let things = match clean_up::marked(engine, instance, None).await {
        Ok(things) => things,
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "leftovers could not be looked for");
            return;
        }
    };
    if things.is_empty() {
        return;
    }
    tracing::info!(count = things.len(), "removing what an earlier process left");
    for error in clean_up::remove(engine, &things, Anonymous { remove: true }).await {
        tracing::warn!(error = error_chain(&error), "something of an earlier process is left");
    }
}

/// Ends a job of an earlier process: tells its server, sees that its things are gone, forgets it.
pub async fn end_job(
    shared: &Shared,
    client: Arc<Client>,
    info: Arc<crate::gitlab::api::wire::Info>,
    engine: &DockerConfig,
    record: JobRecord,
    entry: Entry,
) {
    let channel = JobClient {
        client,
        info,
        job: entry.job,
        token: entry.token,
        debug_trace: false,
        counted: None,
    };
    let told = record.is_told() || tell(&channel, &record, &entry.failure_reasons).await;
    let removed = match shared.engine(engine).await {
        Ok(engine) => {
            let anonymous = Anonymous { remove: true };
            let things = &entry.things;
            let mut errors = clean_up::remove_containers(&engine, things, anonymous).await;
            // Before the volumes, which what comes late may use.
            let instance = shared.state.instance();
            errors.extend(clean_up::remove_late(&engine, instance, entry.job, anonymous).await);
            errors.extend(clean_up::remove_rest(&engine, things).await);
            // What came late may have had a layer-cache slot.
            layers::sweep(&engine, entry.engine.as_deref(), &shared.layers, instance).await;
            for error in &errors {
                tracing::warn!(error = error_chain(error), "something of the job is left");
            }
            let left = socket::reap(&engine, &record.guard()).await;
            log_left(&left);
            errors.is_empty() && left.is_empty()
        }
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "engine of the job cannot be reached");
            false
        }
    };
    if told
        && removed
        && let Err(error) = record.close()
    {
        tracing::warn!(%error, "job's directory could not be removed");
    }
}

/// Sends what of the trace the server has not got, and the end.
async fn tell(channel: &JobClient, record: &JobRecord, announced: &[String]) -> bool {
    let settings =
        trace::Settings { limit: 0, timestamps: true, sections: false, masks: Masks::default() };
    let trace = match Trace::reopen(&record.trace(), settings) {
        Ok(trace) => trace,
        Err(error) => {
            tracing::warn!(%error, "trace of the job cannot be read");
            return false;
        }
    };
    // A server that never heard that the job was taken does not take its end.
    let end = record.end::<Final>();
    if end.is_none() && channel.acknowledge().await == Acknowledged::Unwanted {
        tracing::info!(job.id = %channel.job, "server does not want the job any more");
        return true;
    }
    // A job that had ended is told as it ended; only its delivery was missing.
    let last_word = end.unwrap_or_else(|| {
        let ending = Err(SystemFailure::new(
            FailureReason::RunnerSystemFailure,
            "longshore ended while the job was running, and was started again",
        ));
        ending::show(&ending, &trace.job_log());
        ending::last_word(&ending, announced)
    });
    // The server says how much of the trace it has.
    let delivery = Delivery::default();
    let limits = Limits { passes: 0, until: None };
    match finish(&trace, channel, &delivery, &last_word, limits).await {
        Ok(()) => {
            tracing::info!(job.id = %channel.job, "server was told that the job is over");
            if let Err(error) = record.note_told() {
                tracing::warn!(%error, "delivery of the job's end could not be noted");
            }
            true
        }
        Err(error) => {
            tracing::error!(job.id = %channel.job, error = error_chain(&error), "server could not be told that the job is over");
            false
        }
    }
}

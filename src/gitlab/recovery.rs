//! After a crash: jobs that an earlier process was running are over. Their servers are told at once,
//! and what they made is removed.

use std::sync::Arc;

use super::{
    api::{Client, wire::Info},
    job_client::{Acknowledged, JobClient},
    reporter::GitlabReporter,
};
use crate::{
    base::error_chain,
    executor::Executor,
    ledger::{JobRecord, LedgerEntry, Owner},
    runner::{Conclusion, Reporter, SystemFailure},
    trace::{self, Masks, Trace},
    workload::outcome::FailureReason,
};

/// Ends a job of an earlier process: reports its end, sees that what it made is gone, forgets it.
pub async fn end_job(
    executor: &dyn Executor,
    client: Arc<Client>,
    info: Arc<Info>,
    record: JobRecord,
    entry: LedgerEntry,
) {
    let is_reported = record.is_reported() || report(client, info, &record, &entry.owner).await;
    let is_removed = executor.remove_orphaned(&entry, &record.directories()).await;
    if is_reported
        && is_removed
        && let Err(error) = record.close()
    {
        tracing::warn!(%error, "failed to remove the job's directory");
    }
}

/// Sends what the server has not got of the trace, and the end.
async fn report(client: Arc<Client>, info: Arc<Info>, record: &JobRecord, owner: &Owner) -> bool {
    let Owner::Gitlab { job, token, failure_reasons, .. } = owner else { return true };
    let settings =
        trace::Settings { limit: 0, timestamps: true, sections: false, masks: Masks::default() };
    let trace = match Trace::reopen(&record.trace(), settings) {
        Ok(trace) => trace,
        Err(error) => {
            tracing::warn!(%error, "cannot read the trace of the job");
            return false;
        }
    };
    let (job, token) = (*job, token.clone());
    let client = JobClient { client, info, job, token, debug_trace: false, counted: None };
    // A server that never heard that the job was taken does not take its end.
    let end = record.end::<Conclusion>();
    if end.is_none() && client.acknowledge().await == Acknowledged::Unwanted {
        tracing::info!(job.id = %job, "server does not want the job any more");
        return true;
    }
    // A job that had ended is reported as it ended; only its delivery was missing.
    let conclusion = end.unwrap_or_else(|| {
        let failure = SystemFailure::new(
            FailureReason::RunnerSystemFailure,
            "longshore ended while the job was running, and was started again",
        );
        failure.show(&trace.job_log());
        Conclusion::Failed { reason: failure.reason, exit_code: None }
    });
    let reporter = GitlabReporter::of_orphan(client, failure_reasons.clone());
    match reporter.finish(&trace, &conclusion).await {
        Ok(()) => {
            tracing::info!(job.id = %job, "reported the end of an earlier process's job");
            if let Err(error) = record.mark_reported() {
                tracing::warn!(%error, "cannot write down that the job's end was reported");
            }
            true
        }
        Err(error) => {
            let error = error_chain(&error);
            tracing::error!(job.id = %job, error, "failed to report the end of an earlier job");
            false
        }
    }
}

//! The story of a job, from the moment when its CI engine hands it over to the last word about it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Runner,
    ending::{self, Ending, log_end},
    intake::{IncomingJob, OpenJob, open},
    removal::{self, Remains},
    reporter::{Conclusion, StopRequest},
    stops::{Interrupt, Stops},
    work::Work,
};

/// Runs a job until its CI engine knows how it ended. The removal of what it made may go on after
/// this returns; the process's `removals` has it.
pub async fn run(runner: &Arc<Runner>, incoming: IncomingJob, interrupt: &Interrupt) {
    let Some(job) = open(runner, incoming).await else { return };
    // The trace is sent while the job runs, and the answers may stop the job.
    let (requests, requested) = watch::channel(StopRequest::None);
    let done = CancellationToken::new();
    let options = job.stream_options();
    let streaming = job.reporter.stream(job.trace.clone(), options, requests, done.clone());
    let working = async {
        let ended = work(&job, requested, interrupt).await;
        ending::show(&ended.0, &job.trace.job_log());
        done.cancel();
        ended
    };
    let ((), (ending, remains)) = tokio::join!(streaming, working);
    end(job, &ending, remains).await;
}

/// Runs what the job asks for, with what may stop it.
async fn work(
    job: &OpenJob,
    requested: watch::Receiver<StopRequest>,
    interrupt: &Interrupt,
) -> (Ending, Remains) {
    let workload = match &job.workload {
        Ok(workload) => workload,
        Err(failure) => return (Err(failure.clone()), Remains::default()),
    };
    let stops = Stops::new(workload.job.timeout, requested, interrupt.subscribe());
    Work::new(job, workload, stops).run().await
}

/// Reports how the job ended, while what it made is removed: neither waits for the other.
async fn end(job: OpenJob, ending: &Ending, remains: Remains) {
    if let Some(reason) = ending::reason(ending) {
        job.running.failed(reason.as_str());
    }
    job.running.stage("", "cleanup");
    job.slot.leave();
    let process = Arc::clone(&job.runner.process);
    let removal = removal::remove(job.runner, job.workload.ok(), remains, job.slot);
    let removal = process.removals.spawn(removal);
    let conclusion = Conclusion::of(ending);
    // Should this process end before the CI engine knows, the next one reports it.
    if let Err(error) = job.record.note_end(&conclusion) {
        tracing::warn!(%error, "cannot write down how the job ended");
    }
    let delivered = job.reporter.finish(&job.trace, &conclusion).await;
    if delivered.is_ok()
        && let Err(error) = job.record.mark_reported()
    {
        tracing::warn!(%error, "cannot write down that the job's end was reported");
    }
    log_end(ending, &delivered);
    process.removals.spawn(removal::close(job.record, delivered.is_ok(), removal));
}

//! What a job says to its GitLab.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    base::{
        ids::{JobId, ShortToken},
        secret::Secret,
    },
    gitlab::{
        api::{
            Client, PatchReply, RemoteState, UpdateOutcome, UpdateReply,
            wire::{Info, JobState, JobUpdate, TraceOutput},
        },
        trace::JobServer,
    },
    runner::metrics::Metrics,
    trace::Digest,
    workload::outcome::FailureReason,
};

/// A client of the runner API for one job.
#[derive(Clone)]
pub(crate) struct JobClient {
    pub(crate) client: Arc<Client>,
    pub(crate) info: Arc<Info>,
    pub(crate) job: JobId,
    pub(crate) token: Secret,
    /// The trace is one of debugging, which the server shows to fewer people.
    pub(crate) debug_trace: bool,
    /// Where answers are counted, and for which runner.
    pub(crate) counted: Option<(Arc<Metrics>, ShortToken)>,
}

/// The reply to the acknowledgement of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledged {
    /// The job is ours.
    Go,
    /// It is being canceled.
    Canceled,
    /// It is no longer wanted; nothing else is to be sent.
    Unwanted,
}

impl JobClient {
    fn count(&self, endpoint: &'static str, method: &'static str, status: Option<u16>) {
        if let Some((metrics, runner)) = &self.counted {
            metrics.answered(runner, endpoint, method, status);
        }
    }

    /// Tells the server that the job is taken (`PUT state=running`), before anything of it runs.
    pub(crate) async fn acknowledge(&self) -> Acknowledged {
        let reply = self.update(JobState::Running, None, None, TraceOutput::default()).await;
        match (reply.outcome, reply.remote) {
            (UpdateOutcome::Abort, _) | (_, Some(RemoteState::Canceled)) => Acknowledged::Unwanted,
            (_, Some(RemoteState::Canceling)) => Acknowledged::Canceled,
            // A server that cannot be reached now may be when the job has ended.
            (
                UpdateOutcome::Success
                | UpdateOutcome::Accepted
                | UpdateOutcome::TraceInvalid
                | UpdateOutcome::Failed,
                None,
            ) => Acknowledged::Go,
        }
    }

    /// Gives a job back that was canceled before it began: no trace, the reason as it is.
    pub(crate) async fn give_back_canceled(&self) {
        let reason = FailureReason::JobCanceled.as_str().to_owned();
        let output = Digest { crc32: 0, size: 0 }.into();
        let reply = self.update(JobState::Failed, Some(reason), None, output).await;
        tracing::debug!(outcome = ?reply.outcome, "job was canceled before it began");
    }
}

impl JobServer for JobClient {
    async fn patch_trace(&self, start: u64, chunk: Bytes) -> PatchReply {
        let reply =
            self.client.patch_trace(self.job, &self.token, self.debug_trace, start, chunk).await;
        self.count("patch_trace", "patch", reply.status);
        if let Some(problem) = &reply.problem {
            tracing::warn!(problem, status = reply.status, "trace could not be sent");
        }
        reply
    }

    async fn update(
        &self,
        state: JobState,
        reason: Option<String>,
        exit_code: Option<i32>,
        output: TraceOutput,
    ) -> UpdateReply {
        let update = JobUpdate {
            info: &self.info,
            token: &self.token,
            state,
            failure_reason: reason,
            checksum: output.checksum.clone(),
            output,
            exit_code: exit_code.filter(|code| *code != 0),
        };
        let reply = self.client.update_job(self.job, &update).await;
        self.count("update_job", "put", reply.status);
        if let Some(problem) = &reply.problem {
            tracing::warn!(problem, status = reply.status, "update could not be sent");
        }
        reply
    }
}

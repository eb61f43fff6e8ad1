//! Reports a job to its GitLab: the trace while it runs, its final state at the end.

use std::{sync::OnceLock, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    api::wire::JobState,
    failure_reason::for_server,
    job_client::{Acknowledged, JobClient},
    trace::{self, Delivery, Final, KeepAlive, Limits},
};
use crate::{
    runner::{Acceptance, Conclusion, NotDelivered, Reporter, StopRequest, StreamOptions},
    trace::Trace,
};

/// How long the server may be asked to take a job's end, beyond the job's own time: its token is no
/// good for longer.
const TOKEN_GRACE: Duration = Duration::from_hours(1);

/// See the module.
pub(super) struct GitlabReporter {
    client: JobClient,
    /// Failure reasons that the server knows (`features.failure_reasons`).
    failure_reasons: Vec<String>,
    /// How long the job's token is good for; `None` for as long as it takes.
    token_lifetime: Option<Duration>,
    /// Passes of the final update (`job_status_final_update_retry_limit`); 0 for the default.
    passes: u32,
    delivery: Delivery,
    options: OnceLock<StreamOptions>,
}

impl GitlabReporter {
    /// Reports a job that has `timeout` to run.
    pub(super) fn new(
        client: JobClient,
        failure_reasons: Vec<String>,
        timeout: Duration,
        passes: u32,
    ) -> Self {
        let token_lifetime = Some(timeout + TOKEN_GRACE);
        Self { token_lifetime, passes, ..Self::of_orphan(client, failure_reasons) }
    }

    /// Reports the end of a job of an earlier process. The server says how much of the trace it has.
    pub(super) fn of_orphan(client: JobClient, failure_reasons: Vec<String>) -> Self {
        Self {
            client,
            failure_reasons,
            token_lifetime: None,
            passes: 0,
            delivery: Delivery::default(),
            options: OnceLock::new(),
        }
    }

    fn client(&self) -> JobClient {
        let is_debug = self.options.get().is_some_and(|options| options.is_debug);
        JobClient { debug_trace: is_debug, ..self.client.clone() }
    }

    /// How the job ended, in words that this server knows.
    fn final_state(&self, conclusion: &Conclusion) -> Final {
        match conclusion {
            Conclusion::Success => {
                Final { state: JobState::Success, reason: None, exit_code: None }
            }
            Conclusion::Failed { reason, exit_code } => Final {
                state: JobState::Failed,
                reason: Some(for_server(*reason, &self.failure_reasons).to_owned()),
                exit_code: *exit_code,
            },
        }
    }
}

impl Reporter for GitlabReporter {
    fn accept(&self) -> BoxFuture<'_, Acceptance> {
        async {
            match self.client.acknowledge().await {
                Acknowledged::Go => Acceptance::Run,
                Acknowledged::Unwanted => Acceptance::Unwanted,
                Acknowledged::Canceled => {
                    self.client.give_back_canceled().await;
                    Acceptance::Unwanted
                }
            }
        }
        .boxed()
    }

    fn stream(
        &self,
        trace: Trace,
        options: StreamOptions,
        requests: watch::Sender<StopRequest>,
        done: CancellationToken,
    ) -> BoxFuture<'_, ()> {
        let options = *self.options.get_or_init(|| options);
        let keep_alive = if options.is_dynamic { KeepAlive::Dynamic } else { KeepAlive::Fixed };
        async move {
            let (client, delivery) = (self.client(), self.delivery.clone());
            trace::pump(trace, &client, delivery, requests, keep_alive, done).await;
        }
        .boxed()
    }

    fn finish<'a>(
        &'a self,
        trace: &'a Trace,
        conclusion: &'a Conclusion,
    ) -> BoxFuture<'a, Result<(), NotDelivered>> {
        async {
            let until = self.token_lifetime.map(|lifetime| Instant::now() + lifetime);
            let limits = Limits { passes: self.passes, until };
            let end = self.final_state(conclusion);
            let client = self.client();
            trace::finish(trace, &client, &self.delivery, &end, limits)
                .await
                .map_err(|error| NotDelivered(error.into()))
        }
        .boxed()
    }
}

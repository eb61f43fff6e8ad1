//! What may stop a job from outside.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::workload::outcome::{Deadline, StopReason};

use super::reporter::StopRequest;

/// A signal that ends the process's jobs.
pub type Signal = &'static str;

/// Tells all jobs of a process to end; `None` while they may run.
#[derive(Debug, Clone)]
pub struct Interrupt(watch::Sender<Option<Signal>>);

impl Default for Interrupt {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Interrupt {
    /// Ends the jobs.
    pub fn send(&self, signal: Signal) {
        self.0.send_replace(Some(signal));
    }

    /// The receiving end.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Signal>> {
        self.0.subscribe()
    }
}

/// What may stop one job.
#[derive(Clone)]
pub(super) struct Stops {
    deadline: Instant,
    timeout: Duration,
    requested: watch::Receiver<StopRequest>,
    interrupt: watch::Receiver<Option<Signal>>,
}

impl Stops {
    /// Counts the job's time from now.
    pub(super) fn new(
        timeout: Duration,
        requested: watch::Receiver<StopRequest>,
        interrupt: watch::Receiver<Option<Signal>>,
    ) -> Self {
        Self { deadline: Instant::now() + timeout, timeout, requested, interrupt }
    }

    /// Waits for what stops everything.
    pub(super) async fn hard(&self) -> StopReason {
        self.first(StopRequest::Abort).await
    }

    /// Waits for what stops everything, or asks for a graceful end.
    pub(super) async fn any(&self) -> StopReason {
        self.first(StopRequest::Cancel).await
    }

    async fn first(&self, least: StopRequest) -> StopReason {
        let (mut requested, mut interrupt) = (self.requested.clone(), self.interrupt.clone());
        let requested = async {
            let asked = requested.wait_for(|asked| *asked >= least).await.map(|asked| *asked);
            match asked {
                Ok(StopRequest::Abort) => StopReason::Aborted,
                Ok(StopRequest::Cancel | StopRequest::None) => StopReason::Canceled,
                // Nobody is left who could ask.
                Err(_) => std::future::pending().await,
            }
        };
        let interrupt = async {
            let signal = interrupt.wait_for(Option::is_some).await.map(|signal| *signal);
            match signal {
                Ok(signal) => StopReason::Interrupted(signal.unwrap_or("stop")),
                Err(_) => std::future::pending().await,
            }
        };
        let deadline = async {
            sleep_until(self.deadline).await;
            StopReason::TimedOut { deadline: Deadline::Job, after: self.timeout }
        };
        tokio::select! {
            reason = requested => reason,
            reason = interrupt => reason,
            reason = deadline => reason,
        }
    }

    /// Time the job has left.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

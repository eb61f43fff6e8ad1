//! What may stop a job from outside.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    gitlab::trace::Remote,
    workload::outcome::{Deadline, StopReason},
};

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
    remote: watch::Receiver<Remote>,
    interrupt: watch::Receiver<Option<Signal>>,
}

impl Stops {
    /// Counts the job's time from now.
    pub(super) fn new(
        timeout: Duration,
        remote: watch::Receiver<Remote>,
        interrupt: watch::Receiver<Option<Signal>>,
    ) -> Self {
        Self { deadline: Instant::now() + timeout, timeout, remote, interrupt }
    }

    /// Waits for what stops everything.
    pub(super) async fn hard(&self) -> StopReason {
        self.first(Remote::Abort).await
    }

    /// Waits for what stops everything, or asks for a graceful end.
    pub(super) async fn any(&self) -> StopReason {
        self.first(Remote::Cancel).await
    }

    async fn first(&self, least: Remote) -> StopReason {
        let (mut remote, mut interrupt) = (self.remote.clone(), self.interrupt.clone());
        let remote = async {
            let asked = remote.wait_for(|asked| *asked >= least).await.map(|asked| *asked);
            match asked {
                Ok(Remote::Abort) => StopReason::Aborted,
                Ok(Remote::Cancel | Remote::None) => StopReason::Canceled,
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
            reason = remote => reason,
            reason = interrupt => reason,
            reason = deadline => reason,
        }
    }

    /// Time the job has left.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

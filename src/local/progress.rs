//! Where the jobs of a running pipeline are. Whatever the user should see of that goes out as events.

use tokio::{sync::mpsc, time::Instant};

use super::{
    event::Event,
    pipeline::{AllowFailure, Job, Schedule, State},
};
use crate::{runner::Conclusion, workload::outcome::FailureReason};

/// The progress of a pipeline.
pub(crate) struct Progress {
    schedule: Schedule,
    jobs: Vec<JobProgress>,
    events: mpsc::Sender<Event>,
}

struct JobProgress {
    allow_failure: AllowFailure,
    started: Instant,
}

impl Progress {
    /// A pipeline that has not begun, and of whose jobs only the `chosen` run.
    pub(crate) fn new(jobs: &[Job], chosen: &[bool], events: mpsc::Sender<Event>) -> Self {
        let progress = jobs.iter().map(|job| JobProgress {
            allow_failure: job.allow_failure.clone(),
            started: Instant::now(),
        });
        Self { schedule: Schedule::new(jobs, chosen), jobs: progress.collect(), events }
    }

    /// Tells which jobs do not run, as far as that is known before any does.
    pub(crate) async fn begin(&mut self) {
        for job in 0..self.jobs.len() {
            let state = self.schedule.state(job);
            if matches!(state, State::Manual { .. }) {
                self.tell(Event::NotRun { job, state }).await;
            }
        }
        self.skip().await;
    }

    /// Where events go.
    pub(crate) fn events(&self) -> &mpsc::Sender<Event> {
        &self.events
    }

    /// Starts the next job that may run.
    pub(crate) async fn start_next(&mut self) -> Option<usize> {
        let job = self.schedule.start_next()?;
        self.jobs[job].started = Instant::now();
        self.tell(Event::Started { job }).await;
        Some(job)
    }

    /// Ends a job. One that did not succeed was canceled where the user had stopped the pipeline.
    pub(crate) async fn end(&mut self, job: usize, conclusion: &Conclusion, is_stopped: bool) {
        let JobProgress { allow_failure, started } = &self.jobs[job];
        let took = started.elapsed();
        let (state, reason) = match conclusion {
            Conclusion::Success => (State::Success, None),
            Conclusion::Failed { reason, .. } if is_stopped => (State::Canceled, Some(*reason)),
            Conclusion::Failed { reason, exit_code } => {
                let exit_code = exit_code.filter(|_| *reason == FailureReason::ScriptFailure);
                (State::Failed { allowed: allow_failure.allows(exit_code) }, Some(*reason))
            }
        };
        self.schedule.end(job, state);
        self.tell(Event::Ended { job, state, reason, took }).await;
        self.skip().await;
    }

    /// Starts no more jobs.
    pub(crate) async fn cancel_waiting(&mut self) {
        for job in self.schedule.cancel_waiting() {
            self.tell(Event::NotRun { job, state: State::Canceled }).await;
        }
    }

    /// Whether every job has its final state.
    pub(crate) fn is_done(&self) -> bool {
        self.schedule.is_done()
    }

    /// Whether the pipeline failed.
    pub(crate) fn failed(&self) -> bool {
        self.schedule.failed()
    }

    async fn skip(&mut self) {
        for job in self.schedule.skip() {
            self.tell(Event::NotRun { job, state: State::Skipped }).await;
        }
    }

    /// Waits while the terminal is behind; without a terminal, nobody is told.
    async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::pipeline::testing, *};

    #[tokio::test]
    async fn a_failure_is_allowed_by_the_exit_code_of_the_script() {
        let jobs = testing::jobs("a: {script: x, allow_failure: {exit_codes: 7}, parallel: 3}\n");
        let (sender, _events) = mpsc::channel(100);
        let mut progress = Progress::new(&jobs, &[true; 3], sender);
        let failed = |reason, exit_code| Conclusion::Failed { reason, exit_code };
        let system = FailureReason::RunnerSystemFailure;
        for (conclusion, allowed) in [
            (failed(FailureReason::ScriptFailure, Some(7)), true),
            (failed(FailureReason::ScriptFailure, Some(1)), false),
            (failed(system, None), false),
        ] {
            let job = progress.start_next().await.unwrap();
            progress.end(job, &conclusion, false).await;
            assert_eq!(progress.schedule.state(job), State::Failed { allowed }, "{conclusion:?}");
        }
        assert!(progress.is_done() && progress.failed());
    }
}

//! The pipeline as it runs: who waits, who runs, what each job sent. The HTTP side is `server`;
//! this is what it asks and tells. Whatever the terminal should show goes out as [`Event`]s.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    payload::{Handed, Plan},
    pipeline::{Schedule, State, When},
};
use crate::{
    base::{
        ids::{JobId, random_hex},
        secret::Secret,
    },
    gitlab::api::wire::{ArtifactsFile, JobPayload, TraceOutput},
};

/// What happened to a job; numbers are indices in the plan.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A runner took it.
    Started {
        /// Which.
        job: usize,
    },
    /// It said something.
    Trace {
        /// Which.
        job: usize,
        /// The bytes.
        bytes: Bytes,
    },
    /// It left a file.
    Artifact {
        /// Which.
        job: usize,
        /// The file.
        stored: Stored,
    },
    /// It ended.
    Ended {
        /// Which.
        job: usize,
        /// How.
        state: State,
        /// Why it failed, as the runner says it.
        reason: Option<String>,
        /// How long it took.
        took: Duration,
    },
    /// It does not run.
    NotRun {
        /// Which.
        job: usize,
        /// Why: skipped, manual or canceled.
        state: State,
    },
}

/// An uploaded artifact, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// `archive`, `junit`, …
    pub(crate) kind: String,
    /// Name it was uploaded with.
    pub(crate) filename: String,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) size: u64,
    /// Hash.
    pub(crate) sha256: [u8; 32],
}

/// What a runner that asks for a job gets.
pub(crate) enum Offer {
    /// A job.
    Job(Box<JobPayload>),
    /// None now.
    Wait,
    /// None any more.
    Done,
}

/// Why a request about a job is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such job, or not its token.
    Unknown,
    /// The job does not run; its status.
    NotRunning(&'static str),
}

/// How a job ended, as the runner says it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    /// Not failed.
    pub(crate) success: bool,
    /// Of the script.
    pub(crate) exit_code: i32,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// Checksum and size of the trace.
    pub(crate) output: TraceOutput,
}

/// The running pipeline.
#[derive(Debug)]
pub(crate) struct Coordinator {
    /// What was decided before.
    pub(crate) plan: Plan,
    /// Authenticates the runner.
    pub(crate) runner_token: Secret,
    /// A folder for each job's files.
    folders: Vec<PathBuf>,
    inner: Mutex<Inner>,
    changed: Notify,
    done: CancellationToken,
    events: mpsc::Sender<Event>,
}

#[derive(Debug)]
struct Inner {
    schedule: Schedule,
    records: Vec<Record>,
    /// Not yet sent. A handler may be dropped while it waits for the terminal: what it had to say
    /// is then said by the next.
    pending: VecDeque<Event>,
}

#[derive(Debug)]
struct Record {
    token: Secret,
    started: Instant,
    trace: u64,
    checksum: flate2::Crc,
    stored: Vec<Stored>,
    dotenv: Vec<(String, String)>,
    canceling: bool,
}

impl Coordinator {
    /// A pipeline that has not begun; files go to folders under `artifacts`.
    pub(crate) fn new(
        plan: Plan,
        runner_token: Secret,
        artifacts: &Path,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let records = plan.pipeline.jobs.iter().map(|_| Record {
            token: Secret::new(format!("glcbt-{}", random_hex::<20>())),
            started: Instant::now(),
            trace: 0,
            checksum: flate2::Crc::new(),
            stored: Vec::new(),
            dotenv: Vec::new(),
            canceling: false,
        });
        let schedule = Schedule::new(&plan.pipeline.jobs, &plan.chosen);
        let pending = (0..plan.pipeline.jobs.len())
            .filter(|&job| matches!(schedule.state(job), State::Manual { .. }))
            .map(|job| Event::NotRun { job, state: schedule.state(job) })
            .collect();
        let inner = Inner { schedule, records: records.collect(), pending };
        let names = plan.pipeline.jobs.iter().map(|job| job.name.as_str());
        let folders = folders(names).into_iter().map(|name| artifacts.join(name)).collect();
        let coordinator = Self {
            plan,
            runner_token,
            folders,
            inner: Mutex::new(inner),
            changed: Notify::new(),
            done: CancellationToken::new(),
            events,
        };
        coordinator.settle(&mut coordinator.lock());
        coordinator
    }

    /// Cancelled once every job has its final state.
    pub(crate) fn done(&self) -> &CancellationToken {
        &self.done
    }

    /// The state of every job.
    #[cfg(test)]
    pub(crate) fn states(&self) -> Vec<State> {
        let inner = self.lock();
        (0..inner.records.len()).map(|job| inner.schedule.state(job)).collect()
    }

    /// Whether the pipeline failed.
    pub(crate) fn failed(&self) -> bool {
        self.lock().schedule.failed()
    }

    /// Folder of a job's files.
    pub(crate) fn folder(&self, job: usize) -> &Path {
        &self.folders[job]
    }

    /// Sends what is to be said; waits while the terminal is behind. Without a terminal, it is
    /// forgotten.
    pub(crate) async fn flush(&self) {
        while let Ok(permit) = self.events.reserve().await {
            let mut inner = self.lock();
            let Some(event) = inner.pending.pop_front() else { return };
            permit.send(event);
        }
        self.lock().pending.clear();
    }

    /// Resolves when there may be a job to take that was not there before.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Takes the next job that may start.
    pub(crate) fn take(&self) -> Offer {
        let mut inner = self.lock();
        if inner.schedule.is_done() {
            return Offer::Done;
        }
        let Some(job) = inner.schedule.start_next() else { return Offer::Wait };
        inner.records[job].started = Instant::now();
        inner.pending.push_back(Event::Started { job });
        let (mut artifacts, mut dotenv) = (Vec::new(), Vec::new());
        for &source in &self.plan.pipeline.jobs[job].sources {
            let record = &inner.records[source];
            dotenv.extend(record.dotenv.iter().cloned());
            if let Some(archive) = record.stored.iter().find(|stored| stored.kind == "archive") {
                let size = i64::try_from(archive.size).unwrap_or(i64::MAX);
                let file = ArtifactsFile { filename: archive.filename.clone(), size };
                artifacts.push((source, file));
            }
        }
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let handed = Handed { token: &inner.records[job].token, artifacts, dotenv, now };
        Offer::Job(Box::new(self.plan.payload(job, &handed)))
    }

    /// The running job `id` that has one of these tokens; all given ones must be right.
    pub(crate) fn authenticate(&self, id: JobId, tokens: &[&str]) -> Result<usize, Refusal> {
        let inner = self.lock();
        let job = self.plan.index(id).ok_or(Refusal::Unknown)?;
        let token = inner.records[job].token.expose();
        if tokens.is_empty() || tokens.iter().any(|given| *given != token) {
            return Err(Refusal::Unknown);
        }
        match inner.schedule.state(job) {
            State::Running => Ok(job),
            // The token of a job that was never handed out is known to nobody.
            state => Err(Refusal::NotRunning(status(state, false))),
        }
    }

    /// The job's status, in the words of `Job-Status`.
    pub(crate) fn status(&self, job: usize) -> &'static str {
        let inner = self.lock();
        status(inner.schedule.state(job), inner.records[job].canceling)
    }

    /// Takes a piece of the trace that begins at `start`; gives the length of all there is, as an
    /// error if the piece does not fit.
    pub(crate) fn append(&self, job: usize, start: u64, bytes: Bytes) -> Result<u64, u64> {
        let mut inner = self.lock();
        let record = &mut inner.records[job];
        if start != record.trace {
            return Err(record.trace);
        }
        record.trace += bytes.len() as u64;
        record.checksum.update(&bytes);
        let length = record.trace;
        inner.pending.push_back(Event::Trace { job, bytes });
        Ok(length)
    }

    /// Ends a job.
    pub(crate) fn end(&self, job: usize, ending: Ending) {
        let mut inner = self.lock();
        let record = &inner.records[job];
        let checksum = format!("crc32:{:08x}", record.checksum.sum());
        if ending.output.checksum.as_ref().is_some_and(|theirs| *theirs != checksum) {
            tracing::warn!(job.id = %self.plan.id(job), "the trace arrived with another checksum");
        }
        let allow = &self.plan.pipeline.jobs[job].allow_failure;
        let state = match ending {
            Ending { success: true, .. } => State::Success,
            _ if record.canceling => State::Canceled,
            Ending { exit_code, .. } => State::Failed { allowed: allow.allows(exit_code) },
        };
        let took = record.started.elapsed();
        inner.schedule.end(job, state);
        inner.pending.push_back(Event::Ended { job, state, reason: ending.reason, took });
        self.settle(&mut inner);
    }

    /// Starts no more jobs and asks those that run to stop.
    pub(crate) fn cancel(&self) {
        let mut inner = self.lock();
        for job in inner.schedule.cancel_waiting() {
            inner.pending.push_back(Event::NotRun { job, state: State::Canceled });
        }
        for job in 0..inner.records.len() {
            inner.records[job].canceling = inner.schedule.state(job) == State::Running;
        }
        self.settle(&mut inner);
    }

    /// The artifact of a kind that a job uploaded.
    pub(crate) fn stored(&self, job: usize, kind: &str) -> Option<Stored> {
        self.lock().records[job].stored.iter().find(|stored| stored.kind == kind).cloned()
    }

    /// A name for a file in the job's folder that no other kind of artifact has.
    pub(crate) fn free_name(&self, job: usize, kind: &str, filename: &str) -> String {
        let inner = self.lock();
        let taken = |name: &str| {
            let stored = &inner.records[job].stored;
            stored.iter().any(|stored| stored.path.file_name().is_some_and(|n| n == name))
        };
        if taken(filename) { format!("{kind}-{filename}") } else { filename.to_owned() }
    }

    /// Notes an artifact, and the variables in it.
    pub(crate) fn store(&self, job: usize, stored: Stored, dotenv: Vec<(String, String)>) {
        let mut inner = self.lock();
        let record = &mut inner.records[job];
        record.dotenv.extend(dotenv);
        record.stored.push(stored.clone());
        inner.pending.push_back(Event::Artifact { job, stored });
    }

    /// Whether the running job with this token may read the artifacts of `source`; `None` if
    /// there is no such job.
    pub(crate) fn may_read(&self, token: &str, source: usize) -> Option<bool> {
        let inner = self.lock();
        let job = (0..inner.records.len()).find(|&job| {
            inner.records[job].token.expose() == token
                && inner.schedule.state(job) == State::Running
        })?;
        Some(job == source || self.plan.pipeline.jobs[job].sources.contains(&source))
    }

    fn settle(&self, inner: &mut Inner) {
        for job in inner.schedule.skip() {
            inner.pending.push_back(Event::NotRun { job, state: State::Skipped });
        }
        if inner.schedule.is_done() {
            self.done.cancel();
        }
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before anything in it can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `Job-Status` for a state.
fn status(state: State, canceling: bool) -> &'static str {
    match state {
        State::Running if canceling => "canceling",
        State::Running => "running",
        State::Waiting => "pending",
        State::Success => "success",
        State::Failed { .. } => "failed",
        State::Canceled => "canceled",
        State::Skipped | State::LeftOut => "skipped",
        State::Manual { .. } => When::Manual.as_str(),
    }
}

/// Names of folders that are close to the jobs' names, safe and different.
pub(crate) fn folders<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for name in names {
        let safe = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        let mut folder = String::new();
        for c in name.chars().take(100) {
            if safe(c) {
                folder.push(c);
            } else if !folder.ends_with('-') {
                folder.push('-');
            }
        }
        let folder = folder.trim_matches(['-', '.']);
        let folder = if folder.is_empty() { "job" } else { folder };
        let mut unique = folder.to_owned();
        let mut number = 2;
        while out.contains(&unique) {
            unique = format!("{folder}-{number}");
            number += 1;
        }
        out.push(unique);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_stay_inside_and_differ() {
        let names = ["build", "test: [linux, 1.2]", "test 1/2", "../..", "a/b", "a b", "..."];
        assert_eq!(
            folders(names.into_iter()),
            ["build", "test-linux-1.2", "test-1-2", "job", "a-b", "a-b-2", "job-2"]
        );
    }
}

//! The contract of an executor.
//!
//! An [`Executor`] is where the jobs of one runner run: an engine, a cluster. For each job it opens a
//! [`Session`], which runs one [`Workload`](crate::workload::Workload) and knows neither the CI engine
//! that it came from nor what becomes of its result. A session is asked in this order:
//!
//! 1. [`prepare`](Session::prepare) makes what scripts run in ready: images, services, the job's
//!    container. [`start_helper`](Session::start_helper) runs beside it, as soon as it is asked for:
//!    sources are fetched while images are pulled. Dropping either future stops it.
//! 2. [`run_script`](Session::run_script) runs one script after the other. A future of it that was
//!    dropped is followed by [`stop_script`](Session::stop_script) or by `remove`.
//! 3. [`conclude`](Session::conclude) logs what there is still to say about the job.
//! 4. [`remove`](Session::remove) takes away all that was made. It is safe after a failure at any
//!    point, while nothing was made, and again after it failed.
//!
//! What a session makes is what [`Executor::resources`] says of its workload, and the ledger has that
//! before the session is opened. After a crash the next process either takes the session up again
//! ([`Executor::reattach`]) or removes what it made ([`Executor::remove_orphaned`]).

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use super::ExecutorError;
use crate::{
    ledger::{JobDirectories, LedgerEntry, Resource, SessionState},
    trace::{Trace, Writer},
    workload::{Leases, Workload},
};

/// Where the jobs of one runner run.
pub trait Executor: Send + Sync {
    /// Its name as users write it, such as `docker`.
    fn name(&self) -> &'static str;

    /// Connects, and removes what earlier processes left there. Done once, when first asked for, and
    /// by each session that finds it not done.
    fn connect(&self) -> BoxFuture<'_, Result<(), ExecutorError>>;

    /// Leases what is kept between jobs and fits this workload, which was planned without. The
    /// leases are an input of the workload that will run.
    fn lease<'a>(&'a self, draft: &'a Workload) -> BoxFuture<'a, Leases>;

    /// Takes back the leases of a workload for which no session was opened.
    fn release<'a>(&'a self, workload: &'a Workload) -> BoxFuture<'a, ()>;

    /// All that a session of this workload makes, by the names that it will have.
    fn resources(&self, workload: &Workload) -> Vec<Resource>;

    /// Opens a session; nothing is made yet.
    fn open(&self, request: SessionRequest) -> Arc<dyn Session>;

    /// Takes up the session of an earlier process. `None` where it cannot be, as when its containers
    /// are gone: then its job is over.
    fn reattach<'a>(
        &'a self,
        state: &'a SessionState,
        request: SessionRequest,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Session>>, ExecutorError>>;

    /// Removes what a job of an earlier process made. False when something is left.
    fn remove_orphaned<'a>(
        &'a self,
        entry: &'a LedgerEntry,
        directories: &'a JobDirectories,
    ) -> BoxFuture<'a, bool>;

    /// What is to be done beside the jobs until `stop`, such as keeping daemons ready for the next;
    /// `None` where there is nothing to do.
    fn upkeep(&self, stop: CancellationToken) -> Option<BoxFuture<'static, ()>> {
        drop(stop);
        None
    }
}

/// What a session is opened for.
#[derive(Clone)]
pub struct SessionRequest {
    /// What is to run.
    pub workload: Arc<Workload>,
    /// The job's log.
    pub trace: Trace,
    /// Where files of the job are kept on this host.
    pub directories: JobDirectories,
}

/// One workload at run. See the module for the order of the calls.
pub trait Session: Send + Sync {
    /// Makes everything ready that scripts need, but for the helper's part. Logs to the job's trace.
    fn prepare(&self) -> BoxFuture<'_, Result<Prepared, ExecutorError>>;

    /// Starts the helper, which fetches sources and moves caches and artifacts.
    fn start_helper(&self) -> BoxFuture<'_, Result<HelperStreams, ExecutorError>>;

    /// Runs a script to its end. An exit code other than 0 is no error.
    fn run_script<'a>(
        &'a self,
        script: Script<'a>,
        output: &'a mut ScriptOutput,
    ) -> BoxFuture<'a, Result<ScriptEnd, ExecutorError>>;

    /// Reads on where a script of an earlier process was, to its end: what it has written since it
    /// began is written to `output` from the start.
    fn resume_script<'a>(
        &'a self,
        nonce: &'a str,
        output: &'a mut ScriptOutput,
    ) -> BoxFuture<'a, Result<ScriptEnd, ExecutorError>>;

    /// Makes what scripts run in anew after [`ExecutorError::Gone`]. Volumes keep what is in them.
    fn renew(&self) -> BoxFuture<'_, Result<(), ExecutorError>>;

    /// Ends the script that runs: asks its processes to end first, then kills them. What it wrote
    /// stays for `after_script`.
    fn stop_script(&self) -> BoxFuture<'_, Result<(), ExecutorError>>;

    /// Logs why a script may have failed that its own output does not show, such as a Docker daemon
    /// of the job's that has ended.
    fn explain_failure(&self) -> BoxFuture<'_, ()>;

    /// No more scripts run: logs what there is still to say about the job, such as what services
    /// have written.
    fn conclude(&self) -> BoxFuture<'_, ()>;

    /// Removes what was made. `names_free` is called once the names of the job's containers can be
    /// used again, which may be before all is gone.
    fn remove<'a>(
        &'a self,
        how: Removal,
        names_free: &'a (dyn Fn() + Send + Sync),
    ) -> BoxFuture<'a, Removed>;

    /// What scripts run in, by the executor's id of it, by which a later process finds it again;
    /// `None` until it is there.
    fn container(&self) -> Option<String>;
}

/// What there is once a session is prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// What scripts run in, such as an image and its id: a line for the job's log before each step.
    pub announcement: String,
    /// The scripts' user may not write to the job's directories before the helper has opened them.
    pub needs_helper: bool,
}

/// A script for the job's shell.
#[derive(Debug, Clone, Copy)]
pub struct Script<'a> {
    /// The stage it belongs to, such as `step_script`.
    pub stage: &'a str,
    /// Its text.
    pub text: &'a str,
    /// A word that no script can guess: its [`EndMark`](crate::workload::script::EndMark) is made of
    /// it.
    pub nonce: &'a str,
}

/// Where a script's output goes.
pub struct ScriptOutput {
    /// Standard output.
    pub out: Writer,
    /// Standard error.
    pub err: Writer,
}

/// How a script ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptEnd {
    /// Exit code, 0 for success.
    pub exit_code: i32,
}

/// A pair of byte streams to a helper that has started; it speaks
/// [`protocol`](crate::helper::protocol) over them.
pub struct HelperStreams {
    /// What it writes. Ends when the helper has ended.
    pub output: BoxStream<'static, Result<Piece, ExecutorError>>,
    /// Its standard input.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
}

/// A piece of a program's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Of its standard output.
    Out(Bytes),
    /// Of its standard error.
    Err(Bytes),
}

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// What a preparation that failed has made: it is tried again after this.
    Attempt,
    /// All, at the end of a job that ended in order.
    Job,
    /// All, and what the executor may still be making: the job was stopped while requests were under
    /// way.
    StoppedJob,
}

/// How a removal went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// What is left, for the operator; empty when nothing is.
    pub left: Vec<String>,
    /// The executor could not be reached: what is left can be removed once it is back.
    pub is_unreachable: bool,
    /// A moment later it may go better.
    pub is_retryable: bool,
}

impl Removed {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.left.is_empty()
    }
}

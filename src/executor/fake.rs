//! An executor in memory, which fails or waits on demand at every step: for tests of all that is built
//! on the contract.
//!
//! A [`FakeHost`] is what an engine is for Docker's: it outlives executors and sessions, as after a
//! crash of longshore.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    sync::watch,
};

use super::{
    Executor, ExecutorError, ExecutorFailure, HelperStreams, Piece, Prepared, Removal, Removed,
    Script, ScriptEnd, ScriptOutput, Session, SessionRequest,
};
use crate::{
    helper::protocol::{Decoder, Done, Frame, Task},
    ledger::{JobDirectories, LedgerEntry, Resource, SessionState},
    workload::{Leases, Workload, outcome::FailureReason},
};

/// A call that can fail or wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Step {
    Connect,
    Prepare,
    StartHelper,
    RunScript,
    ResumeScript,
    Renew,
    StopScript,
    Remove,
    Reattach,
}

/// What a step does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Fails; trying again does not help.
    Fails,
    /// Fails, and may go better when it is tried again.
    FailsForNow,
    /// What scripts run in is gone.
    Gone,
    /// Never ends, until whoever waits for it stops waiting.
    Hangs,
}

/// What a script writes, and how it ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Play {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) exit_code: i32,
}

/// What there is to run jobs on.
#[derive(Debug, Default)]
pub(crate) struct FakeHost {
    state: Mutex<HostState>,
    /// The calls so far, in order.
    calls: watch::Sender<Vec<Step>>,
}

#[derive(Debug, Default)]
struct HostState {
    trouble: HashMap<Step, VecDeque<Option<Trouble>>>,
    plays: BTreeMap<String, Play>,
    /// Exit codes of the helper's tasks by their names, such as `sources`; 0 for those not there.
    tasks: BTreeMap<&'static str, i32>,
    resources: Vec<Resource>,
    /// Scripts that were run, by stage, with their text.
    scripts: Vec<(String, String)>,
    /// Leases that were taken and not given back.
    leases: usize,
    /// Scripts that run in a container that outlives its session, by the container's id.
    running: HashMap<String, Play>,
}

impl FakeHost {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The next call of this step has this trouble.
    pub(crate) fn trouble(&self, step: Step, trouble: Trouble) -> &Self {
        self.state.lock().trouble.entry(step).or_default().push_back(Some(trouble));
        self
    }

    /// The next call of this step goes well; for one before a later trouble.
    pub(crate) fn well(&self, step: Step) -> &Self {
        self.state.lock().trouble.entry(step).or_default().push_back(None);
        self
    }

    /// The script of this stage does this.
    pub(crate) fn play(&self, stage: &str, play: Play) -> &Self {
        self.state.lock().plays.insert(stage.to_owned(), play);
        self
    }

    /// The helper's task of this name ends with this code.
    pub(crate) fn task(&self, name: &'static str, exit_code: i32) -> &Self {
        self.state.lock().tasks.insert(name, exit_code);
        self
    }

    /// What is there and was not removed.
    pub(crate) fn resources(&self) -> Vec<Resource> {
        self.state.lock().resources.clone()
    }

    /// Stages of the scripts that were begun, in order.
    pub(crate) fn stages(&self) -> Vec<String> {
        self.state.lock().scripts.iter().map(|(stage, _)| stage.clone()).collect()
    }

    /// Leases that were taken and neither used nor given back.
    pub(crate) fn leases(&self) -> usize {
        self.state.lock().leases
    }

    /// How often a step was called.
    pub(crate) fn count(&self, step: Step) -> usize {
        self.calls.borrow().iter().filter(|call| **call == step).count()
    }

    /// Waits until a step has been called so often.
    pub(crate) async fn reached(&self, step: Step, count: usize) {
        let mut calls = self.calls.subscribe();
        let is_reached =
            |calls: &Vec<Step>| calls.iter().filter(|call| **call == step).count() >= count;
        calls.wait_for(is_reached).await.expect("the host is there as long as its calls");
    }

    async fn call(&self, step: Step) -> Result<(), ExecutorError> {
        self.calls.send_modify(|calls| calls.push(step));
        let queued = self.state.lock().trouble.get_mut(&step).and_then(VecDeque::pop_front);
        let failure = |words: &str| {
            ExecutorFailure::new(FailureReason::RunnerSystemFailure, format!("{step:?}: {words}"))
        };
        match queued.flatten() {
            None => Ok(()),
            Some(Trouble::Fails) => Err(failure("it broke").with_hint(Some("mend it")).into()),
            Some(Trouble::FailsForNow) => Err(failure("away for a moment").retryable(true).into()),
            Some(Trouble::Gone) => Err(ExecutorError::Gone),
            Some(Trouble::Hangs) => std::future::pending().await,
        }
    }

    fn make(&self, resources: Vec<Resource>) {
        self.state.lock().resources.extend(resources);
    }

    fn remove(&self, resources: &[Resource]) {
        self.state.lock().resources.retain(|resource| !resources.contains(resource));
    }
}

/// An executor of a [`FakeHost`].
pub(crate) struct FakeExecutor {
    host: Arc<FakeHost>,
}

impl FakeExecutor {
    pub(crate) fn new(host: &Arc<FakeHost>) -> Self {
        Self { host: Arc::clone(host) }
    }
}

/// The build container of a workload, and its helper.
fn resources(workload: &Workload) -> Vec<Resource> {
    [&workload.names.build, &workload.names.helper]
        .map(|name| Resource::Container(name.clone()))
        .to_vec()
}

impl Executor for FakeExecutor {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn connect(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        self.host.call(Step::Connect).boxed()
    }

    fn lease<'a>(&'a self, _draft: &'a Workload) -> BoxFuture<'a, Leases> {
        async {
            self.host.state.lock().leases += 1;
            Leases::default()
        }
        .boxed()
    }

    fn release<'a>(&'a self, _workload: &'a Workload) -> BoxFuture<'a, ()> {
        async { self.host.state.lock().leases -= 1 }.boxed()
    }

    fn resources(&self, workload: &Workload) -> Vec<Resource> {
        resources(workload)
    }

    fn open(&self, request: SessionRequest) -> Arc<dyn Session> {
        Arc::new(FakeSession { host: Arc::clone(&self.host), request, container: Mutex::default() })
    }

    fn reattach<'a>(
        &'a self,
        state: &'a SessionState,
        request: SessionRequest,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Session>>, ExecutorError>> {
        async move {
            self.host.call(Step::Reattach).await?;
            let container = state.container.clone();
            let resource = container.clone().map(Resource::Container);
            if !resource.is_some_and(|resource| self.host.resources().contains(&resource)) {
                return Ok(None);
            }
            let host = Arc::clone(&self.host);
            let session = FakeSession { host, request, container: Mutex::new(container) };
            Ok(Some(Arc::new(session) as Arc<dyn Session>))
        }
        .boxed()
    }

    fn remove_orphaned<'a>(
        &'a self,
        entry: &'a LedgerEntry,
        _directories: &'a JobDirectories,
    ) -> BoxFuture<'a, bool> {
        async {
            let is_removed = self.host.call(Step::Remove).await.is_ok();
            if is_removed {
                self.host.remove(&entry.resources);
            }
            is_removed
        }
        .boxed()
    }
}

/// A session of a [`FakeExecutor`].
struct FakeSession {
    host: Arc<FakeHost>,
    request: SessionRequest,
    container: Mutex<Option<String>>,
}

impl FakeSession {
    fn end(play: &Play, output: &mut ScriptOutput) -> ScriptEnd {
        output.out.write(play.out.as_bytes());
        output.err.write(play.err.as_bytes());
        ScriptEnd { exit_code: play.exit_code }
    }
}

impl Session for FakeSession {
    fn prepare(&self) -> BoxFuture<'_, Result<Prepared, ExecutorError>> {
        async {
            // Something is there before it fails, as it would be.
            let build = self.request.workload.names.build.clone();
            self.host.make(vec![Resource::Container(build.clone())]);
            self.host.call(Step::Prepare).await?;
            *self.container.lock() = Some(build);
            Ok(Prepared { announcement: "Using nothing ...".to_owned(), needs_helper: false })
        }
        .boxed()
    }

    fn start_helper(&self) -> BoxFuture<'_, Result<HelperStreams, ExecutorError>> {
        async {
            let helper = self.request.workload.names.helper.clone();
            self.host.make(vec![Resource::Container(helper)]);
            self.host.call(Step::StartHelper).await?;
            let (theirs, ours) = tokio::io::duplex(64 << 10);
            Ok(serve(theirs, ours, self.host.state.lock().tasks.clone()))
        }
        .boxed()
    }

    fn run_script<'a>(
        &'a self,
        script: Script<'a>,
        output: &'a mut ScriptOutput,
    ) -> BoxFuture<'a, Result<ScriptEnd, ExecutorError>> {
        async move {
            let Script { stage, text, .. } = script;
            let play = self.host.state.lock().plays.get(stage).cloned().unwrap_or_default();
            self.host.state.lock().scripts.push((stage.to_owned(), text.to_owned()));
            if let Some(container) = self.container.lock().clone() {
                self.host.state.lock().running.insert(container, play.clone());
            }
            self.host.call(Step::RunScript).await?;
            Ok(Self::end(&play, output))
        }
        .boxed()
    }

    fn resume_script<'a>(
        &'a self,
        _nonce: &'a str,
        output: &'a mut ScriptOutput,
    ) -> BoxFuture<'a, Result<ScriptEnd, ExecutorError>> {
        async move {
            self.host.call(Step::ResumeScript).await?;
            let container = self.container().unwrap_or_default();
            let play = self.host.state.lock().running.remove(&container);
            let play = play.ok_or(ExecutorError::Gone)?;
            Ok(Self::end(&play, output))
        }
        .boxed()
    }

    fn renew(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        self.host.call(Step::Renew).boxed()
    }

    fn stop_script(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
        self.host.call(Step::StopScript).boxed()
    }

    fn explain_failure(&self) -> BoxFuture<'_, ()> {
        async { self.request.trace.job_log().warning("explained") }.boxed()
    }

    fn conclude(&self) -> BoxFuture<'_, ()> {
        async { self.request.trace.job_log().plain("concluded") }.boxed()
    }

    fn remove<'a>(
        &'a self,
        how: Removal,
        names_free: &'a (dyn Fn() + Send + Sync),
    ) -> BoxFuture<'a, Removed> {
        async move {
            if how != Removal::Attempt {
                self.host.state.lock().leases = 0;
            }
            if let Err(error) = self.host.call(Step::Remove).await {
                let is_unreachable = error.is_retryable();
                return Removed {
                    left: vec![error.to_string()],
                    is_unreachable,
                    is_retryable: false,
                };
            }
            self.host.remove(&resources(&self.request.workload));
            names_free();
            Removed::default()
        }
        .boxed()
    }

    fn container(&self) -> Option<String> {
        self.container.lock().clone()
    }
}

/// A helper at the other end of a pair of streams: it answers every task, files it takes are thrown
/// away, and files it gives are empty. It runs while its output is read.
fn serve(
    theirs: DuplexStream,
    ours: DuplexStream,
    codes: BTreeMap<&'static str, i32>,
) -> HelperStreams {
    let state = (theirs, Decoder::default(), codes);
    let output = futures_util::stream::unfold(state, |(mut streams, mut decoder, codes)| async {
        let answer = loop {
            match decoder.next_frame() {
                Ok(Some(Frame::Task(json))) => {
                    let task = serde_json::from_slice(&json).expect("the runner sends tasks");
                    break answer(&task, &codes);
                }
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) => panic!("the runner sends frames: {error}"),
            }
            let mut bytes = vec![0; 4096];
            match streams.read(&mut bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => decoder.push(&bytes[..count]),
            }
        };
        Some((Ok(Piece::Out(answer)), (streams, decoder, codes)))
    });
    HelperStreams { output: output.boxed(), input: Box::pin(ours) }
}

fn answer(task: &Task, codes: &BTreeMap<&'static str, i32>) -> Bytes {
    let name = match task {
        Task::OpenDirectories(_) => "open_directories",
        Task::Receive(_) => "receive",
        Task::Sources(_) => "sources",
        Task::ClearWorktree { .. } => "clear_worktree",
        Task::Extract(_) => "extract",
        Task::Archive(_) => "archive",
        Task::RemovePaths { .. } => "remove_paths",
        Task::Stat { .. } => "stat",
        Task::Send { .. } => "send",
        Task::CleanUp(_) => "clean_up",
    };
    let exit_code = codes.get(name).copied().unwrap_or_default();
    let error = (exit_code != 0).then(|| format!("{name} failed"));
    let done = Done { exit_code, error, ..Done::default() };
    let mut frames = Vec::new();
    if matches!(task, Task::Archive(_) | Task::Send { .. }) && exit_code == 0 {
        frames.extend_from_slice(&Frame::End.encode());
    }
    let json = serde_json::to_vec(&done).expect("an answer is JSON");
    frames.extend_from_slice(&Frame::Done(json.into()).encode());
    frames.into()
}

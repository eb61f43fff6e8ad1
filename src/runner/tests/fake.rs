//! A CI engine in memory, and a job of it on an executor in memory.

use std::{path::Path, sync::Arc};

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    executor::{
        buffered_log::{BufferedLog, LogEvent},
        fake::{FakeExecutor, FakeHost},
    },
    ledger::{Owner, StateDir},
    runner::{
        Acceptance, ArtifactStore, Conclusion, IncomingJob, Interrupt, NotDelivered, Process,
        Reporter, Runner, ServerFacts, StopRequest, StreamOptions, run,
    },
    trace::Trace,
    workload::{
        Workload,
        outcome::FailureReason,
        spec::{ArtifactSpec, Dependency},
        testing::Case,
    },
};

/// What a CI engine has heard of its job.
#[derive(Default)]
pub(super) struct FakeServer {
    /// It does not want the job.
    pub(super) is_unwanted: bool,
    /// It cannot be reached when the job has ended.
    pub(super) is_gone: bool,
    /// It does not take artifacts.
    pub(super) is_full: bool,
    pub(super) heard: Mutex<Heard>,
    /// What it wants to become of the job.
    pub(super) wish: watch::Sender<StopRequest>,
}

#[derive(Default)]
pub(super) struct Heard {
    trace: Option<Trace>,
    conclusion: Option<Conclusion>,
    uploads: Vec<String>,
}

impl FakeServer {
    /// How the job ended, as far as the server knows.
    pub(super) fn conclusion(&self) -> Option<Conclusion> {
        self.heard.lock().conclusion.clone()
    }

    /// The job's log, without colours.
    pub(super) fn log(&self) -> String {
        let trace = self.heard.lock().trace.clone().expect("the job has a trace");
        let bytes = trace.read_at(0, usize::MAX).expect("the spool can be read");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut plain = String::new();
        let mut parts = text.split('\u{1b}');
        plain.extend(parts.next());
        for part in parts {
            plain.extend(part.split_once(['m', 'K']).map(|(_, rest)| rest));
        }
        plain
    }

    /// Names of the files that were uploaded.
    pub(super) fn uploads(&self) -> Vec<String> {
        self.heard.lock().uploads.clone()
    }
}

impl Reporter for FakeServer {
    fn accept(&self) -> BoxFuture<'_, Acceptance> {
        let is_unwanted = self.is_unwanted;
        async move { if is_unwanted { Acceptance::Unwanted } else { Acceptance::Run } }.boxed()
    }

    fn stream(
        &self,
        trace: Trace,
        _options: StreamOptions,
        requests: watch::Sender<StopRequest>,
        done: CancellationToken,
    ) -> BoxFuture<'_, ()> {
        self.heard.lock().trace = Some(trace);
        let mut wish = self.wish.subscribe();
        async move {
            let pass_on = async {
                loop {
                    requests.send_replace(*wish.borrow_and_update());
                    if wish.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            done.run_until_cancelled(pass_on).await;
        }
        .boxed()
    }

    fn finish<'a>(
        &'a self,
        trace: &'a Trace,
        conclusion: &'a Conclusion,
    ) -> BoxFuture<'a, Result<(), NotDelivered>> {
        async {
            if self.is_gone {
                return Err(NotDelivered("the server is gone".into()));
            }
            trace.close();
            let mut heard = self.heard.lock();
            heard.trace = Some(trace.clone());
            heard.conclusion = Some(conclusion.clone());
            Ok(())
        }
        .boxed()
    }
}

impl ArtifactStore for FakeServer {
    fn download<'a>(
        &'a self,
        job: &'a Dependency,
        to: &'a Path,
        _is_direct: bool,
        log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool> {
        async move {
            let kept = std::fs::write(to, "artifacts");
            log.log(LogEvent::Plain(format!("got artifacts of {}", job.name)));
            kept.is_ok()
        }
        .boxed()
    }

    fn upload<'a>(
        &'a self,
        _artifact: &'a ArtifactSpec,
        file_name: &'a str,
        file: &'a Path,
        _log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool> {
        async {
            assert!(file.exists(), "an artifact is a file when it is uploaded");
            self.heard.lock().uploads.push(file_name.to_owned());
            !self.is_full
        }
        .boxed()
    }

    fn provenance(&self, _artifact: &ArtifactSpec, _workload: &Workload) -> Option<String> {
        None
    }
}

/// A job, its server, its host, and the process that runs it.
pub(super) struct Story {
    pub(super) case: Case,
    pub(super) host: Arc<FakeHost>,
    pub(super) server: Arc<FakeServer>,
    pub(super) interrupt: Interrupt,
    pub(super) process: Arc<Process>,
    directory: tempfile::TempDir,
}

impl Story {
    /// Of a job that only runs a script.
    pub(super) fn new() -> Self {
        Self::of(Case::new().variable("GIT_STRATEGY", "none"))
    }

    pub(super) fn of(case: Case) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        Self {
            case,
            host: FakeHost::new(),
            server: Arc::default(),
            interrupt: Interrupt::default(),
            process: Arc::new(Process::new("s_fake".to_owned(), state)),
            directory,
        }
    }

    /// The same with a server that behaves so.
    pub(super) fn with_server(mut self, server: FakeServer) -> Self {
        self.server = Arc::new(server);
        self
    }

    pub(super) fn incoming(&self) -> IncomingJob {
        let spec = self.case.job();
        IncomingJob {
            owner: Owner::Local { job: spec.id },
            spec: Box::new(spec),
            refused: None,
            server: ServerFacts::default(),
            reporter: Arc::clone(&self.server) as Arc<dyn Reporter>,
            artifacts: Arc::clone(&self.server) as Arc<dyn ArtifactStore>,
        }
    }

    /// Its state directory.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Begins to run the job.
    pub(super) fn start(&self) -> JoinHandle<()> {
        self.start_job(self.incoming())
    }

    pub(super) fn start_job(&self, incoming: IncomingJob) -> JoinHandle<()> {
        let runner = Arc::new(Runner {
            config: Arc::new(self.case.config()),
            executor: Arc::new(FakeExecutor::new(&self.host)),
            process: Arc::clone(&self.process),
        });
        let interrupt = self.interrupt.clone();
        #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
        tokio::spawn(async move { run(&runner, incoming, &interrupt).await })
    }

    /// Waits until all of the job is over, its removal too.
    pub(super) async fn end(&self, job: JoinHandle<()>) {
        job.await.unwrap();
        self.process.removals.close();
        self.process.removals.wait().await;
    }

    /// Runs the job to its end.
    pub(super) async fn run(&self) {
        let job = self.start();
        self.end(job).await;
    }

    /// Jobs that are in the ledger.
    pub(super) fn unfinished(&self) -> usize {
        self.process.state.unfinished_jobs().unwrap().len()
    }

    /// Nothing is left of the job, anywhere.
    pub(super) fn assert_clean(&self) {
        assert_eq!(self.host.resources(), [], "resources");
        assert_eq!(self.host.leases(), 0, "leases");
        assert_eq!(self.unfinished(), 0, "jobs in the ledger");
    }
}

/// A failure for this reason.
pub(super) fn failed(reason: FailureReason) -> Conclusion {
    Conclusion::Failed { reason, exit_code: None }
}

//! The long-lived process: its runners, their jobs, what is changed while they run, and how it ends.
//! It owns every task; when it returns, none is left.
//!
//! Where its configuration comes from and which signals it gets is the command line's business.

pub mod listen;

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    base::{error_chain, secret::Secret},
    config::{
        Config, RunnerConfig,
        diff::{self, RunnerChange, Schedule},
    },
    executor::Executors,
    gitlab::{
        self, GitlabRunner,
        api::{Client, ClientError, ClientSettings},
        poll::{self, Arrival, Bounds, Orders},
    },
    ledger::{LedgerEntry, Owner, StateError},
    runner::{self, Interrupt, Process, ResizableSemaphore, Runner, Signal, metrics::Configured},
};

/// Jobs that have come and wait to be started, at most; they wait for microseconds.
const ARRIVALS: usize = 16;

/// How a daemon is asked to end; later ones are stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stop {
    /// Not at all.
    #[default]
    Not,
    /// Takes no more jobs, and waits for those that run.
    Drain,
    /// Ends those that run, cleans up, and waits for that no longer than `shutdown_timeout`.
    Jobs(Signal),
    /// Now.
    Now,
}

/// When a daemon ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// After so many jobs.
    pub jobs: Option<u64>,
    /// When no job came for so long and none runs.
    pub wait: Option<Duration>,
}

/// The daemon left jobs or their containers behind; the next start goes on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The time was up.
    #[error("{jobs} jobs were not cleaned up in time; the next start does it")]
    Unclean {
        /// How many.
        jobs: usize,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// See the module.
pub struct Daemon {
    process: Arc<Process>,
    executors: Arc<Executors>,
    /// Where `<host>.crt` is looked for, beside the configuration.
    certs_dir: Option<PathBuf>,
    interrupt: Interrupt,
    clients: HashMap<ClientKey, Arc<Client>>,
    pollers: Vec<Poller>,
    /// Above those of all pollers, of retired ones too.
    stop_polling: CancellationToken,
    polling: JoinSet<()>,
    jobs: JoinSet<()>,
    /// What executors do beside the jobs.
    upkeep: JoinSet<()>,
    /// Above those of all executors.
    stop_upkeep: CancellationToken,
    concurrent: ResizableSemaphore,
    shutdown_timeout: Duration,
    quota: Quota,
    /// Jobs that have come.
    count: u64,
}

/// Runners that are one to their server share a connection and a place in its queue.
type ClientKey = (String, Secret, Option<PathBuf>, Option<PathBuf>);

struct Poller {
    runner: Arc<GitlabRunner>,
    interval: Duration,
    offset: Duration,
    limit: ResizableSemaphore,
    stop: CancellationToken,
    retire: CancellationToken,
    /// Ends what its executor does beside the jobs.
    stop_upkeep: CancellationToken,
    reloads: watch::Sender<()>,
    /// Set when it has ended.
    ended: CancellationToken,
}

impl Daemon {
    /// A daemon that has not begun.
    #[must_use]
    pub fn new(
        process: Arc<Process>,
        executors: Arc<Executors>,
        certs_dir: Option<PathBuf>,
    ) -> Self {
        Self {
            process,
            executors,
            certs_dir,
            interrupt: Interrupt::default(),
            clients: HashMap::new(),
            pollers: Vec::new(),
            stop_polling: CancellationToken::new(),
            polling: JoinSet::new(),
            jobs: JoinSet::new(),
            upkeep: JoinSet::new(),
            stop_upkeep: CancellationToken::new(),
            concurrent: ResizableSemaphore::new(0),
            shutdown_timeout: Duration::ZERO,
            quota: Quota::default(),
            count: 0,
        }
    }

    /// The same, with an end of its own.
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// Runs with `config`, and with each of `changes` as it comes, until `stop` says otherwise.
    ///
    /// # Errors
    /// When something was left behind.
    pub async fn run(
        mut self,
        config: Config,
        mut changes: mpsc::Receiver<Config>,
        mut stop: watch::Receiver<Stop>,
    ) -> Result<(), DaemonError> {
        let (sender, mut arrivals) = mpsc::channel(ARRIVALS);
        self.recover(&config)?;
        self.apply(&config, &sender);
        let mut changing = true;
        let mut idle_since = Instant::now();
        while self.quota.jobs.is_none_or(|jobs| self.count < jobs) {
            let waited = self.quota.wait.filter(|_| self.jobs.is_empty());
            tokio::select! {
                () = until(waited.map(|wait| idle_since + wait)) => break,
                change = changes.recv(), if changing => match change {
                    Some(config) => self.apply(&config, &sender),
                    None => changing = false,
                },
                Some(arrival) = arrivals.recv() => self.start(arrival),
                Some(ended) = self.jobs.join_next() => {
                    idle_since = Instant::now();
                    note_panic(&ended);
                }
                Some(ended) = self.polling.join_next() => note_panic(&ended),
                Some(ended) = self.upkeep.join_next() => note_panic(&ended),
                changed = stop.changed() => {
                    if changed.is_err() || *stop.borrow() != Stop::Not {
                        break;
                    }
                }
            }
        }
        self.stop_polling().await;
        drop(sender);
        while let Some(arrival) = arrivals.recv().await {
            self.start(arrival);
        }
        self.end(stop).await
    }

    /// Ends the jobs that earlier processes did not finish, and has executors remove what is orphaned.
    fn recover(&mut self, config: &Config) -> Result<(), DaemonError> {
        for (record, entry) in self.process.state.unfinished_jobs()? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the entry of an earlier job; it is dropped");
                    if let Err(error) = record.close() {
                        tracing::warn!(%error, "failed to remove the job's directory");
                    }
                    continue;
                }
            };
            let Some(runner) = runner_of(&entry, config) else {
                tracing::warn!(
                    job.id = %entry.owner.job(), runner = entry.runner.as_str(),
                    "an earlier job's runner is not configured any more; the job stays in the ledger"
                );
                continue;
            };
            let Some(client) = self.client(runner, config) else { continue };
            let executor = self.executors.executor(runner);
            let info = Arc::new(gitlab::info(runner));
            self.jobs.spawn(async move {
                gitlab::end_job(&*executor, client, info, record, entry).await;
            });
        }
        self.executors.retain(&config.runners, &self.process.system_id);
        // Connecting removes what is orphaned, of jobs that the ledger does not know too.
        for runner in &config.runners {
            let (executor, runner) = (self.executors.executor(runner), Arc::clone(runner));
            self.jobs.spawn(async move {
                if let Err(error) = executor.connect().await {
                    tracing::warn!(
                        runner = runner.name.as_str(),
                        error = error_chain(&error),
                        "executor cannot be used; jobs will fail until it can"
                    );
                }
            });
        }
        Ok(())
    }

    /// Makes the runners be what the configuration says. Running jobs keep what they began with.
    fn apply(&mut self, config: &Config, jobs: &mpsc::Sender<Arrival>) {
        self.concurrent.resize(config.concurrent);
        self.shutdown_timeout = config.shutdown_timeout;
        let mut before: Vec<Option<Poller>> = self.pollers.drain(..).map(Some).collect();
        let in_force: Vec<_> = before
            .iter()
            .flatten()
            .map(|poller| {
                let schedule = Schedule { interval: poller.interval, offset: poller.offset };
                (poller.runner.config(), schedule)
            })
            .collect();
        let diff = diff::runners(&in_force, config);
        for (place, (runner, change)) in config.runners.iter().zip(diff.changes).enumerate() {
            let Schedule { interval, offset } = Schedule::of(config, place);
            let old = change.before().and_then(|at| before[at].take());
            let limit = match &old {
                Some(old) => old.limit.clone(),
                None => ResizableSemaphore::new(0),
            };
            limit.resize(if runner.limit == 0 {
                tokio::sync::Semaphore::MAX_PERMITS
            } else {
                runner.limit
            });
            let mut predecessor = None;
            if let Some(old) = old {
                if matches!(change, RunnerChange::Unchanged(_)) && !old.stop.is_cancelled() {
                    old.reloads.send_replace(());
                    self.pollers.push(old);
                    continue;
                }
                old.retire.cancel();
                old.stop_upkeep.cancel();
                predecessor = Some(old.ended);
            }
            let Some(client) = self.client(runner, config) else { continue };
            let poller = Poller {
                runner: Arc::new(GitlabRunner {
                    info: Arc::new(gitlab::info(runner)),
                    runner: Arc::new(Runner {
                        config: Arc::clone(runner),
                        executor: self.executors.executor(runner),
                        process: Arc::clone(&self.process),
                    }),
                    client,
                }),
                interval,
                offset,
                limit,
                stop: self.stop_polling.child_token(),
                retire: CancellationToken::new(),
                stop_upkeep: self.stop_upkeep.child_token(),
                reloads: watch::Sender::new(()),
                ended: CancellationToken::new(),
            };
            self.begin(&poller, predecessor, jobs.clone());
            self.pollers.push(poller);
        }
        for gone in before.into_iter().flatten() {
            gone.stop.cancel();
            gone.stop_upkeep.cancel();
        }
        let configured = config.runners.iter().map(|runner| Configured {
            runner: runner::labels(runner),
            limit: runner.limit,
            request_concurrency: runner.gitlab.request_concurrency,
        });
        self.process.metrics.loaded(config.concurrent, configured.collect());
        tracing::info!(
            runners = self.pollers.len(),
            concurrent = config.concurrent,
            "configuration loaded"
        );
    }

    /// Begins to poll, once the same runner's poller before it has ended: there must not be more
    /// requests at once than are allowed.
    fn begin(
        &mut self,
        poller: &Poller,
        predecessor: Option<CancellationToken>,
        jobs: mpsc::Sender<Arrival>,
    ) {
        let runner = Arc::clone(&poller.runner);
        let bounds = Bounds {
            concurrent: self.concurrent.clone(),
            limit: poller.limit.clone(),
            interval: poller.interval,
            offset: poller.offset,
        };
        let orders = Orders {
            stop: poller.stop.clone(),
            retire: poller.retire.clone(),
            reloads: poller.reloads.subscribe(),
        };
        let ended = poller.ended.clone().drop_guard();
        let span = tracing::info_span!("runner", name = runner.config().name.as_str());
        let polling = async move {
            if let Some(predecessor) = predecessor {
                orders.stop.run_until_cancelled(predecessor.cancelled()).await;
            }
            poll::poll(&runner, &bounds, jobs, orders).await;
            drop(ended);
        };
        self.polling.spawn(polling.instrument(span.clone()));
        let executor = &poller.runner.runner.executor;
        if let Some(upkeep) = executor.upkeep(poller.stop_upkeep.clone()) {
            self.upkeep.spawn(upkeep.instrument(span));
        }
    }

    fn client(&mut self, runner: &RunnerConfig, config: &Config) -> Option<Arc<Client>> {
        let key = (
            runner.gitlab.url.clone(),
            runner.gitlab.token.clone(),
            runner.gitlab.tls.ca.clone(),
            runner.gitlab.tls.cert.clone(),
        );
        if let Some(client) = self.clients.get(&key) {
            return Some(Arc::clone(client));
        }
        let settings =
            ClientSettings::of(runner, self.certs_dir.as_deref(), config.connection_max_age);
        match Client::new(settings) {
            Ok(client) => {
                let client = Arc::new(client);
                self.clients.insert(key, Arc::clone(&client));
                Some(client)
            }
            Err(error) => {
                report_unusable(runner, &error);
                None
            }
        }
    }

    fn start(&mut self, arrival: Arrival) {
        let Arrival { runner, job, correlation_id, permits } = arrival;
        let runner = self.as_configured_now(runner);
        self.count += 1;
        let span = tracing::info_span!(
            "job",
            job.id = %job.id(),
            project.id = job.project_id(),
            runner = runner.config().name.as_str(),
            correlation_id,
        );
        let interrupt = self.interrupt.clone();
        let work = async move {
            tracing::info!("job received");
            let incoming = gitlab::incoming(&runner, job, correlation_id);
            runner::run(&runner.runner, incoming, &interrupt).await;
            drop(permits);
        };
        self.jobs.spawn(work.instrument(span));
    }

    /// The runner with the settings in force, which may have changed while its server held the
    /// request for the job.
    fn as_configured_now(&self, runner: Arc<GitlabRunner>) -> Arc<GitlabRunner> {
        let same = |current: &&Poller| {
            current.runner.config().name == runner.config().name
                && Arc::ptr_eq(&current.runner.client, &runner.client)
        };
        let current = self.pollers.iter().find(same).map(|current| Arc::clone(&current.runner));
        current.unwrap_or(runner)
    }

    async fn stop_polling(&mut self) {
        self.stop_polling.cancel();
        while let Some(ended) = self.polling.join_next().await {
            note_panic(&ended);
        }
    }

    /// Waits for jobs and removals as `stop` says, which may become stronger meanwhile.
    async fn end(mut self, mut stop: watch::Receiver<Stop>) -> Result<(), DaemonError> {
        let mut deadline: Option<Instant> = None;
        self.stop_upkeep.cancel();
        self.process.removals.close();
        loop {
            match *stop.borrow_and_update() {
                Stop::Not | Stop::Drain => {}
                Stop::Jobs(signal) => {
                    self.interrupt.send(signal);
                    deadline.get_or_insert(Instant::now() + self.shutdown_timeout);
                }
                Stop::Now => return self.unclean(),
            }
            let removals = self.process.removals.clone();
            let all = async {
                while let Some(ended) = self.jobs.join_next().await {
                    note_panic(&ended);
                }
                while let Some(ended) = self.upkeep.join_next().await {
                    note_panic(&ended);
                }
                removals.wait().await;
            };
            let in_time = async {
                match deadline {
                    None => {
                        all.await;
                        true
                    }
                    Some(deadline) => timeout_at(deadline, all).await.is_ok(),
                }
            };
            tokio::select! {
                done = in_time => return if done { Ok(()) } else { self.unclean() },
                changed = stop.changed() => {
                    if changed.is_err() {
                        stop = watch::channel(Stop::Jobs("terminated")).1;
                    }
                }
            }
        }
    }

    fn unclean(&self) -> Result<(), DaemonError> {
        Err(DaemonError::Unclean { jobs: self.jobs.len().max(self.process.removals.len()) })
    }
}

/// Waits until then; for ever without a time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The runner whose job it was, or another of the same server.
fn runner_of<'a>(entry: &LedgerEntry, config: &'a Config) -> Option<&'a Arc<RunnerConfig>> {
    let Owner::Gitlab { url, .. } = &entry.owner else { return config.runners.first() };
    let of_server = || config.runners.iter().filter(|runner| runner.gitlab.url == *url);
    of_server().find(|runner| runner.name == entry.runner).or_else(|| of_server().next())
}

fn report_unusable(runner: &RunnerConfig, error: &ClientError) {
    tracing::error!(
        runner = runner.name.as_str(),
        error = error_chain(error),
        "runner cannot reach its server and is skipped"
    );
}

/// A task that panicked took its job with it; the others go on.
fn note_panic(ended: &Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task panicked; this is a bug in longshore");
    }
}

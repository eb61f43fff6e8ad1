//! Polls a runner's GitLab for jobs, as often and with as many requests at once as is allowed, and
//! hands each job to whoever runs jobs.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use parking_lot::Mutex;

use super::{
    GitlabRunner,
    api::{JobReply, Received, wire::JobPayload},
};
use crate::{
    base::{ids::JobId, secret::Secret},
    config::RunnerConfig,
    runner::{Permit, ResizableSemaphore},
};

/// A job that came, with the permits that it holds until it is done.
pub struct Arrival {
    /// The runner that it came to.
    pub runner: Arc<GitlabRunner>,
    /// The job, or what is known of one that cannot be understood.
    pub job: Arrived,
    /// By which the server's logs know the request that brought it.
    pub correlation_id: Option<String>,
    /// Held while the job runs.
    pub permits: Permits,
}

/// What came of a job.
pub enum Arrived {
    /// A job.
    Job(Box<JobPayload>),
    /// Its payload cannot be understood; its server must be told.
    Undecodable {
        /// Its number.
        id: JobId,
        /// Its token.
        token: Secret,
        /// Why, without the payload's values.
        error: String,
    },
}

impl Arrived {
    /// The job's number.
    #[must_use]
    pub fn id(&self) -> JobId {
        match self {
            Self::Job(job) => job.id,
            Self::Undecodable { id, .. } => *id,
        }
    }

    /// The project's number, where it is known.
    #[must_use]
    pub fn project_id(&self) -> i64 {
        match self {
            Self::Job(job) => job.job_info.project_id.0,
            Self::Undecodable { .. } => 0,
        }
    }
}

/// Permits to run one more job, of the process and of the runner.
pub struct Permits {
    _process: Permit,
    _runner: Permit,
}

/// What bounds a runner's polling.
pub struct Bounds {
    /// Jobs of the process.
    pub concurrent: ResizableSemaphore,
    /// Jobs of the runner.
    pub limit: ResizableSemaphore,
    /// One request at least so long after the other.
    pub interval: Duration,
    /// The first one after this: runners take turns.
    pub offset: Duration,
}

/// What a poller is told from outside.
pub struct Orders {
    /// Ends it, and requests under way.
    pub stop: CancellationToken,
    /// Ends it once the requests under way are answered: the server may have given a job away
    /// already.
    pub retire: CancellationToken,
    /// The configuration was read again, and says the same of this runner.
    pub reloads: watch::Receiver<()>,
}

/// Polls until it is told to end. Jobs go to `jobs`.
pub async fn poll(
    runner: &Arc<GitlabRunner>,
    bounds: &Bounds,
    jobs: mpsc::Sender<Arrival>,
    orders: Orders,
) {
    if runner.config().gitlab.token.is_empty() {
        tracing::warn!(
            runner = runner.config().name.as_str(),
            "runner has no token and is skipped"
        );
        return;
    }
    let state = Poller {
        runner,
        bounds,
        health: Mutex::new(Health::new(runner.config(), Instant::now())),
        adaptive: Mutex::new(Adaptive::new(runner.config())),
        more: Notify::new(),
        retire: orders.retire,
    };
    let others =
        (1..runner.config().gitlab.request_concurrency).map(|number| state.also(number, &jobs));
    let all = async {
        tokio::join!(state.regularly(&jobs, orders.reloads), futures_util::future::join_all(others))
    };
    if orders.stop.run_until_cancelled(all).await.is_some() {
        tracing::debug!("polling has ended by itself");
    }
}

struct Poller<'a> {
    runner: &'a Arc<GitlabRunner>,
    bounds: &'a Bounds,
    health: Mutex<Health>,
    adaptive: Mutex<Adaptive>,
    /// A job came: there may be more.
    more: Notify,
    retire: CancellationToken,
}

impl Poller<'_> {
    /// Polls at every interval, and at once after a job.
    async fn regularly(&self, jobs: &mpsc::Sender<Arrival>, mut reloads: watch::Receiver<()>) {
        let mut next = Instant::now() + self.bounds.offset;
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.retire.cancelled() => return,
                // A reload forgets what has been refused (docs/compatibility.md, "Unhealthy
                // runners").
                Ok(()) = reloads.changed() => {
                    if self.health.lock().forget(Instant::now()) {
                        next = Instant::now();
                    }
                    continue;
                }
            }
            let paused = self.health.lock().paused_until(Instant::now());
            if let Some(until) = paused {
                next = until;
                continue;
            }
            next = Instant::now() + self.bounds.interval;
            match self.once(jobs).await {
                Polled::Job if !self.runner.config().gitlab.strict_check_interval => {
                    next = Instant::now();
                    self.more.notify_waiters();
                }
                Polled::Job | Polled::Nothing => {}
                Polled::Over => return,
            }
        }
    }

    /// Polls beside the others while jobs keep coming, as far as requests at once are allowed.
    async fn also(&self, number: usize, jobs: &mpsc::Sender<Arrival>) {
        loop {
            if self.retire.run_until_cancelled(self.more.notified()).await.is_none() {
                return;
            }
            while self.adaptive.lock().limit() > number {
                match self.once(jobs).await {
                    Polled::Job => {}
                    Polled::Nothing => break,
                    Polled::Over => return,
                }
            }
        }
    }

    async fn once(&self, jobs: &mpsc::Sender<Arrival>) -> Polled {
        let permits = async {
            Permits {
                _runner: self.bounds.limit.acquire().await,
                _process: self.bounds.concurrent.acquire().await,
            }
        };
        let Some(permits) = self.retire.run_until_cancelled(permits).await else {
            return Polled::Over;
        };
        let runner = self.runner;
        let process = &runner.runner.process;
        let reply = runner.client.request_job(&runner.info, &process.system_id).await;
        self.note(&reply);
        let token = runner.config().short_token();
        process.metrics.answered(&token, "request_job", "post", reply.status);
        let job = match reply.job {
            Received::Nothing => return Polled::Nothing,
            Received::Job(job) => Arrived::Job(job),
            Received::Undecodable { id: Some(id), token: Some(token), error } => {
                Arrived::Undecodable { id, token, error }
            }
            Received::Undecodable { error, .. } => {
                tracing::error!(error, "a job came that cannot be understood, nor answered");
                return Polled::Nothing;
            }
        };
        let runner = Arc::clone(self.runner);
        if jobs
            .send(Arrival { runner, job, correlation_id: reply.request_id, permits })
            .await
            .is_err()
        {
            Polled::Over
        } else {
            Polled::Job
        }
    }

    fn note(&self, reply: &JobReply) {
        if let Some(problem) = &reply.problem {
            tracing::warn!(problem, status = reply.status, "asking for a job failed");
        }
        let came = matches!(reply.job, Received::Job(_));
        self.adaptive.lock().note(came, reply.retried);
        let paused = self.health.lock().note(reply.healthy, Instant::now());
        if paused {
            tracing::error!(
                pause = ?self.runner.config().gitlab.unhealthy_interval,
                "server refuses the runner's token again and again; the runner is paused"
            );
        }
    }
}

/// How a request for a job ended.
enum Polled {
    Job,
    Nothing,
    /// Nobody takes jobs any more, or none are wanted.
    Over,
}

/// Consecutive refusals, and the pause they lead to (docs/compatibility.md, "Unhealthy runners").
struct Health {
    limit: u32,
    interval: Duration,
    failures: u32,
    last_healthy: Instant,
}

impl Health {
    fn new(config: &RunnerConfig, now: Instant) -> Self {
        Self {
            limit: config.gitlab.unhealthy_requests_limit.max(1),
            interval: config.gitlab.unhealthy_interval,
            failures: 0,
            last_healthy: now,
        }
    }

    /// Counts an answer; true when it begins a pause.
    fn note(&mut self, healthy: bool, now: Instant) -> bool {
        if healthy {
            self.failures = 0;
            self.last_healthy = now;
            return false;
        }
        self.failures += 1;
        self.failures == self.limit
    }

    /// Begins anew; true when that ends a pause.
    fn forget(&mut self, now: Instant) -> bool {
        let paused = self.failures >= self.limit;
        self.failures = 0;
        self.last_healthy = now;
        paused
    }

    /// When the pause ends; after it, another series is counted.
    fn paused_until(&mut self, now: Instant) -> Option<Instant> {
        if self.failures < self.limit {
            return None;
        }
        let until = self.last_healthy + self.interval;
        if now < until {
            return Some(until);
        }
        self.failures = 0;
        self.last_healthy = now;
        None
    }
}

/// Requests at once, between 1 and what is configured (docs/compatibility.md, "Adaptive request
/// concurrency").
struct Adaptive {
    most: usize,
    adapts: bool,
    factor: f64,
}

impl Adaptive {
    fn new(config: &RunnerConfig) -> Self {
        let flag = "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY";
        Self {
            most: config.gitlab.request_concurrency.max(1),
            adapts: config.feature_flags.get(flag).copied().unwrap_or(true),
            factor: 0.0,
        }
    }

    fn note(&mut self, job: bool, retried: bool) {
        let change = match (retried, job) {
            (true, _) => 0.5,
            (false, true) => 1.1,
            (false, false) => 0.95,
        };
        #[expect(clippy::cast_precision_loss, reason = "it is a small number")]
        let most = self.most as f64;
        self.factor = (self.factor * change).clamp(1.0, most);
    }

    fn limit(&self) -> usize {
        if !self.adapts {
            return self.most;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 1 and a small number"
        )]
        let limit = self.factor.ceil() as usize;
        limit.clamp(1, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health {
            limit: 3,
            interval: Duration::from_hours(1),
            failures: 0,
            last_healthy: Instant::now(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn api_49_three_refusals_pause_a_runner_and_polling_resumes_after_the_interval() {
        let mut health = health();
        let start = Instant::now();
        assert!(!health.note(false, start) && !health.note(false, start));
        assert!(health.note(false, start));
        assert_eq!(health.paused_until(start), Some(start + Duration::from_hours(1)));
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(health.paused_until(Instant::now()), None);
        assert!(!health.note(false, Instant::now()));
    }

    #[tokio::test]
    async fn api_50_a_healthy_answer_begins_the_count_again() {
        let mut health = health();
        let now = Instant::now();
        for healthy in [false, false, true, false, false] {
            assert!(!health.note(healthy, now));
        }
        assert_eq!(health.paused_until(now), None);
    }

    #[test]
    fn api_58_59_requests_at_once_grow_with_jobs_and_shrink_with_errors() {
        let mut adaptive = Adaptive { most: 4, adapts: true, factor: 0.0 };
        assert_eq!(adaptive.limit(), 1);
        for _ in 0..20 {
            adaptive.note(true, false);
        }
        assert_eq!(adaptive.limit(), 4);
        adaptive.note(true, true);
        assert_eq!(adaptive.limit(), 2);
        for _ in 0..20 {
            adaptive.note(false, false);
        }
        assert_eq!(adaptive.limit(), 1);
        assert_eq!(Adaptive { most: 4, adapts: false, factor: 0.0 }.limit(), 4);
    }
}

//! Daemons that wait for jobs (`[runners.docker.dind] warm`): how many, what they are like, and which
//! job gets which.
//!
//! Those that wait are as the last jobs' were, one for each: so a runner whose jobs are alike has only
//! such, and one with two kinds of jobs has some of both. Nothing is known before the first job, which
//! is like all for which none waits: it gets one that is started for it.
//!
//! A daemon is in [`Pool`]'s list of those that wait or it is a job's, and never comes back from one;
//! only one that a job did not come to use does. A job's is in its plan before the ledger notes the
//! job. Those that wait are in no ledger: after a crash the sweep finds them by their label.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    base::error_chain,
    config::RunnerConfig,
    workload::{Workload, placement::WarmDaemonLease},
};

use super::{
    clean_up::{self, Anonymous},
    dind::{
        recipe::{Names, Recipe, Unfit},
        warm::{self, Warm, WarmError},
    },
    engine::{
        Engine,
        image::{self, Image},
    },
    engines::Engines,
};

/// Pause after a daemon that did not come to wait, or has ended: the reason may pass.
const TRY_AGAIN: Duration = Duration::from_mins(1);

/// How long a daemon may wait: the job that takes it may run for long, and its certificates are good
/// for three months.
const OLDEST: Duration = Duration::from_hours(7 * 24);

/// The daemons that wait for one runner's jobs.
#[derive(Debug, Default)]
pub(super) struct Pool {
    count: usize,
    state: Mutex<PoolState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct PoolState {
    /// What the last jobs' daemons were like, the latest last.
    recent: VecDeque<Arc<Recipe>>,
    waiting: Vec<Waiting>,
    /// Those that were leased, until their jobs have them.
    leased: Vec<Waiting>,
    /// Nothing more is to wait.
    closed: bool,
    /// The last reason that was logged why a job could not take one.
    logged: Option<Unfit>,
}

#[derive(Debug, Clone)]
struct Waiting {
    recipe: Arc<Recipe>,
    warm: Arc<Warm>,
}

impl Waiting {
    fn is_old(&self) -> bool {
        self.warm.since().elapsed() > OLDEST
    }
}

impl Pool {
    /// Of `count` daemons; none waits yet.
    #[must_use]
    pub(super) fn new(count: usize) -> Self {
        Self { count, ..Self::default() }
    }

    /// Whether none ever waits.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock()
    }

    /// The first that waits and is like this.
    fn take(&self, recipe: &Recipe) -> Option<Waiting> {
        let mut state = self.state();
        let at = state.waiting.iter().position(|w| *w.recipe == *recipe && !w.is_old())?;
        Some(state.waiting.remove(at))
    }

    /// Leases a daemon that waits to a workload that was planned without, if there is one for it.
    pub(super) fn lease(&self, config: &RunnerConfig, draft: &Workload) -> Option<WarmDaemonLease> {
        let recipe = self.recipe(config, draft)?;
        let waiting = self.take(&recipe)?;
        let lease = waiting.warm.names().lease();
        self.state().leased.push(waiting);
        Some(lease)
    }

    /// What the daemon of such a workload is like, if one can wait for it.
    fn recipe(&self, config: &RunnerConfig, workload: &Workload) -> Option<Recipe> {
        if self.is_empty() {
            return None;
        }
        match Recipe::of(workload, config) {
            Ok(recipe) => Some(recipe),
            Err(Unfit::None) => None,
            Err(why) => {
                let logged = self.state().logged.replace(why);
                if logged != Some(why) {
                    tracing::info!(reason = %why, "jobs such as this one take no warm Docker daemon");
                }
                None
            }
        }
    }

    /// The daemon that was leased to this workload, for its session.
    pub(super) fn leased(&self, workload: &Workload) -> Option<Arc<Warm>> {
        let container = &workload.access.dind()?.container;
        let state = self.state();
        let leased = state.leased.iter().find(|w| w.warm.names().container() == container)?;
        Some(Arc::clone(&leased.warm))
    }

    /// A workload's daemon is its job's from now on: later jobs are to find one like it.
    pub(super) fn note_used(&self, config: &RunnerConfig, workload: &Workload) {
        let leased = self.end_lease(workload).map(|waiting| waiting.recipe);
        let recipe = leased.or_else(|| self.recipe(config, workload).map(Arc::new));
        let Some(recipe) = recipe else { return };
        let mut state = self.state();
        // One value for jobs that are alike.
        let known = state.recent.iter().find(|known| ***known == *recipe);
        let recipe = Arc::clone(known.unwrap_or(&recipe));
        state.recent.push_back(recipe);
        while state.recent.len() > self.count {
            state.recent.pop_front();
        }
        drop(state);
        self.changed.notify_one();
    }

    fn end_lease(&self, workload: &Workload) -> Option<Waiting> {
        let container = &workload.access.dind()?.container;
        let mut state = self.state();
        let at = state.leased.iter().position(|w| w.warm.names().container() == container)?;
        Some(state.leased.swap_remove(at))
    }

    /// Takes back a daemon that its workload did not come to use.
    pub(super) async fn release(
        &self,
        config: &RunnerConfig,
        engines: &Engines,
        workload: &Workload,
    ) {
        let Some(waiting) = self.end_lease(workload) else { return };
        let Err(waiting) = self.add(waiting) else { return self.changed.notify_one() };
        match engines.connect(&config.docker().engine).await {
            Ok(engine) => drop(remove(&engine, waiting.warm.names()).await),
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "a warm Docker daemon is left to the next start"
            ),
        }
    }

    /// A job that may have had a daemon is over. One whose start failed was not noted.
    pub(super) fn job_ended(&self, workload: &Workload) {
        drop(self.end_lease(workload));
        self.changed.notify_one();
    }

    /// Adds one that is ready, or gives it back when nothing more is to wait.
    fn add(&self, waiting: Waiting) -> Result<(), Waiting> {
        let mut state = self.state();
        if state.closed {
            return Err(waiting);
        }
        state.waiting.push(waiting);
        Ok(())
    }

    /// Takes out those that `keep` does not want.
    fn sort_out(&self, keep: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let mut state = self.state();
        let all = std::mem::take(&mut state.waiting);
        let (kept, out) = all.into_iter().partition(keep);
        state.waiting = kept;
        out
    }

    /// Takes out those that are too many, and says what is to be started.
    fn next(&self) -> (Vec<Waiting>, Option<Arc<Recipe>>) {
        let mut wanted = self.wanted();
        let out = self.sort_out(|waiting| {
            let at = wanted.iter().position(|recipe| *recipe == waiting.recipe);
            at.map(|at| wanted.swap_remove(at)).is_some()
        });
        (out, wanted.pop())
    }

    /// What those that wait should be like.
    fn wanted(&self) -> Vec<Arc<Recipe>> {
        let state = self.state();
        let Some(latest) = state.recent.back() else { return Vec::new() };
        let missing = self.count - state.recent.len();
        state.recent.iter().chain(std::iter::repeat_n(latest, missing)).cloned().collect()
    }

    fn close(&self) -> Vec<Waiting> {
        let mut state = self.state();
        state.closed = true;
        std::mem::take(&mut state.waiting)
    }
}

/// Keeps as many daemons waiting as there should be, until `stop`; then none of them is left.
pub(super) async fn tend(
    pool: Arc<Pool>,
    config: Arc<RunnerConfig>,
    engines: Arc<Engines>,
    stop: CancellationToken,
) {
    let mut tending = Tending {
        pool,
        config,
        engines,
        stop,
        ends: JoinSet::new(),
        again: None,
        left: Vec::new(),
    };
    tending.run().await;
    let waiting = tending.pool.close();
    if waiting.is_empty() && tending.left.is_empty() {
        return;
    }
    match tending.engines.connect(&tending.config.docker().engine).await {
        Ok(engine) => tending.remove(&engine, waiting).await,
        Err(error) => tracing::warn!(
            error = error_chain(&error),
            "warm Docker daemons are left to the next start"
        ),
    }
}

/// See [`tend`].
struct Tending {
    pool: Arc<Pool>,
    config: Arc<RunnerConfig>,
    engines: Arc<Engines>,
    stop: CancellationToken,
    /// The names of daemons that have ended, each of those that ever waited.
    ends: JoinSet<Names>,
    /// Not before then.
    again: Option<Instant>,
    /// What could not be removed, such as while the engine was away.
    left: Vec<Names>,
}

impl Tending {
    async fn run(&mut self) {
        let stop = self.stop.clone();
        let mut is_logged = false;
        loop {
            match self.fill().await {
                Ok(()) if is_logged => {}
                Ok(()) => {
                    let count = self.pool.count;
                    tracing::info!(count, "Docker daemons will wait for jobs like the last ones");
                    is_logged = true;
                }
                Err(WarmError::Stopped) => return,
                Err(WarmError::Graft(error)) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        "no Docker daemon can wait for jobs here; each is started for its job"
                    );
                    return;
                }
                Err(WarmError::Daemon(error)) => {
                    tracing::warn!(
                        error = error_chain(&error),
                        log = error.log(),
                        "a Docker daemon that was to wait for jobs did not become ready"
                    );
                    self.again = Some(Instant::now() + TRY_AGAIN);
                }
            }
            let again = self.again;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.pool.changed.notified() => {}
                () = until(again) => self.again = None,
                Some(ended) = self.ends.join_next() => self.note_end(ended).await,
            }
        }
    }

    /// Removes those that should not wait any more, and starts what is missing, one at a time: they
    /// take processors from jobs.
    async fn fill(&mut self) -> Result<(), WarmError> {
        let Ok(engine) = self.engines.connect(&self.config.docker().engine).await else {
            return Ok(());
        };
        warm::check(&engine)?;
        self.remove_outdated(&engine).await;
        loop {
            let (out, missing) = self.pool.next();
            self.remove(&engine, out).await;
            let Some(recipe) = missing else { return Ok(()) };
            if self.stop.is_cancelled() {
                return Err(WarmError::Stopped);
            }
            if self.again.is_some_and(|again| Instant::now() < again) {
                return Ok(());
            }
            // Only jobs get images.
            let Some(image) = present(&engine, &recipe).await else { return Ok(()) };
            self.start(&engine, recipe, &image).await?;
        }
    }

    async fn start(
        &mut self,
        engine: &Engine,
        recipe: Arc<Recipe>,
        image: &Image,
    ) -> Result<(), WarmError> {
        let config = &self.config;
        let names = recipe.new_names(config);
        let started = warm::start(engine, config, &recipe, image, names.clone(), &self.stop).await;
        let warm = match started {
            Ok(warm) => Arc::new(warm),
            Err(error) => {
                self.left.push(names);
                self.remove(engine, Vec::new()).await;
                return Err(error);
            }
        };
        tracing::info!(
            container.name = names.container(),
            image = recipe.image(),
            "Docker daemon waits for a job"
        );
        let (watched, engine_too) = (names.clone(), engine.clone());
        self.ends.spawn(async move {
            warm::watch(&engine_too, &watched).await;
            watched
        });
        // It is closed by this task alone, and later.
        drop(self.pool.add(Waiting { recipe, warm }));
        Ok(())
    }

    /// Removes those of an image that is another one by now, and those that have waited for long.
    async fn remove_outdated(&mut self, engine: &Engine) {
        let mut recipes = self.pool.wanted();
        recipes.dedup();
        for recipe in recipes {
            let Some(image) = present(engine, &recipe).await else { continue };
            let is_current = |w: &Waiting| w.recipe != recipe || w.warm.image() == image.id;
            let out = self.pool.sort_out(is_current);
            self.remove(engine, out).await;
        }
        let old = self.pool.sort_out(|waiting| !waiting.is_old());
        self.remove(engine, old).await;
    }

    /// A daemon has ended. If it was a job's, that is the job's affair.
    async fn note_end(&mut self, ended: Result<Names, tokio::task::JoinError>) {
        let Ok(names) = ended else { return };
        let out = self.pool.sort_out(|waiting| *waiting.warm.names() != names);
        if out.is_empty() {
            return;
        }
        tracing::warn!(container.name = names.container(), "a Docker daemon ended while it waited");
        self.again = Some(Instant::now() + TRY_AGAIN);
        if let Ok(engine) = self.engines.connect(&self.config.docker().engine).await {
            self.remove(&engine, out).await;
        }
    }

    /// Removes these, and what was left before.
    async fn remove(&mut self, engine: &Engine, out: Vec<Waiting>) {
        let mut all = std::mem::take(&mut self.left);
        all.extend(out.iter().map(|waiting| waiting.warm.names().clone()));
        let removals = all.into_iter().map(|names| async move {
            let removed = remove(engine, &names).await;
            (names, removed)
        });
        let removals = futures_util::future::join_all(removals).await;
        self.left.extend(removals.into_iter().filter(|(_, removed)| !removed).map(|(n, _)| n));
        if !self.left.is_empty() {
            self.again.get_or_insert_with(|| Instant::now() + TRY_AGAIN);
        }
    }
}

async fn present(engine: &Engine, recipe: &Recipe) -> Option<Image> {
    image::present(engine, recipe.image(), recipe.platform()).await
}

/// True when nothing is left.
async fn remove(engine: &Engine, names: &Names) -> bool {
    let errors = clean_up::remove(engine, &names.resources(), Anonymous { remove: true }).await;
    for error in &errors {
        tracing::warn!(
            error = error_chain(error),
            "failed to remove a resource of a warm Docker daemon"
        );
    }
    errors.is_empty()
}

/// Waits until then; for ever without a time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workload::testing::Case;

    fn case(image: &str) -> Case {
        Case::new()
            .with("services", json!([{"name": image}]))
            .variable("FF_NETWORK_PER_BUILD", "true")
    }

    fn recipe(image: &str) -> Recipe {
        let case = case(image);
        Recipe::of(&case.plan(), &case.config()).unwrap()
    }

    fn job(pool: &Pool, image: &str) {
        let case = case(image);
        pool.note_used(&case.config(), &case.plan());
    }

    /// Does what [`Tending::fill`] does; how many of each image wait then, and how many were removed.
    fn fill(pool: &Pool) -> (Vec<String>, usize) {
        let mut removed = 0;
        loop {
            let (out, missing) = pool.next();
            removed += out.len();
            let Some(recipe) = missing else { break };
            let names = recipe.new_names(&Case::new().config());
            let warm = Arc::new(Warm::without_tls(names, Instant::now()));
            pool.add(Waiting { recipe, warm }).unwrap();
        }
        let mut images: Vec<_> =
            pool.state().waiting.iter().map(|w| w.recipe.image().to_owned()).collect();
        images.sort();
        (images, removed)
    }

    #[test]
    fn those_that_wait_are_as_the_last_jobs_were() {
        let pool = Pool::new(3);
        assert_eq!(fill(&pool), (vec![], 0));
        job(&pool, "docker:a-dind");
        assert_eq!(fill(&pool), (vec!["docker:a-dind".to_owned(); 3], 0));
        job(&pool, "docker:b-dind");
        let (images, removed) = fill(&pool);
        // Until three jobs are known, the latest counts for the missing ones.
        assert_eq!(images, ["docker:a-dind", "docker:b-dind", "docker:b-dind"]);
        assert_eq!(removed, 2);
        job(&pool, "docker:a-dind");
        assert_eq!(fill(&pool).0, ["docker:a-dind", "docker:a-dind", "docker:b-dind"]);
        for _ in 0..3 {
            job(&pool, "docker:c-dind");
        }
        assert_eq!(fill(&pool).0, ["docker:c-dind"; 3]);
        assert_eq!(fill(&pool).1, 0);
    }

    #[test]
    fn one_is_one_jobs_and_none_is_taken_when_nothing_is_to_wait() {
        let pool = Pool::new(2);
        job(&pool, "docker:dind");
        fill(&pool);
        assert!(pool.take(&recipe("docker:27-dind")).is_none());
        let taken = std::thread::scope(|scope| {
            let take = || scope.spawn(|| pool.take(&recipe("docker:dind")));
            [take(), take(), take()].map(|thread| thread.join().unwrap())
        });
        let mut names: Vec<_> =
            taken.iter().flatten().map(|w| w.warm.names().container().to_owned()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 2);
        fill(&pool);
        assert_eq!(pool.close().len(), 2);
        assert!(pool.take(&recipe("docker:dind")).is_none());
        let late = taken.into_iter().flatten().next().unwrap();
        assert!(pool.add(late).is_err());
    }
    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_has_waited_for_long_is_no_jobs() {
        let pool = Pool::new(1);
        job(&pool, "docker:dind");
        fill(&pool);
        tokio::time::advance(OLDEST).await;
        assert!(!pool.state().waiting[0].is_old());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(pool.take(&recipe("docker:dind")).is_none());
    }

    #[test]
    fn a_leased_daemon_is_its_workloads_until_that_has_it_or_gives_it_back() {
        let pool = Pool::new(1);
        job(&pool, "docker:dind");
        fill(&pool);
        let (mut case, draft) = (case("docker:dind"), case("docker:dind").plan());
        let config = case.config();
        let lease = pool.lease(&config, &draft).unwrap();
        assert_eq!(pool.lease(&config, &draft), None, "none waits any more");
        assert!(pool.leased(&draft).is_none());
        let container = lease.container.clone();
        case.placement.leases.warm_daemon = Some(lease);
        let workload = case.plan();
        assert_eq!(pool.leased(&workload).unwrap().names().container(), container);
        pool.note_used(&config, &workload);
        assert!(pool.leased(&workload).is_none());
    }
}

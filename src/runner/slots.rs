//! Job slots: each running job has the lowest number that is free, among the jobs of its runner and
//! among those of its runner and project. Caches and work trees are named after them.
//!
//! A job's end is reported before its containers are gone, and the next job may come in between. One
//! that would use a work tree again waits for the number that is about to be free: that takes a
//! moment, and another number has another work tree, or none.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::base::ids::{ProjectId, ShortToken};

/// How long a number that is about to be free is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is counted apart.
type Key = (ShortToken, Option<ProjectId>);

/// The job slots of a process.
#[derive(Debug, Clone, Default)]
pub struct JobSlots(Arc<SlotTable>);

#[derive(Debug, Default)]
struct SlotTable {
    taken: Mutex<HashMap<Key, BTreeMap<usize, Use>>>,
    freed: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// A job runs.
    Busy,
    /// A job has ended, and its containers go.
    Leaving,
}

/// The numbers of one job, held until it is dropped.
#[derive(Debug)]
pub struct JobSlot {
    /// Among the runner's jobs, from 0.
    pub runner: usize,
    /// Among the runner's jobs of the same project, from 0.
    pub project: usize,
    token: ShortToken,
    project_id: ProjectId,
    slots: JobSlots,
}

impl JobSlots {
    /// Takes the lowest numbers; with `reuse`, waits a moment for a lower one of the project's that
    /// is about to be free.
    pub async fn take(&self, token: &ShortToken, project_id: ProjectId, reuse: bool) -> JobSlot {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let freed = self.0.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // From here on a number that is freed is not missed.
            freed.as_mut().enable();
            let patient = reuse && Instant::now() < deadline;
            if let Some(slot) = self.try_take(token, project_id, patient) {
                return slot;
            }
            if timeout_at(deadline, freed).await.is_err() {
                tracing::debug!("an earlier job's containers take long to go");
            }
        }
    }

    /// `None` when a patient caller should wait.
    fn try_take(
        &self,
        token: &ShortToken,
        project_id: ProjectId,
        patient: bool,
    ) -> Option<JobSlot> {
        let mut taken = self.0.taken.lock();
        // Of one number more than are taken, one is free.
        let lowest = |used: &BTreeMap<usize, Use>| {
            (0..=used.len()).find(|n| !used.contains_key(n)).unwrap_or_default()
        };
        let of_project = taken.entry((token.clone(), Some(project_id))).or_default();
        let project = lowest(of_project);
        if patient && of_project.iter().any(|(n, used)| *n < project && *used == Use::Leaving) {
            return None;
        }
        of_project.insert(project, Use::Busy);
        let of_runner = taken.entry((token.clone(), None)).or_default();
        let runner = lowest(of_runner);
        of_runner.insert(runner, Use::Busy);
        let slots = self.clone();
        Some(JobSlot { runner, project, token: token.clone(), project_id, slots })
    }
}

impl JobSlot {
    /// The job has ended; its containers go now.
    pub fn leave(&self) {
        let mut taken = self.slots.0.taken.lock();
        if let Some(used) = taken.get_mut(&(self.token.clone(), Some(self.project_id))) {
            used.insert(self.project, Use::Leaving);
        }
    }
}

impl Drop for JobSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.taken.lock();
        let mut free = |key: Key, number: usize| {
            if let Some(used) = taken.get_mut(&key) {
                used.remove(&number);
                if used.is_empty() {
                    taken.remove(&key);
                }
            }
        };
        free((self.token.clone(), None), self.runner);
        free((self.token.clone(), Some(self.project_id)), self.project);
        drop(taken);
        self.slots.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_lowest_free_number_is_taken() {
        let slots = JobSlots::default();
        let token = ShortToken::of("glrt-abc");
        let a = slots.take(&token, ProjectId(1), true).await;
        let b = slots.take(&token, ProjectId(2), true).await;
        let c = slots.take(&token, ProjectId(1), true).await;
        assert_eq!((a.runner, a.project), (0, 0));
        assert_eq!((b.runner, b.project), (1, 0));
        assert_eq!((c.runner, c.project), (2, 1));
        drop(a);
        let d = slots.take(&token, ProjectId(1), true).await;
        assert_eq!((d.runner, d.project), (0, 0));
        drop((b, c, d));
        assert!(slots.0.taken.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_that_is_about_to_be_free_is_waited_for_where_it_matters() {
        let slots = JobSlots::default();
        let token = ShortToken::of("glrt-abc");
        let a = slots.take(&token, ProjectId(1), true).await;
        a.leave();
        let other = slots.take(&token, ProjectId(1), false).await;
        assert_eq!(other.project, 1);
        let (again, ()) = tokio::join!(slots.take(&token, ProjectId(1), true), async { drop(a) });
        assert_eq!(again.project, 0);
        again.leave();
        let began = Instant::now();
        assert_eq!(slots.take(&token, ProjectId(1), true).await.project, 2);
        assert_eq!(began.elapsed(), PATIENCE);
    }
}

//! Numbers of running jobs: the lowest that is free, for each runner and for each project of it.
//! Caches and work trees go by them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use crate::ids::ShortToken;

/// What is counted apart.
type Key = (ShortToken, Option<i64>);

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Slots {
    taken: Arc<Mutex<HashMap<Key, BTreeSet<usize>>>>,
}

/// A job's numbers, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    /// Among the runner's jobs, from 0.
    pub runner: usize,
    /// Among the runner's jobs of the same project, from 0.
    pub project: usize,
    token: ShortToken,
    project_id: i64,
    taken: Arc<Mutex<HashMap<Key, BTreeSet<usize>>>>,
}

impl Slots {
    /// Takes the lowest numbers.
    #[must_use]
    pub fn take(&self, token: &ShortToken, project_id: i64) -> Slot {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lowest = |key: Key| {
            let set = taken.entry(key).or_default();
            // Of one number more than are taken, one is free.
            let number = (0..=set.len()).find(|n| !set.contains(n)).unwrap_or_default();
            set.insert(number);
            number
        };
        Slot {
            runner: lowest((token.clone(), None)),
            project: lowest((token.clone(), Some(project_id))),
            token: token.clone(),
            project_id,
            taken: Arc::clone(&self.taken),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = |key: Key, number: usize| {
            if let Some(set) = taken.get_mut(&key) {
                set.remove(&number);
                if set.is_empty() {
                    taken.remove(&key);
                }
            }
        };
        free((self.token.clone(), None), self.runner);
        free((self.token.clone(), Some(self.project_id)), self.project);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_taken() {
        let slots = Slots::default();
        let token = ShortToken::of("glrt-abc");
        let a = slots.take(&token, 1);
        let b = slots.take(&token, 2);
        let c = slots.take(&token, 1);
        assert_eq!(
            [(a.runner, a.project), (b.runner, b.project), (c.runner, c.project)],
            [(0, 0), (1, 0), (2, 1)]
        );
        drop(a);
        let d = slots.take(&token, 1);
        assert_eq!((d.runner, d.project), (0, 0));
        drop((b, c, d));
        assert!(slots.taken.lock().unwrap().is_empty());
    }
}

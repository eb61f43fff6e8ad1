//! Work done on several threads whose results come back in the order in which it was handed out.

use std::{
    collections::VecDeque,
    sync::mpsc::{self, Receiver, Sender, SyncSender},
    thread,
};

use parking_lot::Mutex;

/// More threads than this bring nothing: one thread writes, and memory grows with each.
const MOST_THREADS: usize = 16;

/// How many threads compress here.
pub(in crate::archive) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS)
}

/// Hands out work and takes the results back; see [`ordered`].
pub(super) struct Feeder<T, R> {
    queue: Sender<(T, SyncSender<R>)>,
    pending: VecDeque<Receiver<R>>,
    window: usize,
}

impl<T, R> Feeder<T, R> {
    /// Hands out `item`. Once the window is full, waits for the oldest result and gives it: that
    /// bounds what is in memory.
    pub(super) fn push(&mut self, item: T) -> Option<R> {
        let (reply, result) = mpsc::sync_channel(1);
        self.queue.send((item, reply)).ok()?;
        self.pending.push_back(result);
        if self.pending.len() < self.window { None } else { self.next_result() }
    }

    /// The oldest result that has not been taken; `None` when there is none.
    ///
    /// # Panics
    /// When a thread panicked over the work.
    pub(super) fn next_result(&mut self) -> Option<R> {
        let oldest = self.pending.pop_front()?;
        Some(oldest.recv().expect("a thread answers unless it panicked"))
    }
}

/// Runs `run` with a [`Feeder`] whose work is done by `work` on `threads` threads, each with a
/// state of its own made by `state`.
pub(super) fn ordered<T, R, S, O>(
    threads: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> R + Sync,
    run: impl FnOnce(Feeder<T, R>) -> O,
) -> O
where
    T: Send,
    R: Send,
{
    let (queue, items) = mpsc::channel::<(T, SyncSender<R>)>();
    let items = Mutex::new(items);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut own = state();
                loop {
                    // The lock is held while waiting: whoever holds it is next in line.
                    let next = items.lock().recv();
                    let Ok((item, reply)) = next else { break };
                    // Nobody waits any more when writing failed.
                    let _ = reply.send(work(&mut own, item));
                }
            });
        }
        run(Feeder { queue, pending: VecDeque::new(), window: threads.max(1) * 2 + 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_work() {
        let results = ordered(
            4,
            || (),
            |(), n: u64| {
                // Early items take longest.
                (0..(200 - n) * 200).fold(n, |sum, k| sum ^ std::hint::black_box(k));
                n
            },
            |mut feeder| {
                let mut results = Vec::new();
                for n in 0..200 {
                    results.extend(feeder.push(n));
                    assert!(feeder.pending.len() < 9, "the window bounds what is pending");
                }
                while let Some(n) = feeder.next_result() {
                    results.push(n);
                }
                results
            },
        );
        assert_eq!(results, (0..200).collect::<Vec<_>>());
    }
}

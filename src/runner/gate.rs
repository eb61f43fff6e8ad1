//! A number of places that can change while they are taken.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module. Who waits longest is served first.
#[derive(Debug, Clone)]
pub struct Gate {
    places: Arc<Semaphore>,
    size: Arc<Mutex<Size>>,
}

#[derive(Debug)]
struct Size {
    /// Places there should be.
    wanted: usize,
    /// Places that are to vanish when they are given back.
    surplus: usize,
}

/// A taken place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    permit: Option<OwnedSemaphorePermit>,
    size: Arc<Mutex<Size>>,
}

impl Gate {
    /// A gate with so many places.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(size)),
            size: Arc::new(Mutex::new(Size { wanted: size, surplus: 0 })),
        }
    }

    /// Waits for a place. Cancel-safe: who stops waiting loses their turn and nothing else.
    pub async fn take(&self) -> Place {
        // The semaphore is never closed; were it, everyone would wait.
        match Arc::clone(&self.places).acquire_owned().await {
            Ok(permit) => Place { permit: Some(permit), size: Arc::clone(&self.size) },
            Err(_) => std::future::pending().await,
        }
    }

    /// Changes the number of places. Fewer means that taken ones vanish when they are given back.
    pub fn resize(&self, wanted: usize) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted >= size.wanted {
            let more = wanted - size.wanted;
            let kept = more.min(size.surplus);
            size.surplus -= kept;
            self.places.add_permits(more - kept);
        } else {
            let fewer = size.wanted - wanted;
            size.surplus += fewer - self.places.forget_permits(fewer);
        }
        size.wanted = wanted;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        if size.surplus > 0
            && let Some(permit) = self.permit.take()
        {
            size.surplus -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_smaller_gate_lets_go_of_places_as_they_come_back() {
        let gate = Gate::new(2);
        let a = gate.take().now_or_never().unwrap();
        let b = gate.take().now_or_never().unwrap();
        gate.resize(1);
        drop(a);
        assert!(gate.take().now_or_never().is_none());
        drop(b);
        let c = gate.take().now_or_never().unwrap();
        assert!(gate.take().now_or_never().is_none());
        gate.resize(3);
        let _d = gate.take().now_or_never().unwrap();
        let _e = gate.take().now_or_never().unwrap();
        assert!(gate.take().now_or_never().is_none());
        drop(c);
        assert!(gate.take().now_or_never().is_some());
    }

    #[test]
    fn growing_again_keeps_what_was_to_vanish() {
        let gate = Gate::new(2);
        let (a, b) = (gate.take().now_or_never().unwrap(), gate.take().now_or_never().unwrap());
        gate.resize(1);
        gate.resize(2);
        drop((a, b));
        let _two = (gate.take().now_or_never().unwrap(), gate.take().now_or_never().unwrap());
        assert!(gate.take().now_or_never().is_none());
    }
}

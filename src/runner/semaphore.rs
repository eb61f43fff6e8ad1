//! A semaphore whose number of permits can change while they are held.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A semaphore that can be resized. Who waits longest is served first.
#[derive(Debug, Clone)]
pub struct ResizableSemaphore {
    permits: Arc<Semaphore>,
    size: Arc<Mutex<Size>>,
}

#[derive(Debug)]
struct Size {
    /// Permits there should be.
    wanted: usize,
    /// Permits to discard when they are released, as there are too many.
    surplus: usize,
}

/// A permit, held until it is dropped.
#[derive(Debug)]
pub struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    size: Arc<Mutex<Size>>,
}

impl ResizableSemaphore {
    /// A semaphore with `size` permits.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(size)),
            size: Arc::new(Mutex::new(Size { wanted: size, surplus: 0 })),
        }
    }

    /// Waits for a permit. Cancel-safe: who stops waiting loses their turn and nothing else.
    pub async fn acquire(&self) -> Permit {
        // The semaphore is never closed; were it, everyone would wait.
        match Arc::clone(&self.permits).acquire_owned().await {
            Ok(permit) => Permit { permit: Some(permit), size: Arc::clone(&self.size) },
            Err(_) => std::future::pending().await,
        }
    }

    /// Changes the number of permits. Where it is fewer, permits that are held are discarded when they
    /// are released.
    pub fn resize(&self, wanted: usize) {
        let mut size = self.size.lock();
        if wanted >= size.wanted {
            let more = wanted - size.wanted;
            let kept = more.min(size.surplus);
            size.surplus -= kept;
            self.permits.add_permits(more - kept);
        } else {
            let fewer = size.wanted - wanted;
            size.surplus += fewer - self.permits.forget_permits(fewer);
        }
        size.wanted = wanted;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut size = self.size.lock();
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
    fn a_smaller_semaphore_discards_permits_as_they_are_released() {
        let semaphore = ResizableSemaphore::new(2);
        let a = semaphore.acquire().now_or_never().unwrap();
        let b = semaphore.acquire().now_or_never().unwrap();
        semaphore.resize(1);
        drop(a);
        assert!(semaphore.acquire().now_or_never().is_none());
        drop(b);
        let c = semaphore.acquire().now_or_never().unwrap();
        assert!(semaphore.acquire().now_or_never().is_none());
        semaphore.resize(3);
        let _d = semaphore.acquire().now_or_never().unwrap();
        let _e = semaphore.acquire().now_or_never().unwrap();
        assert!(semaphore.acquire().now_or_never().is_none());
        drop(c);
        assert!(semaphore.acquire().now_or_never().is_some());
    }

    #[test]
    fn growing_again_keeps_permits_that_were_to_be_discarded() {
        let semaphore = ResizableSemaphore::new(2);
        let (a, b) = (
            semaphore.acquire().now_or_never().unwrap(),
            semaphore.acquire().now_or_never().unwrap(),
        );
        semaphore.resize(1);
        semaphore.resize(2);
        drop((a, b));
        let _two = (
            semaphore.acquire().now_or_never().unwrap(),
            semaphore.acquire().now_or_never().unwrap(),
        );
        assert!(semaphore.acquire().now_or_never().is_none());
    }
}

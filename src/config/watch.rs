//! Reports when the file has changed. The kernel notifies of changes, and as it cannot on every file
//! system, the file is polled every three seconds as well. The caller reads it.

use std::{
    fs, future, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time,
};

/// How often the file is polled (GitLab Runner: `common.ReloadConfigInterval`).
const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// How long a changed file must be left alone before it counts: editors and copies write it in
/// several steps.
const QUIET: Duration = Duration::from_millis(150);

/// A watch over one file, which need not exist. It has no task; dropping it ends it.
#[derive(Debug)]
pub struct ConfigWatch {
    path: PathBuf,
    seen: Option<Fingerprint>,
    interval: Duration,
    /// `None` where the kernel cannot notify.
    notices: Option<Notices>,
}

/// The kernel's notices of changes in a directory (inotify(7)).
#[derive(Debug)]
struct Notices(AsyncFd<OwnedFd>);

impl Notices {
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe, as not every type keeps its descriptor open"
    )]
    fn of(directory: &Path) -> io::Result<Self> {
        let events = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO;
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&queue, directory, events)?;
        Ok(Self(AsyncFd::with_interest(queue, Interest::READABLE)?))
    }

    /// Takes what has happened since the last call, or waits for something to happen. What it was
    /// does not matter.
    async fn next(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        let read = |queue: &OwnedFd| Ok(rustix::io::read(queue, &mut events)?);
        self.0.async_io(Interest::READABLE, read).await.map(drop)
    }
}

/// What tells one state of the file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Fingerprint {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            inode: metadata.ino(),
        })
    }
}

/// Watches `path` for changes after this call.
///
/// # Panics
/// Outside a runtime.
#[must_use]
pub fn watch(path: &Path) -> ConfigWatch {
    ConfigWatch::new(path, POLL_INTERVAL, true)
}

impl ConfigWatch {
    fn new(path: &Path, interval: Duration, by_kernel: bool) -> Self {
        // Not the file itself: an editor that replaces it would end a watch on it.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let notices = by_kernel.then(|| Notices::of(directory).ok()).flatten();
        Self { path: path.to_owned(), seen: Fingerprint::of(path), interval, notices }
    }

    /// Waits until the file is another than at the last return (or at the start), and has been
    /// left alone for a moment. Cancel-safe: a change that was not reported is reported by the next call.
    pub async fn changed(&mut self) {
        loop {
            self.wait_for_hint().await;
            let mut now = Fingerprint::of(&self.path);
            if now == self.seen {
                continue;
            }
            loop {
                time::sleep(QUIET).await;
                let later = Fingerprint::of(&self.path);
                if later == now {
                    break;
                }
                now = later;
            }
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    async fn wait_for_hint(&self) {
        let notice = async {
            match &self.notices {
                Some(notices) => notices.next().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = notice => {}
            () = time::sleep(self.interval) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);
    const SOON: Duration = Duration::from_secs(20);

    async fn reported(watch: &mut ConfigWatch) {
        time::timeout(SOON, watch.changed()).await.expect("the change is reported");
    }

    #[tokio::test]
    async fn config_6_the_kernel_notifies_of_a_change_whether_written_in_place_or_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let mut watch = ConfigWatch::new(&path, LONG, true);
        fs::write(&path, "concurrent = 1").unwrap();
        reported(&mut watch).await;
        fs::write(&path, "concurrent = 22").unwrap();
        reported(&mut watch).await;
        let other = directory.path().join("other");
        fs::write(&other, "concurrent = 33").unwrap();
        fs::rename(&other, &path).unwrap();
        reported(&mut watch).await;
        fs::remove_file(&path).unwrap();
        reported(&mut watch).await;
    }

    #[tokio::test]
    async fn config_6_polling_finds_a_change_where_the_kernel_does_not_notify() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, "concurrent = 1").unwrap();
        let mut watch = ConfigWatch::new(&path, Duration::from_millis(5), false);
        fs::write(&path, "concurrent = 22").unwrap();
        reported(&mut watch).await;
    }

    #[tokio::test]
    async fn a_change_of_a_neighbour_is_not_reported_and_a_cancelled_wait_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let mut watch = ConfigWatch::new(&path, Duration::from_millis(5), true);
        fs::write(directory.path().join("neighbour"), "x").unwrap();
        assert!(time::timeout(QUIET * 2, watch.changed()).await.is_err());
        fs::write(&path, "concurrent = 1").unwrap();
        let cancelled = time::timeout(Duration::from_millis(20), watch.changed()).await;
        assert!(cancelled.is_err(), "reported before it was left alone");
        reported(&mut watch).await;
    }
}

//! One job's guard: its beginning and its end.

use std::{io, os::unix::fs::DirBuilderExt as _, path::Path, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::guard::{audit::AuditEvent, pin, settings::GuardSettings};

use super::{
    accept::{accept, listen},
    backend::Backend,
    clean_up::Leftovers,
    engine::Engine,
    events::watch,
    exchange::Exchanges,
    inventory::Inventory,
    journal::Journal,
    pins::Pins,
    report::{Report, Summary},
    survey::survey,
};

/// How long cut connections may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// A running guard. It must be stopped; dropped, it leaves the job's objects to a sweep by label.
#[derive(Debug)]
pub struct Guard {
    backend: Arc<Backend>,
    report: Arc<Report>,
    /// Whether the job's default network is the guard's own.
    made_network: bool,
}

impl Guard {
    /// Starts a guard before the engine at `engine` (`unix://PATH` or `tcp://HOST:PORT`). Its
    /// socket answers when this returns. What a guard that died left in the same private directory
    /// is removed first.
    ///
    /// # Errors
    /// When the engine cannot be reached, the socket or the directory not be made, or a guard that
    /// lives uses the directory.
    pub async fn start(
        engine: &str,
        settings: GuardSettings,
        events: Option<mpsc::Sender<AuditEvent>>,
    ) -> io::Result<Self> {
        let tasks = TaskTracker::new();
        let mut engine = Engine::new(engine, tasks.clone())?;
        for directory in [settings.private.join("pins"), settings.private.join("spool")] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let (journal, left) = take_over(&mut engine, &settings.private).await?;
        journal.begin(&settings)?;
        let (facts, made_network) =
            survey(&mut engine, &settings, &journal).await.map_err(io::Error::other)?;
        let pins = Pins::new(settings.private.join("pins"), engine.shares_mounts().await);
        // The socket is made last, since clients can use it as soon as it exists.
        let listener = listen(&settings)?;
        let backend = Arc::new(Backend {
            settings: Arc::new(settings),
            facts: Arc::new(facts),
            engine,
            inventory: Inventory::new(journal),
            tasks: tasks.clone(),
            stop: CancellationToken::new(),
        });
        let report = Arc::new(Report::new(left, events));
        let exchanges = Arc::new(Exchanges::new(&backend, pins, &report));
        tasks.spawn(accept(listener, Arc::clone(&backend), exchanges));
        tasks.spawn(watch(Arc::clone(&backend)));
        Ok(Self { backend, report, made_network })
    }

    /// The guarded socket's file, on the engine's host.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.backend.settings.socket
    }

    /// The group of that file, where it is not the guard's own.
    #[must_use]
    pub(crate) fn group(&self) -> Option<u32> {
        self.backend.settings.socket_group
    }

    /// The job's default network: its name, and the address of its gateway where ports are
    /// published.
    #[must_use]
    pub fn network(&self) -> (&str, &str) {
        (&self.backend.facts.network, &self.backend.facts.gateway)
    }

    /// Shows the job one of the runner's own containers, with restricted rights (G-51).
    pub fn adopt(&self, id: &str, name: &str) {
        self.backend
            .inventory
            .change(|owned| owned.containers.adopt(id.to_owned(), name.to_owned()));
    }

    /// Accepts no more requests, cancels those that run, and removes all that the job made.
    pub async fn stop(&self) -> Summary {
        let backend = &self.backend;
        backend.stop.cancel();
        drop(std::fs::remove_file(&backend.settings.socket));
        backend.tasks.close();
        // A creation that is under way completes on the engine, and its object is found by its label.
        drop(tokio::time::timeout(DRAIN, backend.tasks.wait()).await);
        self.report.end_events();
        let left = Leftovers::of(backend, self.made_network).remove().await;
        pin::clear(&backend.settings.private.join("pins"));
        forget(&backend.settings.private, &left);
        let mut summary = self.summary();
        summary.left.extend(left);
        summary
    }

    /// What the guard did so far.
    #[must_use]
    pub(crate) fn summary(&self) -> Summary {
        self.report.summary()
    }

    /// Removes what a guard that died left in its private directory and on the engine, without
    /// starting another. Returns what could not be removed.
    ///
    /// # Errors
    /// When the engine cannot be reached, or a guard that lives uses the directory.
    pub(crate) async fn reap(engine: &str, private: &Path) -> io::Result<Vec<String>> {
        let mut engine = Engine::new(engine, TaskTracker::new())?;
        if !private.join("journal").exists() {
            pin::clear(&private.join("pins"));
            return Ok(Vec::new());
        }
        let (_locked, left) = take_over(&mut engine, private).await?;
        forget(private, &left);
        Ok(left)
    }

    /// The same for a directory that is laid out as [`GuardSettings::new`] does it, which is removed, too,
    /// once it is empty. Returns what could not be removed, and why.
    pub(crate) async fn reap_directory(engine: &str, directory: &Path) -> Vec<String> {
        if !directory.exists() {
            return Vec::new();
        }
        let places = GuardSettings::new("", Default::default(), "", directory);
        let left = match Self::reap(engine, &places.private).await {
            Ok(left) => left,
            Err(error) => vec![format!("the guarded socket in {}: {error}", directory.display())],
        };
        drop(std::fs::remove_file(&places.socket));
        // A directory that is not empty is still needed.
        drop(std::fs::remove_dir(directory));
        left
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.backend.stop.cancel();
    }
}

/// Opens the journal, and removes what it says that an earlier guard left.
async fn take_over(engine: &mut Engine, private: &Path) -> io::Result<(Journal, Vec<String>)> {
    let (journal, before) = Journal::open(private)?;
    let mut left = Vec::new();
    if let Some(contents) = before {
        engine.negotiate().await.map_err(io::Error::other)?;
        left = Leftovers::recorded(engine, contents).remove().await;
    }
    for left in &left {
        tracing::warn!(%left, "cannot remove what a guard that died has left");
    }
    pin::clear(&private.join("pins"));
    Ok((journal, left))
}

/// Removes a guard's private directory; the journal stays while something is left.
fn forget(private: &Path, left: &[String]) {
    for directory in ["pins", "spool"] {
        drop(std::fs::remove_dir(private.join(directory)));
    }
    if left.is_empty() {
        drop(std::fs::remove_file(private.join("journal")));
        drop(std::fs::remove_dir(private));
    }
}

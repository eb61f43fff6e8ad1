//! Layer slots: which one a job gets, and what becomes of it afterwards.
//!
//! ```text
//! <state>/slots/<volume>       one JSON object: a slot that is in order and nobody's
//! ```
//! A job that takes a slot removes its record, on disk before its daemon starts, and the record comes
//! back when the slot was left in order. So a slot that is in use, was not left in order, or was in
//! use when longshore or the machine died has no record, and nobody gets it; its volume is removed at
//! the job's end or at the next start. Two jobs cannot have one slot, as only one of them removes the
//! record, and a job for which there is none begins a new one: it never waits.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::{
    base::error_chain,
    config::RunnerConfig,
    ledger::Resource,
    workload::{Workload, layers::LayerSlotPlan, placement::LayerSlotLease},
};

use super::{
    clean_up::{self, Anonymous},
    dind::scrub,
    engine::Engine,
};

/// A slot that is in order and nobody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    key: String,
    owner: String,
    volume: String,
    /// The engine's address, as in the configuration.
    engine: Option<String>,
    /// Bytes.
    size: u64,
    /// When it was last given back, in milliseconds since 1970.
    used: u64,
}

/// See the module. Its methods block for the disk.
#[derive(Debug, Clone)]
pub struct Layers {
    directory: Arc<Path>,
    /// Volumes that jobs of this process have. Whoever changes a record holds it, so that a slot is
    /// at each moment a job's, or noted, or left over.
    busy: Arc<Mutex<HashSet<String>>>,
}

impl Layers {
    /// Slots whose records are in `directory`, which need not be there.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory: directory.into(), busy: Arc::default() }
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<String>> {
        self.busy.lock()
    }

    /// All that nobody has, the most recently used first.
    fn idle(&self) -> io::Result<Vec<Record>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut records = Vec::new();
        for entry in entries {
            // A file that is gone by now was taken; one that cannot be read is no slot.
            let record = fs::read(entry?.path()).ok().and_then(|b| serde_json::from_slice(&b).ok());
            records.extend(record);
        }
        records.sort_by_key(|record: &Record| std::cmp::Reverse(record.used));
        Ok(records)
    }

    /// Takes a slot for a job, or begins the one of the volume `new`, when none is idle (`None`).
    fn take(&self, key: &str, engine: Option<&str>, new: &str) -> io::Result<Option<Record>> {
        let mut busy = self.busy();
        // Whatever goes wrong below, the job has this one then.
        busy.insert(new.to_owned());
        for record in self.idle()? {
            if record.key == key
                && record.engine.as_deref() == engine
                && self.forget(&record.volume)?
            {
                busy.remove(new);
                busy.insert(record.volume.clone());
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Removes a record, for good before this returns. True for the one who did it.
    fn forget(&self, volume: &str) -> io::Result<bool> {
        match fs::remove_file(self.directory.join(volume)) {
            Ok(()) => {
                File::open(&self.directory)?.sync_all()?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Notes a slot that is in order and nobody's any more.
    fn put(&self, record: &Record) -> io::Result<()> {
        let mut busy = self.busy();
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // Beside the directory, so that nobody reads half a record.
        let beside = self.directory.parent().unwrap_or(&self.directory);
        let mut file = tempfile::NamedTempFile::new_in(beside)?;
        serde_json::to_writer(&mut file, record)?;
        file.flush()?;
        file.as_file().sync_data()?;
        file.persist(self.directory.join(&record.volume))?;
        busy.remove(&record.volume);
        Ok(())
    }

    /// Lets go of a slot that nobody must have again: its volume is gone, or is left over.
    pub(super) fn let_go(&self, volume: &str) {
        self.busy().remove(volume);
    }

    /// Which of these `volumes` of an engine are left over. Records of others are removed.
    fn orphaned(&self, mut volumes: Vec<String>, host: Option<&str>) -> io::Result<Vec<String>> {
        let busy = self.busy();
        let idle = self.idle()?;
        for record in &idle {
            if record.engine.as_deref() == host && !volumes.contains(&record.volume) {
                self.forget(&record.volume)?;
            }
        }
        volumes.retain(|volume| {
            !busy.contains(volume) && idle.iter().all(|record| record.volume != *volume)
        });
        Ok(volumes)
    }

    /// Forgets slots of runners that are not among `owners` any more; their volumes go when the
    /// engine is swept.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub fn keep_only(&self, owners: &[String]) -> io::Result<()> {
        for record in self.idle()? {
            if !owners.contains(&record.owner) {
                self.forget(&record.volume)?;
            }
        }
        Ok(())
    }
}

impl Layers {
    /// Leases a slot for a workload that is to have one: of those that are idle the last used. `None`
    /// where none is idle: then the workload begins the one that it names.
    pub(super) async fn lease(
        &self,
        config: &RunnerConfig,
        workload: &Workload,
    ) -> Option<LayerSlotLease> {
        let (Some(slot), Some(new)) = (&workload.mounts.layer_slot, &workload.mounts.daemon) else {
            return None;
        };
        let new = new.name.clone();
        let (layers, key) = (self.clone(), slot.key.clone());
        let engine = config.docker().engine.host.clone();
        let take = move || layers.take(&key, engine.as_deref(), &new);
        let taken = tokio::task::spawn_blocking(take).await;
        match taken.map_err(io::Error::other).flatten() {
            Ok(record) => {
                record.map(|slot| LayerSlotLease { volume: slot.volume, size: slot.size })
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look up layer slots; the job gets a new one");
                None
            }
        }
    }

    /// Takes back a slot that its workload did not come to use.
    pub(super) async fn release(&self, config: &RunnerConfig, workload: &Workload) {
        if let (Some(daemon), Some(slot)) = (&workload.mounts.daemon, &workload.mounts.layer_slot) {
            match slot.reused {
                Some(size) if self.note(config, slot, &daemon.name, size).await => {}
                Some(_) | None => self.let_go(&daemon.name),
            }
        }
    }

    /// Has the job's daemon leave its slot in order, and takes the slot back; the daemon's container
    /// and its clients' are gone then. False when later jobs must not have it and its volume has to
    /// be removed.
    pub(super) async fn give_back(
        &self,
        config: &RunnerConfig,
        engine: &Engine,
        workload: &Workload,
    ) -> bool {
        let mounts = &workload.mounts;
        let (Some(volume), Some(slot), Some(sidecar)) =
            (&mounts.daemon, &mounts.layer_slot, workload.access.dind())
        else {
            return false;
        };
        let anonymous = Anonymous { remove: !config.docker().volumes.keep_anonymous };
        let (daemon, clients): (Vec<_>, Vec<_>) = clean_up::resources(workload)
            .into_iter()
            .filter(|resource| matches!(resource, Resource::Container(_)))
            .partition(|resource| *resource == Resource::Container(sidecar.container.clone()));
        if !clean_up::remove_containers(engine, &clients, anonymous).await.is_empty() {
            return false;
        }
        let size = match scrub::scrub(engine, &sidecar.container, &sidecar.data_root).await {
            Ok(size) => size,
            Err(error) => {
                tracing::warn!(
                    volume = volume.name,
                    error = error_chain(&error),
                    "layer slot was not left in order and is removed"
                );
                return false;
            }
        };
        if !clean_up::remove_containers(engine, &daemon, anonymous).await.is_empty() {
            return false;
        }
        if size > config.containers.dind.slot_size {
            tracing::warn!(
                volume = volume.name,
                size,
                "layer slot is larger than [runners.docker.dind] slot_size and is removed"
            );
            return false;
        }
        let kept = self.note(config, slot, &volume.name, size).await;
        self.evict(config, engine, slot).await;
        kept
    }

    async fn note(
        &self,
        config: &RunnerConfig,
        slot: &LayerSlotPlan,
        volume: &str,
        size: u64,
    ) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let record = Record {
            key: slot.key.clone(),
            owner: slot.owner.clone(),
            volume: volume.to_owned(),
            engine: config.docker().engine.host.clone(),
            size,
            used: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        let layers = self.clone();
        let noted = tokio::task::spawn_blocking(move || layers.put(&record)).await;
        match noted.map_err(io::Error::other).flatten() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, volume, "cannot write down the layer slot; it is removed");
                false
            }
        }
    }

    /// Removes the runner's least recently used idle slots, those above their number.
    async fn evict(&self, config: &RunnerConfig, engine: &Engine, slot: &LayerSlotPlan) {
        let (layers, owner) = (self.clone(), slot.owner.clone());
        let number = config.containers.dind.slots;
        let host = config.docker().engine.host.clone();
        let above = tokio::task::spawn_blocking(move || -> io::Result<Vec<Resource>> {
            let own = layers.idle()?.into_iter().filter(|r| r.owner == owner && r.engine == host);
            let mut gone = Vec::new();
            for record in own.skip(number) {
                if layers.forget(&record.volume)? {
                    gone.push(Resource::Volume(record.volume));
                }
            }
            Ok(gone)
        });
        match above.await.map_err(io::Error::other).flatten() {
            Ok(gone) => {
                for error in clean_up::remove_rest(engine, &gone).await {
                    tracing::warn!(error = error_chain(&error), "cannot remove a layer slot");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look through the layer slots"),
        }
    }

    /// Removes slots that are neither in order nor a job's, and forgets those that are gone.
    pub(super) async fn sweep(&self, engine: &Engine, host: Option<&str>, instance: &str) {
        let volumes = match clean_up::layers(engine, instance).await {
            Ok(volumes) => volumes,
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "cannot list the layer slots");
                return;
            }
        };
        let (layers, host) = (self.clone(), host.map(str::to_owned));
        let orphaned = move || layers.orphaned(volumes, host.as_deref());
        let orphaned = tokio::task::spawn_blocking(orphaned);
        match orphaned.await.map_err(io::Error::other).flatten() {
            Ok(orphaned) => {
                let orphaned: Vec<_> = orphaned.into_iter().map(Resource::Volume).collect();
                if !orphaned.is_empty() {
                    let count = orphaned.len();
                    tracing::info!(count, "removing layer slots that were not left in order");
                }
                for error in clean_up::remove_rest(engine, &orphaned).await {
                    tracing::warn!(error = error_chain(&error), "cannot remove a layer slot");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look through the layer slots"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, volume: &str, used: u64) -> Record {
        let (key, volume) = (key.to_owned(), volume.to_owned());
        Record { key, owner: "o".into(), volume, engine: None, size: 1, used }
    }

    #[test]
    fn a_slot_is_one_jobs_at_a_time_and_the_last_used_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().join("slots"));
        assert_eq!(layers.take("k", None, "a").unwrap(), None);
        for record in [record("k", "old", 1), record("k", "new", 2), record("other", "x", 3)] {
            layers.put(&record).unwrap();
        }
        assert_eq!(layers.take("k", Some("tcp://h:1"), "b").unwrap(), None);
        assert_eq!(layers.take("k", None, "c").unwrap(), Some(record("k", "new", 2)));
        assert_eq!(layers.take("k", None, "d").unwrap(), Some(record("k", "old", 1)));
        // A process that dies now leaves no record of the two.
        let again = Layers::new(directory.path().join("slots"));
        assert_eq!(again.take("k", None, "e").unwrap(), None);
        assert_eq!(again.idle().unwrap(), [record("other", "x", 3)]);
    }

    #[test]
    fn a_slot_that_two_jobs_want_is_one_jobs() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().join("slots"));
        for _ in 0..50 {
            layers.put(&record("k", "v", 1)).unwrap();
            let taken = std::thread::scope(|scope| {
                let take = || scope.spawn(|| layers.take("k", None, "new").unwrap());
                [take(), take(), take()].map(|thread| thread.join().unwrap())
            });
            assert_eq!(taken.iter().flatten().count(), 1);
        }
    }

    #[test]
    fn only_what_is_neither_noted_nor_a_jobs_is_orphaned() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().join("slots"));
        let all = || ["idle", "taken", "new", "lost"].map(str::to_owned).to_vec();
        layers.put(&record("k", "taken", 1)).unwrap();
        layers.put(&record("other", "idle", 1)).unwrap();
        layers.put(&record("other", "gone", 1)).unwrap();
        layers.take("k", None, "unused").unwrap();
        layers.take("k", None, "new").unwrap();
        assert_eq!(layers.orphaned(all(), Some("tcp://h:1")).unwrap(), ["lost"]);
        assert_eq!(layers.idle().unwrap().len(), 2);
        assert_eq!(layers.orphaned(all(), None).unwrap(), ["lost"]);
        assert_eq!(layers.idle().unwrap(), [record("other", "idle", 1)]);
        layers.put(&record("k", "taken", 2)).unwrap();
        layers.let_go("new");
        assert_eq!(layers.orphaned(all(), None).unwrap(), ["new", "lost"]);
    }

    #[test]
    fn slots_of_runners_that_are_gone_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().join("slots"));
        layers.put(&record("k", "v", 1)).unwrap();
        layers.keep_only(&["o".to_owned()]).unwrap();
        assert_eq!(layers.idle().unwrap().len(), 1);
        layers.keep_only(&["other".to_owned()]).unwrap();
        assert_eq!(layers.idle().unwrap(), []);
    }
}

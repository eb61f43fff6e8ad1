//! Caches: brought back before the script, saved after it, and kept in a store where there is one.

use futures_util::FutureExt;
use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
};
use tokio_util::io::ReaderStream;

use crate::{
    archive::{
        cache, select,
        store::{Store, Upload},
    },
    base::error_chain,
    executor::buffered_log::LogEvent,
    helper::protocol::{Archive, ArchiveTo, Extract, Task},
    workload::{cache::CachePlan, outcome::Outcome},
};

use super::{
    super::ending::{Ending, SystemFailure},
    BUFFER, Stages,
};

impl Stages<'_> {
    pub(super) async fn restore_caches(&mut self) -> Ending {
        const NAME: &str = "restore_cache";
        let caches: Vec<CachePlan> =
            self.workload.transfers.caches.iter().filter(|cache| cache.pull).cloned().collect();
        if caches.is_empty() {
            return Ok(Outcome::Success);
        }
        let _section = self.log.section(NAME, "Restoring cache");
        for entry in &caches {
            let Some(first) = self.key(&entry.key) else { continue };
            let last =
                self.workload.variables.value("CACHE_FALLBACK_KEY").filter(|k| !k.is_empty());
            let hash = self.workload.flags.on("FF_HASH_CACHE_KEYS");
            let chain = cache::chain(first, &entry.fallback_keys, last, hash);
            for warning in &chain.warnings {
                self.warn(warning);
            }
            for key in &chain.keys {
                self.plain(format!("Checking cache for {}...", key.human));
                if self.restore_cache(key, entry).await? {
                    self.log.log(LogEvent::Info("Successfully extracted cache".to_owned()));
                    break;
                }
                self.warn("Failed to extract cache");
            }
        }
        Ok(Outcome::Success)
    }

    fn key(&self, raw: &str) -> Option<cache::Key> {
        match cache::key(raw, self.workload.flags.on("FF_HASH_CACHE_KEYS")) {
            Ok(key) => {
                if let Some(warning) = key.warning() {
                    self.warn(warning);
                }
                Some(key)
            }
            Err(error) => {
                self.plain(format!("Skipping cache {raw} due to {error}"));
                None
            }
        }
    }

    fn local_archive(&self, key: &cache::Key) -> String {
        cache::local_path(&self.workload.directories.project_cache, key)
    }

    fn store(&self) -> Option<Store> {
        let s3 = self.config.cache.s3.as_ref()?;
        match Store::new(s3, self.workload.job.timeout, self.workload.settings.cache_timeout) {
            Ok(store) => Some(store),
            Err(error) => {
                self.warn(error_chain(&error));
                None
            }
        }
    }

    fn object(&self, key: &cache::Key) -> Option<String> {
        let project = self.workload.job.project;
        cache::object_name(&self.config.cache, &self.config.short_token(), project, key).ok()
    }

    /// Whether a cache was there and is in place now.
    async fn restore_cache(
        &mut self,
        key: &cache::Key,
        entry: &CachePlan,
    ) -> Result<bool, SystemFailure> {
        let archive = self.local_archive(key);
        match (self.store(), self.object(key)) {
            (Some(store), Some(object)) => {
                if !self.fetch_cache(&store, &object, &archive).await? {
                    return Ok(false);
                }
            }
            _ => self.plain(
                "No URL provided, cache will not be downloaded from shared cache server. Instead a \
                 local version of cache will be extracted.",
            ),
        }
        if self.ask(&Task::Stat { path: archive.clone() }).await?.file.is_none() {
            return Ok(false);
        }
        let into = self.workload.directories.project.clone();
        let task = Task::Extract(Extract { archive, into: into.clone(), remove: false });
        let done = self.ask(&task).await?;
        if done.exit_code != 0 && self.workload.flags.on("FF_CLEAN_UP_FAILED_CACHE_EXTRACT") {
            self.ask(&Task::RemovePaths { project_dir: into, paths: entry.paths.clone() }).await?;
        }
        Ok(done.exit_code == 0)
    }

    /// Brings the local archive up to what the store has; false when the store has none.
    async fn fetch_cache(
        &mut self,
        store: &Store,
        object: &str,
        archive: &str,
    ) -> Result<bool, SystemFailure> {
        let remote = match store.head(object).await {
            Ok(Some(remote)) => remote,
            Ok(None) => {
                self.plain(format!("{object} is not in the cache server"));
                return Ok(false);
            }
            Err(error) => {
                self.warn(error_chain(&error));
                return Ok(false);
            }
        };
        let local = self.ask(&Task::Stat { path: archive.to_owned() }).await?.file;
        if local.is_some_and(|local| cache::is_current(local.modified, remote.modified)) {
            self.plain(format!("{archive} is up to date"));
            return Ok(true);
        }
        let spooled = self.spool_file("cache");
        if let Err(error) = keep_object(store, object, &spooled.0).await {
            self.warn(error_chain(error.as_ref()));
            return Ok(false);
        }
        self.plain(format!("Downloading {archive} from the cache server"));
        let done = self.give_file(&spooled.0, archive, remote.modified).await?;
        Ok(done.exit_code == 0)
    }

    /// Saves caches after a script that ended so.
    pub(in crate::runner) async fn save_caches(&mut self, succeeded: bool) -> Ending {
        let caches: Vec<CachePlan> = self
            .workload
            .transfers
            .caches
            .iter()
            .filter(|cache| cache.push && cache.when.matches(succeeded))
            .cloned()
            .collect();
        if caches.is_empty() {
            return Ok(Outcome::Success);
        }
        let (name, title) = if succeeded {
            ("archive_cache", "Saving cache for successful job")
        } else {
            ("archive_cache_on_failure", "Saving cache for failed job")
        };
        let _section = self.log.section(name, title);
        for entry in &caches {
            let Some(key) = self.key(&entry.key) else { continue };
            self.plain(format!("Creating cache {}...", key.human));
            if self.save_cache(&key, entry).await? {
                self.log.log(LogEvent::Info("Created cache".to_owned()));
            } else {
                self.warn("Failed to create cache");
            }
        }
        Ok(Outcome::Success)
    }

    async fn save_cache(
        &mut self,
        key: &cache::Key,
        entry: &CachePlan,
    ) -> Result<bool, SystemFailure> {
        let archive = self.local_archive(key);
        let task = Task::Archive(Box::new(Archive {
            name: key.human.clone(),
            paths: entry.paths.clone(),
            untracked: entry.untracked,
            format: self.workload.settings.cache_format,
            level: self.workload.settings.cache_level,
            to: ArchiveTo::File(archive.clone()),
            ..self.archive()
        }));
        let done = self.ask(&task).await?;
        if done.exit_code != 0 {
            return Ok(false);
        }
        let (Some(file), false) = (done.file, done.empty) else {
            self.warn(select::NO_FILES_TO_CACHE);
            return Ok(true);
        };
        let (Some(store), Some(object)) = (self.store(), self.object(key)) else {
            self.plain(
                "No URL provided, cache will not be uploaded to shared cache server. Cache will be \
                 stored only locally.",
            );
            return Ok(true);
        };
        if cache::is_too_large(&self.config.cache, file.size) {
            self.plain(format!(
                "Cache archive size ({}) is larger than the limit ({}); it stays local",
                file.size, self.config.cache.max_uploaded_archive_size
            ));
            return Ok(true);
        }
        if done.unchanged && matches!(store.head(&object).await, Ok(Some(_))) {
            self.plain("Archive is up to date!");
            return Ok(true);
        }
        let spooled = self.spool_file("cache");
        let (sent, written) = self.take_file(&Task::Send { path: archive }, &spooled.0).await?;
        if let Some(error) = written {
            self.warn(format!("cannot keep the cache for its upload: {error}"));
            return Ok(false);
        }
        if sent.exit_code != 0 {
            return Ok(false);
        }
        self.plain(format!("Uploading {object} to the cache server"));
        let upload = Upload { size: file.size, modified: file.modified, cache_key: &key.human };
        let path = spooled.0.clone();
        let body = || {
            let path = path.clone();
            async move {
                let file = File::open(path).await?;
                Ok(reqwest::Body::wrap_stream(ReaderStream::with_capacity(file, BUFFER)))
            }
            .boxed()
        };
        match store.put(&object, &upload, body).await {
            Ok(()) => Ok(true),
            Err(error) => {
                self.warn(error_chain(&error));
                Ok(false)
            }
        }
    }
}

/// Keeps an object of the cache's store in a file.
async fn keep_object(
    store: &Store,
    object: &str,
    to: &std::path::Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut download = store.get(object).await?.ok_or("it is not in the cache server any more")?;
    let mut file = BufWriter::with_capacity(BUFFER, File::create(to).await?);
    while let Some(piece) = download.chunk().await? {
        file.write_all(&piece).await?;
    }
    Ok(file.flush().await?)
}

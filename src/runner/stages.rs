//! Stages that the helper does: sources, caches, artifacts. Each speaks through the curtain, in a
//! section of its own, and ends like a script: well, or with a code.
//!
//! Files go through the job's state directory on their way between container and server: a transfer
//! that fails is tried again without packing again, and neither memory nor the helper's network
//! matters for it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, TryStreamExt};
use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
    sync::mpsc,
    time::sleep,
};
use tokio_util::io::ReaderStream;

use crate::{
    api::{ArtifactUpload, Client, DownloadError, UploadOutcome},
    config::RunnerConfig,
    docker::chain as causes,
    executor::{
        curtain::{Curtain, Said},
        docker::{Helper, helper::HelperError},
    },
    ids::{JobId, ShortToken},
    job::{Job, outcome::Outcome},
    plan::{
        Plan,
        cache::{ArtifactPlan, CachePlan},
    },
    protocol::{Archive, ArchiveTo, Done, ENV_FILE, Extract, Receive, Task},
    secret::Secret,
    transfer::{
        artifact, cache,
        store::{Store, Upload},
    },
};

use super::ending::{Ending, SystemFailure};

/// Pauses between tries of a stage: doubling from the first to the last (docker-executor.md §14.2).
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_mins(5);

/// Pauses between tries of an upload.
const UPLOAD_PAUSES: [u64; 5] = [1, 2, 4, 5, 5];

/// Tries of a download, and the pause between them.
const DOWNLOAD_TRIES: u32 = 3;
const DOWNLOAD_PAUSE: Duration = Duration::from_secs(1);

/// Buffers between a file and what it is sent over, in bytes.
const BUFFER: usize = 256 << 10;

/// Pieces of a file under way at most; each is at most `protocol::CHUNK`.
const PIECES: usize = 16;

/// The helper and what its stages need.
pub(super) struct Stages<'a> {
    pub(super) helper: Helper,
    pub(super) curtain: &'a Curtain,
    pub(super) plan: &'a Plan,
    pub(super) job: &'a Job,
    pub(super) runner: &'a RunnerConfig,
    pub(super) client: &'a Arc<Client>,
    /// For files under way.
    pub(super) spool: PathBuf,
}

/// Why artifacts of another job could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("cannot keep them in {}", path.display())]
    Keep { path: PathBuf, source: io::Error },
}

impl FetchError {
    fn is_retriable(&self) -> bool {
        match self {
            Self::Download(error) => error.is_retriable(),
            Self::Keep { .. } => false,
        }
    }
}

/// How often a stage is tried, and what it is called.
struct Attempts {
    left: u32,
    pause: Duration,
}

impl Attempts {
    fn new(attempts: u32, exponential: bool) -> Self {
        Self {
            left: attempts,
            pause: if exponential { FIRST_PAUSE } else { Duration::from_secs(1) },
        }
    }

    /// Waits before another try; false when there is none.
    async fn again(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return false;
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        true
    }
}

fn ending(done: &Done) -> Outcome {
    match done.exit_code {
        0 => Outcome::Success,
        exit_code => Outcome::ScriptFailed { exit_code },
    }
}

impl Stages<'_> {
    fn plain(&self, text: impl Into<String>) {
        self.curtain.say(Said::Plain(text.into()));
    }

    fn warn(&self, text: impl Into<String>) {
        self.curtain.say(Said::Warning(text.into()));
    }

    fn error(&self, text: impl Into<String>) {
        self.curtain.say(Said::Error(text.into()));
    }

    async fn ask(&mut self, task: &Task) -> Result<Done, HelperError> {
        let done = self.helper.run(task, self.curtain).await?;
        if let Some(error) = &done.error {
            self.error(error);
        }
        Ok(done)
    }

    fn attempts(&self, attempts: u32) -> Attempts {
        Attempts::new(attempts, self.plan.flags.on("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY"))
    }

    /// Everything before the script: sources, caches, artifacts of other jobs.
    pub(super) async fn before_script(&mut self) -> Ending {
        for stage in [Stage::Sources, Stage::RestoreCache, Stage::Download] {
            let outcome = match stage {
                Stage::Sources => self.sources().await?,
                Stage::RestoreCache => self.restore_caches().await?,
                Stage::Download => self.download_artifacts().await?,
            };
            if outcome != Outcome::Success {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Success)
    }

    async fn sources(&mut self) -> Ending {
        const NAME: &str = "get_sources";
        const CLEAR: &str = "clear_worktree";
        let Some(mut sources) = self.plan.sources.clone() else {
            return Ok(Outcome::Success);
        };
        let mut attempts = self.attempts(self.plan.settings.attempts.sources);
        loop {
            let section = self.curtain.section(NAME, "Getting source from Git repository");
            self.give_bundle(&sources.url).await?;
            let done = self.ask(&Task::Sources(sources.clone())).await?;
            drop(section);
            if done.exit_code == 0 || !attempts.again().await {
                return Ok(ending(&done));
            }
            let section = self.curtain.section(
                CLEAR,
                "Deleting all tracked and untracked files due to source fetch failure",
            );
            let project_dir = self.plan.directories.project.clone();
            let cleared = self.ask(&Task::ClearWorktree { project_dir }).await?;
            drop(section);
            if cleared.exit_code != 0 {
                return Ok(ending(&cleared));
            }
            sources.retry = true;
        }
    }

    /// The sources of `longshore exec` are a file of this host.
    async fn give_bundle(&mut self, path: &str) -> Result<(), SystemFailure> {
        let Some(bundle) = &self.runner.local_bundle else { return Ok(()) };
        let given = self.give_file(bundle, path, None).await?;
        debug_assert_eq!(given.exit_code, 0, "the helper can write its own directory");
        Ok(())
    }

    async fn give_file(
        &mut self,
        from: &std::path::Path,
        to: &str,
        modified: Option<i64>,
    ) -> Result<Done, HelperError> {
        let source = |source| HelperError::Source { source };
        let file = File::open(from).await.map_err(source)?;
        let task = Task::Receive(Receive { path: to.to_owned(), modified });
        self.helper.give(&task, ReaderStream::with_capacity(file, BUFFER), self.curtain).await
    }

    /// Runs a task that gives a file, into the job's state directory.
    async fn take_file(
        &mut self,
        task: &Task,
        to: &std::path::Path,
    ) -> Result<(Done, Option<io::Error>), HelperError> {
        let (sender, mut pieces) = mpsc::channel::<io::Result<bytes::Bytes>>(PIECES);
        // The pieces' end is dropped with a file that cannot be written: the helper's are not wanted.
        let write = async move {
            let mut file = BufWriter::with_capacity(BUFFER, File::create(to).await?);
            while let Some(piece) = pieces.recv().await {
                file.write_all(&piece?).await?;
            }
            file.flush().await
        };
        let (done, written) = tokio::join!(self.helper.take(task, sender, self.curtain), write);
        Ok((done?, written.err()))
    }

    fn spool_file(&self, name: &str) -> Spooled {
        Spooled(self.spool.join(name))
    }

    async fn restore_caches(&mut self) -> Ending {
        const NAME: &str = "restore_cache";
        let caches: Vec<CachePlan> =
            self.plan.caches.iter().filter(|cache| cache.pull).cloned().collect();
        if caches.is_empty() {
            return Ok(Outcome::Success);
        }
        let _section = self.curtain.section(NAME, "Restoring cache");
        for entry in &caches {
            let Some(first) = self.key(&entry.key) else { continue };
            let last = self.plan.variables.value("CACHE_FALLBACK_KEY").filter(|k| !k.is_empty());
            let hash = self.plan.flags.on("FF_HASH_CACHE_KEYS");
            let chain = cache::chain(first, &entry.fallback_keys, last, hash);
            for warning in &chain.warnings {
                self.warn(warning);
            }
            for key in &chain.keys {
                self.plain(format!("Checking cache for {}...", key.human));
                if self.restore_cache(key, entry).await? {
                    self.curtain.say(Said::Info("Successfully extracted cache".to_owned()));
                    break;
                }
                self.warn("Failed to extract cache");
            }
        }
        Ok(Outcome::Success)
    }

    fn key(&self, raw: &str) -> Option<cache::Key> {
        match cache::key(raw, self.plan.flags.on("FF_HASH_CACHE_KEYS")) {
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
        format!("{}/{}/{}", self.plan.directories.project_cache, key.text, cache::ARCHIVE)
    }

    fn store(&self) -> Option<Store> {
        let s3 = self.runner.cache.s3.as_ref()?;
        match Store::new(s3, self.job.timeout, self.plan.settings.cache_timeout) {
            Ok(store) => Some(store),
            Err(error) => {
                self.warn(causes(&error));
                None
            }
        }
    }

    fn object(&self, key: &cache::Key) -> Option<String> {
        let project = self.job.payload.job_info.project_id;
        cache::object_name(&self.runner.cache, &self.runner.short_token(), project, key).ok()
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
        let into = self.plan.directories.project.clone();
        let task = Task::Extract(Extract { archive, into: into.clone(), remove: false });
        let done = self.ask(&task).await?;
        if done.exit_code != 0 && self.plan.flags.on("FF_CLEAN_UP_FAILED_CACHE_EXTRACT") {
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
                self.warn(causes(&error));
                return Ok(false);
            }
        };
        let local = self.ask(&Task::Stat { path: archive.to_owned() }).await?.file;
        if let (Some(local), Some(modified)) = (local, remote.modified)
            && local.modified >= modified
        {
            self.plain(format!("{archive} is up to date"));
            return Ok(true);
        }
        let spooled = self.spool_file("cache");
        if let Err(error) = keep_object(store, object, &spooled.0).await {
            self.warn(causes(error.as_ref()));
            return Ok(false);
        }
        self.plain(format!("Downloading {archive} from the cache server"));
        let done = self.give_file(&spooled.0, archive, remote.modified).await?;
        Ok(done.exit_code == 0)
    }

    /// Saves caches after a script that ended so.
    pub(super) async fn save_caches(&mut self, succeeded: bool) -> Ending {
        let caches: Vec<CachePlan> = self
            .plan
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
        let _section = self.curtain.section(name, title);
        for entry in &caches {
            let Some(key) = self.key(&entry.key) else { continue };
            self.plain(format!("Creating cache {}...", key.human));
            if self.save_cache(&key, entry).await? {
                self.curtain.say(Said::Info("Created cache".to_owned()));
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
            format: self.plan.settings.cache_format,
            level: self.plan.settings.cache_level,
            to: ArchiveTo::File(archive.clone()),
            ..self.archive()
        }));
        let done = self.ask(&task).await?;
        if done.exit_code != 0 {
            return Ok(false);
        }
        let (Some(file), false) = (done.file, done.empty) else {
            self.warn("No files to cache");
            return Ok(true);
        };
        let (Some(store), Some(object)) = (self.store(), self.object(key)) else {
            self.plain(
                "No URL provided, cache will not be uploaded to shared cache server. Cache will be \
                 stored only locally.",
            );
            return Ok(true);
        };
        if cache::is_too_large(&self.runner.cache, file.size) {
            self.plain(format!(
                "Cache archive size ({}) is larger than the limit ({}); it stays local",
                file.size, self.runner.cache.max_uploaded_archive_size
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
                self.warn(causes(&error));
                Ok(false)
            }
        }
    }

    /// An archive of the project, without what it is made of.
    fn archive(&self) -> Archive {
        Archive {
            project_dir: self.plan.directories.project.clone(),
            paths: Vec::new(),
            exclude: Vec::new(),
            untracked: false,
            format: crate::protocol::Format::Zip,
            level: crate::protocol::Level::default(),
            env: self.plan.variables.iter().map(|v| (v.key.clone(), v.value.clone())).collect(),
            env_file: Some(format!("{}/{ENV_FILE}", self.plan.directories.temp)),
            name: String::new(),
            metadata: None,
            to: ArchiveTo::Longshore,
        }
    }

    async fn download_artifacts(&mut self) -> Ending {
        const NAME: &str = "download_artifacts";
        if self.plan.dependencies.is_empty() {
            return Ok(Outcome::Success);
        }
        let mut attempts = self.attempts(self.plan.settings.attempts.artifacts);
        loop {
            let section = self.curtain.section(NAME, "Downloading artifacts");
            let mut outcome = Outcome::Success;
            for &index in &self.plan.dependencies {
                let dependency = self.job.payload.dependencies[index].clone();
                self.plain(format!(
                    "Downloading artifacts for {} ({})...",
                    dependency.name, dependency.id
                ));
                outcome = self.download(dependency.id, &dependency.token).await?;
                if outcome != Outcome::Success {
                    break;
                }
            }
            drop(section);
            if outcome == Outcome::Success || !attempts.again().await {
                return Ok(outcome);
            }
        }
    }

    async fn download(&mut self, id: JobId, token: &Secret) -> Ending {
        let spooled = self.spool_file("artifacts");
        let mut direct = self.plan.flags.on("FF_USE_DIRECT_DOWNLOAD");
        let mut tries = 1;
        let short = ShortToken::of(token.expose());
        loop {
            let error = match self.download_once(id, token, direct, &spooled.0).await {
                Ok(()) => break,
                Err(error) => error,
            };
            let line = format!(
                "Downloading artifacts from coordinator... failed: {}  id={id} token={short}",
                causes(&error)
            );
            if !error.is_retriable() || tries == DOWNLOAD_TRIES {
                self.error(line);
                return Ok(Outcome::ScriptFailed { exit_code: 1 });
            }
            self.warn(line);
            direct = false;
            tries += 1;
            sleep(DOWNLOAD_PAUSE).await;
        }
        self.plain(format!("Downloading artifacts from coordinator... ok  id={id} token={short}"));
        let archive = format!("{}/artifacts-{id}", self.plan.directories.temp);
        let given = self.give_file(&spooled.0, &archive, None).await?;
        if given.exit_code != 0 {
            return Ok(ending(&given));
        }
        let into = self.plan.directories.project.clone();
        let done = self.ask(&Task::Extract(Extract { archive, into, remove: true })).await?;
        Ok(ending(&done))
    }

    async fn download_once(
        &mut self,
        id: JobId,
        token: &Secret,
        direct: bool,
        to: &std::path::Path,
    ) -> Result<(), FetchError> {
        let download = self.client.download_artifact(id, token, direct).await?;
        let mut pieces = std::pin::pin!(download.into_stream());
        let keep = |source| FetchError::Keep { path: to.to_owned(), source };
        let mut file = BufWriter::with_capacity(BUFFER, File::create(to).await.map_err(keep)?);
        while let Some(piece) = pieces.try_next().await.map_err(DownloadError::from)? {
            file.write_all(&piece).await.map_err(keep)?;
        }
        file.flush().await.map_err(keep)
    }

    /// Uploads what is to be uploaded after a script that ended so.
    pub(super) async fn upload_artifacts(&mut self, succeeded: bool) -> Ending {
        let artifacts: Vec<ArtifactPlan> =
            self.plan.artifacts.iter().filter(|a| a.when.matches(succeeded)).cloned().collect();
        if artifacts.is_empty() {
            return Ok(Outcome::Success);
        }
        let (name, title) = if succeeded {
            ("upload_artifacts_on_success", "Uploading artifacts for successful job")
        } else {
            ("upload_artifacts_on_failure", "Uploading artifacts for failed job")
        };
        let _section = self.curtain.section(name, title);
        let mut outcome = Outcome::Success;
        for artifact in &artifacts {
            self.plain("Uploading artifacts...");
            outcome = self.upload(artifact).await?;
            if outcome != Outcome::Success {
                break;
            }
        }
        Ok(outcome)
    }

    async fn upload(&mut self, plan: &ArtifactPlan) -> Ending {
        let name = if plan.name.is_empty() { "artifacts" } else { &plan.name };
        let task = Task::Archive(Box::new(Archive {
            name: name.to_owned(),
            paths: plan.paths.clone(),
            exclude: plan.exclude.clone(),
            untracked: plan.untracked,
            format: plan.format,
            level: self.plan.settings.artifact_level,
            metadata: super::provenance::statement(plan, self.plan, self.job, self.runner),
            ..self.archive()
        }));
        let spooled = self.spool_file("artifacts");
        let (done, written) = self.take_file(&task, &spooled.0).await?;
        if let Some(error) = &done.error {
            self.error(error);
        }
        if done.exit_code != 0 {
            return Ok(ending(&done));
        }
        if done.empty {
            self.error("No files to upload");
            return Ok(Outcome::Success);
        }
        if let Some(error) = written {
            self.error(format!("cannot keep the archive for its upload: {error}"));
            return Ok(Outcome::ScriptFailed { exit_code: 1 });
        }
        let stem = done.name.unwrap_or_else(|| "artifacts".to_owned());
        let upload = ArtifactUpload {
            file_name: artifact::file_name(&stem, plan.format),
            format: plan.written_format.clone(),
            kind: plan.kind.clone(),
            expire_in: plan.expire_in.clone(),
            upload_timeout: self.runner.artifact.upload_timeout,
            response_header_timeout: self.runner.artifact.response_header_timeout,
        };
        self.send_archive(&upload, &spooled).await
    }

    async fn send_archive(&mut self, upload: &ArtifactUpload, spooled: &Spooled) -> Ending {
        let kind =
            if upload.kind.is_empty() { String::new() } else { format!(" as \"{}\"", upload.kind) };
        let short = ShortToken::of(self.job.token.expose());
        let mut tries = 1;
        loop {
            let content = || {
                let file = std::fs::File::open(&spooled.0).ok()?;
                let stream = ReaderStream::with_capacity(File::from_std(file), BUFFER);
                Some(reqwest::Body::wrap_stream(stream))
            };
            let reply =
                self.client.upload_artifact(self.job.id, &self.job.token, upload, content).await;
            let answer = reply
                .problem
                .or_else(|| reply.status.map(|status| format!("{status} Created")))
                .unwrap_or_default();
            let line = format!(
                "Uploading artifacts{kind} to coordinator... {answer}  id={} token={short}",
                self.job.id
            );
            if reply.outcome == UploadOutcome::Stored {
                self.plain(line);
                return Ok(Outcome::Success);
            }
            if tries >= reply.outcome.tries() {
                self.error(line);
                return Ok(Outcome::ScriptFailed { exit_code: 1 });
            }
            self.warn(line);
            let pause = UPLOAD_PAUSES.get(tries as usize - 1).copied().unwrap_or(5);
            sleep(Duration::from_secs(pause)).await;
            tries += 1;
        }
    }

    /// Removes credentials and file variables, and with `FF_ENABLE_JOB_CLEANUP` what the job changed
    /// in its work tree.
    pub(super) async fn clean_up(&mut self) -> Ending {
        const NAME: &str = "cleanup_file_variables";
        let _section =
            self.curtain.section(NAME, "Cleaning up project directory and file based variables");
        let done = self.ask(&Task::CleanUp(Box::new(self.plan.clean_up.clone()))).await?;
        if done.exit_code != 0 {
            tracing::warn!(error = done.error.as_deref(), "job's files could not be cleaned up");
        }
        Ok(Outcome::Success)
    }
}

#[derive(Clone, Copy)]
enum Stage {
    Sources,
    RestoreCache,
    Download,
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

/// A file under way, removed when it has arrived or is given up.
struct Spooled(PathBuf);

impl Drop for Spooled {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "file under way could not be removed");
        }
    }
}

//! Stages that the helper does: sources, caches, artifacts. Each logs to a section of its own, and ends
//! like a script: well, or with a code.
//!
//! Files go through the job's state directory on their way between container and server: a transfer
//! that fails is tried again without packing again, and neither memory nor the helper's network
//! matters for it.

mod artifacts;
mod caches;

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
    sync::mpsc,
    time::sleep,
};
use tokio_util::io::ReaderStream;

use crate::{
    base::backoff::{Backoff, Pauses},
    config::RunnerConfig,
    executor::{
        HelperStreams,
        buffered_log::{BufferedLog, LogEvent},
        helper::{Helper, HelperError},
    },
    helper::protocol::{Archive, ArchiveTo, Done, Receive, Task},
    workload::{
        Workload,
        outcome::Outcome,
        transfer::{ENV_FILE, Format, Level},
    },
};

use super::{
    ending::{Ending, SystemFailure},
    intake::OpenJob,
    reporter::ArtifactStore,
};

/// Pauses between tries of a stage, which double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_mins(5);

/// Buffers between a file and what it is sent over, in bytes.
const BUFFER: usize = 256 << 10;

/// Pieces of a file under way at most; each is at most `protocol::CHUNK`.
const PIECES: usize = 16;

/// The helper and what its stages need.
pub(super) struct Stages<'a> {
    helper: Helper,
    log: &'a BufferedLog,
    workload: &'a Workload,
    config: &'a RunnerConfig,
    artifacts: &'a dyn ArtifactStore,
    /// For files under way.
    spool: PathBuf,
}

/// The attempts that a stage has left.
struct Attempts(Pauses);

impl Attempts {
    fn new(attempts: u32, exponential: bool) -> Self {
        let first = if exponential { FIRST_PAUSE } else { Duration::from_secs(1) };
        Self(Backoff { attempts, first, longest: LAST_PAUSE }.pauses())
    }

    /// Waits before another attempt; false when there is none.
    async fn again(&mut self) -> bool {
        match self.0.next() {
            Some(pause) => sleep(pause).await,
            None => return false,
        }
        true
    }
}

fn ending(done: &Done) -> Outcome {
    match done.exit_code {
        0 => Outcome::Success,
        exit_code => Outcome::ScriptFailed { exit_code },
    }
}

impl<'a> Stages<'a> {
    /// Stages of a helper that has started.
    pub(super) fn new(
        streams: HelperStreams,
        job: &'a OpenJob,
        workload: &'a Workload,
        log: &'a BufferedLog,
    ) -> Self {
        Self {
            helper: Helper::new(streams),
            log,
            workload,
            config: &job.runner.config,
            artifacts: &*job.artifacts,
            spool: job.record.directories().files,
        }
    }

    /// Lets the job's user write to the directories that the helper shares with the job.
    pub(super) async fn open_directories(&mut self) -> Result<(), SystemFailure> {
        let directories = self.workload.shared_directories();
        self.ask(&Task::OpenDirectories(directories)).await?;
        Ok(())
    }

    fn plain(&self, text: impl Into<String>) {
        self.log.log(LogEvent::Plain(text.into()));
    }

    fn warn(&self, text: impl Into<String>) {
        self.log.log(LogEvent::Warning(text.into()));
    }

    fn error(&self, text: impl Into<String>) {
        self.log.log(LogEvent::Error(text.into()));
    }

    async fn ask(&mut self, task: &Task) -> Result<Done, HelperError> {
        let done = self.helper.run(task, self.log).await?;
        if let Some(error) = &done.error {
            self.error(error);
        }
        Ok(done)
    }

    fn attempts(&self, attempts: u32) -> Attempts {
        Attempts::new(attempts, self.workload.flags.on("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY"))
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
        let Some(mut sources) = self.workload.transfers.sources.clone() else {
            return Ok(Outcome::Success);
        };
        let mut attempts = self.attempts(self.workload.settings.attempts.sources);
        loop {
            let section = self.log.section(NAME, "Getting source from Git repository");
            self.give_bundle(&sources.url).await?;
            let done = self.ask(&Task::Sources(sources.clone())).await?;
            drop(section);
            if done.exit_code == 0 || !attempts.again().await {
                return Ok(ending(&done));
            }
            let section = self.log.section(
                CLEAR,
                "Deleting all tracked and untracked files due to source fetch failure",
            );
            let project_dir = self.workload.directories.project.clone();
            let cleared = self.ask(&Task::ClearWorktree { project_dir }).await?;
            drop(section);
            if cleared.exit_code != 0 {
                return Ok(ending(&cleared));
            }
            sources.retry = true;
        }
    }

    /// Gives the helper the bundle that the sources are fetched from, if there is one.
    async fn give_bundle(&mut self, path: &str) -> Result<(), SystemFailure> {
        let Some(bundle) = &self.workload.transfers.bundle else { return Ok(()) };
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
        self.helper.give(&task, ReaderStream::with_capacity(file, BUFFER), self.log).await
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
        let (done, written) = tokio::join!(self.helper.take(task, sender, self.log), write);
        Ok((done?, written.err()))
    }

    fn spool_file(&self, name: &str) -> Spooled {
        Spooled(self.spool.join(name))
    }

    /// An archive of the project, without what it is made of.
    fn archive(&self) -> Archive {
        Archive {
            project_dir: self.workload.directories.project.clone(),
            paths: Vec::new(),
            exclude: Vec::new(),
            untracked: false,
            format: Format::Zip,
            level: Level::default(),
            env: self.workload.variables.iter().map(|v| (v.key.clone(), v.value.clone())).collect(),
            env_file: Some(format!("{}/{ENV_FILE}", self.workload.directories.temp)),
            name: String::new(),
            metadata: None,
            to: ArchiveTo::Longshore,
        }
    }

    /// Removes credentials and file variables, and with `FF_ENABLE_JOB_CLEANUP` what the job changed
    /// in its work tree.
    pub(super) async fn clean_up(&mut self) -> Ending {
        const NAME: &str = "cleanup_file_variables";
        let _section =
            self.log.section(NAME, "Cleaning up project directory and file based variables");
        let done =
            self.ask(&Task::CleanUp(Box::new(self.workload.transfers.clean_up.clone()))).await?;
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

//! What must be removed, written down before it is created; and which jobs run, so that after a crash
//! they are taken up again, or their CI engine hears of their end.
//!
//! ```text
//! <state>/lock                 held while a longshore uses the directory
//! <state>/instance             marks everything this longshore makes on an engine
//! <state>/slots/               layer slots that no job has (`executor::docker::layers`)
//! <state>/jobs/<key>/entry     one JSON object: the job, and what it makes; written before it does
//! <state>/jobs/<key>/session   how to find its session again, and which script runs
//! <state>/jobs/<key>/trace     the spool of its trace
//! <state>/jobs/<key>/end       how it ended, once that is known
//! <state>/jobs/<key>/reported  its CI engine knows how it ended
//! <state>/guards/<key>         the job's guarded socket, and what is mounted for it: apart, so that
//!                              nothing mounted is removed with a job's directory; or the note of the
//!                              guard container that has them on the engine's host
//! ```
//! A job's directory is removed when nothing of the job is left and its end was reported.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::base::{
    ids::{JobId, RunnerName, random_hex},
    secret::Secret,
};

/// The state directory, in use by this process alone.
#[derive(Debug)]
pub struct StateDir {
    directory: PathBuf,
    instance: String,
    /// Held for its lock.
    _lock: File,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it.
    #[error(
        "{} is in use by another longshore; stop it, or name another directory with --state-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Input or output failed.
    #[error("cannot use the state directory {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A running job: what must be known to report its end and to remove what it made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Whose job it is.
    pub owner: Owner,
    /// The runner's name, to find its settings again.
    pub runner: RunnerName,
    /// Where its executor runs jobs, such as an engine's address, as in the configuration; `None` for
    /// the executor's default.
    pub address: Option<String>,
    /// All that the job makes.
    pub resources: Vec<Resource>,
}

/// Whose job it is, and what is needed to report its end there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A GitLab server's.
    Gitlab {
        /// The job.
        job: JobId,
        /// Authenticates all that is said of it.
        token: Secret,
        /// The server, as in the configuration.
        url: String,
        /// Failure reasons that the server knows.
        failure_reasons: Vec<String>,
    },
    /// A pipeline of this machine's: nobody waits for its end once its process is gone.
    Local {
        /// The job.
        job: JobId,
    },
}

impl Owner {
    /// The job's number, which labels everything that it makes.
    #[must_use]
    pub fn job(&self) -> JobId {
        match self {
            Self::Gitlab { job, .. } | Self::Local { job } => *job,
        }
    }
}

/// Something that a job makes and that must be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// A container, by name.
    Container(String),
    /// A network, by name.
    Network(String),
    /// A volume, by name.
    Volume(String),
}

/// How a later process finds a session again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionState {
    /// What scripts run in, by the executor's id of it; `None` until it is there.
    pub container: Option<String>,
    /// The script that runs; `None` between two.
    pub script: Option<RunningScript>,
}

/// A script that was started and has not ended yet, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningScript {
    /// The stage it belongs to, such as `step_script`.
    pub stage: String,
    /// What its end mark is made of.
    pub nonce: String,
    /// The length of the trace when it was started, in bytes: its output begins there.
    pub trace_offset: u64,
}

/// Directories of a job on this host.
#[derive(Debug, Clone)]
pub struct JobDirectories {
    /// For files under way; removed with the job's entry.
    pub files: PathBuf,
    /// For its guarded socket, and what belongs to that; not there unless it has one.
    pub guard: PathBuf,
}

/// Directory of the jobs' guarded sockets.
const GUARDS: &str = "guards";

/// A job in the ledger.
#[derive(Debug)]
pub struct JobRecord {
    directory: PathBuf,
}

impl StateDir {
    /// Opens the directory, making it (mode 0700) when it is not there.
    ///
    /// # Errors
    /// When another process uses it, or it cannot be written.
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        let jobs = directory.join("jobs");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&jobs).map_err(at(&jobs))?;
        let path = directory.join("lock");
        let lock = private(&path).map_err(at(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StateError::InUse { path: directory.to_owned() });
            }
            Err(error) => return Err(at(&path)(error.into())),
        }
        let path = directory.join("instance");
        let instance = match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
            Ok(_) => new_instance(&path).map_err(at(&path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                new_instance(&path).map_err(at(&path))?
            }
            Err(error) => return Err(at(&path)(error)),
        };
        Ok(Self { directory: directory.to_owned(), instance, _lock: lock })
    }

    /// Where idle layer slots are written down.
    #[must_use]
    pub fn slots(&self) -> PathBuf {
        self.directory.join("slots")
    }

    /// The value of the label on everything that this longshore makes.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Writes a job down, on disk before this returns. Blocks for the disk.
    ///
    /// # Errors
    /// When the disk does not take it: then nothing may be made.
    pub fn begin(&self, key: &str, entry: &LedgerEntry) -> Result<JobRecord, StateError> {
        let directory = self.directory.join("jobs").join(key);
        let at = |source| StateError::Io { path: directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(at)?;
        let record = JobRecord { directory: directory.clone() };
        let noted = record
            .put("entry", entry)
            .and_then(|()| File::open(self.directory.join("jobs"))?.sync_all());
        match noted {
            Ok(()) => Ok(record),
            Err(source) => {
                let error = at(source);
                // Nothing was made, so nothing must be remembered.
                if let Err(error) = record.close() {
                    tracing::warn!(%error, "job's directory could not be removed");
                }
                Err(error)
            }
        }
    }

    /// Jobs that earlier processes did not finish, with their entries; an entry that cannot be read
    /// comes as its error.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn unfinished_jobs(&self) -> Result<Vec<(JobRecord, io::Result<LedgerEntry>)>, StateError> {
        let jobs = self.directory.join("jobs");
        let at = |source| StateError::Io { path: jobs.clone(), source };
        let mut unfinished = Vec::new();
        for item in fs::read_dir(&jobs).map_err(at)? {
            let record = JobRecord { directory: item.map_err(at)?.path() };
            let entry = record.get("entry");
            unfinished.push((record, entry));
        }
        Ok(unfinished)
    }
}

impl JobRecord {
    /// The job's directories.
    #[must_use]
    pub fn directories(&self) -> JobDirectories {
        let key = self.directory.file_name().unwrap_or_default();
        let state = self.directory.parent().and_then(Path::parent).unwrap_or(&self.directory);
        JobDirectories { files: self.directory.clone(), guard: state.join(GUARDS).join(key) }
    }

    /// Where the spool of the job's trace is.
    #[must_use]
    pub fn trace(&self) -> PathBuf {
        self.directory.join("trace")
    }

    /// Writes a file of the job's, whole or not at all, on disk before this returns.
    fn put(&self, name: &str, content: &impl Serialize) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer(&mut file, content)?;
        file.flush()?;
        file.as_file().sync_data()?;
        file.persist(self.directory.join(name))?;
        Ok(())
    }

    /// Reads a file of the job's.
    fn get<T: serde::de::DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        let bytes = fs::read(self.directory.join(name))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Writes down how to find the job's session again. It need not be on disk before this returns:
    /// a machine that dies takes the session with it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_session(&self, session: &SessionState) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer(&mut file, session)?;
        file.flush()?;
        file.persist(self.directory.join("session"))?;
        Ok(())
    }

    /// How to find the job's session again; `None` when that was not written, or cannot be read.
    #[must_use]
    pub fn session(&self) -> Option<SessionState> {
        self.get("session").ok()
    }

    /// Writes down how the job ended, in the caller's terms.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn note_end(&self, end: &impl Serialize) -> io::Result<()> {
        self.put("end", end)
    }

    /// How the job ended; `None` when it was still running, or that cannot be read.
    #[must_use]
    pub fn end<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.get("end").ok()
    }

    /// Marks the job's end as reported to its CI engine: only removal is left to do.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn mark_reported(&self) -> io::Result<()> {
        self.put("reported", &true)
    }

    /// Whether the job's end was reported to its CI engine.
    #[must_use]
    pub fn is_reported(&self) -> bool {
        self.directory.join("reported").exists()
    }

    /// Removes the job from the ledger: nothing of it is left, and its end was reported.
    ///
    /// # Errors
    /// When the directory cannot be removed; the next start finds it and tries again.
    pub fn close(self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)
    }
}

fn private(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn new_instance(path: &Path) -> io::Result<String> {
    let instance = random_hex::<8>();
    let mut file = private(path)?;
    file.write_all(instance.as_bytes())?;
    file.sync_data()?;
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> LedgerEntry {
        LedgerEntry {
            owner: Owner::Gitlab {
                job: JobId(7),
                token: Secret::new("glcbt-token"),
                url: "https://h".into(),
                failure_reasons: Vec::new(),
            },
            runner: RunnerName::new("r"),
            address: None,
            resources: vec![Resource::Container("c".into()), Resource::Network("n".into())],
        }
    }

    #[test]
    fn what_a_process_wrote_down_another_finds_until_it_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let instance = state.instance().to_owned();
        drop(state.begin("a-7", &entry()).unwrap());
        drop(state);

        let state = StateDir::open(directory.path()).unwrap();
        assert_eq!(state.instance(), instance);
        let mut jobs = state.unfinished_jobs().unwrap();
        let (record, found) = jobs.pop().unwrap();
        assert!(jobs.is_empty());
        assert_eq!(found.unwrap().resources, entry().resources);
        record.close().unwrap();
        assert!(state.unfinished_jobs().unwrap().is_empty());
    }

    #[test]
    fn a_session_is_found_again_with_the_script_that_runs() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let record = state.begin("a-7", &entry()).unwrap();
        assert_eq!(record.session(), None);
        let session = SessionState {
            container: Some("c".into()),
            script: Some(RunningScript {
                stage: "step_script".into(),
                nonce: "00".into(),
                trace_offset: 12,
            }),
        };
        record.note_session(&session).unwrap();
        let (found, _) = state.unfinished_jobs().unwrap().pop().unwrap();
        assert_eq!(found.session(), Some(session));
    }

    #[test]
    fn a_directory_in_use_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let _first = StateDir::open(directory.path()).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn nobody_else_can_read_a_jobs_token() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let record = state.begin("a-7", &entry()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&record.directory), 0o700);
        assert_eq!(mode(&record.directory.join("entry")), 0o600);
    }
}

//! What must be removed, noted before it is created; and which jobs run, so that after a crash their
//! server hears of their end.
//!
//! ```text
//! <state>/lock                 held while a longshore uses the directory
//! <state>/instance             marks everything this longshore makes on an engine
//! <state>/slots/               layer-cache slots that nobody has (`runner::layers`)
//! <state>/jobs/<key>/entry     one JSON object: the job, and what it makes; written before it does
//! <state>/jobs/<key>/trace     the spool of its trace
//! <state>/jobs/<key>/end       how it ended, once that is known
//! <state>/jobs/<key>/told      its server has that
//! <state>/guards/<key>         the job's guarded socket, and what is mounted for it: apart, so that
//!                              nothing mounted is removed with a job's directory; or the note of the
//!                              sidecar that has them on the engine's host
//! ```
//! A job's directory goes when nothing of the job is left and the server has its end.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::base::{
    ids::{JobId, random_hex},
    secret::Secret,
};

/// The state directory, in use by this process alone.
#[derive(Debug)]
pub struct State {
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
pub struct Entry {
    /// The job.
    pub job: JobId,
    /// Its token.
    pub token: Secret,
    /// The server, as in the configuration.
    pub url: String,
    /// The runner's name, to find its TLS settings again.
    pub runner: String,
    /// Failure reasons the server knows.
    pub failure_reasons: Vec<String>,
    /// The engine's address, as in the configuration.
    pub engine: Option<String>,
    /// What it makes.
    pub things: Vec<Thing>,
}

/// Something on an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thing {
    /// A container, by name.
    Container(String),
    /// A network, by name.
    Network(String),
    /// A volume, by name.
    Volume(String),
}

/// Directory of the jobs' guarded sockets.
const GUARDS: &str = "guards";

/// A job in the ledger.
#[derive(Debug)]
pub struct JobRecord {
    directory: PathBuf,
}

impl State {
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

    /// Where layer-cache slots are noted.
    #[must_use]
    pub fn slots(&self) -> PathBuf {
        self.directory.join("slots")
    }

    /// What marks everything this longshore makes.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Notes a job, on disk before this returns. Blocks for the disk.
    ///
    /// # Errors
    /// When the disk does not take it: then nothing may be made.
    pub fn begin(&self, key: &str, entry: &Entry) -> Result<JobRecord, StateError> {
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

    /// Jobs that an earlier process left, with what is known of them; an entry that cannot be read
    /// comes as its error.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn left(&self) -> Result<Vec<(JobRecord, io::Result<Entry>)>, StateError> {
        let jobs = self.directory.join("jobs");
        let at = |source| StateError::Io { path: jobs.clone(), source };
        let mut left = Vec::new();
        for item in fs::read_dir(&jobs).map_err(at)? {
            let directory = item.map_err(at)?.path();
            let entry = fs::read(directory.join("entry")).and_then(|bytes| {
                serde_json::from_slice(&bytes)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
            });
            left.push((JobRecord { directory }, entry));
        }
        Ok(left)
    }
}

impl JobRecord {
    /// The job's directory, for files under way.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the job's guarded socket is, and what belongs to it; not there unless it has one.
    #[must_use]
    pub fn guard(&self) -> PathBuf {
        let key = self.directory.file_name().unwrap_or_default();
        let state = self.directory.parent().and_then(Path::parent).unwrap_or(&self.directory);
        state.join(GUARDS).join(key)
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

    /// Notes how the job ended, in words of the caller's.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn note_end(&self, end: &impl Serialize) -> io::Result<()> {
        self.put("end", end)
    }

    /// How the job ended, when that was noted; `None` when it was still running, or cannot be read.
    #[must_use]
    pub fn end<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let bytes = fs::read(self.directory.join("end")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Notes that the server has the job's end: only removal is left to do.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn note_told(&self) -> io::Result<()> {
        self.put("told", &true)
    }

    /// Whether the server has the job's end.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.directory.join("told").exists()
    }

    /// Forgets the job: nothing of it is left, and its server has its end.
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

    fn entry() -> Entry {
        Entry {
            job: JobId(7),
            token: Secret::new("glcbt-token"),
            url: "https://h".into(),
            runner: "r".into(),
            failure_reasons: Vec::new(),
            engine: None,
            things: vec![Thing::Container("c".into()), Thing::Network("n".into())],
        }
    }

    #[test]
    fn what_a_process_noted_another_finds_until_it_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let instance = state.instance().to_owned();
        drop(state.begin("a-7", &entry()).unwrap());
        drop(state);

        let state = State::open(directory.path()).unwrap();
        assert_eq!(state.instance(), instance);
        let mut left = state.left().unwrap();
        let (record, found) = left.pop().unwrap();
        assert!(left.is_empty());
        assert_eq!(found.unwrap().things, entry().things);
        record.close().unwrap();
        assert!(state.left().unwrap().is_empty());
    }

    #[test]
    fn a_directory_in_use_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let _first = State::open(directory.path()).unwrap();
        let error = State::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn nobody_else_can_read_a_jobs_token() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path()).unwrap();
        let record = state.begin("a-7", &entry()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&record.directory), 0o700);
        assert_eq!(mode(&record.directory.join("entry")), 0o600);
    }
}

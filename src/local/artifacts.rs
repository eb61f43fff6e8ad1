//! Artifacts of jobs, kept in folders of this machine.

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    dotenv,
    event::{Event, KeptArtifact},
};
use crate::{
    archive::extract,
    base::{error_chain, ids::JobId},
    executor::buffered_log::{BufferedLog, LogEvent},
    runner::ArtifactStore,
    workload::{
        Workload,
        spec::{ArtifactSpec, Dependency},
        transfer::Format,
    },
};

/// The kind of an artifact that does not say its own, and the one that later jobs get.
const ARCHIVE: &str = "archive";

/// The artifacts of one job.
pub(crate) struct LocalArtifacts {
    /// Its index in the pipeline.
    job: usize,
    /// Where its artifacts are kept.
    folder: PathBuf,
    /// Archives of other jobs that it may ask for.
    archives: HashMap<JobId, PathBuf>,
    events: mpsc::Sender<Event>,
    left: Mutex<Left>,
}

/// What a job leaves to those after it.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) artifacts: Vec<KeptArtifact>,
    /// Variables of its `dotenv` report.
    pub(crate) variables: Vec<(String, String)>,
}

impl Left {
    /// The archive that jobs which depend on this one get.
    pub(crate) fn archive(&self) -> Option<&Path> {
        self.artifacts.iter().find(|kept| kept.kind == ARCHIVE).map(|kept| kept.path.as_path())
    }
}

/// Why an artifact was not kept.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("another artifact of the type {kind} was kept before")]
    Twice { kind: String },
    /// What the `dotenv` report has is wrong; the text says it.
    #[error("{0}")]
    Dotenv(String),
    #[error("cannot write to `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl LocalArtifacts {
    pub(crate) fn new(
        job: usize,
        folder: PathBuf,
        archives: HashMap<JobId, PathBuf>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { job, folder, archives, events, left: Mutex::default() }
    }

    /// What the job has left, once it has ended.
    pub(crate) fn take(&self) -> Left {
        std::mem::take(&mut self.left.lock())
    }

    async fn keep(
        &self,
        artifact: &ArtifactSpec,
        file_name: &str,
        file: &Path,
    ) -> Result<(), KeepError> {
        let kind = if artifact.kind.is_empty() { ARCHIVE } else { &artifact.kind };
        if self.left.lock().artifacts.iter().any(|kept| kept.kind == kind) {
            return Err(KeepError::Twice { kind: kind.to_owned() });
        }
        let path = self.free_path(kind, file_name);
        let keeping = Keeping {
            file: file.to_owned(),
            path: path.clone(),
            dotenv: (kind == "dotenv").then_some(artifact.format == Some(Format::Gzip)),
            is_unpacked: kind == ARCHIVE
                && !matches!(artifact.format, Some(Format::Gzip | Format::Raw)),
        };
        let kept = spawn_blocking(move || keeping.run()).await;
        let panicked =
            |error| KeepError::Write { path: path.clone(), source: io::Error::other(error) };
        let (size, variables) = kept.map_err(panicked)??;
        let artifact = KeptArtifact { kind: kind.to_owned(), path, size };
        {
            let mut left = self.left.lock();
            left.artifacts.push(artifact.clone());
            left.variables.extend(variables);
        }
        // Without a terminal nobody is told.
        let _ = self.events.send(Event::Artifact { job: self.job, artifact }).await;
        Ok(())
    }

    /// A path in the job's folder that no artifact of another kind has.
    fn free_path(&self, kind: &str, file_name: &str) -> PathBuf {
        let name = base_name(file_name);
        let path = self.folder.join(name);
        let is_taken = self.left.lock().artifacts.iter().any(|kept| kept.path == path);
        if is_taken { self.folder.join(format!("{kind}-{name}")) } else { path }
    }
}

/// An artifact on its way into its folder.
struct Keeping {
    file: PathBuf,
    path: PathBuf,
    /// It has variables for later jobs; whether they are gzipped.
    dotenv: Option<bool>,
    /// Its files are put beside it.
    is_unpacked: bool,
}

impl Keeping {
    /// Keeps it; its size, and the variables in it.
    fn run(&self) -> Result<(u64, Vec<(String, String)>), KeepError> {
        let variables = self.dotenv.map(|is_gzipped| self.variables(is_gzipped)).transpose()?;
        let size = self.store().map_err(|source| self.cannot_write(source))?;
        if self.is_unpacked {
            self.unpack();
        }
        Ok((size, variables.unwrap_or_default()))
    }

    fn variables(&self, is_gzipped: bool) -> Result<Vec<(String, String)>, KeepError> {
        let file = File::open(&self.file).map_err(|source| self.cannot_write(source))?;
        dotenv::read(file, is_gzipped).map_err(KeepError::Dotenv)
    }

    fn cannot_write(&self, source: io::Error) -> KeepError {
        KeepError::Write { path: self.path.clone(), source }
    }

    /// Moves the file to its path, where it is whole or not at all; its size.
    fn store(&self) -> io::Result<u64> {
        let folder = self.path.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder)?;
        // Files under way are for their owner alone; artifacts are not.
        let readable = Permissions::from_mode(0o644);
        match fs::rename(&self.file, &self.path) {
            Ok(()) => fs::set_permissions(&self.path, readable)?,
            // The state directory is on another file system.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let copy = tempfile::Builder::new().prefix(".artifact-").tempfile_in(folder)?;
                fs::copy(&self.file, copy.path())?;
                copy.as_file().set_permissions(readable)?;
                copy.persist(&self.path)?;
            }
            Err(error) => return Err(error),
        }
        Ok(fs::metadata(&self.path)?.len())
    }

    /// Puts the archive's files beside it, for the user; later jobs get the archive itself.
    fn unpack(&self) {
        let folder = self.path.parent().unwrap_or(&self.path);
        if let Err(error) = extract::extract(&self.path, folder) {
            tracing::warn!(error = error_chain(&error), "artifacts stay packed");
        }
    }
}

/// The last part of a name, or `artifact`.
fn base_name(name: &str) -> &str {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let is_usable = !last.is_empty() && last != "." && last != ".." && !last.contains('\0');
    if is_usable { last } else { "artifact" }
}

/// Makes `to` the same file as `from`, or a copy where that cannot be. Nobody writes to it: it is read
/// once, and then its name goes.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) => fs::copy(from, to).map(drop),
    }
}

impl ArtifactStore for LocalArtifacts {
    fn download<'a>(
        &'a self,
        job: &'a Dependency,
        to: &'a Path,
        _is_direct: bool,
        log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool> {
        async {
            let given = match self.archives.get(&job.id).cloned() {
                Some(archive) => {
                    let to = to.to_owned();
                    let given = spawn_blocking(move || link_or_copy(&archive, &to)).await;
                    given.map_err(io::Error::other).flatten()
                }
                None => Err(io::ErrorKind::NotFound.into()),
            };
            if let Err(error) = &given {
                let name = &job.name;
                log.log(LogEvent::Error(format!("cannot get the artifacts of {name}: {error}")));
            }
            given.is_ok()
        }
        .boxed()
    }

    fn upload<'a>(
        &'a self,
        artifact: &'a ArtifactSpec,
        file_name: &'a str,
        file: &'a Path,
        log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool> {
        async move {
            let kept = self.keep(artifact, file_name, file).await;
            if let Err(error) = &kept {
                let error = error_chain(error);
                log.log(LogEvent::Error(format!("cannot keep the artifact {file_name}: {error}")));
            }
            kept.is_ok()
        }
        .boxed()
    }

    fn provenance(&self, _artifact: &ArtifactSpec, _workload: &Workload) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{
        base::secret::Secret,
        trace::{Masks, Settings, Trace},
        workload::spec::When,
    };

    struct Case {
        store: LocalArtifacts,
        log: BufferedLog,
        trace: Trace,
        directory: tempfile::TempDir,
        events: mpsc::Receiver<Event>,
    }

    impl Case {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (sender, events) = mpsc::channel(10);
            let folder = directory.path().join("kept");
            let archives = HashMap::from([(JobId(1), directory.path().join("before.zip"))]);
            let settings =
                Settings { limit: 0, timestamps: false, sections: false, masks: Masks::default() };
            let trace = Trace::create(&directory.path().join("trace"), settings).unwrap();
            let log = BufferedLog::new(&trace);
            log.flush();
            let store = LocalArtifacts::new(0, folder, archives, sender);
            Self { store, log, trace, directory, events }
        }

        async fn upload(&self, kind: &str, format: Format, name: &str, content: &[u8]) -> bool {
            let file = self.directory.path().join("under-way");
            fs::write(&file, content).unwrap();
            let artifact = ArtifactSpec {
                name: String::new(),
                paths: Vec::new(),
                exclude: Vec::new(),
                untracked: false,
                when: When::Always,
                kind: kind.to_owned(),
                format: Some(format),
                expire_in: String::new(),
            };
            self.store.upload(&artifact, name, &file, &self.log).await
        }

        async fn download(&self, id: i64) -> Option<Vec<u8>> {
            let (id, name) = (JobId(id), "before".to_owned());
            let dependency = Dependency { id, name, token: Secret::new("t") };
            let to = self.directory.path().join("to");
            fs::write(&to, "of an earlier try").unwrap();
            let given = self.store.download(&dependency, &to, true, &self.log).await;
            let content = given.then(|| fs::read(&to).unwrap());
            let _ = fs::remove_file(to);
            content
        }

        fn log(&self) -> String {
            String::from_utf8(self.trace.read_at(0, usize::MAX).unwrap().to_vec()).unwrap()
        }
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn artifacts_are_moved_into_the_folder_under_names_of_their_own() {
        let mut store = Case::new();
        assert!(store.upload("", Format::Zip, "../../a.zip", b"no archive").await);
        assert!(store.upload("junit", Format::Gzip, "a.zip", b"report").await);
        let folder = store.directory.path().join("kept");
        assert_eq!(fs::read(folder.join("a.zip")).unwrap(), b"no archive");
        assert_eq!(fs::read(folder.join("junit-a.zip")).unwrap(), b"report");
        let mode = fs::metadata(folder.join("a.zip")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert!(!store.directory.path().join("under-way").exists(), "it was moved");
        let Some(Event::Artifact { job: 0, artifact }) = store.events.recv().await else {
            panic!()
        };
        assert_eq!((artifact.kind.as_str(), artifact.size), ("archive", 10));
        assert_eq!(store.store.take().archive(), Some(folder.join("a.zip").as_path()));
    }

    #[tokio::test]
    async fn a_second_artifact_of_a_kind_is_refused() {
        let store = Case::new();
        assert!(store.upload("junit", Format::Gzip, "a.gz", b"1").await);
        assert!(!store.upload("junit", Format::Gzip, "b.gz", b"2").await);
        assert!(store.log().contains("another artifact of the type junit was kept before"));
    }

    #[tokio::test]
    async fn a_dotenv_report_is_read_before_it_is_kept() {
        let store = Case::new();
        assert!(!store.upload("dotenv", Format::Gzip, ".env.gz", &gzip("no variable\n")).await);
        assert!(store.log().contains("there is no `=`"), "{}", store.log());
        assert!(store.upload("dotenv", Format::Gzip, ".env.gz", &gzip("V=1.2.3\n")).await);
        assert_eq!(store.store.take().variables, [("V".to_owned(), "1.2.3".to_owned())]);
    }

    #[tokio::test]
    async fn archives_of_other_jobs_are_given_and_no_others() {
        let store = Case::new();
        assert_eq!(store.download(1).await, None);
        fs::write(store.directory.path().join("before.zip"), "archive").unwrap();
        assert_eq!(store.download(1).await.as_deref(), Some(&b"archive"[..]));
        assert_eq!(store.download(1).await.as_deref(), Some(&b"archive"[..]), "again");
        assert_eq!(store.download(2).await, None);
        assert!(store.log().contains("cannot get the artifacts of before"), "{}", store.log());
    }
}

//! Archives: the helper's tasks in terms of [`crate::transfer`], which knows formats and globs.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::{Error, chain};
use super::files;
use super::protocol::{Archive, ArchiveTo, CHUNK, Done, FileInfo, Frame};
use super::trace::Trace;
use crate::transfer::select::Wanted;
use crate::transfer::{archive, expand, extract, fingerprint, select};

/// Extracts an archive below a directory.
pub(super) async fn extract(archive: PathBuf, into: PathBuf) -> Result<(), Error> {
    blocking(move || {
        fs::create_dir_all(&into).map_err(Error::file("make directory", &into))?;
        let end = extract::extract(&archive, &into);
        end.map(|_| ()).map_err(|error| Error::Pack(chain(&error)))
    })
    .await
}

/// Makes an archive and gives it, or leaves it as a file.
pub(super) async fn archive(task: Archive, trace: &Trace) -> Result<Done, Error> {
    let chosen = blocking(move || choose(task)).await?;
    for note in &chosen.notes {
        if note.warning { trace.warning(&note.text).await } else { trace.line(&note.text).await }
    }
    let Chosen { task, name, files, .. } = chosen;
    let name = Some(name);
    if files.is_empty() {
        return Ok(Done { name, empty: true, ..Done::default() });
    }
    match task.to.clone() {
        ArchiveTo::Longshore => {
            // Nothing between packing and sending but the channel of the frames, which is bounded.
            let mut out = trace.data();
            blocking(move || {
                let project = Path::new(&task.project_dir);
                archive::write(task.format, task.level, project, &files, &mut out)
                    .map_err(|error| Error::Pack(chain(&error)))?;
                out.flush().map_err(|error| Error::Pack(error.to_string()))
            })
            .await?;
            trace.send(Frame::End).await;
            Ok(Done { name, ..Done::default() })
        }
        ArchiveTo::File(path) => {
            let key = name.clone().unwrap_or_default();
            let (file, unchanged) =
                blocking(move || keep(&task, &files, &key, Path::new(&path))).await?;
            Ok(Done { name, file: Some(file), unchanged, ..Done::default() })
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Interrupted)?
}

/// A line for the trace.
struct Note {
    warning: bool,
    text: String,
}

struct Chosen {
    task: Archive,
    name: String,
    /// Relative to the project, sorted.
    files: Vec<PathBuf>,
    notes: Vec<Note>,
}

fn choose(task: Archive) -> Result<Chosen, Error> {
    let project = PathBuf::from(&task.project_dir);
    let variables = variables(&task);
    let lookup = |name: &str| variables.get(name).cloned();
    let mut notes = Vec::new();
    let name = match expand::expand(&task.name, lookup) {
        Ok(name) => name,
        Err(error) => {
            let text = format!("cannot expand `{}`: {}", task.name, chain(&error));
            notes.push(Note { warning: true, text });
            task.name.clone()
        }
    };
    // Artifacts have a file's name; caches have a key, which is one as it is.
    let name = match task.to {
        ArchiveTo::Longshore => file_name(&name),
        ArchiveTo::File(_) => name,
    };
    let wanted = Wanted {
        paths: task.paths.clone(),
        exclude: task.exclude.clone(),
        untracked: task.untracked,
    };
    let selection = select::select(&project, &wanted, &lookup);
    notes.extend(
        selection.notes.iter().map(|note| Note { warning: note.warning, text: note.text.clone() }),
    );
    let mut files = selection.files;
    if let Some(text) = task.metadata.as_ref().filter(|_| !files.is_empty()) {
        let path = PathBuf::from(format!("{name}-metadata.json"));
        let statement = statement(text, &project, &files)?;
        files::write_fresh(&project.join(&path), &statement)?;
        if let Err(place) = files.binary_search(&path) {
            files.insert(place, path);
        }
    }
    Ok(Chosen { task, name, files, notes })
}

/// The job's variables, and over them the lines that its script wrote to `GITLAB_ENV`: as they are,
/// with nothing evaluated.
fn variables(task: &Archive) -> HashMap<String, String> {
    let mut variables: HashMap<String, String> = task.env.iter().cloned().collect();
    let text = task.env_file.as_ref().and_then(|path| fs::read(path).ok()).unwrap_or_default();
    for line in String::from_utf8_lossy(&text).lines() {
        if let Some((name, value)) = line.split_once('=') {
            variables.insert(name.to_owned(), value.to_owned());
        }
    }
    variables
}

/// The last element of a name (docker-executor.md §13.3).
fn file_name(name: &str) -> String {
    match name.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => "default".to_owned(),
        Some(last) => last.to_owned(),
    }
}

/// The statement of provenance with a digest of each file.
fn statement(text: &str, project: &Path, files: &[PathBuf]) -> Result<Vec<u8>, Error> {
    let wrong = |error: serde_json::Error| Error::Pack(format!("metadata is no JSON: {error}"));
    let mut statement: serde_json::Map<_, _> = serde_json::from_str(text).map_err(wrong)?;
    let mut subjects = Vec::new();
    for path in files {
        let whole = project.join(path);
        let metadata = fs::symlink_metadata(&whole).map_err(Error::file("look at", &whole))?;
        if metadata.is_file() {
            let digest = sha256(&whole).map_err(Error::file("read", &whole))?;
            let name = path.to_string_lossy();
            subjects.push(serde_json::json!({ "name": name, "digest": { "sha256": digest } }));
        }
    }
    statement.insert("subject".to_owned(), subjects.into());
    serde_json::to_vec_pretty(&statement).map_err(wrong)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What is beside an archive that is kept as a file, in `metadata.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    cachekey: String,
    fingerprint: String,
    /// Which archive this is about: another may have taken its place since, downloaded or made by
    /// a job beside this one.
    archive: Identity,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Identity {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }

    fn info(&self) -> FileInfo {
        FileInfo { size: self.size, modified: self.seconds }
    }
}

/// Makes the archive as a file. Says what it is, and whether it was up to date already.
///
/// The archive and its metadata are replaced one after the other, each whole. With two jobs at once
/// they may be of different jobs: then they do not agree on the identity, and the next job packs.
fn keep(
    task: &Archive,
    files: &[PathBuf],
    key: &str,
    path: &Path,
) -> Result<(FileInfo, bool), Error> {
    let project = Path::new(&task.project_dir);
    let directory = files::parent(path);
    let beside = directory.join("metadata.json");
    let fingerprint = fingerprint::fingerprint(project, files);
    let kept: Option<Kept> =
        fs::read(&beside).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let present = fs::metadata(path).ok().map(|metadata| Identity::of(&metadata));
    if let (Some(kept), Some(present)) = (kept, present)
        && kept.fingerprint == fingerprint
        && kept.archive == present
    {
        return Ok((present.info(), true));
    }

    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::file("make directory", directory))?;
    let temporary = temporary(directory, 0o600)?;
    let mut out = BufWriter::with_capacity(CHUNK, temporary.as_file());
    archive::write(task.format, task.level, project, files, &mut out)
        .map_err(|error| Error::Pack(chain(&error)))?;
    out.flush().map_err(Error::file("write", path))?;
    drop(out);
    let metadata = temporary.as_file().metadata().map_err(Error::file("look at", path))?;
    let archive = Identity::of(&metadata);
    let info = archive.info();
    persist(temporary, path)?;

    let kept = Kept { cachekey: key.to_owned(), fingerprint, archive };
    let text = serde_json::to_vec(&kept).map_err(|error| Error::Pack(error.to_string()))?;
    let mut temporary = self::temporary(directory, 0o640)?;
    temporary.write_all(&text).map_err(Error::file("write", &beside))?;
    persist(temporary, &beside)?;
    Ok((info, false))
}

fn temporary(directory: &Path, mode: u32) -> Result<tempfile::NamedTempFile, Error> {
    tempfile::Builder::new()
        .prefix(".longshore-")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(directory)
        .map_err(Error::file("make a file in", directory))
}

fn persist(temporary: tempfile::NamedTempFile, path: &Path) -> Result<(), Error> {
    let end = temporary.persist(path);
    end.map(|_| ()).map_err(|error| Error::file("write", path)(error.error))
}

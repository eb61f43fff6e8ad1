//! Archives: the helper's tasks in terms of [`crate::archive`], which knows formats and globs.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::frames::FrameSender;
use crate::archive::select::{Note, Severity, Wanted};
use crate::archive::{artifact, expand, extract, provenance, save, select, write};
use crate::{
    base::error_chain,
    helper::protocol::{Archive, ArchiveTo, Done, Frame},
};

/// Extracts an archive below a directory.
pub(super) async fn extract(archive: PathBuf, into: PathBuf) -> Result<(), Error> {
    blocking(move || {
        fs::create_dir_all(&into).map_err(Error::file("make directory", &into))?;
        let end = extract::extract(&archive, &into);
        end.map(|_| ()).map_err(packing)
    })
    .await
}

/// Removes what `paths` match below a directory; directories only when nothing else is in them.
pub(super) async fn remove(project: PathBuf, paths: Vec<String>) -> Result<(), Error> {
    blocking(move || {
        let wanted = Wanted { paths: &paths, exclude: &[], untracked: false };
        let selection = select::select(&project, &wanted, &|_| None);
        // Sorted, so that a directory comes after what is in it.
        for path in selection.files.iter().rev() {
            let whole = project.join(path);
            let removed = match fs::symlink_metadata(&whole) {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir(&whole),
                Ok(_) => fs::remove_file(&whole),
                Err(error) => Err(error),
            };
            match removed {
                Err(error)
                    if !matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(Error::file("remove", &whole)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    })
    .await
}

/// Packs an archive, and sends it or saves it as a file.
pub(super) async fn archive(task: Archive, trace: &FrameSender) -> Result<Done, Error> {
    let chosen = blocking(move || choose(task)).await?;
    for note in &chosen.notes {
        match note.severity {
            Severity::Info => trace.line(&note.text).await,
            Severity::Warning => trace.warning(&note.text).await,
            Severity::Error => trace.error(&note.text).await,
        }
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
                write::write(task.format, task.level, project, &files, &mut out)
                    .map_err(packing)?;
                out.flush().map_err(packing)
            })
            .await?;
            trace.send(Frame::End).await;
            Ok(Done { name, ..Done::default() })
        }
        ArchiveTo::File(path) => {
            let key = name.clone().unwrap_or_default();
            let saved = blocking(move || {
                let project = Path::new(&task.project_dir);
                save::save(task.format, task.level, project, &files, Path::new(&path), &key)
                    .map_err(packing)
            })
            .await?;
            let (file, unchanged) = (Some(saved.file), saved.unchanged);
            Ok(Done { name, file, unchanged, ..Done::default() })
        }
    }
}

fn packing(error: impl StdError) -> Error {
    Error::Pack(error_chain(&error))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Interrupted)?
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
    let name = match expand::expand(&task.name, &lookup) {
        Ok(name) => name,
        Err(error) => {
            let text = format!("cannot expand `{}`: {}", task.name, error_chain(&error));
            notes.push(Note { severity: Severity::Warning, text });
            task.name.clone()
        }
    };
    // Artifacts have a file's name; caches have a key, which is one as it is.
    let name = match task.to {
        ArchiveTo::Longshore => artifact::stem(&name),
        ArchiveTo::File(_) => name,
    };
    let wanted = Wanted { paths: &task.paths, exclude: &task.exclude, untracked: task.untracked };
    let selection = select::select(&project, &wanted, &lookup);
    notes.extend(selection.notes);
    let mut files = selection.files;
    if let Some(text) = task.metadata.as_ref().filter(|_| !files.is_empty()) {
        provenance::add(&project, &name, text, &mut files).map_err(packing)?;
    }
    Ok(Chosen { task, name, files, notes })
}

/// The job's variables, overridden by the lines that its script wrote to `GITLAB_ENV`, which are
/// taken literally.
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

#[cfg(test)]
mod tests;

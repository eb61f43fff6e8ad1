//! Saves an archive as a file for later jobs: whole or not at all, also when several jobs save at
//! once, and not again when it has the same files already (docs/compatibility.md, "Saving a cache").

use std::{
    fs::{self, DirBuilder, Metadata as FileMetadata},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    fingerprint::{Metadata, fingerprint},
    write::{self, ArchiveError},
};
use crate::helper::protocol::FileInfo;
use crate::workload::transfer::{Format, Level};

/// Why no archive was left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// It could not be made.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It could not be put in its place.
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// The archive that is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Size and time.
    pub(crate) file: FileInfo,
    /// It had the same files already.
    pub(crate) unchanged: bool,
}

/// Packs `files` into `target` and writes `metadata.json` with `cache_key` beside it.
///
/// An archive that this function left is the same when the list of files, their sizes, modes and
/// times are. Of one that came from elsewhere (a download, gitlab-runner) only its time is known: it
/// counts as the same when no file is newer, as gitlab-runner has it.
pub(crate) fn save(
    format: Format,
    level: Level,
    project_dir: &Path,
    files: &[PathBuf],
    target: &Path,
    cache_key: &str,
) -> Result<Saved, SaveError> {
    let failed = |source| SaveError::Write { path: target.to_owned(), source };
    let now = format!("{format:?}-{}", fingerprint(project_dir, files));
    if let Ok(there) = fs::metadata(target)
        && there.is_file()
    {
        let of = |there: &FileMetadata| format!("{now}-{}", identity(there));
        let unchanged = match known(target, &there) {
            Some(before) => before == of(&there),
            None => none_is_newer(project_dir, files, &there),
        };
        if unchanged {
            return Ok(Saved { file: info(&there), unchanged: true });
        }
    }
    let directory = target.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let file =
        tempfile::Builder::new().prefix("archive_").tempfile_in(directory).map_err(failed)?;
    write::write(format, level, project_dir, files, file.as_file())?;
    let metadata = file.as_file().metadata().map_err(failed)?;
    file.persist(target).map_err(|error| failed(error.error))?;
    let fingerprint = Some(format!("{now}-{}", identity(&metadata)));
    // Without it the next job only packs once more than it must.
    let _ = Metadata { cachekey: cache_key.to_owned(), fingerprint }.write(target);
    Ok(Saved { file: info(&metadata), unchanged: false })
}

/// The fingerprint of the archive that is there. Two jobs may leave archives at the same time, and a
/// download may replace one: so a fingerprint says which file it is of.
fn known(target: &Path, there: &FileMetadata) -> Option<String> {
    let fingerprint = Metadata::read(target)?.fingerprint?;
    fingerprint.ends_with(&format!("-{}", identity(there))).then_some(fingerprint)
}

fn identity(file: &FileMetadata) -> String {
    format!("{}.{}.{}.{}", file.ino(), file.size(), file.mtime(), file.mtime_nsec())
}

fn none_is_newer(project_dir: &Path, files: &[PathBuf], archive: &FileMetadata) -> bool {
    let time = |file: &FileMetadata| (file.mtime(), file.mtime_nsec());
    files.iter().all(|path| {
        fs::symlink_metadata(project_dir.join(path)).is_ok_and(|file| time(&file) <= time(archive))
    })
}

fn info(file: &FileMetadata) -> FileInfo {
    FileInfo { size: file.size(), modified: file.mtime() }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::unix::fs::PermissionsExt,
        thread,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::archive::extract::extract;

    struct Place {
        whole: tempfile::TempDir,
        files: Vec<PathBuf>,
    }

    impl Place {
        fn new() -> Self {
            let whole = tempfile::tempdir().unwrap();
            fs::create_dir(whole.path().join("project")).unwrap();
            for name in ["a", "b"] {
                fs::write(whole.path().join("project").join(name), name).unwrap();
            }
            Self { whole, files: vec!["a".into(), "b".into()] }
        }

        fn target(&self) -> PathBuf {
            self.whole.path().join("cache/group/project/key/cache.zip")
        }

        fn touch(&self, name: &str, ago: u64) {
            let file = File::options().append(true).open(self.whole.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(ago)).unwrap();
        }

        fn save(&self, format: Format) -> Saved {
            let project = self.whole.path().join("project");
            save(format, Level::Default, &project, &self.files, &self.target(), "the key").unwrap()
        }
    }

    #[test]
    fn docker_152_the_archive_is_in_private_directories_with_its_key_beside_it() {
        let place = Place::new();
        let saved = place.save(Format::TarZstd);
        assert!(!saved.unchanged);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(place.target().parent().unwrap()), 0o700);
        assert_eq!(saved.file.size, fs::metadata(place.target()).unwrap().len());
        assert_eq!(Metadata::read(&place.target()).unwrap().cachekey, "the key");
        let names: Vec<_> = fs::read_dir(place.target().parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn the_same_files_are_not_packed_again_and_others_are() {
        let mut place = Place::new();
        assert!(!place.save(Format::Zip).unchanged);
        assert!(place.save(Format::Zip).unchanged);
        // What only a fingerprint notices: an older time, a file that is gone, another format.
        place.touch("project/a", 1000);
        assert!(!place.save(Format::Zip).unchanged);
        place.files.pop();
        assert!(!place.save(Format::Zip).unchanged);
        assert!(!place.save(Format::TarZstd).unchanged);
        assert!(place.save(Format::TarZstd).unchanged);
    }

    #[test]
    fn restored_files_are_the_same() {
        let place = Place::new();
        place.save(Format::Zip);
        let project = place.whole.path().join("project");
        fs::remove_file(project.join("a")).unwrap();
        fs::remove_file(project.join("b")).unwrap();
        extract(&place.target(), &project).unwrap();
        assert!(place.save(Format::Zip).unchanged);
    }

    #[test]
    fn of_an_archive_from_elsewhere_only_the_time_counts() {
        let place = Place::new();
        place.save(Format::Zip);
        // A download takes the place of the archive, the metadata stay.
        let other = place.whole.path().join("other");
        fs::write(&other, "from elsewhere").unwrap();
        fs::rename(&other, place.target()).unwrap();
        place.touch("project/a", 100);
        place.touch("project/b", 100);
        assert!(place.save(Format::Zip).unchanged);
        place.touch("cache/group/project/key/cache.zip", 50);
        place.touch("project/b", 10);
        assert!(!place.save(Format::Zip).unchanged);
    }

    #[test]
    fn two_jobs_at_once_leave_a_whole_archive() {
        let places = [Place::new(), Place::new()];
        let target = places[0].target();
        let into = tempfile::tempdir().unwrap();
        for round in 0..10 {
            thread::scope(|scope| {
                for place in &places {
                    let (target, project) = (&target, place.whole.path().join("project"));
                    place.touch("project/a", round);
                    scope.spawn(move || {
                        save(Format::Zip, Level::Fast, &project, &place.files, target, "k").unwrap()
                    });
                }
            });
            assert_eq!(extract(&target, into.path()).unwrap().entries, 2);
        }
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_archive_and_no_rest() {
        let mut place = Place::new();
        place.save(Format::Zip);
        let before = fs::read(place.target()).unwrap();
        place.files.push("gone".into());
        let project = place.whole.path().join("project");
        let error =
            save(Format::TarZstd, Level::Fast, &project, &place.files, &place.target(), "k")
                .unwrap_err();
        assert_eq!(error.to_string(), "cannot read `gone`");
        assert_eq!(fs::read(place.target()).unwrap(), before);
        assert_eq!(fs::read_dir(place.target().parent().unwrap()).unwrap().count(), 2);
    }
}

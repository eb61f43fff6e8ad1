//! A short text that changes when the files of a cache change, and the file beside a cache's archive
//! that keeps it: so nothing is packed when the archive has the same files already.

use std::{
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::write::{Kind, Member};
use crate::base::ids::hex;

/// A hash of the list of `files` with their kinds, sizes, modes, times and link targets. Contents are
/// not read. A file that cannot be looked at counts as one that is not there.
///
/// Times count to the second: that is what a zip keeps, and a restored file must give the same
/// fingerprint as before. Times of directories do not count: a temporary file changes them.
#[must_use]
pub(crate) fn fingerprint(project_dir: &Path, files: &[PathBuf]) -> String {
    let mut hash = Sha256::new();
    for path in files {
        let Ok(Some(member)) = Member::of(project_dir, path) else { continue };
        let (kind, modified, target) = match &member.kind {
            Kind::File => (b'f', member.modified, None),
            Kind::Directory => (b'd', 0, None),
            Kind::Link(target) => (b'l', 0, Some(target)),
        };
        // Paths have no zero bytes, so no two lists run together to the same bytes.
        hash.update(path.as_os_str().as_bytes());
        hash.update([0, kind]);
        hash.update(member.size.to_le_bytes());
        hash.update(member.mode.to_le_bytes());
        hash.update(modified.to_le_bytes());
        hash.update(target.map_or(&[][..], |target| target.as_os_str().as_bytes()));
        hash.update([0]);
    }
    hex(&hash.finalize())
}

/// The file `metadata.json` beside a cache's archive (docs/compatibility.md, "Where caches are kept").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    /// The key as people know it.
    #[serde(default)]
    pub(crate) cachekey: String,
    /// Of the files in the archive; gitlab-runner writes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
}

impl Metadata {
    /// Where it is for the archive `archive`.
    #[must_use]
    pub(crate) fn path(archive: &Path) -> PathBuf {
        archive.with_file_name("metadata.json")
    }

    /// Reads it; `None` when there is none or it is not readable, as it only saves work.
    #[must_use]
    pub(crate) fn read(archive: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(archive)).ok()?).ok()
    }

    /// Writes it whole, mode 0640. Call it once the archive is in place.
    ///
    /// # Errors
    /// When it cannot be written; the archive is good all the same.
    pub(crate) fn write(&self, archive: &Path) -> io::Result<()> {
        use std::{io::Write as _, os::unix::fs::PermissionsExt as _};
        let path = Self::path(archive);
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o640))?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
        time::{Duration, UNIX_EPOCH},
    };

    use super::*;

    #[test]
    fn every_change_that_an_archive_would_show_changes_the_fingerprint() {
        let project = tempfile::tempdir().unwrap();
        let root = project.path();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/a"), "one").unwrap();
        symlink("a", root.join("dir/link")).unwrap();
        let at = |second: u64| {
            let file = File::options().write(true).open(root.join("dir/a")).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_millis(second * 1000 + 7)).unwrap();
        };
        at(1000);
        let all: Vec<PathBuf> = ["dir", "dir/a", "dir/link"].map(PathBuf::from).to_vec();
        let mut seen = vec![fingerprint(root, &all)];
        let mut changes = |what: &str, files: &[PathBuf]| {
            let now = fingerprint(root, files);
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        changes("fewer files", &all[..2]);
        at(1001);
        changes("time", &all);
        fs::set_permissions(root.join("dir/a"), Permissions::from_mode(0o755)).unwrap();
        changes("mode", &all);
        fs::write(root.join("dir/a"), "three").unwrap();
        at(1001);
        changes("size", &all);
        fs::remove_file(root.join("dir/link")).unwrap();
        symlink("b", root.join("dir/link")).unwrap();
        changes("target", &all);
    }

    #[test]
    fn a_temporary_file_in_a_directory_changes_nothing() {
        let project = tempfile::tempdir().unwrap();
        fs::create_dir(project.path().join("dir")).unwrap();
        let files = [PathBuf::from("dir")];
        let before = fingerprint(project.path(), &files);
        let directory = File::open(project.path().join("dir")).unwrap();
        directory.set_modified(UNIX_EPOCH).unwrap();
        assert_eq!(fingerprint(project.path(), &files), before);
    }

    #[test]
    fn metadata_is_kept_beside_the_archive_and_reads_what_gitlab_runner_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("cache.zip");
        assert_eq!(Metadata::read(&archive), None);
        fs::write(directory.path().join("metadata.json"), r#"{"cachekey":"main-1"}"#).unwrap();
        assert_eq!(Metadata::read(&archive).unwrap().cachekey, "main-1");
        let metadata = Metadata { cachekey: "x".into(), fingerprint: Some("f".into()) };
        metadata.write(&archive).unwrap();
        assert_eq!(Metadata::read(&archive), Some(metadata));
        let mode = fs::metadata(directory.path().join("metadata.json")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o640);
    }
}

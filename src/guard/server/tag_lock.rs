//! Locks on tags of images: one guard of this host at a time has a name, whichever process it is in.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{base::ids::hex, guard::image::Reference};

/// A name that is locked until this is dropped.
pub(super) struct TagLock {
    path: PathBuf,
    _file: File,
}

impl TagLock {
    /// Takes the lock of a tag; `None` while another guard has it.
    pub(super) fn try_of(tag: &Reference) -> io::Result<Option<Self>> {
        Self::try_take(&lock_directory()?.join(hex(&Sha256::digest(tag.canonical())[..16])))
    }

    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The last holder may have removed the file meanwhile: then it locks nothing.
        let is_there = std::fs::metadata(path)
            .is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
        Ok(is_there.then(|| Self { path: path.to_owned(), _file: file }))
    }
}

impl Drop for TagLock {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// Where the locks are: closed to other users, and gone with the next boot.
fn lock_directory() -> io::Result<PathBuf> {
    let user = rustix::process::geteuid();
    let directory = if user.is_root() {
        PathBuf::from("/run/longshore/tags")
    } else {
        std::env::temp_dir().join(format!("longshore-tags-{}", user.as_raw()))
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let found = std::fs::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != user.as_raw() || found.mode() & 0o077 != 0 {
        let message = format!("{} is not a directory of its user's alone", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = TagLock::try_take(&path).unwrap();
        assert!(first.is_some() && TagLock::try_take(&path).unwrap().is_none());
        drop(first);
        assert!(!path.exists());
        assert!(TagLock::try_take(&path).unwrap().is_some());
    }
}

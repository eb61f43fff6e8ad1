//! The files that go into an archive, and why one cannot be made.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// Why an archive could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// A file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file, relative to the project directory.
        path: PathBuf,
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Write { source: io::Error },
    /// A compressor failed; it does not depend on the files.
    #[error("cannot compress")]
    Compress { source: io::Error },
    /// A raw artifact is not one file.
    #[error("a raw artifact must be exactly one file, but {count} were found")]
    NotOneFile {
        /// How many regular files there are.
        count: usize,
    },
}

impl ArchiveError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    pub(super) fn write(source: io::Error) -> Self {
        Self::Write { source }
    }
}

/// What a file is, as far as archives go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::archive) enum Kind {
    File,
    Directory,
    Link(PathBuf),
}

/// A file that goes into an archive, as it was when it was looked at.
#[derive(Debug, Clone)]
pub(in crate::archive) struct Member {
    pub(in crate::archive) path: PathBuf,
    pub(in crate::archive) kind: Kind,
    pub(in crate::archive) size: u64,
    /// The permission bits, 07777.
    pub(in crate::archive) mode: u32,
    /// Seconds since 1970.
    pub(in crate::archive) modified: i64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Member {
    /// Looks at `path`; `None` for sockets, devices and fifos.
    pub(in crate::archive) fn of(
        project_dir: &Path,
        path: &Path,
    ) -> Result<Option<Self>, ArchiveError> {
        let whole = project_dir.join(path);
        let metadata = fs::symlink_metadata(&whole).map_err(ArchiveError::read(path))?;
        let kind = if metadata.is_file() {
            Kind::File
        } else if metadata.is_dir() {
            Kind::Directory
        } else if metadata.is_symlink() {
            Kind::Link(fs::read_link(&whole).map_err(ArchiveError::read(path))?)
        } else {
            return Ok(None);
        };
        Ok(Some(Self {
            path: path.to_owned(),
            size: if kind == Kind::File { metadata.len() } else { 0 },
            kind,
            mode: metadata.mode() & 0o7777,
            modified: metadata.mtime(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        }))
    }

    /// Its name in an archive: a directory's ends in a slash.
    pub(super) fn name(&self) -> Vec<u8> {
        let mut name = self.path.as_os_str().as_bytes().to_vec();
        if self.kind == Kind::Directory {
            name.push(b'/');
        }
        name
    }
}

/// Opens a regular file for reading. A link or a fifo that took its place meanwhile is not followed
/// nor waited for.
pub(super) fn open(project_dir: &Path, path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(project_dir.join(path))
}

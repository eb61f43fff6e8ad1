//! Packing: a list of files becomes a zip, concatenated gzip members, one raw file or a tar in zstd
//! (docs/compatibility.md, "Artifact archives").
//!
//! Archives are written as a stream, without seeking, with memory bounded by the number of threads
//! and not by the size of the files; only a zip's directory grows with the number of entries. Which
//! files to pack is decided in [`super::select`].

mod compress;
mod gzip;
pub(super) mod ordered;
mod pack;
mod tar_zstd;
mod zip;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use crate::workload::transfer::{Format, Level};

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
    fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    fn write(source: io::Error) -> Self {
        Self::Write { source }
    }
}

/// Writes an archive of `files`, which are relative to `project_dir`, sorted and unique, to `out`,
/// and gives the number of its entries. Sockets, devices and fifos are left out, and so is
/// everything but regular files with [`Format::Gzip`] and [`Format::Raw`].
pub(crate) fn write(
    format: Format,
    level: Level,
    project_dir: &Path,
    files: &[PathBuf],
    mut out: impl Write,
) -> Result<u64, ArchiveError> {
    let codec = compress::Codec::of(format, level);
    let out = &mut out;
    let entries = match format {
        Format::Zip | Format::ZipZstd => {
            let mut zip = zip::ZipFraming::new(out);
            pack::pack(codec, project_dir, files, pack::Keep::All, &mut zip)?;
            return zip.finish();
        }
        Format::Gzip => {
            let mut gzip = gzip::GzipFraming::new(&mut *out);
            pack::pack(codec, project_dir, files, pack::Keep::RegularFiles, &mut gzip)?
        }
        Format::TarZstd => tar_zstd::write(codec, project_dir, files, out)?,
        Format::Raw => raw(project_dir, files, out)?,
    };
    out.flush().map_err(ArchiveError::write)?;
    Ok(entries)
}

fn raw(project_dir: &Path, files: &[PathBuf], out: &mut impl Write) -> Result<u64, ArchiveError> {
    let mut regular = Vec::new();
    for path in files {
        if matches!(Member::of(project_dir, path)?, Some(Member { kind: Kind::File, .. })) {
            regular.push(path);
        }
    }
    let [path] = regular[..] else {
        return Err(ArchiveError::NotOneFile { count: regular.len() });
    };
    let mut file = open(project_dir, path).map_err(ArchiveError::read(path))?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        let read = io::Read::read(&mut file, &mut buffer).map_err(ArchiveError::read(path))?;
        if read == 0 {
            return Ok(1);
        }
        out.write_all(&buffer[..read]).map_err(ArchiveError::write)?;
    }
}

/// What a file is, as far as archives go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Link(PathBuf),
}

/// A file that goes into an archive, as it was when it was looked at.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) size: u64,
    /// The permission bits, 07777.
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) modified: i64,
    uid: u32,
    gid: u32,
}

impl Member {
    /// Looks at `path`; `None` for sockets, devices and fifos.
    pub(super) fn of(project_dir: &Path, path: &Path) -> Result<Option<Self>, ArchiveError> {
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
    fn name(&self) -> Vec<u8> {
        let mut name = self.path.as_os_str().as_bytes().to_vec();
        if self.kind == Kind::Directory {
            name.push(b'/');
        }
        name
    }
}

/// Opens a regular file for reading. A link or a fifo that took its place meanwhile is not followed
/// nor waited for.
fn open(project_dir: &Path, path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(project_dir.join(path))
}

#[cfg(test)]
mod tests;

//! Packing: a list of files becomes a zip, concatenated gzip members, one raw file or a tar in zstd
//! (docs/compatibility.md, "Artifact archives").
//!
//! Archives are written as a stream, without seeking, with memory bounded by the number of threads
//! and not by the size of the files; only a zip's directory grows with the number of entries. Which
//! files to pack is decided in [`super::select`].

mod compress;
mod gzip;
mod member;
pub(super) mod ordered;
mod pack;
mod tar_zstd;
mod zip;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

pub(crate) use self::member::ArchiveError;
use self::member::open;
pub(super) use self::member::{Kind, Member};
use crate::workload::transfer::{Format, Level};

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

#[cfg(test)]
mod tests;

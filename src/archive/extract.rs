//! Extraction of untrusted archives: nothing is written outside the directory, whatever the entries
//! are called and whatever links there are (docs/compatibility.md, "Archive formats" and "Artifact
//! download").
//!
//! The format is told by the first bytes. A zip's members are extracted on all cores. Links are made
//! after all files, so that no file can go through a link of the same archive; links that were there
//! before are never followed.

mod error;
mod later;
mod tree;
mod unzip;

use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
};

pub(crate) use self::error::{ExtractError, Extracted};
use self::{
    later::{BUFFER, Later, Target},
    tree::{Attributes, EntryPath, Refusal, Tree},
};

/// Extracts `archive` below the directory `into`. Files that are there already are replaced, modes
/// and times are restored, and owners where that is allowed.
pub(crate) fn extract(archive: &Path, into: &Path) -> Result<Extracted, ExtractError> {
    let unreadable = |source| ExtractError::Open { path: archive.display().to_string(), source };
    let mut file = File::open(archive).map_err(unreadable)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    let tree = Tree::open(into)
        .map_err(|source| ExtractError::Into { path: into.display().to_string(), source })?;
    match magic[..] {
        [0x28, 0xb5, 0x2f, 0xfd] => untar(file, tree),
        [0x1f, 0x8b, ..] => Err(ExtractError::Gzip),
        _ => unzip::unzip(file, tree),
    }
}

fn untar(file: File, mut tree: Tree) -> Result<Extracted, ExtractError> {
    let broken = |source| ExtractError::Tar { source };
    let decoder = zstd::Decoder::new(file).map_err(broken)?;
    let mut archive = tar::Archive::new(decoder);
    let mut later = Later::default();
    let mut entries = 0;
    let mut buffer = vec![0; BUFFER];
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path_bytes().into_owned();
        let header = entry.header();
        let attributes = Attributes {
            mode: Some(header.mode().map_err(broken)?),
            modified: i64::try_from(header.mtime().map_err(broken)?).ok(),
            owner: match (header.uid(), header.gid()) {
                (Ok(uid), Ok(gid)) => u32::try_from(uid).ok().zip(u32::try_from(gid).ok()),
                _ => None,
            },
        };
        let kind = header.entry_type();
        let Some(path) = EntryPath::parse(&name).map_err(ExtractError::entry(&name))? else {
            continue;
        };
        if kind.is_dir() {
            tree.make_directory(&path).map_err(ExtractError::entry(&name))?;
            later.directories.push((path, name, attributes));
        } else if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            tree.make_file(&path, &mut entry, &mut buffer, attributes)
                .map_err(ExtractError::entry(&name))?;
        } else if kind.is_symlink() {
            let target = Target::Symbolic(entry.link_name_bytes().unwrap_or_default().into_owned());
            later.links.push((path, name, target, attributes));
        } else if kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let Ok(Some(target)) = EntryPath::parse(&target) else {
                let how = Refusal::Escapes("it is a hard link to something outside");
                return Err(ExtractError::entry(&name)(how));
            };
            later.links.push((path, name, Target::Hard(target), attributes));
        } else {
            continue;
        }
        entries += 1;
    }
    later.run(&mut tree)?;
    Ok(Extracted { entries })
}

#[cfg(test)]
mod tests;

//! A tar in zstd frames that are compressed on all cores.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use super::{
    compress::{Codec, Compressor},
    member::{ArchiveError, Kind, Member, open},
    ordered::{Feeder, ordered, threads},
};

/// Writes the archive and gives the number of its entries.
pub(super) fn write(
    codec: Codec,
    project_dir: &Path,
    files: &[PathBuf],
    out: &mut impl Write,
) -> Result<u64, ArchiveError> {
    let work = |compressor: &mut Option<Compressor>, block: Vec<u8>| {
        let compressor = match compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(codec, true)?),
        };
        compressor.part(&[], &block, true)
    };
    ordered(
        threads(),
        || None,
        work,
        |feeder| {
            let blocks = Blocks { feeder, out, block: Vec::new(), size: codec.part() };
            let mut tar = tar::Builder::new(blocks);
            let mut entries = 0;
            for path in files {
                let Some(member) = Member::of(project_dir, path)? else { continue };
                append(&mut tar, project_dir, &member)?;
                entries += 1;
            }
            let blocks = tar.into_inner().map_err(ArchiveError::write)?;
            blocks.finish().map_err(ArchiveError::write)?;
            Ok(entries)
        },
    )
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    project_dir: &Path,
    member: &Member,
) -> Result<(), ArchiveError> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(member.mode);
    header.set_mtime(u64::try_from(member.modified).unwrap_or(0));
    header.set_uid(member.uid.into());
    header.set_gid(member.gid.into());
    header.set_size(member.size);
    match &member.kind {
        Kind::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, member.path.join(""), io::empty())
        }
        Kind::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, &member.path, target)
        }
        Kind::File => {
            header.set_entry_type(tar::EntryType::Regular);
            let file = open(project_dir, &member.path).map_err(ArchiveError::read(&member.path))?;
            // The size is in the header already: a file that changes is cut or filled with zeros,
            // as tar does it.
            let content = file.chain(io::repeat(0)).take(member.size);
            tar.append_data(&mut header, &member.path, content)
        }
    }
    .map_err(ArchiveError::write)
}

/// Cuts what is written into blocks, which become frames in order.
struct Blocks<'a, W> {
    feeder: Feeder<Vec<u8>, io::Result<Vec<u8>>>,
    out: &'a mut W,
    block: Vec<u8>,
    size: usize,
}

impl<W: Write> Blocks<'_, W> {
    fn finish(mut self) -> io::Result<()> {
        self.push()?;
        while let Some(frame) = self.feeder.next_result() {
            self.out.write_all(&frame?)?;
        }
        Ok(())
    }

    fn push(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(self.size));
        if !block.is_empty()
            && let Some(frame) = self.feeder.push(block)
        {
            self.out.write_all(&frame?)?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Blocks<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.size - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == self.size {
            self.push()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

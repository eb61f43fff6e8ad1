//! Members compressed on all cores and written in order, for archives whose members are compressed
//! one by one.
//!
//! Small files travel in batches, large ones in parts, so that neither many files nor one large one
//! leaves a core idle. What is waiting is bounded by the window of [`ordered`].

use std::{
    fs::File,
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::Crc;

use super::{
    compress::{Codec, Compressor, DICTIONARY, Whole, store},
    member::{ArchiveError, Kind, Member, open},
    ordered::{Feeder, ordered, threads},
};

/// How a kind of archive puts its members. Sizes and checksums are of the uncompressed bytes.
pub(super) trait Framing {
    /// A member whose data is all there.
    fn whole(&mut self, member: &Member, packed: Packed) -> Result<(), ArchiveError>;
    /// A member begins whose data follows in parts.
    fn begin(&mut self, member: &Member, codec: Codec) -> Result<(), ArchiveError>;
    /// A part of it.
    fn part(&mut self, data: &[u8]) -> Result<(), ArchiveError>;
    /// Its end.
    fn end(&mut self, member: &Member, crc: u32, size: u64) -> Result<(), ArchiveError>;
    /// Whether stored data can be a member as it is, or must be a deflate stream.
    const CAN_STORE: bool;
}

/// Which files are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    All,
    RegularFiles,
}

/// A whole member's data.
pub(super) struct Packed {
    /// `None` when the data is as it is.
    pub(super) codec: Option<Codec>,
    pub(super) crc: u32,
    pub(super) size: u64,
    pub(super) data: Vec<u8>,
}

/// A batch ends with so many files,
const BATCH_FILES: usize = 64;
/// or so many bytes.
const BATCH_BYTES: u64 = 512 << 10;

enum Unit {
    Batch(Vec<Member>),
    Part { of: Arc<Large>, offset: u64 },
}

struct Large {
    member: Member,
    file: File,
}

enum Piece {
    Batch(Vec<(Member, Packed)>),
    Part { of: Arc<Large>, offset: u64, last: bool, data: Vec<u8>, crc: Crc, size: u64 },
}

/// Packs `files` and gives the number of members.
pub(super) fn pack<F: Framing>(
    codec: Codec,
    project_dir: &Path,
    files: &[PathBuf],
    keep: Keep,
    framing: &mut F,
) -> Result<u64, ArchiveError> {
    let part = codec.part() as u64;
    let work = |worker: &mut Option<Worker>, unit: Unit| {
        let worker = match worker {
            Some(worker) => worker,
            none => none.insert(Worker::new(codec)?),
        };
        worker.run(project_dir, unit, F::CAN_STORE)
    };
    ordered(
        threads(),
        || None,
        work,
        |feeder| {
            let mut line = Line { feeder, framing, codec, crc: Crc::new(), size: 0 };
            let mut batch = Vec::new();
            let mut batch_bytes = 0;
            let mut entries = 0;
            for path in files {
                let Some(member) = Member::of(project_dir, path)? else { continue };
                if keep == Keep::RegularFiles && member.kind != Kind::File {
                    continue;
                }
                entries += 1;
                if member.size <= part {
                    batch_bytes += member.size;
                    batch.push(member);
                    if batch.len() == BATCH_FILES || batch_bytes >= BATCH_BYTES {
                        line.push(Unit::Batch(std::mem::take(&mut batch)))?;
                        batch_bytes = 0;
                    }
                    continue;
                }
                line.push(Unit::Batch(std::mem::take(&mut batch)))?;
                batch_bytes = 0;
                let file = open(project_dir, path).map_err(ArchiveError::read(path))?;
                let size = member.size;
                let large = Arc::new(Large { member, file });
                let mut offset = 0;
                while offset < size {
                    line.push(Unit::Part { of: Arc::clone(&large), offset })?;
                    offset += part;
                }
            }
            line.push(Unit::Batch(batch))?;
            line.drain()?;
            Ok(entries)
        },
    )
}

/// The one place where results become the archive, in order.
struct Line<'a, F> {
    feeder: Feeder<Unit, Result<Piece, ArchiveError>>,
    framing: &'a mut F,
    codec: Codec,
    crc: Crc,
    size: u64,
}

impl<F: Framing> Line<'_, F> {
    fn push(&mut self, unit: Unit) -> Result<(), ArchiveError> {
        if matches!(&unit, Unit::Batch(members) if members.is_empty()) {
            return Ok(());
        }
        self.feeder.push(unit).map_or(Ok(()), |result| self.put(result?))
    }

    fn drain(&mut self) -> Result<(), ArchiveError> {
        while let Some(result) = self.feeder.next_result() {
            self.put(result?)?;
        }
        Ok(())
    }

    fn put(&mut self, result: Piece) -> Result<(), ArchiveError> {
        match result {
            Piece::Batch(members) => members
                .into_iter()
                .try_for_each(|(member, packed)| self.framing.whole(&member, packed)),
            Piece::Part { of, offset, last, data, crc, size } => {
                if offset == 0 {
                    self.crc = Crc::new();
                    self.size = 0;
                    self.framing.begin(&of.member, self.codec)?;
                }
                self.framing.part(&data)?;
                self.size += size;
                self.crc.combine(&crc);
                if last {
                    let crc = std::mem::take(&mut self.crc).sum();
                    self.framing.end(&of.member, crc, self.size)?;
                }
                Ok(())
            }
        }
    }
}

/// What one thread needs.
struct Worker {
    compressor: Compressor,
    part: usize,
    input: Vec<u8>,
}

impl Worker {
    fn new(codec: Codec) -> Result<Self, ArchiveError> {
        let compressor =
            Compressor::new(codec, false).map_err(|source| ArchiveError::Compress { source })?;
        Ok(Self { compressor, part: codec.part(), input: Vec::new() })
    }

    fn run(
        &mut self,
        project_dir: &Path,
        unit: Unit,
        can_store: bool,
    ) -> Result<Piece, ArchiveError> {
        match unit {
            Unit::Batch(members) => members
                .into_iter()
                .map(|member| {
                    let packed = self.whole(project_dir, &member, can_store)?;
                    Ok((member, packed))
                })
                .collect::<Result<_, _>>()
                .map(Piece::Batch),
            Unit::Part { of, offset } => self.part(of, offset),
        }
    }

    fn whole(
        &mut self,
        project_dir: &Path,
        member: &Member,
        can_store: bool,
    ) -> Result<Packed, ArchiveError> {
        self.input.clear();
        match &member.kind {
            Kind::Directory => {}
            Kind::Link(target) => {
                let data = target.as_os_str().as_bytes().to_vec();
                let (crc, size) = (crc32(&data), data.len() as u64);
                return Ok(Packed { codec: None, crc, size, data });
            }
            Kind::File => {
                // A file that grows while it is packed is cut where it ended before.
                open(project_dir, &member.path)
                    .and_then(|file| file.take(member.size).read_to_end(&mut self.input))
                    .map_err(ArchiveError::read(&member.path))?;
            }
        }
        let crc = crc32(&self.input);
        let size = self.input.len() as u64;
        let compress = |source| ArchiveError::Compress { source };
        let (codec, data) = match self.compressor.whole(&self.input).map_err(compress)? {
            Whole::Compressed(data) => (Some(self.compressor.codec()), data),
            Whole::Stored if can_store => (None, self.input.clone()),
            Whole::Stored => {
                let mut data = Vec::new();
                store(&self.input, true, &mut data);
                (Some(self.compressor.codec()), data)
            }
        };
        Ok(Packed { codec, crc, size, data })
    }

    fn part(&mut self, of: Arc<Large>, offset: u64) -> Result<Piece, ArchiveError> {
        let before = DICTIONARY.min(usize::try_from(offset).unwrap_or(usize::MAX));
        let from = offset - before as u64;
        let length = (self.part as u64).min(of.member.size - offset);
        let last = offset + length == of.member.size;
        let wanted = before + usize::try_from(length).unwrap_or(usize::MAX);
        self.input.resize(wanted, 0);
        let read = read_at(&of.file, &mut self.input, from)
            .map_err(ArchiveError::read(&of.member.path))?;
        // A file that shrinks while it is packed just ends early.
        let (before, data) = self.input[..read].split_at(before.min(read));
        let mut crc = Crc::new();
        crc.update(data);
        let size = data.len() as u64;
        let data = self
            .compressor
            .part(before, data, last)
            .map_err(|source| ArchiveError::Compress { source })?;
        Ok(Piece::Part { of, offset, last, data, crc, size })
    }
}

pub(super) fn crc32(data: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(data);
    crc.sum()
}

/// Fills `buffer` from `offset` on as far as the file goes.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

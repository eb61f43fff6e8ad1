//! Zip archives, on all cores.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use zip::{ZipArchive, read::ZipFile};

use super::{
    error::{ExtractError, Extracted},
    later::{BUFFER, Later, Target},
    tree::{Attributes, EntryPath, Refusal, Tree},
};
use crate::archive::write::ordered::threads;

/// A link's target is a path; Linux has none longer.
const LONGEST_TARGET: u64 = 4096;

/// A reader with a position of its own, so that threads share one file.
#[derive(Clone)]
struct Shared {
    file: Arc<File>,
    position: u64,
    length: u64,
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Shared {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

pub(super) fn unzip(file: File, mut tree: Tree) -> Result<Extracted, ExtractError> {
    let broken = |source| ExtractError::Zip { source };
    let length = file.metadata().map_err(|source| broken(source.into()))?.len();
    let reader = Shared { file: Arc::new(file), position: 0, length };
    let mut archive = ZipArchive::new(reader).map_err(broken)?;

    let mut later = Later::default();
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(broken)?;
        let name = member.name_raw().to_vec();
        let Some(path) = EntryPath::parse(&name).map_err(ExtractError::entry(&name))? else {
            continue;
        };
        let attributes = attributes(&member);
        let kind = member.unix_mode().unwrap_or(0) & 0o170_000;
        if name.ends_with(b"/") || kind == 0o040_000 {
            tree.make_directory(&path).map_err(ExtractError::entry(&name))?;
            later.directories.push((path, name, attributes));
        } else if kind == 0o120_000 {
            drop(member);
            let mut target = Vec::new();
            archive
                .by_index(index)
                .map_err(io::Error::other)
                .and_then(|member| member.take(LONGEST_TARGET).read_to_end(&mut target))
                .map_err(|error| ExtractError::entry(&name)(Refusal::Io(error)))?;
            later.links.push((path, name, Target::Symbolic(target), attributes));
        } else {
            files.push((index, path, name, attributes));
        }
    }
    let entries = files.len() + later.directories.len() + later.links.len();
    extract_files(&archive, &tree, &files)?;
    later.run(&mut tree)?;
    Ok(Extracted { entries: entries as u64 })
}

type Entry = (usize, EntryPath, Vec<u8>, Attributes);

/// Each thread takes a few neighbours at a time: they mostly share their directory.
const NEIGHBOURS: usize = 8;

fn extract_files(
    archive: &ZipArchive<Shared>,
    tree: &Tree,
    files: &[Entry],
) -> Result<(), ExtractError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        let (mut archive, mut tree) = (archive.clone(), tree.clone());
        let mut buffer = vec![0; BUFFER];
        while !failed.load(Ordering::Relaxed) {
            let start = next.fetch_add(NEIGHBOURS, Ordering::Relaxed);
            if start >= files.len() {
                break;
            }
            for (index, path, name, attributes) in
                &files[start..files.len().min(start + NEIGHBOURS)]
            {
                let made = archive
                    .by_index(*index)
                    .map_err(|error| Refusal::Io(io::Error::other(error)))
                    .and_then(|mut member| {
                        tree.make_file(path, &mut member, &mut buffer, *attributes)
                    });
                if let Err(refusal) = made {
                    failed.store(true, Ordering::Relaxed);
                    return Err(ExtractError::entry(name)(refusal));
                }
            }
        }
        Ok(())
    };
    let threads = threads().min(files.len().div_ceil(NEIGHBOURS));
    if threads <= 1 {
        return work();
    }
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().try_for_each(|handle| {
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn attributes(member: &ZipFile<'_, Shared>) -> Attributes {
    let extra = Extra::of(&member.extra_data().unwrap_or_default());
    Attributes {
        // No Unix wrote it when there is no mode.
        mode: unix_mode(member).filter(|mode| *mode != 0).map(|mode| mode & 0o7777),
        modified: extra.modified.or_else(|| dos_time(member.last_modified()?)),
        owner: extra.owner,
    }
}

/// The mode with its set-id bits, which the crate's own clears.
fn unix_mode(member: &ZipFile<'_, Shared>) -> Option<u32> {
    match member.system() {
        zip::System::Unix => Some(member.external_attributes() >> 16),
        _ => member.unix_mode(),
    }
}

/// What Info-ZIP's extra fields say.
#[derive(Default)]
struct Extra {
    modified: Option<i64>,
    owner: Option<(u32, u32)>,
}

impl Extra {
    fn of(mut bytes: &[u8]) -> Self {
        let mut extra = Self::default();
        while let [a, b, low, high, rest @ ..] = bytes {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let Some((data, rest)) = rest.split_at_checked(length) else { break };
            bytes = rest;
            match (&[*a, *b], data) {
                // Extended timestamp: flags, then the modification time when bit 0 is set.
                (b"UT", [flags, w, x, y, z, ..]) if flags & 1 != 0 => {
                    extra.modified = Some(i32::from_le_bytes([*w, *x, *y, *z]).into());
                }
                (b"ux", [1, rest @ ..]) => extra.owner = owner(rest),
                _ => {}
            }
        }
        extra
    }
}

/// uid and gid, each with its length before it.
fn owner(bytes: &[u8]) -> Option<(u32, u32)> {
    let number = |bytes: &[u8]| match *bytes {
        [4, a, b, c, d, ..] => Some((u32::from_le_bytes([a, b, c, d]), 5)),
        [2, a, b, ..] => Some((u16::from_le_bytes([a, b]).into(), 3)),
        _ => None,
    };
    let (uid, length) = number(bytes)?;
    let (gid, _) = number(&bytes[length..])?;
    Some((uid, gid))
}

/// DOS times have no zone; UTC is what archives from Unix without better times mean.
fn dos_time(time: zip::DateTime) -> Option<i64> {
    let number = |number: u8| i8::try_from(number).ok();
    let time = jiff::civil::DateTime::new(
        i16::try_from(time.year()).ok()?,
        number(time.month())?,
        number(time.day())?,
        number(time.hour())?,
        number(time.minute())?,
        number(time.second())?,
        0,
    );
    Some(time.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

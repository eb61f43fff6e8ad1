//! The zip format, as a stream: local headers with sizes where they are known before the data, data
//! descriptors where not, zip64 where needed (PKWARE APPNOTE.TXT 6.3.10; Info-ZIP's `extrafld.txt`
//! for times and owners).

use std::io::Write;

use super::{
    compress::Codec,
    member::{ArchiveError, Kind, Member},
    pack::{Framing, Packed},
};

const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const ZSTD: u16 = 93;

/// The name is UTF-8.
const UTF8: u16 = 1 << 11;
/// Sizes and checksum follow the data.
const DESCRIPTOR: u16 = 1 << 3;

/// From here on a member whose packed size is not known is written as zip64: its packed size may
/// exceed its own a little.
const LARGE: u64 = 0xF000_0000;
const MAX_32: u64 = 0xFFFF_FFFF;
const MAX_16: u64 = 0xFFFF;

/// Writes a zip.
pub(super) struct ZipFraming<W> {
    out: W,
    offset: u64,
    directory: Vec<u8>,
    entries: u64,
    open: Option<Open>,
}

/// The member whose parts are being written.
struct Open {
    record: Record,
    packed: u64,
}

/// What local header and directory say of a member.
struct Record {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    offset: u64,
    crc: u32,
    packed: u64,
    size: u64,
    zip64: bool,
}

impl<W: Write> ZipFraming<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, offset: 0, directory: Vec::new(), entries: 0, open: None }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.offset += bytes.len() as u64;
        self.out.write_all(bytes).map_err(ArchiveError::write)
    }

    /// Writes the directory and gives the number of entries.
    pub(super) fn finish(mut self) -> Result<u64, ArchiveError> {
        let start = self.offset;
        let directory = std::mem::take(&mut self.directory);
        self.write(&directory)?;
        let (entries, size) = (self.entries, directory.len() as u64);
        let mut end = Vec::new();
        if entries >= MAX_16 || size >= MAX_32 || start >= MAX_32 {
            let at = self.offset;
            end.extend(0x0606_4b50_u32.to_le_bytes());
            end.extend(44_u64.to_le_bytes());
            end.extend([45, 3, 45, 0]);
            end.extend([0; 8]);
            for number in [entries, entries, size, start] {
                end.extend(number.to_le_bytes());
            }
            end.extend(0x0706_4b50_u32.to_le_bytes());
            end.extend([0; 4]);
            end.extend(at.to_le_bytes());
            end.extend(1_u32.to_le_bytes());
        }
        end.extend(0x0605_4b50_u32.to_le_bytes());
        end.extend([0; 4]);
        end.extend(low_16(entries).to_le_bytes());
        end.extend(low_16(entries).to_le_bytes());
        end.extend(low_32(size).to_le_bytes());
        end.extend(low_32(start).to_le_bytes());
        end.extend([0; 2]);
        self.write(&end)?;
        self.out.flush().map_err(ArchiveError::write)?;
        Ok(entries)
    }

    fn local(&mut self, member: &Member, record: &Record) -> Result<(), ArchiveError> {
        let mut extra = Vec::new();
        let (mut packed, mut size) = (low_32(record.packed), low_32(record.size));
        if record.zip64 {
            extra.extend([1, 0, 16, 0]);
            extra.extend(record.size.to_le_bytes());
            extra.extend(record.packed.to_le_bytes());
            (packed, size) = (u32::MAX, u32::MAX);
        }
        times_and_owners(member, &mut extra);
        let mut header = Vec::with_capacity(30 + record.name.len() + extra.len());
        header.extend(0x0403_4b50_u32.to_le_bytes());
        header.extend(version(record).to_le_bytes());
        header.extend(record.flags.to_le_bytes());
        header.extend(record.method.to_le_bytes());
        header.extend(dos_time(member.modified).to_le_bytes());
        header.extend(record.crc.to_le_bytes());
        header.extend(packed.to_le_bytes());
        header.extend(size.to_le_bytes());
        header.extend(name_length(&record.name).to_le_bytes());
        header.extend(name_length(&extra).to_le_bytes());
        header.extend(&record.name);
        header.extend(&extra);
        self.write(&header)
    }

    fn enter(&mut self, member: &Member, record: &Record) {
        let mut zip64 = Vec::new();
        for number in [record.size, record.packed, record.offset] {
            if number >= MAX_32 {
                zip64.extend(number.to_le_bytes());
            }
        }
        let mut extra = Vec::new();
        if !zip64.is_empty() {
            extra.extend([1, 0]);
            extra.extend(name_length(&zip64).to_le_bytes());
            extra.extend(&zip64);
        }
        times_and_owners(member, &mut extra);
        let (kind, dos) = match member.kind {
            Kind::File => (0o100_000, 0),
            Kind::Directory => (0o040_000, 0x10),
            Kind::Link(_) => (0o120_000, 0),
        };
        let out = &mut self.directory;
        out.extend(0x0201_4b50_u32.to_le_bytes());
        // Made by version 4.5 on Unix: that is what gives the mode its meaning.
        out.extend([45, 3]);
        out.extend(version(record).to_le_bytes());
        out.extend(record.flags.to_le_bytes());
        out.extend(record.method.to_le_bytes());
        out.extend(dos_time(member.modified).to_le_bytes());
        out.extend(record.crc.to_le_bytes());
        out.extend(low_32(record.packed).to_le_bytes());
        out.extend(low_32(record.size).to_le_bytes());
        out.extend(name_length(&record.name).to_le_bytes());
        out.extend(name_length(&extra).to_le_bytes());
        out.extend([0; 6]);
        out.extend((((kind | member.mode) << 16) | dos).to_le_bytes());
        out.extend(low_32(record.offset).to_le_bytes());
        out.extend(&record.name);
        out.extend(&extra);
        self.entries += 1;
    }

    fn record(&self, member: &Member, codec: Option<Codec>) -> Record {
        let name = member.name();
        Record {
            flags: if std::str::from_utf8(&name).is_ok() { UTF8 } else { 0 },
            name,
            method: match codec {
                None => STORED,
                Some(Codec::Deflate(_)) => DEFLATED,
                Some(Codec::Zstd(_)) => ZSTD,
            },
            offset: self.offset,
            crc: 0,
            packed: 0,
            size: 0,
            zip64: false,
        }
    }
}

impl<W: Write> Framing for ZipFraming<W> {
    const CAN_STORE: bool = true;

    fn whole(&mut self, member: &Member, packed: Packed) -> Result<(), ArchiveError> {
        let mut record = self.record(member, packed.codec);
        record.crc = packed.crc;
        record.size = packed.size;
        record.packed = packed.data.len() as u64;
        self.local(member, &record)?;
        self.write(&packed.data)?;
        self.enter(member, &record);
        Ok(())
    }

    fn begin(&mut self, member: &Member, codec: Codec) -> Result<(), ArchiveError> {
        let mut record = self.record(member, Some(codec));
        record.flags |= DESCRIPTOR;
        record.zip64 = member.size >= LARGE;
        self.local(member, &record)?;
        self.open = Some(Open { record, packed: 0 });
        Ok(())
    }

    fn part(&mut self, data: &[u8]) -> Result<(), ArchiveError> {
        if let Some(open) = &mut self.open {
            open.packed += data.len() as u64;
        }
        self.write(data)
    }

    fn end(&mut self, member: &Member, crc: u32, size: u64) -> Result<(), ArchiveError> {
        let Some(Open { mut record, packed }) = self.open.take() else { return Ok(()) };
        (record.crc, record.size, record.packed) = (crc, size, packed);
        let mut descriptor = 0x0807_4b50_u32.to_le_bytes().to_vec();
        descriptor.extend(crc.to_le_bytes());
        if record.zip64 {
            descriptor.extend(packed.to_le_bytes());
            descriptor.extend(size.to_le_bytes());
        } else {
            descriptor.extend(low_32(packed).to_le_bytes());
            descriptor.extend(low_32(size).to_le_bytes());
        }
        self.write(&descriptor)?;
        self.enter(member, &record);
        Ok(())
    }
}

/// The version that is needed to extract a member.
fn version(record: &Record) -> u16 {
    if record.method == ZSTD {
        63
    } else if record.zip64 || record.offset >= MAX_32 {
        45
    } else {
        20
    }
}

/// `number`, or the mark that says that zip64 has it.
fn low_32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn low_16(number: u64) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Linux's paths are at most 4096 bytes long.
fn name_length(bytes: &[u8]) -> u16 {
    low_16(bytes.len() as u64)
}

/// The extended timestamp (UTC, to the second), which DOS times are too coarse for, and uid and gid.
fn times_and_owners(member: &Member, extra: &mut Vec<u8>) {
    if let Ok(seconds) = i32::try_from(member.modified) {
        extra.extend(*b"UT");
        extra.extend([5, 0, 1]);
        extra.extend(seconds.to_le_bytes());
    }
    extra.extend(*b"ux");
    extra.extend([11, 0, 1, 4]);
    extra.extend(member.uid.to_le_bytes());
    extra.push(4);
    extra.extend(member.gid.to_le_bytes());
}

/// Date and time in DOS's form, in UTC: time in the lower half, date in the upper.
fn dos_time(seconds: i64) -> u32 {
    const FIRST: u32 = (1 << 21) | (1 << 16);
    let Ok(time) = jiff::Timestamp::from_second(seconds) else { return FIRST };
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    let part = |number: i8| u32::from(number.cast_unsigned());
    match u32::try_from(i32::from(time.year()) - 1980) {
        Ok(year @ 0..=127) => {
            (year << 25)
                | (part(time.month()) << 21)
                | (part(time.day()) << 16)
                | (part(time.hour()) << 11)
                | (part(time.minute()) << 5)
                | (part(time.second()) / 2)
        }
        _ => FIRST,
    }
}

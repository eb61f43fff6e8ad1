//! Concatenated gzip members, one for each file (RFC 1952).

use std::{fmt::Write as _, io::Write, os::unix::ffi::OsStrExt};

use super::{
    compress::Codec,
    member::{ArchiveError, Member},
    pack::{Framing, Packed},
};

/// Writes gzip members.
pub(super) struct GzipFraming<W> {
    out: W,
}

impl<W: Write> GzipFraming<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.out.write_all(bytes).map_err(ArchiveError::write)
    }
}

impl<W: Write> Framing for GzipFraming<W> {
    const CAN_STORE: bool = false;

    fn whole(&mut self, member: &Member, packed: Packed) -> Result<(), ArchiveError> {
        self.begin(member, Codec::Deflate(0))?;
        self.part(&packed.data)?;
        self.end(member, packed.crc, packed.size)
    }

    fn begin(&mut self, member: &Member, _: Codec) -> Result<(), ArchiveError> {
        // Deflate; name and comment present; no extra flags; Unix.
        let mut header = vec![0x1f, 0x8b, 8, 0b1_1000];
        header.extend(u32::try_from(member.modified).unwrap_or(0).to_le_bytes());
        header.extend([0, 3]);
        let base = member.path.file_name().unwrap_or_default();
        for text in [base.as_bytes(), member.path.as_os_str().as_bytes()] {
            header.extend(text_of(text).into_bytes());
            header.push(0);
        }
        self.write(&header)
    }

    fn part(&mut self, data: &[u8]) -> Result<(), ArchiveError> {
        self.write(data)
    }

    fn end(&mut self, _: &Member, crc: u32, size: u64) -> Result<(), ArchiveError> {
        let mut trailer = crc.to_le_bytes().to_vec();
        // The size modulo 2^32 (RFC 1952, 2.3.1).
        trailer.extend(&size.to_le_bytes()[..4]);
        self.write(&trailer)
    }
}

/// A name as a gzip header can hold it: printable ASCII, else escaped with a mark
/// (docs/compatibility.md, "Artifact archives").
fn text_of(bytes: &[u8]) -> String {
    if let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii()) {
        return text.to_owned();
    }
    let mut text = "e:".to_owned();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_ascii_are_escaped() {
        assert_eq!(text_of(b"reports/junit.xml"), "reports/junit.xml");
        assert_eq!(text_of("bücher/a b".as_bytes()), "e:b%C3%BCcher/a%20b");
    }
}

//! Begins every line of a stream with the time, the stream and whether the line goes on
//! (`FF_TIMESTAMPS`; GitLab Runner: `timestamper`).
//!
//! A line that is not finished waits for its end, but for no more than [`LONGEST`] bytes and not if
//! it has a carriage return: then it is written with a newline of our own, and what follows is
//! marked `+`. A reader that removes the newline before each `+` has the stream as it was.

use std::time::{SystemTime, UNIX_EPOCH};

use super::source::{Source, Stream};

/// Bytes of a header: time, space, two hex digits, `O` or `E`, space or `+`.
const HEADER: usize = 32;
/// How much of an unfinished line is kept, its header included.
const LONGEST: usize = 8192;
/// Where the header says whether a line goes on.
const MARK: usize = HEADER - 1;
pub(super) struct Stamp {
    /// Header of the next line; its time is of `second` and the last write.
    header: [u8; HEADER],
    /// The second that `header` shows, since 1970.
    second: u64,
    /// An unfinished line, with its header.
    line: Vec<u8>,
}

impl Stamp {
    pub(super) fn new(source: Source, stream: Stream) -> Self {
        let mut header = *b"1970-01-01T00:00:00.000000Z 00O ";
        header[28..30].copy_from_slice(source.hex());
        if stream == Stream::Err {
            header[30] = b'E';
        }
        Self { header, second: 0, line: Vec::new() }
    }

    /// Takes `text`, written at `now`; complete lines go to `out`.
    pub(super) fn write(&mut self, now: SystemTime, mut text: &[u8], out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        self.set(now);
        while let Some(end) = memchr::memchr(b'\n', text) {
            let (line, rest) = text.split_at(end + 1);
            self.begin(out);
            out.extend_from_slice(line);
            self.header[MARK] = b' ';
            text = rest;
        }
        if text.is_empty() {
            return;
        }
        let kept = if self.line.is_empty() { HEADER } else { self.line.len() };
        if kept + text.len() > LONGEST || memchr::memchr(b'\r', text).is_some() {
            self.begin(out);
            out.extend_from_slice(text);
            out.push(b'\n');
            self.header[MARK] = b'+';
        } else {
            if self.line.is_empty() {
                self.line.extend_from_slice(&self.header);
            }
            self.line.extend_from_slice(text);
        }
    }

    /// Writes an unfinished line.
    pub(super) fn flush(&mut self, out: &mut Vec<u8>) {
        if !self.line.is_empty() {
            out.append(&mut self.line);
            out.push(b'\n');
            self.header[MARK] = b' ';
        }
    }

    /// Begins a line in `out`, with what was kept of it.
    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.line.is_empty() {
            out.extend_from_slice(&self.header);
        } else {
            out.append(&mut self.line);
        }
    }

    /// Sets the header's time.
    fn set(&mut self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            let second = i64::try_from(self.second).unwrap_or(0);
            let time = jiff::Timestamp::from_second(second).unwrap_or_default();
            let time = jiff::tz::Offset::UTC.to_datetime(time);
            for (at, width, value) in [
                (0, 4, time.year().unsigned_abs().into()),
                (5, 2, time.month().unsigned_abs().into()),
                (8, 2, time.day().unsigned_abs().into()),
                (11, 2, time.hour().unsigned_abs().into()),
                (14, 2, time.minute().unsigned_abs().into()),
                (17, 2, time.second().unsigned_abs().into()),
            ] {
                digits(&mut self.header[at..at + width], value);
            }
        }
        digits(&mut self.header[20..26], since.subsec_micros());
    }
}

/// Writes `value` with as many digits as there is room.
fn digits(room: &mut [u8], mut value: u32) {
    for digit in room.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// 2026-03-01T12:00:00Z.
    const NOON: u64 = 1_772_366_400;

    fn at(micros: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOON) + Duration::from_micros(micros)
    }

    fn stamped<'a>(writes: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let (mut stamp, mut out) = (Stamp::new(Source::Job, Stream::Out), Vec::new());
        for (n, write) in writes.into_iter().enumerate() {
            stamp.write(at(n as u64), write, &mut out);
        }
        stamp.flush(&mut out);
        out
    }

    fn text<'a>(writes: impl IntoIterator<Item = &'a str>) -> String {
        String::from_utf8(stamped(writes.into_iter().map(str::as_bytes))).unwrap()
    }

    #[test]
    fn docker_188_a_header_has_time_stream_and_mark() {
        let mut out = Vec::new();
        let mut stamp = Stamp::new(Source::Service, Stream::Err);
        stamp.write(at(7_123_456), b"x\n", &mut out);
        stamp.write(at(86_400_000_000 - 1), b"10%\r", &mut out);
        stamp.write(at(86_400_000_000 * 306), b"100%\n", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-03-01T12:00:07.123456Z 0fE x\n\
             2026-03-02T11:59:59.999999Z 0fE 10%\r\n\
             2027-01-01T12:00:00.000000Z 0fE+100%\n"
        );
    }

    #[test]
    fn api_79_docker_189_a_carriage_return_ends_an_entry() {
        assert_eq!(
            text(["a\r", "b\n"]),
            "2026-03-01T12:00:00.000000Z 01O a\r\n2026-03-01T12:00:00.000001Z 01O+b\n"
        );
        assert_eq!(
            text(["a\r\nx\ry", "\n"]),
            "2026-03-01T12:00:00.000000Z 01O a\r\n\
             2026-03-01T12:00:00.000000Z 01O x\ry\n\
             2026-03-01T12:00:00.000001Z 01O+\n"
        );
    }

    #[test]
    fn api_80_a_long_line_is_written_in_parts() {
        let long = "y".repeat(9000);
        assert_eq!(
            text([&long[..], "x\n"]),
            format!("2026-03-01T12:00:00.000000Z 01O {long}\n2026-03-01T12:00:00.000001Z 01O+x\n")
        );
        let fits = "y".repeat(LONGEST - HEADER);
        assert_eq!(
            text([&fits[..], "z", "x\n"]),
            format!("2026-03-01T12:00:00.000000Z 01O {fits}z\n2026-03-01T12:00:00.000002Z 01O+x\n")
        );
    }

    #[test]
    fn api_81_a_line_without_its_end_gets_one_and_the_time_it_began() {
        assert_eq!(text(["a", "b"]), "2026-03-01T12:00:00.000000Z 01O ab\n");
        assert_eq!(
            text(["a", "b\nc\n"]).lines().next(),
            Some("2026-03-01T12:00:00.000000Z 01O ab")
        );
    }

    /// Removes headers, and the newline before each `+`.
    fn joined(stamped: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        for line in stamped.split_inclusive(|&b| b == b'\n') {
            assert_eq!(&line[26..31], b"Z 01O");
            match line[MARK] {
                b'+' => assert_eq!(all.pop(), Some(b'\n')),
                mark => assert_eq!(mark, b' '),
            }
            all.extend_from_slice(&line[HEADER..]);
        }
        all
    }

    proptest! {
        #[test]
        fn api_77_a_reader_has_the_stream_back(
            writes in proptest::collection::vec(prop_oneof![
                "[ab\r\n]{0,20}".prop_map(String::into_bytes),
                (1usize..9000).prop_map(|n| vec![b'x'; n]),
            ], 0..8),
        ) {
            let mut whole = writes.concat();
            let back = joined(&stamped(writes.iter().map(Vec::as_slice)));
            if back.len() > whole.len() {
                whole.push(b'\n');
            }
            prop_assert_eq!(back, whole);
        }
    }
}

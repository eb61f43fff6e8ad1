//! One stream of a trace (the job's output, its errors, a service, the runner's own lines) from
//! the bytes written to those that are kept: masked, repaired, stamped. Free of I/O and clocks.

use std::time::SystemTime;

use super::{
    mask::{Parameters, Phrases, Table, Tokens},
    source::{Source, Stream},
    stage::Carry,
    stamp::Stamp,
    utf8::Repair,
};

/// How much is worked on at a time: small enough for memory to stay bounded and in the processor's
/// cache, large enough that the cost of a step does not matter.
const STEP: usize = 16 * 1024;

/// The state of one stream.
pub struct Filter {
    phrases: Carry<Phrases>,
    parameters: Carry<Parameters>,
    tokens: Carry<Tokens>,
    repair: Carry<Repair>,
    stamp: Option<Stamp>,
    room: [Vec<u8>; 4],
    lines: Vec<u8>,
}

impl Filter {
    /// For a stream without time stamps.
    #[must_use]
    pub fn plain(table: &Table) -> Self {
        Self {
            phrases: Carry::new(Phrases::new(table.phrases.clone())),
            parameters: Carry::new(Parameters::default()),
            tokens: Carry::new(Tokens::new(table.prefixes.clone())),
            repair: Carry::new(Repair),
            stamp: None,
            room: Default::default(),
            lines: Vec::new(),
        }
    }

    /// For a stream whose lines begin with time stamps.
    #[must_use]
    pub fn stamped(table: &Table, source: Source, stream: Stream) -> Self {
        Self { stamp: Some(Stamp::new(source, stream)), ..Self::plain(table) }
    }

    /// Hides what `table` says from here on.
    pub(super) fn set_phrases(&mut self, table: &Table) {
        self.phrases.stage.words = table.phrases.clone();
    }

    /// Takes `bytes`, written at `now`, and gives `sink` what is to be kept.
    pub fn write(&mut self, now: SystemTime, mut bytes: &[u8], mut sink: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let (step, rest) = bytes.split_at(step(bytes));
            self.pass(now, step, false, &mut sink);
            bytes = rest;
        }
    }

    /// Gives `sink` all that is held back.
    pub fn flush(&mut self, now: SystemTime, mut sink: impl FnMut(&[u8])) {
        self.pass(now, b"", true, &mut sink);
    }

    fn pass(&mut self, now: SystemTime, bytes: &[u8], last: bool, sink: &mut impl FnMut(&[u8])) {
        let [a, b, c, d] = &mut self.room;
        let text = self.phrases.pass(bytes, last, a);
        let text = self.parameters.pass(text, last, b);
        let text = self.tokens.pass(text, last, c);
        let mut text = self.repair.pass(text, last, d);
        if let Some(stamp) = &mut self.stamp {
            self.lines.clear();
            stamp.write(now, text, &mut self.lines);
            if last {
                stamp.flush(&mut self.lines);
            }
            text = &self.lines;
        }
        if !text.is_empty() {
            sink(text);
        }
    }
}

/// How much of `bytes` to take: whole lines if possible, as a step's end may split a line in two.
fn step(bytes: &[u8]) -> usize {
    match bytes.get(..STEP) {
        None => bytes.len(),
        Some(step) => memchr::memrchr(b'\n', step).map_or(STEP, |end| end + 1),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{base::secret::Secret, trace::mask::Masks};

    fn passed(filter: &mut Filter, writes: &[&[u8]]) -> Vec<u8> {
        let mut all = Vec::new();
        for write in writes {
            filter.write(UNIX_EPOCH, write, |text| all.extend_from_slice(text));
        }
        filter.flush(UNIX_EPOCH, |text| all.extend_from_slice(text));
        all
    }

    #[test]
    fn api_78_without_stamps_line_endings_pass_unchanged() {
        let mut filter = Filter::plain(&Table::new(&Masks::default()));
        assert_eq!(passed(&mut filter, &[b"a\r\nb\rc", b"\n\r\nd"]), b"a\r\nb\rc\n\r\nd");
    }

    #[test]
    fn a_value_may_span_lines_and_steps() {
        let value = "key\n".repeat(STEP / 2);
        let masks = Masks { phrases: vec![Secret::new(value.clone())], ..Masks::default() };
        let mut filter = Filter::stamped(&Table::new(&masks), Source::Job, Stream::Out);
        let all = passed(&mut filter, &[b"<", value.trim().as_bytes(), b">\n"]);
        assert_eq!(String::from_utf8(all).unwrap(), "1970-01-01T00:00:00.000000Z 01O <[MASKED]>\n");
    }

    #[test]
    fn a_large_write_keeps_its_lines_whole() {
        let lines = "0123456789\r\n".repeat(STEP);
        let mut filter = Filter::stamped(&Table::new(&Masks::default()), Source::Job, Stream::Out);
        let all = String::from_utf8(passed(&mut filter, &[lines.as_bytes()])).unwrap();
        assert_eq!(all.lines().count(), STEP);
        assert!(all.lines().all(|line| line.ends_with("Z 01O 0123456789")));
    }

    #[test]
    fn memory_is_bounded_whatever_a_line() {
        let mut filter = Filter::stamped(&Table::new(&Masks::default()), Source::Job, Stream::Out);
        let (mut kept, long) = (0, vec![b'x'; 1 << 20]);
        for _ in 0..4 {
            filter.write(UNIX_EPOCH, &long, |text| kept += text.len());
        }
        assert!(kept > 4 << 20);
        let held: usize = filter.room.iter().map(Vec::capacity).sum();
        assert!(held + filter.lines.capacity() < 10 * STEP, "{held}");
    }
}

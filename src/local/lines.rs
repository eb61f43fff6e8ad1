//! A job's trace as lines for a terminal that others write to as well: section markers are taken
//! out, of a progress display only its last state is left, and sequences that move the cursor are
//! dropped, as they would move it over other jobs' lines.

use std::sync::LazyLock;

use regex::Regex;

/// A longer line is broken.
const MAX_LINE: usize = 64 * 1024;

/// Escape sequences (ECMA-48: CSI, OSC, and two-byte ones).
static ESCAPE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\x1b(?:\[[0-?]*[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
        .expect("the pattern is valid")
});

/// The marker of a section, at the end of what stands before a carriage return.
static MARKER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"section_(?:start|end):\d+:[A-Za-z0-9_.-]+(?:\[[^\]]*\])?$")
        .expect("the pattern is valid")
});

/// Collects bytes until a line is complete.
#[derive(Debug)]
pub(crate) struct Lines {
    colour: bool,
    buffer: Vec<u8>,
}

impl Lines {
    /// Keeps colours if `colour` is set.
    pub(crate) fn new(colour: bool) -> Self {
        Self { colour, buffer: Vec::new() }
    }

    /// The lines that are complete with these bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.buffer.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.buffer.len() > MAX_LINE {
                self.take(&mut out);
            }
        }
        out
    }

    /// What is left when the trace is at its end.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        if !self.buffer.is_empty() {
            self.take(&mut out);
        }
        out
    }

    fn take(&mut self, out: &mut Vec<String>) {
        let bytes = std::mem::take(&mut self.buffer);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let (mut shown, mut marked) = (String::new(), false);
        for segment in text.split('\r') {
            let segment = self.clean(segment);
            if let Some(marker) = MARKER.find(&segment) {
                // What a script wrote last without ending its line is not overwritten.
                for line in [std::mem::take(&mut shown), segment[..marker.start()].to_owned()] {
                    if !is_blank(&line) {
                        out.push(line);
                    }
                }
                marked = true;
            } else if !segment.is_empty() {
                shown = segment;
            }
        }
        if !(marked && is_blank(&shown)) {
            out.push(shown);
        }
    }

    /// Without control characters, and without escape sequences but colours, if those are wanted.
    fn clean(&self, text: &str) -> String {
        let kept = ESCAPE.replace_all(text, |found: &regex::Captures<'_>| {
            let colour = found.get(1).is_some_and(|last| last.as_str() == "m");
            if colour && self.colour { found[0].to_owned() } else { String::new() }
        });
        kept.chars().filter(|&c| !c.is_control() || c == '\t' || c == '\x1b').collect()
    }
}

/// Whether nothing would be seen.
fn is_blank(line: &str) -> bool {
    ESCAPE.replace_all(line, "").trim().is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "\x1b[0KRunning with longshore\x1b[0;m\n\
        section_start:1772366400:prepare\r\x1b[0K\x1b[0K\x1b[36;1mPreparing\x1b[0;m\x1b[0;m\n\
        section_end:1772366401:prepare\r\x1b[0Ksection_start:1772366401:step_script[collapsed=true]\r\x1b[0K\
        \x1b[32;1m$ make\x1b[0;m\n\n  10%\r 50%\r100%\r\nno end\
        section_end:1772366402:step_script\r\x1b[0K\x1b[32;1mJob succeeded\x1b[0;m\n\
        section_end:1772366402:last\r\x1b[0K";

    fn lines(colour: bool, pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new(colour);
        let mut out: Vec<String> = pieces.iter().flat_map(|piece| lines.push(piece)).collect();
        out.extend(lines.finish());
        out
    }

    #[test]
    fn a_trace_becomes_plain_lines() {
        assert_eq!(
            lines(false, &[TRACE.as_bytes()]),
            [
                "Running with longshore",
                "Preparing",
                "$ make",
                "",
                "100%",
                "no end",
                "Job succeeded"
            ]
        );
    }

    #[test]
    fn colours_are_kept_where_they_are_wanted_and_nothing_else_is() {
        let trace = "\x1b[31mred\x1b[0m \x1b[2J\x1b[1A\x1b]0;title\x07x\x08\x1b(B\n";
        assert_eq!(lines(true, &[trace.as_bytes()]), ["\x1b[31mred\x1b[0m x"]);
        assert_eq!(lines(false, &[trace.as_bytes()]), ["red x"]);
    }

    #[test]
    fn a_line_without_end_is_broken() {
        let long = vec![b'x'; 3 * MAX_LINE];
        let pieces: Vec<&[u8]> = long.chunks(1000).collect();
        assert!(lines(false, &pieces).len() >= 2);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(at in 0usize..TRACE.len()) {
            let (a, b) = TRACE.as_bytes().split_at(at);
            prop_assert_eq!(lines(true, &[a, b]), lines(true, &[TRACE.as_bytes()]));
        }
    }
}

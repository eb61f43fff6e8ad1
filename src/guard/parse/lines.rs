//! A stream that is cut into lines.

/// The longest line of a stream that is looked at; longer ones are not the engine's.
const LINE: usize = 1 << 20;

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    open: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// The lines that `data` completes.
    pub(crate) fn feed(&mut self, data: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            if self.open.len() + piece.len() > LINE {
                self.too_long = true;
                self.open.clear();
            } else if !self.too_long {
                self.open.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                if !self.too_long {
                    out.push(std::mem::take(&mut self.open));
                }
                self.too_long = false;
            }
        }
        out
    }

    /// What is left at the end.
    pub(crate) fn rest(&mut self) -> Vec<Vec<u8>> {
        vec![std::mem::take(&mut self.open)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"on"), [b""; 0]);
        assert_eq!(lines.feed(b"e\ntwo\nthr"), [&b"one\n"[..], b"two\n"]);
        assert_eq!(lines.feed(b"ee"), [b""; 0]);
        assert_eq!(lines.rest(), [b"three"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_left_out_alone() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(&vec![b'x'; LINE]), [b""; 0]);
        assert_eq!(lines.feed(b"y\nnext\n"), [b"next\n"]);
    }
}

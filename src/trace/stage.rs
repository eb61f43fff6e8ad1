//! What every stage between a writer and the spool has in common: bytes that only the next write
//! can decide are carried over to it, so that the result does not depend on where writes end.

/// Work on a stream of bytes.
pub(super) trait Stage {
    /// Looks through `text`, which begins with what was left over from the last call. `last` means
    /// that no more follows, so nothing may be left over. What must change is written to `out`.
    fn scan(&mut self, text: &[u8], last: bool, out: &mut Vec<u8>) -> Scanned;
}

/// How far a [`Stage`] came.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// `out` stands for the text up to here; from here to `decided` the text is to be taken as is.
    pub(super) written: usize,
    /// Where the undecided rest begins.
    pub(super) decided: usize,
}

/// A stage and what it carries over.
pub(super) struct Carry<S> {
    pub(super) stage: S,
    rest: Vec<u8>,
}

impl<S: Stage> Carry<S> {
    pub(super) fn new(stage: S) -> Self {
        Self { stage, rest: Vec::new() }
    }

    /// Passes `input` through; `out` is room for the result, used only if it differs.
    pub(super) fn pass<'a>(
        &mut self,
        input: &'a [u8],
        last: bool,
        out: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        out.clear();
        if self.rest.is_empty() {
            let Scanned { written, decided } = self.stage.scan(input, last, out);
            self.rest.extend_from_slice(&input[decided..]);
            if out.is_empty() {
                return &input[written..decided];
            }
            out.extend_from_slice(&input[written..decided]);
        } else {
            self.rest.extend_from_slice(input);
            let Scanned { written, decided } = self.stage.scan(&self.rest, last, out);
            out.extend_from_slice(&self.rest[written..decided]);
            self.rest.drain(..decided);
        }
        out
    }
}

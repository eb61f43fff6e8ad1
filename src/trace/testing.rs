//! Traces for tests.

use super::{Masks, Settings, Trace};

/// A trace in a directory of its own, without time stamps.
pub(crate) fn plain(masks: Masks) -> (tempfile::TempDir, Trace) {
    let settings = Settings { limit: 0, timestamps: false, sections: true, masks };
    let dir = tempfile::tempdir().unwrap();
    let trace = Trace::create(&dir.path().join("trace"), settings).unwrap();
    (dir, trace)
}

/// All that the trace holds.
pub(crate) fn text(trace: &Trace) -> String {
    String::from_utf8(trace.read_at(0, usize::MAX).unwrap().to_vec()).unwrap()
}

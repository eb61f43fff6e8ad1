//! An open stream of a trace: its filter, and the spool that the result goes to.

use std::{sync::Arc, time::SystemTime};

use parking_lot::Mutex;

use super::{
    filter::Filter,
    mask::Table,
    spool::{Priority, Spool},
};

/// Filters what is written to it into the spool, until it is closed.
pub(super) struct OpenStream {
    spool: Arc<Spool>,
    priority: Priority,
    state: Mutex<State>,
}

struct State {
    filter: Filter,
    closed: bool,
}

impl OpenStream {
    pub(super) fn new(spool: Arc<Spool>, priority: Priority, filter: Filter) -> Self {
        Self { spool, priority, state: Mutex::new(State { filter, closed: false }) }
    }

    /// Hides what `table` says from here on.
    pub(super) fn set_phrases(&self, table: &Table) {
        self.state.lock().filter.set_phrases(table);
    }

    /// Writes `bytes` in one piece: nothing else comes between them.
    pub(super) fn write(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        if !state.closed {
            state.filter.write(SystemTime::now(), bytes, |text| self.append(text));
        }
    }

    /// Writes what the filter holds back; what is written later is dropped.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        if !state.closed {
            state.closed = true;
            state.filter.flush(SystemTime::now(), |text| self.append(text));
        }
    }

    fn append(&self, text: &[u8]) {
        self.spool.append(text, self.priority);
    }
}

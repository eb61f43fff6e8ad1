//! What the job owns, in memory and on disk.

use std::{io, sync::Arc};

use parking_lot::Mutex;

use crate::guard::{ownership::Owned, refusal::Refusal};

use super::journal::{Journal, JournalContents, JournalEntry};

#[derive(Debug)]
pub(super) struct Inventory {
    owned: Mutex<Arc<Owned>>,
    /// What a crash must not lose (G-45).
    journal: Journal,
}

impl Inventory {
    pub(super) fn new(journal: Journal) -> Self {
        Self { owned: Mutex::default(), journal }
    }

    /// What the job owns now.
    pub(super) fn owned(&self) -> Arc<Owned> {
        Arc::clone(&self.owned.lock())
    }

    /// Changes what the job owns.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Owned) -> T) -> T {
        change(Arc::make_mut(&mut self.owned.lock()))
    }

    /// Writes a line into the journal before what it is about is done: what cannot be written must
    /// not be done (G-7).
    pub(super) fn announce(&self, entry: &JournalEntry) -> Result<(), Refusal> {
        self.write(entry).map_err(|_| Refusal::failed(500, "the journal cannot be written"))
    }

    /// Writes a line into the journal about what has been done. It is there: that it cannot be
    /// written down changes nothing.
    pub(super) fn record(&self, entry: &JournalEntry) {
        drop(self.write(entry));
    }

    fn write(&self, entry: &JournalEntry) -> io::Result<()> {
        self.journal.write(entry).inspect_err(|error| {
            tracing::error!(%error, "cannot write the journal of a guarded socket");
        })
    }

    /// What the journal says by now.
    pub(super) fn journal(&self) -> JournalContents {
        self.journal.contents()
    }
}

//! The journal of what a guard makes and labels do not mark. It is on disk before that is made (G-45), so
//! that the next guard can remove it after a crash.
//!
//! Labels find containers, named volumes and networks whenever the engine has them, before its
//! answer or after; they need no journal. Tags have no labels, nor have loaded images and
//! anonymous volumes, and the default network has no mark of its own: these are written here. The
//! first line has the labels themselves. Pins need no lines: their directory lists them.
//!
//! A line is one write to the page cache, which the end of the process does not lose. Nothing is
//! synced: a machine that goes down takes the state of running containers with it, and what it
//! leaves has labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::guard::settings::GuardSettings;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JournalEntry {
    /// The first line: the guard that writes.
    Guard {
        labels: BTreeMap<String, String>,
        /// The labels of images.
        image_labels: BTreeMap<String, String>,
        /// The default network's name.
        network: String,
        /// Whether images are removed.
        images: bool,
    },
    /// The default network is about to be made, or was, with this id.
    Network(Option<String>),
    /// These tags are about to be made, of this image where that is known.
    Tagging { tags: Vec<String>, image: Option<String> },
    /// A tag was made: name and id.
    Tag(String, String),
    /// A tag is gone.
    Untag(String),
    /// An image was made.
    Image(String),
    /// A step of a build made an image; the beginning of its id.
    Step(String),
    /// An anonymous volume was made.
    Volume(String),
}

/// The open journal; locked while its guard lives.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal in `private`, with what an earlier guard left in it.
    pub(super) fn open(private: &Path) -> io::Result<(Self, Option<JournalContents>)> {
        let path = private.join("journal");
        let file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("another guard uses {}", private.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let record = JournalContents::read(&std::fs::read_to_string(path)?);
        Ok((Self { file }, record))
    }

    /// Empties the journal, and writes this guard's first line.
    pub(super) fn begin(&self, settings: &GuardSettings) -> io::Result<()> {
        self.file.set_len(0)?;
        self.write(&JournalEntry::Guard {
            labels: settings.all_labels(),
            image_labels: settings.image_labels(),
            network: settings.network.clone(),
            images: settings.images.remove,
        })
    }

    /// What it says by now: also what was begun, and never answered by an engine that died.
    pub(super) fn contents(&self) -> JournalContents {
        let (mut file, mut text) = (&self.file, String::new());
        // The file is in append mode: its position does not matter for writing.
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        read.ok().and_then(|_| JournalContents::read(&text)).unwrap_or_default()
    }

    pub(super) fn write(&self, entry: &JournalEntry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        // One call, so that lines of several requests do not mix.
        (&self.file).write_all(&line)
    }
}

/// What a journal says, read to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct JournalContents {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) image_labels: BTreeMap<String, String>,
    pub(super) images_go: bool,
    /// The default network, by id, or by name where its making was not completed.
    pub(super) network: Option<String>,
    /// Tags, and images of which one must be under it so that it is the guard's.
    pub(super) tags: BTreeMap<String, BTreeSet<String>>,
    pub(super) images: BTreeSet<String>,
    /// In the order in which they were made.
    pub(super) steps: Vec<String>,
    pub(super) volumes: BTreeSet<String>,
}

impl JournalContents {
    /// `None` for an empty journal. A line that a crash has cut is ignored.
    fn read(text: &str) -> Option<Self> {
        let mut entries = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let JournalEntry::Guard { labels, image_labels, network: name, images } = entries.next()?
        else {
            return None;
        };
        let mut contents = Self { labels, image_labels, images_go: images, ..Self::default() };
        for entry in entries {
            match entry {
                JournalEntry::Guard { .. } => {}
                JournalEntry::Network(id) => {
                    contents.network = Some(id.unwrap_or_else(|| name.clone()));
                }
                JournalEntry::Tagging { tags, image } => {
                    for tag in tags {
                        // What it meant before holds until the new meaning is known.
                        contents.tags.entry(tag).or_default().extend(image.clone());
                    }
                }
                JournalEntry::Tag(name, id) => drop(contents.tags.insert(name, [id].into())),
                JournalEntry::Untag(name) => drop(contents.tags.remove(&name)),
                JournalEntry::Image(id) => {
                    contents.images.insert(id);
                }
                JournalEntry::Step(id) => contents.steps.push(id),
                JournalEntry::Volume(name) => {
                    contents.volumes.insert(name);
                }
            }
        }
        Some(contents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g_45_what_was_begun_and_what_was_done_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let identity = ("longshore.guard".to_owned(), "1".to_owned());
        let settings = GuardSettings::new("1", identity, "net", directory.path());
        let (journal, before) = Journal::open(directory.path()).unwrap();
        assert_eq!(before, None);
        journal.begin(&settings).unwrap();
        for entry in [
            JournalEntry::Network(None),
            JournalEntry::Network(Some("n1".into())),
            JournalEntry::Tagging { tags: vec!["a".into(), "b".into()], image: Some("i1".into()) },
            JournalEntry::Tag("a".into(), "i2".into()),
            JournalEntry::Tag("c".into(), "i3".into()),
            JournalEntry::Untag("c".into()),
            JournalEntry::Image("i2".into()),
            JournalEntry::Volume("v".into()),
        ] {
            journal.write(&entry).unwrap();
        }
        assert_eq!(journal.contents().network.as_deref(), Some("n1"));
        // While its guard lives, no other can open it.
        assert!(Journal::open(directory.path()).is_err());
        (&journal.file).write_all(b"{\"tag\":[\"x").unwrap();
        drop(journal);
        let (_journal, record) = Journal::open(directory.path()).unwrap();
        let record = record.unwrap();
        assert_eq!(record.network.as_deref(), Some("n1"));
        assert_eq!(record.labels["longshore.guard"], "1");
        let tags = [("a", "i2"), ("b", "i1")].map(|(tag, id)| (tag.into(), [id.into()].into()));
        assert_eq!(record.tags, tags.into());
        assert!(record.images.contains("i2") && record.volumes.contains("v"));
    }
}

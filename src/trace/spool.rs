//! The file that a trace is kept in until the server has it, with its size and checksum.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use flate2::Crc;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::limit::Limit;

/// Bytes kept in memory, at most, when there is no room on disk.
const LONGEST_OVERFLOW: usize = 64 * 1024;
pub(super) struct Spool {
    /// None when there never was room on disk.
    file: Option<File>,
    /// Bytes kept; those before it never change again.
    size: AtomicU64,
    state: Mutex<State>,
    /// Wakes the task that sends the trace.
    grown: Notify,
}

struct State {
    limit: Limit,
    checksum: Crc,
    /// Nothing more is taken: the trace is closed.
    closed: bool,
    /// Set when the disk takes no more.
    overflow: Option<Overflow>,
}

/// What follows the end of the file, in memory.
struct Overflow {
    /// Bytes before it, in the file.
    from: u64,
    bytes: Vec<u8>,
}

/// What tells whether a copy of a trace is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// CRC-32 (IEEE) of all bytes.
    pub crc32: u32,
    /// In bytes.
    pub size: u64,
}

/// Whether a text must be kept even when the disk takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// The runner's words: without them nobody knows how the job ended.
    Runner,
    /// All else.
    Job,
}

impl Spool {
    /// Makes an empty file at `path`, for nobody else to read.
    pub(super) fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path)?;
        Ok(Self::over(Some(file), limit, 0, Crc::new()))
    }

    /// One for the runner's words alone, without a file.
    pub(super) fn in_memory(limit: u64) -> Self {
        let mut spool = Self::over(None, limit, 0, Crc::new());
        spool.state.get_mut().overflow = Some(Overflow { from: 0, bytes: Vec::new() });
        spool
    }

    /// Goes on with the file at `path`, which is read once for its checksum. With `lines`, one
    /// that breaks off within a line is brought to its end first.
    pub(super) fn reopen(path: &Path, limit: u64, lines: bool) -> io::Result<Self> {
        // It may have died before its trace began.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let mut checksum = Crc::new();
        let (mut size, mut last) = (0, b'\n');
        let mut room = vec![0; 64 * 1024];
        loop {
            match file.read_at(&mut room, size)? {
                0 => break,
                read => {
                    checksum.update(&room[..read]);
                    last = room[read - 1];
                    size += read as u64;
                }
            }
        }
        let spool = Self::over(Some(file), limit, size, checksum);
        if lines && last != b'\n' {
            spool.append(b"\n", Priority::Runner);
        }
        Ok(spool)
    }

    fn over(file: Option<File>, limit: u64, size: u64, checksum: Crc) -> Self {
        let state =
            State { limit: Limit::new(limit, size), checksum, closed: false, overflow: None };
        Self { file, size: AtomicU64::new(size), state: Mutex::new(state), grown: Notify::new() }
    }

    /// Adds as much of `text` as the limit leaves room for; whether anything was added. When the
    /// disk takes no more, the trace says so, and what the job says from then on is lost: the job
    /// goes on.
    pub(super) fn append(&self, text: &[u8], priority: Priority) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        let admitted = state.limit.admit(text);
        let notice = admitted.notice.unwrap_or_default();
        let size = self.size();
        let mut end = size;
        for part in [admitted.text, notice.as_bytes()] {
            if !part.is_empty() {
                end = self.add(&mut state, end, part, priority);
            }
        }
        self.size.store(end, Ordering::Release);
        if end > size {
            self.grown.notify_one();
        }
        end > size
    }

    /// Waits until the spool is longer than `size`; for one waiter at a time.
    pub(super) async fn longer_than(&self, size: u64) {
        while self.size() <= size {
            self.grown.notified().await;
        }
    }

    /// Adds `part` at `end`, on disk or in memory; the new end.
    fn add(&self, state: &mut State, end: u64, part: &[u8], priority: Priority) -> u64 {
        let mut end = end;
        if state.overflow.is_none()
            && let Some(file) = &self.file
        {
            match file.write_all_at(part, end) {
                Ok(()) => {
                    state.checksum.update(part);
                    return end + part.len() as u64;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot write the trace's file: the job's output is lost");
                    let notice = format!(
                        "\n\x1b[33;1mThe build host cannot keep the job's log: {error}.\n\
                         The job goes on; what it says from here on is missing.\x1b[0;m\n"
                    );
                    state.checksum.update(notice.as_bytes());
                    let from = end;
                    end += notice.len() as u64;
                    state.overflow = Some(Overflow { from, bytes: notice.into_bytes() });
                }
            }
        }
        match &mut state.overflow {
            Some(overflow)
                if priority == Priority::Runner
                    && overflow.bytes.len() + part.len() <= LONGEST_OVERFLOW =>
            {
                overflow.bytes.extend_from_slice(part);
                state.checksum.update(part);
                end + part.len() as u64
            }
            _ => end,
        }
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
    }
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Checksum and size, both of one moment.
    pub(super) fn digest(&self) -> Digest {
        let state = self.state.lock();
        Digest { crc32: state.checksum.sum(), size: self.size() }
    }

    /// At most `max` bytes from `offset`; none at the end or beyond.
    pub(super) fn read_at(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let left = self.size().saturating_sub(offset);
        let mut room = vec![0; usize::try_from(left).map_or(max, |left| left.min(max))];
        let state = self.state.lock();
        let in_file = state.overflow.as_ref().map_or(u64::MAX, |overflow| overflow.from);
        let split = usize::try_from(in_file.saturating_sub(offset))
            .map_or(room.len(), |split| split.min(room.len()));
        let (first, rest) = room.split_at_mut(split);
        if let Some(overflow) = &state.overflow
            && !rest.is_empty()
        {
            let skip = offset.saturating_sub(overflow.from);
            let from = usize::try_from(skip).map_err(io::Error::other)?;
            rest.copy_from_slice(&overflow.bytes[from..from + rest.len()]);
        }
        // Nobody who writes waits for the disk to be read.
        drop(state);
        if let Some(file) = &self.file {
            file.read_exact_at(first, offset)?;
        }
        Ok(room.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spool(limit: u64) -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::create(&dir.path().join("trace"), limit).unwrap();
        (dir, spool)
    }

    fn text(spool: &Spool) -> String {
        String::from_utf8(spool.read_at(0, usize::MAX).unwrap().to_vec()).unwrap()
    }

    fn crc32(text: &str) -> u32 {
        let mut crc = Crc::new();
        crc.update(text.as_bytes());
        crc.sum()
    }

    fn checksum(spool: &Spool) -> u32 {
        spool.digest().crc32
    }

    #[test]
    fn checksums_follow_the_vectors_of_the_job_api() {
        for (input, crc32, size) in [
            ("", 0, 0),
            ("123456789", 0xcbf4_3926, 9),
            ("This is a basic log line", 0x367d_feeb, 24),
            ("Build trace with secret and multi-byte ü character", 0x0d7c_f601, 51),
        ] {
            let (_dir, spool) = spool(0);
            spool.append(input.as_bytes(), Priority::Job);
            assert_eq!(spool.digest(), Digest { crc32, size });
        }
    }

    #[test]
    fn a_trace_that_never_began_is_reopened_empty() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::reopen(&dir.path().join("trace"), 0, true).unwrap();
        assert!(spool.append(b"late", Priority::Job));
        assert_eq!(spool.size(), 4);
    }

    #[test]
    fn docker_190_the_notice_counts() {
        let (_dir, long) = spool(10);
        assert!(long.append(b"This is the long message", Priority::Job));
        assert!(!long.append(b"This is the long message", Priority::Job));
        assert_eq!(checksum(&long), 0x2959_21ca);
        let (_dir, twice) = spool(20);
        twice.append(b"data before limit\n", Priority::Job);
        twice.append(b"data after limit\n", Priority::Job);
        assert_eq!(checksum(&twice), 0x559a_a46f);
        assert!(text(&twice).starts_with("data before limit\nda\n\x1b[33;1mJob's log exceeded"));
        assert_eq!(twice.size(), text(&twice).len() as u64);
    }

    #[test]
    fn after_close_nothing_is_added() {
        let (_dir, spool) = spool(0);
        spool.append(b"a", Priority::Job);
        spool.close();
        assert!(!spool.append(b"b", Priority::Job));
        assert_eq!(text(&spool), "a");
    }

    #[test]
    fn a_spool_that_broke_off_goes_on_at_a_new_line() {
        let (dir, first) = spool(0);
        first.append(b"one\ntw", Priority::Job);
        let again = Spool::reopen(&dir.path().join("trace"), 0, true).unwrap();
        again.append(b"three\n", Priority::Job);
        assert_eq!(text(&again), "one\ntw\nthree\n");
        let whole = Spool::reopen(&dir.path().join("trace"), 0, true).unwrap();
        assert_eq!(whole.digest(), again.digest());
        assert_eq!(text(&whole), "one\ntw\nthree\n");
    }

    #[test]
    fn a_spool_that_was_full_stays_full() {
        let (dir, first) = spool(10);
        first.append(b"This is the long message", Priority::Job);
        let again = Spool::reopen(&dir.path().join("trace"), 10, true).unwrap();
        assert!(!again.append(b"more", Priority::Job));
        assert_eq!(again.digest(), first.digest());
    }

    #[test]
    fn a_full_disk_is_said_and_the_runners_words_are_kept() {
        let spool = Spool::create("/dev/full".as_ref(), 0).unwrap();
        assert!(spool.append(b"lost", Priority::Job));
        assert!(!spool.append(b"lost too", Priority::Job));
        assert!(spool.append(b"last word\n", Priority::Runner));
        let all = text(&spool);
        assert!(all.contains("cannot keep the job's log: No space left on device"), "{all}");
        assert!(
            all.ends_with("is missing.\x1b[0;m\nlast word\n") && !all.contains("lost"),
            "{all}"
        );
        assert_eq!(checksum(&spool), crc32(&all));
        assert_eq!(&spool.read_at(spool.size() - 5, 2).unwrap()[..], b"wo");
        assert!(!spool.append(&vec![b'x'; LONGEST_OVERFLOW], Priority::Runner));
    }

    #[test]
    fn a_disk_that_fills_up_leaves_what_is_there() {
        let (_dir, mut spool) = spool(0);
        spool.append(b"before", Priority::Job);
        // Its writes fail from here on; the reads below do not come to it.
        let file = spool.file.replace(File::options().write(true).open("/dev/full").unwrap());
        spool.append(b"lost", Priority::Job);
        spool.file = file;
        let all = text(&spool);
        assert!(all.starts_with("before\n\x1b[33;1mThe build host"), "{all}");
        assert_eq!(checksum(&spool), crc32(&all));
        assert_eq!(&spool.read_at(4, 4).unwrap()[..], b"re\n\x1b");
    }

    #[test]
    fn without_a_disk_the_runners_words_are_kept() {
        let spool = Spool::in_memory(0);
        assert!(!spool.append(b"job", Priority::Job) && spool.append(b"runner", Priority::Runner));
        assert_eq!(text(&spool), "runner");
        assert_eq!(spool.size(), 6);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_read_is_what_was_written_and_summed(
            writes in proptest::collection::vec("[a-z€]{0,30}", 0..10),
            offset in 0usize..400,
            max in 0usize..400,
        ) {
            let (dir, spool) = spool(0);
            for write in &writes {
                prop_assert_eq!(spool.append(write.as_bytes(), Priority::Job), !write.is_empty());
            }
            let whole = writes.concat();
            let start = offset.min(whole.len());
            let end = (start + max).min(whole.len());
            let read = spool.read_at(offset as u64, max).unwrap();
            prop_assert_eq!(&read[..], &whole.as_bytes()[start..end]);
            prop_assert_eq!(checksum(&spool), crc32(&whole));
            let again = Spool::reopen(&dir.path().join("trace"), 0, false).unwrap();
            prop_assert_eq!(again.digest(), spool.digest());
        }
    }
}

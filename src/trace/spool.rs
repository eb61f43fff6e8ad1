//! The file that a trace is kept in until the server has it, with its size and checksum.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::limit::Limit;
use crate::api::wire::TraceOutput;

/// A trace's file.
pub(super) struct Spool {
    file: File,
    /// Bytes in the file; those before it never change again.
    size: AtomicU64,
    state: Mutex<State>,
}

struct State {
    limit: Limit,
    checksum: crc32fast::Hasher,
    /// Nothing more is taken: the trace is closed, or the file could not be written.
    closed: bool,
}

impl Spool {
    /// Makes an empty file at `path`, for nobody else to read.
    pub(super) fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path)?;
        Ok(Self::over(file, limit, 0, crc32fast::Hasher::new()))
    }

    /// Goes on with the file at `path`, which is read once for its checksum. With `lines`, one
    /// that breaks off within a line is brought to its end first.
    pub(super) fn reopen(path: &Path, limit: u64, lines: bool) -> io::Result<Self> {
        // It may have died before its trace began.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let mut checksum = crc32fast::Hasher::new();
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
        let spool = Self::over(file, limit, size, checksum);
        if lines && last != b'\n' {
            spool.append(b"\n");
        }
        Ok(spool)
    }

    fn over(file: File, limit: u64, size: u64, checksum: crc32fast::Hasher) -> Self {
        let state = State { limit: Limit::new(limit, size), checksum, closed: false };
        Self { file, size: AtomicU64::new(size), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds as much of `text` as the limit leaves room for; whether anything was added. What
    /// cannot be written is lost, as is all that follows it: the job goes on.
    pub(super) fn append(&self, text: &[u8]) -> bool {
        let mut state = self.state();
        if state.closed {
            return false;
        }
        let admitted = state.limit.admit(text);
        let notice = admitted.notice.unwrap_or_default();
        let size = self.size();
        let mut end = size;
        for part in [admitted.text, notice.as_bytes()] {
            if part.is_empty() {
                continue;
            }
            if let Err(error) = self.file.write_all_at(part, end) {
                state.closed = true;
                tracing::warn!(%error, "cannot write the trace's file: the rest is lost");
                break;
            }
            state.checksum.update(part);
            end += part.len() as u64;
        }
        self.size.store(end, Ordering::Release);
        end > size
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.state().closed = true;
    }

    /// Bytes kept.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Checksum and size, both of one moment.
    pub(super) fn output(&self) -> TraceOutput {
        let state = self.state();
        let size = self.size();
        TraceOutput {
            checksum: Some(format!("crc32:{:08x}", state.checksum.clone().finalize())),
            bytesize: (size > 0).then_some(size),
        }
    }

    /// At most `max` bytes from `offset`; none at the end or beyond.
    pub(super) fn read_at(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let left = self.size().saturating_sub(offset);
        let mut room = vec![0; usize::try_from(left).map_or(max, |left| left.min(max))];
        self.file.read_exact_at(&mut room, offset)?;
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

    fn checksum(spool: &Spool) -> String {
        spool.output().checksum.unwrap()
    }

    #[test]
    fn checksums_follow_the_vectors_of_the_job_api() {
        for (input, crc, size) in [
            ("", "crc32:00000000", None),
            ("123456789", "crc32:cbf43926", Some(9)),
            ("This is a basic log line", "crc32:367dfeeb", Some(24)),
            ("Build trace with secret and multi-byte ü character", "crc32:0d7cf601", Some(51)),
        ] {
            let (_dir, spool) = spool(0);
            spool.append(input.as_bytes());
            assert_eq!(spool.output(), TraceOutput { checksum: Some(crc.into()), bytesize: size });
        }
    }

    #[test]
    fn a_trace_that_never_began_is_reopened_empty() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::reopen(&dir.path().join("trace"), 0, true).unwrap();
        assert!(spool.append(b"late"));
        assert_eq!(spool.size(), 4);
    }

    #[test]
    fn docker_190_the_notice_counts() {
        let (_dir, long) = spool(10);
        assert!(long.append(b"This is the long message"));
        assert!(!long.append(b"This is the long message"));
        assert_eq!(checksum(&long), "crc32:295921ca");
        let (_dir, twice) = spool(20);
        twice.append(b"data before limit\n");
        twice.append(b"data after limit\n");
        assert_eq!(checksum(&twice), "crc32:559aa46f");
        assert!(text(&twice).starts_with("data before limit\nda\n\x1b[33;1mJob's log exceeded"));
        assert_eq!(twice.size(), text(&twice).len() as u64);
    }

    #[test]
    fn after_close_nothing_is_added() {
        let (_dir, spool) = spool(0);
        spool.append(b"a");
        spool.close();
        assert!(!spool.append(b"b"));
        assert_eq!(text(&spool), "a");
    }

    #[test]
    fn a_spool_that_broke_off_goes_on_at_a_new_line() {
        let (dir, first) = spool(0);
        first.append(b"one\ntw");
        let again = Spool::reopen(&dir.path().join("trace"), 0, true).unwrap();
        again.append(b"three\n");
        assert_eq!(text(&again), "one\ntw\nthree\n");
        let whole = Spool::reopen(&dir.path().join("trace"), 0, true).unwrap();
        assert_eq!(whole.output(), again.output());
        assert_eq!(text(&whole), "one\ntw\nthree\n");
    }

    #[test]
    fn a_spool_that_was_full_stays_full() {
        let (dir, first) = spool(10);
        first.append(b"This is the long message");
        let again = Spool::reopen(&dir.path().join("trace"), 10, true).unwrap();
        assert!(!again.append(b"more"));
        assert_eq!(again.output(), first.output());
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
                prop_assert_eq!(spool.append(write.as_bytes()), !write.is_empty());
            }
            let whole = writes.concat();
            let start = offset.min(whole.len());
            let end = (start + max).min(whole.len());
            let read = spool.read_at(offset as u64, max).unwrap();
            prop_assert_eq!(&read[..], &whole.as_bytes()[start..end]);
            prop_assert_eq!(
                checksum(&spool),
                format!("crc32:{:08x}", crc32fast::hash(whole.as_bytes()))
            );
            let again = Spool::reopen(&dir.path().join("trace"), 0, false).unwrap();
            prop_assert_eq!(again.output(), spool.output());
        }
    }
}

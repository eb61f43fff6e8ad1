//! A trace and its writers.

use std::{
    fmt, io,
    path::Path,
    sync::{Arc, OnceLock, Weak},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    filter::Filter,
    job_log::JobLog,
    mask::{Masks, Table},
    source::{Source, Stream},
    spool::{Digest, Priority, Spool},
    stream::OpenStream,
};
use crate::base::secret::Secret;

/// How a trace is to be written.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many bytes are kept; 0 means [`DEFAULT_LIMIT`](super::DEFAULT_LIMIT).
    pub limit: u64,
    /// Whether lines begin with time and stream (`FF_TIMESTAMPS`).
    pub timestamps: bool,
    /// Whether the runner writes section markers (`features.trace_sections`).
    pub sections: bool,
    /// What is hidden.
    pub masks: Masks,
}

/// A job's trace; clones are the same trace.
#[derive(Clone)]
pub struct Trace {
    inner: Arc<Inner>,
}

struct Inner {
    spool: Arc<Spool>,
    timestamps: bool,
    sections: bool,
    masks: Mutex<(Masks, Table)>,
    /// Those that have not been dropped.
    streams: Mutex<Vec<Weak<OpenStream>>>,
    /// The stream of all [`JobLog`]s.
    log: OnceLock<Arc<OpenStream>>,
}

impl Trace {
    /// A new trace, whose bytes are kept at `spool` (a file that was there is emptied).
    pub fn create(spool: &Path, settings: Settings) -> io::Result<Self> {
        let limit = settings.limit;
        Ok(Self::over(Spool::create(spool, limit)?, settings))
    }

    /// A trace of the runner's own lines alone, for a job that has no place on disk.
    #[must_use]
    pub fn in_memory(settings: Settings) -> Self {
        let limit = settings.limit;
        Self::over(Spool::in_memory(limit), settings)
    }

    /// Resumes the trace at `spool`, after a crash.
    pub fn reopen(spool: &Path, settings: Settings) -> io::Result<Self> {
        let (limit, lines) = (settings.limit, settings.timestamps);
        Ok(Self::over(Spool::reopen(spool, limit, lines)?, settings))
    }

    fn over(spool: Spool, settings: Settings) -> Self {
        let table = Table::new(&settings.masks);
        let inner = Inner {
            spool: Arc::new(spool),
            timestamps: settings.timestamps,
            sections: settings.sections,
            masks: Mutex::new((settings.masks, table)),
            streams: Mutex::default(),
            log: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A new stream. Values that are to be hidden are recognised within a stream, not across two.
    #[must_use]
    pub fn writer(&self, source: Source, stream: Stream) -> Writer {
        Writer { stream: self.open(source, stream) }
    }

    /// For the runner's own lines; all job logs of a trace are one stream.
    #[must_use]
    pub fn job_log(&self) -> JobLog {
        let stream = self.inner.log.get_or_init(|| self.open(Source::Runner, Stream::Out));
        JobLog::new(Arc::clone(stream), self.inner.sections)
    }

    fn open(&self, source: Source, stream: Stream) -> Arc<OpenStream> {
        let masks = self.inner.masks.lock();
        let filter = if self.inner.timestamps {
            Filter::stamped(&masks.1, source, stream)
        } else {
            Filter::plain(&masks.1)
        };
        let priority = if source == Source::Runner { Priority::Runner } else { Priority::Job };
        let opened = Arc::new(OpenStream::new(Arc::clone(&self.inner.spool), priority, filter));
        let mut streams = self.inner.streams.lock();
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(&opened));
        opened
    }

    /// Hides `phrase` too, in all that is written from now on.
    pub fn add_mask(&self, phrase: Secret) {
        let mut masks = self.inner.masks.lock();
        masks.0.phrases.push(phrase);
        masks.1 = Table::new(&masks.0);
        for stream in self.streams() {
            stream.set_phrases(&masks.1);
        }
    }

    /// Flushes what all streams hold back, then takes nothing more: size and checksum are final.
    pub fn close(&self) {
        for stream in self.streams() {
            stream.close();
        }
        self.inner.spool.close();
    }

    fn streams(&self) -> Vec<Arc<OpenStream>> {
        self.inner.streams.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Bytes kept so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.spool.size()
    }

    /// Checksum and size so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.inner.spool.digest()
    }

    /// At most `max` bytes from `offset`; none at the end or beyond. Reads a file.
    pub fn read_at(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        self.inner.spool.read_at(offset, max)
    }

    /// [`Trace::read_at`] on a thread that may wait for the disk.
    pub async fn read_chunk(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let trace = self.clone();
        let read = tokio::task::spawn_blocking(move || trace.read_at(offset, max));
        read.await.map_err(io::Error::other)?
    }

    /// Waits until the trace is longer than `size`. One task at a time may wait: a second one
    /// would miss what wakes the first. Dropping the future loses nothing.
    pub async fn longer_than(&self, size: u64) {
        self.inner.spool.longer_than(size).await;
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("size", &self.size()).finish_non_exhaustive()
    }
}

/// A stream of a trace. What it holds back is written when it is dropped.
pub struct Writer {
    stream: Arc<OpenStream>,
}

impl Writer {
    /// Cannot fail, as a job goes on without its trace.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write(bytes);
    }

    /// Writes what is held back.
    pub fn close(self) {}
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stream.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{plain, text};

    fn secret(value: &str) -> Masks {
        Masks { phrases: vec![Secret::new(value)], ..Masks::default() }
    }

    #[test]
    fn streams_do_not_disturb_each_other() {
        let (_dir, trace) = plain(secret("topsecret"));
        let mut out = trace.writer(Source::Job, Stream::Out);
        let mut err = trace.writer(Source::Job, Stream::Err);
        out.write(b"top");
        err.write(b"\xE2\x82");
        out.write(b"secret");
        err.write(b"\xACtop");
        assert_eq!(text(&trace), "[MASKED]€");
        err.close();
        assert_eq!(text(&trace), "[MASKED]€top");
    }

    #[test]
    fn what_a_writer_holds_is_written_when_it_is_dropped() {
        let (_dir, trace) = plain(secret("topsecret"));
        let mut out = trace.writer(Source::Job, Stream::Out);
        out.write(b"stop");
        assert_eq!(text(&trace), "s");
        drop(out);
        assert_eq!(text(&trace), "stop");
    }

    #[test]
    fn closing_a_trace_flushes_its_streams_and_drops_what_comes_later() {
        let (_dir, trace) = plain(secret("topsecret"));
        let mut out = trace.writer(Source::Job, Stream::Out);
        out.write(b"stop");
        trace.close();
        let digest = trace.digest();
        out.write(b"more");
        trace.writer(Source::Job, Stream::Err).write(b"more");
        trace.job_log().plain("more");
        drop(out);
        assert_eq!(text(&trace), "stop");
        assert_eq!(trace.digest(), digest);
    }

    #[test]
    fn api_91_a_secret_found_later_is_masked_from_then_on() {
        let (_dir, trace) = plain(secret("topsecret"));
        let mut out = trace.writer(Source::Job, Stream::Out);
        out.write(b"another top");
        trace.add_mask(Secret::new("another"));
        out.write(b"secret another");
        trace.job_log().plain("another");
        assert!(text(&trace).starts_with("another [MASKED] [MASKED]"), "{}", text(&trace));
        assert_eq!(text(&trace).matches("another").count(), 1);
    }

    #[test]
    fn api_93_beyond_the_limit_there_is_one_notice_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            Settings { limit: 1024, timestamps: false, sections: false, masks: Masks::default() };
        let trace = Trace::create(&dir.path().join("trace"), settings).unwrap();
        let mut out = trace.writer(Source::Job, Stream::Out);
        (0..5).for_each(|_| out.write(&[b'x'; 1024]));
        trace.job_log().succeeded();
        let expected = "x".repeat(1024)
            + "\n\x1b[33;1mJob's log exceeded limit of 1024 bytes.\n\
               Job execution will continue but no more output will be collected.\x1b[0;m\n";
        assert_eq!(text(&trace), expected);
        assert_eq!(trace.size(), expected.len() as u64);
    }

    #[test]
    fn a_trace_goes_on_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let settings =
            Settings { limit: 0, timestamps: true, sections: false, masks: Masks::default() };
        let first = Trace::create(&path, settings.clone()).unwrap();
        first.job_log().plain("one");
        let again = Trace::reopen(&path, settings).unwrap();
        assert_eq!(again.digest(), first.digest());
        again.job_log().plain("two");
        let (one, two) = (text(&first), text(&again));
        assert!(two.starts_with(&one) && two.ends_with("\x1b[0Ktwo\x1b[0;m\n"), "{two}");
    }
}

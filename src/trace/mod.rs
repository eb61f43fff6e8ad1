//! A job's trace: what its author reads, from the bytes that are written to the server having
//! them all.
//!
//! ```text
//! Writer, Voice → mask → utf8 → stamp   (each stream its own: `stream`)
//!               → limit → spool         (one file a job, with checksum and size)
//!               → pump, finish          (PATCH while the job runs, PATCH and PUT at its end)
//! ```
//!
//! What the server's answers look like on the wire is the business of [`JobServer`]'s implementor;
//! what a trace says, beyond the forms of its lines, is that of whoever writes to it.

mod finish;
mod limit;
mod line;
mod mask;
mod pump;
mod spool;
mod stage;
mod stamp;
mod stream;
mod utf8;
mod words;

use std::{
    fmt,
    future::Future,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::SystemTime,
};

use bytes::Bytes;
use tokio::sync::Notify;

use self::spool::{Spool, Weight};
pub use self::{
    finish::{DEFAULT_PASSES, Failure, Final, FinishError, Limits, finish},
    limit::DEFAULT_LIMIT,
    line::{Greeting, Voice},
    mask::{Masks, Table},
    pump::{Delivery, KeepAlive, Remote, pump},
    stream::Stream,
};
use crate::{
    base::secret::Secret,
    gitlab::api::{
        PatchReply, UpdateReply,
        wire::{JobState, TraceOutput},
    },
};

/// The server's end of a job. The implementor knows the job's number, its token and whether its
/// trace is one of debugging; it retries single requests, but decides nothing beyond one answer.
pub trait JobServer: Send + Sync {
    /// `PATCH /jobs/:id/trace`: `chunk`, which is not empty, stands at byte `start`.
    fn patch_trace(&self, start: u64, chunk: Bytes) -> impl Future<Output = PatchReply> + Send;

    /// `PUT /jobs/:id`.
    fn update(
        &self,
        state: JobState,
        reason: Option<String>,
        exit_code: Option<i32>,
        output: TraceOutput,
    ) -> impl Future<Output = UpdateReply> + Send;
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// longshore itself.
    Runner,
    /// The job's containers and the helper.
    Job,
    /// Services.
    Service,
}

impl Source {
    /// Its number in the lines' headers.
    fn hex(self) -> &'static [u8; 2] {
        match self {
            Self::Runner => b"00",
            Self::Job => b"01",
            Self::Service => b"0f",
        }
    }
}

/// Where it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a trace is to be written.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many bytes are kept; 0 means [`DEFAULT_LIMIT`].
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
    spool: Spool,
    timestamps: bool,
    sections: bool,
    masks: Mutex<(Masks, Table)>,
    streams: Mutex<Vec<Weak<Mutex<Lane>>>>,
    voice: OnceLock<Arc<Mutex<Lane>>>,
    /// Wakes the one who sends the trace.
    grown: Notify,
}

/// A stream, until it is closed.
struct Lane {
    stream: Stream,
    weight: Weight,
    closed: bool,
}

impl Trace {
    /// A new trace, whose bytes are kept at `spool` (a file that was there is emptied).
    pub fn create(spool: &Path, settings: Settings) -> io::Result<Self> {
        let limit = settings.limit;
        Ok(Self::over(Spool::create(spool, limit)?, settings))
    }

    /// A trace of the runner's words alone, for a job that has no place on disk.
    #[must_use]
    pub fn in_memory(settings: Settings) -> Self {
        let limit = settings.limit;
        Self::over(Spool::in_memory(limit), settings)
    }

    /// Goes on with the trace at `spool`, after a crash.
    pub fn reopen(spool: &Path, settings: Settings) -> io::Result<Self> {
        let (limit, lines) = (settings.limit, settings.timestamps);
        Ok(Self::over(Spool::reopen(spool, limit, lines)?, settings))
    }

    fn over(spool: Spool, settings: Settings) -> Self {
        let table = Table::new(&settings.masks);
        let inner = Inner {
            spool,
            timestamps: settings.timestamps,
            sections: settings.sections,
            masks: Mutex::new((settings.masks, table)),
            streams: Mutex::default(),
            voice: OnceLock::new(),
            grown: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A new stream. Values that are to be hidden are recognised within a stream, not across two.
    #[must_use]
    pub fn writer(&self, source: Source, channel: Channel) -> Writer {
        Writer { trace: self.clone(), lane: self.lane(source, channel) }
    }

    /// The runner's own lines; all voices of a trace are one stream.
    #[must_use]
    pub fn voice(&self) -> Voice {
        let lane = self.inner.voice.get_or_init(|| self.lane(Source::Runner, Channel::Out));
        Voice::new(self.clone(), lane.clone())
    }

    fn lane(&self, source: Source, channel: Channel) -> Arc<Mutex<Lane>> {
        let masks = lock(&self.inner.masks);
        let stream = if self.inner.timestamps {
            Stream::stamped(&masks.1, source, channel)
        } else {
            Stream::plain(&masks.1)
        };
        let weight = if source == Source::Runner { Weight::Runner } else { Weight::Job };
        let lane = Arc::new(Mutex::new(Lane { stream, weight, closed: false }));
        let mut streams = lock(&self.inner.streams);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(&lane));
        lane
    }

    /// Hides `phrase` too, in all that is written from now on.
    pub fn add_mask(&self, phrase: Secret) {
        let mut masks = lock(&self.inner.masks);
        masks.0.phrases.push(phrase);
        masks.1 = Table::new(&masks.0);
        for lane in self.lanes() {
            lock(&lane).stream.set_phrases(&masks.1);
        }
    }

    /// Flushes what all streams hold back, then takes nothing more: size and checksum are final.
    pub fn close(&self) {
        for lane in self.lanes() {
            self.close_lane(&lane);
        }
        self.inner.spool.close();
    }

    fn lanes(&self) -> Vec<Arc<Mutex<Lane>>> {
        lock(&self.inner.streams).iter().filter_map(Weak::upgrade).collect()
    }

    fn write(&self, lane: &Mutex<Lane>, bytes: &[u8]) {
        let mut lane = lock(lane);
        if !lane.closed {
            let weight = lane.weight;
            lane.stream.write(SystemTime::now(), bytes, |text| self.append(text, weight));
        }
    }

    fn close_lane(&self, lane: &Mutex<Lane>) {
        let mut lane = lock(lane);
        if !lane.closed {
            lane.closed = true;
            let weight = lane.weight;
            lane.stream.flush(SystemTime::now(), |text| self.append(text, weight));
        }
    }

    fn append(&self, text: &[u8], weight: Weight) {
        if self.inner.spool.append(text, weight) {
            self.inner.grown.notify_one();
        }
    }

    /// Bytes kept so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.spool.size()
    }

    /// Checksum and size so far.
    #[must_use]
    pub fn output(&self) -> TraceOutput {
        self.inner.spool.output()
    }

    /// At most `max` bytes from `offset`; none at the end or beyond. Reads a file.
    pub fn read_at(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        self.inner.spool.read_at(offset, max)
    }

    /// Waits until the trace is longer than `size`; for one waiter at a time.
    async fn longer_than(&self, size: u64) {
        while self.size() <= size {
            self.inner.grown.notified().await;
        }
    }

    /// [`Trace::read_at`], aside from the tasks that must not wait for a disk.
    async fn chunk(&self, offset: u64) -> io::Result<Bytes> {
        /// Bytes of a request at most (GitLab Runner: `maxTracePatchSize`).
        const CHUNK: usize = 1024 * 1024;
        let trace = self.clone();
        let read = tokio::task::spawn_blocking(move || trace.read_at(offset, CHUNK));
        read.await.map_err(io::Error::other)?
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("size", &self.size()).finish_non_exhaustive()
    }
}

/// A stream of a trace. What it holds back is written when it is dropped.
pub struct Writer {
    trace: Trace,
    lane: Arc<Mutex<Lane>>,
}

impl Writer {
    /// Writes; does not fail, as a job goes on without its trace.
    pub fn write(&mut self, bytes: &[u8]) {
        self.trace.write(&self.lane, bytes);
    }

    /// Writes what is held back.
    pub fn close(self) {}
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.trace.close_lane(&self.lane);
    }
}

/// The state is whole between any two of its methods, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod fake;

#[cfg(test)]
mod tests {
    use super::*;

    /// A trace in a directory of its own, without stamps.
    pub(super) fn plain(masks: Masks) -> (tempfile::TempDir, Trace) {
        let settings = Settings { limit: 0, timestamps: false, sections: true, masks };
        let dir = tempfile::tempdir().unwrap();
        let trace = Trace::create(&dir.path().join("trace"), settings).unwrap();
        (dir, trace)
    }

    pub(super) fn text(trace: &Trace) -> String {
        String::from_utf8(trace.read_at(0, usize::MAX).unwrap().to_vec()).unwrap()
    }

    fn secret(value: &str) -> Masks {
        Masks { phrases: vec![Secret::new(value)], ..Masks::default() }
    }

    #[test]
    fn streams_do_not_disturb_each_other() {
        let (_dir, trace) = plain(secret("topsecret"));
        let mut out = trace.writer(Source::Job, Channel::Out);
        let mut err = trace.writer(Source::Job, Channel::Err);
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
        let mut out = trace.writer(Source::Job, Channel::Out);
        out.write(b"stop");
        assert_eq!(text(&trace), "s");
        drop(out);
        assert_eq!(text(&trace), "stop");
    }

    #[test]
    fn closing_a_trace_flushes_its_streams_and_drops_what_comes_later() {
        let (_dir, trace) = plain(secret("topsecret"));
        let mut out = trace.writer(Source::Job, Channel::Out);
        out.write(b"stop");
        trace.close();
        let output = trace.output();
        out.write(b"more");
        trace.writer(Source::Job, Channel::Err).write(b"more");
        trace.voice().plain("more");
        drop(out);
        assert_eq!(text(&trace), "stop");
        assert_eq!(trace.output(), output);
    }

    #[test]
    fn api_91_a_secret_found_later_is_masked_from_then_on() {
        let (_dir, trace) = plain(secret("topsecret"));
        let mut out = trace.writer(Source::Job, Channel::Out);
        out.write(b"another top");
        trace.add_mask(Secret::new("another"));
        out.write(b"secret another");
        trace.voice().plain("another");
        assert!(text(&trace).starts_with("another [MASKED] [MASKED]"), "{}", text(&trace));
        assert_eq!(text(&trace).matches("another").count(), 1);
    }

    #[test]
    fn api_93_beyond_the_limit_there_is_one_notice_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            Settings { limit: 1024, timestamps: false, sections: false, masks: Masks::default() };
        let trace = Trace::create(&dir.path().join("trace"), settings).unwrap();
        let mut out = trace.writer(Source::Job, Channel::Out);
        (0..5).for_each(|_| out.write(&[b'x'; 1024]));
        trace.voice().succeeded();
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
        first.voice().plain("one");
        let again = Trace::reopen(&path, settings).unwrap();
        assert_eq!(again.output(), first.output());
        again.voice().plain("two");
        let (one, two) = (text(&first), text(&again));
        assert!(two.starts_with(&one) && two.ends_with("\x1b[0Ktwo\x1b[0;m\n"), "{two}");
    }
}

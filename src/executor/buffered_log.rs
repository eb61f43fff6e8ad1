//! Two branches of a job's preparation run at once, and both write to the job's log, which is read
//! from top to bottom. The second branch writes to a [`BufferedLog`]: its events are held until the
//! first branch has finished, and go straight to the trace from then on.

use bytes::Bytes;
use parking_lot::Mutex;

use crate::trace::{JobLog, Source, Stream, Trace, Writer};

/// How many bytes are held at most; beyond it the log is flushed early, as order is a nicety and
/// memory is not.
const HELD_LIMIT: usize = 1 << 20;

/// Something for the job's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEvent {
    /// A section begins.
    Begin {
        /// Its name, such as `get_sources`.
        name: String,
        /// What a reader sees of it.
        title: String,
    },
    /// The section of this name ends.
    End(String),
    /// A line of longshore's own.
    Plain(String),
    /// A line of longshore's own, in green.
    Info(String),
    /// A line that begins with `WARNING:`.
    Warning(String),
    /// A line that begins with `ERROR:`.
    Error(String),
    /// Standard output of a program.
    Out(Bytes),
    /// Standard error of a program.
    Err(Bytes),
}

/// A job's log whose events are held until [`BufferedLog::flush`].
pub struct BufferedLog {
    state: Mutex<Buffer>,
}

struct Buffer {
    /// `None` once the log was flushed.
    held: Option<Vec<LogEvent>>,
    /// Bytes of program output among the held events.
    size: usize,
    log: JobLog,
    out: Writer,
    err: Writer,
}

impl BufferedLog {
    /// A log that holds what it is given.
    #[must_use]
    pub fn new(trace: &Trace) -> Self {
        Self {
            state: Mutex::new(Buffer {
                held: Some(Vec::new()),
                size: 0,
                log: trace.job_log(),
                out: trace.writer(Source::Job, Stream::Out),
                err: trace.writer(Source::Job, Stream::Err),
            }),
        }
    }

    /// Logs an event: now, or when the log is flushed.
    pub fn log(&self, event: LogEvent) {
        let mut state = self.state.lock();
        let Some(held) = &mut state.held else { return state.write(&event) };
        let size = match &event {
            LogEvent::Out(bytes) | LogEvent::Err(bytes) => bytes.len(),
            _ => 0,
        };
        held.push(event);
        state.size += size;
        if state.size > HELD_LIMIT {
            state.flush();
        }
    }

    /// Begins a section, which ends when the guard that this returns is dropped.
    #[must_use]
    pub fn section(&self, name: &'static str, title: &str) -> Section<'_> {
        self.log(LogEvent::Begin { name: name.to_owned(), title: title.to_owned() });
        Section { log: self, name }
    }

    /// Writes what was held; from now on nothing is.
    pub fn flush(&self) {
        self.state.lock().flush();
    }

    /// Ends the streams of the programs that have written so far: a line that they left unfinished
    /// is not continued by the next program.
    pub fn end_streams(&self, trace: &Trace) {
        let mut state = self.state.lock();
        state.out = trace.writer(Source::Job, Stream::Out);
        state.err = trace.writer(Source::Job, Stream::Err);
    }
}

/// An open section.
pub struct Section<'a> {
    log: &'a BufferedLog,
    name: &'static str,
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.log.log(LogEvent::End(self.name.to_owned()));
    }
}

impl Buffer {
    fn flush(&mut self) {
        for event in self.held.take().unwrap_or_default() {
            self.write(&event);
        }
    }

    fn write(&mut self, event: &LogEvent) {
        match event {
            LogEvent::Begin { name, title } => {
                self.log.section_start(name);
                self.log.title(title);
            }
            LogEvent::End(name) => self.log.section_end(name),
            LogEvent::Plain(text) => self.log.plain(text),
            LogEvent::Info(text) => self.log.info(text),
            LogEvent::Warning(text) => self.log.warning(text),
            LogEvent::Error(text) => self.log.error(text),
            LogEvent::Out(bytes) => self.out.write(bytes),
            LogEvent::Err(bytes) => self.err.write(bytes),
        }
    }
}

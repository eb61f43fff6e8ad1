//! Two branches of a job's preparation run at once, and both have something to say; a trace is read
//! from top to bottom. The second branch speaks through a curtain: what it says is held until the
//! first has finished, and goes straight to the trace from then on.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::trace::{JobLog, Source, Stream, Trace, Writer};

/// What is held at most, in bytes; beyond it the curtain rises early, as order is a nicety and
/// memory is not.
const HELD_LIMIT: usize = 1 << 20;

/// Something for the trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A section begins, with its title.
    Begin {
        /// Name.
        name: String,
        /// Title.
        title: String,
    },
    /// A section ends.
    End(String),
    /// A line of ours.
    Plain(String),
    /// A line of ours, in green.
    Info(String),
    /// A warning.
    Warning(String),
    /// An error.
    Error(String),
    /// A program's stdout.
    Out(Bytes),
    /// A program's stderr.
    Err(Bytes),
}

/// See the module.
pub struct Curtain {
    state: Mutex<State>,
}

struct State {
    held: Option<Vec<Said>>,
    size: usize,
    job_log: JobLog,
    out: Writer,
    err: Writer,
}

impl Curtain {
    /// A curtain that is down.
    #[must_use]
    pub fn new(trace: &Trace) -> Self {
        Self {
            state: Mutex::new(State {
                held: Some(Vec::new()),
                size: 0,
                job_log: trace.job_log(),
                out: trace.writer(Source::Job, Stream::Out),
                err: trace.writer(Source::Job, Stream::Err),
            }),
        }
    }

    /// Says something, now or when the curtain rises.
    pub fn say(&self, said: Said) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = &mut state.held else { return state.show(&said) };
        let size = match &said {
            Said::Out(bytes) | Said::Err(bytes) => bytes.len(),
            _ => 0,
        };
        held.push(said);
        state.size += size;
        if state.size > HELD_LIMIT {
            state.rise();
        }
    }

    /// Begins a section, which ends when what this gives is dropped.
    #[must_use]
    pub fn section(&self, name: &'static str, title: &str) -> Section<'_> {
        self.say(Said::Begin { name: name.to_owned(), title: title.to_owned() });
        Section { curtain: self, name }
    }

    /// Shows what was held; from now on nothing is.
    pub fn rise(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).rise();
    }

    /// Ends the streams of programs: a section ends, or the job.
    pub fn flush(&self, trace: &Trace) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.out = trace.writer(Source::Job, Stream::Out);
        state.err = trace.writer(Source::Job, Stream::Err);
    }
}

/// An open section.
pub struct Section<'a> {
    curtain: &'a Curtain,
    name: &'static str,
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.curtain.say(Said::End(self.name.to_owned()));
    }
}

impl State {
    fn rise(&mut self) {
        for said in self.held.take().unwrap_or_default() {
            self.show(&said);
        }
    }

    fn show(&mut self, said: &Said) {
        match said {
            Said::Begin { name, title } => {
                self.job_log.section_start(name);
                self.job_log.title(title);
            }
            Said::End(name) => self.job_log.section_end(name),
            Said::Plain(text) => self.job_log.plain(text),
            Said::Info(text) => self.job_log.info(text),
            Said::Warning(text) => self.job_log.warning(text),
            Said::Error(text) => self.job_log.error(text),
            Said::Out(bytes) => self.out.write(bytes),
            Said::Err(bytes) => self.err.write(bytes),
        }
    }
}

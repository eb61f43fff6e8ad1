//! Who writes to a trace, and to which of their streams.

/// The writer of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// longshore itself.
    Runner,
    /// The job's containers and the helper.
    Job,
    /// A service of the job.
    Service,
}

impl Source {
    /// Its number in the lines' headers (GitLab Runner: `timestamper`).
    pub(super) fn hex(self) -> &'static [u8; 2] {
        match self {
            Self::Runner => b"00",
            Self::Job => b"01",
            Self::Service => b"0f",
        }
    }
}

/// One of the two standard streams of whoever writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

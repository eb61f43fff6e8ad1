//! A job's trace: what its author reads, from the bytes that are written to those that are ready to
//! be sent. It knows no server: who sends it asks for the bytes from an offset
//! ([`Trace::read_at`]) and for size and checksum ([`Trace::digest`]).
//!
//! ```text
//! Writer, JobLog → mask → utf8 → stamp   (each stream its own: `filter`)
//!                → limit → spool         (one file a job, with checksum and size)
//! ```

mod filter;
mod job_log;
mod limit;
mod mask;
mod source;
mod spool;
mod stage;
mod stamp;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[expect(clippy::module_inception, reason = "the file of the type that the module is named after")]
mod trace;
mod utf8;
mod words;

pub use self::{
    filter::Filter,
    job_log::{Greeting, JobLog},
    limit::DEFAULT_LIMIT,
    mask::{Masks, Table},
    source::{Source, Stream},
    spool::Digest,
    trace::{Settings, Trace, Writer},
};

//! The guarded Docker socket: what a job gets in place of the host's `docker.sock`.
//!
//! One [`Guard`] per job is an HTTP server on a unix socket. It parses each request into types of
//! its own ([`target`], [`json`]), decides about it without doing anything ([`policy`], [`body`],
//! over what the job owns: [`ownership`]), and then sends the engine a request that it built
//! itself ([`serve`]). Answers lose what is not the job's ([`filter`]). Binds of the workspace are
//! pinned ([`paths`]); archives are read before the engine sees them ([`archive`], [`dockerfile`]).
//!
//! Rule numbers (G-…) are those of the guard's contract. Whether a job gets a guard at all is not
//! decided here, and nothing here knows of jobs, plans or runners: all comes in [`GuardSettings`].

mod answer;
pub mod archive;
pub mod audit;
pub mod body;
mod build;
mod buildkit;
mod clean_up;
mod connection;
pub mod dockerfile;
mod engine;
mod exchange;
pub mod fields;
pub mod filter;
pub mod head;
pub mod image;
mod images;
mod journal;
pub mod json;
mod lines;
pub mod names;
pub mod ownership;
pub mod paths;
pub mod peer;
pub mod policy;
pub mod policy_file;
mod progress;
pub mod serve;
pub mod settings;
pub mod sidecar;
mod spool;
mod stream;
mod tags;
pub mod target;

/// Repository of the images that longshore composes for its helper containers. Jobs cannot use the
/// name.
pub const HELPER_REPOSITORY: &str = "longshore-helper";

/// Repository of the image from which the helper's program is put into other images. Jobs cannot use
/// the name.
pub const PORTABLE_REPOSITORY: &str = "longshore-portable";

pub use audit::AuditEvent;
pub use names::Names;
pub use policy_file::{PolicyError, PolicyFile};
pub use serve::{Guard, Summary};
pub use settings::{Build, GuardSettings, ImagePolicy, Limits, Mapping, Widening};

/// Whether the engine at `unix://PATH` or `tcp://HOST:PORT` sees what is mounted here: only then can
/// a guard in this process pin what a job binds. Not known is no.
pub async fn shares_mounts(engine: &str) -> bool {
    match engine::Engine::new(engine, tokio_util::task::TaskTracker::new()) {
        Ok(engine) => engine.shares_mounts().await,
        Err(_) => false,
    }
}

/// Why a request is not sent on: what the client reads, and the rule that says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The text in the engine's error format.
    pub message: String,
    /// The rule of the contract, such as `G-1`; `-` where the engine itself would say the same.
    pub rule: &'static str,
}

impl Refusal {
    /// Something that this socket does not offer.
    #[must_use]
    pub fn denied(what: &str, rule: &'static str) -> Self {
        Self { status: 403, message: format!("guard: {what} is not available here ({rule})"), rule }
    }

    /// Something that is refused for the reason that `why` tells.
    #[must_use]
    pub fn because(why: &str, rule: &'static str) -> Self {
        Self { status: 403, message: format!("guard: {why} ({rule})"), rule }
    }

    /// Something that is malformed, or that two parsers could read differently.
    #[must_use]
    pub fn malformed(what: &str, rule: &'static str) -> Self {
        Self { status: 400, message: format!("guard: {what} ({rule})"), rule }
    }

    /// Something that does not exist, in the engine's words; foreign things are the same.
    #[must_use]
    pub fn missing(message: String) -> Self {
        Self { status: 404, message, rule: "-" }
    }

    /// A name that is taken.
    #[must_use]
    pub fn conflict(message: &str) -> Self {
        Self { status: 409, message: message.to_owned(), rule: "G-49" }
    }

    /// The guard's own fault, or the engine's.
    #[must_use]
    pub fn failed(status: u16, what: &str) -> Self {
        Self { status, message: format!("guard: {what} (G-7)"), rule: "G-7" }
    }
}

//! The guarded Docker socket: what a job gets in place of the host's `docker.sock`.
//!
//! One [`Guard`] per job is an HTTP server on a unix socket. It reads each request into types of its
//! own ([`parse`]), decides about it without doing anything ([`policy`], over what the job owns:
//! [`ownership`]), and then sends the engine a request that it built itself (`server`). Answers lose
//! what is not the job's. Binds of the workspace are pinned (`pin`); archives are read before the
//! engine sees them.
//!
//! Rule numbers (G-…) are those of `docs/guard.md`. Whether a job gets a guard at all is not decided
//! here, and nothing here knows of jobs, plans or runners: all comes in [`GuardSettings`].

pub mod audit;
pub(crate) mod container;
mod ids;
pub mod image;
mod names;
pub mod ownership;
pub mod parse;
pub(crate) mod peer;
mod pin;
pub mod policy;
mod policy_file;
mod refusal;
#[cfg(test)]
mod rules_test;
mod server;
mod settings;

pub(crate) use audit::AuditEvent;
pub(crate) use image::{HELPER_REPOSITORY, PORTABLE_REPOSITORY};
pub use names::Names;
pub(crate) use policy_file::{PolicyError, PolicyFile};
pub use refusal::Refusal;
pub(crate) use server::engine::shares_mounts;
pub use server::{guard::Guard, report::Summary};
pub(crate) use settings::Build;
pub use settings::{GuardSettings, ImagePolicy, Limits, Mapping};

//! What Docker a job gets: none, a daemon of its own (a service such as `docker:dind`), or the
//! engine's own socket. Decided here alone, from the job's services and variables and the runner's
//! settings, with a reason that can be printed. Pure; nothing is made, and nothing is put off: a
//! job that cannot have its daemon is told why before anything starts.
//!
//! The official image and those made like it are understood (docker-library/docker,
//! `dockerd-entrypoint.sh`): `DOCKER_TLS_CERTDIR` decides whether the daemon listens with TLS on
//! 2376 or without on 2375, and flags in the service's `command` are the daemon's.

mod address;
mod buildkit;
mod command;
mod dind;
mod error;
mod inputs;
mod networks;
mod plan;
mod shared_socket;
mod socket;

#[cfg(test)]
mod tests;

pub use buildkit::BuildKit;
pub use dind::{CertificatePlan, DindPlan};
pub use error::AccessError;
pub use inputs::is_rootless;
pub use networks::InnerNetworks;
pub use plan::Access;
pub(super) use plan::{Request, note_unset, plan};
pub use shared_socket::{SOCKET_DIRECTORY, SOCKET_GROUP, SocketPlan};
pub use socket::Socket;

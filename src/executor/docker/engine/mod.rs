//! The only door to a Docker engine: connecting ([`connection`]), images ([`image`], `base::image_ref`,
//! [`auth`]), the helper image ([`helper_image`]).
//!
//! What a job's containers look like is not decided here; `executor::docker` uses
//! [`Engine::client`] for them and wraps what goes wrong in this module's [`Error`].

pub mod auth;
pub mod cgroup;
mod compose;
pub mod connection;
mod credential_helper;
mod error;
mod helper;
pub mod helper_image;
pub mod image;
pub mod network;
mod program;
mod pulls;
#[cfg(test)]
pub(crate) mod testing;
mod transport;
mod tree;
mod version;

pub use connection::{ConnectError, Engine, EngineEnv};
pub use error::Error;
pub use version::ApiVersion;

//! What the helper image is to those who compose, import and remember it: its paths, its errors,
//! and the cache of it that an engine's connection holds.

use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use super::{
    Error,
    tree::{Hashes, TreeError},
};

/// Where our executable is in the helper image.
pub const EXECUTABLE: &str = "/usr/bin/longshore";
/// `PATH` in the helper image.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Directory of the portable helper.
pub const PORTABLE: &str = "/.longshore";

/// The helper image on an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperImage {
    /// `longshore-helper:<hash>`.
    pub reference: String,
    /// `sha256:…`
    pub id: String,
    /// What is not in it because the host does not have it, for the daemon's log.
    pub warnings: Vec<String>,
}

/// Why there is no helper image.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HelperImageError {
    /// No git on the host.
    #[error("git is not installed on this host, and the helper image is made of it")]
    NoGit,
    /// No shell on the host.
    #[error("this host has no /bin/sh to make the helper image of")]
    NoShell,
    /// The engine cannot run this host's programs.
    #[error("the engine runs on {engine}, this host's programs are for {host}")]
    Architecture {
        /// Of the engine.
        engine: String,
        /// Of this host.
        host: String,
    },
    /// A part of it cannot be read.
    #[error("cannot compose the helper image")]
    Compose(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The engine does not take it.
    #[error(transparent)]
    Engine(Arc<Error>),
}

impl HelperImageError {
    /// What the operator can do.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoGit => Some(
                "install the package `git` on this host, or set `helper_image` in \
                 [runners.docker] to an image that has git and a shell",
            ),
            Self::Architecture { .. } => Some(
                "set `helper_image` in [runners.docker] to an image of the engine's architecture",
            ),
            Self::NoShell | Self::Compose(_) => {
                Some("set `helper_image` in [runners.docker] to an image that has git and a shell")
            }
            Self::Engine(_) => None,
        }
    }
}

impl From<TreeError> for HelperImageError {
    fn from(error: TreeError) -> Self {
        Self::Compose(Arc::new(error))
    }
}

impl From<Error> for HelperImageError {
    fn from(error: Error) -> Self {
        Self::Engine(Arc::new(error))
    }
}

/// What an engine is known to have, and the hashes of the host's files.
#[derive(Default)]
pub(super) struct HelperImageCache {
    pub(super) image: Mutex<Arc<OnceCell<HelperImage>>>,
    pub(super) hashes: Arc<Mutex<Hashes>>,
}

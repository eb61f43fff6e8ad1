//! Versions of the Docker Engine API.

use std::fmt;

/// A version of the Docker Engine API, `major.minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiVersion {
    /// 1 so far.
    pub major: u32,
    /// Grows with every release that changes the API.
    pub minor: u32,
}

impl ApiVersion {
    /// The oldest engine we talk to, Docker 17.06: from here on a wait for a container that has
    /// not started yet is answered when it ends (`condition=next-exit`).
    pub const OLDEST: Self = Self { major: 1, minor: 30 };
    /// The newest API whose answers our client knows (`bollard::API_DEFAULT_VERSION`).
    pub(super) const NEWEST: Self = Self { major: 1, minor: 53 };
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

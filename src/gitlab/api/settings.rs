//! What a client is made of.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::address::shown;
use crate::{base::secret::Secret, config::RunnerConfig};

/// The server, and how it is reached. Clients whose url, token, CA file and client certificate are equal
/// should be one, as they share a queue cursor.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientSettings {
    /// GitLab's address.
    pub url: String,
    /// The runner's token; empty for a client that only handles artifacts.
    pub token: Secret,
    /// PEM bundle of CAs that are trusted beside the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// Client certificate; only with the key.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_key_file: Option<PathBuf>,
    /// Where `<host>.crt`, `<host>.auth.crt` and `<host>.auth.key` are looked for: `certs` beside
    /// the configuration file.
    pub certs_dir: Option<PathBuf>,
    /// How long idle connections live; zero for ever.
    pub connection_max_age: Duration,
}

impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address may hold a password.
        f.debug_struct("ClientSettings").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}

impl ClientSettings {
    /// The settings of a `[[runners]]` entry.
    #[must_use]
    pub fn of(
        runner: &RunnerConfig,
        certs_dir: Option<&Path>,
        connection_max_age: Duration,
    ) -> Self {
        Self {
            url: runner.gitlab.url.clone(),
            token: runner.gitlab.token.clone(),
            tls_ca_file: runner.gitlab.tls.ca.clone(),
            tls_cert_file: runner.gitlab.tls.cert.clone(),
            tls_key_file: runner.gitlab.tls.key.clone(),
            certs_dir: certs_dir.map(Path::to_owned),
            connection_max_age,
        }
    }
}

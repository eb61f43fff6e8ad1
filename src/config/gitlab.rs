//! What a runner is to its GitLab: address, credentials, and how it asks for jobs.

use std::{path::PathBuf, time::Duration};

use crate::base::{ids::ShortToken, secret::Secret};

/// The settings of one runner entry that concern its GitLab server.
#[derive(Debug, Clone, PartialEq)]
pub struct GitLabConfig {
    /// GitLab's base URL, as in the file with environment references replaced; see
    /// `gitlab::api::client` for how the API's address is made of it.
    pub url: String,
    /// Base URL for git where it differs from `url`.
    pub clone_url: Option<String>,
    /// The runner's id at its server; 0 when unknown.
    pub id: i64,
    /// The authentication token; empty when the file has none (such a runner asks for no jobs).
    pub token: Secret,
    /// When the token was issued, RFC 3339; only for rotation.
    pub token_obtained_at: Option<String>,
    /// When the token ends, RFC 3339.
    pub token_expires_at: Option<String>,
    /// Certificates.
    pub tls: TlsFiles,
    /// Job requests at once, at least 1.
    pub request_concurrency: usize,
    /// Waits the whole interval even right after a job was received.
    pub strict_check_interval: bool,
    /// Failed requests in a row before the runner is paused, at least 1.
    pub unhealthy_requests_limit: u32,
    /// How long it is paused.
    pub unhealthy_interval: Duration,
    /// Tries for the final update of a job, at least 1.
    pub final_update_retry_limit: u32,
    /// Uploads of artifacts.
    pub artifact: ArtifactConfig,
}

impl GitLabConfig {
    /// The part of the token that may be shown.
    #[must_use]
    pub fn short_token(&self) -> ShortToken {
        ShortToken::of(self.token.expose())
    }
}

/// PEM files for the connection to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsFiles {
    /// CAs that are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// Client certificate; only with `key`.
    pub cert: Option<PathBuf>,
    /// Key of the client certificate.
    pub key: Option<PathBuf>,
}

/// Deadlines of an artifact's upload.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactConfig {
    /// Of the whole upload.
    pub upload_timeout: Duration,
    /// Of the answer, once all is sent.
    pub response_header_timeout: Duration,
}

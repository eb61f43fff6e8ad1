//! Clients for tests.

use std::time::Duration;

use super::{client::Client, retry, settings::ClientSettings, transport::Timing};
use crate::{
    base::{backoff::Backoff, secret::Secret},
    gitlab::test_server::Server,
};

/// A client of this server whose retries come at once.
pub(super) fn client_of(server: &Server) -> Client {
    client(settings(server.url()))
}

/// Settings with a token and nothing else.
pub(super) fn settings(url: &str) -> ClientSettings {
    ClientSettings {
        url: url.to_owned(),
        token: Secret::new("glrt-secret"),
        tls_ca_file: None,
        tls_cert_file: None,
        tls_key_file: None,
        certs_dir: None,
        connection_max_age: Duration::from_mins(15),
    }
}

/// Retries that come at once; deadlines far away.
pub(super) fn quick() -> Timing {
    let first = Duration::from_millis(1);
    Timing { retry: Backoff { first, ..retry::JOB_API }, ..Timing::JOB_API }
}

/// A client whose retries come at once.
pub(super) fn client(settings: ClientSettings) -> Client {
    Client::with(settings, None, quick()).unwrap()
}

//! Whether a daemon has TLS.

use super::super::{
    super::service::ServicePlan, address::PLAIN_PORT, command::Command, inputs::Inputs,
};

/// Where the image has its certificates when nobody says otherwise (`ENV DOCKER_TLS_CERTDIR`).
const CERTIFICATES: &str = "/certs";

/// Whether a daemon has TLS, and why.
pub(super) struct Tls {
    /// Directory of the certificates; `None` without TLS.
    pub(super) directory: Option<String>,
    /// Why it has none, for the job's author; empty when the job says so itself.
    pub(super) because: &'static str,
    /// The job asks for TLS, but its address has the port without it.
    pub(super) contradicts_port: bool,
}

impl Tls {
    pub(super) fn new(
        inputs: &Inputs<'_>,
        service: &ServicePlan,
        command: &Command<'_>,
        asked_port: Option<u16>,
    ) -> Self {
        let verify = inputs.variable("DOCKER_TLS_VERIFY").is_some();
        let written = service.variable("DOCKER_TLS_CERTDIR").or_else(|| {
            // It is no secret, and without it the two sides disagree.
            inputs.variables.value("DOCKER_TLS_CERTDIR")
        });
        let plain_port = asked_port == Some(PLAIN_PORT) && !verify;
        let (directory, because) = match written {
            Some("") => (None, ""),
            Some(directory) => (Some(directory), ""),
            None if plain_port => (None, ", as DOCKER_HOST has the port without it"),
            None if command.turns_tls_off => (None, ", as the service's command says"),
            None => (Some(CERTIFICATES), ""),
        };
        Self {
            directory: directory.map(|d| d.trim_end_matches('/').to_owned()),
            because,
            contradicts_port: plain_port && written.is_some(),
        }
    }
}

//! Credentials for registries that a client sends (G-66). Pure.

use serde_json::{Map, Value};

use crate::guard::refusal::Refusal;

use super::body::fields::{
    self,
    Rule::{self, Drop, Text},
};

/// Credentials with known fields only.
///
/// # Errors
/// When there are others, or they are no strings.
pub(crate) fn credentials(map: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    const KNOWN: &[(&str, Rule<()>)] = &[
        ("username", Text),
        ("password", Text),
        ("auth", Text),
        ("email", Drop),
        ("serveraddress", Text),
        ("identitytoken", Text),
        ("registrytoken", Text),
    ];
    fields::apply(KNOWN, map, "", &mut ())
}

/// The registry that a server's address means.
#[must_use]
pub(crate) fn registry_host(address: &str) -> &str {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    let host = rest.unwrap_or(address).split('/').next().unwrap_or_default();
    match host {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

//! Certificates for a daemon and its job.

use super::super::{super::service::ServicePlan, inputs::NAME, shared_socket::ROOTLESS};

/// Certificates for a daemon and its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificatePlan {
    /// `DOCKER_TLS_CERTDIR`.
    pub directory: String,
    /// Names that the daemon is reached by, and those that the job adds (`DOCKER_TLS_SAN`).
    pub names: Vec<String>,
    /// User that the daemon runs as.
    pub owner: u32,
}

impl CertificatePlan {
    pub(super) fn new(
        directory: &str,
        service: &ServicePlan,
        host: &str,
        aliases: &[String],
        rootless: bool,
    ) -> Self {
        Self {
            directory: directory.to_owned(),
            names: names(service, host, aliases),
            owner: if rootless { ROOTLESS } else { 0 },
        }
    }

    /// The directory of what the job has of them.
    #[must_use]
    pub fn client(&self) -> String {
        format!("{}/client", self.directory)
    }
}

/// Names in the daemon's certificate.
fn names(service: &ServicePlan, host: &str, aliases: &[String]) -> Vec<String> {
    let mut names: Vec<String> = [NAME, "localhost", "127.0.0.1", "::1", host]
        .into_iter()
        .map(str::to_owned)
        .chain(aliases.iter().cloned())
        .chain([service.container.clone()])
        .collect();
    let own = service.variable("DOCKER_TLS_SAN").unwrap_or_default();
    let own = own.split(',').filter_map(|entry| entry.trim().split_once(':'));
    names.extend(own.filter(|(kind, _)| matches!(*kind, "DNS" | "IP")).map(|(_, n)| n.to_owned()));
    let mut seen = Vec::new();
    names.retain(|name| {
        let is_new = !name.is_empty() && !seen.contains(name);
        seen.push(name.clone());
        is_new
    });
    names
}

//! What the decision is made of: services, variables, network and settings, and what they say.

use crate::config::ContainerConfig;

use super::{
    super::{network::NetworkPlan, policy, service::ServicePlan, variable::Expanded},
    address::Address,
};

/// The name under which jobs expect their daemon.
pub(super) const NAME: &str = "docker";

/// What the decision is made of.
pub(super) struct Inputs<'a> {
    pub(super) services: &'a [ServicePlan],
    pub(super) variables: &'a Expanded,
    pub(super) network: &'a NetworkPlan,
    pub(super) containers: &'a ContainerConfig,
}

impl Inputs<'_> {
    /// A variable of the job that says something: an empty one does not.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.value(name).filter(|value| !value.is_empty())
    }

    /// The job's `DOCKER_HOST`.
    pub(super) fn address(&self) -> Address {
        let with_tls = self.variable("DOCKER_TLS_VERIFY").is_some();
        Address::parse(self.variable("DOCKER_HOST"), with_tls)
    }

    /// The names of a service that is a daemon: its own, and the usual one unless another service
    /// has it.
    pub(super) fn aliases(&self, service: &ServicePlan) -> Vec<String> {
        let mut aliases = service.aliases.clone();
        if !self.has_named() {
            aliases.push(NAME.to_owned());
        }
        aliases
    }

    /// Whether a service has the name under which jobs expect their daemon.
    pub(super) fn has_named(&self) -> bool {
        self.services.iter().any(|s| s.aliases.iter().any(|alias| alias == NAME))
    }
}

/// Whether a service is a Docker daemon (`[runners.docker.dind] images`).
pub(super) fn is_daemon(containers: &ContainerConfig, service: &ServicePlan) -> bool {
    let images = &containers.dind.images;
    policy::matches_any(images, &service.written) || policy::matches_any(images, &service.image)
}

/// Whether an image's programs run without root: those of Docker and BuildKit say so in their names
/// (`docker:dind-rootless`, `moby/buildkit:rootless`).
#[must_use]
pub fn is_rootless(image: &str) -> bool {
    image.contains("rootless")
}

//! The decision.

use std::fmt;

use crate::config::{ContainerConfig, DindMode, DindNetwork};

use super::{
    super::{
        network::NetworkPlan, placement::WarmDaemonLease, service::ServicePlan, spec::StepSpec,
        variable::Expanded,
    },
    address::USUAL_SOCKET,
    buildkit::BuildKit,
    dind::DindPlan,
    error::AccessError,
    inputs::{Inputs, is_daemon},
    socket::Socket,
};

/// What Docker a job gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The job asks for none.
    None,
    /// A daemon in a container beside the job's.
    Dind(Box<DindPlan>),
    /// The engine's own socket.
    Socket(Socket),
}

impl fmt::Display for Access {
    /// One line for the job's author; nothing for a job that has no Docker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Dind(dind) => write!(f, "Docker for this job: {dind}"),
            Self::Socket(socket) => write!(f, "Docker for this job: {socket}"),
        }
    }
}

impl Access {
    /// The daemon, if `service` is its container's plan.
    #[must_use]
    pub fn dind_of(&self, service: &ServicePlan) -> Option<&DindPlan> {
        self.dind().filter(|dind| dind.container == service.container)
    }

    /// The daemon in whose network the job's container is, if it is in one's.
    #[must_use]
    pub fn network_owner(&self) -> Option<&DindPlan> {
        self.dind().filter(|dind| dind.network == DindNetwork::Shared)
    }

    /// The daemon, if there is one.
    #[must_use]
    pub fn dind(&self) -> Option<&DindPlan> {
        match self {
            Self::Dind(dind) => Some(dind),
            Self::None | Self::Socket(_) => None,
        }
    }

    /// The guarded socket, if there is one.
    #[must_use]
    pub fn guarded(&self) -> Option<&Socket> {
        match self {
            Self::Socket(socket) if socket.guarded => Some(socket),
            Self::None | Self::Dind(_) | Self::Socket(_) => None,
        }
    }

    /// The BuildKit beside a guarded socket, if there is one.
    #[must_use]
    pub fn buildkit(&self) -> Option<&BuildKit> {
        self.guarded()?.buildkit.as_ref()
    }

    /// Whether what `volumes` mounts of the engine's socket is mounted as it is.
    pub(in crate::workload) fn is_raw(&self) -> bool {
        matches!(self, Self::Socket(socket) if !socket.guarded)
    }
}

/// What the decision depends on, beside services and variables.
pub(in crate::workload) struct Request<'a> {
    pub(in crate::workload) containers: &'a ContainerConfig,
    pub(in crate::workload) network: &'a NetworkPlan,
    /// The daemon that is lent to the job.
    pub(in crate::workload) warm: Option<&'a WarmDaemonLease>,
}

/// Decides, and makes the job's services and variables what they must be.
///
/// # Errors
/// When the runner's settings forbid what the job asks for.
pub(in crate::workload) fn plan(
    request: &Request<'_>,
    services: &mut Vec<ServicePlan>,
    variables: &mut Expanded,
    warnings: &mut Vec<String>,
) -> Result<Access, AccessError> {
    let Request { containers, network, warm } = request;
    if let Some(lease) = warm
        && containers.dind.mode == DindMode::Sidecar
        && let Some(service) = services.iter_mut().find(|service| is_daemon(containers, service))
    {
        service.container.clone_from(&lease.container);
    }
    let access = decide(&Inputs { services, variables, network, containers })?;
    match &access {
        Access::None => {}
        Access::Dind(dind) => {
            dind.apply(services);
            for (name, value) in &dind.variables {
                variables.set_own(name, value);
            }
            warnings.extend(dind.notes.iter().cloned());
        }
        Access::Socket(socket) => {
            services.retain(|service| Some(&service.written) != socket.in_place_of.as_ref());
            for (name, value) in &socket.variables {
                match value {
                    Some(value) => variables.set_own(name, value),
                    None => variables.remove(name),
                }
            }
            warnings.extend(socket.notes.iter().cloned());
        }
    }
    Ok(access)
}

pub(super) fn decide(inputs: &Inputs<'_>) -> Result<Access, AccessError> {
    let Some(service) = inputs.services.iter().find(|s| is_daemon(inputs.containers, s)) else {
        return Ok(inputs.socket(None).map_or(Access::None, Access::Socket));
    };
    match inputs.containers.dind.mode {
        DindMode::Socket => Ok(inputs.socket(Some(service)).map_or(Access::None, Access::Socket)),
        DindMode::Refuse => Err(AccessError::Refused { service: service.written.clone() }),
        DindMode::Sidecar => Ok(Access::Dind(Box::new(DindPlan::new(inputs, service)?))),
    }
}

/// Warns of a script that unsets `DOCKER_HOST` and leaves TLS on: docker then asks this very machine,
/// whatever socket there is (docker/cli: `tcp://localhost:2376`).
pub(in crate::workload) fn note_unset(
    access: &Access,
    variables: &Expanded,
    steps: &[StepSpec],
    warnings: &mut Vec<String>,
) {
    let says = |text: &str| steps.iter().flat_map(|s| &s.script).any(|line| line.contains(text));
    let verifies = variables.value("DOCKER_TLS_VERIFY").is_some_and(|value| !value.is_empty());
    if access.dind().is_some_and(|dind| dind.network == DindNetwork::Own)
        && verifies
        && says("unset DOCKER_HOST")
        && !says("DOCKER_TLS_VERIFY")
    {
        warnings.push(format!(
            "the script unsets DOCKER_HOST but not DOCKER_TLS_VERIFY, with which docker asks \
             localhost: without both it finds the job's daemon at {USUAL_SOCKET}"
        ));
    }
}

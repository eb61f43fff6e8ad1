//! A Docker daemon of the job's own, in a container beside the job's.

mod certificates;
mod flags;
mod reach;
mod tls;
mod variables;

use std::fmt;

use crate::config::DindNetwork;

use super::{
    super::{policy, service::ServicePlan},
    address::{Address, PLAIN_PORT, TLS_PORT},
    command::Command,
    error::AccessError,
    inputs::{Inputs, is_rootless},
    networks::InnerNetworks,
    shared_socket::SocketPlan,
};

pub use certificates::CertificatePlan;

use flags::DaemonFlags;
use reach::Reach;
use tls::Tls;
use variables::JobSide;

/// A daemon of the job's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DindPlan {
    /// The container of its service.
    pub container: String,
    /// The service as the job writes it.
    pub service: String,
    /// Host name in the job's variables.
    pub host: String,
    /// Port that the job's tools use.
    pub port: u16,
    /// Certificates that it is given; `None` without TLS.
    pub certificates: Option<CertificatePlan>,
    /// Its unix socket, where the job has it; `None` when its command is not understood.
    pub socket: Option<SocketPlan>,
    /// Whether the job's container is in its network or in one of its own.
    pub network: DindNetwork,
    /// Its data root in the container.
    pub data_root: String,
    /// What it is told of its networks; `None` where its command or the operator's file does.
    pub networks: Option<InnerNetworks>,
    /// Whether its command is the image's own, so that it must listen where it is expected to.
    pub is_understood: bool,
    /// Whether it gets all privileges.
    pub privileged: bool,
    /// A daemon without root in a container without privileges: it needs the engine's filters off.
    pub unconfined: bool,
    /// Names of its container in the job's network.
    pub aliases: Vec<String>,
    /// Flags that are added to its own.
    pub flags: Vec<String>,
    /// Its environment, where it differs from that of other services; `None` removes a name.
    pub environment: Vec<(&'static str, Option<String>)>,
    /// Variables for the job, which it does not set itself.
    pub variables: Vec<(&'static str, String)>,
    /// Contradictions between the job's variables, one line each.
    pub notes: Vec<String>,
    /// Why it is reached as it is; empty when that is the usual way.
    because: &'static str,
}

impl fmt::Display for DindPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, host, port, because, .. } = self;
        write!(f, "a daemon of its own ({service}) at ")?;
        match self.socket.as_ref().and_then(SocketPlan::asked) {
            Some(path) => write!(f, "unix://{path}, as DOCKER_HOST has it"),
            None => {
                let tls = if self.certificates.is_some() { "with" } else { "without" };
                write!(f, "tcp://{host}:{port}, {tls} TLS{because}")
            }
        }
    }
}

impl DindPlan {
    /// The daemon of this service.
    pub(super) fn new(inputs: &Inputs<'_>, service: &ServicePlan) -> Result<Self, AccessError> {
        let rootless = is_rootless(&service.image);
        let privileged = privileged(inputs, service, rootless)?;
        let command = Command::of(service);
        let aliases = inputs.aliases(service);
        let reach = Reach::new(inputs, &aliases);
        let tls = Tls::new(inputs, service, &command, reach.asked_port);
        let usual = if tls.directory.is_some() { TLS_PORT } else { PLAIN_PORT };
        let port = reach.asked_port.unwrap_or(usual);
        let certificates = tls.directory.as_ref().map(|directory| {
            CertificatePlan::new(directory, service, &reach.host, &aliases, rootless)
        });
        let socket = command
            .takes_flags
            .then(|| SocketPlan::new(&inputs.containers.volumes.entries, &reach.address, rootless));
        let job = JobSide {
            inputs,
            reach: &reach,
            port,
            certificates: certificates.as_ref(),
            asked_socket: socket.as_ref().and_then(SocketPlan::asked),
        };
        let (variables, mut notes) = job.variables();
        notes.extend(job.contradictions(tls.contradicts_port));
        let mut environment = environment(inputs, service, &tls, &reach);
        let flags = if command.takes_flags {
            let flags = DaemonFlags {
                inputs,
                command: &command,
                service,
                port,
                has_tls: certificates.is_some(),
                socket: socket.as_ref(),
            };
            environment.extend(flags.environment());
            flags.plan()
        } else {
            flags::Planned::default()
        };
        Ok(Self {
            container: service.container.clone(),
            service: service.written.clone(),
            host: reach.host,
            port,
            certificates,
            socket,
            network: reach.network,
            data_root: data_root(rootless).to_owned(),
            networks: flags.networks,
            is_understood: command.takes_flags,
            privileged,
            unconfined: rootless && !privileged,
            aliases,
            flags: flags.flags,
            environment,
            variables,
            notes,
            because: tls.because,
        })
    }

    /// Makes its service's plan what it must be.
    pub(super) fn apply(&self, services: &mut [ServicePlan]) {
        let Some(service) = services.iter_mut().find(|s| s.container == self.container) else {
            return;
        };
        service.privileged = self.privileged;
        service.unconfined = self.unconfined;
        service.aliases.clone_from(&self.aliases);
        service.command.extend_from_slice(&self.flags);
        for (name, value) in &self.environment {
            let is_it = |line: &str| line.split_once('=').is_some_and(|(key, _)| key == *name);
            service.environment.retain(|line| !is_it(line));
            if let Some(value) = value {
                service.environment.push(format!("{name}={value}"));
            }
        }
    }
}

/// The data root of the official images (docker-library/docker: `VOLUME`).
fn data_root(rootless: bool) -> &'static str {
    if rootless { "/home/rootless/.local/share/docker" } else { "/var/lib/docker" }
}

fn privileged(
    inputs: &Inputs<'_>,
    service: &ServicePlan,
    rootless: bool,
) -> Result<bool, AccessError> {
    let containers = inputs.containers;
    if containers.runtime.as_deref().is_some_and(|runtime| runtime.starts_with("sysbox")) {
        return Ok(false);
    }
    if rootless {
        return Ok(service.privileged);
    }
    let forbidden = |key| Err(AccessError::Forbidden { service: service.written.clone(), key });
    if containers.privileges.services == Some(false) {
        return forbidden("[runners.docker] services_privileged = false");
    }
    if !policy::is_privileged(&service.written, &containers.privileges.allowed_services) {
        return forbidden("[runners.docker] allowed_privileged_services");
    }
    Ok(true)
}

/// What of the environment it must have, or not.
fn environment(
    inputs: &Inputs<'_>,
    service: &ServicePlan,
    tls: &Tls,
    reach: &Reach,
) -> Vec<(&'static str, Option<String>)> {
    let directory = tls.directory.clone().unwrap_or_default();
    let mut environment = vec![("DOCKER_TLS_CERTDIR", Some(directory))];
    if tls.directory.is_none() {
        // The daemon itself reads it, and would ask for certificates (dockerd: `--tlsverify`).
        environment.push(("DOCKER_TLS_VERIFY", None));
    }
    if matches!(reach.address, Address::Unix(_))
        && service.variable("DOCKER_HOST") == inputs.variable("DOCKER_HOST")
    {
        // It is meant for the job; the image's entrypoint would have the daemon listen there.
        environment.push(("DOCKER_HOST", None));
    }
    environment
}

//! The engine's own socket in a job: where it is, and what the job's variables say of it.

use std::fmt;

use crate::config::{SocketMode, volume::Volume};

use super::{
    super::service::ServicePlan,
    address::USUAL_SOCKET,
    buildkit::BuildKit,
    inputs::{Inputs, NAME},
};

/// The engine's own socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Where it is in the job's containers; the job's variables lead to the first.
    pub paths: Vec<String>,
    /// Whether a guard stands before it. If not, it is mounted as it is.
    pub guarded: bool,
    /// The BuildKit beside it.
    pub buildkit: Option<BuildKit>,
    /// Names under which the job expects ports that its containers publish.
    pub names: Vec<String>,
    /// The service in whose place it is, as the job writes it.
    pub in_place_of: Option<String>,
    /// Variables for the job; `None` removes one.
    pub variables: Vec<(&'static str, Option<String>)>,
    /// What of the job's own variables does not hold here, one line each.
    pub notes: Vec<String>,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine's own socket at {}, ", self.paths.join(", "))?;
        f.write_str(if self.guarded { "guarded" } else { "which makes it root on its host" })?;
        match &self.in_place_of {
            Some(service) => write!(f, ", in place of the service {service}")?,
            None => f.write_str(", as the runner's configuration says")?,
        }
        match &self.buildkit {
            Some(_) => write!(f, "; BuildKit of its own at {}", BuildKit::address()),
            None => Ok(()),
        }
    }
}

impl Inputs<'_> {
    /// The engine's socket, where the runner mounts or offers it, or in the place of a service.
    pub(super) fn socket(&self, service: Option<&ServicePlan>) -> Option<Socket> {
        let mode = self.containers.socket.mode;
        let mut paths: Vec<String> = self
            .containers
            .volumes
            .entries
            .iter()
            .filter_map(|text| Volume::parse(text).ok())
            .filter(Volume::is_engine_socket)
            .map(|volume| self.variables.expand(&volume.destination))
            .collect();
        if paths.is_empty() && (service.is_some() || mode == SocketMode::Guarded) {
            paths.push(USUAL_SOCKET.to_owned());
        }
        let mut socket = Socket {
            guarded: mode != SocketMode::Raw,
            buildkit: (mode != SocketMode::Raw).then(|| self.buildkit()).flatten(),
            names: match service {
                Some(service) => self.aliases(service),
                None if self.has_named() => Vec::new(),
                None => vec![NAME.to_owned()],
            },
            in_place_of: service.map(|service| service.written.clone()),
            variables: Vec::new(),
            notes: Vec::new(),
            paths,
        };
        let address = format!("unix://{}", socket.paths.first()?);
        if service.is_some() {
            self.point_to(&address, &mut socket);
        } else if socket.guarded && self.variable("DOCKER_HOST").is_none() {
            socket.variables.push(("DOCKER_HOST", Some(address)));
        }
        if socket.guarded {
            let build = if socket.buildkit.is_some() {
                self.buildkit_variables()
            } else {
                // The engine's BuildKit is shared by all jobs.
                vec![("DOCKER_BUILDKIT", Some("0".to_owned()))]
            };
            let defaults = [
                // Where Testcontainers finds published ports and the socket (Testcontainers: "Custom
                // configuration").
                ("TESTCONTAINERS_HOST_OVERRIDE", socket.names.first().cloned()),
                ("TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE", socket.paths.first().cloned()),
                ("TESTCONTAINERS_RYUK_CONTAINER_PRIVILEGED", Some("false".to_owned())),
            ];
            let is_new = |(name, value): &(&str, Option<String>)| {
                value.is_some() && self.variable(name).is_none()
            };
            socket.variables.extend(build.into_iter().chain(defaults).filter(is_new));
        }
        Some(socket)
    }

    /// Makes a job that expects a daemon on TCP find the socket.
    fn point_to(&self, address: &str, socket: &mut Socket) {
        for name in ["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_TLS_CERTDIR", "DOCKER_TLS"] {
            if self.variables.value(name).is_some() {
                socket.variables.push((name, None));
            }
        }
        if let Some(own) = self.variable("DOCKER_HOST").filter(|own| *own != address) {
            socket.notes.push(format!(
                "DOCKER_HOST is {own} in this job; here it is {address}, as this runner gives jobs \
                 the engine's socket in place of a daemon of their own"
            ));
        }
        socket.variables.push(("DOCKER_HOST", Some(address.to_owned())));
    }
}

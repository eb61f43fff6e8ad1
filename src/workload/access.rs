//! What Docker a job gets: none, a daemon of its own (a service such as `docker:dind`), or the
//! engine's own socket. Decided here alone, from the job's services and variables and the runner's
//! settings, with a reason that can be printed. Pure; nothing is made, and nothing is put off: a
//! job that cannot have its daemon is told why before anything starts.
//!
//! The official image and those made like it are understood (docker-library/docker,
//! `dockerd-entrypoint.sh`): `DOCKER_TLS_CERTDIR` decides whether the daemon listens with TLS on
//! 2376 or without on 2375, and flags in the service's `command` are the daemon's.

mod buildkit;
mod command;
mod networks;
mod shared_socket;
mod socket;

use std::fmt;

use crate::{
    config::{DindMode, DindNetwork, DockerConfig, volume::Volume},
    workload::job::{JobStep, variable::Expanded},
};

use super::{NetworkPlan, policy, service::ServicePlan};

pub use buildkit::BuildKit;
pub use networks::InnerNetworks;
pub use shared_socket::{SOCKET_DIRECTORY, SOCKET_GROUP, SocketPlan};
pub use socket::Socket;

use command::Command;
use shared_socket::USUAL_SOCKET;

/// Ports of a daemon without and with TLS (IANA: `docker`, `docker-s`).
const PLAIN_PORT: u16 = 2375;
const TLS_PORT: u16 = 2376;

/// The name under which jobs expect their daemon.
const NAME: &str = "docker";

/// The address of a daemon in a network that the job is in too.
const LOCAL: &str = "127.0.0.1";

/// Where the image has its certificates when nobody says otherwise (`ENV DOCKER_TLS_CERTDIR`).
const CERTIFICATES: &str = "/certs";

/// Range of the daemon's default bridge where the job's network has IPv6 (RFC 4193).
const BRIDGE_IPV6: &str = "fd6c:6f6e:6773::/64";

/// User and group of rootless images.
const ROOTLESS: u32 = 1000;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// The job asks for none.
    None,
    /// A daemon in a container beside the job's.
    Sidecar(Box<Sidecar>),
    /// The engine's own socket.
    Socket(Socket),
}

/// A daemon of the job's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
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
    /// Whether the job's container is in its network or has a place of its own.
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
    /// What the job has of them.
    #[must_use]
    pub fn client(&self) -> String {
        format!("{}/client", self.directory)
    }
}

/// Why a job cannot have its daemon. The job's author reads this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The runner gives none.
    #[error(
        "the service {service} is a Docker daemon, and this runner gives jobs none \
         ([runners.docker.dind] mode = \"refuse\")"
    )]
    Refused {
        /// The service.
        service: String,
    },
    /// It would need what the runner forbids.
    #[error(
        "the service {service} is a Docker daemon, which needs a privileged container, and {key} \
         forbids it; a rootless image or a runtime such as sysbox-runc needs none"
    )]
    Forbidden {
        /// The service.
        service: String,
        /// The key.
        key: &'static str,
    },
}

impl fmt::Display for Access {
    /// One line for the job's author; nothing for a job that has no Docker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Sidecar(sidecar) => {
                let Sidecar { service, host, port, because, .. } = &**sidecar;
                let tls = if sidecar.certificates.is_some() { "with" } else { "without" };
                write!(f, "Docker for this job: a daemon of its own ({service}) at ")?;
                match sidecar.asked_socket() {
                    Some(path) => write!(f, "unix://{path}, as DOCKER_HOST has it"),
                    None => write!(f, "tcp://{host}:{port}, {tls} TLS{because}"),
                }
            }
            Self::Socket(socket) => {
                let Socket { paths, guarded, in_place_of, buildkit, .. } = socket;
                write!(
                    f,
                    "Docker for this job: the engine's own socket at {}, ",
                    paths.join(", ")
                )?;
                f.write_str(if *guarded { "guarded" } else { "which makes it root on its host" })?;
                match in_place_of {
                    Some(service) => write!(f, ", in place of the service {service}")?,
                    None => f.write_str(", as the runner's configuration says")?,
                }
                match buildkit {
                    Some(_) => write!(f, "; BuildKit of its own at {}", BuildKit::address()),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Access {
    /// The daemon, if `service` is its container's plan.
    #[must_use]
    pub fn sidecar_of(&self, service: &ServicePlan) -> Option<&Sidecar> {
        match self {
            Self::Sidecar(sidecar) if sidecar.container == service.container => Some(sidecar),
            Self::Sidecar(_) | Self::None | Self::Socket(_) => None,
        }
    }

    /// The daemon in whose network the job's container is, if it is in one's.
    #[must_use]
    pub fn network_owner(&self) -> Option<&Sidecar> {
        self.sidecar().filter(|sidecar| sidecar.network == DindNetwork::Shared)
    }

    /// The daemon, if there is one.
    #[must_use]
    pub fn sidecar(&self) -> Option<&Sidecar> {
        match self {
            Self::Sidecar(sidecar) => Some(sidecar),
            Self::None | Self::Socket(_) => None,
        }
    }

    /// The guarded socket, if there is one.
    #[must_use]
    pub fn guarded(&self) -> Option<&Socket> {
        match self {
            Self::Socket(socket) if socket.guarded => Some(socket),
            Self::None | Self::Sidecar(_) | Self::Socket(_) => None,
        }
    }

    /// The BuildKit beside a guarded socket, if there is one.
    #[must_use]
    pub fn buildkit(&self) -> Option<&BuildKit> {
        self.guarded()?.buildkit.as_ref()
    }

    /// Whether what `volumes` mounts of the engine's socket is mounted as it is.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self, Self::Socket(socket) if !socket.guarded)
    }
}

/// For a script that takes `DOCKER_HOST` away and leaves TLS on: docker then asks this very machine,
/// whatever socket there is (docker/cli: `tcp://localhost:2376`).
pub(super) fn note_unset(
    access: &Access,
    variables: &Expanded,
    scripts: &[JobStep],
    warnings: &mut Vec<String>,
) {
    let says = |text: &str| scripts.iter().flat_map(|s| &s.script).any(|line| line.contains(text));
    let verifies = variables.value("DOCKER_TLS_VERIFY").is_some_and(|value| !value.is_empty());
    if let Some(sidecar) = access.sidecar()
        && sidecar.network == DindNetwork::Own
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

/// Decides, and makes the job's services and variables what they must be.
///
/// # Errors
/// When the runner's settings forbid what the job asks for.
pub(super) fn plan(
    docker: &DockerConfig,
    network: &NetworkPlan,
    services: &mut Vec<ServicePlan>,
    variables: &mut Expanded,
    warnings: &mut Vec<String>,
) -> Result<Access, AccessError> {
    let access = decide(&Asked { services, variables, network, docker })?;
    match &access {
        Access::None => {}
        Access::Sidecar(sidecar) => {
            sidecar.apply(services);
            for (name, value) in &sidecar.variables {
                variables.set_own(name, value);
            }
            warnings.extend(sidecar.notes.iter().cloned());
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

/// What the decision is made of.
struct Asked<'a> {
    services: &'a [ServicePlan],
    variables: &'a Expanded,
    network: &'a NetworkPlan,
    docker: &'a DockerConfig,
}

fn decide(asked: &Asked<'_>) -> Result<Access, AccessError> {
    let dind = &asked.docker.dind;
    let is_daemon = |s: &&ServicePlan| {
        policy::matches_any(&dind.images, &s.written) || policy::matches_any(&dind.images, &s.image)
    };
    let Some(service) = asked.services.iter().find(is_daemon) else {
        return Ok(asked.socket(None).map_or(Access::None, Access::Socket));
    };
    match dind.mode {
        DindMode::Socket => Ok(asked.socket(Some(service)).map_or(Access::None, Access::Socket)),
        DindMode::Refuse => Err(AccessError::Refused { service: service.written.clone() }),
        DindMode::Sidecar => Ok(Access::Sidecar(Box::new(asked.sidecar(service)?))),
    }
}

/// An address in `DOCKER_HOST`.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Unset,
    Tcp {
        host: String,
        port: u16,
    },
    /// A socket at this path.
    Unix(String),
    Other(String),
}

impl Asked<'_> {
    /// A variable of the job that says something: an empty one does not.
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.value(name).filter(|value| !value.is_empty())
    }

    fn address(&self) -> Address {
        let Some(text) = self.variable("DOCKER_HOST") else { return Address::Unset };
        // As docker reads it (docker/cli, `opts.ParseHost`): no path is the usual one, no scheme tcp.
        let rest = match text.split_once("://") {
            Some(("unix", "")) => return Address::Unix(USUAL_SOCKET.to_owned()),
            Some(("unix", path)) if path.starts_with('/') => return Address::Unix(path.to_owned()),
            Some(("tcp", rest)) => rest,
            None => text,
            Some(_) => return Address::Other(text.to_owned()),
        };
        let place = rest.split('/').next().unwrap_or_default();
        let implied =
            if self.variable("DOCKER_TLS_VERIFY").is_some() { TLS_PORT } else { PLAIN_PORT };
        match place.rsplit_once(':') {
            None => Address::Tcp { host: place.to_owned(), port: implied },
            Some((host, port)) => match port.parse() {
                Ok(port) => Address::Tcp { host: host.to_owned(), port },
                Err(_) => Address::Other(text.to_owned()),
            },
        }
    }

    fn sidecar(&self, service: &ServicePlan) -> Result<Sidecar, AccessError> {
        let rootless = is_rootless(&service.image);
        let privileged = self.privileged(service, rootless)?;
        let command = Command::of(service);
        let aliases = self.aliases(service);
        // Without a network of its own it has no name: all containers have the same address.
        let host = match self.network {
            NetworkPlan::Given(mode) if mode == "host" || mode.starts_with("container:") => LOCAL,
            _ if aliases.iter().any(|alias| alias == NAME) => NAME,
            _ => aliases.first().map_or(NAME, String::as_str),
        };
        let has_own = host != LOCAL;
        let network = if has_own { self.docker.dind.network } else { DindNetwork::Own };
        let is_near = |asked: &str| {
            (network == DindNetwork::Shared || !has_own) && matches!(asked, LOCAL | "localhost")
        };
        let address = self.address();
        let asked_port = match &address {
            Address::Tcp { host: asked, port }
                if asked == host || aliases.contains(asked) || is_near(asked) =>
            {
                Some(*port)
            }
            Address::Unset | Address::Unix(_) | Address::Other(_) | Address::Tcp { .. } => None,
        };
        let verify = self.variable("DOCKER_TLS_VERIFY").is_some();
        let written = service.variable("DOCKER_TLS_CERTDIR").or_else(|| {
            // It is no secret, and without it the two sides disagree.
            self.variables.value("DOCKER_TLS_CERTDIR")
        });
        let plain_port = asked_port == Some(PLAIN_PORT) && !verify;
        let (directory, because) = match written {
            Some("") => (None, ""),
            Some(directory) => (Some(directory), ""),
            None if plain_port => (None, ", as DOCKER_HOST has the port without it"),
            None if command.turns_tls_off => (None, ", as the service's command says"),
            None => (Some(CERTIFICATES), ""),
        };
        let directory = directory.map(|d| d.trim_end_matches('/').to_owned());
        let mut sidecar = Sidecar {
            container: service.container.clone(),
            service: service.written.clone(),
            port: asked_port.unwrap_or(if directory.is_some() { TLS_PORT } else { PLAIN_PORT }),
            certificates: directory.as_ref().map(|directory| CertificatePlan {
                directory: directory.clone(),
                names: certificate_names(service, host, &aliases),
                owner: if rootless { ROOTLESS } else { 0 },
            }),
            network,
            networks: None,
            data_root: if rootless {
                "/home/rootless/.local/share/docker".to_owned()
            } else {
                "/var/lib/docker".to_owned()
            },
            host: host.to_owned(),
            socket: command
                .takes_flags
                .then(|| SocketPlan::new(&self.docker.volumes, &address, rootless)),
            is_understood: command.takes_flags,
            privileged,
            unconfined: rootless && !privileged,
            aliases,
            flags: Vec::new(),
            environment: vec![("DOCKER_TLS_CERTDIR", Some(directory.unwrap_or_default()))],
            variables: Vec::new(),
            notes: Vec::new(),
            because,
        };
        self.complete_variables(&mut sidecar, &address, asked_port);
        self.note_contradictions(&mut sidecar, plain_port && written.is_some());
        if sidecar.certificates.is_none() {
            // The daemon itself reads it, and would ask for certificates (dockerd: `--tlsverify`).
            sidecar.environment.push(("DOCKER_TLS_VERIFY", None));
        }
        if matches!(address, Address::Unix(_))
            && service.variable("DOCKER_HOST") == self.variable("DOCKER_HOST")
        {
            // It is meant for the job; the image's entrypoint would have the daemon listen there.
            sidecar.environment.push(("DOCKER_HOST", None));
        }
        if command.takes_flags {
            self.add_flags(&mut sidecar, &command, service);
        }
        Ok(sidecar)
    }

    fn privileged(&self, service: &ServicePlan, rootless: bool) -> Result<bool, AccessError> {
        let docker = self.docker;
        if docker.runtime.as_deref().is_some_and(|runtime| runtime.starts_with("sysbox")) {
            return Ok(false);
        }
        if rootless {
            return Ok(service.privileged);
        }
        let forbidden = |key| Err(AccessError::Forbidden { service: service.written.clone(), key });
        if docker.services_privileged == Some(false) {
            return forbidden("[runners.docker] services_privileged = false");
        }
        if !policy::is_privileged(&service.written, &docker.allowed_privileged_services) {
            return forbidden("[runners.docker] allowed_privileged_services");
        }
        Ok(true)
    }

    /// Its own names, and the usual one unless another service has it.
    fn aliases(&self, service: &ServicePlan) -> Vec<String> {
        let mut aliases = service.aliases.clone();
        if !self.has_named() {
            aliases.push(NAME.to_owned());
        }
        aliases
    }

    /// Whether a service has the name under which jobs expect their daemon.
    fn has_named(&self) -> bool {
        self.services.iter().any(|s| s.aliases.iter().any(|alias| alias == NAME))
    }

    fn complete_variables(&self, sidecar: &mut Sidecar, address: &Address, port: Option<u16>) {
        match address {
            Address::Unset => {
                let address = format!("tcp://{}:{}", sidecar.host, sidecar.port);
                sidecar.variables.push(("DOCKER_HOST", address));
            }
            Address::Tcp { .. } if port.is_some() => {}
            Address::Unix(_) if sidecar.asked_socket().is_some() => {
                if self.variable("DOCKER_TLS_VERIFY").is_some() {
                    sidecar.notes.push(
                        "DOCKER_TLS_VERIFY is set, but DOCKER_HOST is a unix socket, which has no \
                         TLS: docker fails with both, so remove one of the two"
                            .to_owned(),
                    );
                }
                return;
            }
            Address::Tcp { .. } | Address::Unix(_) | Address::Other(_) => {
                sidecar.notes.push(format!(
                    "DOCKER_HOST is {}, which is not the job's daemon: that is at tcp://{}:{}; \
                     without the variable it is found",
                    self.variable("DOCKER_HOST").unwrap_or_default(),
                    sidecar.host,
                    sidecar.port,
                ));
                return;
            }
        }
        let Some(certificates) = &sidecar.certificates else { return };
        let client = certificates.client();
        for (name, value) in [("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", &client)] {
            if self.variable(name).is_none() {
                sidecar.variables.push((name, value.to_owned()));
            }
        }
    }

    fn note_contradictions(&self, sidecar: &mut Sidecar, plain_port_with_a_directory: bool) {
        let Some(certificates) = &sidecar.certificates else {
            if self.variable("DOCKER_TLS_VERIFY").is_some() && sidecar.asked_socket().is_none() {
                sidecar.notes.push(
                    "DOCKER_TLS_VERIFY is set, but DOCKER_TLS_CERTDIR is empty, and so the job's \
                     daemon has no TLS: remove one of the two"
                        .to_owned(),
                );
            }
            return;
        };
        let client = certificates.client();
        let path = self.variable("DOCKER_CERT_PATH").map(|path| path.trim_end_matches('/'));
        if let Some(path) = path.filter(|path| *path != client) {
            sidecar.notes.push(format!(
                "DOCKER_CERT_PATH is {path}, but DOCKER_TLS_CERTDIR has the job's certificates in \
                 {client}"
            ));
        }
        if plain_port_with_a_directory {
            sidecar.notes.push(format!(
                "DOCKER_HOST has the port without TLS, but DOCKER_TLS_CERTDIR is set: the job's \
                 daemon has TLS on port {PLAIN_PORT} too, and DOCKER_TLS_VERIFY is set for it"
            ));
        }
    }

    /// Flags that the job's own do not say already.
    fn add_flags(&self, sidecar: &mut Sidecar, command: &Command<'_>, service: &ServicePlan) {
        let mut flags = Vec::new();
        let usual = if sidecar.certificates.is_some() {
            TLS_PORT
        } else {
            // Else it waits for 15 seconds, to show that it should not be so (dockerd:
            // `loadListeners`).
            if !command.has("--tls") && !command.has("--tlsverify") {
                flags.push("--tls=false".to_owned());
            }
            PLAIN_PORT
        };
        // With TLS another port costs nothing, and scripts may set DOCKER_HOST themselves.
        let mut ports = vec![sidecar.port];
        if sidecar.certificates.is_some() && sidecar.port != PLAIN_PORT {
            ports.push(PLAIN_PORT);
        }
        ports.retain(|port| *port != usual);
        if is_rootless(&service.image) {
            sidecar.environment.extend(expose(&ports, service));
        }
        let is_said = |port: u16| command.words.iter().any(|w| w.contains(&format!(":{port}")));
        ports.retain(|port| !is_said(*port));
        flags.extend(ports.iter().map(|port| format!("--host=tcp://0.0.0.0:{port}")));
        if sidecar.socket.is_some() {
            flags.push(format!("--host=unix://{}", SocketPlan::path()));
        }
        // A file that says the same as a flag keeps the daemon from starting.
        let has_file = self
            .docker
            .volumes
            .iter()
            .filter_map(|text| Volume::parse(text).ok())
            .any(|volume| volume.destination.starts_with("/etc/docker"));
        if !has_file && !command.has("--config-file") {
            if let Some(socket) = &sidecar.socket
                && !command.has("--group")
                && !command.has("-G")
            {
                flags.push(format!("--group={}", socket.group_inside()));
            }
            let network_mtu = self.docker.network_mtu;
            sidecar.networks = InnerNetworks::plan(command, network_mtu, self.network);
            let mirrors = &self.docker.dind.registry_mirrors;
            flags.extend(mirrors.iter().map(|mirror| format!("--registry-mirror={mirror}")));
            let insecure = &self.docker.dind.insecure_registries;
            flags.extend(insecure.iter().map(|name| format!("--insecure-registry={name}")));
            let ipv6 = matches!(self.network, NetworkPlan::Own { ipv6: true, .. });
            if ipv6 && !command.has("--ipv6") {
                flags.extend(["--ipv6".to_owned(), format!("--fixed-cidr-v6={BRIDGE_IPV6}")]);
            }
        }
        sidecar.flags = flags;
    }
}

/// Whether an image's programs run without root: those of Docker and BuildKit say so in their names
/// (`docker:dind-rootless`, `moby/buildkit:rootless`).
#[must_use]
pub fn is_rootless(image: &str) -> bool {
    image.contains("rootless")
}

/// Where the rootless image's entrypoint takes further ports from.
const ROOTLESSKIT: &str = "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS";

/// The variable with which a rootless daemon's container has ports too that the image does not open
/// itself; all of them in one, beside those that the job opens.
fn expose(ports: &[u16], service: &ServicePlan) -> Option<(&'static str, Option<String>)> {
    let own = service.variable(ROOTLESSKIT).unwrap_or_default();
    // Opened twice, it would not start.
    let new = ports.iter().filter(|port| !own.contains(&format!(":{port}/")));
    let new: Vec<String> = new.map(|port| format!("-p 0.0.0.0:{port}:{port}/tcp")).collect();
    let all = format!("{own} {}", new.join(" "));
    (!new.is_empty()).then(|| (ROOTLESSKIT, Some(all.trim().to_owned())))
}

/// Names in the daemon's certificate.
fn certificate_names(service: &ServicePlan, host: &str, aliases: &[String]) -> Vec<String> {
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

impl Sidecar {
    /// The socket that the job names in `DOCKER_HOST`.
    fn asked_socket(&self) -> Option<&str> {
        self.socket.as_ref()?.asked()
    }

    /// Makes its service's plan what it must be.
    fn apply(&self, services: &mut [ServicePlan]) {
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

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;

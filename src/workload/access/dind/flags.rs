//! Flags for a daemon, which its own command does not say already.

use crate::config::volume::Volume;

use super::super::{
    super::{network::NetworkPlan, service::ServicePlan},
    address::{PLAIN_PORT, TLS_PORT},
    command::Command,
    inputs::{Inputs, is_rootless},
    networks::InnerNetworks,
    shared_socket::SocketPlan,
};

/// Range of the daemon's default bridge where the job's network has IPv6 (RFC 4193).
const BRIDGE_IPV6: &str = "fd6c:6f6e:6773::/64";

/// Where the rootless image's entrypoint takes further ports from.
const ROOTLESSKIT: &str = "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS";

/// What the flags of a daemon depend on.
pub(super) struct DaemonFlags<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) command: &'a Command<'a>,
    pub(super) service: &'a ServicePlan,
    /// Port that the job's tools use.
    pub(super) port: u16,
    pub(super) has_tls: bool,
    pub(super) socket: Option<&'a SocketPlan>,
}

/// Flags, and what is told of networks once the engine and the image are known.
#[derive(Default)]
pub(super) struct Planned {
    pub(super) flags: Vec<String>,
    pub(super) networks: Option<InnerNetworks>,
}

impl DaemonFlags<'_> {
    pub(super) fn plan(&self) -> Planned {
        let command = self.command;
        let mut flags = Vec::new();
        // Else a daemon without TLS waits for 15 seconds, to show that it should not be so (dockerd:
        // `loadListeners`).
        if !self.has_tls && !command.has("--tls") && !command.has("--tlsverify") {
            flags.push("--tls=false".to_owned());
        }
        let is_said = |port: &u16| command.words.iter().any(|w| w.contains(&format!(":{port}")));
        let ports = self.further_ports().into_iter().filter(|port| !is_said(port));
        flags.extend(ports.map(|port| format!("--host=tcp://0.0.0.0:{port}")));
        if self.socket.is_some() {
            flags.push(format!("--host=unix://{}", SocketPlan::path()));
        }
        // A file that says the same as a flag keeps the daemon from starting.
        if self.has_file() || command.has("--config-file") {
            return Planned { flags, networks: None };
        }
        flags.extend(self.in_place_of_a_file());
        let mtu = self.inputs.containers.network.mtu;
        Planned { flags, networks: InnerNetworks::plan(command, mtu, self.inputs.network) }
    }

    /// The variable with which a rootless daemon's container has ports too that the image does not
    /// open itself; all of them in one, beside those that the job opens.
    pub(super) fn environment(&self) -> Option<(&'static str, Option<String>)> {
        if !is_rootless(&self.service.image) {
            return None;
        }
        let own = self.service.variable(ROOTLESSKIT).unwrap_or_default();
        // Opened twice, it would not start.
        let ports = self.further_ports();
        let new = ports.iter().filter(|port| !own.contains(&format!(":{port}/")));
        let new: Vec<String> = new.map(|port| format!("-p 0.0.0.0:{port}:{port}/tcp")).collect();
        let all = format!("{own} {}", new.join(" "));
        (!new.is_empty()).then(|| (ROOTLESSKIT, Some(all.trim().to_owned())))
    }

    /// Ports to listen on, beside the one on which the image's entrypoint has the daemon listen.
    fn further_ports(&self) -> Vec<u16> {
        let usual = if self.has_tls { TLS_PORT } else { PLAIN_PORT };
        let mut ports = vec![self.port];
        // With TLS another port costs nothing, and scripts may set DOCKER_HOST themselves.
        if self.has_tls && self.port != PLAIN_PORT {
            ports.push(PLAIN_PORT);
        }
        ports.retain(|port| *port != usual);
        ports
    }

    /// Whether the operator mounts a file of the daemon's.
    fn has_file(&self) -> bool {
        let volumes = self.inputs.containers.volumes.entries.iter();
        let mut volumes = volumes.filter_map(|text| Volume::parse(text).ok());
        volumes.any(|volume| volume.destination.starts_with("/etc/docker"))
    }

    fn in_place_of_a_file(&self) -> Vec<String> {
        let (command, dind) = (self.command, &self.inputs.containers.dind);
        let mut flags = Vec::new();
        if let Some(socket) = self.socket
            && !command.has("--group")
            && !command.has("-G")
        {
            flags.push(format!("--group={}", socket.group_inside()));
        }
        let mirrors = dind.registry_mirrors.iter();
        flags.extend(mirrors.map(|mirror| format!("--registry-mirror={mirror}")));
        let insecure = dind.insecure_registries.iter();
        flags.extend(insecure.map(|name| format!("--insecure-registry={name}")));
        let ipv6 = matches!(self.inputs.network, NetworkPlan::Own { ipv6: true, .. });
        if ipv6 && !command.has("--ipv6") {
            flags.extend(["--ipv6".to_owned(), format!("--fixed-cidr-v6={BRIDGE_IPV6}")]);
        }
        flags
    }
}

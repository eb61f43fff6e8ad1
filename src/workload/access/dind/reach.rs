//! Under which name a job reaches its daemon, and where it looks for it.

use crate::config::DindNetwork;

use super::super::{
    super::network::NetworkPlan,
    address::Address,
    inputs::{Inputs, NAME},
};

/// The address of a daemon in a network that the job is in too.
const LOCAL: &str = "127.0.0.1";

/// Under which name a job reaches its daemon, and where it looks for it.
pub(super) struct Reach {
    /// Host name for the job's variables.
    pub(super) host: String,
    pub(super) network: DindNetwork,
    /// The job's `DOCKER_HOST`.
    pub(super) address: Address,
    /// The port in it, where it leads to the daemon.
    pub(super) asked_port: Option<u16>,
}

impl Reach {
    pub(super) fn new(inputs: &Inputs<'_>, aliases: &[String]) -> Self {
        // Without a network of its own it has no name: all containers have the same address.
        let host = match inputs.network {
            NetworkPlan::Given(mode) if mode == "host" || mode.starts_with("container:") => LOCAL,
            _ if aliases.iter().any(|alias| alias == NAME) => NAME,
            _ => aliases.first().map_or(NAME, String::as_str),
        };
        let has_own = host != LOCAL;
        let network = if has_own { inputs.containers.dind.network } else { DindNetwork::Own };
        let is_near = |asked: &str| {
            (network == DindNetwork::Shared || !has_own) && matches!(asked, LOCAL | "localhost")
        };
        let address = inputs.address();
        let asked_port = match &address {
            Address::Tcp { host: asked, port }
                if asked == host || aliases.contains(asked) || is_near(asked) =>
            {
                Some(*port)
            }
            Address::Unset | Address::Unix(_) | Address::Other(_) | Address::Tcp { .. } => None,
        };
        Self { host: host.to_owned(), network, address, asked_port }
    }
}

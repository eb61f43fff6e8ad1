//! What a daemon is told of the networks that it makes: their MTU, as packets of an outer network
//! with a smaller one are lost without a word, and IPv6.

use super::{super::network::NetworkPlan, command::Command};

/// MTU of a network of which nothing is said (dockerd: `--mtu`).
const USUAL_MTU: u32 = 1500;

/// An option of all networks that the daemon is asked to make later.
const NETWORK_OPTION: &str = "--default-network-opt";

/// The first Docker with this flag (moby, release notes of 24.0).
const NETWORK_OPTIONS: u32 = 24;

/// The first that surely enables IPv6 by it, with addresses of its own choice.
const IPV6_OPTION: u32 = 28;

/// What a daemon's own networks should be like, as far as the settings and the job's command say;
/// the rest depends on the engine, and how it is said on the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerNetworks {
    mtu: Mtu,
    ipv6: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mtu {
    /// In the daemon's own command.
    Said(u32),
    /// In the settings.
    Set(u32),
    /// As that of this network of the engine.
    Of(String),
    /// As it comes.
    Usual,
}

impl InnerNetworks {
    /// `set` is the settings' MTU, 0 for none; `network` is what the daemon's container is in.
    pub(super) fn plan(command: &Command<'_>, set: u32, network: &NetworkPlan) -> Option<Self> {
        if command.has(NETWORK_OPTION) {
            return None;
        }
        let mtu = match (command.value("--mtu"), set, network) {
            (Some(said), ..) => said.parse().map_or(Mtu::Usual, Mtu::Said),
            (None, 1.., _) => Mtu::Set(set),
            (None, 0, NetworkPlan::Given(mode))
                if mode == "host" || mode == "none" || mode.starts_with("container:") =>
            {
                Mtu::Usual
            }
            (None, 0, NetworkPlan::Given(mode)) if mode != "default" => Mtu::Of(mode.clone()),
            // The job's own is a network of which nothing is said; packets leave it by the same
            // way as the default one's.
            (None, 0, _) => Mtu::Of("bridge".to_owned()),
        };
        let ipv6 = matches!(network, NetworkPlan::Own { ipv6: true, .. });
        Some(Self { mtu, ipv6 })
    }

    /// The network of the engine whose MTU they should have.
    #[must_use]
    pub fn outer(&self) -> Option<&str> {
        match &self.mtu {
            Mtu::Of(network) => Some(network),
            Mtu::Said(_) | Mtu::Set(_) | Mtu::Usual => None,
        }
    }

    /// Flags of a daemon whose image has this environment, beside an engine whose network has
    /// this MTU. A daemon ends at a flag that it does not know.
    #[must_use]
    pub fn flags(&self, outer: Option<u32>, image: &[String]) -> Vec<String> {
        let version = image.iter().find_map(|line| line.strip_prefix("DOCKER_VERSION="));
        let version = version.and_then(|v| v.split('.').next()?.parse().ok()).unwrap_or(0);
        let (mtu, is_said) = match self.mtu {
            Mtu::Said(mtu) => (Some(mtu), true),
            Mtu::Set(mtu) => (Some(mtu), false),
            Mtu::Of(_) => (outer.filter(|mtu| *mtu != USUAL_MTU), false),
            Mtu::Usual => (None, false),
        };
        let mut flags = Vec::new();
        if let Some(mtu) = mtu {
            if !is_said {
                flags.push(format!("--mtu={mtu}"));
            }
            // The flag above is for the default bridge alone.
            if version >= NETWORK_OPTIONS {
                flags.push(format!("{NETWORK_OPTION}=bridge=com.docker.network.driver.mtu={mtu}"));
            }
        }
        if self.ipv6 && version >= IPV6_OPTION {
            flags.push(format!("{NETWORK_OPTION}=bridge=com.docker.network.enable_ipv6=true"));
        }
        flags
    }
}

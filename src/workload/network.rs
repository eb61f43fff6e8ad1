//! The network of a job's containers.

use crate::config::ContainerConfig;

use super::{flags::Flags, names::Names};

/// Network of a job's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkPlan {
    /// The engine's default bridge; services are reached by entries in `/etc/hosts`.
    Default,
    /// One made for the job and removed with it.
    Own {
        /// Name on the engine.
        name: String,
        /// MTU; 0 for the engine's default.
        mtu: u32,
        /// Whether it has IPv6 addresses too.
        ipv6: bool,
    },
    /// What `network_mode` says, as it is.
    Given(String),
}

impl NetworkPlan {
    pub(super) fn new(containers: &ContainerConfig, flags: &Flags, names: &Names) -> Self {
        match containers.network.mode.as_deref() {
            Some(mode) if !mode.is_empty() => Self::Given(mode.to_owned()),
            _ if flags.on("FF_NETWORK_PER_BUILD") || containers.guards_sockets() => Self::Own {
                name: names.network.clone(),
                mtu: containers.network.mtu,
                ipv6: containers.network.ipv6,
            },
            _ => Self::Default,
        }
    }

    /// The network mode of the job's containers on the engine.
    #[must_use]
    pub fn mode(&self) -> &str {
        match self {
            Self::Default => "default",
            Self::Own { name, .. } => name,
            Self::Given(mode) => mode,
        }
    }

    /// Whether containers in it can have aliases.
    #[must_use]
    pub fn has_aliases(&self) -> bool {
        match self {
            Self::Own { .. } => true,
            Self::Default => false,
            Self::Given(mode) => {
                !matches!(mode.as_str(), "host" | "none" | "bridge" | "default")
                    && !mode.starts_with("container:")
            }
        }
    }
}

//! The unix socket that a daemon shares with its job.

use crate::config::volume::Volume;

use super::address::{Address, USUAL_SOCKET};

/// User and group of rootless images.
pub(super) const ROOTLESS: u32 = 1000;

/// Where the daemon's unix socket is, in its container and in the job's: a volume of its own, as
/// one at `/var/run` would hide what images have there.
pub const SOCKET_DIRECTORY: &str = "/run/longshore";

/// Group of the official image's `docker`; it need not be known in the job's image.
pub const SOCKET_GROUP: u32 = 2375;

/// A daemon's unix socket, shared with its job in a volume at [`SOCKET_DIRECTORY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPlan {
    /// User and group of the directory, which are the daemon's.
    pub owner: u32,
    /// Group that may use it. The job's processes are in it, whoever they are.
    pub group: u32,
    /// Where links to it are made in the job's container, if nothing is there.
    pub links: Vec<String>,
    /// The one of these that the job names in `DOCKER_HOST`.
    asked: Option<String>,
}

impl SocketPlan {
    /// `volumes` are the operator's, `address` is the job's `DOCKER_HOST`.
    pub(super) fn new(volumes: &[String], address: &Address, rootless: bool) -> Self {
        let mut links = vec![USUAL_SOCKET.to_owned()];
        let asked = match address {
            Address::Unix(path) if *path != Self::path() && *path != USUAL_SOCKET => {
                links.push(path.clone());
                Some(path)
            }
            Address::Unix(path) => Some(path),
            Address::Unset | Address::Tcp { .. } | Address::Other(_) => None,
        };
        // What the operator mounts is not the job's to change.
        links.retain(|link| !is_mounted(volumes, link));
        let asked = asked.filter(|p| **p == Self::path() || links.contains(p)).cloned();
        let owner = if rootless { ROOTLESS } else { 0 };
        let group = if rootless { ROOTLESS } else { SOCKET_GROUP };
        Self { owner, group, links, asked }
    }

    /// The socket itself.
    #[must_use]
    pub fn path() -> String {
        format!("{SOCKET_DIRECTORY}/docker.sock")
    }

    /// The group as the daemon knows it: one without root has other numbers inside, where its own
    /// is 0.
    pub(super) fn group_inside(&self) -> u32 {
        if self.owner == 0 { self.group } else { 0 }
    }

    /// The link that the job names in `DOCKER_HOST`, or the socket itself.
    pub(super) fn asked(&self) -> Option<&str> {
        self.asked.as_deref()
    }
}

/// Whether `path` is in something that the operator mounts. `/var/run` is `/run` in about all
/// images.
fn is_mounted(volumes: &[String], path: &str) -> bool {
    let plain = |path: &str| path.replacen("/var/run", "/run", 1);
    let path = plain(path);
    volumes.iter().filter_map(|text| Volume::parse(text).ok()).any(|volume| {
        let rest = plain(&volume.destination);
        let rest = path.strip_prefix(rest.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

//! The process at the other end of an engine's socket, and what can be seen of a process on this host:
//! whether it has this one's namespaces, and the routes of the network that it is in.

use std::{fs, io, path::Path};

use tokio::net::UnixStream;

/// The process that listens at a unix socket; `None` for one that is not to be seen from here. Where
/// systemd made the socket, it is systemd.
///
/// # Errors
/// When the connection fails.
pub(crate) async fn listener(socket: &Path) -> io::Result<Option<i32>> {
    let peer = UnixStream::connect(socket).await?.peer_cred()?;
    Ok(peer.pid().filter(|process| *process > 0))
}

/// Whether the process that listens at `socket` is in this process's namespace of a kind, such as `mnt`
/// (Linux: `/proc/PID/ns`). False where that cannot be known.
pub(crate) async fn shares(socket: &Path, kind: &str) -> bool {
    let Ok(Some(peer)) = listener(socket).await else { return false };
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
    let own = namespace("self");
    own.is_some() && own == namespace(&peer.to_string())
}

/// A route of IPv4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The device it leads through.
    pub(crate) device: String,
    /// The network's address, its first byte the highest.
    pub(crate) address: u32,
    /// The network's mask; zero for the default route, which overlaps all and says nothing.
    pub(crate) mask: u32,
}

impl Route {
    /// Whether some address is in both networks.
    #[must_use]
    pub(crate) fn overlaps(&self, address: u32, mask: u32) -> bool {
        let common = self.mask & mask;
        self.mask != 0 && self.address & common == address & common
    }
}

/// The routes of the network that a process is in (Linux: `/proc/PID/net/route`); `None` when they
/// cannot be seen, or one cannot be read.
#[must_use]
pub(crate) fn routes(process: i64) -> Option<Vec<Route>> {
    parse_routes(&fs::read_to_string(format!("/proc/{process}/net/route")).ok()?)
}

/// The routes of a table as Linux prints it; `None` when one cannot be read.
#[must_use]
pub(crate) fn parse_routes(table: &str) -> Option<Vec<Route>> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| {
            let printed = u32::from_str_radix(fields.get(at)?, 16).ok()?;
            // The network's bytes, taken for a number of this machine's.
            Some(u32::from_be_bytes(printed.to_ne_bytes()))
        };
        Some(Route { device: (*fields.first()?).to_owned(), address: number(1)?, mask: number(7)? })
    };
    table.lines().skip(1).map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_in_the_networks_order_of_bytes() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                     docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\n";
        // 172.17.0.0/16, as a machine prints it whose lowest byte comes first.
        let routes = parse_routes(table).unwrap();
        if cfg!(target_endian = "little") {
            let wanted =
                Route { device: "docker0".to_owned(), address: 0xac11_0000, mask: 0xffff_0000 };
            assert_eq!(routes, [wanted]);
            assert!(routes[0].overlaps(0xac11_0400, 0xffff_ff00));
            assert!(!routes[0].overlaps(0xac12_0000, 0xffff_ff00));
        }
        assert_eq!(parse_routes("head\nodd line\n"), None);
        let default = Route { device: "eth0".to_owned(), address: 0, mask: 0 };
        assert!(!default.overlaps(0xac11_0400, 0xffff_ff00));
    }

    #[tokio::test]
    async fn who_listens_is_seen_and_shares_what_this_process_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        assert!(listener(&path).await.is_err() && !shares(&path, "mnt").await);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(listener(&path).await.unwrap(), Some(own));
        assert!(shares(&path, "mnt").await && !shares(&path, "none").await);
    }
}

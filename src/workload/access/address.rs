//! Where a job looks for its Docker daemon.

/// Ports of a daemon without and with TLS (IANA: `docker`, `docker-s`).
pub(super) const PLAIN_PORT: u16 = 2375;
pub(super) const TLS_PORT: u16 = 2376;

/// Where tools look for a socket when nothing says otherwise.
pub(super) const USUAL_SOCKET: &str = "/var/run/docker.sock";

/// An address in `DOCKER_HOST`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Address {
    Unset,
    Tcp {
        host: String,
        port: u16,
    },
    /// A socket at this path.
    Unix(String),
    Other(String),
}

impl Address {
    /// Reads `DOCKER_HOST` as docker does (docker/cli, `opts.ParseHost`): no path is the usual one,
    /// no scheme is tcp.
    pub(super) fn parse(text: Option<&str>, with_tls: bool) -> Self {
        let Some(text) = text else { return Self::Unset };
        let rest = match text.split_once("://") {
            Some(("unix", "")) => return Self::Unix(USUAL_SOCKET.to_owned()),
            Some(("unix", path)) if path.starts_with('/') => return Self::Unix(path.to_owned()),
            Some(("tcp", rest)) => rest,
            None => text,
            Some(_) => return Self::Other(text.to_owned()),
        };
        let place = rest.split('/').next().unwrap_or_default();
        let implied = if with_tls { TLS_PORT } else { PLAIN_PORT };
        match place.rsplit_once(':') {
            None => Self::Tcp { host: place.to_owned(), port: implied },
            Some((host, port)) => match port.parse() {
                Ok(port) => Self::Tcp { host: host.to_owned(), port },
                Err(_) => Self::Other(text.to_owned()),
            },
        }
    }
}

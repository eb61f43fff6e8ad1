//! Connecting to an engine, once for all jobs: its address, TLS, API version and platform.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use bollard::Docker;
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use super::{
    ApiVersion, Error,
    cgroup::{self, Cgroups},
    helper::HelperImageCache,
    network::NetworkMtus,
    pulls::Pulls,
    transport::{self, Connector, Transport},
};
use crate::config::EngineAddress;

/// Where an engine listens when nothing says otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// bollard has no "no deadline"; deadlines that there are belong to the transport.
const NO_DEADLINE: u64 = u64::MAX;

impl FromStr for ApiVersion {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        text.trim()
            .trim_start_matches('v')
            .split_once('.')
            .and_then(|(a, b)| Some(Self { major: a.parse().ok()?, minor: b.parse().ok()? }))
            .ok_or_else(|| ConnectError::NotAVersion { text: text.to_owned() })
    }
}

/// What the process's environment says of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineEnv {
    /// `DOCKER_HOST`.
    pub host: Option<String>,
    /// `DOCKER_CERT_PATH`.
    pub cert_path: Option<PathBuf>,
    /// `DOCKER_TLS_VERIFY`.
    pub tls_verify: bool,
    /// `DOCKER_API_VERSION`.
    pub api_version: Option<String>,
    /// `HOME`: certificates are in its `.docker` when nothing says where.
    pub home: Option<PathBuf>,
}

impl EngineEnv {
    /// Picks the variables out of an environment; empty ones count as unset.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        Self {
            host: variable("DOCKER_HOST"),
            cert_path: variable("DOCKER_CERT_PATH").map(Into::into),
            tls_verify: variable("DOCKER_TLS_VERIFY").is_some_and(|v| {
                !matches!(v.as_str(), "0" | "f" | "F" | "false" | "False" | "FALSE")
            }),
            api_version: variable("DOCKER_API_VERSION"),
            home: variable("HOME").map(Into::into),
        }
    }
}

/// Why there is no connection to the engine.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is of a kind we do not speak.
    #[error("engine address `{host}` is not of the form unix://PATH or tcp://HOST[:PORT]")]
    Address {
        /// The address.
        host: String,
    },
    /// TLS is wanted, but nothing says where the certificates are.
    #[error(
        "tls_verify is set, but neither tls_cert_path nor DOCKER_CERT_PATH says where the certificates are"
    )]
    NoCertPath,
    /// A certificate or key cannot be read.
    #[error("cannot read `{path}`", path = path.display())]
    TlsFile {
        /// `ca.pem`, `cert.pem` or `key.pem`.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate or key is not PEM, or holds nothing.
    #[error("`{path}` holds no usable {what}", path = path.display())]
    TlsContent {
        /// `ca.pem`, `cert.pem` or `key.pem`.
        path: PathBuf,
        /// `certificate` or `key`.
        what: &'static str,
    },
    /// Certificate and key do not go together.
    #[error("cannot use the certificate and key in `{path}`", path = path.display())]
    Tls {
        /// Their directory.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Nobody answers there, or not as an engine does.
    #[error("no Docker engine answers at `{host}`")]
    Unreachable {
        /// The address.
        host: String,
        /// What was tried.
        source: Error,
    },
    /// Not `major.minor`.
    #[error("`{text}` is not an API version such as 1.41")]
    NotAVersion {
        /// What was written or answered.
        text: String,
    },
    /// The engine is older than all we can talk to.
    #[error("the engine at `{host}` speaks API {version}, the oldest supported is {oldest}",
        oldest = ApiVersion::OLDEST)]
    TooOld {
        /// The address.
        host: String,
        /// What it speaks.
        version: ApiVersion,
    },
    /// `DOCKER_API_VERSION` is not one the engine, or we, can speak.
    #[error(
        "DOCKER_API_VERSION asks for API {wanted}, but the engine at `{host}` can be used with {oldest} to {newest}"
    )]
    NotServed {
        /// The address.
        host: String,
        /// What was asked for.
        wanted: ApiVersion,
        /// The oldest both speak.
        oldest: ApiVersion,
        /// The newest both speak.
        newest: ApiVersion,
    },
    /// Containers of another kind.
    #[error("the engine at `{host}` runs {os} containers, only linux is supported")]
    OperatingSystem {
        /// The address.
        host: String,
        /// What it runs.
        os: String,
    },
}

impl ConnectError {
    /// Whether it may go better when tried again.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// What the reader can do now.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => {
                Some("is the Docker engine running, and is [runners.docker] host its address?")
            }
            Self::TooOld { .. } => Some("the Docker engine of the build host must be updated"),
            Self::Address { .. } => Some("see [runners.docker] host, or DOCKER_HOST"),
            Self::NoCertPath
            | Self::TlsFile { .. }
            | Self::TlsContent { .. }
            | Self::Tls { .. }
            | Self::NotAVersion { .. }
            | Self::NotServed { .. }
            | Self::OperatingSystem { .. } => None,
        }
    }
}

/// A connection to an engine, shared by all jobs; clones share everything.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    client: Docker,
    transport: Transport,
    host: String,
    version: ApiVersion,
    architecture: String,
    pulls: Pulls,
    helper: HelperImageCache,
    networks: NetworkMtus,
    cgroups: OnceCell<Cgroups>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { host, version, architecture, .. } = &*self.inner;
        write!(f, "Engine({host}, API {version}, {architecture})")
    }
}

impl Engine {
    /// Connects: one request, `GET /version`, that says all we need to know of the engine.
    pub async fn connect(config: &EngineAddress, env: &EngineEnv) -> Result<Self, ConnectError> {
        let endpoint = Endpoint::of(config, env)?;
        let wanted = env.api_version.as_deref().map(ApiVersion::from_str).transpose()?;
        let host = endpoint.host.clone();
        let transport = Transport::new(endpoint.connector().await?);
        let about = about(&transport)
            .await
            .map_err(|source| ConnectError::Unreachable { host: host.clone(), source })?;
        if about.os != "linux" {
            return Err(ConnectError::OperatingSystem { host, os: about.os });
        }
        let version = about.agree(&host, wanted)?;
        transport.use_version(version);
        let exchange = transport.clone();
        let client = Docker::connect_with_custom_transport(
            move |request| exchange.clone().exchange(request),
            Some(transport::BASE),
            NO_DEADLINE,
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|e| ConnectError::Unreachable {
            host: host.clone(),
            source: Error::of("make a client", "")(e),
        })?;
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                transport,
                host,
                version,
                architecture: about.arch,
                pulls: Pulls::default(),
                helper: HelperImageCache::default(),
                networks: NetworkMtus::default(),
                cgroups: OnceCell::new(),
            }),
        })
    }

    /// The client; its requests share the pool and name the negotiated version.
    #[must_use]
    pub fn client(&self) -> &Docker {
        &self.inner.client
    }

    /// Architecture of the engine in Go's words: `amd64`, `arm64`, …
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.inner.architecture
    }

    /// The API version that requests name.
    #[must_use]
    pub fn api_version(&self) -> ApiVersion {
        self.inner.version
    }

    /// The address, as it was configured.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.inner.host
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    pub(super) fn pulls(&self) -> &Pulls {
        &self.inner.pulls
    }

    /// The MTU of a network, if it says one; see [`NetworkMtus::of`].
    pub(crate) async fn network_mtu(&self, network: &str) -> Option<u32> {
        self.inner.networks.of(&self.inner.client, network).await
    }

    /// The engine's control groups. It is asked once, and again after a failure.
    pub(crate) async fn cgroups(&self) -> Result<&Cgroups, Error> {
        let Inner { cgroups, transport, host, .. } = &*self.inner;
        cgroups.get_or_try_init(|| cgroup::ask(transport, host)).await
    }

    pub(super) fn helper(&self) -> &HelperImageCache {
        &self.inner.helper
    }
}

/// The part of `GET /version` that we use.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct About {
    #[serde(default)]
    api_version: String,
    #[serde(rename = "MinAPIVersion", default)]
    min_api_version: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    arch: String,
}

async fn about(transport: &Transport) -> Result<About, Error> {
    let failed = || Error::of("ask for the version", "");
    let body = transport.get("/version").await.map_err(failed())?;
    serde_json::from_slice(&body).map_err(|e| failed()(e.into()))
}

impl About {
    /// The version to speak: the newest that both know, or what the operator wants.
    fn agree(&self, host: &str, wanted: Option<ApiVersion>) -> Result<ApiVersion, ConnectError> {
        let served: ApiVersion = self.api_version.parse()?;
        let newest = served.min(ApiVersion::NEWEST);
        if newest < ApiVersion::OLDEST {
            return Err(ConnectError::TooOld { host: host.to_owned(), version: served });
        }
        let Some(wanted) = wanted else { return Ok(newest) };
        let oldest = self.min_api_version.parse().unwrap_or(ApiVersion::OLDEST);
        let oldest = oldest.max(ApiVersion::OLDEST);
        if (oldest..=newest).contains(&wanted) {
            Ok(wanted)
        } else {
            Err(ConnectError::NotServed { host: host.to_owned(), wanted, oldest, newest })
        }
    }
}

#[derive(Debug, PartialEq)]
enum Address {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// Where to connect, and with which certificates.
#[derive(Debug, PartialEq)]
struct Endpoint {
    host: String,
    address: Address,
    /// Directory of the PEM files; only with `tls_verify`.
    tls: Option<PathBuf>,
}

impl Endpoint {
    fn of(config: &EngineAddress, env: &EngineEnv) -> Result<Self, ConnectError> {
        let configured = config.host.as_deref().filter(|host| !host.is_empty());
        let (host, tls_verify, cert_path) = if let Some(host) = configured {
            (host, config.tls_verify, config.tls_cert_path.as_ref())
        } else {
            let host = env.host.as_deref().unwrap_or(DEFAULT_HOST);
            (host, env.tls_verify, env.cert_path.as_ref())
        };
        let unsupported = || ConnectError::Address { host: host.to_owned() };
        let (scheme, rest) = host.split_once("://").ok_or_else(unsupported)?;
        let (address, tls) = match scheme {
            "unix" if rest.starts_with('/') => (Address::Unix(rest.into()), None),
            // `https` without certificates would be spoken in the clear.
            "https" if !tls_verify => return Err(unsupported()),
            "tcp" | "http" | "https" => {
                let url = url::Url::parse(&format!("x://{rest}")).map_err(|_| unsupported())?;
                let name = url.host_str().filter(|h| !h.is_empty()).ok_or_else(unsupported)?;
                // Ports that dockerd listens on by convention, without and with TLS.
                let port = url.port().unwrap_or(if tls_verify { 2376 } else { 2375 });
                let in_home = || env.home.as_ref().map(|home| home.join(".docker"));
                let tls = tls_verify
                    .then(|| cert_path.cloned().or_else(in_home).ok_or(ConnectError::NoCertPath))
                    .transpose()?;
                (Address::Tcp { host: name.to_owned(), port }, tls)
            }
            _ => return Err(unsupported()),
        };
        Ok(Self { host: host.to_owned(), address, tls })
    }

    async fn connector(self) -> Result<Connector, ConnectError> {
        let (name, port) = match self.address {
            Address::Unix(path) => return Ok(Connector::Unix(path)),
            Address::Tcp { host, port } => (host, port),
        };
        let unsupported = || ConnectError::Address { host: self.host.clone() };
        let address = format!("http://{name}:{port}").parse().map_err(|_| unsupported())?;
        let tls = match &self.tls {
            None => None,
            Some(directory) => {
                let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(bare).map_err(|_| unsupported())?;
                Some((TlsConnector::from(Arc::new(tls(directory).await?)), name))
            }
        };
        Ok(Connector::tcp(address, tls))
    }
}

/// Trusts `ca.pem` alone, shows `cert.pem`; TLS 1.2 or newer.
async fn tls(directory: &Path) -> Result<ClientConfig, ConnectError> {
    let read = async |name: &str| {
        let path = directory.join(name);
        match tokio::fs::read(&path).await {
            Ok(content) => Ok((path, content)),
            Err(source) => Err(ConnectError::TlsFile { path, source }),
        }
    };
    let certificates = |(path, pem): (PathBuf, Vec<u8>)| {
        CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .filter(|found| !found.is_empty())
            .ok_or(ConnectError::TlsContent { path, what: "certificate" })
    };
    let mut roots = RootCertStore::empty();
    let ca_path = directory.join("ca.pem");
    if roots.add_parsable_certificates(certificates(read("ca.pem").await?)?).0 == 0 {
        return Err(ConnectError::TlsContent { path: ca_path, what: "certificate" });
    }
    let chain = certificates(read("cert.pem").await?)?;
    let (path, key) = read("key.pem").await?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| ConnectError::TlsContent { path, what: "key" })?;
    let failed = |source| ConnectError::Tls { path: directory.to_owned(), source };
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(failed)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;

//! How requests reach the engine: one pool of connections to one address.
//!
//! bollard's own transports keep no idle connection, trust the system's certificates beside the
//! engine's CA, and drop the API version from the path; this one does not. It stops at the HTTP
//! exchange: endpoints are bollard's.

use std::{
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bollard::{BollardRequest, errors::Error};
use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::{
    Request, Response, Uri,
    body::{Frame, Incoming},
    header::HeaderValue,
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection, HttpConnector, capture_connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};
use tower_service::Service;

use super::ApiVersion;

/// Deadlines of a TCP connection (docs/compatibility.md, "Connection to the engine"). Unix sockets
/// have none.
const DIAL: Duration = Duration::from_mins(5);
const KEEPALIVE: Duration = Duration::from_secs(10);
const TLS_HANDSHAKE: Duration = Duration::from_mins(1);
const RESPONSE_HEADER: Duration = Duration::from_mins(2);
const IDLE_TCP: Duration = Duration::from_secs(10);
/// Idle connections to a socket cost a descriptor on either side; a burst of jobs keeps them warm.
const IDLE_UNIX: Duration = Duration::from_mins(1);
const IDLE_CONNECTIONS: usize = 32;

/// The address that bollard writes into requests; the connector knows the real one.
pub(super) const BASE: &str = "http://docker";

type StreamedBody = StreamBody<Pin<Box<dyn Stream<Item = io::Result<Frame<Bytes>>> + Send>>>;
/// Body of a request; bollard does not name the type.
pub(super) type Body = Either<Full<Bytes>, StreamedBody>;

/// A pool of connections and the API version that requests on it name.
#[derive(Clone)]
pub(super) struct Transport {
    client: Client<Connector, Body>,
    limited: bool,
    version: Arc<OnceLock<ApiVersion>>,
}

impl Transport {
    pub(super) fn new(connector: Connector) -> Self {
        let limited = matches!(connector, Connector::Tcp { .. });
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(if limited { IDLE_TCP } else { IDLE_UNIX })
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(connector);
        Self { client, limited, version: Arc::default() }
    }

    /// Makes every later request name `version`.
    pub(super) fn use_version(&self, version: ApiVersion) {
        // It is set once, by the one who negotiates.
        let _ = self.version.set(version);
    }

    /// One exchange, for bollard.
    pub(super) async fn exchange(
        self,
        mut request: BollardRequest,
    ) -> Result<Response<Incoming>, Error> {
        if let Some(version) = self.version.get() {
            let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
            *request.uri_mut() = format!("{BASE}/v{version}{path}").parse()?;
        }
        for name in ["x-registry-auth", "x-registry-config"] {
            url_safe(&mut request, name);
        }
        // A body that is produced while it is sent may take longer than the header's deadline.
        if !self.limited || matches!(request.body(), Either::Right(_)) {
            return Ok(self.client.request(request).await?);
        }
        let mut connected = capture_connection(&mut request);
        let late = async {
            connected.wait_for_connection_metadata().await;
            tokio::time::sleep(RESPONSE_HEADER).await;
        };
        tokio::select! {
            answer = self.client.request(request) => Ok(answer?),
            () = late => Err(Error::RequestTimeoutError),
        }
    }

    /// `GET path` as it is, and the whole answer; for what bollard has no endpoint for.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, Error> {
        let request =
            Request::get(format!("{BASE}{path}")).body(Either::Left(Full::new(Bytes::new())))?;
        let answer = self.clone().exchange(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let message = serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|v| v.get("message")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        Err(Error::DockerResponseServerError { status_code: status.as_u16(), message })
    }
}

/// Turns a base64 header into the URL-safe alphabet, the only one the engine decodes
/// (Docker Engine API, `X-Registry-Auth`). It ignores a value it cannot decode, and then pulls
/// without credentials; bollard writes the standard alphabet.
fn url_safe(request: &mut BollardRequest, name: &'static str) {
    let Some(value) = request.headers().get(name).and_then(|v| v.to_str().ok()) else { return };
    if let Ok(mut value) = HeaderValue::from_str(&value.replace('+', "-").replace('/', "_")) {
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
    }
}

/// Opens connections to one address, whatever the request says.
#[derive(Clone)]
pub(super) enum Connector {
    Unix(PathBuf),
    Tcp { http: HttpConnector, address: Uri, tls: Option<(TlsConnector, ServerName<'static>)> },
}

impl Connector {
    pub(super) fn tcp(address: Uri, tls: Option<(TlsConnector, ServerName<'static>)>) -> Self {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(DIAL));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_nodelay(true);
        Self::Tcp { http, address, tls }
    }

    async fn open(self) -> Result<TokioIo<Wire>, BoxError> {
        let wire = match self {
            Self::Unix(path) => Wire::Unix(UnixStream::connect(path).await?),
            Self::Tcp { mut http, address, tls } => {
                let stream = http.call(address).await?.into_inner();
                match tls {
                    None => Wire::Tcp(stream),
                    Some((connector, name)) => {
                        let handshake = connector.connect(name, stream);
                        let stream = tokio::time::timeout(TLS_HANDSHAKE, handshake)
                            .await
                            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                        Wire::Tls(Box::new(stream))
                    }
                }
            }
        };
        Ok(TokioIo::new(wire))
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().open())
    }
}

/// An open connection.
pub(super) enum Wire {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

macro_rules! on_wire {
    ($wire:expr, $stream:ident => $call:expr) => {
        match $wire.get_mut() {
            Wire::Unix($stream) => $call,
            Wire::Tcp($stream) => $call,
            Wire::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_wire!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_wire!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_wire!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

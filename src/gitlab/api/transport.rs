//! One HTTP call as the job API wants it: pool and TLS renewed when they must be, deadlines,
//! redirects, retries. What the calls are is not known here.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::Either};
use parking_lot::Mutex;
use reqwest::{
    Body, Method, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT},
};
use url::Url;

use super::{
    address::clean,
    error::{ClientError, TransportError},
    info::user_agent,
    reply::text,
    retry::{self, Retries, is_retriable},
    settings::ClientSettings,
    tls::{Stamp, Tls, TlsFiles},
};
use crate::base::{backoff::Backoff, error_chain, ids::random_hex, secret::Secret};

/// Redirects that are followed.
const MAX_HOPS: usize = 10;
/// How much of an answer that nobody needs is read, so that its connection can be used again.
const DRAIN_BYTES: usize = 64 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Longest answer that is decoded. Payloads of jobs with many long variables reach a few MiB.
pub(super) const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The waits of a client (GitLab Runner: `network/client.go`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// TCP, 30 s, and TLS, 10 s.
    pub(super) connect: Duration,
    /// From the end of the request to the headers of the answer.
    pub(super) answer: Duration,
    /// Everything, bodies included.
    pub(super) whole: Duration,
    pub(super) retry: Backoff,
}

impl Timing {
    /// As the job API has it.
    pub(super) const JOB_API: Self = Self {
        connect: Duration::from_secs(40),
        answer: Duration::from_mins(10),
        whole: Duration::from_hours(1),
        retry: retry::JOB_API,
    };
}

/// What a call sends.
pub(super) enum Content<'a> {
    Nothing,
    /// A body of known length.
    Bytes {
        kind: HeaderValue,
        bytes: Bytes,
    },
    /// A body of unknown length, made anew for each attempt.
    Stream {
        kind: HeaderValue,
        /// Makes the body; `None` when it cannot be made again.
        make: &'a mut (dyn FnMut() -> Option<ByteStream> + Send),
    },
}

/// A body on its way out.
pub(super) type ByteStream = std::pin::Pin<
    Box<dyn Stream<Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> + Send>,
>;

/// A body for one attempt.
enum Payload {
    Nothing,
    Bytes(HeaderValue, Bytes),
    Stream(HeaderValue, ByteStream),
}

impl Content<'_> {
    fn again(&mut self) -> Option<Payload> {
        match self {
            Self::Nothing => Some(Payload::Nothing),
            Self::Bytes { kind, bytes } => Some(Payload::Bytes(kind.clone(), bytes.clone())),
            Self::Stream { kind, make } => Some(Payload::Stream(kind.clone(), make()?)),
        }
    }
}
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// `RUNNER-TOKEN` and its kin: not for other hosts.
    token: Option<(HeaderName, HeaderValue)>,
    pub(super) content: Content<'a>,
    pub(super) timing: Timing,
    /// Off only for the probe of a direct download.
    pub(super) follow: bool,
    /// Off only for the probe of a direct download.
    pub(super) user_agent: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, url: Url, content: Content<'a>, timing: Timing) -> Self {
        let headers = HeaderMap::new();
        Self { method, url, headers, token: None, content, timing, follow: true, user_agent: true }
    }

    /// Adds a token's header; none for an empty token, or for one that no header can carry (such
    /// a token the server refuses, which is the clearest answer).
    pub(super) fn token(mut self, name: &'static str, token: &Secret) -> Self {
        if !token.is_empty()
            && let Ok(mut value) = HeaderValue::from_str(token.expose().trim())
        {
            value.set_sensitive(true);
            self.token = Some((HeaderName::from_static(name), value));
        }
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// Connections and TLS, as they are until a file changes or they are too old.
struct Pool {
    http: reqwest::Client,
    tls: Arc<Tls>,
    stamp: Stamp,
    made: Instant,
}

/// The way to one server.
pub(super) struct Transport {
    base: Url,
    files: TlsFiles,
    max_age: Duration,
    socket: Option<PathBuf>,
    pub(super) timing: Timing,
    pool: Mutex<Arc<Pool>>,
}

impl Transport {
    pub(super) fn new(
        base: Url,
        settings: &ClientSettings,
        socket: Option<PathBuf>,
        timing: Timing,
    ) -> Result<Self, ClientError> {
        let files = TlsFiles::of(settings, &base);
        let stamp = files.stamp();
        let tls = Arc::new(Tls::load(&files, &base)?);
        let http = connect(&base, &tls, socket.as_ref(), timing)?;
        let pool = Mutex::new(Arc::new(Pool { http, tls, stamp, made: Instant::now() }));
        Ok(Self { base, files, max_age: settings.connection_max_age, socket, timing, pool })
    }

    /// The address of an endpoint.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path()));
        url
    }
    pub(super) fn is_tls(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// TLS as it is now.
    pub(super) fn tls(&self) -> Arc<Tls> {
        self.pool().tls.clone()
    }

    /// The pool, renewed when a TLS file has changed, or, to close idle connections, when it is
    /// old. Files that cannot be used leave the old one in its place.
    fn pool(&self) -> Arc<Pool> {
        let mut pool = self.pool.lock();
        let stamp = self.files.stamp();
        let changed = stamp != pool.stamp;
        let old = !self.max_age.is_zero() && pool.made.elapsed() > self.max_age;
        if changed || old {
            let tls = if changed {
                Tls::load(&self.files, &self.base).map(Arc::new)
            } else {
                Ok(pool.tls.clone())
            };
            let made = Instant::now();
            let renewed = tls.and_then(|tls| {
                let http = connect(&self.base, &tls, self.socket.as_ref(), self.timing)?;
                Ok(Pool { http, tls, stamp, made })
            });
            match renewed {
                Ok(renewed) => *pool = Arc::new(renewed),
                Err(error) => {
                    tracing::error!(error = %error_chain(&error), "cannot renew the connection's TLS");
                }
            }
        }
        pool.clone()
    }

    /// Makes the call: the last answer, and whether a status came on the way that is tried again.
    pub(super) async fn send(
        &self,
        mut call: Call<'_>,
    ) -> (Result<Response, TransportError>, bool) {
        let mut left = Retries::new(call.timing.retry);
        let mut retried = false;
        let Some(mut payload) = call.content.again() else {
            return (Err(TransportError::NoBody { address: clean(&call.url) }), false);
        };
        loop {
            let response = match self.attempt(&mut call, payload).await {
                Ok(response) if is_retriable(response.status()) => response,
                other => return (other, retried),
            };
            retried = true;
            let Some(wait) = left.next(response.headers(), jiff::Timestamp::now()) else {
                return (Ok(response), retried);
            };
            let Some(again) = call.content.again() else {
                return (Ok(response), retried);
            };
            payload = again;
            tracing::debug!(status = response.status().as_u16(), ?wait, "waiting to try again");
            drain(response).await;
            tokio::time::sleep(wait).await;
        }
    }

    /// One attempt, with its redirects. A redirect that needs a body which cannot be made again is
    /// itself the answer.
    async fn attempt(
        &self,
        call: &mut Call<'_>,
        mut payload: Payload,
    ) -> Result<Response, TransportError> {
        let (mut method, mut url) = (call.method.clone(), call.url.clone());
        let mut headers = call.headers.clone();
        let id = random_hex::<16>();
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(HeaderName::from_static("x-request-id"), id);
        }
        if call.user_agent
            && let Ok(agent) = HeaderValue::from_str(&user_agent())
        {
            headers.insert(USER_AGENT, agent);
        }
        if let Some((name, value)) = call.token.clone() {
            headers.insert(name, value);
        }
        for _ in 0..=MAX_HOPS {
            let request = (method.clone(), url.clone(), headers.clone());
            let response = self.exchange(request, payload, call.timing).await?;
            if !call.follow {
                return Ok(response);
            }
            let next = match response.status() {
                StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => {
                    let keeps = method == Method::GET || method == Method::HEAD;
                    (if keeps { method.clone() } else { Method::GET }, false)
                }
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => {
                    (method.clone(), true)
                }
                _ => return Ok(response),
            };
            let Some(location) = text(response.headers(), LOCATION.as_str()) else {
                return Ok(response);
            };
            let target = url
                .join(location)
                .ok()
                .filter(|target| matches!(target.scheme(), "http" | "https"))
                .ok_or_else(|| TransportError::BadRedirect { address: clean(&url) })?;
            payload = if next.1 {
                match call.content.again() {
                    Some(payload) => payload,
                    None => return Ok(response),
                }
            } else {
                call.content = Content::Nothing;
                Payload::Nothing
            };
            // Storage behind a signed address needs no token, and must not learn it; nor must
            // anyone who listens to a server that falls back to plain http.
            let downgraded = url.scheme() == "https" && target.scheme() == "http";
            if (target.host() != url.host() || downgraded)
                && let Some((name, _)) = &call.token
            {
                headers.remove(name);
            }
            drain(response).await;
            (method, url) = (next.0, target);
        }
        Err(TransportError::TooManyRedirects { address: clean(&call.url), limit: MAX_HOPS })
    }

    /// One request, until the headers of its answer.
    async fn exchange(
        &self,
        (method, url, mut headers): (Method, Url, HeaderMap),
        payload: Payload,
        timing: Timing,
    ) -> Result<Response, TransportError> {
        let (sent, all_sent) = tokio::sync::oneshot::channel::<()>();
        let mut sent = Some(sent);
        let body = match payload {
            Payload::Nothing => None,
            Payload::Bytes(kind, bytes) => {
                headers.insert(CONTENT_TYPE, kind);
                Some(Body::from(bytes))
            }
            Payload::Stream(kind, stream) => {
                headers.insert(CONTENT_TYPE, kind);
                let sent = sent.take();
                // The deadline of the answer begins when the body is out.
                let end = futures_util::stream::once(async move {
                    drop(sent);
                    Ok(Bytes::new())
                });
                Some(Body::wrap_stream(stream.chain(end)))
            }
        };
        drop(sent);
        let id = headers.get("x-request-id").cloned();
        let http = self.pool().http.clone();
        let mut request = http.request(method, url.clone()).headers(headers).timeout(timing.whole);
        if let Some(body) = body {
            request = request.body(body);
        }
        let late = async {
            let _ = all_sent.await;
            tokio::time::sleep(timing.answer).await;
        };
        match futures_util::future::select(Box::pin(request.send()), Box::pin(late)).await {
            Either::Left((Ok(mut answer), _)) => {
                // The server's logs know a request by the server's id, if it gave one.
                if let Some(id) = id {
                    answer.headers_mut().entry("x-request-id").or_insert(id);
                }
                Ok(answer)
            }
            Either::Left((Err(error), _)) => Err(self.failed(&url, error, timing)),
            Either::Right(((), _)) => {
                Err(TransportError::TimedOut { address: clean(&url), after: timing.answer })
            }
        }
    }

    /// What a failure of reqwest means.
    pub(super) fn failed(
        &self,
        url: &Url,
        error: reqwest::Error,
        timing: Timing,
    ) -> TransportError {
        let address = clean(url);
        if error.is_timeout() {
            let after = if error.is_connect() { self.timing.connect } else { timing.whole };
            return TransportError::TimedOut { address, after };
        }
        let source = error.without_url();
        if is_untrusted(&source) {
            return TransportError::Untrusted { address, source };
        }
        TransportError::Http { address, source }
    }

    /// The body of an answer, up to `limit` bytes; with what came of it when it is broken.
    pub(super) async fn read(
        &self,
        mut response: Response,
        limit: usize,
        timing: Timing,
    ) -> (Bytes, Option<TransportError>) {
        let url = response.url().clone();
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(None) => return (body.into(), None),
                Ok(Some(chunk)) if body.len() + chunk.len() > limit => {
                    let error = TransportError::TooLong { address: clean(&url), limit };
                    return (body.into(), Some(error));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Err(error) => return (body.into(), Some(self.failed(&url, error, timing))),
            }
        }
    }

    /// What can be had of a body that only explains: little, and soon.
    pub(super) async fn read_little(&self, response: Response, timing: Timing) -> Bytes {
        let read = self.read(response, DRAIN_BYTES, timing);
        tokio::time::timeout(DRAIN_TIME, read).await.map(|(body, _)| body).unwrap_or_default()
    }
}

/// The pool's client: HTTP/1.1, no redirects of its own.
fn connect(
    base: &Url,
    tls: &Tls,
    socket: Option<&PathBuf>,
    timing: Timing,
) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .http1_only()
        .tls_backend_preconfigured(tls.config())
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timing.connect)
        .tcp_keepalive(Duration::from_secs(30))
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(100);
    if is_loopback(base) {
        // As in Go: a proxy is of no use here, whatever the environment says.
        builder = builder.no_proxy();
    }
    if let Some(socket) = socket {
        builder = builder.unix_socket(socket.clone());
    }
    builder
        .build()
        .map_err(|error| ClientError::Http { url: clean(base), source: error.without_url() })
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Reads the rest of an answer, so that its connection can be used again; not for long.
async fn drain(mut response: Response) {
    let rest = async {
        let mut read = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            read += chunk.len();
            if read > DRAIN_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}

/// Whether the server's certificate is what went wrong. rustls' error hides in I/O errors, whose
/// `source` skips it.
fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<tokio_rustls::rustls::Error>() {
        return matches!(error, tokio_rustls::rustls::Error::InvalidCertificate(_));
    }
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match inner {
        Some(inner) => is_untrusted(inner),
        None => error.source().is_some_and(is_untrusted),
    }
}

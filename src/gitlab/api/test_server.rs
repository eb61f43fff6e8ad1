//! A small HTTP server on a loopback port for tests: it answers as told, records what was asked,
//! and can misbehave in the ways that servers and proxies do.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    client::{Client, ClientSettings},
    retry::Policy,
    transport::Timing,
};
use crate::base::secret::Secret;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the server does with a request.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// 204, once it is told.
    Held(Arc<tokio::sync::Notify>),
    /// Says nothing, and keeps the connection.
    Hang,
    /// Says nothing, and closes it.
    Close,
    /// Says just this, and closes it.
    Raw(&'static str),
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    pub(super) fn json(status: u16, body: &str) -> Self {
        Self::status(status).header("Content-Type", "application/json").body(body)
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(super) fn body(mut self, text: &str) -> Self {
        if let Self::Answer { body, .. } = &mut self {
            text.as_bytes().clone_into(body);
        }
        self
    }
}

type Handler = Arc<Mutex<dyn FnMut(usize, &Seen) -> Reply + Send>>;

/// The server; it ends with this value.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Plain HTTP; `handler` is told how many requests came before this one.
    pub(super) async fn start(handler: impl FnMut(usize, &Seen) -> Reply + Send + 'static) -> Self {
        Self::serve(None, handler).await
    }

    /// HTTPS with this configuration.
    pub(super) async fn tls(
        config: Arc<rustls::ServerConfig>,
        handler: impl FnMut(usize, &Seen) -> Reply + Send + 'static,
    ) -> Self {
        Self::serve(Some(TlsAcceptor::from(config)), handler).await
    }

    async fn serve(
        tls: Option<TlsAcceptor>,
        handler: impl FnMut(usize, &Seen) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let handler: Handler = Arc::new(Mutex::new(handler));
        let mut tasks = JoinSet::new();
        let (record, count) = (seen.clone(), connections.clone());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (handler, seen, tls) = (handler.clone(), record.clone(), tls.clone());
                open.spawn(async move {
                    match tls {
                        None => converse(stream, handler, seen).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, handler, seen).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen, connections, _tasks: tasks }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// A client whose waits are short.
    pub(super) fn client(&self) -> Client {
        client(settings(&self.url()))
    }
}

/// Settings with a token and nothing else.
pub(super) fn settings(url: &str) -> ClientSettings {
    ClientSettings {
        url: url.to_owned(),
        token: Secret::new("glrt-secret"),
        tls_ca_file: None,
        tls_cert_file: None,
        tls_key_file: None,
        certs_dir: None,
        connection_max_age: Duration::from_mins(15),
    }
}

/// Retries that come at once; deadlines far away.
pub(super) fn quick() -> Timing {
    let base = Duration::from_millis(1);
    Timing { retry: Policy { base, ..Policy::JOB_API }, ..Timing::JOB_API }
}

/// A client whose retries come at once.
pub(super) fn client(settings: ClientSettings) -> Client {
    Client::with(settings, None, quick()).unwrap()
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    handler: Handler,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await {
        let reply = {
            let mut seen = seen.lock().unwrap();
            let reply = (handler.lock().unwrap())(seen.len(), &request);
            seen.push(request);
            reply
        };
        let reply = match reply {
            Reply::Held(told) => {
                told.notified().await;
                Reply::status(204)
            }
            other => other,
        };
        match reply {
            Reply::Answer { status, headers, body } => {
                let mut head = format!("HTTP/1.1 {status} Status\r\n");
                for (name, value) in headers {
                    head.extend([&name, ": ", &value, "\r\n"]);
                }
                if status != 204 {
                    head.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
                }
                head.push_str("\r\n");
                let answer = [head.as_bytes(), &body].concat();
                if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
            Reply::Hang | Reply::Held(_) => std::future::pending().await,
            Reply::Close => return,
            Reply::Raw(text) => {
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
                return;
            }
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let mut first = lines.first()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines[1..].iter().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut request = Seen { method, target, headers, body: Vec::new() };
    if let Some(length) = request.header("content-length").and_then(|l| l.parse().ok()) {
        request.body = vec![0; length];
        stream.read_exact(&mut request.body).await.ok()?;
    } else if request.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            stream.read_exact(&mut chunk).await.ok()?;
            if length == 0 {
                break;
            }
            request.body.extend_from_slice(&chunk[..length]);
        }
    }
    Some(request)
}

//! A GitLab for unit tests, on a loopback port: it answers as told, records what was asked, and can
//! misbehave in the ways that servers and proxies do. It knows nothing of jobs: the GitLab that
//! keeps jobs, traces and artifacts for a whole longshore is that of the integration tests.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body, which is JSON if there is one.
    pub(crate) fn json(&self) -> serde_json::Value {
        if self.body.is_empty() {
            return serde_json::Value::Null;
        }
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Method and path, without the query.
    pub(crate) fn line(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

/// What the server does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
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
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self::status(status).header("Content-Type", "application/json").body(body)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) fn body(mut self, text: &str) -> Self {
        if let Self::Answer { body, .. } = &mut self {
            text.as_bytes().clone_into(body);
        }
        self
    }
}

type Handler = Arc<Mutex<dyn FnMut(usize, &Seen) -> Reply + Send>>;

/// The server; it ends with this value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Plain HTTP; `handler` is told how many requests came before this one.
    pub(crate) async fn start(handler: impl FnMut(usize, &Seen) -> Reply + Send + 'static) -> Self {
        Self::serve(None, handler).await
    }

    /// Plain HTTP: these answers, a status and a body each, in this order, then 404.
    pub(crate) async fn scripted(answers: &[(u16, &str)]) -> Self {
        let answers: Vec<_> = answers
            .iter()
            .map(|(status, body)| {
                let kind = if body.starts_with('{') { "application/json" } else { "text/plain" };
                Reply::status(*status).header("Content-Type", kind).body(body)
            })
            .collect();
        Self::start(move |n, _| answers.get(n).cloned().unwrap_or(Reply::status(404))).await
    }

    /// HTTPS with this configuration.
    pub(crate) async fn tls(
        config: Arc<tokio_rustls::rustls::ServerConfig>,
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
        Self { address, url: format!("http://{address}"), seen, connections, _tasks: tasks }
    }

    /// Of plain HTTP.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Methods and paths of all requests.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen.lock().iter().map(Seen::line).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    handler: Handler,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await {
        let reply = {
            let mut seen = seen.lock();
            let reply = (handler.lock())(seen.len(), &request);
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

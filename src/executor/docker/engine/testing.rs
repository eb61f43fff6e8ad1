//! Engines for tests: a real one, and one that answers what the test says.

use std::{
    future::Future,
    process::Command,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    serve::ListenerExt as _,
};
use tokio::task::JoinSet;

use super::{Engine, EngineEnv};
use crate::config::EngineAddress;

/// The address of a real engine: `DOCKER_HOST`, or one that `tests/engine/up` brings up.
pub(crate) fn engine_host() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        if let Some(host) = std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty()) {
            return host;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engine/up");
        let output = Command::new(script).output().expect(script);
        let said = String::from_utf8_lossy(&output.stdout);
        let host = said.lines().last().unwrap_or_default();
        assert!(output.status.success() && host.contains("://"), "{script} gave no engine: {said}");
        host.to_owned()
    })
}

/// A connection to the real engine. Its own for each test, as connections belong to the runtime
/// they were made in.
pub(crate) async fn engine() -> Engine {
    let host = tokio::task::spawn_blocking(engine_host).await.unwrap();
    let address = EngineAddress { host: Some(host.to_owned()), ..EngineAddress::default() };
    Engine::connect(&address, &EngineEnv::default()).await.unwrap()
}

/// A request as an engine sees it.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    /// `GET /images/json?all=true`, without the version.
    pub(crate) line: String,
    /// `/v1.41`, or empty.
    pub(crate) version: String,
    pub(crate) headers: HeaderMap,
}

/// An engine on a socket of its own that keeps what it was asked.
pub(crate) struct FakeEngine {
    requests: Arc<Mutex<Vec<Recorded>>>,
    connections: Arc<AtomicUsize>,
    directory: tempfile::TempDir,
    _server: JoinSet<()>,
}

impl FakeEngine {
    /// Starts one that answers with `answer`.
    pub(crate) fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Recorded) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(directory.path().join("s")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&connections);
        let listener = listener.tap_io(move |_| {
            accepted.fetch_add(1, Ordering::SeqCst);
        });
        let app = axum::Router::new().fallback(move |request: Request| {
            let (answer, seen) = (answer.clone(), Arc::clone(&seen));
            async move {
                let recorded = record(request).await;
                seen.lock().unwrap().push(recorded.clone());
                answer(recorded).await
            }
        });
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { requests, connections, directory, _server: server }
    }

    /// Its address.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.directory.path().join("s").display())
    }

    /// A connection to it.
    pub(crate) async fn connect(&self) -> Engine {
        let address = EngineAddress { host: Some(self.host()), ..EngineAddress::default() };
        Engine::connect(&address, &EngineEnv::default()).await.unwrap()
    }

    /// What it was asked since the last call.
    pub(crate) fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// How many connections were opened.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many requests came since then.
    pub(crate) fn requests_so_far(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// What it was asked, lines only.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.take().into_iter().map(|r| r.line).collect()
    }
}

async fn record(request: Request) -> Recorded {
    let (parts, body) = request.into_parts();
    // Read to its end, as an engine does before it answers.
    axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path_and_query().unwrap().as_str();
    let (version, path) = match path[1..].split_once('/') {
        Some((first, _)) if first.starts_with("v1.") => path.split_at(first.len() + 1),
        _ => ("", path),
    };
    Recorded {
        line: format!("{} {path}", parts.method),
        version: version.to_owned(),
        headers: parts.headers,
    }
}

/// `GET /version` of an engine of that platform.
pub(crate) fn version(api: &str, min: &str, os: &str, arch: &str) -> Response {
    let about = serde_json::json!(
        {"ApiVersion": api, "MinAPIVersion": min, "Os": os, "Arch": arch, "Version": "1"}
    );
    axum::Json(about).into_response()
}

/// An error as engines send it.
pub(crate) fn refused(status: u16, message: &str) -> Response {
    let body = serde_json::json!({ "message": message });
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

/// JSON lines, as a pull reports.
pub(crate) fn stream(lines: &[serde_json::Value]) -> Response {
    let text = lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("\r\n");
    Body::from(text).into_response()
}

/// Runs a shell script in a container of `image` that is removed afterwards, and gives what it
/// said; panics when it fails.
pub(crate) async fn run_in(engine: &Engine, image: &str, script: &str) -> String {
    let command = ["/bin/sh", "-ec", script].map(str::to_owned).to_vec();
    let created = create(engine, image, command).await;
    finish(engine, &created).await
}

/// Creates a container.
pub(crate) async fn create(engine: &Engine, image: &str, command: Vec<String>) -> String {
    let body = bollard::models::ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(command),
        ..Default::default()
    };
    let none = None::<bollard::query_parameters::CreateContainerOptions>;
    engine.client().create_container(none, body).await.unwrap().id
}

/// Starts it, waits for its end, removes it and gives what it said; panics when it fails.
pub(crate) async fn finish(engine: &Engine, container: &str) -> String {
    use bollard::query_parameters as q;
    use futures_util::StreamExt as _;
    let client = engine.client();
    let started = client.start_container(container, None::<q::StartContainerOptions>).await;
    let mut ended = Vec::new();
    let mut said = String::new();
    if started.is_ok() {
        ended = client
            .wait_container(container, None::<q::WaitContainerOptions>)
            .collect::<Vec<_>>()
            .await;
        let options = q::LogsOptions { stdout: true, stderr: true, ..Default::default() };
        let mut logs = client.logs(container, Some(options));
        while let Some(piece) = logs.next().await {
            said.push_str(&String::from_utf8_lossy(&piece.unwrap().into_bytes()));
        }
    }
    let options = q::RemoveContainerOptions { force: true, v: true, ..Default::default() };
    client.remove_container(container, Some(options)).await.unwrap();
    started.unwrap();
    assert!(matches!(&ended[..], [Ok(_)]), "{ended:?}: {said}");
    said
}

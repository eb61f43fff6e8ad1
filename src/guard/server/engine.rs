//! Requests to the engine: one connection each, framed by the guard alone (G-28).

use std::{future::poll_fn, io, path::PathBuf, pin::pin};

use bytes::Bytes;
use futures_util::future::OptionFuture;
use http_body_util::BodyExt as _;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

use crate::guard::{
    parse::target,
    peer::{self, Route},
};

use super::{
    engine_body::{ConnectionDriver, EngineBody},
    patient_stream::PatientStream,
    response::{BoxBody, BoxError, full},
};

/// The highest version of the API that the tables of `policy` describe (G-41).
const HIGHEST: (u32, u32) = (1, 47);
/// The largest answer that is read as a whole.
const ANSWER: usize = 64 << 20;

/// Where the engine is.
#[derive(Debug, Clone)]
enum Address {
    Unix(PathBuf),
    Tcp(String),
}

/// The engine, as a client of its API.
#[derive(Debug, Clone)]
pub(in crate::guard) struct Engine {
    address: Address,
    /// `/v1.41`, or empty until it is known.
    pub(super) version: String,
    tasks: TaskTracker,
}

/// A request of the guard's own.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'a Method,
    /// The path without a version.
    pub(super) path: &'a str,
    pub(super) query: &'a [(String, String)],
    pub(super) content_type: Option<&'static str>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: BoxBody,
    pub(super) upgrade: bool,
}

impl Engine {
    /// The engine at `unix://PATH` or `tcp://HOST:PORT`.
    pub(in crate::guard) fn new(host: &str, tasks: TaskTracker) -> io::Result<Self> {
        let address = if let Some(path) = host.strip_prefix("unix://") {
            Address::Unix(path.into())
        } else if let Some(address) = host.strip_prefix("tcp://") {
            Address::Tcp(address.trim_end_matches('/').to_owned())
        } else {
            let message = format!(
                "engine address `{host}` is not of the form unix://PATH or tcp://HOST:PORT"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        Ok(Self { address, version: String::new(), tasks })
    }

    /// Finds the highest version that both sides know, and speaks it from then on (G-42).
    pub(in crate::guard) async fn negotiate(&mut self) -> Result<(u32, u32), BoxError> {
        let about = self.get("/version").await?.unwrap_or_default();
        let version = about["ApiVersion"].as_str().and_then(|text| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let version = version.ok_or("the engine does not say its version")?.min(HIGHEST);
        self.version = format!("/v{}.{}", version.0, version.1);
        Ok(version)
    }

    /// Whether what is mounted here is seen by the engine: both are in one mount namespace.
    pub(super) async fn shares_mounts(&self) -> bool {
        match &self.address {
            Address::Unix(path) => peer::shares(path, "mnt").await,
            Address::Tcp(_) => false,
        }
    }

    /// The routes of the network that the engine is in: this process may be in another. `None` when
    /// they cannot be seen from here.
    pub(super) async fn routes(&self) -> Option<Vec<Route>> {
        let Address::Unix(path) = &self.address else { return None };
        peer::routes(peer::listener(path).await.ok()??.into())
    }

    /// One exchange; the answer's body is still to be read.
    pub(super) async fn send(
        &self,
        outgoing: Outgoing<'_>,
    ) -> Result<Response<EngineBody>, BoxError> {
        let stream = match &self.address {
            Address::Unix(path) => PatientStream::new(UnixStream::connect(path).await?.into_std()?),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                PatientStream::new(stream.into_std()?)
            }
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut connection: Option<ConnectionDriver> = Some(Box::pin(connection.with_upgrades()));
        let uri =
            format!("{}{}{}", self.version, outgoing.path, target::encode_query(outgoing.query));
        let mut request = Request::builder()
            .method(outgoing.method)
            .uri(uri)
            .header(HOST, "docker")
            .header(USER_AGENT, "longshore-guard");
        if let Some(kind) = outgoing.content_type {
            request = request.header(CONTENT_TYPE, kind);
        }
        for (name, value) in outgoing.headers {
            request = request.header(name, value);
        }
        if outgoing.upgrade {
            request = request.header(CONNECTION, "Upgrade").header(UPGRADE, "tcp");
        }
        let answer = {
            let mut answer = pin!(sender.send_request(request.body(outgoing.body)?));
            poll_fn(|context| {
                if let Some(driven) = &mut connection
                    && driven.as_mut().poll(context).is_ready()
                {
                    connection = None;
                }
                answer.as_mut().poll(context)
            })
            .await?
        };
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            // The driver ends when the upgraded stream is taken from it.
            let upgraded = connection.take();
            self.tasks.spawn(async move { drop(OptionFuture::from(upgraded).await) });
        }
        Ok(answer.map(|body| EngineBody::new(body, connection)))
    }

    /// One exchange in JSON.
    pub(super) async fn json(
        &self,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), BoxError> {
        let query: Vec<_> =
            query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let answer = self
            .send(Outgoing {
                method,
                path,
                query: &query,
                content_type: body.map(|_| "application/json"),
                headers: Vec::new(),
                body: body.map_or_else(|| full(Bytes::new()), |body| full(body.to_string())),
                upgrade: false,
            })
            .await?;
        let status = answer.status();
        Ok((status, whole(answer.into_body()).await?))
    }

    /// `GET path`, when the engine has it.
    pub(in crate::guard) async fn get(&self, path: &str) -> Result<Option<Value>, BoxError> {
        let (status, value) = self.json(&Method::GET, path, &[], None).await?;
        match status {
            StatusCode::OK => Ok(Some(value)),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(format!("the engine answered {status} to GET {path}").into()),
        }
    }
}

/// Whether the engine at `unix://PATH` or `tcp://HOST:PORT` sees what is mounted here: only then can
/// a guard in this process pin what a job binds. False where that cannot be known.
pub(crate) async fn shares_mounts(engine: &str) -> bool {
    match Engine::new(engine, TaskTracker::new()) {
        Ok(engine) => engine.shares_mounts().await,
        Err(_) => false,
    }
}

/// A body as JSON; null for one that is not JSON.
pub(super) async fn whole(body: EngineBody) -> Result<Value, BoxError> {
    let bytes = http_body_util::Limited::new(body, ANSWER).collect().await?.to_bytes();
    Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

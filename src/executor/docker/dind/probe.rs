//! Asks a daemon as the job's tools would: over TCP at its container's address, with the job's own
//! certificates.

use std::{fmt, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};

/// Longest wait for one connection; on the same host it takes microseconds.
const CONNECT: Duration = Duration::from_secs(1);

/// Longest wait for the answers: a daemon takes connections some time before it answers.
const ANSWER: Duration = Duration::from_secs(10);

/// What a daemon says of itself (Docker Engine API, `GET /info`).
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct About {
    pub(super) server_version: String,
    pub(super) driver: String,
}

/// Why it did not answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// Its address cannot be reached from here, whether it listens or not.
    Unreachable,
    /// Not yet, for this reason.
    Not(String),
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("its address cannot be reached from here"),
            Self::Not(why) => f.write_str(why),
        }
    }
}

/// Asks once: `/_ping`, then `/info`.
pub(super) async fn ask(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<About, Silence> {
    let stream = match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let far = [io::ErrorKind::HostUnreachable, io::ErrorKind::NetworkUnreachable];
            return Err(if far.contains(&error.kind()) {
                Silence::Unreachable
            } else {
                Silence::Not(format!("{address}: {error}"))
            });
        }
        Err(_) => return Err(Silence::Unreachable),
    };
    let exchange = async {
        match tls {
            None => talk(stream).await,
            Some(config) => {
                let name = ServerName::try_from("localhost").map_err(|e| e.to_string())?;
                let connector = TlsConnector::from(Arc::clone(config));
                let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
                talk(stream).await
            }
        }
    };
    match timeout(ANSWER, exchange).await {
        Ok(answer) => answer.map_err(|why| Silence::Not(format!("{address}: {why}"))),
        Err(_) => Err(Silence::Not(format!("{address}: no answer in {} s", ANSWER.as_secs()))),
    }
}

/// The same at its unix socket, where that is a file here.
pub(super) async fn ask_at(socket: &Path) -> Result<About, String> {
    let exchange = async {
        let stream = UnixStream::connect(socket).await.map_err(|e| e.to_string())?;
        talk(stream).await
    };
    match timeout(ANSWER, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer in {} s", ANSWER.as_secs())),
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<About, String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let ask = async {
        get(&mut sender, "/_ping").await?;
        let info = get(&mut sender, "/info").await?;
        serde_json::from_slice(&info).map_err(|error| format!("/info: {error}"))
    };
    // A daemon may hang up after its last answer, which counts all the same.
    let drive = async {
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        answer = ask => answer,
        answer = drive => answer,
    }
}

async fn get(sender: &mut http1::SendRequest<Empty<Bytes>>, path: &str) -> Result<Bytes, String> {
    let request = Request::get(path).header(HOST, "docker").body(Empty::new());
    let request = request.map_err(|e| e.to_string())?;
    sender.ready().await.map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    if status.is_success() { Ok(body) } else { Err(format!("{path}: {status}")) }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn answered(answers: &[&str]) -> Result<About, Silence> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in answers {
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        tokio::join!(ask(address, None), serve).0
    }

    #[tokio::test]
    async fn a_daemon_is_ready_when_it_answers_both_questions() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK";
        let info = r#"{"ServerVersion":"29.1","Driver":"overlay2","Other":1}"#;
        let info = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{info}", info.len());
        let about = answered(&[ok, &info]).await.unwrap();
        assert_eq!((about.server_version.as_str(), about.driver.as_str()), ("29.1", "overlay2"));
        let starting = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(answered(&[ok, starting]).await, Err(Silence::Not(_))));
        assert!(matches!(answered(&[]).await, Err(Silence::Not(_))));
    }
}

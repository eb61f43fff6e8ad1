//! A socket in front of the engine that counts what passes, and can hold it.

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What has passed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count {
    /// First lines of all requests, such as `GET /v1.41/info HTTP/1.1`.
    pub(crate) requests: Vec<String>,
}

impl Count {
    /// How many containers were started.
    pub(crate) fn starts(&self) -> usize {
        let is_start = |line: &&String| {
            let path = line.split(' ').nth(1).unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default();
            path.contains("/containers/")
                && (path.ends_with("/start") || path.ends_with("/restart"))
        };
        self.requests.iter().filter(is_start).count()
    }

    /// What has passed since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self { requests: self.requests[earlier.requests.len()..].to_vec() }
    }
}

/// The proxy; it ends with this value.
pub(crate) struct Counter {
    count: watch::Receiver<Count>,
    /// As many requests pass.
    most: watch::Sender<usize>,
    directory: TempDir,
    _server: JoinSet<()>,
}

impl Counter {
    pub(crate) fn start(engine: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("docker.sock")).unwrap();
        let (sender, count) = watch::channel(Count::default());
        let sender = Arc::new(sender);
        let (most, held) = watch::channel(usize::MAX);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // The engine may be gone: then so is the connection.
                let Ok(upstream) = UnixStream::connect(&engine).await else { continue };
                let (sender, held) = (Arc::clone(&sender), held.clone());
                connections.spawn(async move {
                    let (client_read, client_write) = client.into_split();
                    let (engine_read, engine_write) = upstream.into_split();
                    // A side that goes away ends its direction; there is nobody to tell.
                    let (_, _) = tokio::join!(
                        requests(client_read, engine_write, &sender, held),
                        answers(engine_read, client_write)
                    );
                });
            }
        });
        Self { count, most, directory, _server: server }
    }

    /// Lets no request pass after this many in all, until it is told to go on.
    pub(crate) fn hold_after(&self, requests: usize) {
        self.most.send_replace(requests);
    }

    pub(crate) fn go_on(&self) {
        self.most.send_replace(usize::MAX);
    }

    /// Address for `DOCKER_HOST`.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.directory.path().join("docker.sock").display())
    }

    pub(crate) fn count(&self) -> Count {
        self.count.borrow().clone()
    }

    /// To wait for more while something else has this.
    pub(crate) fn watch(&self) -> watch::Receiver<Count> {
        self.count.clone()
    }

    /// Waits until `requests` have passed in all.
    pub(crate) async fn until(&self, requests: usize) {
        let mut count = self.count.clone();
        count.wait_for(|count| count.requests.len() >= requests).await.unwrap();
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> std::io::Result<()> {
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

/// Passes requests on and counts them. After an upgrade all is passed on as it is.
async fn requests(
    from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    count: &watch::Sender<Count>,
    mut most: watch::Receiver<usize>,
) -> std::io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut head = Vec::new();
        let (mut length, mut chunked, mut upgrade) = (0, false, false);
        loop {
            let start = head.len();
            if from.read_until(b'\n', &mut head).await? == 0 {
                return to.shutdown().await;
            }
            let line = String::from_utf8_lossy(&head[start..]).trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            chunked |= line.starts_with("transfer-encoding:") && line.ends_with("chunked");
            upgrade |= line.starts_with("upgrade:");
        }
        let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
        count.send_modify(|count| count.requests.push(first));
        let number = count.borrow().requests.len();
        most.wait_for(|most| number <= *most).await.map_err(std::io::Error::other)?;
        to.write_all(&head).await?;
        if upgrade {
            copy_out(&mut from, &mut to).await?;
            return to.shutdown().await;
        }
        if chunked {
            pass_chunks(&mut from, &mut to).await?;
        } else {
            copy(&mut (&mut from).take(length), &mut to).await?;
        }
    }
}

async fn copy_out(
    from: &mut BufReader<OwnedReadHalf>,
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    tokio::io::copy_buf(from, to).await.map(drop)
}

async fn pass_chunks(
    from: &mut BufReader<OwnedReadHalf>,
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    loop {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line).await?;
        to.write_all(&line).await?;
        let size = String::from_utf8_lossy(&line);
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(std::io::Error::other)?;
        if size == 0 {
            break;
        }
        copy(&mut (&mut *from).take(size + 2), to).await?;
    }
    // Trailers, up to an empty line.
    loop {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line).await?;
        to.write_all(&line).await?;
        if line.len() <= 2 {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn requests_and_starts_are_counted_past_every_kind_of_body() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let counter = Counter::start(path);
    let socket = counter.directory.path().join("docker.sock");
    let mut client = UnixStream::connect(socket).await.unwrap();
    let sent = b"POST /v1.41/containers/create HTTP/1.1\r\ncontent-length: 6\r\n\r\n\r\n\r\nGE\
        POST /build HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\nGET \r\n0\r\n\r\n\
        POST /v1.41/containers/abc/start?detachKeys= HTTP/1.1\r\n\r\n\
        POST /v1.41/containers/abc/attach HTTP/1.1\r\nUpgrade: tcp\r\n\r\nPOST /x/start HTTP/1.1\r\n";
    client.write_all(sent).await.unwrap();
    client.shutdown().await.unwrap();
    let (mut engine, _) = listener.accept().await.unwrap();
    let mut arrived = Vec::new();
    engine.read_to_end(&mut arrived).await.unwrap();
    assert_eq!(arrived, sent);
    assert_eq!((counter.count().requests.len(), counter.count().starts()), (4, 1));
}

#[tokio::test]
async fn what_is_held_passes_when_it_may_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("engine.sock");
    let listener = UnixListener::bind(path.clone()).unwrap();
    let counter = Counter::start(path);
    counter.hold_after(1);
    let mut client =
        UnixStream::connect(counter.directory.path().join("docker.sock")).await.unwrap();
    client.write_all(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut engine, _) = listener.accept().await.unwrap();
    counter.until(2).await;
    let mut first = [0; 19];
    engine.read_exact(&mut first).await.unwrap();
    let nothing = std::io::ErrorKind::WouldBlock;
    assert_eq!(engine.try_read(&mut [0]).unwrap_err().kind(), nothing);
    counter.go_on();
    let mut rest = Vec::new();
    engine.read_to_end(&mut rest).await.unwrap();
    assert_eq!(
        (&first[..], &rest[..]),
        (&b"GET /a HTTP/1.1\r\n\r\n"[..], &b"GET /b HTTP/1.1\r\n\r\n"[..])
    );
}

//! A TCP address at which the engine answers, as at one on another host.

use std::{net::SocketAddr, path::PathBuf};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, UnixStream},
    task::JoinSet,
};

/// The relay; it ends with this value.
pub(crate) struct Relay {
    address: SocketAddr,
    _server: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(engine: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut upstream = UnixStream::connect(&engine).await.unwrap();
                connections.spawn(async move {
                    // A side that goes away ends both; there is nobody to tell.
                    drop(copy_bidirectional(&mut client, &mut upstream).await);
                });
            }
        });
        Self { address, _server: server }
    }

    /// Address for `DOCKER_HOST`.
    pub(crate) fn host(&self) -> String {
        format!("tcp://{}", self.address)
    }
}

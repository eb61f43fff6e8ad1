//! The guarded socket, and the connections to it.

use std::{
    io,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::{Mode, OFlags};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use crate::guard::settings::GuardSettings;

use super::{
    answer::ConnectionPermit, backend::Backend, exchange::Exchanges, strict_stream::StrictStream,
};

/// How long the next request's head may take, idle time included (G-86): the server's timer knows
/// no difference, and a client that is slow on purpose holds up its own job alone.
const HEAD: Duration = Duration::from_mins(5);
/// How many headers a request may have (G-21).
const HEADERS: usize = 100;
/// How large a request's head may be, in bytes (G-21).
const HEAD_SIZE: usize = 64 << 10;

/// Makes the socket's file.
pub(super) fn listen(settings: &GuardSettings) -> io::Result<UnixListener> {
    match std::fs::remove_file(&settings.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = bind(&settings.socket)?;
    if settings.socket_group.is_some() {
        std::os::unix::fs::chown(&settings.socket, None, settings.socket_group)?;
    }
    std::fs::set_permissions(&settings.socket, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Binds a socket at a path of any length: an address has room for 107 bytes (unix(7)).
fn bind(path: &Path) -> io::Result<UnixListener> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixListener::bind(short)
}

/// Takes connections until the guard stops. No client blocks it: one too many is closed.
pub(super) async fn accept(
    listener: UnixListener,
    backend: Arc<Backend>,
    exchanges: Arc<Exchanges>,
) {
    let permits = Arc::new(Semaphore::new(backend.settings.limits.connections));
    let mut number = 0;
    loop {
        let stream = tokio::select! {
            () = backend.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to a guarded socket");
                    // Mostly for want of descriptors: other connections must end first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        number += 1;
        let (exchanges, stop) = (Arc::clone(&exchanges), backend.stop.clone());
        backend.tasks.spawn(async move {
            let permit = Arc::new(permit);
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, number, exchanges, Arc::clone(&permit)) => {}
            }
        });
    }
}

async fn connection(
    stream: UnixStream,
    number: u64,
    exchanges: Arc<Exchanges>,
    permit: ConnectionPermit,
) {
    let service = service_fn(move |request| {
        let (exchanges, permit) = (Arc::clone(&exchanges), Arc::clone(&permit));
        async move { exchanges.answer(request, number, permit).await }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_SIZE)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(StrictStream::new(stream)), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, connection = number, "connection to a guarded socket ended early");
    }
}

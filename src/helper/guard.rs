//! `longshore helper guard`, the program of a guard container: it enters the engine's mount namespace,
//! and replies to the longshore that started it (`guard::container`).
//!
//! After [`enter`] all paths are those of the engine's host. The container's own file system is out
//! of reach then: nothing of it may be opened any more, and nothing here is.

use std::{
    fs::{self, File},
    future::Future,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    pin::pin,
};

use rustix::thread::LinkNameSpaceType;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    base::error_chain,
    guard::{
        AuditEvent, Guard, GuardSettings,
        container::{Endpoint, Reply, Request, StartRequest, decode_json, encode_json},
        peer,
    },
    helper::protocol::{self, Frame},
};

/// How many frames may wait to be written.
const WAITING: usize = 64;

/// Why the engine's mount namespace cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The connection to the socket fails.
    #[error("cannot connect to the engine's socket, which is {} here", path.display())]
    Connect {
        /// The socket in the guard container.
        path: PathBuf,
        /// The error of the connection.
        source: io::Error,
    },
    /// The process that listens there is not visible from here.
    #[error(
        "the process that listens at the engine's socket is not to be seen from here: the socket is \
         of another host or container than the one that runs the engine's containers"
    )]
    Unseen,
    /// Its namespace cannot be entered.
    #[error("cannot enter the engine's mount namespace, that of process {process}")]
    Refused {
        /// The id of the engine's process.
        process: i32,
        /// The error of the kernel.
        source: io::Error,
    },
}

impl EnterError {
    /// What the operator can do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Connect { .. } => {
                "is engine_socket in [runners.docker.socket] the engine's own socket on its host?"
            }
            Self::Unseen => {
                "engine_socket in [runners.docker.socket] must be the engine's own socket on its \
                 host, not one of a relay that runs elsewhere"
            }
            Self::Refused { .. } => {
                "a guarded socket needs an engine whose containers may have SYS_ADMIN and SYS_PTRACE \
                 over it, without user namespaces of their own; run longshore on the engine's host, \
                 as root, or use a daemon of the job's own"
            }
        }
    }
}

/// Enters the mount namespace of the engine that listens at `socket`, and its root directory. It is
/// for a process of one thread alone (`setns(2)`).
///
/// # Errors
/// When the engine's process cannot be found, or may not be followed.
pub fn enter(socket: &Path) -> Result<(), EnterError> {
    let process = listener(socket)?;
    let refused = |source: io::Error| EnterError::Refused { process, source };
    let of = |name: &str| File::open(format!("/proc/{process}/{name}")).map_err(refused);
    // The root first: its link is one of this namespace's /proc.
    let (root, namespace) = (of("root")?, of("ns/mnt")?);
    let entered = || {
        rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::Mount),
        )?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")
    };
    entered().map_err(|error: rustix::io::Errno| refused(error.into()))
}

/// The process that listens at a unix socket. Where that is systemd, its mount namespace is
/// that of its services, unless their units say otherwise.
fn listener(socket: &Path) -> Result<i32, EnterError> {
    let asked = || {
        // The runtime has this thread alone, and ends before the namespace is entered.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(peer::listener(socket))
    };
    let peer = asked().map_err(|source| EnterError::Connect { path: socket.to_owned(), source })?;
    peer.ok_or(EnterError::Unseen)
}

/// Replies to requests until `input` ends or `terminated` is ready; then a guard that runs is stopped.
///
/// # Errors
/// When reading fails, or what is read is not a frame of the protocol.
pub async fn serve(
    input: impl AsyncRead,
    output: impl AsyncWrite,
    terminated: impl Future<Output = ()>,
) -> io::Result<()> {
    let (mut output, terminated) = (pin!(output), pin!(terminated));
    let (frames, mut waiting) = mpsc::channel(WAITING);
    let mut program = GuardProgram { frames, guarded: None };
    let answer = async {
        let asked = tokio::select! {
            asked = program.answer(input) => asked,
            () = terminated => Ok(()),
        };
        program.stop().await;
        drop(program);
        asked
    };
    let deliver = async {
        let mut is_heard = true;
        while let Some(frame) = waiting.recv().await {
            // The guard is stopped in order even when longshore is gone and no frame arrives.
            is_heard = is_heard && protocol::write(&mut output, &frame).await.is_ok();
        }
    };
    tokio::join!(answer, deliver).0
}

struct GuardProgram {
    frames: mpsc::Sender<Frame>,
    guarded: Option<Guarded>,
}

struct Guarded {
    guard: Guard,
    directory: PathBuf,
    /// Sends the events of the audit log on, until the guard has ended.
    events: JoinSet<()>,
}

impl GuardProgram {
    async fn answer(&mut self, input: impl AsyncRead) -> io::Result<()> {
        let mut input = pin!(input);
        while let Some(frame) = protocol::read(&mut input).await? {
            let Frame::Task(json) = frame else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not a request"));
            };
            let answer = match decode_json(&json) {
                Ok(ask) => self.answer_to(ask).await,
                Err(error) => Reply::Failed(format!("not a request: {error}")),
            };
            drop(self.frames.send(Frame::Done(encode_json(&answer)?)).await);
        }
        Ok(())
    }

    async fn answer_to(&mut self, ask: Request) -> Reply {
        match ask {
            Request::Hello => Reply::Done,
            Request::Start(start) => match self.start(*start).await {
                Ok(endpoint) => Reply::Ready(endpoint),
                Err(error) => Reply::Failed(error_chain(&error)),
            },
            Request::Adopt { id, name } => match &self.guarded {
                Some(guarded) => {
                    guarded.guard.adopt(&id, &name);
                    Reply::Done
                }
                None => Reply::Failed("no guard was started".to_owned()),
            },
            Request::Summary => match &self.guarded {
                Some(guarded) => Reply::Summary(guarded.guard.summary()),
                None => Reply::Failed("no guard was started".to_owned()),
            },
            Request::Stop => Reply::Left(self.stop().await),
            Request::Reap(host) => match host.directory().await {
                Ok(directory) => {
                    Reply::Left(Guard::reap_directory(&host.address(), &directory).await)
                }
                Err(error) => Reply::Failed(error.to_string()),
            },
        }
    }

    async fn start(&mut self, start: StartRequest) -> io::Result<Endpoint> {
        let StartRequest { host, mut settings } = start;
        let directory = host.directory().await?;
        let places = GuardSettings::new("", Default::default(), "", &directory);
        (settings.socket, settings.private) = (places.socket, places.private);
        let owner = fs::metadata(&host.engine)?.gid();
        if owner != 0 {
            settings.socket_group = Some(owner);
        }
        let (sender, events) = mpsc::channel(WAITING);
        let guard = Guard::start(&host.address(), settings, Some(sender)).await?;
        let endpoint = Endpoint::of(&guard);
        let mut forward = JoinSet::new();
        forward.spawn(send_on(events, self.frames.clone()));
        self.guarded = Some(Guarded { guard, directory, events: forward });
        Ok(endpoint)
    }

    /// Stops the guard. Returns what could not be removed, once all events are on their way.
    async fn stop(&mut self) -> Vec<String> {
        let Some(guarded) = &self.guarded else { return Vec::new() };
        // Keep the guard until `stop` returns, so that a later `stop` can finish it.
        let left = guarded.guard.stop().await.left;
        let Some(Guarded { directory, events, .. }) = self.guarded.take() else { return left };
        events.join_all().await;
        // The directory stays while the journal in it names something that is left.
        drop(fs::remove_dir(&directory));
        left
    }
}

async fn send_on(mut events: mpsc::Receiver<AuditEvent>, frames: mpsc::Sender<Frame>) {
    while let Some(event) = events.recv().await {
        if let Ok(json) = encode_json(&event) {
            drop(frames.send(Frame::Output(json)).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::container::EngineHost;

    async fn answers(asked: &[u8]) -> (io::Result<()>, Vec<Reply>) {
        let mut said = Vec::new();
        let served = serve(asked, &mut said, std::future::pending()).await;
        let mut said = said.as_slice();
        let mut answers = Vec::new();
        while let Some(frame) = protocol::read(&mut said).await.unwrap() {
            let Frame::Done(json) = frame else { panic!("{frame:?}") };
            answers.push(decode_json(&json).unwrap());
        }
        (served, answers)
    }

    fn asked(asks: &[Request]) -> Vec<u8> {
        asks.iter().flat_map(|ask| ask.frame().unwrap().encode()).collect()
    }

    #[tokio::test]
    async fn each_request_has_one_reply_in_order_and_their_end_ends_it() {
        let mut bytes = asked(&[
            Request::Hello,
            Request::Summary,
            Request::Adopt { id: "1".into(), name: "build".into() },
            Request::Stop,
        ]);
        bytes.extend(Frame::Task("\"dance\"".into()).encode());
        bytes.extend(asked(&[Request::Hello]));
        let (served, answers) = answers(&bytes).await;
        served.unwrap();
        let words: Vec<String> = answers.iter().map(|answer| format!("{answer:?}")).collect();
        assert_eq!(
            words[..4],
            [
                "Done",
                "Failed(\"no guard was started\")",
                "Failed(\"no guard was started\")",
                "Left([])"
            ]
        );
        assert!(words[4].starts_with("Failed(\"not a request"), "{words:?}");
        assert_eq!(words[5..], ["Done"]);
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_said_with_its_path() {
        let host = EngineHost {
            engine: "/no/such.sock".into(),
            container: "c".into(),
            unique: "u".into(),
        };
        let identity = ("l".to_owned(), "1".to_owned());
        let settings = GuardSettings::new("1", identity, "n", Path::new("/x"));
        let start = Request::Start(Box::new(StartRequest { host: host.clone(), settings }));
        let (served, answers) = answers(&asked(&[start, Request::Reap(host)])).await;
        served.unwrap();
        for answer in answers {
            let Reply::Failed(why) = answer else { panic!("{answer:?}") };
            assert!(why.contains("the engine at /no/such.sock does not answer"), "{why}");
        }
    }

    #[tokio::test]
    async fn what_is_no_protocol_ends_it() {
        assert!(answers(&Frame::Data("x".into()).encode()).await.0.is_err());
        assert!(answers(b"GET / HTTP/1.1\r\n\r\n").await.0.is_err());
    }

    #[tokio::test]
    async fn who_is_told_to_end_does_so_while_its_longshore_lives() {
        let (_longshore, input) = tokio::io::duplex(64);
        serve(input, tokio::io::sink(), std::future::ready(())).await.unwrap();
    }

    #[test]
    fn who_listens_is_found_and_not_followed_by_one_thread_of_many() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        assert!(matches!(enter(&path), Err(EnterError::Connect { .. })));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(listener(&path).unwrap(), i32::try_from(std::process::id()).unwrap());
        assert!(matches!(enter(&path), Err(EnterError::Refused { .. })));
        assert!(path.exists());
    }
}

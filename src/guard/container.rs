//! A guard in a container on the engine's host: what longshore and it say to each other, and where it
//! has its files there.
//!
//! It is for an engine that does not share longshore's mount namespace: one that is reached by TCP,
//! or by the socket that a longshore in a container was given. The guard container enters the engine's
//! mount namespace before anything else, so that pins and the socket's file are there what they are on
//! one host.
//!
//! On its stdin and stdout are frames of [`crate::helper::protocol`]: a [`Request`] is a `Task`, each
//! is answered with one [`Reply`] as a `Done`, in order; an [`AuditEvent`](super::audit::AuditEvent) is
//! an `Output` that comes when it comes. The end of its stdin means that longshore is gone: the guard
//! container then removes what the job made, and ends.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::task::TaskTracker;

use crate::helper::protocol::Frame;

use super::{
    parse::target::encode,
    server::{engine::Engine, guard::Guard, report::Summary, response::BoxError},
    settings::GuardSettings,
};

/// Where the guard container has the engine's socket. It looks once who listens there.
pub(crate) const ENGINE_SOCKET: &str = "/run/longshore-engine.sock";

/// What a guard container is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Whether it runs in the engine's mount namespace by now.
    Hello,
    /// To start the guard; answered with [`Reply::Ready`].
    Start(Box<StartRequest>),
    /// To show the job one of the runner's own containers.
    Adopt {
        /// The container's full id.
        id: String,
        /// The container's name, without a slash.
        name: String,
    },
    /// What the guard did so far; answered with [`Reply::Summary`].
    Summary,
    /// To stop the guard, and remove what the job made; answered with [`Reply::Left`].
    Stop,
    /// To remove what a guard that died left; answered with [`Reply::Left`].
    Reap(EngineHost),
}

/// Where a guard is on its engine's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EngineHost {
    /// The engine's socket there.
    pub(crate) engine: PathBuf,
    /// The guard container, by name: an engine that does not know it is another one.
    pub(crate) container: String,
    /// A name that is unique among all jobs.
    pub(crate) unique: String,
}

/// All that is needed to start a guard.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StartRequest {
    pub(crate) host: EngineHost,
    /// What it guards. Paths of its own files, and the group of the engine's socket where that is
    /// not root's, are the guard container's to find.
    pub(crate) settings: GuardSettings,
}

/// What a guard container answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Done,
    /// The guard answers at its socket.
    Ready(Endpoint),
    /// What the guard did so far.
    Summary(Summary),
    /// The guard has ended, or what another left is removed; this could not be removed.
    Left(Vec<String>),
    /// It could not be done, for this reason.
    Failed(String),
}

/// Where a guard answers, and what else a job's containers need to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// Its socket's file on the engine's host.
    pub(crate) socket: PathBuf,
    /// The group of that file.
    pub(crate) group: Option<u32>,
    pub(crate) network: String,
    /// The address of that network where ports are published.
    pub(crate) gateway: String,
}

impl Endpoint {
    /// What a guard that runs says of itself.
    #[must_use]
    pub(crate) fn of(guard: &Guard) -> Self {
        let (network, gateway) = guard.network();
        Self {
            socket: guard.socket().to_owned(),
            group: guard.group(),
            network: network.to_owned(),
            gateway: gateway.to_owned(),
        }
    }
}

/// The JSON of a frame.
///
/// # Errors
/// When there is none for it, or it is too long for a frame.
pub(crate) fn encode_json(value: &impl Serialize) -> io::Result<bytes::Bytes> {
    let json = serde_json::to_vec(value)?;
    if json.len() > crate::helper::protocol::MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a frame"));
    }
    Ok(json.into())
}

/// The value in a frame's JSON.
///
/// # Errors
/// When it is something else.
pub(crate) fn decode_json<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    serde_json::from_slice(json).map_err(io::Error::from)
}

impl Request {
    /// The frame of it.
    ///
    /// # Errors
    /// As [`encode_json`].
    pub(crate) fn frame(&self) -> io::Result<Frame> {
        encode_json(self).map(Frame::Task)
    }
}

impl EngineHost {
    /// The engine's address there.
    #[must_use]
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.engine.display())
    }

    /// The guard's directory: beside the engine's own, on a disk that has room for archives, and
    /// where the engine itself can write. Not a volume: the engine empties what it removes, and with
    /// a volume, what is pinned in it.
    ///
    /// # Errors
    /// When the engine cannot be reached there, or is not the one that has the guard container.
    pub(crate) async fn directory(&self) -> io::Result<PathBuf> {
        let mut engine = Engine::new(&self.address(), TaskTracker::new())?;
        let failed = |error: BoxError| {
            let message =
                format!("the engine at {} does not answer: {error}", self.engine.display());
            io::Error::other(message)
        };
        engine.negotiate().await.map_err(failed)?;
        let path = format!("/containers/{}/json", encode(&self.container));
        if engine.get(&path).await.map_err(failed)?.is_none() {
            let message = format!(
                "the engine at {} is another than the one that has this container",
                self.engine.display()
            );
            return Err(io::Error::other(message));
        }
        let info = engine.get("/info").await.map_err(failed)?.unwrap_or_default();
        let root = info["DockerRootDir"].as_str().map(Path::new).filter(|root| root.is_absolute());
        let root =
            root.ok_or_else(|| io::Error::other("the engine does not say where its files are"))?;
        Ok(root.join(format!("longshore-guard-{}", self.unique)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::{
        audit::{AuditEvent, Decision},
        names::Names,
        settings::Mapping,
    };

    #[test]
    fn settings_arrive_as_they_were_sent() {
        let identity = ("longshore.guard".to_owned(), "1".to_owned());
        let mut settings = GuardSettings::new("7", identity, "net", Path::new("/x"));
        settings.labels.insert("a".into(), "b".into());
        settings.cgroup_parent = Some("/ci".into());
        settings.workspace.push(Mapping {
            job: "/builds".into(),
            host: "/var/lib/docker/volumes/v/_data".into(),
            read_only: true,
        });
        settings.images.remove = false;
        settings.limits.upload = u64::MAX;
        settings.widening.devices.push("/dev/kvm".into());
        let host = EngineHost {
            engine: "/run/docker.sock".into(),
            container: "c".into(),
            unique: "u".into(),
        };
        let sent = format!("{settings:?}");
        let ask = Request::Start(Box::new(StartRequest { host: host.clone(), settings }));
        let Ok(Frame::Task(json)) = ask.frame() else { panic!() };
        let Request::Start(start) = decode_json(&json).unwrap() else { panic!() };
        assert_eq!(start.host, host);
        assert!(matches!(start.settings.names, Names::Scoped(_)));
        assert_eq!(format!("{:?}", start.settings), sent);
    }

    #[test]
    fn events_arrive_as_they_were_sent() {
        for rule in [Some("G-1".into()), None] {
            let event = AuditEvent {
                time: "2026-01-01T00:00:00Z".into(),
                job: "7".into(),
                connection: 1,
                method: "POST".into(),
                route: "/containers/create".into(),
                decision: Decision::Refused,
                rule,
                message: Some("guard: no".into()),
                status: 403,
                milliseconds: 3,
            };
            let json = encode_json(&event).unwrap();
            assert_eq!(decode_json::<AuditEvent>(&json).unwrap(), event);
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for text in ["", "{}", "{\"ready\":{}}", "\"ready\"", "{\"done\":1} x"] {
            assert!(decode_json::<Reply>(text.as_bytes()).is_err(), "{text}");
        }
        assert!(matches!(decode_json(b"\"done\""), Ok(Reply::Done)));
        assert!(encode_json(&"x".repeat(crate::helper::protocol::MAX_FRAME)).is_err());
    }
}

//! A job's guard in a container beside the engine, the guard container: when there is one, how it is
//! created, the requests to it, and the removal of what one that died has left.
//!
//! What runs inside is `helper::guard`. The guard container is the only one of a job's that is root on
//! the engine's host; no job can see it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bollard::{
    models::{
        ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, RestartPolicy,
        RestartPolicyNameEnum,
    },
    query_parameters::CreateContainerOptionsBuilder,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{
    config::GuardPlace,
    executor::docker::{
        attach::Attached,
        clean_up::{self, Anonymous},
        engine::{
            self, Engine,
            helper_image::{self, HelperImageError},
        },
        spec,
    },
    executor::helper::{Helper, HelperError},
    guard::{
        AuditEvent, GuardSettings, Summary,
        container::{
            ENGINE_SOCKET, Endpoint, EngineHost, Reply, Request, StartRequest, decode_json,
        },
    },
    helper::protocol::Frame,
    ledger::Resource,
};

/// The arguments of longshore in the container.
const GUARD: [&str; 2] = ["helper", "guard"];

/// The file of a [`LaunchRecord`] in the job's directory of guards. The name is that of earlier
/// versions, whose guard containers must be found.
const RECORD: &str = "sidecar";

/// Where engines listen when nothing says otherwise.
const USUAL_SOCKET: &str = "/var/run/docker.sock";

/// How many requests may wait to be sent.
const WAITING: usize = 16;

/// How long a job waits for a reply that needs no engine: the container may be paused.
const PATIENCE: Duration = Duration::from_secs(10);

/// All capabilities of a guard container: it follows the engine's process, which to the kernel is
/// another user's, into its mounts and its root, mounts there, and owns files there as the engine does.
const CAPABILITIES: [&str; 6] =
    ["SYS_ADMIN", "SYS_PTRACE", "SYS_CHROOT", "DAC_OVERRIDE", "CHOWN", "FOWNER"];

/// A guard container that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum GuardContainerError {
    /// The launch record cannot be written or read.
    #[error("cannot write `{}`", path.display())]
    Record {
        /// The file of the launch record.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// The helper image cannot be made.
    #[error("cannot make the helper image")]
    Image(#[from] HelperImageError),
    /// The engine refused a request, or cannot be reached.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The connection to its program ended.
    #[error("its program does not answer")]
    Lost(#[source] Arc<HelperError>),
    /// A request has no frame, mostly for its size.
    #[error("the request to it cannot be sent")]
    Oversized(#[source] io::Error),
    /// It could not do what was requested, for this reason.
    #[error("{0}")]
    Failed(String),
}

impl GuardContainerError {
    /// What the operator can do.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Engine(error) if is_missing_socket(error) => Some(
                "engine_socket in [runners.docker.socket] must be the path of the engine's socket \
                 on the engine's own host",
            ),
            Self::Image(error) => error.hint(),
            Self::Record { .. }
            | Self::Engine(_)
            | Self::Lost(_)
            | Self::Oversized(_)
            | Self::Failed(_) => None,
        }
    }

    /// Whether the runner's settings are the reason.
    pub(super) fn is_configuration(&self) -> bool {
        matches!(self, Self::Engine(error) if is_missing_socket(error))
    }
}

fn is_missing_socket(error: &engine::Error) -> bool {
    error
        .engine_message()
        .is_some_and(|message| message.contains("bind source path does not exist"))
}

/// Whether a job's guard runs in a guard container. `shares_mounts` tells whether the engine sees what is mounted
/// here, and is asked only where that matters.
pub(super) async fn is_wanted(
    place: GuardPlace,
    shares_mounts: impl AsyncFnOnce() -> bool,
) -> bool {
    match place {
        GuardPlace::Here => false,
        GuardPlace::Sidecar => true,
        GuardPlace::Auto => !shares_mounts().await,
    }
}

/// The engine's socket on the engine's host.
pub(super) fn engine_socket(configured: Option<&Path>, host: &str) -> PathBuf {
    match (configured, host.strip_prefix("unix://")) {
        (Some(path), _) => path.to_owned(),
        (None, Some(own)) => own.into(),
        (None, None) => USUAL_SOCKET.into(),
    }
}

/// All that is needed to start a guard container for a job. It is written before the container is
/// created, so that what one leaves can be removed through another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaunchRecord {
    pub(super) host: EngineHost,
    /// Whether the helper image is the operator's. Then the guard container has an image with
    /// longshore alone, as what else is in the operator's would run as root on the engine's host.
    pub(super) is_portable: bool,
    /// The labels of the container.
    pub(super) labels: BTreeMap<String, String>,
    /// Whether a guard may have made something.
    pub(super) is_begun: bool,
}

impl LaunchRecord {
    /// Writes it atomically; it is on disk when this returns.
    fn write(&self, directory: &Path) -> Result<(), GuardContainerError> {
        let path = directory.join(RECORD);
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            serde_json::to_writer(&mut file, self)?;
            file.flush()?;
            file.as_file().sync_data()?;
            file.persist(&path)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|source| GuardContainerError::Record { path, source })
    }

    /// `None` where no guard container was launched.
    fn read(directory: &Path) -> io::Result<Option<Self>> {
        match fs::read(directory.join(RECORD)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn forget(directory: &Path) {
        drop(fs::remove_file(directory.join(RECORD)));
        drop(fs::remove_dir(directory));
    }
}

/// A guard container that runs.
pub(super) struct GuardContainer {
    engine: Engine,
    record: LaunchRecord,
    directory: PathBuf,
    requests: mpsc::Sender<(Request, oneshot::Sender<Reply>)>,
    /// The task that exchanges frames with its program.
    conversation: Mutex<JoinSet<()>>,
    /// Why that task ended.
    lost: Arc<OnceLock<Arc<HelperError>>>,
}

impl GuardContainer {
    /// Starts the container, which runs in the engine's mount namespace when this returns.
    /// `directory` is the job's directory of guards on this host.
    pub(super) async fn launch(
        engine: &Engine,
        record: LaunchRecord,
        directory: &Path,
        events: mpsc::Sender<AuditEvent>,
    ) -> Result<Self, GuardContainerError> {
        record.write(directory)?;
        let helper = run(engine, &record).await?;
        let (requests, requested) = mpsc::channel(WAITING);
        let lost = Arc::new(OnceLock::new());
        let mut conversation = JoinSet::new();
        conversation.spawn(converse(helper, requested, events, Arc::clone(&lost)));
        let launched = Self {
            engine: engine.clone(),
            record,
            directory: directory.to_owned(),
            requests,
            conversation: conversation.into(),
            lost,
        };
        match launched.request(Request::Hello).await? {
            Reply::Done => Ok(launched),
            reply => Err(unexpected(reply)),
        }
    }

    /// Starts the guard. From here on it may have made something.
    pub(super) async fn start(
        &mut self,
        settings: GuardSettings,
    ) -> Result<Endpoint, GuardContainerError> {
        self.record.is_begun = true;
        self.record.write(&self.directory)?;
        let start = StartRequest { host: self.record.host.clone(), settings };
        match self.request(Request::Start(Box::new(start))).await? {
            Reply::Ready(endpoint) => Ok(endpoint),
            reply => Err(unexpected(reply)),
        }
    }

    /// Shows the job one of the runner's own containers.
    pub(super) async fn adopt(&self, id: &str, name: &str) -> Result<(), GuardContainerError> {
        let request = Request::Adopt { id: id.to_owned(), name: name.to_owned() };
        match self.request_at_once(request).await? {
            Reply::Done => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    /// What the guard did so far.
    pub(super) async fn summary(&self) -> Result<Summary, GuardContainerError> {
        match self.request_at_once(Request::Summary).await? {
            Reply::Summary(summary) => Ok(summary),
            reply => Err(unexpected(reply)),
        }
    }

    /// Ends the guard and its container. Says what is left of what the job made; what this could
    /// not do, [`reap`] does.
    pub(super) async fn stop(&self) -> Result<Vec<String>, GuardContainerError> {
        let left = match self.request(Request::Stop).await? {
            Reply::Left(left) => left,
            reply => return Err(unexpected(reply)),
        };
        // All events came before that reply. The end of its stdin ends the program.
        let mut conversation = std::mem::take(&mut *self.conversation.lock());
        conversation.shutdown().await;
        remove_container(&self.engine, &self.record).await?;
        if left.is_empty() {
            LaunchRecord::forget(&self.directory);
        }
        Ok(left)
    }

    async fn request_at_once(&self, request: Request) -> Result<Reply, GuardContainerError> {
        timeout(PATIENCE, self.request(request)).await.unwrap_or_else(|_| {
            Err(GuardContainerError::Failed(format!("no reply in {} seconds", PATIENCE.as_secs())))
        })
    }

    async fn request(&self, request: Request) -> Result<Reply, GuardContainerError> {
        // An oversized request fails only this call, not the connection.
        request.frame().map_err(GuardContainerError::Oversized)?;
        let (reply, replied) = oneshot::channel();
        if self.requests.send((request, reply)).await.is_ok()
            && let Ok(reply) = replied.await
        {
            return Ok(reply);
        }
        let ended = || Arc::new(HelperError::Ended { complaint: String::new() });
        Err(GuardContainerError::Lost(self.lost.get().map_or_else(ended, Arc::clone)))
    }
}

fn unexpected(reply: Reply) -> GuardContainerError {
    GuardContainerError::Failed(match reply {
        Reply::Failed(why) => why,
        reply => format!("it sent another reply: {reply:?}"),
    })
}

/// Exchanges frames with a guard container until no request can come any more, or the connection ends.
async fn converse(
    mut helper: Helper,
    mut requests: mpsc::Receiver<(Request, oneshot::Sender<Reply>)>,
    events: mpsc::Sender<AuditEvent>,
    lost: Arc<OnceLock<Arc<HelperError>>>,
) {
    let mut waiting = VecDeque::new();
    let error = loop {
        tokio::select! {
            requested = requests.recv() => {
                let Some((request, reply)) = requested else { return };
                // `request` has made the same frame before.
                let Ok(frame) = request.frame() else { continue };
                waiting.push_back(reply);
                if let Err(error) = helper.send(&frame).await {
                    break error;
                }
            }
            frame = helper.next_frame() => {
                let taken = match frame {
                    Ok(Frame::Output(json)) => match decode_json(&json) {
                        // The audit log may have ended.
                        Ok(event) => { drop(events.send(event).await); Ok(()) }
                        Err(error) => Err(error),
                    },
                    Ok(Frame::Done(json)) => decode_json(&json).and_then(|reply| {
                        let caller: oneshot::Sender<_> = waiting.pop_front().ok_or_else(|| {
                            io::Error::other("a reply without a request")
                        })?;
                        // The caller may have given up.
                        drop(caller.send(reply));
                        Ok(())
                    }),
                    Ok(_) => Err(io::Error::other("not a reply")),
                    Err(error) => break error,
                };
                if let Err(error) = taken {
                    break helper.protocol_error(error);
                }
            }
        }
    };
    // Set before the callers learn that there is no reply.
    drop(lost.set(Arc::new(error)));
}

/// Makes and starts the container.
async fn run(engine: &Engine, record: &LaunchRecord) -> Result<Helper, GuardContainerError> {
    let name = &record.host.container;
    create(engine, record).await?;
    let attached = Attached::new(engine.client(), name).await?;
    engine
        .client()
        .start_container(name, None)
        .await
        .map_err(engine::Error::of("start the container", name))?;
    Ok(Helper::new(attached.into_helper()))
}

async fn create(engine: &Engine, record: &LaunchRecord) -> Result<(), GuardContainerError> {
    let name = &record.host.container;
    let create = async |body| {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let created = engine.client().create_container(Some(options), body).await;
        created.map(drop).map_err(engine::Error::of("create the container", name))
    };
    if record.is_portable {
        let (image, program) = helper_image::portable_image(engine).await?;
        let command = words(program.iter().map(String::as_str));
        return Ok(create(container(record, spec::HelperCommand { image, command })).await?);
    }
    let mut again = true;
    loop {
        let image = helper_image::ensure(engine).await?;
        let command = spec::HelperCommand {
            image: image.id,
            command: words(std::iter::once(helper_image::EXECUTABLE)),
        };
        match create(container(record, command)).await {
            // The image was removed since it was last seen.
            Err(error) if error.is_not_found() && again => {
                helper_image::forget(engine);
                again = false;
            }
            created => return Ok(created?),
        }
    }
}

fn words<'a>(program: impl Iterator<Item = &'a str>) -> Vec<String> {
    program.chain(GUARD).map(str::to_owned).collect()
}

/// The container. The engine removes it when its program ends, should longshore be gone.
fn container(record: &LaunchRecord, command: spec::HelperCommand) -> ContainerCreateBody {
    let list = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    let host = HostConfig {
        // The engine's process must be visible, by its id on the host.
        pid_mode: Some("host".to_owned()),
        userns_mode: Some("host".to_owned()),
        network_mode: Some("none".to_owned()),
        cap_drop: list(&["ALL"]),
        cap_add: list(&CAPABILITIES),
        security_opt: list(&["seccomp=unconfined", "apparmor=unconfined", "label=disable"]),
        // Not `binds`: for these, the engine would create a directory where there is no socket.
        mounts: Some(vec![Mount {
            typ: Some(MountType::BIND),
            source: Some(record.host.engine.display().to_string()),
            target: Some(ENGINE_SOCKET.to_owned()),
            ..Mount::default()
        }]),
        auto_remove: Some(true),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(command.image),
        entrypoint: Some(command.command),
        cmd: Some(Vec::new()),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        labels: Some(record.labels.clone().into_iter().collect::<HashMap<_, _>>()),
        tty: Some(false),
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

async fn remove_container(engine: &Engine, record: &LaunchRecord) -> Result<(), engine::Error> {
    let resources = [Resource::Container(record.host.container.clone())];
    match clean_up::remove_containers(engine, &resources, Anonymous { remove: true }).await.pop() {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// Removes the guard container that is recorded in the job's directory of guards, and through another
/// one what its guard left on the engine and its host. Returns what is still there; `None` where none is
/// recorded.
pub(super) async fn reap(engine: &Engine, directory: &Path) -> Option<Vec<String>> {
    let reaped = async {
        let Some(record) = LaunchRecord::read(directory).map_err(|source| {
            GuardContainerError::Record { path: directory.join(RECORD), source }
        })?
        else {
            return Ok(None);
        };
        // Were it still at work, two would remove the same things.
        remove_container(engine, &record).await?;
        let left = if record.is_begun { reap_with(engine, &record).await? } else { Vec::new() };
        if left.is_empty() {
            LaunchRecord::forget(directory);
        }
        Ok::<_, GuardContainerError>(Some(left))
    };
    reaped.await.unwrap_or_else(|error| {
        let what = crate::base::error_chain(&error);
        Some(vec![format!(
            "the guard container of the guarded socket in {}: {what}",
            directory.display()
        )])
    })
}

async fn reap_with(
    engine: &Engine,
    record: &LaunchRecord,
) -> Result<Vec<String>, GuardContainerError> {
    let mut helper = run(engine, record).await?;
    let replied = async {
        let lost = |error| GuardContainerError::Lost(Arc::new(error));
        let request =
            Request::Reap(record.host.clone()).frame().map_err(GuardContainerError::Oversized)?;
        helper.send(&request).await.map_err(lost)?;
        match helper.next_frame().await.map_err(lost)? {
            Frame::Done(json) => match decode_json(&json) {
                Ok(Reply::Left(left)) => Ok(left),
                Ok(reply) => Err(unexpected(reply)),
                Err(error) => Err(lost(helper.protocol_error(error))),
            },
            _ => Err(GuardContainerError::Failed("it sent something else than a reply".to_owned())),
        }
    };
    let left = replied.await;
    drop(helper);
    remove_container(engine, record).await?;
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LaunchRecord {
        LaunchRecord {
            host: EngineHost {
                engine: "/run/engine.sock".into(),
                container: "runner-1-guard".into(),
                unique: "runner-1".into(),
            },
            is_portable: false,
            labels: [("longshore.instance".to_owned(), "i".to_owned())].into(),
            is_begun: false,
        }
    }

    #[tokio::test]
    async fn the_guard_is_here_only_where_the_engine_sees_our_mounts_or_the_operator_says_so() {
        for (place, shares, wanted) in [
            (GuardPlace::Auto, true, false),
            (GuardPlace::Auto, false, true),
            (GuardPlace::Here, false, false),
            (GuardPlace::Sidecar, true, true),
        ] {
            assert_eq!(is_wanted(place, async || shares).await, wanted, "{place:?} {shares}");
        }
        is_wanted(GuardPlace::Sidecar, async || panic!("nobody needs to know")).await;
    }

    #[test]
    fn the_engines_socket_is_the_operators_or_its_own_or_the_usual_one() {
        let named = Some(Path::new("/run/named.sock"));
        for (configured, host, wanted) in [
            (None, "unix:///run/own.sock", "/run/own.sock"),
            (None, "tcp://engine:2376", USUAL_SOCKET),
            (named, "unix:///run/own.sock", "/run/named.sock"),
            (named, "tcp://engine:2376", "/run/named.sock"),
        ] {
            assert_eq!(engine_socket(configured, host), Path::new(wanted), "{configured:?} {host}");
        }
    }

    #[test]
    fn a_guard_container_may_enter_the_engines_mounts_and_has_no_network() {
        let command = spec::HelperCommand {
            image: "sha256:i".into(),
            command: words(std::iter::once(helper_image::EXECUTABLE)),
        };
        insta::assert_json_snapshot!(container(&record(), command));
    }

    #[test]
    fn a_launch_record_is_found_again_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let of_job = directory.path().join("guards/1");
        assert_eq!(LaunchRecord::read(&of_job).unwrap(), None);
        record().write(&of_job).unwrap();
        let begun = LaunchRecord { is_begun: true, ..record() };
        begun.write(&of_job).unwrap();
        assert_eq!(LaunchRecord::read(&of_job).unwrap(), Some(begun));
        LaunchRecord::forget(&of_job);
        assert!(!of_job.exists());
        fs::create_dir(&of_job).unwrap();
        fs::write(of_job.join(RECORD), "cut").unwrap();
        assert!(LaunchRecord::read(&of_job).is_err());
    }
}

//! A job's guard in a container beside the engine, seen from outside: when there is one, its
//! container, what it is asked, and how what one that died left is removed.
//!
//! What runs inside is `helper::guard`. Its container is the only one of a job's that is root on the
//! engine's host; no job can see it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bollard::{
    models::{
        ContainerCreateBody, HostConfig, HostConfigLogConfig, Mount, MountType, RestartPolicy,
        RestartPolicyNameEnum,
    },
    query_parameters::CreateContainerOptionsBuilder,
};
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
        sidecar::{Answer, Ask, BOUND, Host, Ready, Start, decode_json},
    },
    helper::protocol::Frame,
    ledger::Resource,
};

/// What our program does in the container.
const GUARD: [&str; 2] = ["helper", "guard"];

/// The note of a sidecar, in the job's directory of guards.
const NOTE: &str = "sidecar";

/// Where engines listen when nothing says otherwise.
const USUAL_SOCKET: &str = "/var/run/docker.sock";

/// Questions that may wait.
const WAITING: usize = 16;

/// How long a job waits for an answer that needs no engine. Somebody may have paused the container.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the sidecar may do, and no more: follow the engine's process, which is another user's to
/// the kernel, into its mounts and its root; mount there; own files there as the engine does.
const CAPABILITIES: [&str; 6] =
    ["SYS_ADMIN", "SYS_PTRACE", "SYS_CHROOT", "DAC_OVERRIDE", "CHOWN", "FOWNER"];

/// A sidecar that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// What is about to be made could not be noted.
    #[error("cannot write `{}`", path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its image could not be made.
    #[error("cannot make the helper image")]
    Image(#[from] HelperImageError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// It does not speak to us any more.
    #[error("its container does not answer")]
    Lost(#[source] Arc<HelperError>),
    /// A question cannot be put to it.
    #[error("it cannot be asked")]
    Ask(#[source] io::Error),
    /// It said no.
    #[error("{0}")]
    Failed(String),
}

impl SidecarError {
    /// What the reader can do now.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Engine(error) if is_missing_socket(error) => Some(
                "engine_socket in [runners.docker.socket] must be the path of the engine's socket \
                 on the engine's own host",
            ),
            Self::Image(error) => error.hint(),
            Self::Note { .. }
            | Self::Engine(_)
            | Self::Lost(_)
            | Self::Ask(_)
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

/// Where the guard of a job runs. `shares_mounts` tells whether the engine sees what is mounted
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

/// All that is needed to start a sidecar for a job: noted before it is done, so that what it leaves
/// can be removed by another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) host: Host,
    /// Whether the helper image is the operator's: then the sidecar is of one that has our program
    /// alone, as what else is in it would run as root on the engine's host.
    pub(super) is_portable: bool,
    /// Of the container.
    pub(super) labels: BTreeMap<String, String>,
    /// Whether a guard may have made something.
    pub(super) is_begun: bool,
}

impl Note {
    /// Writes it, whole or not at all, on disk before this returns.
    fn write(&self, directory: &Path) -> Result<(), SidecarError> {
        let path = directory.join(NOTE);
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            serde_json::to_writer(&mut file, self)?;
            file.flush()?;
            file.as_file().sync_data()?;
            file.persist(&path)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|source| SidecarError::Note { path, source })
    }

    /// `None` where no sidecar was noted.
    fn read(directory: &Path) -> io::Result<Option<Self>> {
        match fs::read(directory.join(NOTE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn forget(directory: &Path) {
        drop(fs::remove_file(directory.join(NOTE)));
        drop(fs::remove_dir(directory));
    }
}

/// A sidecar at work.
pub(super) struct Sidecar {
    engine: Engine,
    note: Note,
    directory: PathBuf,
    asks: mpsc::Sender<(Ask, oneshot::Sender<Answer>)>,
    /// The one who speaks with it, and why that ended.
    conversation: Mutex<JoinSet<()>>,
    lost: Arc<OnceLock<Arc<HelperError>>>,
}

impl Sidecar {
    /// Starts the container, which has found its place when this returns. `directory` is the job's
    /// directory of guards here.
    pub(super) async fn launch(
        engine: &Engine,
        note: Note,
        directory: &Path,
        events: mpsc::Sender<AuditEvent>,
    ) -> Result<Self, SidecarError> {
        note.write(directory)?;
        let helper = run(engine, &note).await?;
        let (asks, asked) = mpsc::channel(WAITING);
        let lost = Arc::new(OnceLock::new());
        let mut conversation = JoinSet::new();
        conversation.spawn(converse(helper, asked, events, Arc::clone(&lost)));
        let sidecar = Self {
            engine: engine.clone(),
            note,
            directory: directory.to_owned(),
            asks,
            conversation: conversation.into(),
            lost,
        };
        match sidecar.ask(Ask::Hello).await? {
            Answer::Done => Ok(sidecar),
            answer => Err(unexpected(answer)),
        }
    }

    /// Starts the guard. From here on it may have made something.
    pub(super) async fn start(&mut self, settings: GuardSettings) -> Result<Ready, SidecarError> {
        self.note.is_begun = true;
        self.note.write(&self.directory)?;
        let start = Start { host: self.note.host.clone(), settings };
        match self.ask(Ask::Start(Box::new(start))).await? {
            Answer::Ready(ready) => Ok(ready),
            answer => Err(unexpected(answer)),
        }
    }

    /// Shows the job one of the runner's own containers.
    pub(super) async fn adopt(&self, id: &str, name: &str) -> Result<(), SidecarError> {
        let ask = Ask::Adopt { id: id.to_owned(), name: name.to_owned() };
        match self.ask_at_once(ask).await? {
            Answer::Done => Ok(()),
            answer => Err(unexpected(answer)),
        }
    }

    /// What the guard did so far.
    pub(super) async fn summary(&self) -> Result<Summary, SidecarError> {
        match self.ask_at_once(Ask::Summary).await? {
            Answer::Summary(summary) => Ok(summary),
            answer => Err(unexpected(answer)),
        }
    }

    /// Ends the guard and its container. Says what is left of what the job made; what this could
    /// not do, [`reap`] does.
    pub(super) async fn stop(&self) -> Result<Vec<String>, SidecarError> {
        let left = match self.ask(Ask::Stop).await? {
            Answer::Left(left) => left,
            answer => return Err(unexpected(answer)),
        };
        // All events came before that. The end of its stdin ends it.
        let mut conversation = {
            let mut task = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *task)
        };
        conversation.shutdown().await;
        remove_container(&self.engine, &self.note).await?;
        if left.is_empty() {
            Note::forget(&self.directory);
        }
        Ok(left)
    }

    async fn ask_at_once(&self, ask: Ask) -> Result<Answer, SidecarError> {
        timeout(PATIENCE, self.ask(ask)).await.unwrap_or_else(|_| {
            Err(SidecarError::Failed(format!("no answer in {} seconds", PATIENCE.as_secs())))
        })
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, SidecarError> {
        // Too long is only this question's fault.
        ask.frame().map_err(SidecarError::Ask)?;
        let (answer, answered) = oneshot::channel();
        if self.asks.send((ask, answer)).await.is_ok()
            && let Ok(answer) = answered.await
        {
            return Ok(answer);
        }
        let ended = || Arc::new(HelperError::Ended { complaint: String::new() });
        Err(SidecarError::Lost(self.lost.get().map_or_else(ended, Arc::clone)))
    }
}

fn unexpected(answer: Answer) -> SidecarError {
    SidecarError::Failed(match answer {
        Answer::Failed(why) => why,
        answer => format!("it gave another answer: {answer:?}"),
    })
}

/// Speaks with a sidecar until nobody asks it any more, or it is lost.
async fn converse(
    mut helper: Helper,
    mut asks: mpsc::Receiver<(Ask, oneshot::Sender<Answer>)>,
    events: mpsc::Sender<AuditEvent>,
    lost: Arc<OnceLock<Arc<HelperError>>>,
) {
    let mut waiting = VecDeque::new();
    let error = loop {
        tokio::select! {
            asked = asks.recv() => {
                let Some((ask, answer)) = asked else { return };
                // It was asked for before.
                let Ok(frame) = ask.frame() else { continue };
                waiting.push_back(answer);
                if let Err(error) = helper.send(&frame).await {
                    break error;
                }
            }
            frame = helper.next_frame() => {
                let taken = match frame {
                    Ok(Frame::Output(json)) => match decode_json(&json) {
                        // Nobody who listens is nobody to tell.
                        Ok(event) => { drop(events.send(event).await); Ok(()) }
                        Err(error) => Err(error),
                    },
                    Ok(Frame::Done(json)) => decode_json(&json).and_then(|answer| {
                        let asker: oneshot::Sender<_> = waiting.pop_front().ok_or_else(|| {
                            io::Error::other("it answers what nobody asked")
                        })?;
                        // Who asked may be gone.
                        drop(asker.send(answer));
                        Ok(())
                    }),
                    Ok(_) => Err(io::Error::other("not an answer")),
                    Err(error) => break error,
                };
                if let Err(error) = taken {
                    break helper.protocol_error(error);
                }
            }
        }
    };
    // Before the askers learn that there is no answer.
    drop(lost.set(Arc::new(error)));
}

/// Makes and starts the container.
async fn run(engine: &Engine, note: &Note) -> Result<Helper, SidecarError> {
    let name = &note.host.container;
    create(engine, note).await?;
    let attached = Attached::new(engine.client(), name).await?;
    engine
        .client()
        .start_container(name, None)
        .await
        .map_err(engine::Error::of("start the container", name))?;
    Ok(Helper::new(attached.into_helper()))
}

async fn create(engine: &Engine, note: &Note) -> Result<(), SidecarError> {
    let name = &note.host.container;
    let create = async |body| {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let created = engine.client().create_container(Some(options), body).await;
        created.map(drop).map_err(engine::Error::of("create the container", name))
    };
    if note.is_portable {
        let (image, program) = helper_image::portable_image(engine).await?;
        let command = words(program.iter().map(String::as_str));
        return Ok(create(container(note, spec::HelperCommand { image, command })).await?);
    }
    let mut again = true;
    loop {
        let image = helper_image::ensure(engine).await?;
        let command = spec::HelperCommand {
            image: image.id,
            command: words(std::iter::once(helper_image::EXECUTABLE)),
        };
        match create(container(note, command)).await {
            // Somebody removed the image since it was last seen.
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

/// The container. It goes by itself when its program ends, should nobody be left to remove it.
fn container(note: &Note, command: spec::HelperCommand) -> ContainerCreateBody {
    let list = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    let host = HostConfig {
        // The engine's process must be seen, as what it is to the host.
        pid_mode: Some("host".to_owned()),
        userns_mode: Some("host".to_owned()),
        network_mode: Some("none".to_owned()),
        cap_drop: list(&["ALL"]),
        cap_add: list(&CAPABILITIES),
        security_opt: list(&["seccomp=unconfined", "apparmor=unconfined", "label=disable"]),
        // Not a bind: of one, the engine would make a directory where there is no socket.
        mounts: Some(vec![Mount {
            typ: Some(MountType::BIND),
            source: Some(note.host.engine.display().to_string()),
            target: Some(BOUND.to_owned()),
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
        labels: Some(note.labels.clone().into_iter().collect::<HashMap<_, _>>()),
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

async fn remove_container(engine: &Engine, note: &Note) -> Result<(), engine::Error> {
    let resources = [Resource::Container(note.host.container.clone())];
    match clean_up::remove_containers(engine, &resources, Anonymous { remove: true }).await.pop() {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// Removes a sidecar that was noted in the job's directory of guards, and through another one what
/// its guard left on the engine and its host. Says what is still there; `None` where none was noted.
pub(super) async fn reap(engine: &Engine, directory: &Path) -> Option<Vec<String>> {
    let reaped = async {
        let Some(note) = Note::read(directory)
            .map_err(|source| SidecarError::Note { path: directory.join(NOTE), source })?
        else {
            return Ok(None);
        };
        // What it still does would be done twice.
        remove_container(engine, &note).await?;
        let left = if note.is_begun { reap_with(engine, &note).await? } else { Vec::new() };
        if left.is_empty() {
            Note::forget(directory);
        }
        Ok::<_, SidecarError>(Some(left))
    };
    reaped.await.unwrap_or_else(|error| {
        let what = crate::base::error_chain(&error);
        Some(vec![format!("the sidecar of the guarded socket in {}: {what}", directory.display())])
    })
}

async fn reap_with(engine: &Engine, note: &Note) -> Result<Vec<String>, SidecarError> {
    let mut helper = run(engine, note).await?;
    let asked = async {
        let lost = |error| SidecarError::Lost(Arc::new(error));
        let ask = Ask::Reap(note.host.clone()).frame().map_err(SidecarError::Ask)?;
        helper.send(&ask).await.map_err(lost)?;
        match helper.next_frame().await.map_err(lost)? {
            Frame::Done(json) => match decode_json(&json) {
                Ok(Answer::Left(left)) => Ok(left),
                Ok(answer) => Err(unexpected(answer)),
                Err(error) => Err(lost(helper.protocol_error(error))),
            },
            _ => Err(SidecarError::Failed("not an answer".to_owned())),
        }
    };
    let left = asked.await;
    drop(helper);
    remove_container(engine, note).await?;
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        Note {
            host: Host {
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
    fn a_sidecar_may_enter_the_engines_mounts_and_has_no_network() {
        let command = spec::HelperCommand {
            image: "sha256:i".into(),
            command: words(std::iter::once(helper_image::EXECUTABLE)),
        };
        insta::assert_json_snapshot!(container(&note(), command));
    }

    #[test]
    fn a_note_is_found_again_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let of_job = directory.path().join("guards/1");
        assert_eq!(Note::read(&of_job).unwrap(), None);
        note().write(&of_job).unwrap();
        let begun = Note { is_begun: true, ..note() };
        begun.write(&of_job).unwrap();
        assert_eq!(Note::read(&of_job).unwrap(), Some(begun));
        Note::forget(&of_job);
        assert!(!of_job.exists());
        fs::create_dir(&of_job).unwrap();
        fs::write(of_job.join(NOTE), "cut").unwrap();
        assert!(Note::read(&of_job).is_err());
    }
}

//! One job's guard: its socket, its connections, its beginning and its end.

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{Method, StatusCode, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    audit::AuditEvent,
    body::{Ground, World},
    clean_up::Remains,
    engine::Engine,
    head::Strict,
    journal::{Entry, Journal},
    ownership::Owned,
    paths,
    settings::GuardSettings,
};

/// How long the next request's head may take, idle time included (G-86): the server's timer knows
/// no difference, and a client that is slow on purpose holds up its own job alone.
const HEAD: Duration = Duration::from_mins(5);
/// How many headers a request may have (G-21).
const HEADERS: usize = 100;
/// How large a request's head may be (G-21).
const HEAD_SIZE: usize = 64 << 10;
/// How long cut connections may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// A running guard. It must be stopped; dropped, it leaves the job's objects to a sweep by label.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
}

/// What a guard did, and could not remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests in all.
    pub requests: u64,
    /// Refusals by rule.
    pub refused: BTreeMap<String, u64>,
    /// The first refusals' texts, each once.
    pub messages: Vec<String>,
    /// What could not be removed, and why.
    pub left: Vec<String>,
}

/// What all requests of a guard share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Arc<GuardSettings>,
    pub(super) ground: Arc<Ground>,
    pub(super) engine: Engine,
    /// Whether binds can be pinned.
    pub(super) can_pin: bool,
    /// Whether the default network is the guard's own.
    pub(super) made_network: bool,
    /// What a crash must not lose (G-45).
    pub(super) journal: Journal,
    owned: Mutex<Arc<Owned>>,
    counters: Mutex<Summary>,
    /// Until the guard stops, which ends the log.
    audit: Mutex<Option<mpsc::Sender<AuditEvent>>>,
    pub(super) numbers: AtomicU64,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Shared {
    /// What the job owns now.
    pub(super) fn owned(&self) -> Arc<Owned> {
        Arc::clone(&self.owned.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what the job owns.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Owned) -> T) -> T {
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut owned))
    }

    /// All that a decision is made from.
    pub(super) fn world(&self) -> World {
        World {
            settings: Arc::clone(&self.settings),
            ground: Arc::clone(&self.ground),
            owned: self.owned(),
        }
    }

    /// Counts a request.
    pub(super) fn count(&self, refusal: Option<&super::Refusal>) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.requests += 1;
        // What is missing is no refusal of the guard's.
        if let Some(refusal) = refusal.filter(|refusal| refusal.rule != "-") {
            *counters.refused.entry(refusal.rule.to_owned()).or_default() += 1;
            if counters.messages.len() < 20 && !counters.messages.contains(&refusal.message) {
                counters.messages.push(refusal.message.clone());
            }
        }
    }

    /// Where events of the audit log go.
    pub(super) fn audit(&self) -> Option<mpsc::Sender<AuditEvent>> {
        self.audit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pins(&self) -> PathBuf {
        self.settings.private.join("pins")
    }

    /// Writes a line into the journal. What cannot be written is not done (G-7).
    pub(super) fn note(&self, entry: &Entry) -> Result<(), super::Refusal> {
        self.journal.write(entry).map_err(|error| {
            tracing::error!(%error, "the journal of a guarded socket cannot be written");
            super::Refusal::failed(500, "the journal cannot be written")
        })
    }

    /// A place for the next pin.
    pub(super) fn next_pin(&self) -> PathBuf {
        self.pins().join(self.numbers.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Guard {
    /// Starts a guard before the engine at `engine` (`unix://PATH` or `tcp://HOST:PORT`). Its
    /// socket answers when this returns. What a guard that died left in the same private directory
    /// is removed first.
    ///
    /// # Errors
    /// When the engine cannot be reached, the socket or the directory not be made, or a guard that
    /// lives uses the directory.
    pub async fn start(engine: &str, mut settings: GuardSettings) -> io::Result<Self> {
        let tasks = TaskTracker::new();
        let mut engine = Engine::new(engine, tasks.clone())?;
        for directory in [settings.private.join("pins"), settings.private.join("spool")] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let (journal, left) = take_over(&mut engine, &settings.private).await?;
        journal.begin(&settings)?;
        let (ground, made_network) =
            survey(&mut engine, &settings, &journal).await.map_err(io::Error::other)?;
        let can_pin = engine.shares_mounts().await;
        // The socket comes last: who sees it can use it.
        let listener = listen(&settings)?;
        let shared = Arc::new(Shared {
            audit: Mutex::new(settings.audit.take()),
            settings: Arc::new(settings),
            ground: Arc::new(ground),
            engine,
            can_pin,
            made_network,
            journal,
            owned: Mutex::default(),
            counters: Mutex::new(Summary { left, ..Summary::default() }),
            numbers: AtomicU64::new(0),
            tasks: tasks.clone(),
            stop: CancellationToken::new(),
        });
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        tasks.spawn(super::answer::watch(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// The guarded socket's file, on the engine's host.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.shared.settings.socket
    }

    /// The group of that file, where it is not the guard's own.
    #[must_use]
    pub fn group(&self) -> Option<u32> {
        self.shared.settings.socket_group
    }

    /// The job's default network: its name, and the address of its gateway where ports are
    /// published.
    #[must_use]
    pub fn network(&self) -> (&str, &str) {
        (&self.shared.ground.network, &self.shared.ground.gateway)
    }

    /// Shows the job one of the runner's own containers, with restricted rights (G-51).
    pub fn adopt(&self, id: &str, name: &str) {
        self.shared.change(|owned| owned.adopt(id.to_owned(), name.to_owned()));
    }

    /// Takes no more requests, cuts those that run, and removes all that the job made.
    pub async fn stop(&self) -> Summary {
        let shared = &self.shared;
        shared.stop.cancel();
        drop(std::fs::remove_file(&shared.settings.socket));
        shared.tasks.close();
        // A creation in flight comes to its end, and its object is found by its label.
        drop(tokio::time::timeout(DRAIN, shared.tasks.wait()).await);
        drop(shared.audit.lock().unwrap_or_else(PoisonError::into_inner).take());
        let left = Remains::of(shared).remove().await;
        paths::clear(&shared.pins());
        forget(&shared.settings.private, &left);
        let mut summary = self.summary();
        summary.left.extend(left);
        summary
    }

    /// What it did so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes what a guard that died left in its private directory and on the engine, without
    /// starting another, and says what is still there.
    ///
    /// # Errors
    /// When the engine cannot be reached, or a guard that lives uses the directory.
    pub async fn reap(engine: &str, private: &Path) -> io::Result<Vec<String>> {
        let mut engine = Engine::new(engine, TaskTracker::new())?;
        if !private.join("journal").exists() {
            paths::clear(&private.join("pins"));
            return Ok(Vec::new());
        }
        let (_locked, left) = take_over(&mut engine, private).await?;
        forget(private, &left);
        Ok(left)
    }

    /// The same for a directory that is laid out as [`GuardSettings::new`] says, which goes as well
    /// when nothing in it is of use any more. What fails is said as what is left.
    pub async fn reap_directory(engine: &str, directory: &Path) -> Vec<String> {
        if !directory.exists() {
            return Vec::new();
        }
        let places = GuardSettings::new("", Default::default(), "", directory);
        let left = match Self::reap(engine, &places.private).await {
            Ok(left) => left,
            Err(error) => vec![format!("the guarded socket in {}: {error}", directory.display())],
        };
        drop(std::fs::remove_file(&places.socket));
        // What is not empty is of use yet.
        drop(std::fs::remove_dir(directory));
        left
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Opens the journal, and removes what it says that a dead guard left.
async fn take_over(engine: &mut Engine, private: &Path) -> io::Result<(Journal, Vec<String>)> {
    let (journal, before) = Journal::open(private)?;
    let mut left = Vec::new();
    if let Some(record) = before {
        engine.negotiate().await.map_err(io::Error::other)?;
        left = Remains::recorded(engine, record).remove().await;
    }
    for left in &left {
        tracing::warn!(%left, "a guard that died has left something");
    }
    paths::clear(&private.join("pins"));
    Ok((journal, left))
}

/// Removes a guard's private directory; the journal stays while it is of use.
fn forget(private: &Path, left: &[String]) {
    for directory in ["pins", "spool"] {
        drop(std::fs::remove_dir(private.join(directory)));
    }
    if left.is_empty() {
        drop(std::fs::remove_file(private.join("journal")));
        drop(std::fs::remove_dir(private));
    }
}

/// Learns what the engine is, and finds or makes the default network.
async fn survey(
    engine: &mut Engine,
    settings: &GuardSettings,
    journal: &Journal,
) -> Result<(Ground, bool), super::engine::Broken> {
    let version = engine.negotiate().await?;
    let info = engine.get("/info").await?.unwrap_or_default();
    let path = format!("/networks/{}", super::target::encode(&settings.network));
    let mut made = false;
    let network = match engine.get(&path).await? {
        Some(network) => network,
        None => {
            // Without the identity, so that no prune takes it.
            let body = json!({
                "Name": settings.network,
                "CheckDuplicate": true,
                "Driver": "bridge",
                "Labels": settings.labels,
            });
            journal.write(&Entry::Network(None))?;
            let (status, answer) =
                engine.json(&Method::POST, "/networks/create", &[], Some(&body)).await?;
            if status != StatusCode::CREATED {
                return Err(format!("the engine answered {status} to the network: {answer}").into());
            }
            journal.write(&Entry::Network(answer["Id"].as_str().map(str::to_owned)))?;
            made = true;
            engine.get(&path).await?.ok_or("the network that was just made is not there")?
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let range = &network["IPAM"]["Config"][0];
    let gateway = match &range["Gateway"] {
        Value::String(gateway) => gateway.split('/').next().unwrap_or_default().to_owned(),
        // Older engines leave it out: it is the first address.
        _ => first_address(range["Subnet"].as_str().unwrap_or_default()).unwrap_or_default(),
    };
    let ground = Ground {
        version,
        network_id: text(&network["Id"]),
        network: text(&network["Name"]),
        gateway,
        nano_cpus: info["NCPU"].as_i64().unwrap_or(0) * 1_000_000_000,
        runtime: text(&info["DefaultRuntime"]),
    };
    if ground.network_id.is_empty() {
        return Err("the network has no id".into());
    }
    Ok((ground, made))
}

fn first_address(subnet: &str) -> Option<String> {
    let (address, prefix) = subnet.split_once('/')?;
    let address: std::net::Ipv4Addr = address.parse().ok()?;
    let mask = u32::MAX.checked_shl(32 - prefix.parse::<u32>().ok()?).unwrap_or(0);
    Some(std::net::Ipv4Addr::from_bits((address.to_bits() & mask) + 1).to_string())
}

fn listen(settings: &GuardSettings) -> io::Result<UnixListener> {
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
async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(shared.settings.limits.connections));
    let mut number = 0;
    loop {
        let stream = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to a guarded socket");
                    // Out of descriptors, mostly: others must end first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
        number += 1;
        let guard = Arc::clone(&shared);
        shared.tasks.spawn(async move {
            let stop = guard.stop.clone();
            let slot = Arc::new(slot);
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(stream, number, guard, Arc::clone(&slot)) => {}
            }
        });
    }
}

async fn connection(
    stream: UnixStream,
    number: u64,
    shared: Arc<Shared>,
    slot: Arc<tokio::sync::OwnedSemaphorePermit>,
) {
    let service = service_fn(move |request| {
        let (shared, slot) = (Arc::clone(&shared), Arc::clone(&slot));
        async move { shared.answer(request, number, slot).await }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_SIZE)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(Strict::new(stream)), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, connection = number, "a connection to a guarded socket ended early");
    }
}

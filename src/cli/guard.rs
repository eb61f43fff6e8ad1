//! `guard`: a guarded Docker socket in front of an engine, without the rest of the runner. It serves
//! any program that gives others access to Docker, and the guard's own tests.

use std::path::{Path, PathBuf};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};

use super::{
    console::Console,
    exit::{Exit, Failure, Outcome},
};
use crate::base::ids::random_hex;
use crate::guard::{Guard, GuardSettings, PolicyError, PolicyFile, Summary, audit::Log};

/// Arguments of `guard`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct GuardArgs {
    /// What is allowed: a file in TOML or JSON
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// The engine: `unix://PATH` or `tcp://HOST:PORT`
    #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
    pub engine: String,
    /// The guarded socket's file; its directory must be closed to others
    #[arg(long, value_name = "PATH")]
    pub listen: PathBuf,
}

/// Guards until SIGTERM or SIGINT, then removes all that was made through the socket.
pub(super) fn guard(args: &GuardArgs, console: &mut Console) -> Outcome {
    let listen = std::path::absolute(&args.listen)?;
    let bad = |error: PolicyError| {
        let exit = match error {
            PolicyError::Read(..) => Exit::Failure,
            _ => Exit::BadConfiguration,
        };
        Failure::from(error).with_exit(exit)
    };
    let policy = PolicyFile::read(&args.policy).map_err(bad)?;
    let audit_log = policy.audit_log().map(Path::to_owned);
    let mut settings = settings(&listen, policy.label_namespace().unwrap_or("longshore"));
    policy.apply(&mut settings).map_err(bad)?;
    // A job must not be able to bind the directories of the pins and the socket.
    let mapped = |entry: &Path| settings.private.starts_with(entry) || listen.starts_with(entry);
    if let Some(entry) = settings.workspace.iter().find(|entry| mapped(&entry.host)) {
        return Err(Failure::new(format!(
            "--listen {}: it lies in {} of the policy's path_map",
            listen.display(),
            entry.host.display()
        ))
        .with_exit(Exit::BadConfiguration));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let summary = runtime.block_on(serve(&args.engine, settings, audit_log, console))?;
    runtime.shutdown_background();
    let refused: u64 = summary.refused.values().sum();
    let counts = format!("{} requests, {refused} refused", summary.requests);
    if summary.left.is_empty() {
        console.say(format!("guard stopped: {counts}; nothing is left"))?;
        return Ok(Exit::Success);
    }
    for left in &summary.left {
        console.say(format!("left: {left}"))?;
    }
    console.say(format!(
        "guard stopped: {counts}; {} things could not be removed",
        summary.left.len()
    ))?;
    Ok(Exit::Failure)
}

/// Settings of a guard at this socket. Each start has an identity of its own, so that no object of
/// another guard is taken for this one's.
fn settings(listen: &Path, namespace: &str) -> GuardSettings {
    let mark = random_hex::<16>();
    let (directory, name) = (listen.parent(), listen.file_name());
    let job = listen.display().to_string();
    let identity = (format!("{namespace}.job"), mark.clone());
    let network = format!("longshore-guard-{}", &mark[..12]);
    let mut settings =
        GuardSettings::new(&job, identity, &network, directory.unwrap_or(Path::new("/")));
    listen.clone_into(&mut settings.socket);
    let mut private = name.unwrap_or_default().to_owned();
    private.push(".private");
    settings.private = listen.with_file_name(private);
    settings.labels.insert(format!("{namespace}.runner"), job);
    settings.labels.insert(format!("{namespace}.created"), jiff::Timestamp::now().to_string());
    settings
}

async fn serve(
    engine: &str,
    settings: GuardSettings,
    audit_log: Option<PathBuf>,
    console: &mut Console,
) -> Result<Summary, Failure> {
    // From here on a signal stops the guard in order, even while it starts.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut writers = JoinSet::new();
    let mut events = None;
    if let Some(path) = audit_log {
        let (sender, log) = Log::open(&path).await.map_err(|error| {
            Failure::from(error).context(format!("cannot write audit_log {}", path.display()))
        })?;
        events = Some(sender);
        writers.spawn(log.write());
    }
    let guard = Guard::start(engine, settings, events)
        .await
        .map_err(|error| Failure::from(error).context(format!("cannot guard {engine}")))?;
    let (network, gateway) = guard.network();
    console.say(format!(
        "guarding {engine} at {} (network {network}, gateway {gateway})",
        guard.socket().display()
    ))?;
    let failed = tokio::select! {
        () = received(&mut terminate) => None,
        () = received(&mut interrupt) => None,
        // A guard does not go on without the log that was asked for (G-7).
        Some(Ok(Err(error))) = writers.join_next() => Some(error),
    };
    let summary = guard.stop().await;
    if let Some(error) = failed {
        return Err(Failure::from(error).context("cannot write the audit log"));
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(summary)
}

async fn received(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

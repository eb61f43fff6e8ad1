//! `run`: the daemon with the configuration file and the process's signals.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    exit::{Exit, Failure, Outcome},
    log,
    paths::User,
    rotate,
};
use crate::{
    config::{Config, check, diff, system_id, watch as config_watch},
    daemon::{Daemon, Quota, Stop, listen},
    executor::Executors,
    ledger::StateDir,
    runner::{Process, metrics::Metrics},
};

/// Arguments of `run`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunArgs {
    /// host:port of the metrics; takes precedence over `listen_address` in the file
    #[arg(long, env = "LISTEN_ADDRESS")]
    pub listen_address: Option<String>,
    /// Directory to change to first
    #[arg(short = 'd', long)]
    pub working_directory: Option<PathBuf>,
    /// No effect: it is for an executor that is not supported
    #[arg(short = 'u', long)]
    pub user: Option<String>,
    /// No effect: the name of the service, for gitlab-runner's unit files
    #[arg(short = 'n', long)]
    pub service: Option<String>,
    /// No effect: the log goes to stderr, where the service manager takes it
    #[arg(long, env = "LOG_SYSLOG")]
    pub syslog: bool,
}

/// The log settings of the command line, which take precedence over the file's.
#[derive(Debug, Clone)]
pub(super) struct LogChoice {
    pub(super) level: Option<String>,
    pub(super) format: Option<String>,
    pub(super) debug: bool,
    pub(super) control: log::Control,
}

impl LogChoice {
    fn apply(&self, config: &Config) {
        self.control.set(log::Settings::new(
            self.level.as_deref().or(config.log_level.as_deref()),
            self.format.as_deref().or(config.log_format.as_deref()),
            self.debug,
        ));
    }
}

/// Runs until a signal.
pub(super) fn run(
    args: &RunArgs,
    config: &Path,
    state_dir: Option<&Path>,
    choice: &LogChoice,
) -> Outcome {
    if let Some(directory) = &args.working_directory {
        std::env::set_current_dir(directory).map_err(|error| {
            Failure::from(error).context(format!("cannot change to {}", directory.display()))
        })?;
    }
    let config = std::path::absolute(config)?;
    let loaded = load(&config)?;
    choice.apply(&loaded);
    let mut loaded = loaded;
    if let Some(address) = &args.listen_address {
        let address = check::parse_listen_address(address)
            .map_err(|why| Failure::new(format!("--listen-address {address}: {why}")))?;
        loaded.listen_address = Some(address);
    }
    serve(loaded, &config, Some(&config), Quota::default(), state_dir, choice)
}

/// Runs with a configuration, and with its changes when they are watched.
pub(super) fn serve(
    loaded: Config,
    config: &Path,
    watched: Option<&Path>,
    quota: Quota,
    state_dir: Option<&Path>,
    choice: &LogChoice,
) -> Outcome {
    let (process, executors) = process(config, state_dir)?;
    let certs_dir = config.parent().map(|directory| directory.join("certs"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let metrics = Arc::clone(&process.metrics);
        // Bound before anything runs, so that an address that is taken is an error at once.
        let listener = match &loaded.listen_address {
            Some(address) => Some(listen::bind(address).await.map_err(|error| {
                Failure::from(error).context(format!("cannot listen at {address}"))
            })?),
            None => None,
        };
        let daemon = Daemon::new(process, executors, certs_dir).with_quota(quota);
        let (stop, stopped) = watch::channel(Stop::Not);
        let (changes, changed) = mpsc::channel(1);
        let (in_force, known) = watch::channel(loaded.clone());
        let over = CancellationToken::new();
        let control = Control {
            config: watched.map(Path::to_owned),
            current: loaded.clone(),
            choice,
            changes,
            in_force,
            metrics: Arc::clone(&metrics),
        };
        let work = async {
            let outcome = tokio::select! {
                ended = daemon.run(loaded, changed, stopped) => ended.map_err(Failure::from),
                failed = control.run(stop) => Err(failed),
            };
            over.cancel();
            outcome
        };
        let rotation = async {
            if let Some(file) = watched {
                rotate::rotate(file.to_owned(), known, over.clone()).await;
            }
        };
        let listening = async {
            if let Some(listener) = listener {
                listen::serve(listener, metrics, over.clone()).await;
            }
        };
        tokio::join!(work, rotation, listening).0
    });
    // A second signal or the end of the time leaves requests under way; nobody waits for them.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome.map(|()| Exit::Success)
}

/// Loads the file and says what it warns of.
pub(super) fn load(path: &Path) -> Result<Config, Failure> {
    let checked = check::load(path, &|name| std::env::var(name).ok())?;
    for warning in &checked.warnings {
        tracing::warn!("{warning}");
    }
    Ok(checked.config)
}

/// What all runners share, with this machine's id and state directory.
pub(super) fn process(
    config: &Path,
    state_dir: Option<&Path>,
) -> Result<(Arc<Process>, Arc<Executors>), Failure> {
    let id = system_id::load_or_create(config)?;
    if let Some(error) = &id.not_saved {
        tracing::warn!(path = %error.0.display(), error = %error.1, "system id could not be saved");
    }
    let directory = match state_dir {
        Some(directory) => directory.to_owned(),
        None => User::current().state_dir_of(config),
    };
    let state = StateDir::open(&directory)?;
    let executors = Executors::new(&state, |name| std::env::var(name).ok());
    Ok((Arc::new(Process::new(id.id.as_str().to_owned(), state)), Arc::new(executors)))
}

/// Turns signals and changes of the file into requests to the daemon.
struct Control<'a> {
    /// `None` when it does not come from a file.
    config: Option<PathBuf>,
    current: Config,
    choice: &'a LogChoice,
    changes: mpsc::Sender<Config>,
    /// For those who must know the configuration too.
    in_force: watch::Sender<Config>,
    metrics: Arc<Metrics>,
}

impl Control<'_> {
    /// Returns only with an error; it is dropped when the daemon ends.
    async fn run(mut self, stop: watch::Sender<Stop>) -> Failure {
        match self.watch(&stop).await {
            Ok(never) => match never {},
            Err(error) => Failure::from(error).context("cannot listen to signals".to_owned()),
        }
    }

    async fn watch(
        &mut self,
        stop: &watch::Sender<Stop>,
    ) -> Result<std::convert::Infallible, std::io::Error> {
        let mut quit = signal(SignalKind::quit())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut file = self.config.as_deref().map(config_watch::watch);
        loop {
            tokio::select! {
                // Of signals that come at once, the weakest counts first.
                biased;
                _ = quit.recv() => stop.send_modify(|stop| *stop = on_quit(*stop)),
                _ = terminate.recv() => stop.send_modify(|stop| *stop = on_stop(*stop, "terminated")),
                _ = interrupt.recv() => stop.send_modify(|stop| *stop = on_stop(*stop, "interrupt")),
                _ = hang_up.recv() => self.reload().await,
                () = changed(&mut file) => self.reload().await,
            }
            tracing::debug!(stop = ?*stop.borrow(), "signal or change");
        }
    }

    /// Applies a changed file; an invalid one changes nothing.
    async fn reload(&mut self) {
        let Some(path) = &self.config else { return };
        let config = match load(path) {
            Ok(config) => config,
            Err(failure) => {
                self.metrics.loading_failed();
                tracing::error!(
                    path = %path.display(), error = failure.to_string().trim_start_matches("error: "),
                    "configuration is wrong; the one before stays in force"
                );
                return;
            }
        };
        for key in diff::refused(&self.current, &config) {
            tracing::warn!(key, "this key cannot change while longshore runs; restart it");
        }
        self.choice.apply(&config);
        self.current = config.clone();
        self.in_force.send_replace(config.clone());
        if self.changes.send(config).await.is_err() {
            tracing::debug!("daemon takes no more changes");
        }
    }
}

async fn changed(file: &mut Option<config_watch::ConfigWatch>) {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}

/// SIGQUIT drains; repeating it changes nothing, nor does it undo a stronger request.
fn on_quit(stop: Stop) -> Stop {
    match stop {
        Stop::Not | Stop::Drain => Stop::Drain,
        Stop::Jobs(_) | Stop::Now => Stop::Now,
    }
}

/// SIGTERM and SIGINT end jobs; the second one ends the process.
fn on_stop(stop: Stop, signal: &'static str) -> Stop {
    match stop {
        Stop::Not | Stop::Drain => Stop::Jobs(signal),
        Stop::Jobs(_) | Stop::Now => Stop::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_31_signals_only_get_stronger() {
        assert_eq!(on_quit(Stop::Not), Stop::Drain);
        assert_eq!(on_quit(Stop::Drain), Stop::Drain);
        assert_eq!(on_stop(Stop::Drain, "terminated"), Stop::Jobs("terminated"));
        assert_eq!(on_stop(Stop::Jobs("interrupt"), "terminated"), Stop::Now);
        assert_eq!(on_quit(Stop::Jobs("terminated")), Stop::Now);
    }
}

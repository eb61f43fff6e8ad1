//! A job's own Docker daemon, from its certificates to its first answer. What it is like is
//! `workload::access`'s; how its container is made and started is every service's (`service`).

mod certificates;
mod files;
mod graft;
mod probe;
pub mod recipe;
pub mod scrub;
pub mod warm;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bollard::query_parameters::{
    InspectContainerOptions, LogsOptionsBuilder, UploadToContainerOptions,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::rustls::ClientConfig;

use crate::{
    base::{duration, error_chain},
    executor::docker::engine::{self, Engine, image::Image},
    trace::JobLog,
    workload::access::{DindPlan, InnerNetworks, SOCKET_DIRECTORY, SocketPlan},
};

use self::{
    certificates::Certificates,
    probe::{About, Silence},
};
pub use certificates::CertificateError;
pub(super) use files::Files;
pub use graft::GraftError;

use super::{DockerJob, service::Started};

/// Pause between two questions. Short, as a refused connection costs microseconds.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// The same where only its log can tell.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How many lines of its log the job's author is shown.
const LOG_LINES: &str = "30";

/// What a daemon's log says when it answers on TCP (dockerd: `API listen on`).
const LISTENS: &str = "API listen on";

/// What a daemon's log says when nothing keeps it from work any more, and levels of lines that are
/// no reason for an end (dockerd).
const COMPLETED: &str = "Daemon has completed initialization";
const HARMLESS: [&str; 3] = ["level=debug", "level=info", "level=warning"];

/// A job whose daemon did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Certificates could not be made.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// It ended.
    #[error("the job's Docker daemon ({service}) ended with exit code {code} before it was ready")]
    Ended {
        /// The service.
        service: String,
        /// Exit code of its container.
        code: i64,
        /// The end of its log.
        log: String,
    },
    /// It did not answer in time.
    #[error(
        "the job's Docker daemon ({service}) was not ready in {} ([runners.docker.dind] \
         ready_timeout): {why}",
        duration::format(*limit)
    )]
    Late {
        /// The service.
        service: String,
        /// The deadline.
        limit: Duration,
        /// What happened last.
        why: String,
        /// The end of its log.
        log: String,
    },
}

impl DaemonError {
    /// What its log says of why.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Ended { log, .. } | Self::Late { log, .. } => hint(log),
            Self::Certificates(_) | Self::Engine(_) => None,
        }
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        match self {
            Self::Ended { log, .. } | Self::Late { log, .. } => Some(log),
            Self::Certificates(_) | Self::Engine(_) => None,
        }
    }
}

/// What is said of a daemon that may not do what it must.
const UNPRIVILEGED: &str = "the daemon lacks privileges: does the engine run rootless, in a container \
     or with a runtime or user namespace that takes them away?";

/// The usual reasons, the most telling words first.
fn hint(log: &str) -> Option<&'static str> {
    // It came to work, so what it needs is there.
    if log.contains(COMPLETED) {
        return None;
    }
    let is_telling = |line: &&str| !HARMLESS.iter().any(|level| line.contains(level));
    let log: String = log.lines().filter(is_telling).map(|l| l.to_lowercase() + "\n").collect();
    let has = |words: &[&str]| words.iter().any(|word| log.contains(word));
    if has(&["rootlesskit"])
        && let Some(hint) = rootless_hint(has)
    {
        return Some(hint);
    }
    // It may neither mount nor set up its network: one reason for both.
    if has(&["you must be root"]) && has(&["operation not permitted"]) {
        Some(UNPRIVILEGED)
    } else if has(&["unknown flag", "unable to configure the docker daemon"]) {
        Some("a flag is wrong: look at the service's command and [runners.docker.dind]")
    } else if has(&["iptables", "nf_tables", "ip6tables"]) {
        Some(
            "the host's kernel lacks what the image's iptables needs (modules ip_tables, nf_nat); \
             the service variable DOCKER_IPTABLES_LEGACY: \"1\" chooses the older one",
        )
    } else if has(&["graphdriver", "storage driver", "storage-driver", "overlay"]) {
        Some("the daemon cannot use the storage driver here: try another with its --storage-driver")
    } else if has(&["cgroup"]) {
        Some("the daemon cannot use the host's control groups: a newer dind image may")
    } else if has(&[
        "operation not permitted",
        "permission denied",
        "needs to be started with root",
    ]) {
        Some(UNPRIVILEGED)
    } else {
        None
    }
}

/// The same for what gives a daemon without root its namespaces and its network (rootlesskit).
fn rootless_hint(has: impl Fn(&[&str]) -> bool) -> Option<&'static str> {
    if has(&["tuntap", "/dev/net/tun"]) {
        Some(
            "a daemon without root needs the host's /dev/net/tun, which all users may write to \
             (modprobe tun; chmod 666 /dev/net/tun)",
        )
    } else if has(&["newuidmap", "newgidmap"]) {
        Some(
            "a daemon without root needs newuidmap's and newgidmap's file capabilities: \
             no-new-privileges and user namespaces of the engine's (userns-remap) take them away",
        )
    } else if has(&["failed to start the child", "user_namespaces", "userns"]) {
        Some(
            "a daemon without root needs user namespaces, which the host forbids: look at sysctl \
             user.max_user_namespaces, kernel.unprivileged_userns_clone and \
             kernel.apparmor_restrict_unprivileged_userns, and at services_security_opt",
        )
    } else {
        None
    }
}

/// A daemon that is to be started: what it needs, and how it is asked.
pub(super) struct Daemon<'a> {
    plan: &'a DindPlan,
    certificates: Option<Certificates>,
    tls: Option<Arc<ClientConfig>>,
    /// Since when it is the job's, where it was ready before.
    taken: Option<Instant>,
}

impl<'a> Daemon<'a> {
    pub(super) fn new(plan: &'a DindPlan) -> Result<Self, DaemonError> {
        let certificates =
            plan.certificates.as_ref().map(|c| Certificates::mint(&c.names)).transpose()?;
        let tls = certificates.as_ref().map(Certificates::client).transpose()?;
        Ok(Self { plan, certificates, tls, taken: None })
    }

    /// Flags that depend on the engine and on the image, after those of the plan.
    pub(super) async fn flags(&self, docker: &DockerJob, image: &Image) -> Vec<String> {
        network_flags(&docker.engine, self.plan.networks.as_ref(), image).await
    }

    /// Gives the created container what must be in it when it starts.
    pub(super) async fn furnish(&self, docker: &DockerJob) -> Result<(), DaemonError> {
        let mut files = Files::new();
        if let (Some(plan), Some(certificates)) = (&self.plan.certificates, &self.certificates) {
            certificates.add_to(&mut files, plan);
        }
        // Who is root can make its socket in a directory of root's.
        if let Some(socket) = self.plan.socket.as_ref().filter(|socket| socket.owner != 0) {
            files.directory(SOCKET_DIRECTORY, socket.owner);
        }
        Ok(put(&docker.engine, &self.plan.container, files).await?)
    }

    /// Waits until the daemon answers as the job will ask it.
    pub(super) async fn ready(
        &self,
        docker: &DockerJob,
        started: &Started,
        job_log: &JobLog,
    ) -> Result<(), DaemonError> {
        let begun = Instant::now();
        let since = self.taken.unwrap_or(begun);
        let limit = docker.runner.containers.dind.ready_timeout;
        let mut addresses = started.ip_addresses();
        if addresses.is_empty() && self.plan.host == "127.0.0.1" {
            addresses.push([127, 0, 0, 1].into());
        }
        let addresses: Vec<SocketAddr> =
            addresses.into_iter().map(|ip| SocketAddr::new(ip, self.plan.port)).collect();
        let mut last = "it never listened".to_owned();
        let answer = tokio::select! {
            about = self.answers(docker, &addresses, &mut last) => Some(about),
            code = ended(&docker.engine, &self.plan.container) => {
                let service = self.plan.service.clone();
                return Err(DaemonError::Ended { service, code: code?, log: last_lines(&docker.engine, &self.plan.container).await });
            }
            () = sleep_until(begun + limit) => None,
        };
        match answer {
            Some(about) => self.say(&about, since.elapsed(), job_log),
            None if self.plan.is_understood => {
                return Err(DaemonError::Late {
                    service: self.plan.service.clone(),
                    limit,
                    why: last,
                    log: last_lines(&docker.engine, &self.plan.container).await,
                });
            }
            // Its command is the job's own, and so is where it listens.
            None => job_log.warning(&format!(
                "The Docker daemon {} does not answer at tcp://{}:{}: {last}",
                self.plan.service, self.plan.host, self.plan.port
            )),
        }
        Ok(())
    }

    async fn answers(
        &self,
        docker: &DockerJob,
        addresses: &[SocketAddr],
        last: &mut String,
    ) -> About {
        loop {
            let mut pause = ASK_AGAIN;
            for address in addresses {
                match probe::ask(*address, self.tls.as_ref()).await {
                    Ok(about) => return about,
                    Err(Silence::Not(why)) => *last = why,
                    Err(Silence::Unreachable) => {
                        *last = format!("{address} cannot be reached from here");
                        pause = LOOK_AGAIN;
                    }
                }
            }
            // An engine on another host, or longshore in a container: the log is all there is.
            if (pause == LOOK_AGAIN || addresses.is_empty())
                && last_lines(&docker.engine, &self.plan.container)
                    .await
                    .lines()
                    .any(|l| l.contains(LISTENS) && !l.contains(".sock"))
            {
                return About::default();
            }
            sleep(pause).await;
        }
    }

    fn say(&self, about: &About, after: Duration, job_log: &JobLog) {
        let service = &self.plan.service;
        let About { server_version, driver } = about;
        let what = if server_version.is_empty() {
            String::new()
        } else {
            format!(": Docker {server_version}, storage driver {driver}")
        };
        job_log.plain(&format!(
            "Docker daemon {service} is ready after {:.2} s{what}",
            after.as_secs_f32()
        ));
        if driver == "vfs" {
            job_log.warning(&format!(
                "The Docker daemon {service} copies every layer (storage driver vfs), which is \
                 slow and takes much space: the host's kernel or the file system of its volumes \
                 does not let it use overlay2"
            ));
        }
    }
}

/// Flags that say what a daemon's networks are like, beside this engine and with this image.
async fn network_flags(
    engine: &Engine,
    networks: Option<&InnerNetworks>,
    image: &Image,
) -> Vec<String> {
    let Some(networks) = networks else { return Vec::new() };
    let outer = match networks.outer() {
        Some(name) => engine.network_mtu(name).await,
        None => None,
    };
    networks.flags(outer, &image.env)
}

/// Puts files into a container that has not started; nothing is asked for none.
pub(super) async fn put(
    engine: &Engine,
    container: &str,
    files: Files,
) -> Result<(), engine::Error> {
    let failed = || engine::Error::of("put files into the container", container);
    let Some(archive) = files.finish().map_err(|error| failed()(error.into()))? else {
        return Ok(());
    };
    let options = UploadToContainerOptions { path: "/".into(), ..Default::default() };
    engine
        .client()
        .upload_to_container(container, Some(options), bollard::body_full(archive.into()))
        .await
        .map_err(failed())
}

/// Puts the daemon's socket where tools look for it into the job's container, whose own user may
/// not; root's first script does it without asking the engine. A job that does not use the socket
/// does well without.
pub(super) async fn link_socket(docker: &DockerJob) {
    let Some(socket) = docker.workload.access.dind().and_then(|s| s.socket.as_ref()) else {
        return;
    };
    let mut files = Files::new();
    let target = SocketPlan::path();
    for link in &socket.links {
        files.link(link, &target);
    }
    if let Err(error) = put(&docker.engine, &docker.workload.names.build, files).await {
        tracing::warn!(error = %error_chain(&error), "the job has no socket at its usual place");
    }
}

/// What there is to say when a script has failed: that the daemon or the BuildKit it used had ended
/// meanwhile.
pub(super) async fn lost(docker: &DockerJob) -> Option<String> {
    let access = &docker.workload.access;
    let (what, container, key) = match (access.dind(), access.buildkit()) {
        (Some(DindPlan { service, container, .. }), _) => {
            (format!("Docker daemon ({service})"), container, "[runners.docker] service_memory")
        }
        (None, Some(buildkit)) => {
            let what = format!("BuildKit ({})", buildkit.image);
            (what, &docker.workload.names.buildkit, "[runners.docker.socket.limits] memory")
        }
        (None, None) => return None,
    };
    let state = docker
        .engine
        .client()
        .inspect_container(container, None::<InspectContainerOptions>)
        .await
        .ok()?
        .state?;
    if state.running != Some(false) {
        return None;
    }
    let code = state.exit_code.unwrap_or_default();
    let memory = if state.oom_killed == Some(true) {
        format!(" (out of memory; {key} limits it)")
    } else {
        String::new()
    };
    let log = last_lines(&docker.engine, container).await;
    Some(format!(
        "The job's {what} ended with exit code {code}{memory} while the script \
         ran. Its last lines:\n{log}"
    ))
}

pub(super) async fn last_lines(engine: &Engine, container: &str) -> String {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(LOG_LINES).build();
    let mut log = String::new();
    let mut pieces = engine.client().logs(container, Some(options));
    while let Some(Ok(piece)) = pieces.next().await {
        log.push_str(&piece.to_string());
    }
    log
}

/// Waits for the container's end; its exit code.
pub(super) async fn ended(engine: &Engine, container: &str) -> Result<i64, engine::Error> {
    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    let mut end = engine.client().wait_container(container, Some(options));
    match end.next().await {
        Some(Ok(end)) => Ok(end.status_code),
        Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. })) => Ok(code),
        Some(Err(error)) => Err(engine::Error::of("wait for the container", container)(error)),
        // The engine said nothing of it; the deadline will.
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_log_says_what_to_do() {
        for (log, words) in [
            ("unknown flag: --mtuu\nSee 'dockerd --help'.", "a flag is wrong"),
            ("failed to create NAT chain DOCKER: iptables failed: Permission denied", "iptables"),
            ("error initializing graphdriver: driver not supported: overlay2", "storage driver"),
            ("failed to start daemon: Devices cgroup isn't mounted", "control groups"),
            ("mount: permission denied (are you root?)", "privileges"),
            (
                "level=error msg=\"failed to mount overlay: operation not permitted\"\niptables failed: \
                 Could not fetch rule set generation id: Permission denied (you must be root)",
                "privileges",
            ),
            (
                "[rootlesskit:parent] error: failed to setup network: setting up tap tap0: executing \
                 [[nsenter -t 16 -n -m -U --preserve-credentials ip tuntap add name tap0 mode tap]]",
                "/dev/net/tun",
            ),
            (
                "[rootlesskit:parent] error: failed to setup UID/GID map: newuidmap 17 [0 1000 1] \
                 failed: newuidmap: write to uid_map failed: Operation not permitted",
                "no-new-privileges",
            ),
            (
                "[rootlesskit:parent] error: failed to start the child: fork/exec /proc/self/exe: \
                 operation not permitted",
                "user.max_user_namespaces",
            ),
        ] {
            assert!(hint(log).is_some_and(|hint| hint.contains(words)), "{log}");
        }
        assert_eq!(hint("something else"), None);
    }

    #[test]
    fn what_a_healthy_daemon_logs_is_no_reason() {
        let overlay = "level=warning msg=\"Not using native diff for overlay2\"";
        let end = "failed to start daemon: Devices cgroup isn't mounted";
        assert_eq!(hint(overlay), None);
        assert!(hint(&format!("{overlay}\n{end}")).unwrap().contains("control groups"));
        let completed = "level=info msg=\"Daemon has completed initialization\"";
        assert_eq!(hint(&format!("{completed}\nlevel=error msg=\"no overlay\"")), None);
    }
}

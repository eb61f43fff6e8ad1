//! A job's own BuildKit, from its image to the moment when it takes requests. What it is like is
//! `workload::access`'s, its container is `spec`'s.

use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::{StreamExt, future};
use tokio::time::{Instant, timeout};

use crate::{
    executor::docker::engine::{self, image::Image},
    workload::access::{BuildKit, SOCKET_DIRECTORY, is_rootless},
};

use super::{DockerError, DockerJob, dind, socket, spec};

/// How long it may take until it takes requests.
const READY: Duration = Duration::from_mins(1);

/// What its log says when its socket is there (moby/buildkit: `serveGRPC`, at least v0.11 to v0.34).
const LISTENS: &str = "running server on";

/// What there is to say of an image that cannot run it.
const NOT_BUILDKIT: &str = "[runners.docker.socket] buildkit_image must be one whose entrypoint takes \
                            buildkitd's arguments, such as moby/buildkit:rootless";

/// A job whose BuildKit did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum BuildKitError {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// It ended.
    #[error("the job's BuildKit ({image}) ended with exit code {code} before it was ready")]
    Ended {
        /// Its image.
        image: String,
        /// Exit code of its container.
        code: i64,
        /// The end of its log.
        log: String,
    },
    /// It said nothing in time.
    #[error("the job's BuildKit ({image}) was not ready in {} seconds", READY.as_secs())]
    Late {
        /// Its image.
        image: String,
        /// The end of its log.
        log: String,
    },
}

impl BuildKitError {
    /// What its log says of why.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        let (image, log) = match self {
            Self::Ended { image, log, .. } | Self::Late { image, log } => (image, log),
            Self::Engine(error) => return error.is_at_start().then_some(NOT_BUILDKIT),
        };
        let log = log.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| log.contains(word));
        if has(&[
            "newuidmap",
            "uid_map",
            "user namespace",
            "user.max_user_namespaces",
            "/etc/subuid",
        ]) {
            Some(
                "a BuildKit without root needs user namespaces on the engine's host: look at \
                 sysctl user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns",
            )
        } else if !is_rootless(image) && has(&["permission", "not permitted", "privileged"]) {
            Some(
                "its container is not privileged: [runners.docker.socket] buildkit_image must be a \
                 rootless one, or [runners.docker] runtime one such as sysbox-runc",
            )
        } else if has(&["unknown flag", "not found", "unrecognized option"]) {
            Some(NOT_BUILDKIT)
        } else {
            None
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        match self {
            Self::Ended { log, .. } | Self::Late { log, .. } => Some(log),
            Self::Engine(_) => None,
        }
    }
}

impl DockerJob {
    /// Starts the job's BuildKit, where it has one, and waits until it takes requests.
    pub(super) async fn start_buildkit(&self) -> Result<(), DockerError> {
        let Some(plan) = self.workload.access.buildkit() else { return Ok(()) };
        let policies = &self.runner.containers.images.pull_policies;
        let image = self.image(&plan.image, policies, None);
        let (image, guarded) = future::try_join(image, self.guarded()).await?;
        let Some(guarded) = guarded else { return Ok(()) };
        let since = Instant::now();
        let started = self.run_buildkit(plan, &image, &guarded.place).await;
        started.inspect_err(|error| {
            if let Some(log) = error.log() {
                self.log.warning(&format!("BuildKit's last lines:\n{log}"));
            }
        })?;
        self.log.plain(&format!(
            "BuildKit {} is ready after {:.1} s",
            plan.image,
            since.elapsed().as_secs_f32()
        ));
        Ok(())
    }

    async fn run_buildkit(
        &self,
        plan: &BuildKit,
        image: &Image,
        place: &spec::SocketPlace,
    ) -> Result<(), BuildKitError> {
        let container = &self.workload.names.buildkit;
        let limits = socket::limits(&self.runner);
        let reference = image.reference();
        let body =
            spec::buildkit::buildkit(&self.workload, &self.runner, plan, reference, place, &limits);
        self.create(container, None, body).await?;
        dind::put(&self.engine, container, files(plan)).await?;
        self.engine
            .client()
            .start_container(container, None)
            .await
            .map_err(engine::Error::of("start the container", container))?;
        let image = plan.image.clone();
        match timeout(READY, self.listens(container)).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let code = dind::ended(&self.engine, container).await?;
                Err(BuildKitError::Ended {
                    image,
                    code,
                    log: dind::last_lines(&self.engine, container).await,
                })
            }
            Err(_) => Err(BuildKitError::Late {
                image,
                log: dind::last_lines(&self.engine, container).await,
            }),
        }
    }

    /// Waits until its log says that it listens; false when the log ends before.
    async fn listens(&self, container: &str) -> bool {
        let options = LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true).build();
        let mut pieces = self.engine.client().logs(container, Some(options));
        let mut line = String::new();
        while let Some(Ok(piece)) = pieces.next().await {
            line.push_str(&piece.to_string());
            if line.contains(LISTENS) {
                return true;
            }
            if let Some(end) = line.rfind('\n') {
                line.drain(..=end);
            }
        }
        false
    }
}

/// What is in the volume of its socket when it starts. Whoever the job's processes are, they may
/// add builders of their own.
fn files(plan: &BuildKit) -> dind::Files {
    let mut files = dind::Files::new();
    files.directory(SOCKET_DIRECTORY, plan.owner);
    let builders = BuildKit::builders();
    for directory in ["", "/instances", "/activity", "/defaults", "/refs"] {
        files.open_directory(&format!("{builders}{directory}"));
    }
    // Who locks it first would otherwise be the only one who can.
    files.file(&format!("{builders}/.lock"), 0o666, 0, "");
    files.file(&format!("{builders}/instances/{}", BuildKit::NAME), 0o666, 0, &BuildKit::builder());
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_log_says_what_to_do() {
        let ended = |image: &str, log: &str| {
            let (image, log) = (image.to_owned(), log.to_owned());
            BuildKitError::Ended { image, code: 1, log }.hint().unwrap_or_default()
        };
        let rootless = "moby/buildkit:rootless";
        let log = "newuidmap: write to uid_map failed: Operation not permitted";
        assert!(ended(rootless, log).contains("user namespaces"));
        let log = "buildkitd: mount: operation not permitted";
        assert!(ended("moby/buildkit:latest", log).contains("rootless one"));
        assert_eq!(ended(rootless, "something else"), "");
    }
}

//! The job's container: its image, with a shell that is given one script after another.
//!
//! Its shell is started while the sources are still fetched, and waits for its script on stdin. For
//! a later script the same container is started again: what the first wrote to its file system is
//! there, its processes are not.

use std::{sync::Arc, time::Duration};

use bollard::{
    exec::StartExecOptions,
    models::{ContainerStateStatusEnum, ExecConfig},
    query_parameters::{
        InspectContainerOptions, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
        WaitContainerOptionsBuilder,
    },
};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::{
    base::error_chain,
    executor::{Piece, ScriptEnd, ScriptOutput},
    workload::script::EndMark,
};

use super::{
    DockerError, DockerJob,
    attach::Attached,
    dind,
    engine::{self, image::Image},
    spec,
};

/// How long processes may take to end by themselves when a script is stopped (docker stop: 10 s).
const STOP_GRACE: Duration = Duration::from_secs(10);

/// How long the engine may take to see that a container has ended, once its shell has.
const END_GRACE: Duration = Duration::from_mins(1);

/// Exit code of what SIGKILL ended.
const KILLED: i32 = 137;

/// Sends SIGTERM to every process but the first and itself. Shells differ in how they take it.
const TERMINATE_ALL: &str = "kill -TERM -1 2>/dev/null || kill -s TERM -- -1";

/// A job's container.
pub(super) struct JobContainer {
    job: Arc<DockerJob>,
    image: Image,
    /// The engine's id of it.
    id: String,
    shell: Shell,
}

/// The shell in it.
enum Shell {
    /// Created; its entrypoint must find the sources when it runs.
    Created,
    /// Its shell waits for a script.
    Waiting(Attached),
    /// A script ran in it; it ends, or has ended.
    Used,
}

impl JobContainer {
    /// Creates the container, and starts it where nothing but a shell runs in it.
    pub(super) async fn new(job: Arc<DockerJob>, image: Image) -> Result<Self, DockerError> {
        let (id, shell) = create(&job, &image).await?;
        Ok(Self { job, image, id, shell })
    }

    /// Makes it anew after it was gone ([`DockerError::Gone`]): what was in its file system is
    /// lost, volumes are not.
    ///
    /// # Errors
    /// As when it was made first.
    pub(super) async fn renew(&mut self) -> Result<(), DockerError> {
        let name = &self.job.workload.names.build;
        // Whoever removes it may not be done yet, and its name is wanted.
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        match self.job.engine.client().remove_container(name, Some(options)).await {
            Ok(()) => {}
            Err(error) => {
                let error = engine::Error::of("remove the container", name)(error);
                if error.is_conflict() {
                    let options = WaitContainerOptionsBuilder::new().condition("removed").build();
                    let mut end = self.job.engine.client().wait_container(name, Some(options));
                    // Should it still be there, the name's conflict is what creating ends with.
                    let _ = timeout(END_GRACE, end.next()).await;
                } else if !error.is_not_found() {
                    return Err(error.into());
                }
            }
        }
        (self.id, self.shell) = create(&self.job, &self.image).await?;
        Ok(())
    }

    /// The engine's id of it.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The image it is made of.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// Whether its processes are root's.
    pub(super) fn is_root(&self) -> bool {
        is_root(&self.job, &self.image)
    }

    /// Runs a script to its end. Not cancel-safe: after a drop, [`JobContainer::stop`] comes next.
    ///
    /// # Errors
    /// When the engine fails; a script that fails is a [`ScriptEnd`] with a code.
    pub(super) async fn run(
        &mut self,
        script: &str,
        mark: &EndMark,
        output: &mut ScriptOutput,
    ) -> Result<ScriptEnd, DockerError> {
        let name = &self.job.workload.names.build;
        let attached = match std::mem::replace(&mut self.shell, Shell::Used) {
            Shell::Waiting(attached) => attached,
            Shell::Created => self.job.attach_and_start(name).await.map_err(gone)?,
            Shell::Used => {
                ended(&self.job).await?;
                self.job.attach_and_start(name).await.map_err(gone)?
            }
        };
        let ScriptOutput { out, err } = output;
        let (mut pieces, input) = attached.split();
        let (mut out_end, mut err_end) = (mark.seeker(), mark.seeker());
        let read = async {
            while out_end.code().is_none() || err_end.code().is_none() {
                match pieces.next().await? {
                    Some(Piece::Out(bytes)) => out_end.push(&bytes, |b| out.write(b)),
                    Some(Piece::Err(bytes)) => err_end.push(&bytes, |b| err.write(b)),
                    None => break,
                }
            }
            out.write(&out_end.rest());
            err.write(&err_end.rest());
            Ok::<_, engine::Error>(out_end.code().or(err_end.code()))
        };
        let write = input.finish(script.as_bytes());
        let (code, written) = tokio::join!(read, write);
        match code? {
            Some(exit_code) => Ok(ScriptEnd { exit_code }),
            // The shell did not come to its end: it was killed, or the entrypoint ran something
            // else. The container's own end decides; a script that nobody read is no error then.
            None => {
                if let Err(error) = written {
                    tracing::debug!(error = %error_chain(&error), "script was not read to its end");
                }
                let exit_code = ended(&self.job).await?;
                if exit_code == KILLED && removed(&self.job).await {
                    return Err(DockerError::Gone);
                }
                Ok(ScriptEnd { exit_code })
            }
        }
    }

    /// Ends whatever runs in the container: asks first, then kills. What was written to its file
    /// system stays for `after_script`.
    ///
    /// # Errors
    /// When the engine fails.
    pub(super) async fn stop(&mut self) -> Result<(), DockerError> {
        self.shell = Shell::Used;
        let client = self.job.engine.client();
        let name = &self.job.workload.names.build;
        let config = ExecConfig {
            cmd: Some(["sh", "-c", TERMINATE_ALL].map(str::to_owned).to_vec()),
            user: Some("0".to_owned()),
            ..ExecConfig::default()
        };
        let asked = async {
            let exec = client.create_exec(name, config).await?;
            let options = StartExecOptions { detach: true, ..StartExecOptions::default() };
            client.start_exec(&exec.id, Some(options)).await
        };
        if let Err(error) = asked.await {
            // It may have ended in this moment.
            tracing::debug!(%error, "script could not be asked to end");
        }
        match timeout(STOP_GRACE, ended(&self.job)).await {
            Ok(ended) => ended.map(|_| ()),
            Err(_) => {
                kill(&self.job).await?;
                ended(&self.job).await.map(|_| ())
            }
        }
    }
}

/// Creates the container, and starts it where nothing but a shell runs in it.
async fn create(job: &DockerJob, image: &Image) -> Result<(String, Shell), DockerError> {
    let hosts = job.hosts().await;
    let plan = &job.workload;
    let socket = job.guarded().await?.map(|guarded| &guarded.place);
    let body = spec::build(plan, &job.runner, image.reference(), &hosts, socket);
    let id = job.create(&plan.names.build, plan.image.platform.as_deref(), body).await?;
    job.show_to_guard(&id).await?;
    if !is_root(job, image) {
        dind::link_socket(job).await;
    }
    let entrypoint = match &plan.image.entrypoint {
        Some(entrypoint) => entrypoint.as_slice(),
        None => image.entrypoint.as_slice(),
    };
    let shell = if entrypoint.iter().all(String::is_empty) {
        Shell::Waiting(job.attach_and_start(&plan.names.build).await?)
    } else {
        Shell::Created
    };
    Ok((id, shell))
}

fn is_root(job: &DockerJob, image: &Image) -> bool {
    let user = job.workload.image.user.as_deref().unwrap_or(&image.user);
    matches!(user.split(':').next(), Some("" | "0" | "root") | None)
}

/// Waits for the container's end; its exit code.
async fn ended(job: &DockerJob) -> Result<i32, DockerError> {
    let name = &job.workload.names.build;
    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    let mut end = job.engine.client().wait_container(name, Some(options));
    let code = match timeout(END_GRACE, end.next()).await {
        Ok(Some(Ok(end))) => end.status_code,
        Ok(Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. }))) => code,
        Ok(Some(Err(error))) => {
            let error = engine::Error::of("wait for the container", name)(error);
            return Err(if error.is_not_found() { DockerError::Gone } else { error.into() });
        }
        Ok(None) | Err(_) => {
            kill(job).await?;
            i64::from(KILLED)
        }
    };
    Ok(i32::try_from(code).unwrap_or(1))
}

/// Whether somebody has removed the container, or is about to.
async fn removed(job: &DockerJob) -> bool {
    let name = &job.workload.names.build;
    let options = None::<InspectContainerOptions>;
    match job.engine.client().inspect_container(name, options).await {
        Ok(container) => {
            let status = container.state.and_then(|state| state.status);
            matches!(
                status,
                Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD)
            )
        }
        Err(error) => engine::Error::of("inspect the container", name)(error).is_not_found(),
    }
}

/// Tells a container that is not there any more from other failures.
fn gone(error: engine::Error) -> DockerError {
    let missing = error
        .engine_message()
        .is_some_and(|message| message.to_lowercase().contains("no such container"));
    if error.is_not_found() && missing { DockerError::Gone } else { error.into() }
}

async fn kill(job: &DockerJob) -> Result<(), engine::Error> {
    let name = &job.workload.names.build;
    let options = KillContainerOptionsBuilder::new().signal("KILL").build();
    match job.engine.client().kill_container(name, Some(options)).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let error = engine::Error::of("kill the container", name)(error);
            // Not running any more is what was wanted.
            if error.is_conflict() || error.is_not_found() { Ok(()) } else { Err(error) }
        }
    }
}

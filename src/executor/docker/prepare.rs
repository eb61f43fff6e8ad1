//! Images, services and containers made ready, all at once.

use std::{sync::Arc, time::Duration};

use futures_util::future;

use crate::{
    docker::{
        helper_image,
        image::{self, Image, ImageRequest},
    },
    executor::curtain::Curtain,
    plan::NetworkPlan,
    protocol::Task,
    trace::Voice,
};

use super::{Build, Docker, ExecutorError, Helper, service, spec};

impl Docker {
    /// Gets the job's image and its services ready. Services that do not become so are said, and
    /// the job goes on (docker-executor.md §6.7).
    ///
    /// # Errors
    /// When an image cannot be had or the engine fails.
    pub async fn prepare(self: &Arc<Self>, voice: &Voice) -> Result<Build, ExecutorError> {
        let network = async {
            // Made early, as containers wait for it when they start.
            self.network_ready().await.map_err(ExecutorError::from)
        };
        let ((), build, ()) =
            future::try_join3(network, self.build_container(voice), self.services(voice)).await?;
        Ok(build)
    }

    async fn build_container(self: &Arc<Self>, voice: &Voice) -> Result<Build, ExecutorError> {
        let plan = &self.plan.image;
        let image = self.image(&plan.name, &plan.policies, plan.platform.as_deref(), voice).await?;
        Build::new(Arc::clone(self), image).await
    }

    async fn services(&self, voice: &Voice) -> Result<(), ExecutorError> {
        let started = self.plan.services.iter().map(|service| async move {
            let image = self
                .image(&service.image, &service.policies, service.platform.as_deref(), voice)
                .await?;
            voice.plain(&format!("Starting service {}:{}...", service.name, service.version));
            Ok::<_, ExecutorError>(service::start(self, service, &image).await?)
        });
        let started = future::try_join_all(started).await?;
        if started.is_empty() {
            return Ok(());
        }
        if !self.plan.network.has_aliases() {
            let hosts = started
                .iter()
                .zip(&self.plan.services)
                .flat_map(|(started, service)| started.hosts(&service.aliases))
                .collect();
            self.hosts.send_replace(Some(hosts));
        }
        let Some(limit) = self.runner.docker.wait_for_services else { return Ok(()) };
        voice.plain(&format!(
            "Waiting for services to be up and running (timeout {} seconds)...",
            limit.as_secs()
        ));
        let waits = started.into_iter().map(|started| started.ready(self, limit));
        for failed in future::join_all(waits).await.into_iter().filter_map(Result::err) {
            voice.warning(&format!(
                "Service {} probably didn't start properly: {}\n\nService container logs:\n{}",
                failed.name, failed.why, failed.log
            ));
        }
        Ok(())
    }

    async fn image(
        &self,
        name: &str,
        policies: &[crate::config::PullPolicy],
        platform: Option<&str>,
        voice: &Voice,
    ) -> Result<Image, ExecutorError> {
        let request = ImageRequest {
            name: name.to_owned(),
            policies: policies.to_vec(),
            platform: platform.map(str::to_owned),
            auths: Arc::clone(&self.auths),
        };
        let mut say = |note: image::PullNote| {
            if note.is_warning() {
                voice.warning(&note.to_string());
            } else {
                voice.plain(&note.to_string());
            }
        };
        Ok(image::ensure(&self.engine, &request, &mut say).await?)
    }

    /// Starts the helper and opens the directories it shares with the job.
    ///
    /// # Errors
    /// When its image cannot be had or made, or the engine fails.
    pub async fn start_helper(
        &self,
        curtain: &Curtain,
        voice: &Voice,
    ) -> Result<Helper, ExecutorError> {
        let name = &self.plan.names.helper;
        let (command, portable) = self.helper_command(voice).await?;
        let hosts = self.hosts().await;
        let body = spec::helper(&self.plan, &self.runner, &command, &hosts);
        self.create(name, None, body).await?;
        if let Some(tar) = portable {
            helper_image::put(&self.engine, name, tar).await?;
        }
        let mut helper = Helper::new(self.attach_and_start(name).await?);
        let roots = self.plan.mounts.volumes.iter().map(|volume| volume.destination.clone());
        helper
            .run(
                &Task::OpenDirectories(
                    roots
                        .chain([
                            self.plan.directories.project.clone(),
                            self.plan.directories.temp.clone(),
                        ])
                        .collect(),
                ),
                curtain,
            )
            .await?;
        Ok(helper)
    }

    /// The helper's image and program: of our own making, or any image with git and a shell, into
    /// which the program is put.
    async fn helper_command(
        &self,
        voice: &Voice,
    ) -> Result<(spec::HelperCommand, Option<helper_image::Portable>), ExecutorError> {
        let Some(name) = self.runner.docker.helper_image.as_deref().filter(|n| !n.is_empty())
        else {
            let made = helper_image::ensure(&self.engine).await?;
            let command = spec::HelperCommand { image: made.id, command: made.command };
            return Ok((command, None));
        };
        let name = self.plan.variables.expand(name);
        let policies = &self.runner.docker.pull_policy;
        let image = self.image(&name, policies, None, voice).await?;
        let portable = helper_image::portable(&image)?;
        let command = spec::HelperCommand {
            image: image.reference().to_owned(),
            command: portable.command.clone(),
        };
        Ok((command, Some(portable)))
    }

    /// How long the job waits for its services, for messages.
    #[must_use]
    pub fn waits_for_services(&self) -> Option<Duration> {
        self.runner.docker.wait_for_services
    }

    /// The job's network, for messages.
    #[must_use]
    pub fn network(&self) -> &NetworkPlan {
        &self.plan.network
    }
}

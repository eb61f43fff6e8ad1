//! Images, services and containers made ready, all at once.

use std::sync::Arc;

use futures_util::{FutureExt, future};

use crate::{
    executor::HelperStreams,
    workload::{access::Access, service::ServicePlan},
};

use super::{
    DockerError, DockerJob, JobContainer,
    dind::Daemon,
    engine::{
        helper_image,
        image::{self, Image, ImageRequest},
    },
    service, spec,
};

/// What our program does in the helper container.
const SERVE: &[&str] = &["helper", "serve"];

impl DockerJob {
    /// Gets the job's image and its services ready. Services that do not become so are logged, and
    /// the job goes on (docs/compatibility.md, "Waiting for services").
    ///
    /// # Errors
    /// When an image cannot be had or the engine fails.
    pub(super) async fn prepare(self: &Arc<Self>) -> Result<JobContainer, DockerError> {
        for warning in &self.warnings {
            self.log.warning(warning);
        }
        if self.workload.access != Access::None {
            self.log.plain(&self.workload.access.to_string());
            if let Some(slot) = &self.workload.mounts.layer_slot {
                self.log.plain(&slot.to_string());
            }
        }
        let network = async {
            // Made early, as containers wait for it when they start.
            self.network_ready().await.map_err(DockerError::from)
        };
        // A guard container takes as long as an image that is there already.
        let guard = async { self.guarded().await.map(drop) };
        let container = self.job_container();
        let buildkit = self.start_buildkit();
        let services = self.services();
        let ((), (), container, (), ()) =
            future::try_join5(network, guard, container, services, buildkit).await?;
        Ok(container)
    }

    async fn job_container(self: &Arc<Self>) -> Result<JobContainer, DockerError> {
        let plan = &self.workload.image;
        let engine = self.engine.api_version();
        if let Some(warning) = spec::ignored_mac_address(self.runner.docker(), engine) {
            self.log.warning(&warning);
        }
        let image = self.image(&plan.name, &plan.policies, plan.platform.as_deref()).await?;
        JobContainer::new(Arc::clone(self), image).await
    }

    async fn services(&self) -> Result<(), DockerError> {
        let names = !self.workload.network.has_aliases();
        // A daemon that the job shares a network with has the hosts of both.
        let (first, last): (Vec<_>, Vec<_>) = self.workload.services.iter().partition(|service| {
            !names
                || self
                    .workload
                    .access
                    .network_owner()
                    .is_none_or(|o| o.container != service.container)
        });
        let mut started = Vec::new();
        let mut hosts = Vec::new();
        for services in [first, last] {
            let starts = services.iter().map(|service| self.start_service(service, &hosts).boxed());
            let these = future::try_join_all(starts).await?;
            if names {
                let these = these.iter().zip(services);
                hosts.extend(these.flat_map(|((s, _), service)| s.hosts(&service.aliases)));
            }
            started.extend(these);
        }
        if started.is_empty() {
            return Ok(());
        }
        self.hosts.send_replace(Some(hosts));
        let (daemons, others): (Vec<_>, Vec<_>) =
            started.into_iter().partition(|(_, daemon)| daemon.is_some());
        let daemons = daemons.iter().filter_map(|(s, daemon)| Some((s, daemon.as_ref()?)));
        let daemons = future::try_join_all(
            daemons.map(|(started, daemon)| self.wait_for_daemon(daemon, started)),
        );
        let others = others.into_iter().map(|(started, _)| started).collect();
        let others = async {
            self.wait_for_services(others).await;
            Ok(())
        };
        future::try_join(daemons, others).await.map(|_| ())
    }

    async fn wait_for_daemon(
        &self,
        daemon: &Daemon<'_>,
        started: &service::Started,
    ) -> Result<(), DockerError> {
        daemon.ready(self, started, &self.log).await.map_err(|error| {
            if let Some(log) = error.log() {
                self.log.warning(&format!("The Docker daemon's last lines:\n{log}"));
            }
            error.into()
        })
    }

    async fn wait_for_services(&self, services: Vec<service::Started>) {
        let Some(limit) = self.runner.containers.services.ready_timeout else { return };
        if services.is_empty() {
            return;
        }
        self.log.plain(&format!(
            "Waiting for services to be up and running (timeout {} seconds)...",
            limit.as_secs()
        ));
        let waits = services.into_iter().map(|started| started.ready(self, limit));
        for failed in future::join_all(waits).await.into_iter().filter_map(Result::err) {
            self.log.warning(&format!(
                "Service {} probably didn't start properly: {}\n\nService container logs:\n{}",
                failed.name, failed.why, failed.log
            ));
        }
    }

    async fn start_service<'a>(
        &'a self,
        service: &ServicePlan,
        hosts: &[String],
    ) -> Result<(service::Started, Option<Daemon<'a>>), DockerError> {
        let sidecar = self.workload.access.dind_of(service);
        let image =
            self.image(&service.image, &service.policies, service.platform.as_deref()).await?;
        let warm = match sidecar {
            Some(sidecar) => self.take_warm(sidecar, service, &image).await?,
            None => None,
        };
        let (started, daemon) = match warm {
            Some((started, daemon, waited)) => {
                self.log.plain(&format!(
                    "Using a warm Docker daemon for service {}:{}: it has waited for {} s",
                    service.name,
                    service.version,
                    waited.as_secs()
                ));
                (started, Some(daemon))
            }
            None => {
                let daemon = sidecar.map(Daemon::new).transpose()?;
                self.log
                    .plain(&format!("Starting service {}:{}...", service.name, service.version));
                let start = service::start(self, service, &image, daemon.as_ref(), hosts);
                (start.await?, daemon)
            }
        };
        if let Some(followed) = &self.followed {
            followed.add(&self.engine, service);
        }
        Ok((started, daemon))
    }

    pub(super) async fn image(
        &self,
        name: &str,
        policies: &[crate::config::PullPolicy],
        platform: Option<&str>,
    ) -> Result<Image, DockerError> {
        let request = ImageRequest {
            name: name.to_owned(),
            policies: policies.to_vec(),
            platform: platform.map(str::to_owned),
            auths: Arc::clone(&self.auths),
        };
        let mut say = |note: image::PullNote| {
            if note.is_warning() {
                self.log.warning(&note.to_string());
            } else {
                self.log.plain(&note.to_string());
            }
        };
        Ok(image::ensure(&self.engine, &request, &mut say).await?)
    }

    /// Starts the helper's container.
    ///
    /// # Errors
    /// When its image cannot be had or made, or the engine fails.
    pub(super) async fn start_helper(&self) -> Result<HelperStreams, DockerError> {
        let hosts = self.hosts().await;
        match self.runner.containers.images.helper.as_deref().filter(|name| !name.is_empty()) {
            None => self.create_own_helper(&hosts).await?,
            Some(name) => self.create_helper_of(name, &hosts).await?,
        }
        Ok(self.attach_and_start(&self.workload.names.helper).await?.into_helper())
    }

    /// A container of the image that longshore composes.
    async fn create_own_helper(&self, hosts: &[String]) -> Result<(), DockerError> {
        let mut again = true;
        loop {
            let image = helper_image::ensure(&self.engine).await?;
            let command = spec::HelperCommand {
                image: image.id,
                command: std::iter::once(&helper_image::EXECUTABLE)
                    .chain(SERVE)
                    .map(|word| (*word).to_owned())
                    .collect(),
            };
            let body = spec::helper(&self.workload, &self.runner, &command, hosts);
            match self.create(&self.workload.names.helper, None, body).await {
                // Somebody removed the image since it was last seen.
                Err(error) if error.is_not_found() && again => {
                    helper_image::forget(&self.engine);
                    again = false;
                }
                created => return Ok(created.map(drop)?),
            }
        }
    }

    /// A container of an image with git and a shell, into which our program is put.
    async fn create_helper_of(&self, name: &str, hosts: &[String]) -> Result<(), DockerError> {
        let name = self.workload.variables.expand(name);
        let image = self.image(&name, &self.runner.containers.images.pull_policies, None).await?;
        let portable = helper_image::portable_helper(&self.engine).await?;
        let mut command = portable.command().to_vec();
        command.extend(SERVE.iter().map(|word| (*word).to_owned()));
        let command = spec::HelperCommand { image: image.reference().to_owned(), command };
        let body = spec::helper(&self.workload, &self.runner, &command, hosts);
        let container = &self.workload.names.helper;
        self.create(container, None, body).await?;
        Ok(portable.put_into(&self.engine, container).await?)
    }
}

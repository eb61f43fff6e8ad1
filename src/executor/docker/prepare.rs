//! Images, services and containers made ready, all at once.

use std::sync::Arc;

use futures_util::{FutureExt, future};

use crate::{
    executor::{
        curtain::Curtain,
        docker::engine::{
            helper_image,
            image::{self, Image, ImageRequest},
        },
    },
    helper::protocol::Task,
    trace::JobLog,
    workload::{access::Access, service::ServicePlan},
};

use super::{Build, Docker, ExecutorError, Followed, Helper, dind::Daemon, service, spec};

/// What our program does in the helper container.
const SERVE: &[&str] = &["helper", "serve"];

impl Docker {
    /// Gets the job's image and its services ready. A service that does not become ready is reported
    /// in the trace, and the job continues (docs/compatibility.md, "Waiting for services").
    ///
    /// # Errors
    /// When an image cannot be had or the engine fails.
    pub async fn prepare(
        self: &Arc<Self>,
        job_log: JobLog,
        followed: Option<&Followed>,
    ) -> Result<Build, ExecutorError> {
        if self.plan.access != Access::None {
            job_log.plain(&self.plan.access.to_string());
            if let Some(slot) = &self.plan.mounts.layer_slot {
                job_log.plain(&slot.to_string());
            }
        }
        let network = async {
            // Made early, as containers wait for it when they start.
            self.network_ready().await.map_err(ExecutorError::from)
        };
        // Its sidecar takes as long as an image that is there already.
        let guard = async { self.guarded().await.map(drop) };
        let build = self.build_container(job_log.clone());
        let buildkit = self.start_buildkit(job_log.clone());
        let services = self.services(job_log, followed);
        let ((), (), build, (), ()) =
            future::try_join5(network, guard, build, services, buildkit).await?;
        Ok(build)
    }

    async fn build_container(self: &Arc<Self>, job_log: JobLog) -> Result<Build, ExecutorError> {
        let plan = &self.plan.image;
        let engine = self.engine.api_version();
        if let Some(warning) = spec::ignored_mac_address(&self.runner.docker, engine) {
            job_log.warning(&warning);
        }
        let image =
            self.image(&plan.name, &plan.policies, plan.platform.as_deref(), job_log).await?;
        Build::new(Arc::clone(self), image).await
    }

    async fn services(
        &self,
        job_log: JobLog,
        followed: Option<&Followed>,
    ) -> Result<(), ExecutorError> {
        let names = !self.plan.network.has_aliases();
        // A daemon that the job shares a network with has the hosts of both.
        let (first, last): (Vec<_>, Vec<_>) = self.plan.services.iter().partition(|service| {
            !names
                || self.plan.access.network_owner().is_none_or(|o| o.container != service.container)
        });
        let mut started = Vec::new();
        let mut hosts = Vec::new();
        for services in [first, last] {
            let starts = services.iter().map(|service| {
                self.start_service(service, &hosts, job_log.clone(), followed).boxed()
            });
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
            daemons.map(|(started, daemon)| self.wait_for_daemon(daemon, started, &job_log)),
        );
        let others = others.into_iter().map(|(started, _)| started).collect();
        let others = async {
            self.wait_for_services(others, &job_log).await;
            Ok(())
        };
        future::try_join(daemons, others).await.map(|_| ())
    }

    async fn wait_for_daemon(
        &self,
        daemon: &Daemon<'_>,
        started: &service::Started,
        job_log: &JobLog,
    ) -> Result<(), ExecutorError> {
        daemon.ready(self, started, job_log).await.map_err(|error| {
            if let Some(log) = error.log() {
                job_log.warning(&format!("The Docker daemon's last lines:\n{log}"));
            }
            error.into()
        })
    }

    async fn wait_for_services(&self, services: Vec<service::Started>, job_log: &JobLog) {
        let Some(limit) = self.runner.docker.wait_for_services else { return };
        if services.is_empty() {
            return;
        }
        job_log.plain(&format!(
            "Waiting for services to be up and running (timeout {} seconds)...",
            limit.as_secs()
        ));
        let waits = services.into_iter().map(|started| started.ready(self, limit));
        for failed in future::join_all(waits).await.into_iter().filter_map(Result::err) {
            job_log.warning(&format!(
                "Service {} probably didn't start properly: {}\n\nService container logs:\n{}",
                failed.name, failed.why, failed.log
            ));
        }
    }

    async fn start_service<'a>(
        &'a self,
        service: &ServicePlan,
        hosts: &[String],
        job_log: JobLog,
        followed: Option<&Followed>,
    ) -> Result<(service::Started, Option<Daemon<'a>>), ExecutorError> {
        let sidecar = self.plan.access.dind_of(service);
        let image = self
            .image(&service.image, &service.policies, service.platform.as_deref(), job_log.clone())
            .await?;
        let warm = match sidecar {
            Some(sidecar) => self.take_warm(sidecar, service, &image).await?,
            None => None,
        };
        let (started, daemon) = match warm {
            Some((started, daemon, waited)) => {
                job_log.plain(&format!(
                    "Using a warm Docker daemon for service {}:{}: it has waited for {} s",
                    service.name,
                    service.version,
                    waited.as_secs()
                ));
                (started, Some(daemon))
            }
            None => {
                let daemon = sidecar.map(Daemon::new).transpose()?;
                job_log.plain(&format!("Starting service {}:{}...", service.name, service.version));
                let start = service::start(self, service, &image, daemon.as_ref(), hosts);
                (start.await?, daemon)
            }
        };
        if let Some(followed) = followed {
            followed.add(&self.engine, service);
        }
        Ok((started, daemon))
    }

    pub(super) async fn image(
        &self,
        name: &str,
        policies: &[crate::config::PullPolicy],
        platform: Option<&str>,
        job_log: JobLog,
    ) -> Result<Image, ExecutorError> {
        let request = ImageRequest {
            name: name.to_owned(),
            policies: policies.to_vec(),
            platform: platform.map(str::to_owned),
            auths: Arc::clone(&self.auths),
        };
        let job_log = job_log.clone();
        let mut say = move |note: image::PullNote| {
            if note.is_warning() {
                job_log.warning(&note.to_string());
            } else {
                job_log.plain(&note.to_string());
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
        job_log: JobLog,
    ) -> Result<Helper, ExecutorError> {
        let hosts = self.hosts().await;
        match self.runner.docker.helper_image.as_deref().filter(|name| !name.is_empty()) {
            None => self.create_own_helper(&hosts).await?,
            Some(name) => self.create_helper_of(name, &hosts, job_log).await?,
        }
        let mut helper = Helper::new(self.attach_and_start(&self.plan.names.helper).await?);
        let directories = &self.plan.directories;
        let mut open: Vec<String> = self.plan.mounts.made().map(str::to_owned).collect();
        open.extend([directories.project.clone(), directories.temp.clone()]);
        helper.run(&Task::OpenDirectories(open), curtain).await?;
        Ok(helper)
    }

    /// A container of the image that longshore composes.
    async fn create_own_helper(&self, hosts: &[String]) -> Result<(), ExecutorError> {
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
            let body = spec::helper(&self.plan, &self.runner, &command, hosts);
            match self.create(&self.plan.names.helper, None, body).await {
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
    async fn create_helper_of(
        &self,
        name: &str,
        hosts: &[String],
        job_log: JobLog,
    ) -> Result<(), ExecutorError> {
        let name = self.plan.variables.expand(name);
        let image = self.image(&name, &self.runner.docker.pull_policy, None, job_log).await?;
        let portable = helper_image::portable_helper(&self.engine).await?;
        let mut command = portable.command().to_vec();
        command.extend(SERVE.iter().map(|word| (*word).to_owned()));
        let command = spec::HelperCommand { image: image.reference().to_owned(), command };
        let body = spec::helper(&self.plan, &self.runner, &command, hosts);
        let container = &self.plan.names.helper;
        self.create(container, None, body).await?;
        Ok(portable.put_into(&self.engine, container).await?)
    }
}

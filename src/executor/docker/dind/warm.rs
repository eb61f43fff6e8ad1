//! Daemons that wait for jobs: started ahead, and taken over by one job each. Which wait, and which
//! job gets which, is `runner::warm`'s.
//!
//! One that waits has no network and nothing of a job's. Taken over, it gets the job's network under
//! the job's names, and the job's volumes (`graft`); its plan names it by then, so that it
//! is removed with the job, as one that was started for it.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bollard::{
    models::{
        ContainerInspectResponse, EndpointSettings, NetworkConnectRequest, NetworkDisconnectRequest,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt, future};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use crate::{
    config::RunnerConfig,
    executor::docker::engine::{self, Engine, image::Image},
    guard::peer::{self, Route},
    workload::{
        access::{CertificatePlan, DindPlan, SOCKET_DIRECTORY},
        service::ServicePlan,
    },
};

use super::{
    super::{
        DockerError, DockerJob,
        clean_up::{self, Anonymous},
        service::Started,
        spec,
    },
    ASK_AGAIN, Daemon, DaemonError,
    certificates::Certificates,
    ended,
    files::Files,
    graft::{self, Graft, GraftError, Target},
    last_lines, probe, put,
    recipe::{Names, Recipe},
};

/// How long a daemon that has answered before may take to do it in its job's network.
const ANSWER_AGAIN: Duration = Duration::from_secs(5);

/// The network of a container that has none.
const NO_NETWORK: &str = "none";

/// A daemon that is ready and nobody's yet, or one job's.
#[derive(Debug)]
pub struct Warm {
    names: Names,
    /// Id of its image.
    image: String,
    /// How the job's tools talk to it.
    tls: Option<Arc<ClientConfig>>,
    ready: Instant,
}

/// Why a daemon does not wait.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// It did not become ready.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Jobs' volumes could not be put into it, here or ever.
    #[error(transparent)]
    Graft(#[from] GraftError),
    /// It is not wanted any more.
    #[error("it is not wanted any more")]
    Stopped,
}

impl From<engine::Error> for WarmError {
    fn from(error: engine::Error) -> Self {
        Self::Daemon(error.into())
    }
}

/// Why a job does not get the daemon that waited for it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the image is another one by now")]
    Image,
    #[error("its networks overlap with the job's")]
    Overlap,
    #[error("the job's volumes cannot be put into it")]
    Graft(#[from] GraftError),
    #[error("the job's directory cannot be made")]
    Directory(#[source] io::Error),
    #[error("it does not answer: {0}")]
    Silent(String),
    #[error(transparent)]
    Executor(#[from] DockerError),
}

impl From<engine::Error> for Refusal {
    fn from(error: engine::Error) -> Self {
        Self::Executor(error.into())
    }
}

impl Warm {
    /// Its names.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// When it was ready.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.ready
    }

    /// One that is nowhere, for tests.
    #[cfg(test)]
    pub(crate) fn without_tls(names: Names, ready: Instant) -> Self {
        Self { names, image: String::new(), tls: None, ready }
    }

    /// Id of its image.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }
}

/// Whether daemons can wait for jobs of this engine, as far as can be said before one does.
///
/// # Errors
/// Why not.
pub fn check(engine: &Engine) -> Result<(), GraftError> {
    if !engine.host().starts_with("unix://") {
        return Err(GraftError::Remote { host: engine.host().to_owned() });
    }
    graft::possible()
}

/// Starts a daemon and waits until it is ready. Whatever happens, what was made has these names.
///
/// # Errors
/// When it does not come to wait.
pub async fn start(
    engine: &Engine,
    runner: &RunnerConfig,
    recipe: &Recipe,
    image: &Image,
    names: Names,
    stop: &CancellationToken,
) -> Result<Warm, WarmError> {
    let (client, container) = (engine.client(), names.container.clone());
    let plan = recipe.certificates.clone().map(|mut plan| {
        plan.names.push(container.clone());
        plan
    });
    let mint = |plan: &CertificatePlan| Certificates::mint(&plan.names);
    let certificates = plan.as_ref().map(mint).transpose().map_err(DaemonError::from)?;
    let tls = certificates.as_ref().map(Certificates::client);
    let tls = tls.transpose().map_err(DaemonError::from)?;
    let mut body = recipe.body.clone();
    body.image = Some(image.reference().to_owned());
    let flags = super::network_flags(engine, recipe.networks.as_ref(), image).await;
    if !flags.is_empty() {
        body.cmd.get_or_insert_default().extend(flags);
    }
    let volumes = recipe.volumes(&names);
    let volumes = volumes.iter().map(|volume| spec::mount(volume, runner.docker()));
    body.host_config.get_or_insert_default().mounts = Some(volumes.collect());
    let mut options = CreateContainerOptionsBuilder::new().name(&container);
    if let Some(platform) = &recipe.platform {
        options = options.platform(platform);
    }
    client
        .create_container(Some(options.build()), body)
        .await
        .map_err(engine::Error::of("create the container", &container))?;
    let mut files = Files::new();
    if let (Some(plan), Some(certificates)) = (&plan, &certificates) {
        certificates.add_to(&mut files, plan);
    }
    put(engine, &container, files).await?;
    client
        .start_container(&container, None)
        .await
        .map_err(engine::Error::of("start the container", &container))?;
    let Ok(target) = target(&inspect(engine, &container).await?) else {
        return Err(end_of(engine, recipe, &container).await?.into());
    };
    let socket = target.witness.source.join("docker.sock");
    let ready = async {
        // What is asked is a file of this host's.
        in_thread(move || graft::graft(&target, &[])).await?;
        let mut last = "it never listened".to_owned();
        let answers = async {
            while let Err(why) = probe::ask_at(&socket).await {
                last = why;
                sleep(ASK_AGAIN).await;
            }
        };
        let limit = runner.containers.dind.ready_timeout;
        if timeout(limit, answers).await.is_ok() {
            return Ok(());
        }
        let log = last_lines(engine, &container).await;
        let service = recipe.written.clone();
        Err(WarmError::Daemon(DaemonError::Late { service, limit, why: last, log }))
    };
    tokio::select! {
        ready = ready => if let Err(error) = ready {
            let runs = inspect(engine, &container).await?.state.and_then(|state| state.running);
            return Err(match runs {
                Some(true) => error,
                Some(false) | None => end_of(engine, recipe, &container).await?.into(),
            });
        },
        end = end_of(engine, recipe, &container) => return Err(end?.into()),
        () = stop.cancelled() => return Err(WarmError::Stopped),
    }
    Ok(Warm { names, image: image.id.clone(), tls, ready: Instant::now() })
}

/// Waits for the end of a daemon's container.
async fn end_of(
    engine: &Engine,
    recipe: &Recipe,
    container: &str,
) -> Result<DaemonError, engine::Error> {
    let (service, code) = (recipe.written.clone(), ended(engine, container).await?);
    Ok(DaemonError::Ended { service, code, log: last_lines(engine, container).await })
}

/// Waits until a daemon that waits has ended.
pub async fn watch(engine: &Engine, names: &Names) {
    let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
    let mut end = engine.client().wait_container(&names.container, Some(options));
    // A failure to wait counts as well: nobody knows then.
    drop(end.next().await);
}

impl DockerJob {
    /// Takes over the daemon that waited for this job, if one did and can be. If not, what is left of
    /// it is out of the way of the one that is started instead.
    pub(in crate::executor::docker) async fn take_warm<'a>(
        &self,
        plan: &'a DindPlan,
        service: &ServicePlan,
        image: &Image,
    ) -> Result<Option<(Started, Daemon<'a>, Duration)>, DockerError> {
        let Some(warm) = self.warm.as_ref().filter(|w| w.names.container == plan.container) else {
            return Ok(None);
        };
        let taken = Instant::now();
        match self.take_over(warm, plan, service, image).await {
            Ok(state) => {
                let daemon =
                    Daemon { plan, certificates: None, tls: warm.tls.clone(), taken: Some(taken) };
                let waited = taken.duration_since(warm.ready);
                Ok(Some((Started::of(service, image, state), daemon, waited)))
            }
            Err(why) => {
                tracing::info!(
                    container.name = plan.container,
                    error = crate::base::error_chain(&why),
                    "warm Docker daemon is not used; the job gets another"
                );
                // Its socket and certificates may be mounted by now; another daemon makes them anew.
                let resources = warm.names.resources().into_iter().take(2).collect::<Vec<_>>();
                let anonymous = Anonymous { remove: true };
                let errors = clean_up::remove(&self.engine, &resources, anonymous).await;
                errors.into_iter().next().map_or(Ok(None), |error| Err(error.into()))
            }
        }
    }

    async fn take_over(
        &self,
        warm: &Warm,
        plan: &DindPlan,
        service: &ServicePlan,
        image: &Image,
    ) -> Result<ContainerInspectResponse, Refusal> {
        if warm.image != image.id {
            return Err(Refusal::Image);
        }
        let grafts = self.grafts(plan);
        let connected = async {
            self.network_ready().await?;
            self.connect(service).await
        };
        let (grafts, ()) = future::try_join(grafts, connected).await?;
        let state = inspect(&self.engine, &plan.container).await?;
        let target = target(&state)?;
        if peer::routes(target.pid).is_none_or(|routes| overlap(&routes)) {
            return Err(Refusal::Overlap);
        }
        in_thread(move || graft::graft(&target, &grafts)).await?;
        let started = Started::of(service, image, state.clone());
        let addresses = started.ip_addresses().into_iter();
        let addresses: Vec<_> = addresses.map(|ip| SocketAddr::new(ip, plan.port)).collect();
        let mut last = "it has no address".to_owned();
        let answers = async {
            loop {
                for address in &addresses {
                    match probe::ask(*address, warm.tls.as_ref()).await {
                        Ok(_) => return,
                        Err(silence) => last = silence.to_string(),
                    }
                }
                sleep(ASK_AGAIN).await;
            }
        };
        match timeout(ANSWER_AGAIN, answers).await {
            Ok(()) => Ok(state),
            Err(_) => Err(Refusal::Silent(last)),
        }
    }

    /// Takes the daemon's container out of nowhere into the job's network.
    async fn connect(&self, service: &ServicePlan) -> Result<(), Refusal> {
        let (client, container) = (self.engine.client(), &service.container);
        let request =
            NetworkDisconnectRequest { container: container.clone(), ..Default::default() };
        client
            .disconnect_network(NO_NETWORK, request)
            .await
            .map_err(engine::Error::of("take out of no network", container))?;
        let request = NetworkConnectRequest {
            container: container.clone(),
            endpoint_config: Some(EndpointSettings {
                aliases: Some(service.aliases.clone()),
                ..EndpointSettings::default()
            }),
        };
        client
            .connect_network(self.workload.network.mode(), request)
            .await
            .map_err(engine::Error::of("connect to the job's network", container))?;
        Ok(())
    }

    /// The job's own places that a daemon started for it would have.
    async fn grafts(&self, plan: &DindPlan) -> Result<Vec<Graft>, Refusal> {
        let mounts = &self.workload.mounts;
        let client = plan.certificates.as_ref().map(CertificatePlan::client);
        let volumes = mounts.volumes.iter().filter(|v| Some(&v.destination) != client.as_ref());
        let volumes = future::try_join_all(volumes.map(|v| self.mountpoint(v))).await?;
        let volumes = volumes
            .into_iter()
            .flatten()
            .map(|(destination, source)| Graft { source, destination: destination.to_owned() });
        let mut grafts: Vec<Graft> = volumes.collect();
        for bind in &mounts.binds {
            let mut parts = bind.split(':');
            let (Some(source), Some(destination)) = (parts.next(), parts.next()) else { continue };
            if mounts.directories.iter().any(|directory| directory == destination) {
                // As the engine does.
                fs::create_dir_all(source).map_err(Refusal::Directory)?;
                let (source, destination) = (PathBuf::from(source), destination.to_owned());
                grafts.push(Graft { source, destination });
            }
        }
        Ok(grafts)
    }
}

async fn inspect(
    engine: &Engine,
    container: &str,
) -> Result<ContainerInspectResponse, engine::Error> {
    engine
        .client()
        .inspect_container(container, None::<InspectContainerOptions>)
        .await
        .map_err(engine::Error::of("inspect the container", container))
}

/// What is known of the container from here.
fn target(state: &ContainerInspectResponse) -> Result<Target, GraftError> {
    let pid = state.state.as_ref().filter(|s| s.running == Some(true)).and_then(|s| s.pid);
    let mounts = state.mounts.iter().flatten();
    let source = mounts
        .filter(|mount| mount.destination.as_deref() == Some(SOCKET_DIRECTORY))
        .find_map(|mount| mount.source.clone());
    match (pid.filter(|pid| *pid > 0), source) {
        (Some(pid), Some(source)) => Ok(Target {
            pid,
            witness: Graft { source: source.into(), destination: SOCKET_DIRECTORY.to_owned() },
        }),
        _ => Err(GraftError::Ended),
    }
}

async fn in_thread(
    work: impl FnOnce() -> Result<(), GraftError> + Send + 'static,
) -> Result<(), GraftError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(GraftError::Panicked))
}

/// Whether two devices of a network namespace lead to the same addresses: a daemon that was started
/// where there was no network chose its own without knowing the job's.
fn overlap(routes: &[Route]) -> bool {
    routes.iter().filter(|route| route.mask != 0).any(|route| {
        let others = routes.iter().filter(|other| other.device != route.device);
        others.into_iter().any(|other| other.overlaps(route.address, route.mask))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaps(table: &str) -> bool {
        overlap(&peer::parse_routes(table).unwrap())
    }

    #[test]
    fn routes_to_the_same_addresses_by_two_devices_overlap() {
        let line = |device: &str, address: &str, mask: &str| {
            format!("{device}\t{address}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n")
        };
        let table = |lines: &[(&str, &str, &str)]| {
            let lines = lines.iter().map(|(device, address, mask)| line(device, address, mask));
            format!("Iface\tDestination\n{}", lines.collect::<String>())
        };
        // 172.17.0.0/16 beside 10.213.4.128/26 and a default route.
        let usual = [("eth0", "00000000", "00000000"), ("eth0", "8004D50A", "C0FFFFFF")];
        let inner = ("docker0", "000011AC", "0000FFFF");
        assert!(!overlaps(&table(&[usual[0], usual[1], inner])));
        // 172.17.4.0/24 is in the daemon's own.
        assert!(overlaps(&table(&[usual[0], ("eth0", "000411AC", "00FFFFFF"), inner])));
        assert!(!overlaps(&table(&[inner, inner])));
        assert!(!overlaps(""));
    }
}

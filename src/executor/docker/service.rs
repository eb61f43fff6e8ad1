//! Services: started beside the rest, and waited for until they can be used.
//!
//! A service with exposed ports is ready when one of them takes a connection. One without is ready
//! when its process listens on any port, or does not within [`SETTLE`]: nothing says that it ever
//! will, but if it does, a script that starts a moment too early would fail.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bollard::{
    models::ContainerInspectResponse,
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, LogsOptionsBuilder,
    },
};
use futures_util::{StreamExt, future};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    executor::docker::engine::{self, image::Image},
    workload::service::ServicePlan,
};

use super::{DockerError, DockerJob, dind::Daemon, spec};

/// How long a service without exposed ports may take until it listens.
const SETTLE: Duration = Duration::from_secs(1);

/// Pause between two looks at a service. Short, as a look costs microseconds on the same host.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Longest wait for one connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Ports that are tried at most, lowest first (GitLab Runner: `getTCPPorts`).
const PORT_LIMIT: usize = 20;

/// How much of a service's log the job's author is shown, in bytes.
const LOG_LIMIT: usize = 64 << 10;

/// A service that was started.
pub(super) struct Started {
    container: String,
    name: String,
    /// What the engine says of it.
    state: ContainerInspectResponse,
    ports: Vec<u16>,
}

/// A service that did not become ready: the job goes on, its author is told.
pub(super) struct NotReady {
    pub(super) name: String,
    pub(super) why: String,
    pub(super) log: String,
}

/// Creates and starts a service's container; a Docker daemon's is given what it needs between.
/// `hosts` are for a daemon whose network the job shares.
pub(super) async fn start(
    docker: &DockerJob,
    service: &ServicePlan,
    image: &Image,
    daemon: Option<&Daemon<'_>>,
    hosts: &[String],
) -> Result<Started, DockerError> {
    let socket = docker.guarded().await?.map(|guarded| &guarded.place);
    let mut body =
        spec::service(&docker.workload, &docker.runner, service, image.reference(), socket);
    if let Some(daemon) = daemon {
        let flags = daemon.flags(docker, image).await;
        if !flags.is_empty() {
            body.cmd.get_or_insert_default().extend(flags);
        }
        if docker.workload.access.network_owner().is_some() {
            spec::own_network(&mut body, &docker.workload, docker.runner.docker(), service, hosts);
        }
    }
    let mut options = CreateContainerOptionsBuilder::new().name(&service.container);
    if let Some(platform) = &service.platform {
        options = options.platform(platform);
    }
    let client = docker.engine.client();
    client
        .create_container(Some(options.build()), body)
        .await
        .map_err(engine::Error::of("create the service", &service.container))?;
    if let Some(daemon) = daemon {
        daemon.furnish(docker).await?;
    }
    docker.network_ready().await?;
    client
        .start_container(&service.container, None)
        .await
        .map_err(engine::Error::of("start the service", &service.name))?;
    let state = client
        .inspect_container(&service.container, None::<InspectContainerOptions>)
        .await
        .map_err(engine::Error::of("inspect the service", &service.name))?;
    Ok(Started::of(service, image, state))
}

/// `HEALTHCHECK_TCP_PORT` of the container, in any case of letters.
fn declared_port(state: &ContainerInspectResponse) -> Option<u16> {
    let environment = state.config.as_ref()?.env.as_ref()?;
    environment
        .iter()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("HEALTHCHECK_TCP_PORT"))
        .and_then(|(_, port)| port.trim().parse().ok())
}

impl Started {
    /// A service that runs, as the engine describes it.
    pub(super) fn of(
        service: &ServicePlan,
        image: &Image,
        state: ContainerInspectResponse,
    ) -> Self {
        let ports = declared_port(&state).map_or_else(
            || image.exposed_tcp_ports.iter().copied().take(PORT_LIMIT).collect(),
            |p| vec![p],
        );
        Self {
            container: service.container.clone(),
            name: format!("{}:{}", service.name, service.version),
            state,
            ports,
        }
    }

    /// `alias:address` and `id:address`, for `/etc/hosts` of the job's containers.
    pub(super) fn hosts(&self, aliases: &[String]) -> Vec<String> {
        let Some(address) = self.addresses().into_iter().next() else { return Vec::new() };
        let id = self.state.id.as_deref().unwrap_or_default();
        aliases
            .iter()
            .map(String::as_str)
            .chain(id.get(..12))
            .map(|name| format!("{name}:{address}"))
            .collect()
    }

    /// Addresses of its container.
    pub(super) fn ip_addresses(&self) -> Vec<IpAddr> {
        self.addresses().iter().filter_map(|address| address.parse().ok()).collect()
    }

    fn addresses(&self) -> Vec<String> {
        let networks = self.state.network_settings.as_ref().and_then(|s| s.networks.as_ref());
        networks
            .into_iter()
            .flat_map(|networks| networks.values())
            .filter_map(|endpoint| endpoint.ip_address.clone())
            .filter(|address| !address.is_empty())
            .collect()
    }

    /// Waits until the service can be used.
    pub(super) async fn ready(self, docker: &DockerJob, limit: Duration) -> Result<(), NotReady> {
        let deadline = Instant::now() + limit;
        let waited = if self.ports.is_empty() {
            timeout_at(deadline, self.settle()).await.unwrap_or(Ok(()))
        } else {
            let what = format!("none of its ports {:?} took a connection in {limit:?}", self.ports);
            timeout_at(deadline, self.connects(docker)).await.unwrap_or(Err(what))
        };
        match waited {
            Ok(()) => Ok(()),
            Err(why) => Err(NotReady { log: self.log(docker).await, name: self.name, why }),
        }
    }

    /// Waits until the process listens, as far as this host can see it.
    async fn settle(&self) -> Result<(), String> {
        let Some(pid) = self.state.state.as_ref().and_then(|s| s.pid).filter(|pid| *pid > 0) else {
            // It has done its work already; that is its own business.
            return Ok(());
        };
        let until = Instant::now() + SETTLE;
        while Instant::now() < until {
            match listens(pid) {
                Some(false) => sleep(LOOK_AGAIN).await,
                // It listens, or it is another host's process, or it has ended.
                Some(true) | None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Waits until a port takes a connection.
    async fn connects(&self, docker: &DockerJob) -> Result<(), String> {
        let targets: Vec<SocketAddr> = self
            .ip_addresses()
            .into_iter()
            .flat_map(|address| self.ports.iter().map(move |port| SocketAddr::new(address, *port)))
            .collect();
        let pid = self.state.state.as_ref().and_then(|s| s.pid).unwrap_or_default();
        loop {
            let tries = targets.iter().map(|target| {
                Box::pin(async move {
                    match timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await {
                        Ok(Ok(_)) => Ok(()),
                        Ok(Err(_)) | Err(_) => Err(()),
                    }
                })
            });
            if !targets.is_empty() && future::select_ok(tries).await.is_ok() {
                return Ok(());
            }
            // Where its address cannot be reached from here, its own view of its sockets can tell.
            if listens(pid) == Some(true) && self.listens_on_port(pid) {
                return Ok(());
            }
            if let Some(code) = self.ended(docker).await {
                return Err(format!("it ended with exit code {code}"));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn listens_on_port(&self, pid: i64) -> bool {
        self.ports.iter().any(|port| listening_ports(pid).is_some_and(|open| open.contains(port)))
    }

    async fn ended(&self, docker: &DockerJob) -> Option<i64> {
        let state = docker
            .engine
            .client()
            .inspect_container(&self.container, None::<InspectContainerOptions>)
            .await
            .ok()?
            .state?;
        (state.running == Some(false)).then(|| state.exit_code.unwrap_or_default())
    }

    async fn log(&self, docker: &DockerJob) -> String {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .tail("500")
            .build();
        let mut log = String::new();
        let mut pieces = docker.engine.client().logs(&self.container, Some(options));
        while let Some(Ok(piece)) = pieces.next().await {
            log.push_str(&piece.to_string());
            if log.len() > LOG_LIMIT {
                break;
            }
        }
        log
    }
}

/// Whether a process's network has a listening TCP socket; `None` when this host cannot see it.
fn listens(pid: i64) -> Option<bool> {
    listening_ports(pid).map(|ports| !ports.is_empty())
}

/// Ports on which something listens in a process's network, but for the engine's own name server
/// on 127.0.0.11 (Linux: `/proc/<pid>/net/tcp`, state 0A).
fn listening_ports(pid: i64) -> Option<Vec<u16>> {
    if pid <= 0 {
        return None;
    }
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    let others = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    if own == others {
        // The host's network, where anything may listen.
        return None;
    }
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        ports.extend(text.lines().skip(1).filter_map(listening));
    }
    Some(ports)
}

fn listening(line: &str) -> Option<u16> {
    /// 127.0.0.11 as the kernel writes it.
    const NAME_SERVER: &str = "0B00007F";
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    (fields.nth(1)? == "0A" && address != NAME_SERVER)
        .then(|| u16::from_str_radix(port, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn started(state: serde_json::Value) -> Started {
        Started {
            container: "c".to_owned(),
            name: "redis:7".to_owned(),
            state: serde_json::from_value(state).unwrap(),
            ports: vec![],
        }
    }

    #[test]
    fn docker_87_a_service_is_known_by_its_aliases_and_its_short_id() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let service = started(json!({
            "Id": id,
            "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.3"}}},
        }));
        let aliases = ["redis", "db"].map(str::to_owned);
        let hosts = ["redis:172.17.0.3", "db:172.17.0.3", "0123456789ab:172.17.0.3"];
        assert_eq!(service.hosts(&aliases), hosts);
        let without = started(json!({
            "Id": id, "NetworkSettings": {"Networks": {"host": {"IPAddress": ""}}},
        }));
        assert_eq!(without.hosts(&aliases), Vec::<String>::new());
    }

    #[test]
    fn docker_90_a_service_may_declare_its_port() {
        let of = |env: &[&str]| declared_port(&started(json!({"Config": {"Env": env}})).state);
        assert_eq!(of(&["A=1", "HEALTHCHECK_TCP_PORT=8080"]), Some(8080));
        assert_eq!(of(&["healthcheck_tcp_port= 8080 "]), Some(8080));
        assert_eq!(of(&["HEALTHCHECK_TCP_PORT=http"]), None);
        assert_eq!(of(&["A=1"]), None);
    }

    #[test]
    fn listening_sockets_are_told_from_others() {
        let line = |address: &str, state: &str| {
            format!("   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000")
        };
        assert_eq!(listening(&line("00000000:1F40", "0A")), Some(8000));
        assert_eq!(listening(&line("00000000:1F40", "01")), None);
        assert_eq!(listening(&line("0B00007F:9C41", "0A")), None);
    }
}

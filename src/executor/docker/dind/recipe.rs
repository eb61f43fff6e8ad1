//! What a daemon that waits for jobs must be like, so that a job may take it in place of one that is
//! started for it. Pure.
//!
//! It is the request that the job's own daemon would be made of, without what is the job's alone:
//! names, labels, network, volumes, and variables that no daemon reads. What is left must be equal.
//! A job whose daemon depends on more gets none that waits.

use std::collections::BTreeMap;

use bollard::models::ContainerCreateBody;

use crate::{
    base::ids::random_hex,
    config::RunnerConfig,
    ledger::Resource,
    workload::{
        NetworkPlan, Workload,
        access::{CertificatePlan, DindPlan, InnerNetworks, SOCKET_DIRECTORY},
        mount::VolumePlan,
        names::{INSTANCE_LABEL, LABEL_PREFIX},
        placement::WarmDaemonLease,
        service::ServicePlan,
    },
};

use super::super::spec;

/// Variables that the image's entrypoint, `dockerd`, containerd and Go's runtime read (docker-library/
/// docker: `dockerd-entrypoint.sh`, `dind`; moby: `cmd/dockerd`). All others are nobody's there, and
/// may be a project's own or change with every job: a daemon that waits has none of them.
///
/// `DOCKER_TLS_VERIFY` and `DOCKER_CERT_PATH` are not here: `dockerd` takes both from flags, which the
/// entrypoint or the plan gives it.
const READ_BY_DAEMONS: &[&str] = &[
    "ALL_PROXY",
    "CONTAINERD_NAMESPACE",
    "DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS",
    "DOCKER_ALLOW_SCHEMA1_PUSH_DONOTUSE",
    "DOCKER_BUILDKIT_RUNC_COMMAND",
    "DOCKER_CONFIG",
    "DOCKER_DRIVER",
    "DOCKER_ENABLE_DEPRECATED_PULL_SCHEMA_1_IMAGE",
    "DOCKER_IGNORE_BR_NETFILTER_ERROR",
    "DOCKER_INSECURE_NO_IPTABLES_RAW",
    "DOCKER_IPTABLES_LEGACY",
    "DOCKER_MIN_API_VERSION",
    "DOCKER_RAMDISK",
    "DOCKER_TLS_CERTDIR",
    "DOCKER_TLS_SAN",
    "DOCKER_TMPDIR",
    "FTP_PROXY",
    "GODEBUG",
    "GOGC",
    "GOMAXPROCS",
    "GOMEMLIMIT",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "MOBY_DISABLE_PIGZ",
    "NO_PROXY",
    "TINI_SUBREAPER",
    "TZ",
];

/// The image's socket is at its value, where that is one (`dockerd-entrypoint.sh`).
const DOCKER_HOST: &str = "DOCKER_HOST";

/// Variables that name no setting of a daemon, though they begin like one: jobs of the official
/// recipe have them, and they may differ.
const READ_BY_CLIENTS: &[&str] = &["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", DOCKER_HOST];

/// What a daemon uses in its container while it runs: nothing may be mounted over it then.
const IN_USE: &[&str] =
    &["/bin", "/dev", "/etc", "/lib", "/proc", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var/run"];

/// The data root of a daemon with root.
const DATA_ROOT: &str = "/var/lib/docker";

/// See the module. Jobs with equal ones can take each other's daemons.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Image as the job writes it, and as the engine is asked for it.
    pub(super) written: String,
    pub(super) image: String,
    pub(super) platform: Option<String>,
    /// The container, but for its image's number, its volumes and flags that depend on the engine.
    pub(super) body: ContainerCreateBody,
    /// Certificates, but for the container's own name.
    pub(super) certificates: Option<CertificatePlan>,
    pub(super) networks: Option<InnerNetworks>,
}

/// Why a job gets a daemon that is started for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has none.
    #[error("the job has no daemon of its own")]
    None,
    /// Where it listens and what it reads is the job's own affair.
    #[error("the service's command or image is its own")]
    Command,
    /// Its container has less than root.
    #[error("the daemon has no privileges")]
    Unprivileged,
    /// Names and addresses are not the job's alone, or IPv6 is to be set up at its start.
    #[error("the job has no network of its own, or one with IPv6")]
    Network,
    /// It begins with what other jobs left.
    #[error("its data root is not a fresh volume")]
    Storage,
    /// A driver's volumes are no directories of this host.
    #[error("volumes have a driver of their own (volume_driver)")]
    VolumeDriver,
    /// A place of the job's would hide what the daemon uses, or must be there when it starts.
    #[error("one of the job's volumes is where the daemon has its own files")]
    Volumes,
    /// The service is given a variable that may mean anything.
    #[error("the service has variables of its own")]
    Variables,
}

/// What belongs to one daemon that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub(super) container: String,
    /// Data root, socket and certificates.
    pub(super) data: String,
    pub(super) socket: String,
    pub(super) certificates: Option<String>,
}

/// What a daemon is made of, of the job that wants it.
struct Wanted<'a> {
    plan: &'a Workload,
    sidecar: &'a DindPlan,
    service: &'a ServicePlan,
    runner: &'a RunnerConfig,
}

impl Recipe {
    /// Of the daemon that a job wants.
    ///
    /// # Errors
    /// When only one that is started for the job will do.
    pub fn of(plan: &Workload, runner: &RunnerConfig) -> Result<Self, Unfit> {
        let sidecar = plan.access.dind().ok_or(Unfit::None)?;
        let service = plan.services.iter().find(|s| s.container == sidecar.container);
        let wanted = Wanted { plan, sidecar, service: service.ok_or(Unfit::None)?, runner };
        wanted.check()?;
        Ok(Self {
            written: wanted.service.written.clone(),
            image: wanted.service.image.clone(),
            platform: wanted.service.platform.clone(),
            body: wanted.body(),
            certificates: sidecar.certificates.clone().map(|mut certificates| {
                certificates.names.retain(|name| *name != sidecar.container);
                certificates
            }),
            networks: sidecar.networks.clone(),
        })
    }

    /// Its image, as the engine is asked for it.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Its platform, when jobs ask for one.
    #[must_use]
    pub fn platform(&self) -> Option<&str> {
        self.platform.as_deref()
    }

    /// Names for a new one.
    #[must_use]
    pub fn new_names(&self, runner: &RunnerConfig) -> Names {
        let token = runner.short_token().to_string();
        let base = format!("runner-{}-warm-{}", token.to_lowercase(), random_hex::<8>());
        Names {
            container: format!("{base}-docker"),
            data: format!("{base}-data"),
            socket: format!("{base}-socket"),
            certificates: self.certificates.as_ref().map(|_| format!("{base}-certs")),
        }
    }

    /// Its volumes by these names.
    pub(super) fn volumes(&self, names: &Names) -> Vec<VolumePlan> {
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let own = [INSTANCE_LABEL, "managed", "runner.id", "runner.system_id", "type"];
        for name in own {
            let name = if name == INSTANCE_LABEL {
                name.to_owned()
            } else {
                format!("{LABEL_PREFIX}.{name}")
            };
            let value = self.body.labels.as_ref().and_then(|labels| labels.get(&name));
            labels.extend(value.map(|value| (name, value.clone())));
        }
        // The sweep of what a crash left goes by it.
        labels.insert(format!("{LABEL_PREFIX}.reusable"), "false".to_owned());
        let volume = |name: &String, destination: String| VolumePlan {
            name: name.clone(),
            destination,
            labels: labels.clone(),
            kept: false,
        };
        let client = self.certificates.as_ref().map(CertificatePlan::client);
        [
            volume(&names.data, DATA_ROOT.to_owned()),
            volume(&names.socket, SOCKET_DIRECTORY.to_owned()),
        ]
        .into_iter()
        .chain(names.certificates.iter().zip(client).map(|(name, client)| volume(name, client)))
        .collect()
    }
}

impl Names {
    /// The container's.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// All of it, in the ledger's words.
    #[must_use]
    pub fn resources(&self) -> Vec<Resource> {
        let volumes = [&self.data, &self.socket].into_iter().chain(&self.certificates);
        std::iter::once(Resource::Container(self.container.clone()))
            .chain(volumes.cloned().map(Resource::Volume))
            .collect()
    }

    /// Lends it to a job: what is planned with it, and so the ledger and the job's removal, name it.
    #[must_use]
    pub fn lease(&self) -> WarmDaemonLease {
        WarmDaemonLease {
            container: self.container.clone(),
            data: self.data.clone(),
            socket: self.socket.clone(),
            certificates: self.certificates.clone(),
        }
    }
}

impl Wanted<'_> {
    fn check(&self) -> Result<(), Unfit> {
        let Self { plan, sidecar, service, runner } = self;
        let words = || service.entrypoint.iter().chain(&service.command);
        // Its own certificates, or a file that is read when it starts.
        let reads_files = |word: &String| {
            word.strip_prefix("--tls").is_some_and(|rest| rest != "=false")
                || word.starts_with("--config-file")
        };
        let owns_volume = |volume: &VolumePlan| !volume.kept && volume.destination == DATA_ROOT;
        if !sidecar.is_understood || words().any(reads_files) {
            return Err(Unfit::Command);
        }
        if !sidecar.privileged || sidecar.unconfined || sidecar.data_root != DATA_ROOT {
            return Err(Unfit::Unprivileged);
        }
        if !matches!(plan.network, NetworkPlan::Own { ipv6: false, .. })
            || plan.access.network_owner().is_some()
        {
            return Err(Unfit::Network);
        }
        if plan.mounts.layer_slot.is_some() || !plan.mounts.daemon.as_ref().is_some_and(owns_volume)
        {
            return Err(Unfit::Storage);
        }
        let driver = runner.docker().volumes.driver.as_deref();
        if driver.is_some_and(|driver| driver != "local")
            || !runner.docker().volumes.driver_options.is_empty()
        {
            return Err(Unfit::VolumeDriver);
        }
        let destinations = self.added();
        let names_one = |text: &String| destinations.iter().any(|d| text.contains(d.as_str()));
        if self.hides_files(&destinations)
            || words().any(names_one)
            || self.environment().iter().any(names_one)
        {
            return Err(Unfit::Volumes);
        }
        let is_known = |name: &String| {
            READ_BY_DAEMONS.contains(&name.to_uppercase().as_str())
                || READ_BY_CLIENTS.contains(&name.as_str())
        };
        if service.declared.iter().all(is_known) { Ok(()) } else { Err(Unfit::Variables) }
    }

    /// Where the job's own places are put into a daemon that runs.
    fn added(&self) -> Vec<String> {
        let mounts = &self.plan.mounts;
        let client = self.sidecar.certificates.as_ref().map(CertificatePlan::client);
        let volumes = mounts.volumes.iter().map(|volume| &volume.destination);
        let own = volumes.filter(|destination| Some(*destination) != client.as_ref());
        own.chain(&mounts.directories).cloned().collect()
    }

    /// Whether one of `destinations` is, or has in it, what the daemon uses.
    fn hides_files(&self, destinations: &[String]) -> bool {
        let directory = self.sidecar.certificates.as_ref().map(|c| c.directory.as_str());
        let binds = self.binds();
        let binds = binds.iter().filter_map(|bind| bind.split(':').nth(1));
        let tmpfs = self.runner.containers.volumes.services_tmpfs.keys().map(String::as_str);
        let mut used: Vec<&str> = IN_USE.to_vec();
        used.extend([DATA_ROOT, SOCKET_DIRECTORY].into_iter().chain(directory).chain(binds));
        used.extend(tmpfs);
        let is_within = |path: &str, root: &str| {
            path.strip_prefix(root.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        destinations.iter().any(|destination| {
            is_within(destination, DATA_ROOT)
                || used.iter().any(|path| is_within(path, destination))
        })
    }

    /// Host paths and volumes of the operator that are the same for all jobs.
    fn binds(&self) -> Vec<String> {
        let mounts = &self.plan.mounts;
        let is_jobs = |bind: &&String| {
            let destination = bind.split(':').nth(1);
            mounts.directories.iter().any(|directory| destination == Some(directory.as_str()))
        };
        mounts.binds.iter().filter(|bind| !is_jobs(bind)).cloned().collect()
    }

    /// What a daemon reads of the service's environment.
    fn environment(&self) -> Vec<String> {
        let is_read = |line: &&String| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            READ_BY_DAEMONS.contains(&name.to_uppercase().as_str())
                || name == DOCKER_HOST && value.starts_with("unix://")
        };
        let mut read: Vec<String> =
            self.service.environment.iter().filter(is_read).cloned().collect();
        read.sort();
        read
    }

    fn body(&self) -> ContainerCreateBody {
        let Self { plan, service, runner, .. } = self;
        let mut body = spec::service(plan, runner, service, &service.image, None);
        let labels = body.labels.get_or_insert_default();
        let is_jobs = |name: &str| {
            let own = name.strip_prefix(LABEL_PREFIX).and_then(|rest| rest.strip_prefix('.'));
            own.is_some_and(|own| {
                ["job.", "project.", "pipeline.", "runner.local_id"]
                    .iter()
                    .any(|prefix| own.starts_with(prefix))
            })
        };
        labels.retain(|name, _| !is_jobs(name));
        labels.insert(format!("{LABEL_PREFIX}.type"), "warm".to_owned());
        body.env = Some(self.environment());
        body.networking_config = None;
        let host = body.host_config.get_or_insert_default();
        // Nobody reaches it, and it reaches nobody, until it is in its job's network.
        host.network_mode = Some("none".to_owned());
        host.mounts = None;
        host.binds = Some(self.binds()).filter(|binds| !binds.is_empty());
        body
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{executor::docker::clean_up, workload::testing::Case};

    fn case() -> Case {
        Case::new()
            .with("services", json!([{"name": "docker:dind"}]))
            .variable("FF_NETWORK_PER_BUILD", "true")
    }

    fn service(more: &serde_json::Value) -> Case {
        let mut service = json!({"name": "docker:dind"});
        service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        case().with("services", json!([service]))
    }

    fn recipe(case: &Case) -> Result<Recipe, Unfit> {
        Recipe::of(&case.plan(), &case.config())
    }

    fn public(case: Case, name: &str, value: &str) -> Case {
        case.variable_with(name, value, &json!({"public": true}))
    }

    #[test]
    fn jobs_of_other_projects_with_variables_of_their_own_are_alike() {
        let usual = recipe(&case()).unwrap();
        let mut other = case().with(
            "job_info",
            json!({"name": "x", "stage": "s", "pipeline_id": 1, "project_id": 7,
                   "project_full_path": "other/one"}),
        );
        other.placement.random = "ffffffffffffffff".to_owned();
        other.placement.project_slot = 9;
        for (name, value) in [
            ("DEPLOY_KEY", "secret"),
            ("DOCKER_AUTH_CONFIG", "{}"),
            ("DOCKER_HOST", "tcp://docker:2376"),
            ("DOCKER_TLS_VERIFY", "1"),
            ("DOCKER_CERT_PATH", "/certs/client"),
            ("DOCKER_TLS_CERTDIR", "/certs"),
        ] {
            other = public(other, name, value);
        }
        assert_eq!(recipe(&other).unwrap(), usual);
        let text = serde_json::to_string(&usual.body).unwrap();
        for foreign in ["88213", "turbine", "3d1f0c5a", "/builds", "00112233445566aa", "CI_"] {
            assert!(!text.contains(foreign), "{foreign}: {text}");
        }
    }

    #[test]
    fn a_daemon_that_would_be_another_is_not_like_it() {
        let usual = recipe(&case()).unwrap();
        for different in [
            case().with("services", json!([{"name": "docker:27-dind"}])),
            case().with("services", json!([{"name": "docker:dind", "alias": "builder"}])),
            service(&json!({"command": ["--mtu=1390"]})),
            service(&json!({"variables": [{"key": "DOCKER_DRIVER", "value": "vfs"}]})),
            public(case(), "DOCKER_TLS_CERTDIR", ""),
            public(case(), "https_proxy", "http://proxy:3128"),
            service(&json!({"variables": [{"key": "DOCKER_HOST", "value": "unix:///run/d.sock"}]})),
            case().docker("service_memory = \"1g\""),
            case().docker("volumes = [\"/srv/tools:/tools:ro\"]"),
            case().docker("dns = [\"10.0.0.1\"]"),
            case().docker("network_mtu = 1400"),
            case().docker("container_labels = { team = \"a\" }"),
            case().docker("[runners.docker.dind]\nregistry_mirrors = [\"http://m:5000\"]"),
        ] {
            assert_ne!(recipe(&different).unwrap(), usual);
        }
    }

    #[test]
    fn a_daemon_that_depends_on_more_is_started_for_its_job() {
        let rootless = "docker:dind-rootless";
        for (case, why) in [
            (Case::new(), Unfit::None),
            (service(&json!({"entrypoint": ["sh", "-c", "dockerd"]})), Unfit::Command),
            (service(&json!({"command": ["--config-file=/x"]})), Unfit::Command),
            (service(&json!({"command": ["--tlscert=/x"]})), Unfit::Command),
            (service(&json!({"command": ["--exec-root=/builds/x"]})), Unfit::Volumes),
            (
                service(&json!({"variables": [{"key": "DOCKER_TMPDIR", "value": "/builds/t"}]})),
                Unfit::Volumes,
            ),
            (service(&json!({"variables": [{"key": "X", "value": "1"}]})), Unfit::Variables),
            (case().with("services", json!([{"name": rootless}])), Unfit::Unprivileged),
            (case().docker("runtime = \"sysbox-runc\""), Unfit::Unprivileged),
            (case().docker("network_mode = \"bridge\""), Unfit::Network),
            (case().docker("enable_ipv6 = true"), Unfit::Network),
            (case().docker("[runners.docker.dind]\nnetwork = \"shared\""), Unfit::Network),
            (case().docker("[runners.docker.dind]\nstorage = \"slot\""), Unfit::Storage),
            (case().docker("volumes = [\"/var/lib/docker\"]"), Unfit::Storage),
            (case().docker("volume_driver = \"nfs\""), Unfit::VolumeDriver),
            (case().docker("volumes = [\"/var/run\"]"), Unfit::Volumes),
            (case().docker("volumes = [\"/var\"]"), Unfit::Volumes),
            (case().docker("volumes = [\"/var/lib/docker/x\"]"), Unfit::Volumes),
            (case().docker("volumes = [\"/srv\", \"/tools:/srv/tools\"]"), Unfit::Volumes),
        ] {
            assert_eq!(recipe(&case), Err(why));
        }
        for fits in ["volumes = [\"/cache\", \"/root/.m2\"]", "cache_dir = \"/srv/cache\""] {
            recipe(&case().docker(fits)).unwrap();
        }
    }

    #[test]
    fn a_plan_that_has_one_names_it_in_all_that_is_removed() {
        let usual = case();
        let names = recipe(&usual).unwrap().new_names(&usual.config());
        let mut lent = case();
        lent.placement.leases.warm_daemon = Some(names.lease());
        let plan = lent.plan();
        let resources = clean_up::resources(&plan);
        for resource in names.resources() {
            assert!(resources.contains(&resource), "{resource:?}: {resources:?}");
        }
        assert_eq!(resources.len(), clean_up::resources(&usual.plan()).len());
        let sidecar = plan.access.dind().unwrap();
        assert!(plan.access.dind_of(&plan.services[0]).is_some());
        assert!(sidecar.certificates.as_ref().unwrap().names.contains(&names.container));
    }
}

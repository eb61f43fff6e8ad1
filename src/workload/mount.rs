//! What is mounted where: entries of `volumes`, the builds directory, local caches.

use std::{collections::BTreeMap, fmt::Write as _};

use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::{
    base::ids::hex,
    config::{
        RunnerConfig,
        volume::{Volume, VolumeError},
    },
};

use super::{
    access::{Access, DindPlan, SOCKET_DIRECTORY},
    directories::Directories,
    layers::LayerSlotPlan,
    names::{INSTANCE_LABEL, LABEL_PREFIX, Names, lasting_name},
    placement::Placement,
    spec::JobSpec,
    variable::Expanded,
};

/// Type of a layer-cache slot's volume, in its labels.
pub const LAYERS_TYPE: &str = "layers";

/// All that a job's containers have mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    /// Host paths and volumes of the operator, as the engine takes them (`source:destination:…`).
    pub binds: Vec<String>,
    /// Volumes that longshore makes, or finds from an earlier job.
    pub volumes: Vec<VolumePlan>,
    /// Data root of the job's Docker daemon, or state of its BuildKit, for that container alone.
    pub daemon: Option<VolumePlan>,
    /// The layer-cache slot that `daemon` is, where it is one.
    pub layer_slot: Option<LayerSlotPlan>,
    /// Socket of the job's Docker daemon or of its BuildKit, for that container and the job's.
    pub socket: Option<VolumePlan>,
    /// Where directories below `cache_dir`, which the engine makes, are mounted.
    pub directories: Vec<String>,
}

/// A volume of longshore's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// Name on the engine.
    pub name: String,
    /// Where it is mounted.
    pub destination: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether later jobs use it again; if not, it goes with the job.
    pub kept: bool,
}

impl Mounts {
    /// Where there is something that longshore had made: root's, and to be opened to other users.
    pub fn made(&self) -> impl Iterator<Item = &str> {
        self.volumes.iter().map(|v| &v.destination).chain(&self.directories).map(String::as_str)
    }

    /// Volumes that go with the job.
    pub fn temporary(&self) -> impl Iterator<Item = &VolumePlan> {
        self.volumes.iter().chain(&self.daemon).chain(&self.socket).filter(|v| !v.kept)
    }

    /// Whether `directory` is the job's alone: empty at its start, and gone with it.
    pub(super) fn is_fresh(&self, directory: &str) -> bool {
        let binds = self.binds.iter().filter_map(|bind| Some((bind.split(':').nth(1)?, true)));
        self.volumes
            .iter()
            .map(|volume| (volume.destination.as_str(), volume.kept))
            .chain(binds)
            .filter(|(destination, _)| is_within(directory, destination.trim_end_matches('/')))
            .max_by_key(|(destination, _)| destination.len())
            .is_none_or(|(_, kept)| !kept)
    }
}

/// Why something cannot be mounted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// The text is no volume.
    #[error("[runners.docker] volumes has `{entry}`: {source}")]
    Volume {
        /// The entry, with variables replaced.
        entry: String,
        /// Why not.
        source: VolumeError,
    },
    /// Two entries for one place.
    #[error("[runners.docker] volumes mounts `{destination}` twice")]
    Duplicate {
        /// The place.
        destination: String,
    },
}

/// What mounts are planned from.
pub(super) struct Request<'a> {
    pub(super) runner: &'a RunnerConfig,
    pub(super) placement: &'a Placement,
    pub(super) names: &'a Names,
    pub(super) variables: &'a Expanded,
    pub(super) directories: &'a Directories,
    pub(super) job: &'a JobSpec,
    pub(super) keep_builds: bool,
    pub(super) protected: bool,
    pub(super) has_caches: bool,
    pub(super) access: &'a Access,
    pub(super) layer_slot: Option<LayerSlotPlan>,
}

/// Whether a host path or a volume of the operator covers `directory`: then work trees of all
/// runners and slots share it, and need directories of their own in it.
pub(super) fn covers(volumes: &[String], directory: &str) -> bool {
    volumes.iter().filter_map(|text| Volume::parse(text).ok()).any(|volume| {
        volume.source.is_some() && is_within(directory, volume.destination.trim_end_matches('/'))
    })
}

fn is_within(path: &str, root: &str) -> bool {
    path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
}

pub(super) fn plan(request: &Request<'_>) -> Result<Mounts, MountError> {
    let containers = &request.runner.containers;
    let mut mounts = Mounts::default();
    let mut taken: Vec<String> = Vec::new();
    for entry in &containers.volumes.entries {
        let mut volume = Volume::parse(entry)
            .map_err(|source| MountError::Volume { entry: entry.clone(), source })?;
        volume.destination = request.variables.expand(&volume.destination);
        let destination = volume.destination.trim_end_matches('/').to_owned();
        if destination.is_empty() {
            return Err(MountError::Volume { entry: entry.clone(), source: VolumeError::Root });
        }
        if taken.contains(&destination) {
            return Err(MountError::Duplicate { destination });
        }
        taken.push(destination.clone());
        if volume.is_engine_socket() && !request.access.is_raw() {
            // The job gets a guarded one, or its own daemon's.
        } else if volume.source.is_some() {
            mounts.binds.push(volume.to_string());
        } else {
            request.add_cache_volume(&mut mounts, &destination, !containers.volumes.disable_cache);
        }
    }
    let builds = request.directories.builds.trim_end_matches('/');
    // A cache volume of the operator's above it would keep the work trees of every strategy.
    let add_builds =
        !taken.iter().any(|t| t == builds) && !covers(&containers.volumes.entries, builds);
    let cache = request.directories.cache.trim_end_matches('/');
    let add_cache = request.has_caches && !taken.iter().any(|t| is_within(cache, t));
    if add_builds {
        request.add_cache_volume(
            &mut mounts,
            builds,
            request.keep_builds && !containers.volumes.disable_cache,
        );
    }
    if add_cache {
        request.add_cache_volume(&mut mounts, cache, !containers.volumes.disable_cache);
    }
    if let Some(dind) = request.access.dind() {
        request.add_daemon(&mut mounts, dind);
    }
    if let Some(buildkit) = request.access.buildkit() {
        mounts.daemon = Some(request.temporary(buildkit.state));
        mounts.socket = Some(request.temporary(SOCKET_DIRECTORY));
    }
    Ok(mounts)
}

impl Request<'_> {
    /// Volumes of the job's Docker daemon: its data root, its socket, and the certificates that the
    /// job has of it. `volumes` often has a place for these (`/certs/client`), which jobs would
    /// share.
    fn add_daemon(&self, mounts: &mut Mounts, dind: &DindPlan) {
        let destination = |bind: &String| {
            let volume = Volume::parse(bind).ok()?;
            Some(volume.destination.trim_end_matches('/').to_owned())
        };
        let lease = self.placement.leases.warm_daemon.as_ref();
        let root = &dind.data_root;
        let has_root = mounts.volumes.iter().any(|v| v.destination == *root)
            || mounts.binds.iter().filter_map(destination).any(|d| d == *root)
            || self.runner.containers.volumes.services_tmpfs.contains_key(root);
        if !has_root {
            mounts.layer_slot.clone_from(&self.layer_slot);
            mounts.daemon = Some(match &self.layer_slot {
                Some(slot) => self.layers(slot, root),
                None => self.temporary_or(lease.map(|lease| &lease.data), root),
            });
        }
        mounts.socket = dind
            .socket
            .as_ref()
            .map(|_| self.temporary_or(lease.map(|lease| &lease.socket), SOCKET_DIRECTORY));
        if let Some(certificates) = &dind.certificates {
            let client = certificates.client();
            mounts.volumes.retain(|volume| volume.destination != client);
            mounts.binds.retain(|bind| destination(bind).as_ref() != Some(&client));
            let lent = lease.and_then(|lease| lease.certificates.as_ref());
            mounts.volumes.push(self.temporary_or(lent, &client));
        }
    }

    /// A volume that goes with the job: one that was lent to it, or else a new one.
    fn temporary_or(&self, lent: Option<&String>, destination: &str) -> VolumePlan {
        let mut volume = self.temporary(destination);
        if let Some(name) = lent {
            volume.name.clone_from(name);
        }
        volume
    }

    /// A volume that goes with the job.
    fn temporary(&self, destination: &str) -> VolumePlan {
        let digest = hex(&Md5::digest(destination.as_bytes()));
        VolumePlan {
            name: format!("{}-cache-{digest}", self.names.unique),
            destination: destination.to_owned(),
            labels: self.labels(destination, false),
            kept: false,
        }
    }

    /// The volume of a layer-cache slot.
    fn layers(&self, slot: &LayerSlotPlan, destination: &str) -> VolumePlan {
        let mut labels = self.labels(destination, true);
        labels.insert(format!("{LABEL_PREFIX}.type"), LAYERS_TYPE.to_owned());
        labels.insert(format!("{LABEL_PREFIX}.trust"), slot.trust.as_str().to_owned());
        VolumePlan {
            name: slot.volume(self.placement),
            destination: destination.to_owned(),
            labels,
            kept: true,
        }
    }

    /// Adds a place that outlives a job: a volume, or a directory below `cache_dir`.
    fn add_cache_volume(&self, mounts: &mut Mounts, destination: &str, kept: bool) {
        let suffix = if self.protected { "-protected" } else { "" };
        let digest = hex(&Md5::digest(destination.as_bytes()));
        if kept {
            let owner = self.owner(destination);
            if let Some(host) = &self.runner.containers.volumes.cache_dir {
                mounts.binds.push(format!(
                    "{}/runner-{owner}/{digest}{suffix}:{destination}",
                    host.as_str().trim_end_matches('/')
                ));
                mounts.directories.push(destination.to_owned());
                return;
            }
            mounts.volumes.push(VolumePlan {
                name: format!("runner-{owner}-cache-{digest}{suffix}"),
                destination: destination.to_owned(),
                labels: self.labels(destination, true),
                kept: true,
            });
        } else {
            mounts.volumes.push(VolumePlan {
                name: format!("{}-cache-{digest}{suffix}", self.names.unique),
                destination: destination.to_owned(),
                labels: self.labels(destination, false),
                kept: false,
            });
        }
    }

    /// Who may use a volume again: this runner on this machine, for this project, in this slot –
    /// but local caches are for all slots, so that a job finds what another slot's job saved.
    fn owner(&self, destination: &str) -> String {
        let mut text = lasting_name(self.runner);
        let _infallible = write!(text, "-{}-{}", self.placement.system_id, self.job.project.id);
        let holds = |directory: &str| is_within(directory.trim_end_matches('/'), destination);
        if !holds(&self.directories.cache) || holds(&self.directories.builds) {
            let _infallible = write!(text, "-{}", self.placement.project_slot);
        }
        hex(&Sha256::digest(text.as_bytes())[..16])
    }

    fn labels(&self, destination: &str, kept: bool) -> BTreeMap<String, String> {
        let mut labels: BTreeMap<String, String> = [
            ("type", "cache".to_owned()),
            ("managed", "true".to_owned()),
            ("destination", destination.to_owned()),
            ("protected", self.protected.to_string()),
            ("reusable", kept.to_string()),
            ("project.id", self.job.project.id.to_string()),
            ("runner.id", self.runner.short_token().to_string()),
            ("runner.system_id", self.placement.system_id.clone()),
        ]
        .into_iter()
        .map(|(name, value)| (format!("{LABEL_PREFIX}.{name}"), value))
        .collect();
        if !kept {
            labels.insert(format!("{LABEL_PREFIX}.job.id"), self.job.id.to_string());
        }
        labels.insert(INSTANCE_LABEL.to_owned(), self.placement.instance.clone());
        labels
    }
}

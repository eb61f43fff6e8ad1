//! The settings of a guard. Only the operator can widen what a job may do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::base::glob::{self, Wildcards};
use serde::{Deserialize, Serialize};

use super::{ids::is_id_like, image::Reference, names::Names, refusal::Refusal};

/// Everything about one job's guard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuardSettings {
    /// The name of the job in the audit log.
    pub(crate) job: String,
    /// The label that all of this guard's objects carry, and nobody else's: lists and clean-up go
    /// by it. Its value must be the job's alone.
    pub(crate) identity: (String, String),
    /// Further labels for all that is created.
    pub labels: BTreeMap<String, String>,
    /// Beginnings of label keys that the job may not write (G-46). The keys of `identity` and
    /// `labels` are reserved as well.
    pub(crate) reserved_labels: Vec<String>,
    /// Beginnings of names that the job may not give (G-48).
    pub(crate) reserved_names: Vec<String>,
    /// How the job's names are translated for the engine (G-49).
    pub names: Names,
    /// The name of the job's default network. The guard creates it where it does not exist, and then
    /// removes it in the end.
    pub(crate) network: String,
    /// The cgroup that everything runs below (G-85), in the form of the engine's driver.
    pub cgroup_parent: Option<String>,
    /// How much the job may have.
    pub limits: Limits,
    /// What can be bound, first match first: the workspace, then caches.
    pub workspace: Vec<Mapping>,
    /// Which images and registries there are.
    pub images: ImagePolicy,
    /// The guarded socket's file. Its directory must be closed to the host's users.
    pub(crate) socket: PathBuf,
    /// The group of the socket's file, where it is not the guard's own.
    pub(crate) socket_group: Option<u32>,
    /// A directory for this guard alone (mode 0700): pins and spooled archives. It must not lie
    /// below a mapping.
    pub(crate) private: PathBuf,
    /// Where the job sees the socket; binds of these become binds of the guarded one.
    pub(crate) socket_paths: Vec<String>,
    /// What the operator allows beyond the defaults.
    pub(crate) widening: Widening,
    pub(crate) build: Build,
}

/// What builds images for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Build {
    Off,
    /// With the engine's classic builder.
    Classic,
    /// The same, and a BuildKit that the job has beside this socket.
    Sidecar,
}

/// A directory of the job that can be bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The path in the job's container: absolute and clean.
    pub job: String,
    /// The directory on the engine's host.
    pub host: PathBuf,
    /// Mounts of it are read-only whatever the job asks.
    pub read_only: bool,
}

/// Which images a job sees, and where it may get others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePolicy {
    /// Globs on short names with a tag (`debian:*`, `registry.example:5000/base/*`).
    pub shared: Vec<String>,
    /// Registries that may be asked, `docker.io` or `HOST[:PORT]`.
    pub registries: Vec<String>,
    /// Whether images that the job made are removed with it.
    pub(crate) remove: bool,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self { shared: Vec::new(), registries: vec!["docker.io".to_owned()], remove: true }
    }
}

impl ImagePolicy {
    /// Whether all jobs see this image (G-60). A digest matches no glob on tags.
    pub(crate) fn shares(&self, reference: &Reference) -> bool {
        let short = reference.short();
        let matches = |glob: &String| glob::matches(glob, Wildcards::WithinComponent, &short);
        self.shared.iter().any(matches)
    }

    /// Whether a registry may be asked (G-65).
    pub(crate) fn may_ask(&self, registry: &str) -> Result<(), Refusal> {
        if self.registries.iter().any(|allowed| allowed == registry) {
            return Ok(());
        }
        Err(Refusal::because(
            &format!("the registry {registry} is not among those of this runner"),
            "G-65",
        ))
    }
}

/// What the operator allows beyond the defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Widening {
    /// Capabilities beyond the engine's default set, in upper case, without `CAP_`.
    pub(crate) capabilities: Vec<String>,
    pub(crate) runtimes: Vec<String>,
    /// Host paths of devices, with all permissions.
    pub(crate) devices: Vec<String>,
    pub(crate) annotations: Vec<String>,
    /// Capabilities that containers lose unless they add them.
    pub(crate) drop_capabilities: Vec<String>,
    /// Whether all containers get `no-new-privileges`.
    pub(crate) no_new_privileges: bool,
}

/// Limits of one job (G-80, G-81, G-86): sizes in bytes, and counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of a container: both the default and the maximum.
    pub memory: i64,
    /// Processes of a container.
    pub pids: i64,
    /// CPU of a container in billionths.
    pub nano_cpus: i64,
    /// Memory of all containers together, where the cgroup that they run below has a limit; jobs are
    /// shown it.
    pub(crate) total_memory: Option<i64>,
    /// CPU of all containers together in billionths, likewise.
    pub(crate) total_nano_cpus: Option<i64>,
    /// `/dev/shm` of a container.
    pub shm: i64,
    /// The size of one tmpfs.
    pub tmpfs: i64,
    /// Containers of the job at a time.
    pub containers: usize,
    pub(crate) networks: usize,
    pub(crate) volumes: usize,
    /// Images that the job made or pulled.
    pub(crate) images: usize,
    pub(crate) connections: usize,
    /// The largest archive that a job may send.
    pub(crate) upload: u64,
    /// The largest JSON body.
    pub(crate) json: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            pids: 1024,
            nano_cpus: 2_000_000_000,
            total_memory: None,
            total_nano_cpus: None,
            shm: 256 << 20,
            tmpfs: 512 << 20,
            containers: 40,
            networks: 10,
            volumes: 50,
            images: 200,
            connections: 128,
            upload: 4 << 30,
            json: 4 << 20,
        }
    }
}

impl GuardSettings {
    /// Settings with the defaults that `docs/guard.md` names, without a workspace and shared images.
    #[must_use]
    pub fn new(job: &str, identity: (String, String), network: &str, directory: &Path) -> Self {
        Self {
            job: job.to_owned(),
            names: Names::of(&identity),
            identity,
            labels: BTreeMap::new(),
            reserved_labels: vec!["longshore.".into(), "com.gitlab.gitlab-runner.".into()],
            reserved_names: vec!["longshore-".into(), "runner-".into()],
            network: network.to_owned(),
            cgroup_parent: None,
            limits: Limits::default(),
            workspace: Vec::new(),
            images: ImagePolicy::default(),
            socket: directory.join("docker.sock"),
            socket_group: None,
            private: directory.join("private"),
            socket_paths: vec!["/var/run/docker.sock".into(), "/run/docker.sock".into()],
            widening: Widening {
                drop_capabilities: vec!["MKNOD".to_owned()],
                ..Widening::default()
            },
            build: Build::Classic,
        }
    }

    /// All labels of an object: the further ones, then the identity.
    #[must_use]
    pub(crate) fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.insert(self.identity.0.clone(), self.identity.1.clone());
        labels
    }

    /// The labels of an image: a container that somebody else makes of it later inherits them, and
    /// must not be taken for one of the job's.
    #[must_use]
    pub(crate) fn image_labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([self.identity.clone()])
    }

    /// Whether a job may not write a label with this key (G-46). Case does not help.
    #[must_use]
    pub(crate) fn is_reserved_label(&self, key: &str) -> bool {
        let key = key.trim().to_ascii_lowercase();
        self.reserved_labels.iter().any(|prefix| key.starts_with(&prefix.to_ascii_lowercase()))
            || self.all_labels().keys().any(|own| own.to_ascii_lowercase() == key)
    }

    /// Whether a job may give this name to a container, volume or network (G-48).
    pub(crate) fn may_name(&self, name: &str) -> Result<(), Refusal> {
        let mut bytes = name.bytes();
        let grammatical = name.len() <= 128
            && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && name.len() > 1
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !grammatical {
            return Err(Refusal::malformed(
                "a name must match [a-zA-Z0-9][a-zA-Z0-9_.-]+ and be no longer than 128",
                "G-48",
            ));
        }
        let taken = is_id_like(&name.to_ascii_lowercase())
            || ["bridge", "host", "none", "default"].contains(&name)
            || name == self.network
            || self.names.are_in(name)
            || self.reserved_names.iter().any(|prefix| name.starts_with(prefix));
        if taken {
            return Err(Refusal::denied(&format!("the name {name}"), "G-48"));
        }
        Ok(())
    }

    /// Whether the job's tags have other names on the engine.
    pub(crate) fn scopes_tags(&self) -> bool {
        matches!(self.names, Names::Scoped(_)) && self.images.remove
    }

    /// What a tag of the job's is called on the engine.
    pub(crate) fn upstream_tag(&self, tag: &Reference) -> Reference {
        if self.scopes_tags() { self.names.upstream_tag(tag) } else { tag.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g_60_shared_images_are_those_of_the_globs() {
        let policy = ImagePolicy {
            shared: vec!["ci/*:*".into(), "debian:*".into()],
            ..ImagePolicy::default()
        };
        for (text, shared) in [
            ("ci/base", true),
            ("docker.io/ci/base:1", true),
            ("debian", true),
            ("ci/a/b", false),
            ("evil/ci/base", false),
            ("r.example/debian", false),
            ("debian-x", false),
        ] {
            assert_eq!(policy.shares(&Reference::parse(text).unwrap()), shared, "{text}");
        }
    }

    #[test]
    fn g_65_registries_are_exact() {
        let policy = ImagePolicy::default();
        assert!(policy.may_ask(&Reference::parse("debian").unwrap().registry).is_ok());
        for text in ["localhost/x", "127.0.0.1:5000/x", "169.254.169.254/x", "docker.io.evil/x"] {
            assert!(policy.may_ask(&Reference::parse(text).unwrap().registry).is_err(), "{text}");
        }
    }

    #[test]
    fn tags_of_images_that_stay_keep_their_names() {
        let identity = ("longshore.guard".to_owned(), "1".to_owned());
        let mut settings = GuardSettings::new("1", identity, "n", Path::new("/x"));
        settings.images.remove = false;
        let tag = Reference::parse("app:1").unwrap();
        assert_eq!(settings.upstream_tag(&tag), tag);
    }
}

//! A guard's policy as a file, in TOML or JSON (`docs/guard.md`, "The policy file"). What this guard
//! does not do is refused by name: a key that is ignored silently looks like protection.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::IgnoredAny};

use super::{
    names::Names,
    parse::size::bytes,
    settings::{Build, GuardSettings, Mapping},
};
use crate::base::glob::{self, Wildcards};

/// The keys of the file. All may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PolicyFile {
    label_namespace: Option<String>,
    reserved_name_prefixes: Option<Vec<String>>,
    names: Option<String>,
    path_map: Option<Vec<MappingEntry>>,
    socket_paths: Option<Vec<String>>,
    shared_images: Option<Vec<String>>,
    registries: Option<Vec<String>>,
    allowed_devices: Option<Vec<String>>,
    allowed_runtimes: Option<Vec<String>>,
    allowed_annotations: Option<Vec<String>>,
    extra_capabilities: Option<Vec<String>>,
    default_cap_drop: Option<Vec<String>>,
    no_new_privileges: Option<bool>,
    allowed_subnets: Option<IgnoredAny>,
    default_network_pool: Option<IgnoredAny>,
    publish_address: Option<IgnoredAny>,
    limits: LimitsEntry,
    build: Option<String>,
    buildkit_socket: Option<IgnoredAny>,
    attach_ws: Option<bool>,
    audit_log: Option<PathBuf>,
}

/// One entry of `path_map`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MappingEntry {
    job: String,
    host: PathBuf,
    #[serde(default)]
    read_only: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsEntry {
    memory: Option<Size>,
    pids: Option<i64>,
    cpus: Option<f64>,
    shm: Option<Size>,
    tmpfs: Option<Size>,
    containers: Option<usize>,
    networks: Option<usize>,
    volumes: Option<usize>,
    images: Option<usize>,
    connections: Option<usize>,
    upload_max: Option<Size>,
}

/// Bytes, as a number or as `512m`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Number(i64),
    Text(String),
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the policy `{}`", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// It is not a policy: bad syntax, an unknown key, or a value of the wrong type.
    #[error("the policy is wrong at `{key}`: {what}")]
    Form { key: String, what: String },
    /// A value cannot be used.
    #[error("the policy's {key} = {value} cannot be used: {what}")]
    Value { key: String, value: String, what: &'static str },
    /// This guard does not do what the key asks for.
    #[error("the policy's {0} is not implemented by this guard; leave it out")]
    NotImplemented(&'static str),
}

fn wrong(key: &str, value: impl std::fmt::Debug, what: &'static str) -> PolicyError {
    PolicyError::Value { key: key.to_owned(), value: format!("{value:?}"), what }
}

impl PolicyFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no policy.
    pub(crate) fn read(path: &Path) -> Result<Self, PolicyError> {
        let text =
            fs::read_to_string(path).map_err(|error| PolicyError::Read(path.to_owned(), error))?;
        Self::parse(&text)
    }

    /// Reads JSON where `text` begins as an object does, and TOML otherwise.
    ///
    /// # Errors
    /// When it is no policy.
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyError> {
        let form = |key: String, what: String| PolicyError::Form {
            key,
            what: what.trim_end().replace('\n', " "),
        };
        if text.trim_start().starts_with('{') {
            let mut reader = serde_json::Deserializer::from_str(text);
            let policy = serde_path_to_error::deserialize(&mut reader)
                .map_err(|error| form(error.path().to_string(), error.inner().to_string()))?;
            reader.end().map_err(|error| form(".".to_owned(), error.to_string()))?;
            return Ok(policy);
        }
        let reader = toml_edit::de::Deserializer::parse(text)
            .map_err(|error| form(".".to_owned(), error.message().to_owned()))?;
        serde_path_to_error::deserialize(reader)
            .map_err(|error| form(error.path().to_string(), error.inner().message().to_owned()))
    }

    #[must_use]
    pub(crate) fn audit_log(&self) -> Option<&Path> {
        self.audit_log.as_deref()
    }

    /// The namespace of labels, where it is said.
    #[must_use]
    pub(crate) fn label_namespace(&self) -> Option<&str> {
        self.label_namespace.as_deref()
    }

    /// Puts what is said into `settings`; the rest stays as it is there.
    ///
    /// # Errors
    /// When a value cannot be used, or asks for what this guard does not do.
    pub(crate) fn apply(self, settings: &mut GuardSettings) -> Result<(), PolicyError> {
        self.implemented()?;
        if let Some(namespace) = self.label_namespace {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if namespace.is_empty() || !namespace.bytes().all(plain) || namespace.ends_with('.') {
                return Err(wrong(
                    "label_namespace",
                    namespace,
                    "it must be of letters, digits, `.`, `-` and `_`, without a dot at its end",
                ));
            }
            settings.reserved_labels = vec![format!("{namespace}.")];
        }
        if let Some(prefixes) = self.reserved_name_prefixes {
            if prefixes.iter().any(String::is_empty) {
                return Err(wrong("reserved_name_prefixes", prefixes, "none may be empty"));
            }
            settings.reserved_names = prefixes;
        }
        for entry in self.path_map.into_iter().flatten() {
            settings.workspace.push(mapping(entry)?);
        }
        if let Some(paths) = self.socket_paths {
            settings.socket_paths = absolute("socket_paths", paths)?;
        }
        if let Some(globs) = self.shared_images {
            if let Some(glob) =
                globs.iter().find(|glob| glob::compile(glob, Wildcards::WithinComponent).is_err())
            {
                return Err(wrong("shared_images", glob, "it is no glob"));
            }
            settings.images.shared = globs;
        }
        if let Some(registries) = self.registries {
            let bad = |host: &&String| host.is_empty() || host.contains(['/', '@', ' ', '*']);
            if let Some(host) = registries.iter().find(bad) {
                return Err(wrong("registries", host, "write HOST or HOST:PORT"));
            }
            settings.images.registries = registries;
        }
        let widening = &mut settings.widening;
        if let Some(devices) = self.allowed_devices {
            widening.devices = absolute("allowed_devices", devices)?;
        }
        widening.runtimes.extend(self.allowed_runtimes.into_iter().flatten());
        widening.annotations.extend(self.allowed_annotations.into_iter().flatten());
        if let Some(names) = self.extra_capabilities {
            widening.capabilities = capabilities("extra_capabilities", &names)?;
        }
        if let Some(names) = self.default_cap_drop {
            widening.drop_capabilities = capabilities("default_cap_drop", &names)?;
        }
        widening.no_new_privileges = self.no_new_privileges.unwrap_or(widening.no_new_privileges);
        match self.names.as_deref() {
            None => {}
            Some("plain") => settings.names = Names::Plain,
            Some("scoped") => settings.names = Names::of(&settings.identity),
            Some(word) => return Err(wrong("names", word, "write \"plain\" or \"scoped\"")),
        }
        match self.build.as_deref() {
            None => {}
            Some("classic") => settings.build = Build::Classic,
            Some("off") => settings.build = Build::Off,
            Some("sidecar") => {
                return Err(wrong(
                    "build",
                    "sidecar",
                    "a guard alone starts no BuildKit: give the job one beside this socket, and \
                     write \"classic\" or \"off\" here",
                ));
            }
            Some(word) => return Err(wrong("build", word, "write \"off\" or \"classic\"")),
        }
        self.limits.apply(settings)
    }

    /// Refuses what only looks as if it were done.
    fn implemented(&self) -> Result<(), PolicyError> {
        let asked = [
            ("allowed_subnets", self.allowed_subnets.is_some()),
            ("default_network_pool", self.default_network_pool.is_some()),
            ("publish_address", self.publish_address.is_some()),
            ("buildkit_socket", self.buildkit_socket.is_some()),
            ("attach_ws", self.attach_ws == Some(true)),
        ];
        match asked.into_iter().find(|(_, asked)| *asked) {
            Some((key, _)) => Err(PolicyError::NotImplemented(key)),
            None => Ok(()),
        }
    }
}

fn mapping(entry: MappingEntry) -> Result<Mapping, PolicyError> {
    let clean = entry.job.starts_with('/')
        && entry.job.len() > 1
        && !entry.job[1..].split('/').any(|part| matches!(part, "" | "." | ".."));
    if !clean {
        return Err(wrong("path_map.job", entry.job, "write an absolute, clean path but `/`"));
    }
    // Not a link: it could be turned to another directory later.
    let is_directory = fs::symlink_metadata(&entry.host).is_ok_and(|found| found.is_dir());
    if !entry.host.is_absolute() || !is_directory {
        return Err(wrong("path_map.host", entry.host, "it must be a directory of this host"));
    }
    Ok(Mapping { job: entry.job, host: entry.host, read_only: entry.read_only })
}

fn absolute(key: &str, paths: Vec<String>) -> Result<Vec<String>, PolicyError> {
    match paths.iter().find(|path| !path.starts_with('/')) {
        Some(path) => Err(wrong(key, path, "write an absolute path")),
        None => Ok(paths),
    }
}

fn capabilities(key: &str, names: &[String]) -> Result<Vec<String>, PolicyError> {
    names
        .iter()
        .map(|name| {
            let upper = name.to_ascii_uppercase();
            let plain = upper.strip_prefix("CAP_").unwrap_or(&upper);
            let good = !plain.is_empty()
                && plain != "ALL"
                && plain.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            good.then(|| plain.to_owned())
                .ok_or_else(|| wrong(key, name, "write the names of single capabilities"))
        })
        .collect()
}

impl LimitsEntry {
    fn apply(self, settings: &mut GuardSettings) -> Result<(), PolicyError> {
        let limits = &mut settings.limits;
        for (key, size, place) in [
            ("limits.memory", self.memory, &mut limits.memory),
            ("limits.shm", self.shm, &mut limits.shm),
            ("limits.tmpfs", self.tmpfs, &mut limits.tmpfs),
        ] {
            if let Some(size) = size {
                *place = size.bytes(key)?;
            }
        }
        if let Some(size) = self.upload_max {
            limits.upload = size.bytes("limits.upload_max")?.unsigned_abs();
        }
        if let Some(pids) = self.pids {
            if pids < 1 {
                return Err(wrong("limits.pids", pids, "write 1 or more"));
            }
            limits.pids = pids;
        }
        if let Some(cpus) = self.cpus {
            if !(0.01..=4096.0).contains(&cpus) {
                return Err(wrong("limits.cpus", cpus, "write a number of processors"));
            }
            #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
            let nano = (cpus * 1e9) as i64;
            limits.nano_cpus = nano;
        }
        for (count, place) in [
            (self.containers, &mut limits.containers),
            (self.networks, &mut limits.networks),
            (self.volumes, &mut limits.volumes),
            (self.images, &mut limits.images),
        ] {
            *place = count.unwrap_or(*place);
        }
        match self.connections {
            Some(0) => return Err(wrong("limits.connections", 0, "write 1 or more")),
            count => limits.connections = count.unwrap_or(limits.connections),
        }
        Ok(())
    }
}

impl Size {
    fn bytes(&self, key: &str) -> Result<i64, PolicyError> {
        let (found, shown) = match self {
            Self::Number(number) => (Some(*number), number.to_string()),
            Self::Text(text) => (bytes(text), text.clone()),
        };
        // The engine creates no container with less.
        found
            .filter(|bytes| *bytes >= 1 << 20)
            .ok_or_else(|| wrong(key, shown, "write bytes, 1 MiB or more: 268435456 or \"256m\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> Result<GuardSettings, PolicyError> {
        let mut settings = GuardSettings::new("1", ("l".into(), "1".into()), "n", Path::new("/x"));
        PolicyFile::parse(text)?.apply(&mut settings)?;
        Ok(settings)
    }

    #[test]
    fn g_16_the_conformance_profile_is_read_in_both_forms() {
        let toml = r#"
            label_namespace = "org.acme"
            reserved_name_prefixes = ["runner-"]
            path_map = [{ job = "/builds/acme/app", host = "/tmp" }]
            socket_paths = ["/var/run/docker.sock", "/run/docker.sock"]
            shared_images = ["base/*"]
            registries = ["127.0.0.1:5000"]
            build = "classic"
            extra_capabilities = ["cap_sys_ptrace"]
            attach_ws = false
            [limits]
            memory = "1g"
            pids = 1024
            cpus = 2
            containers = 40
            networks = 10
        "#;
        let json = r#"{ "label_namespace": "org.acme", "reserved_name_prefixes": ["runner-"],
            "path_map": [{ "job": "/builds/acme/app", "host": "/tmp" }],
            "socket_paths": ["/var/run/docker.sock", "/run/docker.sock"],
            "shared_images": ["base/*"], "registries": ["127.0.0.1:5000"], "build": "classic",
            "extra_capabilities": ["cap_sys_ptrace"], "attach_ws": false,
            "limits": { "memory": 1073741824, "pids": 1024, "cpus": 2, "containers": 40,
            "networks": 10 } }"#;
        for text in [toml, json] {
            let settings = applied(text).unwrap();
            assert_eq!(settings.reserved_labels, ["org.acme."]);
            assert_eq!(settings.limits.memory, 1 << 30);
            assert_eq!(settings.limits.nano_cpus, 2_000_000_000);
            assert_eq!(settings.widening.capabilities, ["SYS_PTRACE"]);
            assert_eq!(settings.widening.drop_capabilities, ["MKNOD"]);
            assert_eq!(settings.workspace[0].job, "/builds/acme/app");
            assert_eq!(settings.images.registries, ["127.0.0.1:5000"]);
        }
    }

    #[test]
    fn g_16_what_is_unknown_wrong_or_not_done_is_refused_by_name() {
        for (text, said) in [
            ("allowed_device = []", "allowed_device"),
            ("[limits]\nmemory_max = 1", "memory_max"),
            ("{\"limits\": {\"execs\": 1}}", "execs"),
            ("shared_images = \"x\"", "shared_images"),
            ("default_network_pool = \"172.30.0.0/16\"", "default_network_pool is not implemented"),
            ("allowed_subnets = []", "allowed_subnets is not implemented"),
            ("publish_address = \"::1\"", "publish_address is not implemented"),
            ("attach_ws = true", "attach_ws is not implemented"),
            ("build = \"sidecar\"", "starts no BuildKit"),
            ("buildkit_socket = \"/run/b.sock\"", "buildkit_socket is not implemented"),
            ("build = \"kit\"", "build = \"kit\" cannot be used: write"),
            ("names = \"both\"", "names = \"both\""),
            ("label_namespace = \"\"", "label_namespace"),
            ("path_map = [{ job = \"/\", host = \"/tmp\" }]", "path_map.job"),
            ("path_map = [{ job = \"/b\", host = \"/no/such\" }]", "path_map.host"),
            ("path_map = [{ job = \"/b\", volume = \"v\" }]", "volume"),
            ("registries = [\"https://x/\"]", "registries"),
            ("extra_capabilities = [\"ALL\"]", "extra_capabilities"),
            ("socket_paths = [\"docker.sock\"]", "socket_paths"),
            ("[limits]\nmemory = \"1x\"", "limits.memory"),
            ("[limits]\nmemory = 5", "limits.memory"),
            ("[limits]\ncpus = 0", "limits.cpus"),
            ("shared_images = [\"[\"]", "shared_images"),
            ("{} {}", "trailing"),
            ("a = ", "."),
        ] {
            let error = applied(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}

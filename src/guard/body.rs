//! Bodies of requests, judged field by field and built anew (sections 6, 8 and 9 of the
//! contract). Pure: what needs the engine or the disk is asked for in [`Needs`].

mod host;
mod network;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde_json::{Map, Value};

pub(super) use host::bytes;
pub use host::container_update;
pub use network::{endpoint, network_connect, network_create, network_disconnect, volume_create};

use super::{
    Refusal,
    fields::{self, Rule, apply, flag, object, text, whole},
    image,
    ownership::Owned,
    paths::Place,
    settings::GuardSettings,
};

/// What the guard knows of the engine it stands before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ground {
    /// The version that is spoken to it, and the highest for clients.
    pub version: (u32, u32),
    /// The default network's id.
    pub network_id: String,
    /// Its name.
    pub network: String,
    /// Its gateway, where ports are published; empty when it has none.
    pub gateway: String,
    /// How much CPU there is, in billionths.
    pub nano_cpus: i64,
    /// The default runtime's name.
    pub runtime: String,
}

/// All that a decision is made from.
#[derive(Debug, Clone)]
pub struct World {
    /// The settings.
    pub settings: Arc<GuardSettings>,
    /// The engine.
    pub ground: Arc<Ground>,
    /// What the job owns.
    pub owned: Arc<Owned>,
}

/// What must be done before a request can be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Volumes that must exist and be the job's.
    pub volumes: Vec<String>,
    /// Sources to pin; `@bind-N@` in the body stands for the N-th.
    pub binds: Vec<BindNeed>,
    /// Containers whose pins the new one takes over.
    pub volumes_from: Vec<String>,
    /// Images in `Mounts`, by index there.
    pub image_mounts: Vec<(usize, String)>,
    /// Subnets that must not overlap the host's routes.
    pub subnets: Vec<(std::net::Ipv4Addr, u8)>,
    /// Whether all exposed ports are to be published.
    pub publish_all: bool,
}

/// A source to pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindNeed {
    /// As the job said.
    pub job: String,
    /// Where it leads.
    pub place: Place,
    /// Whether missing directories are made.
    pub make: bool,
    /// Whether it is from `Mounts`.
    pub is_mount: bool,
}

/// A decision in the making.
#[derive(Debug)]
pub struct Judging {
    /// What it is made from.
    pub world: World,
    /// What it needs.
    pub needs: Needs,
    /// The network that a container is going to be in.
    network: Network,
    private_ipc: bool,
    added_capabilities: Vec<String>,
    links: Vec<String>,
}

/// The network of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Network {
    None,
    /// By full id.
    Own(String),
    /// In another container's.
    Container(String),
}

impl Judging {
    /// Begins one.
    #[must_use]
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            needs: Needs::default(),
            network: Network::None,
            private_ipc: true,
            added_capabilities: Vec::new(),
            links: Vec::new(),
        }
    }

    fn settings(&self) -> &GuardSettings {
        &self.world.settings
    }
}

/// A body that was judged, and what it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// What is sent on.
    pub body: Map<String, Value>,
    /// What must be done first.
    pub needs: Needs,
}

pub(super) type Table = &'static [(&'static str, Rule<Judging>)];

const ANY: Rule<Judging> = Rule::Whole(i64::MIN, i64::MAX);

/// A container's configuration (6.1), which `POST /commit` takes as well.
const CONFIG: Table = &[
    ("Cmd", Rule::Judge(command)),
    ("Entrypoint", Rule::Judge(command)),
    ("Env", Rule::Texts),
    ("User", Rule::Text),
    ("WorkingDir", Rule::Text),
    ("Hostname", Rule::Text),
    ("Domainname", Rule::Text),
    ("Tty", Rule::Flag),
    ("OpenStdin", Rule::Flag),
    ("StdinOnce", Rule::Flag),
    ("AttachStdin", Rule::Flag),
    ("AttachStdout", Rule::Flag),
    ("AttachStderr", Rule::Flag),
    ("ExposedPorts", Rule::Judge(exposed)),
    ("Healthcheck", Rule::Table(HEALTHCHECK)),
    ("StopSignal", Rule::Text),
    ("StopTimeout", Rule::Whole(0, 86400)),
    ("Shell", Rule::Texts),
    ("ArgsEscaped", Rule::Flag),
    ("NetworkDisabled", Rule::Flag),
    ("Volumes", Rule::Judge(anonymous_volumes)),
    ("Labels", Rule::Judge(labels)),
    ("MacAddress", Rule::Judge(mac_address)),
    ("OnBuild", Rule::Empty("G-37")),
    ("Image", Rule::Text),
];

const HEALTHCHECK: Table = &[
    ("Test", Rule::Texts),
    ("Interval", ANY),
    ("Timeout", ANY),
    ("StartPeriod", ANY),
    ("StartInterval", ANY),
    ("Retries", ANY),
];

const NETWORKING: Table = &[("EndpointsConfig", Rule::Judge(network::endpoints))];

const EXEC: Table = &[
    ("Cmd", Rule::Judge(command)),
    ("Env", Rule::Texts),
    ("User", Rule::Text),
    ("WorkingDir", Rule::Text),
    ("Tty", Rule::Flag),
    ("AttachStdin", Rule::Flag),
    ("AttachStdout", Rule::Flag),
    ("AttachStderr", Rule::Flag),
    ("DetachKeys", Rule::Text),
    ("ConsoleSize", Rule::Judge(console_size)),
    ("Detach", Rule::Drop),
    ("Privileged", Rule::Empty("G-1")),
];

const EXEC_START: Table =
    &[("Detach", Rule::Flag), ("Tty", Rule::Flag), ("ConsoleSize", Rule::Judge(console_size))];

/// `POST /containers/create`. `Image` is as the client spelled it, to be resolved.
///
/// # Errors
/// When something in it is refused.
pub fn container_create(body: &Map<String, Value>, world: &World) -> Result<Judged, Refusal> {
    let mut judging = Judging::new(world);
    let settings = &world.settings;
    if world.owned.container_count() >= settings.limits.containers {
        return Err(limit("containers", settings.limits.containers));
    }
    for (name, value) in body {
        let known = CONFIG.iter().any(|(known, _)| known == name)
            || ["HostConfig", "NetworkingConfig"].contains(&&**name);
        if !known && !super::json::is_empty(value) {
            return Err(Refusal::denied(&fields::join("", name), "G-37"));
        }
    }
    let empty = Map::new();
    let part = |name: &str| match body.get(name) {
        None | Some(Value::Null) => Ok(&empty),
        Some(value) => object(value, name),
    };
    let host = host::host_config(part("HostConfig")?, &mut judging)?;
    let mut networking = part("NetworkingConfig")?.clone();
    // Judged even when absent: it carries links and the default network.
    networking.entry("EndpointsConfig").or_insert(Value::Null);
    let networking = apply(NETWORKING, &networking, "NetworkingConfig", &mut judging)?;
    let config: Map<String, Value> = body
        .iter()
        .filter(|(name, _)| CONFIG.iter().any(|(known, _)| known == name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut out = apply(CONFIG, &config, "", &mut judging)?;
    out.insert("HostConfig".to_owned(), Value::Object(host));
    if !networking.is_empty() {
        out.insert("NetworkingConfig".to_owned(), Value::Object(networking));
    }
    Ok(Judged { body: out, needs: judging.needs })
}

/// `POST /commit`.
///
/// # Errors
/// When something in it is refused.
pub fn commit(body: &Map<String, Value>, world: &World) -> Result<Map<String, Value>, Refusal> {
    let mut judging = Judging::new(world);
    let mut out = apply(CONFIG, body, "", &mut judging)?;
    // The image is the container's.
    out.remove("Image");
    if let Some(Value::Object(labels)) = out.get_mut("Labels") {
        let own = world.settings.image_labels();
        labels.retain(|key, _| !world.settings.labels.contains_key(key) || own.contains_key(key));
    }
    Ok(out)
}

/// `POST /containers/{id}/exec`.
///
/// # Errors
/// When something in it is refused.
pub fn exec_create(
    body: &Map<String, Value>,
    world: &World,
) -> Result<Map<String, Value>, Refusal> {
    apply(EXEC, body, "", &mut Judging::new(world))
}

/// `POST /exec/{id}/start`.
///
/// # Errors
/// When something in it is refused.
pub fn exec_start(body: &Map<String, Value>, world: &World) -> Result<Map<String, Value>, Refusal> {
    apply(EXEC_START, body, "", &mut Judging::new(world))
}

/// A limit that was reached.
pub(super) fn limit(what: &str, most: usize) -> Refusal {
    Refusal::because(&format!("this job may have {most} {what} at a time"), "G-81")
}

/// Whether a job may give this name (G-48).
///
/// # Errors
/// When it may not.
pub fn name(name: &str, settings: &GuardSettings) -> Result<(), Refusal> {
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
    let taken = image::is_id_like(&name.to_ascii_lowercase())
        || ["bridge", "host", "none", "default"].contains(&name)
        || name == settings.network
        || settings.names.are_in(name)
        || settings.reserved_names.iter().any(|prefix| name.starts_with(prefix));
    if taken {
        return Err(Refusal::denied(&format!("the name {name}"), "G-48"));
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "what a table's functions give")]
fn some(text: impl Into<String>) -> Option<Value> {
    Some(Value::String(text.into()))
}

/// `Cmd` and `Entrypoint`: an array, or one string.
fn command(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    Ok(match value {
        Value::Null => None,
        Value::String(_) => Some(Value::from(vec![text(value, path)?.to_owned()])),
        value => {
            let words = fields::texts(value, path)?;
            Some(Value::from(words.into_iter().map(str::to_owned).collect::<Vec<_>>()))
        }
    })
}

fn exposed(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let mut out = Map::new();
    for port in object(value, path)?.keys() {
        host::port(port, path)?;
        out.insert(port.clone(), Value::Object(Map::new()));
    }
    Ok(Some(Value::Object(out)))
}

fn anonymous_volumes(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let keys = object(value, path)?;
    let most = judging.settings().limits.volumes;
    if judging.world.owned.volume_count() + keys.len() > most {
        return Err(limit("volumes", most));
    }
    let mut out = Map::new();
    for key in keys.keys() {
        // A colon would make it a bind.
        if !key.starts_with('/') || key.contains([':', '\0']) {
            return Err(Refusal::malformed(&format!("{path} must have absolute paths"), "G-52"));
        }
        out.insert(key.clone(), Value::Object(Map::new()));
    }
    Ok(Some(Value::Object(out)))
}

/// Labels: none of the reserved ones, and the guard's own written last (G-46).
fn labels(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let mut out = Map::new();
    if !value.is_null() {
        for (key, value) in object(value, path)? {
            if judging.settings().is_reserved_label(key) {
                return Err(Refusal::denied(&format!("the label {key}"), "G-46"));
            }
            out.insert(key.clone(), Value::String(text(value, path)?.to_owned()));
        }
    }
    for (key, value) in judging.settings().all_labels() {
        out.insert(key, Value::String(value));
    }
    Ok(Some(Value::Object(out)))
}

fn mac_address(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let address = text(value, path)?;
    if address.is_empty() {
        return Ok(None);
    }
    if !matches!(judging.network, Network::Own(_)) {
        return Err(Refusal::denied(path, "G-1"));
    }
    network::mac(address, path)
}

fn console_size(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let size = fields::items(value, path)?;
    if size.is_empty() {
        return Ok(None);
    }
    let numbers = size.iter().map(|n| whole(n, path)).collect::<Result<Vec<_>, _>>()?;
    if numbers.len() != 2 || numbers.iter().any(|n| !(0..=65535).contains(n)) {
        return Err(Refusal::malformed(&format!("{path} must be height and width"), "G-38"));
    }
    Ok(Some(Value::from(numbers)))
}

/// For fields that are empty in all bodies but for `true`.
fn only_false(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if flag(value, path)? {
        return Err(Refusal::because(
            &format!(
                "{path} is not available on this runner; \
                 use a service container or the job's own daemon (docker:dind)"
            ),
            "G-1",
        ));
    }
    Ok(None)
}

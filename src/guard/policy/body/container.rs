//! A container's configuration, of a new container or of a commit, and what is executed in it.

use serde_json::{Map, Value};

use crate::guard::{parse::json, policy::context::PolicyContext, refusal::Refusal};

use super::{
    fields::{self, Rule, apply, object, text},
    host::{ports, table::host_config},
    judging::{ANY, ContainerNetwork, Judging, Table},
    needs::Judged,
    network::{endpoints, mac},
    values::{command, console_size, labels},
};

/// A container's configuration, which `POST /commit` takes as well.
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

const NETWORKING: Table = &[("EndpointsConfig", Rule::Judge(endpoints))];

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
pub fn container_create(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Judged, Refusal> {
    let mut judging = Judging::new(context);
    let settings = &context.settings;
    if context.owned.containers.count() >= settings.limits.containers {
        return Err(Refusal::limit("containers", settings.limits.containers));
    }
    for (name, value) in body {
        let known = CONFIG.iter().any(|(known, _)| known == name)
            || ["HostConfig", "NetworkingConfig"].contains(&&**name);
        if !known && !json::is_empty(value) {
            return Err(Refusal::denied(&fields::join("", name), "G-37"));
        }
    }
    let empty = Map::new();
    let part = |name: &str| match body.get(name) {
        None | Some(Value::Null) => Ok(&empty),
        Some(value) => object(value, name),
    };
    let host = host_config(part("HostConfig")?, &mut judging)?;
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
pub fn commit(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Map<String, Value>, Refusal> {
    let mut judging = Judging::new(context);
    let mut out = apply(CONFIG, body, "", &mut judging)?;
    // The image is the container's.
    out.remove("Image");
    if let Some(Value::Object(labels)) = out.get_mut("Labels") {
        let own = context.settings.image_labels();
        labels.retain(|key, _| !context.settings.labels.contains_key(key) || own.contains_key(key));
    }
    Ok(out)
}

/// `POST /containers/{id}/exec`.
///
/// # Errors
/// When something in it is refused.
pub fn exec_create(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Map<String, Value>, Refusal> {
    apply(EXEC, body, "", &mut Judging::new(context))
}

/// `POST /exec/{id}/start`.
///
/// # Errors
/// When something in it is refused.
pub fn exec_start(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Map<String, Value>, Refusal> {
    apply(EXEC_START, body, "", &mut Judging::new(context))
}

fn exposed(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let mut out = Map::new();
    for port in object(value, path)?.keys() {
        ports::port(port, path)?;
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
    if judging.context.owned.volumes.count() + keys.len() > most {
        return Err(Refusal::limit("volumes", most));
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

fn mac_address(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let address = text(value, path)?;
    if address.is_empty() {
        return Ok(None);
    }
    if !matches!(judging.network, ContainerNetwork::Own(_)) {
        return Err(Refusal::denied(path, "G-1"));
    }
    mac(address, path)
}

//! What a container may do beyond its own files: namespaces, capabilities, devices.

use serde_json::{Map, Value, json};

use crate::guard::{
    policy::body::{
        fields::{items, join, object, text, texts},
        judging::{ContainerNetwork, Judging},
        values::{some, strings},
    },
    refusal::Refusal,
};

/// The engine's default capabilities.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn of_container(judging: &Judging, mode: &str, path: &str) -> Result<Option<Value>, Refusal> {
    match mode.strip_prefix("container:") {
        Some(reference) => {
            let id = judging.context.owned.containers.find(reference)?.0;
            Ok(some(format!("container:{id}")))
        }
        None => Err(Refusal::denied(&format!("{path}={mode}"), "G-1")),
    }
}

pub(super) fn pid_mode(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" => Ok(None),
        mode => of_container(judging, mode, path),
    }
}

pub(super) fn ipc_mode(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" => Ok(some("private")),
        mode @ ("none" | "private" | "shareable") => Ok(some(mode)),
        mode => of_container(judging, mode, path),
    }
}

pub(super) fn isolation(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "default" => Ok(None),
        word => Err(Refusal::denied(&format!("{path}={word}"), "G-1")),
    }
}

pub(super) fn cgroup_namespace(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "private" => Ok(some("private")),
        word => Err(Refusal::denied(&format!("{path}={word}"), "G-1")),
    }
}

pub(super) fn cgroup_parent(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if !text(value, path)?.is_empty() {
        return Err(Refusal::denied(path, "G-85"));
    }
    Ok(judging.settings().cgroup_parent.clone().map(Value::String))
}

/// Names of capabilities, upper case and without their prefix.
pub(super) fn capabilities(value: &Value, path: &str) -> Result<Vec<String>, Refusal> {
    let plain = |name: &str| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
    };
    Ok(texts(value, path)?.into_iter().map(plain).collect())
}

pub(super) fn cap_add(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let added = capabilities(value, path)?;
    let allowed = &judging.settings().widening.capabilities;
    for name in &added {
        if !DEFAULT_CAPABILITIES.contains(&&**name) && !allowed.contains(name) {
            return Err(Refusal::denied(&format!("{path}={name}"), "G-1"));
        }
    }
    Ok(strings(added))
}

pub(super) fn cap_drop(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut dropped = capabilities(value, path)?;
    for name in &judging.settings().widening.drop_capabilities {
        if !judging.added_capabilities.contains(name) && !dropped.contains(name) {
            dropped.push(name.clone());
        }
    }
    for name in &dropped {
        if !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
            return Err(Refusal::malformed(&format!("{path}: {name} is no capability"), "G-38"));
        }
    }
    Ok(strings(dropped))
}

pub(super) fn security_opt(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut wanted = judging.settings().widening.no_new_privileges;
    for option in texts(value, path)? {
        match option {
            "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => {
                wanted = true;
            }
            option => return Err(Refusal::denied(&format!("{path}={option}"), "G-1")),
        }
    }
    Ok(wanted.then(|| json!(["no-new-privileges:true"])))
}

pub(super) fn devices(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for device in items(value, path)? {
        let device = object(device, path)?;
        let of = |name: &str| text(device.get(name).unwrap_or(&Value::Null), &join(path, name));
        let host = of("PathOnHost")?;
        if !judging.settings().widening.devices.iter().any(|allowed| allowed == host)
            || device.keys().any(|key| {
                !["PathOnHost", "PathInContainer", "CgroupPermissions"].contains(&&**key)
            })
        {
            return Err(Refusal::denied(&format!("{path} {host}"), "G-1"));
        }
        let permissions = of("CgroupPermissions")?;
        if !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(Refusal::malformed(&format!("{path}.CgroupPermissions"), "G-38"));
        }
        out.push(json!({
            "PathOnHost": host,
            "PathInContainer": of("PathInContainer")?,
            "CgroupPermissions": permissions,
        }));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

pub(super) fn sysctls(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let own_network = !matches!(judging.network, ContainerNetwork::Container(_));
    let mut out = Map::new();
    for (name, value) in object(value, path)? {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !name.contains("..");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p))
            || name == "kernel.sem";
        if !plain || !(name.starts_with("net.") && own_network || ipc && judging.private_ipc) {
            return Err(Refusal::denied(&format!("{path}.{name}"), "G-1"));
        }
        out.insert(name.clone(), Value::String(text(value, path)?.to_owned()));
    }
    Ok(Some(Value::Object(out)))
}

pub(super) fn runtime(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let name = text(value, path)?;
    if name.is_empty() {
        return Ok(None);
    }
    let allowed = &judging.settings().widening.runtimes;
    if name == judging.context.facts.runtime || allowed.iter().any(|allowed| allowed == name) {
        return Ok(some(name));
    }
    Err(Refusal::denied(&format!("{path}={name}"), "G-1"))
}

pub(super) fn annotations(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let mut out = Map::new();
    for (key, value) in object(value, path)? {
        if !judging.settings().widening.annotations.contains(key) {
            return Err(Refusal::denied(&format!("{path}.{key}"), "G-1"));
        }
        out.insert(key.clone(), Value::String(text(value, path)?.to_owned()));
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

//! Answers of the engine without what is not the job's (G-6, G-58). Pure.

use regex::RegexBuilder;
use serde_json::{Map, Value, json};

use crate::{
    base::glob::{self, Wildcards},
    guard::{ids::is_id, image::Reference},
};

use super::{context::PolicyContext, forward::NameFilter};

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn pick(value: &Value, names: &[&str]) -> Map<String, Value> {
    let found =
        names.iter().filter_map(|name| Some(((*name).to_owned(), value.get(*name)?.clone())));
    found.collect()
}

/// `GET /version`.
#[must_use]
pub(crate) fn version(value: &Value, context: &PolicyContext) -> Value {
    let mut out = pick(
        value,
        &[
            "Version",
            "Os",
            "Arch",
            "KernelVersion",
            "GoVersion",
            "GitCommit",
            "BuildTime",
            "Platform",
        ],
    );
    let (major, minor) = context.facts.version;
    out.insert("ApiVersion".to_owned(), json!(format!("{major}.{minor}")));
    out.insert("MinAPIVersion".to_owned(), json!("1.24"));
    out.insert(
        "Components".to_owned(),
        json!([{
            "Name": "Engine",
            "Version": text(value, "Version"),
            "Details": {
                "ApiVersion": format!("{major}.{minor}"),
                "MinAPIVersion": "1.24",
                "Arch": text(value, "Arch"),
                "Os": text(value, "Os"),
                "BuildTime": text(value, "BuildTime"),
                "Experimental": "false",
                "GitCommit": text(value, "GitCommit"),
                "GoVersion": text(value, "GoVersion"),
                "KernelVersion": text(value, "KernelVersion"),
            },
        }]),
    );
    Value::Object(out)
}

/// `GET /info`: counts are the job's; what describes the host stays out.
#[must_use]
pub(crate) fn info(value: &Value, context: &PolicyContext) -> Value {
    let mut out = pick(
        value,
        &[
            "OSType",
            "Architecture",
            "ServerVersion",
            "OperatingSystem",
            "OSVersion",
            "KernelVersion",
            "Driver",
            "CgroupDriver",
            "CgroupVersion",
            "IndexServerAddress",
            "SecurityOptions",
            "MemoryLimit",
            "SwapLimit",
            "KernelMemory",
            "KernelMemoryTCP",
            "CpuCfsPeriod",
            "CpuCfsQuota",
            "CPUShares",
            "CPUSet",
            "PidsLimit",
            "IPv4Forwarding",
            "BridgeNfIptables",
            "BridgeNfIp6tables",
            "OomKillDisable",
            "LoggingDriver",
            "DefaultRuntime",
            "InitBinary",
            "ContainerdCommit",
            "RuncCommit",
            "InitCommit",
            "SystemTime",
        ],
    );
    let limits = &context.settings.limits;
    let most_memory = limits.total_memory.unwrap_or(limits.memory);
    let memory = value.get("MemTotal").and_then(Value::as_i64).unwrap_or(most_memory);
    let cpus = limits.total_nano_cpus.unwrap_or(limits.nano_cpus);
    let cpus = cpus.min(context.facts.nano_cpus).max(1).cast_unsigned();
    let own = context.owned.containers.count();
    let fixed = json!({
        "Containers": own, "ContainersRunning": own, "ContainersPaused": 0, "ContainersStopped": 0,
        "Images": context.owned.images.count(),
        "NCPU": cpus.div_ceil(1_000_000_000),
        "MemTotal": memory.min(most_memory),
        "Debug": false, "ExperimentalBuild": false, "LiveRestoreEnabled": false,
        "ID": "", "Name": "", "DockerRootDir": "", "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
        "Labels": [], "Warnings": null, "DriverStatus": [], "GenericResources": null,
        "NFd": 0, "NGoroutines": 0, "NEventsListener": 0,
        "Runtimes": { context.facts.runtime.clone(): { "path": "" } },
        "Plugins": {
            "Volume": ["local"], "Network": ["bridge", "null"], "Authorization": null,
            "Log": ["json-file", "local"],
        },
        "RegistryConfig": {
            "InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": [],
            "AllowNondistributableArtifactsCIDRs": [],
            "AllowNondistributableArtifactsHostnames": [],
        },
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false,
            "Error": "", "RemoteManagers": null,
        },
        "Isolation": "",
    });
    if let Value::Object(fixed) = fixed {
        out.extend(fixed);
    }
    Value::Object(out)
}

/// The job's name of a network's id or name.
fn network_name(name: &str, context: &PolicyContext) -> String {
    if name == context.facts.network || name == context.facts.network_id {
        return "bridge".to_owned();
    }
    context.owned.networks.find(name).map_or_else(|_| name.to_owned(), |(_, name)| name.to_owned())
}

fn networks_of(settings: &mut Value, context: &PolicyContext) {
    let Some(Value::Object(networks)) = settings.get_mut("Networks") else { return };
    *networks = std::mem::take(networks)
        .into_iter()
        .map(|(name, value)| (network_name(&name, context), value))
        .collect();
}

/// The job's name of what a container mounts; empty where there is none.
fn source_of(source: &str, id: &str, context: &PolicyContext) -> String {
    context
        .owned
        .containers
        .find(id)
        .ok()
        .and_then(|(_, c)| c.binds.iter().find(|bind| bind.source == source))
        .map(|bind| bind.job.clone())
        .unwrap_or_default()
}

fn mounts_of(value: &mut Value, id: &str, context: &PolicyContext) {
    let Some(Value::Array(mounts)) = value.get_mut("Mounts") else { return };
    for mount in mounts {
        let source = source_of(text(mount, "Source"), id, context);
        if let Some(Value::String(shown)) = mount.get_mut("Source") {
            *shown = source;
        }
    }
}

/// `GET /containers/{id}/json`.
#[must_use]
pub(crate) fn container(mut value: Value, context: &PolicyContext) -> Value {
    let id = text(&value, "Id").to_owned();
    let Ok((_, own)) = context.owned.containers.find(&id) else { return json!({}) };
    let (image, is_self) = (own.image.clone(), own.is_self);
    mounts_of(&mut value, &id, context);
    for name in ["ResolvConfPath", "HostnamePath", "HostsPath", "LogPath"] {
        value[name] = json!("");
    }
    value["GraphDriver"] = json!({ "Name": value["GraphDriver"]["Name"], "Data": null });
    if !image.is_empty() {
        value["Config"]["Image"] = json!(image);
    }
    networks_of(&mut value["NetworkSettings"], context);
    if let Some(settings) = value["NetworkSettings"].as_object_mut() {
        settings.remove("SandboxKey");
    }
    if let Some(execs) = value.get_mut("ExecIDs").and_then(Value::as_array_mut) {
        execs.retain(|id| context.owned.containers.exec(id.as_str().unwrap_or_default()).is_ok());
    }
    let Some(host) = value["HostConfig"].as_object_mut() else { return value };
    host.insert("CgroupParent".to_owned(), json!(""));
    host.insert("ContainerIDFile".to_owned(), json!(""));
    if is_self {
        // The job does not see what the runner mounts into its container.
        for name in ["Binds", "Mounts", "Devices", "VolumesFrom"] {
            host.remove(name);
        }
    }
    if let Some(Value::String(mode)) = host.get_mut("NetworkMode") {
        *mode = network_name(mode, context);
    }
    if let Some(Value::Array(binds)) = host.get_mut("Binds") {
        for bind in binds {
            let whole = bind.as_str().unwrap_or_default();
            if let Some((source, rest)) = whole.split_once(':').filter(|(s, _)| s.starts_with('/'))
            {
                *bind = json!(format!("{}:{rest}", source_of(source, &id, context)));
            }
        }
    }
    if let Some(Value::Array(mounts)) = host.get_mut("Mounts") {
        for mount in mounts.iter_mut().filter(|mount| mount["Type"] == "bind") {
            mount["Source"] = json!(source_of(text(mount, "Source"), &id, context));
        }
    }
    value
}

/// `GET /containers/json`.
#[must_use]
pub(crate) fn containers(value: Value, context: &PolicyContext) -> Value {
    let Value::Array(list) = value else { return json!([]) };
    let own = list.into_iter().filter_map(|mut entry| {
        let id = text(&entry, "Id").to_owned();
        let (_, container) =
            context.owned.containers.find(&id).ok().filter(|(known, _)| *known == id)?;
        if !container.image.is_empty() {
            entry["Image"] = json!(container.image);
        }
        mounts_of(&mut entry, &id, context);
        networks_of(&mut entry["NetworkSettings"], context);
        if let Some(Value::String(mode)) = entry["HostConfig"].get_mut("NetworkMode") {
            *mode = network_name(mode, context);
        }
        Some(entry)
    });
    Value::Array(own.collect())
}

/// Whether the job sees a tag that the engine lists, and the image `id` by it.
fn sees_tag(tag: &str, id: &str, context: &PolicyContext) -> bool {
    Reference::parse(tag).is_some_and(|reference| {
        let own = context.owned.images.tag(&reference.canonical());
        context.settings.images.shares(&reference) || own.is_some_and(|own| own.id == id)
    })
}

/// An image as the job sees it; `None` when it does not (G-60).
#[must_use]
pub(crate) fn image(mut value: Value, context: &PolicyContext) -> Option<Value> {
    let id = text(&value, "Id").to_owned();
    let own = context.owned.images.contains(&id);
    let mut repositories = Vec::new();
    let mut visible = own;
    if let Some(Value::Array(tags)) = value.get_mut("RepoTags") {
        tags.retain(|tag| sees_tag(tag.as_str().unwrap_or_default(), &id, context));
        // On the engine it may have the same under two names for a moment.
        tags.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        tags.dedup();
        visible |= !tags.is_empty();
        repositories = tags
            .iter()
            .filter_map(|tag| Some(Reference::parse(tag.as_str()?)?.repository()))
            .collect();
    }
    if let Some(Value::Array(digests)) = value.get_mut("RepoDigests") {
        digests.retain(|digest| {
            Reference::parse(digest.as_str().unwrap_or_default())
                .is_some_and(|digest| repositories.contains(&digest.repository()))
        });
        for digest in context.owned.images.digests(&id).map(|digest| json!(digest.short())) {
            if !digests.contains(&digest) {
                digests.push(digest);
            }
        }
    }
    if value.get("GraphDriver").is_some() {
        value["GraphDriver"] = json!({ "Name": value["GraphDriver"]["Name"], "Data": null });
    }
    if let Some(Value::String(parent)) = value.get_mut("Parent")
        && !context.owned.images.contains(parent)
    {
        parent.clear();
    }
    if let Some(Value::Number(_)) = value.get("Containers") {
        value["Containers"] = json!(-1);
    }
    visible.then_some(value)
}

/// `GET /images/json`.
#[must_use]
pub(crate) fn images(value: Value, context: &PolicyContext) -> Value {
    let Value::Array(list) = value else { return json!([]) };
    Value::Array(list.into_iter().filter_map(|entry| image(entry, context)).collect())
}

/// `GET /images/{name}/history`: layers of others have no names here.
#[must_use]
pub(crate) fn history(value: Value, context: &PolicyContext) -> Value {
    let Value::Array(mut list) = value else { return json!([]) };
    for (number, layer) in list.iter_mut().enumerate() {
        let id = text(layer, "Id").to_owned();
        if let Some(Value::Array(tags)) = layer.get_mut("Tags") {
            tags.retain(|tag| sees_tag(tag.as_str().unwrap_or_default(), &id, context));
        }
        if number > 0 && is_id(&id) && !context.owned.images.contains(&id) {
            layer["Id"] = json!("<missing>");
        }
    }
    Value::Array(list)
}

/// A network as the job sees it; `None` when it does not.
#[must_use]
pub(crate) fn network(mut value: Value, context: &PolicyContext) -> Option<Value> {
    let id = text(&value, "Id").to_owned();
    if id == context.facts.network_id {
        value["Name"] = json!("bridge");
    } else if !context.owned.networks.iter().any(|(own, _)| own == id)
        && text(&value, "Name") != "none"
    {
        return None;
    }
    without_own_labels(&mut value, context);
    // The guard's own option: compose compares options with its file's, and would recreate the network.
    if let Some(Value::Object(options)) = value.get_mut("Options") {
        options.remove("com.docker.network.bridge.host_binding_ipv4");
    }
    if let Some(Value::Object(containers)) = value.get_mut("Containers") {
        containers
            .retain(|id, _| context.owned.containers.find(id).is_ok_and(|(own, _)| own == id));
    }
    Some(value)
}

/// `GET /networks`.
#[must_use]
pub(crate) fn networks(value: Value, context: &PolicyContext) -> Value {
    let Value::Array(list) = value else { return json!([]) };
    Value::Array(list.into_iter().filter_map(|entry| network(entry, context)).collect())
}

/// Leaves of a list what the filter `name` wants. The engine takes a pattern for the name itself
/// or for a regular expression.
pub(crate) fn named(list: &mut Value, filter: &NameFilter) {
    if !filter.references.is_empty() {
        referenced(list, &filter.references);
    }
    if filter.patterns.is_empty() {
        return;
    }
    let expressions: Vec<_> = filter
        .patterns
        .iter()
        .filter_map(|text| RegexBuilder::new(text).size_limit(1 << 20).build().ok())
        .collect();
    let matches = |name: &str| {
        filter.patterns.iter().any(|pattern| pattern == name)
            || expressions.iter().any(|expression| expression.is_match(name))
    };
    let list = match list {
        Value::Object(volumes) => volumes.get_mut("Volumes"),
        list => Some(list),
    };
    let Some(list) = list.and_then(Value::as_array_mut) else { return };
    list.retain(|entry| match entry.get("Names") {
        Some(names) => names.as_array().is_some_and(|names| {
            let mut names = names.iter().filter_map(Value::as_str);
            names.any(|name| matches(name) || matches(name.trim_start_matches('/')))
        }),
        None => matches(text(entry, "Name")),
    });
    list.truncate(filter.limit.unwrap_or(usize::MAX));
}

/// Leaves of a list of images what has a tag that a filter wants, and of tags only these. The
/// engine compares patterns with names with a tag, and without (distribution/reference:
/// `FamiliarMatch`).
fn referenced(list: &mut Value, patterns: &[String]) {
    let globs: Vec<_> = patterns
        .iter()
        .filter_map(|text| glob::compile(text, Wildcards::WithinComponent).ok())
        .collect();
    let matches = |text: &Value| {
        let Some(mut reference) = text.as_str().and_then(Reference::parse) else { return false };
        let whole = reference.short();
        (reference.tag, reference.digest) = (None, None);
        globs.iter().any(|glob| glob.is_match(&whole) || glob.is_match(reference.short()))
    };
    let Some(list) = list.as_array_mut() else { return };
    list.retain_mut(|image| {
        let mut is_wanted = false;
        for name in ["RepoTags", "RepoDigests"] {
            if let Some(Value::Array(references)) = image.get_mut(name) {
                references.retain(matches);
                is_wanted |= !references.is_empty();
            }
        }
        is_wanted
    });
}

/// Takes the guard's labels out of a network's or volume's: compose takes a label that is not in
/// its file for a change.
fn without_own_labels(value: &mut Value, context: &PolicyContext) {
    if let Some(Value::Object(labels)) = value.get_mut("Labels") {
        for key in context.settings.all_labels().keys() {
            labels.remove(key);
        }
    }
}

/// A volume as the job sees it.
#[must_use]
pub(crate) fn volume(mut value: Value, context: &PolicyContext) -> Value {
    value["Mountpoint"] = json!("");
    without_own_labels(&mut value, context);
    value
}

/// `GET /volumes`.
#[must_use]
pub(crate) fn volumes(mut value: Value, context: &PolicyContext) -> Value {
    let list = match value.get_mut("Volumes").map(Value::take) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let own: Vec<_> = list
        .into_iter()
        .filter(|entry| context.owned.volumes.contains(text(entry, "Name")))
        .map(|entry| volume(entry, context))
        .collect();
    json!({ "Volumes": own, "Warnings": null })
}

/// `GET /system/df`.
#[must_use]
pub(crate) fn usage(mut value: Value, context: &PolicyContext) -> Value {
    let mut take = |name: &str| value.get_mut(name).map_or(Value::Null, Value::take);
    let list = volumes(json!({ "Volumes": take("Volumes") }), context);
    let images = images(take("Images"), context);
    let size = |image: &Value| image.get("Size").and_then(Value::as_i64).unwrap_or(0);
    let layers: i64 = images.as_array().map_or(0, |list| list.iter().map(size).sum());
    json!({
        "LayersSize": layers,
        "Images": images,
        "Containers": containers(take("Containers"), context),
        "Volumes": list["Volumes"],
        "BuildCache": [],
        "BuilderSize": 0,
    })
}

/// One event, when it is the job's.
#[must_use]
pub(crate) fn event(mut value: Value, context: &PolicyContext) -> Option<Value> {
    let id = value["Actor"]["ID"].as_str().unwrap_or_default().to_owned();
    let attributes = &value["Actor"]["Attributes"];
    let marks = context.settings.all_labels();
    let named = text(attributes, "name").to_owned();
    let own = match text(&value, "Type") {
        // The label is on containers before their id is known here.
        "container" => {
            marks.iter().all(|(key, mark)| text(attributes, key) == mark)
                || context.owned.containers.find(&id).is_ok_and(|(own, _)| own == id)
        }
        "network" => context.owned.knows(&id) || context.owned.networks.is_creating(&named),
        "volume" => context.owned.knows(&id) || context.owned.volumes.is_creating(&id),
        "image" => {
            context.owned.images.contains(&id)
                || Reference::parse(&id)
                    .is_some_and(|r| context.owned.images.tag(&r.canonical()).is_some())
        }
        _ => false,
    };
    if !own {
        return None;
    }
    // Of a network's or volume's event, the container must be own as well.
    if let Some(Value::String(container)) = value["Actor"]["Attributes"].get("container")
        && !context.owned.knows(container)
    {
        value["Actor"]["Attributes"]["container"] = json!("");
    }
    if let Ok((_, container)) = context.owned.containers.find(&id)
        && !container.image.is_empty()
    {
        let image = json!(container.image);
        value["Actor"]["Attributes"]["image"] = image.clone();
        value["from"] = image;
    }
    Some(value)
}

/// An error text of the engine, without paths of the host, and ids that are not the job's.
#[must_use]
pub(crate) fn message(text: &str, context: &PolicyContext) -> String {
    let mut out = text.to_owned();
    for (_, container) in context.owned.containers.iter() {
        for bind in &container.binds {
            out = out.replace(&bind.source, &bind.job);
        }
    }
    let private = context.settings.private.display().to_string();
    let hosts = context.settings.workspace.iter().map(|m| m.host.display().to_string());
    for path in hosts.chain([private]) {
        out = out.replace(&path, "<workspace>");
    }
    let mut clean = String::with_capacity(out.len());
    let mut word = String::new();
    for c in out.chars().chain(['\0']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        let is_foreign = word.len() == 64
            && word.bytes().all(|b| b.is_ascii_hexdigit())
            && !context.owned.knows(&word)
            && !context.owned.knows(&format!("sha256:{word}"))
            && context.owned.containers.exec(&word).is_err();
        clean.push_str(if is_foreign { "<id>" } else { &word });
        word.clear();
        if c != '\0' {
            clean.push(c);
        }
    }
    if clean.contains("/var/lib/") || clean.contains("/run/") && !clean.contains("docker.sock") {
        let words = clean.split(' ').map(|word| {
            if word.contains("/var/lib/") || word.contains("/run/") { "<path>" } else { word }
        });
        clean = words.collect::<Vec<_>>().join(" ");
    }
    clean
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::guard::{ownership::Owned, policy::context::EngineFacts, settings::GuardSettings};

    #[test]
    fn a_job_is_shown_what_all_its_containers_may_have_or_else_one_of_them() {
        let shown = |memory: Option<i64>, cpus: Option<i64>| {
            let identity = ("longshore.guard".to_owned(), "1".to_owned());
            let mut settings = GuardSettings::new("1", identity, "net", Path::new("/private"));
            settings.limits.total_memory = memory;
            settings.limits.total_nano_cpus = cpus;
            let facts = EngineFacts { nano_cpus: 8_000_000_000, ..EngineFacts::default() };
            let context = PolicyContext {
                settings: settings.into(),
                facts: facts.into(),
                owned: Arc::new(Owned::default()),
            };
            let info = info(&json!({ "MemTotal": 16_i64 << 30, "NCPU": 8 }), &context);
            (info["MemTotal"].as_i64().unwrap() >> 20, info["NCPU"].as_i64().unwrap())
        };
        assert_eq!(shown(None, None), (2 << 10, 2));
        assert_eq!(shown(Some(6 << 30), Some(3_500_000_000)), (6 << 10, 4));
        // No more than there is.
        assert_eq!(shown(Some(64 << 30), Some(64_000_000_000)), (16 << 10, 8));
    }
}

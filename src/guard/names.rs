//! Scoped names (G-49): containers, volumes and networks are called `PREFIX-NAME` on the engine,
//! so that two jobs can use one name at once; tags of images are `tags`'s. Pure.
//!
//! The rest of the guard knows the job's names only. They are changed here, in the last step
//! before a request is sent (`outward`), and in the first step after an answer has come
//! ([`Names::strip`]). The prefix is in nothing else that the engine says, so it is taken out of
//! every text of an answer, and no field can be forgotten. What looks like an id is no name that a
//! job can give (G-48): anonymous volumes keep theirs, as do containers that the engine named.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::base::ids::hex;

use super::{
    body::World,
    image::is_id_like,
    policy::{Filter, Forward, Sent, Then},
    tags,
};

/// How things are called on the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Names {
    /// As the job calls them.
    Plain,
    /// With this before it, and a hyphen. It must be of the characters of names, and so long and
    /// random that nothing else the job sees has it.
    Scoped(String),
}

impl Names {
    /// Scoped names of what has this label.
    #[must_use]
    pub fn of(identity: &(String, String)) -> Self {
        let digest = Sha256::digest(format!("{}={}", identity.0, identity.1));
        // Not hexadecimal, so that it is nowhere taken for an id.
        Self::Scoped(format!("g{}", hex(&digest[..8])))
    }

    /// What the engine calls it.
    #[must_use]
    pub fn upstream(&self, name: &str) -> String {
        match self {
            Self::Scoped(prefix) if !is_id_like(name) => format!("{prefix}-{name}"),
            _ => name.to_owned(),
        }
    }

    /// Whether the prefix is in this name, which a job may not give: it would come back as another.
    #[must_use]
    pub fn are_in(&self, name: &str) -> bool {
        matches!(self, Self::Scoped(prefix) if name.contains(prefix))
    }

    /// Takes the prefix out of an answer.
    pub fn strip(&self, value: &mut Value) {
        if let Self::Scoped(prefix) = self {
            strip(value, prefix);
        }
    }
}

fn strip(value: &mut Value, prefix: &str) {
    let plain = |text: &str| tags::plain(&text.replace(&format!("{prefix}-"), ""), prefix);
    match value {
        Value::String(text) if text.contains(prefix) => *text = plain(text),
        Value::Array(items) => items.iter_mut().for_each(|item| strip(item, prefix)),
        Value::Object(map) => {
            if map.keys().any(|key| key.contains(prefix)) {
                let renamed = std::mem::take(map).into_iter();
                *map = renamed.map(|(key, value)| (plain(&key), value)).collect();
            }
            map.values_mut().for_each(|value| strip(value, prefix));
        }
        _ => {}
    }
}

/// Puts the engine's names into a request that is otherwise ready.
pub(super) fn outward(forward: &mut Forward, world: &World) {
    let names = &world.settings.names;
    if *names == Names::Plain {
        return;
    }
    let rename = |value: &mut Value| {
        if let Value::String(name) = value {
            *name = names.upstream(name);
        }
    };
    match &forward.then {
        Then::Created { .. } | Then::Renamed(..) => {
            let name = forward.query.iter_mut().find(|(key, _)| key == "name");
            let plain = name.map(|(_, name)| std::mem::replace(name, names.upstream(name)));
            if let (Then::Created { .. }, Sent::Json(body)) = (&forward.then, &mut forward.body) {
                mounts(body, names);
                if let Some(plain) = plain {
                    aliases(body, &plain, world);
                }
            }
        }
        Then::Volume | Then::Network(_) => {
            if let Sent::Json(body) = &mut forward.body
                && let Some(name) = body.get_mut("Name")
            {
                rename(name);
            }
        }
        Then::Tagged(tag) | Then::Made(Some(tag)) => {
            let upstream = world.settings.upstream_tag(tag);
            for (name, value) in &mut forward.query {
                match &**name {
                    "repo" => *value = upstream.repository(),
                    "tag" => *value = upstream.tag.clone().unwrap_or_default(),
                    _ => {}
                }
            }
        }
        Then::VolumeRemoved(name) => forward.path = format!("/volumes/{}", names.upstream(name)),
        Then::Filter(Filter::Volume) => {
            let name = forward.path.strip_prefix("/volumes/").unwrap_or_default();
            forward.path = format!("/volumes/{}", names.upstream(name));
        }
        Then::Filter(Filter::Containers) | Then::Events => filters(forward, world),
        Then::Pass if forward.path.ends_with("/connect") => {
            if let Sent::Json(body) = &mut forward.body {
                let id = body.get("Container").and_then(Value::as_str).unwrap_or_default();
                let network = forward.path.split('/').nth(2).unwrap_or_default();
                if let Ok((_, container)) = world.owned.own_container(id)
                    && has_names(network, world)
                {
                    alias(body.entry("EndpointConfig").or_insert(json!({})), &container.name);
                }
            }
        }
        _ => {}
    }
}

/// Volumes that a container mounts; binds are paths.
fn mounts(body: &mut Map<String, Value>, names: &Names) {
    let Some(host) = body.get_mut("HostConfig") else { return };
    for bind in host.get_mut("Binds").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(text) = bind.as_str().filter(|text| !text.starts_with('/')) {
            *bind = json!(names.upstream_of_bind(text));
        }
    }
    for mount in host.get_mut("Mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if mount["Type"] == "volume"
            && let Some(Value::String(source)) = mount.get_mut("Source")
        {
            *source = names.upstream(source);
        }
    }
}

impl Names {
    fn upstream_of_bind(&self, bind: &str) -> String {
        let (name, rest) = bind.split_once(':').unwrap_or((bind, ""));
        format!("{}:{rest}", self.upstream(name))
    }
}

/// The engine resolves a container's own name, which is not the job's: that is an alias.
fn aliases(body: &mut Map<String, Value>, name: &str, world: &World) {
    let mode = body["HostConfig"]["NetworkMode"].as_str().unwrap_or_default().to_owned();
    if !is_id_like(&mode) {
        return;
    }
    let networking = body.entry("NetworkingConfig").or_insert(json!({}));
    let endpoints = &mut networking["EndpointsConfig"];
    if endpoints.as_object().is_none_or(Map::is_empty) {
        *endpoints = json!({ mode: {} });
    }
    for (network, endpoint) in endpoints.as_object_mut().into_iter().flatten() {
        if has_names(network, world) {
            alias(endpoint, name);
        }
    }
}

fn alias(endpoint: &mut Value, name: &str) {
    let aliases = &mut endpoint["Aliases"];
    match aliases.as_array_mut() {
        Some(list) if list.iter().any(|known| known == name) => {}
        Some(list) => list.push(json!(name)),
        None => *aliases = json!([name]),
    }
}

/// The engine's own bridge knows no names, and takes no aliases.
fn has_names(network: &str, world: &World) -> bool {
    network != world.ground.network_id || world.ground.network != "bridge"
}

/// Names in filters; an own thing's id means the same.
fn filters(forward: &mut Forward, world: &World) {
    let Some((_, text)) = forward.query.iter_mut().find(|(key, _)| key == "filters") else {
        return;
    };
    let Ok(mut filters) = serde_json::from_str::<Map<String, Value>>(text) else { return };
    for (key, values) in &mut filters {
        for value in values.as_array_mut().into_iter().flatten() {
            let name = value.as_str().unwrap_or_default();
            let found = match &**key {
                "container" => world.owned.container(name).ok().map(|(id, _)| id.to_owned()),
                "network" => world.owned.network(name).ok().map(|(id, _)| id.to_owned()),
                // A path is where a volume is mounted.
                "volume" if name.starts_with('/') => Some(name.to_owned()),
                "volume" => None,
                _ => continue,
            };
            *value = json!(found.unwrap_or_else(|| world.settings.names.upstream(name)));
        }
    }
    *text = Value::Object(filters).to_string();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g_49_names_go_out_with_the_prefix_and_come_back_without() {
        let names = Names::of(&("longshore.job".into(), "1".into()));
        let Names::Scoped(prefix) = &names else { panic!("scoped") };
        assert_ne!(Names::of(&("longshore.job".into(), "2".into())), names);
        assert_eq!(names.upstream("db"), format!("{prefix}-db"));
        assert!(names.are_in(&format!("{prefix}-db")) && !names.are_in("db"));
        assert_eq!(names.upstream(&"a".repeat(64)), "a".repeat(64));
        assert_eq!(names.upstream_of_bind("data:/x:ro"), format!("{prefix}-data:/x:ro"));
        let mut answer = json!({
            "Name": format!("/{prefix}-db"),
            "Networks": { format!("{prefix}-net"): { "Aliases": ["db"] } },
            "Names": [format!("/{prefix}-a/{prefix}-b")],
            "Labels": { "com.docker.compose.project": "p" },
            "RepoTags": [format!("{prefix}.invalid/docker.io/library/app:1")],
            "Count": 1,
        });
        names.strip(&mut answer);
        assert_eq!(
            answer,
            json!({
                "Name": "/db", "Networks": { "net": { "Aliases": ["db"] } }, "Names": ["/a/b"],
                "Labels": { "com.docker.compose.project": "p" }, "RepoTags": ["app:1"], "Count": 1,
            })
        );
    }
}

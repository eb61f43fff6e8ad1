//! The job's names in a request become the engine's (G-49), in the last step before it is sent. Pure.

use serde_json::{Map, Value, json};

use crate::guard::{ids::is_id_like, names::Names};

use super::{
    context::PolicyContext,
    forward::{AnswerFilter, FollowUp, Forward, SentBody},
};

/// Puts the engine's names into a request that is otherwise ready.
pub(in crate::guard) fn to_engine(forward: &mut Forward, context: &PolicyContext) {
    let names = &context.settings.names;
    if *names == Names::Plain {
        return;
    }
    let rename = |value: &mut Value| {
        if let Value::String(name) = value {
            *name = names.upstream(name);
        }
    };
    match &forward.follow_up {
        FollowUp::Created { .. } | FollowUp::Renamed(..) => {
            let name = forward.query.iter_mut().find(|(key, _)| key == "name");
            let plain = name.map(|(_, name)| std::mem::replace(name, names.upstream(name)));
            if let (FollowUp::Created { .. }, SentBody::Json(body)) =
                (&forward.follow_up, &mut forward.body)
            {
                mounts(body, names);
                if let Some(plain) = plain {
                    aliases(body, &plain, context);
                }
            }
        }
        FollowUp::Volume | FollowUp::Network(_) => {
            if let SentBody::Json(body) = &mut forward.body
                && let Some(name) = body.get_mut("Name")
            {
                rename(name);
            }
        }
        FollowUp::Tagged(tag) | FollowUp::Made(Some(tag)) => {
            let upstream = context.settings.upstream_tag(tag);
            for (name, value) in &mut forward.query {
                match &**name {
                    "repo" => *value = upstream.repository(),
                    "tag" => *value = upstream.tag.clone().unwrap_or_default(),
                    _ => {}
                }
            }
        }
        FollowUp::VolumeRemoved(name) => {
            forward.path = format!("/volumes/{}", names.upstream(name));
        }
        FollowUp::Filter(AnswerFilter::Volume) => {
            let name = forward.path.strip_prefix("/volumes/").unwrap_or_default();
            forward.path = format!("/volumes/{}", names.upstream(name));
        }
        FollowUp::Filter(AnswerFilter::Containers) | FollowUp::Events => filters(forward, context),
        FollowUp::Pass if forward.path.ends_with("/connect") => {
            if let SentBody::Json(body) = &mut forward.body {
                let id = body.get("Container").and_then(Value::as_str).unwrap_or_default();
                let network = forward.path.split('/').nth(2).unwrap_or_default();
                if let Ok((_, container)) = context.owned.containers.find_own(id)
                    && has_names(network, context)
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
            *bind = json!(upstream_of_bind(names, text));
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

fn upstream_of_bind(names: &Names, bind: &str) -> String {
    let (name, rest) = bind.split_once(':').unwrap_or((bind, ""));
    format!("{}:{rest}", names.upstream(name))
}

/// The engine resolves a container's own name, which is not the job's: that is an alias.
fn aliases(body: &mut Map<String, Value>, name: &str, context: &PolicyContext) {
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
        if has_names(network, context) {
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
fn has_names(network: &str, context: &PolicyContext) -> bool {
    network != context.facts.network_id || context.facts.network != "bridge"
}

/// Names in filters; an own thing's id means the same.
fn filters(forward: &mut Forward, context: &PolicyContext) {
    let Some((_, text)) = forward.query.iter_mut().find(|(key, _)| key == "filters") else {
        return;
    };
    let Ok(mut filters) = serde_json::from_str::<Map<String, Value>>(text) else { return };
    for (key, values) in &mut filters {
        for value in values.as_array_mut().into_iter().flatten() {
            let name = value.as_str().unwrap_or_default();
            let found = match &**key {
                "container" => {
                    context.owned.containers.find(name).ok().map(|(id, _)| id.to_owned())
                }
                "network" => context.owned.networks.find(name).ok().map(|(id, _)| id.to_owned()),
                // A path in this filter is the place where a volume is mounted.
                "volume" if name.starts_with('/') => Some(name.to_owned()),
                "volume" => None,
                _ => continue,
            };
            *value = json!(found.unwrap_or_else(|| context.settings.names.upstream(name)));
        }
    }
    *text = Value::Object(filters).to_string();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_in_binds_go_out_with_the_prefix() {
        let names = Names::Scoped("g1".to_owned());
        assert_eq!(upstream_of_bind(&names, "data:/x:ro"), "g1-data:/x:ro");
    }
}

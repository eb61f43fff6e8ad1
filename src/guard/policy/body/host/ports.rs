//! A container's networks as its host configuration has them: mode, ports, names.

use serde_json::{Map, Value};

use crate::guard::{
    policy::body::{
        fields::{Rule, apply, flag, items, join, object, text, texts},
        judging::{ContainerNetwork, Judging, Table},
        network,
        values::{some, strings},
    },
    refusal::Refusal,
};

pub(super) fn network_of(value: &Value, judging: &Judging) -> Result<ContainerNetwork, Refusal> {
    let path = "HostConfig.NetworkMode";
    let mode = text(value, path)?;
    let facts = &judging.context.facts;
    Ok(match mode {
        "" | "default" | "bridge" => ContainerNetwork::Own(facts.network_id.clone()),
        "none" => ContainerNetwork::None,
        "host" => return Err(Refusal::denied(&format!("{path}=host"), "G-1")),
        mode => match mode.strip_prefix("container:") {
            Some(reference) => ContainerNetwork::Container(
                judging.context.owned.containers.find(reference)?.0.to_owned(),
            ),
            None if mode == facts.network => ContainerNetwork::Own(facts.network_id.clone()),
            None => ContainerNetwork::Own(judging.context.owned.networks.find(mode)?.0.to_owned()),
        },
    })
}

#[expect(clippy::unnecessary_wraps, reason = "a table's function")]
pub(super) fn network_mode(
    judging: &mut Judging,
    _: &Value,
    _: &str,
) -> Result<Option<Value>, Refusal> {
    Ok(match &judging.network {
        ContainerNetwork::None => some("none"),
        ContainerNetwork::Own(id) => some(id.clone()),
        ContainerNetwork::Container(id) => some(format!("container:{id}")),
    })
}

/// A port as keys have it: `80/tcp`.
pub(in crate::guard::policy::body) fn port(text: &str, path: &str) -> Result<(), Refusal> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let range_ok = number
        .split('-')
        .all(|n| n.parse::<u16>().is_ok() && n.bytes().all(|b| b.is_ascii_digit()));
    if range_ok && ["tcp", "udp", "sctp"].contains(&protocol) {
        return Ok(());
    }
    Err(Refusal::malformed(&format!("{path}: {text} is no port"), "G-38"))
}

const PORT_BINDING: Table =
    &[("HostIp", Rule::Judge(host_ip)), ("HostPort", Rule::Judge(host_port))];

pub(super) fn port_bindings(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let mut out = Map::new();
    for (key, bindings) in object(value, path)? {
        port(key, path)?;
        let path = join(path, key);
        let mut list = Vec::new();
        for binding in items(bindings, &path)? {
            list.push(Value::Object(apply(PORT_BINDING, object(binding, &path)?, &path, judging)?));
        }
        // For an empty list the engine would pick a port on any address.
        if list.is_empty() {
            list.push(Value::Object(apply(PORT_BINDING, &Map::new(), &path, judging)?));
        }
        out.insert(key.clone(), Value::Array(list));
    }
    Ok(Some(Value::Object(out)))
}

fn host_ip(judging: &mut Judging, _: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let gateway = &judging.context.facts.gateway;
    if gateway.is_empty() {
        return Err(Refusal::because(
            &format!("{path}: the job's network has no address to publish at"),
            "G-1",
        ));
    }
    Ok(some(gateway.clone()))
}

fn host_port(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let port = text(value, path)?;
    if port.is_empty() || port == "0" {
        return Ok(some(""));
    }
    for number in port.splitn(2, '-') {
        let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let number = number.parse::<u16>().ok().filter(|_| plain);
        match number {
            Some(1024..) => {}
            Some(_) => return Err(Refusal::denied(&format!("{path} below 1024"), "G-1")),
            None => return Err(Refusal::malformed(&format!("{path}: {port} is no port"), "G-38")),
        }
    }
    Ok(some(port))
}

pub(super) fn publish_all(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    // The engine would publish on any address: each port gets a binding of its own instead.
    judging.needs.publish_all = flag(value, path)?;
    if judging.needs.publish_all {
        host_ip(judging, &Value::Null, path)?;
    }
    Ok(None)
}

/// Links move to the network's endpoint, where networks of one's own have them.
pub(super) fn links(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    judging.links = network::links(judging, value, path)?;
    Ok(None)
}

pub(super) fn extra_hosts(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let gateway = &judging.context.facts.gateway;
    let list =
        texts(value, path)?.into_iter().map(|host| match host.strip_suffix("host-gateway") {
            Some(name) if name.ends_with([':', '=']) => format!("{name}{gateway}"),
            _ => host.to_owned(),
        });
    Ok(strings(list.collect()))
}

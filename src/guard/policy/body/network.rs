//! Networks and their endpoints.

use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

use crate::guard::{policy::context::PolicyContext, refusal::Refusal};

use super::{
    fields::{Rule, apply, items, join, object, text, texts},
    judging::{ContainerNetwork, Judging, Table},
    needs::Judged,
    values::{labels, some},
};

const ENDPOINT: Table = &[
    ("Aliases", Rule::Texts),
    ("Links", Rule::Judge(endpoint_links)),
    ("IPAMConfig", Rule::Table(IPAM_ADDRESSES)),
    ("MacAddress", Rule::Judge(mac_of_endpoint)),
    ("GwPriority", Rule::Whole(-1_000_000, 1_000_000)),
    ("DriverOpts", Rule::Empty("G-1")),
    ("NetworkID", Rule::Drop),
    ("EndpointID", Rule::Drop),
    ("Gateway", Rule::Drop),
    ("IPAddress", Rule::Drop),
    ("IPPrefixLen", Rule::Drop),
    ("IPv6Gateway", Rule::Drop),
    ("GlobalIPv6Address", Rule::Drop),
    ("GlobalIPv6PrefixLen", Rule::Drop),
    ("DNSNames", Rule::Drop),
];

const IPAM_ADDRESSES: Table =
    &[("IPv4Address", Rule::Text), ("IPv6Address", Rule::Text), ("LinkLocalIPs", Rule::Texts)];

/// One `EndpointConfig`.
fn endpoint(
    value: &Value,
    path: &str,
    judging: &mut Judging,
) -> Result<Map<String, Value>, Refusal> {
    match value {
        Value::Null => Ok(Map::new()),
        value => apply(ENDPOINT, object(value, path)?, path, judging),
    }
}

/// The network that `reference` means where one's own are listed; `bridge` is the default one.
fn resolve(reference: &str, context: &PolicyContext) -> Result<String, Refusal> {
    let facts = &context.facts;
    if ["bridge", "default"].contains(&reference)
        || reference == facts.network
        || reference == facts.network_id
    {
        return Ok(facts.network_id.clone());
    }
    context.owned.networks.find(reference).map(|(id, _)| id.to_owned())
}

pub(super) fn endpoints(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Map::new();
    if !value.is_null() {
        for (reference, value) in object(value, path)? {
            let judged = endpoint(value, &join(path, reference), judging)?;
            if reference == "none" && matches!(judging.network, ContainerNetwork::None) {
                continue;
            }
            if reference == "host" {
                return Err(Refusal::denied(&join(path, reference), "G-1"));
            }
            let id = resolve(reference, &judging.context)?;
            // Two spellings of one network.
            if out.insert(id, Value::Object(judged)).is_some() {
                return Err(Refusal::malformed(&format!("{path} names a network twice"), "G-3"));
            }
        }
    }
    if let ContainerNetwork::Own(id) = &judging.network {
        // The engine takes what an endpoint says only when there is one.
        if !judging.links.is_empty() {
            let entry = out.entry(id.clone()).or_insert_with(|| json!({}));
            let mut all = judging.links.clone();
            all.extend(texts(&entry["Links"], path)?.into_iter().map(str::to_owned));
            entry["Links"] = json!(all);
        }
    } else if !out.is_empty() {
        return Err(Refusal::malformed(
            &format!("{path} does not go with this NetworkMode"),
            "G-3",
        ));
    }
    Ok((!out.is_empty()).then_some(Value::Object(out)))
}

/// Links to own containers, with full ids.
pub(super) fn links(judging: &Judging, value: &Value, path: &str) -> Result<Vec<String>, Refusal> {
    texts(value, path)?
        .into_iter()
        .map(|link| {
            let (reference, alias) = link.split_once(':').unwrap_or((link, link));
            let alias = alias.trim_start_matches('/');
            if alias.is_empty()
                || !alias.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            {
                return Err(Refusal::malformed(&format!("{path}: {link} is no link"), "G-38"));
            }
            let (id, _) = judging.context.owned.containers.find(reference)?;
            Ok(format!("{id}:{alias}"))
        })
        .collect()
}

fn endpoint_links(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let links = links(judging, value, path)?;
    Ok((!links.is_empty()).then(|| json!(links)))
}

fn mac_of_endpoint(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" => Ok(None),
        address => mac(address, path),
    }
}

pub(super) fn mac(address: &str, path: &str) -> Result<Option<Value>, Refusal> {
    let good = address.split(':').count() == 6
        && address.split(':').all(|b| b.len() == 2 && b.bytes().all(|b| b.is_ascii_hexdigit()));
    if good {
        Ok(some(address))
    } else {
        Err(Refusal::malformed(&format!("{path} is no address"), "G-38"))
    }
}

const CONNECT: Table =
    &[("Container", Rule::Judge(container)), ("EndpointConfig", Rule::Judge(endpoint_config))];
const DISCONNECT: Table = &[("Container", Rule::Judge(container)), ("Force", Rule::Flag)];

fn container(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let (id, _) = judging.context.owned.containers.find(text(value, path)?)?;
    Ok(some(id))
}

fn endpoint_config(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let judged = endpoint(value, path, judging)?;
    Ok((!judged.is_empty()).then_some(Value::Object(judged)))
}

/// `POST /networks/{id}/connect`.
///
/// # Errors
/// When something in it is refused.
pub fn network_connect(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Map<String, Value>, Refusal> {
    apply(CONNECT, body, "", &mut Judging::new(context))
}

/// `POST /networks/{id}/disconnect`.
///
/// # Errors
/// When something in it is refused.
pub fn network_disconnect(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Map<String, Value>, Refusal> {
    apply(DISCONNECT, body, "", &mut Judging::new(context))
}

const NETWORK: Table = &[
    ("Name", Rule::Text),
    ("CheckDuplicate", Rule::Drop),
    ("Driver", Rule::Judge(bridge)),
    ("Scope", Rule::Judge(scope)),
    ("Internal", Rule::Flag),
    ("Attachable", Rule::Flag),
    ("EnableIPv4", Rule::Judge(ipv4)),
    ("EnableIPv6", Rule::Flag),
    ("Ingress", Rule::Empty("G-1")),
    ("ConfigOnly", Rule::Empty("G-1")),
    ("ConfigFrom", Rule::Judge(config_from)),
    ("IPAM", Rule::Judge(ipam)),
    ("Options", Rule::Judge(network_options)),
    ("Labels", Rule::Judge(labels)),
];

/// `POST /networks/create`: the body, and the name in it.
///
/// # Errors
/// When something in it is refused.
pub fn network_create(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Judged, Refusal> {
    let mut judging = Judging::new(context);
    let most = context.settings.limits.networks;
    if context.owned.networks.count() >= most {
        return Err(Refusal::limit("networks", most));
    }
    let mut out = apply(NETWORK, body, "", &mut judging)?;
    let name = out.get("Name").and_then(Value::as_str).unwrap_or_default();
    context.settings.may_name(name)?;
    out.insert("CheckDuplicate".to_owned(), Value::Bool(true));
    out.insert("Driver".to_owned(), json!("bridge"));
    Ok(Judged { body: out, needs: judging.needs })
}

fn bridge(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        // `default` is what swarm's clients call it.
        "" | "bridge" | "default" => Ok(None),
        _ => Err(Refusal::denied(&format!("{path} other than bridge"), "G-1")),
    }
}

fn scope(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "local" => Ok(None),
        word => Err(Refusal::denied(&format!("{path}={word}"), "G-1")),
    }
}

/// Newer clients say what is so anyway.
fn ipv4(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match value {
        Value::Null | Value::Bool(true) => Ok(None),
        _ => Err(Refusal::denied(&format!("{path}=false"), "G-1")),
    }
}

const FROM: &[(&str, Rule<()>)] = &[("Network", Rule::Empty("G-1"))];

fn config_from(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    apply(FROM, object(value, path)?, path, &mut ())?;
    Ok(None)
}

fn network_options(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Map::new();
    if !value.is_null() {
        for (name, value) in object(value, path)? {
            let value = text(value, path)?;
            let good = match &**name {
                "com.docker.network.bridge.enable_icc" => {
                    ["true", "false", "1", "0"].contains(&value)
                }
                "com.docker.network.driver.mtu" => {
                    value.parse::<u32>().is_ok_and(|n| (68..=65535).contains(&n))
                }
                _ => false,
            };
            if !good {
                return Err(Refusal::denied(&format!("{path}.{name}={value}"), "G-1"));
            }
            out.insert(name.clone(), Value::from(value));
        }
    }
    let gateway = &judging.context.facts.gateway;
    if !gateway.is_empty() {
        out.insert("com.docker.network.bridge.host_binding_ipv4".to_owned(), json!(gateway));
    }
    Ok(Some(Value::Object(out)))
}

const IPAM: Table = &[
    ("Driver", Rule::Judge(ipam_driver)),
    ("Options", Rule::Empty("G-1")),
    ("Config", Rule::Judge(ipam_config)),
];
const POOL: Table = &[
    ("Subnet", Rule::Judge(subnet)),
    ("IPRange", Rule::Judge(inside)),
    ("Gateway", Rule::Judge(inside)),
    ("AuxiliaryAddresses", Rule::Empty("G-1")),
    ("AuxAddress", Rule::Empty("G-1")),
];

fn ipam(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let judged = apply(IPAM, object(value, path)?, path, judging)?;
    Ok((!judged.is_empty()).then_some(Value::Object(judged)))
}

fn ipam_driver(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "default" => Ok(None),
        _ => Err(Refusal::denied(path, "G-1")),
    }
}

fn ipam_config(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for pool in items(value, path)? {
        let pool = apply(POOL, object(pool, path)?, path, judging)?;
        if !pool.is_empty() && !pool.contains_key("Subnet") {
            return Err(Refusal::malformed(&format!("{path} has no Subnet"), "G-38"));
        }
        if !pool.is_empty() {
            out.push(Value::Object(pool));
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

/// An address with its prefix, of 172.16.0.0/12 and no shorter than 20.
fn private_range(range: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = range.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok().filter(|_| prefix.len() <= 2)?;
    let inside = address.to_bits() >> 20 == u32::from(Ipv4Addr::new(172, 16, 0, 0)) >> 20;
    (inside && (20..=30).contains(&prefix)).then_some((address, prefix))
}

fn subnet(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let range = text(value, path)?;
    if range.is_empty() {
        return Ok(None);
    }
    let denied = || {
        Refusal::because(
            &format!("{path}={range} must lie in 172.16.0.0/12, with a prefix of 20 or more"),
            "G-1",
        )
    };
    let (address, prefix) = private_range(range).ok_or_else(denied)?;
    judging.needs.subnets.push((address, prefix));
    Ok(some(format!("{address}/{prefix}")))
}

/// Addresses of a subnet that was judged; that they are inside is the engine's to check.
fn inside(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let range = text(value, path)?;
    if range.is_empty() {
        return Ok(None);
    }
    let address = range.split_once('/').map_or(range, |(address, _)| address);
    let whole = format!("{address}/24");
    let good = private_range(&whole).is_some()
        && range.split_once('/').is_none_or(|_| private_range(range).is_some());
    if good { Ok(some(range)) } else { Err(Refusal::denied(&format!("{path}={range}"), "G-1")) }
}

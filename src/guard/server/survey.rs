//! What a guard must know of its engine before it can decide anything.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::guard::{parse::target::encode, policy::context::EngineFacts, settings::GuardSettings};

use super::{
    engine::Engine,
    journal::{Journal, JournalEntry},
    response::BoxError,
};

/// Learns what the engine is, and finds or creates the default network. The flag tells whether it was
/// created.
pub(super) async fn survey(
    engine: &mut Engine,
    settings: &GuardSettings,
    journal: &Journal,
) -> Result<(EngineFacts, bool), BoxError> {
    let version = engine.negotiate().await?;
    let info = engine.get("/info").await?.unwrap_or_default();
    let path = format!("/networks/{}", encode(&settings.network));
    let mut made = false;
    let network = match engine.get(&path).await? {
        Some(network) => network,
        None => {
            // Without the label of the identity, so that no prune removes it.
            let body = json!({
                "Name": settings.network,
                "CheckDuplicate": true,
                "Driver": "bridge",
                "Labels": settings.labels,
            });
            journal.write(&JournalEntry::Network(None))?;
            let (status, answer) =
                engine.json(&Method::POST, "/networks/create", &[], Some(&body)).await?;
            if status != StatusCode::CREATED {
                return Err(format!("the engine answered {status} to the network: {answer}").into());
            }
            journal.write(&JournalEntry::Network(answer["Id"].as_str().map(str::to_owned)))?;
            made = true;
            engine.get(&path).await?.ok_or("the network that was just made is not there")?
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let range = &network["IPAM"]["Config"][0];
    let gateway = match &range["Gateway"] {
        Value::String(gateway) => gateway.split('/').next().unwrap_or_default().to_owned(),
        // Older engines leave the gateway out: it is the first address.
        _ => first_address(range["Subnet"].as_str().unwrap_or_default()).unwrap_or_default(),
    };
    let facts = EngineFacts {
        version,
        network_id: text(&network["Id"]),
        network: text(&network["Name"]),
        gateway,
        nano_cpus: info["NCPU"].as_i64().unwrap_or(0) * 1_000_000_000,
        runtime: text(&info["DefaultRuntime"]),
    };
    if facts.network_id.is_empty() {
        return Err("the network has no id".into());
    }
    Ok((facts, made))
}

fn first_address(subnet: &str) -> Option<String> {
    let (address, prefix) = subnet.split_once('/')?;
    let address: std::net::Ipv4Addr = address.parse().ok()?;
    let mask = u32::MAX.checked_shl(32 - prefix.parse::<u32>().ok()?).unwrap_or(0);
    Some(std::net::Ipv4Addr::from_bits((address.to_bits() & mask) + 1).to_string())
}

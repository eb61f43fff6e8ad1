//! How much a container may have, and what becomes of it when it ends.

use serde_json::{Map, Value, json};

use crate::guard::{
    parse::size::bytes,
    policy::body::{
        fields::{Rule, apply, items, join, object, whole},
        judging::{ANY, Judging, Table},
    },
    refusal::Refusal,
};

/// How often a container is restarted at most.
const RESTARTS: i64 = 10;

const ULIMIT: Table = &[("Name", Rule::Text), ("Soft", ANY), ("Hard", ANY)];

/// The highest value of each limit (G-80); those that are not of the guard are the engine's defaults.
fn ulimit_most(name: &str) -> Option<i64> {
    Some(match name {
        "nofile" => 1_048_576,
        "memlock" => 64 << 20,
        "nproc" | "sigpending" | "locks" => 65536,
        "core" | "data" | "fsize" | "rss" | "as" | "stack" => 1 << 40,
        "cpu" => 1 << 31,
        "msgqueue" => 819_200,
        "nice" | "rtprio" => 0,
        _ => return None,
    })
}

pub(super) fn ulimits(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for limit in items(value, path)? {
        let limit = apply(ULIMIT, object(limit, path)?, path, judging)?;
        let name = limit.get("Name").and_then(Value::as_str).unwrap_or_default();
        let most =
            ulimit_most(name).ok_or_else(|| Refusal::denied(&format!("{path} {name}"), "G-80"))?;
        for end in ["Soft", "Hard"] {
            let number = limit.get(end).and_then(Value::as_i64).unwrap_or(0);
            if !(0..=most).contains(&number) {
                return Err(Refusal::denied(&format!("{path} {name}={number}"), "G-80"));
            }
        }
        out.push(Value::Object(limit));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

const LOG: Table = &[("Type", Rule::Text), ("Config", Rule::TextMap)];

pub(super) fn log_config(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let empty = Map::new();
    let log = if value.is_null() { &empty } else { object(value, path)? };
    let log = apply(LOG, log, path, judging)?;
    let kind = log.get("Type").and_then(Value::as_str).unwrap_or_default();
    let kind = match kind {
        "" => "json-file",
        "json-file" | "local" | "none" => kind,
        kind => return Err(Refusal::denied(&format!("{path}.Type={kind}"), "G-1")),
    };
    let mut out = Map::new();
    if let Some(Value::Object(options)) = log.get("Config") {
        for (key, value) in options {
            let text = value.as_str().unwrap_or_default();
            let good = match &**key {
                "max-size" => bytes(text).is_some_and(|n| (1..=50 << 20).contains(&n)),
                "max-file" => text.parse::<u8>().is_ok_and(|n| (1..=5).contains(&n)),
                "compress" | "mode" | "tag" | "labels" | "env" => true,
                _ => false,
            };
            if !good || kind == "none" {
                return Err(Refusal::denied(&format!("{path}.Config.{key}={text}"), "G-80"));
            }
            out.insert(key.clone(), value.clone());
        }
    }
    if kind != "none" {
        out.entry("max-size").or_insert_with(|| json!("50m"));
        out.entry("max-file").or_insert_with(|| json!("2"));
    }
    Ok(Some(json!({ "Type": kind, "Config": out })))
}

const RESTART: Table = &[("Name", Rule::Text), ("MaximumRetryCount", Rule::Whole(0, RESTARTS))];

pub(super) fn restart_policy(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let policy = apply(RESTART, object(value, path)?, path, judging)?;
    let count = policy.get("MaximumRetryCount").and_then(Value::as_i64).unwrap_or(0);
    match policy.get("Name").and_then(Value::as_str).unwrap_or_default() {
        "" | "no" => Ok(None),
        "on-failure" => {
            let count = if count == 0 { RESTARTS } else { count };
            Ok(Some(json!({ "Name": "on-failure", "MaximumRetryCount": count })))
        }
        // Both would let the container outlive the job.
        "always" | "unless-stopped" => {
            Ok(Some(json!({ "Name": "on-failure", "MaximumRetryCount": RESTARTS })))
        }
        word => Err(Refusal::denied(&format!("{path}.Name={word}"), "G-1")),
    }
}

pub(super) fn restart_policy_update(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let wanted = value.get("Name").and_then(Value::as_str).unwrap_or_default();
    if wanted == "no" {
        return Ok(Some(json!({ "Name": "no" })));
    }
    restart_policy(judging, value, path)
}

/// A number that is at most `most`, and `most` when it is not given (G-80).
pub(super) fn cap(value: &Value, path: &str, most: i64) -> Result<i64, Refusal> {
    match whole(value, path)? {
        0 => Ok(most),
        number if (1..=most).contains(&number) => Ok(number),
        number => Err(Refusal::denied(&format!("{path}={number} (at most {most})"), "G-80")),
    }
}

pub(super) fn memory(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    cap(value, path, judging.settings().limits.memory).map(|n| Some(Value::from(n)))
}

/// 0 and absent are "unchanged".
pub(super) fn memory_update(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    up_to_memory(judging, value, path)
}

pub(super) fn up_to_memory(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if whole(value, path)? == 0 {
        return Ok(None);
    }
    memory(judging, value, path)
}

pub(super) fn pids(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    cap(value, path, judging.settings().limits.pids).map(|n| Some(Value::from(n)))
}

pub(super) fn pids_update(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if whole(value, path)? == 0 { Ok(None) } else { pids(judging, value, path) }
}

pub(super) fn shm(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if whole(value, path)? == 0 {
        return Ok(None);
    }
    cap(value, path, judging.settings().limits.shm).map(|n| Some(Value::from(n)))
}

pub(super) fn swappiness(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    match whole(value, path)? {
        -1 | 0 => Ok(None),
        _ => Err(Refusal::denied(path, "G-37")),
    }
}

/// Memory and swap together: no more than memory where nothing is said.
pub(super) fn swap(out: &mut Map<String, Value>, judging: &Judging) -> Result<(), Refusal> {
    let memory = out.get("Memory").and_then(Value::as_i64).unwrap_or(0);
    let swap = match out.get("MemorySwap").and_then(Value::as_i64).unwrap_or(0) {
        0 => memory,
        swap if (memory..=judging.settings().limits.memory).contains(&swap) => swap,
        swap => {
            return Err(Refusal::denied(&format!("HostConfig.MemorySwap={swap}"), "G-80"));
        }
    };
    out.insert("MemorySwap".to_owned(), Value::from(swap));
    Ok(())
}

/// The CPU's share, said in one way or the other.
pub(super) fn cpus(
    out: &mut Map<String, Value>,
    path: &str,
    judging: &Judging,
    is_new: bool,
) -> Result<(), Refusal> {
    let number = |name: &str| out.get(name).and_then(Value::as_i64).unwrap_or(0);
    let mut most = judging.settings().limits.nano_cpus;
    if judging.context.facts.nano_cpus > 0 {
        most = most.min(judging.context.facts.nano_cpus);
    }
    let (nano, quota, period) = (number("NanoCpus"), number("CpuQuota"), number("CpuPeriod"));
    let denied = |name: &str| Refusal::denied(&join(path, name), "G-80");
    if !(0..=most).contains(&nano) {
        return Err(denied("NanoCpus"));
    }
    // The quota is a share of the period, of 100 ms when that is not said.
    let full = i128::from(if period == 0 { 100_000 } else { period });
    if quota < 0 || i128::from(quota) * 1_000_000_000 > i128::from(most) * full {
        return Err(denied("CpuQuota"));
    }
    // A period alone could stretch a quota that was set before.
    if period != 0 && quota == 0 {
        if nano != 0 || !is_new {
            return Err(denied("CpuPeriod"));
        }
        let quota = i128::from(most) * full / 1_000_000_000;
        out.insert("CpuQuota".to_owned(), Value::from(i64::try_from(quota).unwrap_or(i64::MAX)));
    } else if is_new && nano == 0 && quota == 0 {
        out.insert("NanoCpus".to_owned(), Value::from(most));
    }
    Ok(())
}

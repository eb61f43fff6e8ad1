//! Parameters: each on its endpoint's list, each once (G-25), and built anew.

use serde_json::{Map, Value, json};

use crate::guard::{Refusal, body::World, fields, image, json as strict};

/// What a parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Param {
    /// True or false.
    Flag,
    /// An integer.
    Number,
    /// Text.
    Word,
    /// Text, several times.
    Many,
    /// Left out, whatever it says.
    Drop,
    /// Must be empty, false or zero.
    Empty,
}

/// The longest parameter.
const LONGEST: usize = 8192;

/// The parameters that are sent on.
pub(super) fn judge(
    query: &[(String, String)],
    allowed: &[(&str, Param)],
) -> Result<Vec<(String, String)>, Refusal> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in query {
        let Some((_, kind)) = allowed.iter().find(|(known, _)| known == name) else {
            return Err(Refusal::denied(
                &format!("the parameter {}", fields::join("", name)),
                "G-25",
            ));
        };
        if *kind != Param::Many && seen.contains(&&**name) {
            return Err(Refusal::malformed(&format!("the parameter {name} occurs twice"), "G-25"));
        }
        seen.push(name);
        let wrong = || Refusal::malformed(&format!("the parameter {name} is malformed"), "G-25");
        if value.len() > LONGEST || seen.len() > 200 {
            return Err(wrong());
        }
        let value = match kind {
            Param::Drop => continue,
            Param::Empty if ["", "0", "false", "null", "[]", "{}"].contains(&&**value) => continue,
            Param::Empty => return Err(Refusal::denied(&format!("the parameter {name}"), "G-70")),
            Param::Flag => {
                let flag = match &*value.to_ascii_lowercase() {
                    "1" | "true" | "t" | "on" | "yes" => "1",
                    "" | "0" | "false" | "f" | "no" | "none" => "0",
                    _ => return Err(wrong()),
                };
                flag.to_owned()
            }
            Param::Number if value.is_empty() => continue,
            Param::Number => value.parse::<i64>().map_err(|_| wrong())?.to_string(),
            Param::Word | Param::Many => value.clone(),
        };
        out.push((name.clone(), value));
    }
    Ok(out)
}

/// Whether a flag is set, in the engine's reading.
pub(super) fn is_true(value: &str) -> bool {
    !["", "0", "no", "false", "none"].contains(&&*value.trim().to_ascii_lowercase())
}

/// `filters` of these names, in the form of lists.
pub(super) fn filters(text: &str, known: &[&str]) -> Result<Map<String, Value>, Refusal> {
    let mut out = Map::new();
    if text.is_empty() {
        return Ok(out);
    }
    for (name, value) in strict::object(text.as_bytes())? {
        if !known.contains(&&*name) {
            return Err(Refusal::malformed(
                &format!("invalid filter '{}'", fields::join("", &name)),
                "G-39",
            ));
        }
        let values: Vec<Value> = match &value {
            Value::Array(_) => fields::texts(&value, &name)?.into_iter().map(Value::from).collect(),
            Value::Object(map) if map.len() <= fields::MOST => {
                let set = map.iter().filter(|(_, on)| **on == Value::Bool(true));
                set.map(|(value, _)| json!(value)).collect()
            }
            _ => {
                return Err(Refusal::malformed(&format!("the filter {name} is malformed"), "G-39"));
            }
        };
        if !values.is_empty() {
            out.insert(name, Value::Array(values));
        }
    }
    Ok(out)
}

/// What the guard sets for a build, and the parameters that are JSON (G-70, G-71).
pub(super) fn build<'a>(
    query: &mut Vec<(String, String)>,
    world: &World,
    raw: impl Fn(&str) -> &'a str,
) -> Result<(), Refusal> {
    let (settings, ground) = (&world.settings, &world.ground);
    query.retain(|(name, _)| {
        ![
            "labels",
            "buildargs",
            "cachefrom",
            "networkmode",
            "memory",
            "memswap",
            "cpuquota",
            "cpuperiod",
        ]
        .contains(&&**name)
    });
    let object = |name: &str| strict::object(raw(name).as_bytes());
    let mut labels = Map::new();
    for (key, value) in object("labels")? {
        if settings.is_reserved_label(&key) {
            return Err(Refusal::denied(&format!("the label {key}"), "G-46"));
        }
        labels.insert(key, json!(fields::text(&value, "labels")?));
    }
    labels.extend(settings.image_labels().into_iter().map(|(key, value)| (key, json!(value))));
    query.push(("labels".to_owned(), Value::Object(labels).to_string()));
    let mut arguments = Map::new();
    for (key, value) in object("buildargs")? {
        if !value.is_null() {
            fields::text(&value, "buildargs")?;
        }
        arguments.insert(key, value);
    }
    if !arguments.is_empty() {
        query.push(("buildargs".to_owned(), Value::Object(arguments).to_string()));
    }
    // The engine's own cache holds other jobs' layers: only what this job built is looked at.
    let own: Vec<&str> = world.owned.images().filter(|id| image::is_id(id)).collect();
    if own.is_empty() {
        query.retain(|(name, _)| name != "nocache");
        query.push(("nocache".to_owned(), "1".to_owned()));
    } else {
        query.push(("cachefrom".to_owned(), json!(own).to_string()));
    }
    let network = match raw("networkmode") {
        "" | "default" | "bridge" => ground.network_id.clone(),
        "none" => "none".to_owned(),
        "host" => return Err(Refusal::denied("networkmode=host", "G-71")),
        name => world.owned.network(name)?.0.to_owned(),
    };
    query.push(("networkmode".to_owned(), network));
    let number = |name: &str| raw(name).parse::<i64>().unwrap_or(0);
    let memory = match number("memory") {
        0 => settings.limits.memory,
        n if (1..=settings.limits.memory).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter memory (above the limit)", "G-80")),
    };
    query.push(("memory".to_owned(), memory.to_string()));
    let swap = match number("memswap") {
        0 => memory,
        n if (memory..=settings.limits.memory).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter memswap (above the limit)", "G-80")),
    };
    query.push(("memswap".to_owned(), swap.to_string()));
    let most = match ground.nano_cpus {
        0 => settings.limits.nano_cpus,
        all => all.min(settings.limits.nano_cpus),
    };
    let period = match number("cpuperiod") {
        0 => 100_000,
        n if (1000..=1_000_000).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter cpuperiod", "G-80")),
    };
    let full =
        i64::try_from(i128::from(most) * i128::from(period) / 1_000_000_000).unwrap_or(i64::MAX);
    let quota = match number("cpuquota") {
        0 => full,
        n if (1..=full).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter cpuquota (above the limit)", "G-80")),
    };
    query.push(("cpuperiod".to_owned(), period.to_string()));
    query.push(("cpuquota".to_owned(), quota.to_string()));
    if let Some(parent) = &settings.cgroup_parent {
        query.push(("cgroupparent".to_owned(), parent.clone()));
    }
    query.push(("rm".to_owned(), "1".to_owned()));
    query.push(("forcerm".to_owned(), "1".to_owned()));
    Ok(())
}

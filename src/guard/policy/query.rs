//! Parameters: each on its endpoint's list, each once (G-25), and built anew.

use serde_json::{Map, Value, json};

use crate::guard::{parse::json as strict, refusal::Refusal};

use super::body::fields;

/// What a parameter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Param {
    Flag,
    Number,
    Word,
    /// Text; the parameter may occur several times.
    Many,
    /// Left out, whatever it says.
    Drop,
    /// Must be empty, false or zero.
    Empty,
}

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

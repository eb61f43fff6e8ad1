//! Values that occur in several bodies.

use serde_json::{Map, Value};

use crate::guard::refusal::Refusal;

use super::{
    fields::{self, flag, object, text, whole},
    judging::Judging,
};

#[expect(clippy::unnecessary_wraps, reason = "what a table's functions give")]
pub(super) fn some(text: impl Into<String>) -> Option<Value> {
    Some(Value::String(text.into()))
}

pub(super) fn strings(list: Vec<String>) -> Option<Value> {
    (!list.is_empty()).then(|| Value::from(list))
}

/// `Cmd` and `Entrypoint`: an array, or one string.
pub(super) fn command(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    Ok(match value {
        Value::Null => None,
        Value::String(_) => Some(Value::from(vec![text(value, path)?.to_owned()])),
        value => {
            let words = fields::texts(value, path)?;
            Some(Value::from(words.into_iter().map(str::to_owned).collect::<Vec<_>>()))
        }
    })
}

/// Labels: none of the reserved ones, and the guard's own written last (G-46).
pub(super) fn labels(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Map::new();
    if !value.is_null() {
        for (key, value) in object(value, path)? {
            if judging.settings().is_reserved_label(key) {
                return Err(Refusal::denied(&format!("the label {key}"), "G-46"));
            }
            out.insert(key.clone(), Value::String(text(value, path)?.to_owned()));
        }
    }
    for (key, value) in judging.settings().all_labels() {
        out.insert(key, Value::String(value));
    }
    Ok(Some(Value::Object(out)))
}

pub(super) fn console_size(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let size = fields::items(value, path)?;
    if size.is_empty() {
        return Ok(None);
    }
    let numbers = size.iter().map(|n| whole(n, path)).collect::<Result<Vec<_>, _>>()?;
    if numbers.len() != 2 || numbers.iter().any(|n| !(0..=65535).contains(n)) {
        return Err(Refusal::malformed(&format!("{path} must be height and width"), "G-38"));
    }
    Ok(Some(Value::from(numbers)))
}

/// For fields that are empty in all bodies but for `true`.
pub(super) fn only_false(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if flag(value, path)? {
        return Err(Refusal::because(
            &format!(
                "{path} is not available on this runner; \
                 use a service container or the job's own daemon (docker:dind)"
            ),
            "G-1",
        ));
    }
    Ok(None)
}

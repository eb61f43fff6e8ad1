//! Tables of fields: a body is built anew from what its table takes, and from nothing else
//! (G-1, G-2, G-37, G-38). Pure.

use serde_json::{Map, Value};

use crate::guard::{parse::json, refusal::Refusal};

/// What becomes of a field.
#[derive(Debug)]
pub(crate) enum Rule<C: 'static> {
    /// A string, passed on.
    Text,
    /// `true` or `false`, passed on.
    Flag,
    /// An integer between two bounds, passed on.
    Whole(i64, i64),
    /// An array of strings, passed on.
    Texts,
    /// An object of strings, passed on.
    TextMap,
    /// An object's fields, by a table of their own.
    Table(&'static [(&'static str, Rule<C>)]),
    /// Left out, whatever it says.
    Drop,
    /// Must be empty, and is left out.
    Empty(&'static str),
    /// Decided by a function: the value that is sent on, if any.
    Judge(fn(&mut C, &Value, &str) -> Result<Option<Value>, Refusal>),
}

/// How many entries an array or object of a body may have.
pub(crate) const MOST: usize = 1000;

/// The object that is sent on in place of `object`; `path` is its name in messages.
///
/// # Errors
/// When a field is unknown, or its table says so.
pub(crate) fn apply<C>(
    table: &[(&'static str, Rule<C>)],
    object: &Map<String, Value>,
    path: &str,
    context: &mut C,
) -> Result<Map<String, Value>, Refusal> {
    for (name, value) in object {
        if !table.iter().any(|(known, _)| known == name) && !json::is_empty(value) {
            return Err(Refusal::denied(&join(path, name), "G-37"));
        }
    }
    let mut out = Map::new();
    for (name, rule) in table {
        let value = object.get(*name).unwrap_or(&Value::Null);
        let path = join(path, name);
        let judged = match rule {
            Rule::Judge(judge) => judge(context, value, &path)?,
            _ if value.is_null() => None,
            rule => plain(rule, value, &path, context)?,
        };
        if let Some(value) = judged {
            out.insert((*name).to_owned(), value);
        }
    }
    Ok(out)
}

fn plain<C>(
    rule: &Rule<C>,
    value: &Value,
    path: &str,
    context: &mut C,
) -> Result<Option<Value>, Refusal> {
    Ok(match rule {
        Rule::Text => Some(Value::String(text(value, path)?.to_owned())),
        Rule::Flag => Some(Value::Bool(flag(value, path)?)),
        Rule::Whole(low, high) => {
            let number = whole(value, path)?;
            if !(*low..=*high).contains(&number) {
                return Err(Refusal::malformed(&format!("{path} is out of range"), "G-38"));
            }
            Some(Value::from(number))
        }
        Rule::Texts => Some(Value::from(
            texts(value, path)?.into_iter().map(str::to_owned).collect::<Vec<_>>(),
        )),
        Rule::TextMap => {
            let mut out = Map::new();
            for (key, value) in object(value, path)? {
                out.insert(key.clone(), Value::String(text(value, path)?.to_owned()));
            }
            Some(Value::Object(out))
        }
        Rule::Table(table) => {
            let inner = apply(table, object(value, path)?, path, context)?;
            Some(Value::Object(inner))
        }
        Rule::Empty(rule) => {
            if !json::is_empty(value) {
                return Err(Refusal::denied(path, rule));
            }
            None
        }
        Rule::Drop | Rule::Judge(_) => None,
    })
}

/// The name of a field in messages.
#[must_use]
pub(crate) fn join(path: &str, name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn wrong(path: &str, wanted: &str) -> Refusal {
    Refusal::malformed(&format!("{path} must be {wanted}"), "G-38")
}

/// The string in `value`.
///
/// # Errors
/// When it is none.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str, Refusal> {
    match value {
        Value::String(text) if text.contains('\0') => Err(wrong(path, "text without NUL")),
        Value::String(text) => Ok(text),
        Value::Null => Ok(""),
        _ => Err(wrong(path, "a string")),
    }
}

/// The truth in `value`; absent is false.
///
/// # Errors
/// When it is something else.
pub(crate) fn flag(value: &Value, path: &str) -> Result<bool, Refusal> {
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Null => Ok(false),
        _ => Err(wrong(path, "true or false")),
    }
}

/// The integer in `value`; absent is 0.
///
/// # Errors
/// When it is something else.
pub(crate) fn whole(value: &Value, path: &str) -> Result<i64, Refusal> {
    match value {
        Value::Null => Ok(0),
        value => value.as_i64().ok_or_else(|| wrong(path, "an integer")),
    }
}

/// The strings in `value`; absent is none.
///
/// # Errors
/// When it is something else, or too many.
pub(crate) fn texts<'a>(value: &'a Value, path: &str) -> Result<Vec<&'a str>, Refusal> {
    items(value, path)?
        .iter()
        .map(|item| match item {
            Value::String(_) => text(item, path),
            _ => Err(wrong(path, "an array of strings")),
        })
        .collect()
}

/// The array in `value`; absent is empty.
///
/// # Errors
/// When it is something else, or too long.
pub(crate) fn items<'a>(value: &'a Value, path: &str) -> Result<&'a [Value], Refusal> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(items) if items.len() <= MOST => Ok(items),
        Value::Array(_) => Err(wrong(path, "shorter")),
        _ => Err(wrong(path, "an array")),
    }
}

/// The object in `value`.
///
/// # Errors
/// When it is something else, or too large.
pub(crate) fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, Refusal> {
    match value {
        Value::Object(map) if map.len() <= MOST => Ok(map),
        Value::Object(_) => Err(wrong(path, "smaller")),
        _ => Err(wrong(path, "an object")),
    }
}

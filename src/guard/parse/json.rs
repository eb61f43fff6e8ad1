//! JSON that has one meaning (G-35, G-36, G-38): one document, no key twice, bounded depth,
//! integers only. Pure.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::guard::refusal::Refusal;

/// How deep objects and arrays may be nested.
const DEPTH: usize = 32;

/// The one object in `bytes`; nothing at all is an empty one.
///
/// # Errors
/// When it is anything else, or could be read in two ways.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match value(bytes)? {
        Value::Object(map) => Ok(map),
        // The CLI sends null where it has no body.
        Value::Null => Ok(Map::new()),
        _ => Err(Refusal::malformed("the body must be a JSON object", "G-35")),
    }
}

/// The one value in `bytes`.
///
/// # Errors
/// When there is none, or it could be read in two ways.
pub fn value(bytes: &[u8]) -> Result<Value, Refusal> {
    if !is_shallow(bytes) {
        return Err(Refusal::malformed("the JSON is nested too deeply", "G-35"));
    }
    serde_json::from_slice::<Strict>(bytes)
        .map(|strict| strict.0)
        .map_err(|error| Refusal::malformed(&format!("cannot parse the JSON: {error}"), "G-36"))
}

/// Whether `bytes` are nested no deeper than allowed; known before anything recurses.
fn is_shallow(bytes: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return false;
        }
    }
    true
}

/// Whether a field with this value might as well not be there (G-37).
#[must_use]
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(|item| item.as_i64() == Some(0)),
        Value::Object(map) => map.is_empty(),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(Number::from(value)))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        i64::try_from(value)
            .map(|value| Value::Number(Number::from(value)))
            .map_err(|_| E::custom("a number is out of range"))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Value, E> {
        Err(E::custom("numbers must be integers"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{key}` occurs twice")));
            }
            let Strict(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g_36_a_key_that_occurs_twice_is_refused() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"HostConfig":{},"\u0048ostConfig":{"Privileged":true}}"#,
            r#"{"a":[{"b":1,"b":2}]}"#,
        ] {
            assert_eq!(object(text.as_bytes()).unwrap_err().status, 400, "{text}");
        }
    }

    #[test]
    fn g_35_there_is_exactly_one_object() {
        for text in ["[]", "1", "{} {}", "{}x", "{\"a\":1", "\u{feff}{}", "{\"a\":\"\\ud800\"}"] {
            assert_eq!(object(text.as_bytes()).unwrap_err().status, 400, "{text}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_err());
        assert!(object(b" \r\n").unwrap().is_empty());
        assert_eq!(object(b" {\"a\":1}\n").unwrap()["a"], 1);
    }

    #[test]
    fn g_35_depth_is_limited_before_recursion() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(object(deep(31).as_bytes()).is_ok());
        assert!(object(deep(32).as_bytes()).is_err());
        assert!(object(deep(1_000_000).as_bytes()).is_err());
        // Brackets in strings do not count.
        assert!(object(format!("{{\"a\":\"{}\\\"[\"}}", "[".repeat(99)).as_bytes()).is_ok());
    }

    #[test]
    fn g_38_numbers_are_integers_in_range() {
        for text in ["1.5", "1e3", "-0.0", "18446744073709551615", "1e999"] {
            assert!(value(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(value(b"-9223372036854775808").unwrap(), i64::MIN);
    }

    #[test]
    fn g_37_empty_is_null_false_zero_and_zeros() {
        for text in ["null", "false", "0", "\"\"", "[]", "{}", "[0,0]"] {
            assert!(is_empty(&value(text.as_bytes()).unwrap()), "{text}");
        }
        for text in ["true", "1", "-1", "\"a\"", "[1]", "[\"\"]", "{\"a\":null}", "[[]]"] {
            assert!(!is_empty(&value(text.as_bytes()).unwrap()), "{text}");
        }
    }
}

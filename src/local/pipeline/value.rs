//! YAML values as the author of a pipeline means them: YAML 1.1 booleans, scalars as text, lists
//! that may be nested or a single item, durations in words.

use std::time::Duration;

use serde_yaml::{Mapping, Value};

/// How deep lists in lists may go (GitLab: `Gitlab::Ci::Config::Entry::Script`, 10 levels).
const MAX_NESTING: usize = 10;

/// `true`, `false`, and what YAML 1.1 has for them.
pub(crate) fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A scalar as text; `None` for null, lists and mappings.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// What a value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a mapping",
        Value::Tagged(_) => "a value with a tag",
    }
}

/// A value for messages: a scalar as it is written, anything else by its kind.
pub(crate) fn found(value: &Value) -> String {
    text(value).map_or_else(|| kind(value).to_owned(), |text| format!("`{text}`"))
}

/// A scalar, or a list of scalars in which lists may be nested; `None` for anything else.
pub(crate) fn texts(value: &Value) -> Option<Vec<String>> {
    let mut out = Vec::new();
    flatten(value, 0)?.into_iter().try_for_each(|item| {
        out.push(text(item)?);
        Some(())
    })?;
    Some(out)
}

/// The items of a list in which lists may be nested; a value that is no list is its only item.
pub(crate) fn items(value: &Value) -> Option<Vec<&Value>> {
    flatten(value, 0)
}

fn flatten(value: &Value, depth: usize) -> Option<Vec<&Value>> {
    if depth > MAX_NESTING {
        return None;
    }
    match value {
        Value::Sequence(items) => {
            let mut out = Vec::new();
            for item in items {
                out.extend(flatten(item, depth + 1)?);
            }
            Some(out)
        }
        Value::Null if depth == 0 => Some(Vec::new()),
        other => Some(vec![other]),
    }
}

/// Merges `over` into `base`, which it overrides, as GitLab does for `extends` and `include`: mappings deeply, all
/// else replaced.
pub(crate) fn deep_merge(base: &mut Mapping, over: Mapping) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Mapping(old)), Value::Mapping(new)) => deep_merge(old, new),
            (Some(old), new) => *old = new,
            (None, new) => {
                base.insert(key, new);
            }
        }
    }
}

/// A duration in words, such as `1h 30m`, `90 minutes` or `1 week`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut seconds = 0.0f64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        seconds += number * unit(&rest[..end].to_ascii_lowercase())?;
        rest = rest[end..].trim_start_matches([' ', ',', '\t']);
        rest = rest.strip_prefix("and ").unwrap_or(rest).trim_start();
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// Seconds of a unit (GitLab: `ChronicDuration`).
fn unit(name: &str) -> Option<f64> {
    Some(match name {
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86_400.0,
        "w" | "wk" | "wks" | "week" | "weeks" => 604_800.0,
        "mo" | "mos" | "mth" | "month" | "months" => 2_592_000.0,
        "y" | "yr" | "yrs" | "year" | "years" => 31_557_600.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn booleans_are_those_of_yaml_1_1() {
        for (text, expected) in [
            ("yes", Some(true)),
            ("On", Some(true)),
            ("off", Some(false)),
            ("false", Some(false)),
            ("maybe", None),
            ("1", None),
        ] {
            assert_eq!(boolean(&yaml(text)), expected, "{text}");
        }
    }

    #[test]
    fn nested_lists_are_flattened_up_to_ten_levels() {
        assert_eq!(
            texts(&yaml("[a, [b, [c, 1.5]], [], true]")).unwrap(),
            ["a", "b", "c", "1.5", "true"]
        );
        assert_eq!(texts(&yaml("one")).unwrap(), ["one"]);
        assert!(texts(&yaml("[a, {b: c}]")).is_none());
        assert!(texts(&yaml(&format!("{}a{}", "[".repeat(10), "]".repeat(10)))).is_some());
        assert!(texts(&yaml(&format!("{}a{}", "[".repeat(11), "]".repeat(11)))).is_none());
    }

    #[test]
    fn merging_replaces_lists_and_merges_mappings() {
        let Value::Mapping(mut base) = yaml("{a: {x: 1, y: [1, 2]}, b: 1}") else { panic!() };
        let Value::Mapping(over) = yaml("{a: {y: [3], z: 1}, b: null}") else { panic!() };
        deep_merge(&mut base, over);
        assert_eq!(Value::Mapping(base), yaml("{a: {x: 1, y: [3], z: 1}, b: null}"));
    }

    #[test]
    fn durations_are_read_in_words() {
        for (text, seconds) in [
            ("3600", 3600),
            ("1h 30m", 5400),
            ("2h20min", 8400),
            ("3 mins 4 sec", 184),
            ("1 week", 604_800),
            ("1 hour and 1 minute", 3660),
            ("0.5h", 1800),
        ] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("soon"), None);
        assert_eq!(duration(""), None);
    }
}

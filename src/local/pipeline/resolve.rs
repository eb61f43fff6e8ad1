//! Resolves `extends` and then `!reference`, in the order GitLab does
//! (GitLab: `Gitlab::Ci::Config#expand_config`).

use serde_yaml::{Mapping, Value};

use super::{problem::Report, value};

/// GitLab: `Gitlab::Ci::Config::Extendable::Entry::MAX_NESTING_LEVELS`.
const MAX_EXTENDS: usize = 10;
/// GitLab: `Gitlab::Ci::Config::Yaml::Tags::Resolver`, 10 levels.
const MAX_REFERENCES: usize = 10;

/// Resolves both in the whole file.
pub(crate) fn resolve(root: &Mapping, report: &mut Report) -> Mapping {
    let extended = extends(root, report);
    let mut out = Mapping::new();
    for (key, value) in &extended {
        let name = key.as_str().unwrap_or_default();
        out.insert(key.clone(), references(value, &extended, 0, &[name], report));
    }
    out
}

fn extends(root: &Mapping, report: &mut Report) -> Mapping {
    let mut out = Mapping::new();
    for (key, value) in root {
        let value = match (key.as_str(), value) {
            (Some(name), Value::Mapping(entry)) if entry.contains_key("extends") => {
                Value::Mapping(extend(name, entry, root, &mut vec![name], report))
            }
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    out
}

/// `entry` over the entries that it extends, first one lowest.
fn extend<'a>(
    name: &str,
    entry: &'a Mapping,
    root: &'a Mapping,
    open: &mut Vec<&'a str>,
    report: &mut Report,
) -> Mapping {
    let mut own = entry.clone();
    let Some(bases) = own.remove("extends") else { return own };
    if value::texts(&bases).is_none() {
        let what =
            format!("must be the name of a job or a list of names, found {}", value::found(&bases));
        report.error(&[name, "extends"], what);
    }
    let mut merged = Mapping::new();
    let names = entry.get("extends").and_then(value::items).unwrap_or_default();
    for base in names.into_iter().filter_map(Value::as_str) {
        if open.contains(&base) {
            report.error(&[name, "extends"], format!("`{base}` extends itself"));
        } else if open.len() > MAX_EXTENDS {
            report.error(&[name, "extends"], format!("more than {MAX_EXTENDS} levels"));
        } else if let Some(Value::Mapping(parent)) = root.get(base) {
            open.push(base);
            let parent = extend(base, parent, root, open, report);
            open.pop();
            value::deep_merge(&mut merged, parent);
        } else {
            report.error(&[name, "extends"], format!("there is no `{base}`"));
        }
    }
    value::deep_merge(&mut merged, own);
    merged
}

fn references(
    value: &Value,
    root: &Mapping,
    depth: usize,
    path: &[&str],
    report: &mut Report,
) -> Value {
    match value {
        Value::Sequence(items) => Value::Sequence(
            items.iter().map(|i| references(i, root, depth, path, report)).collect(),
        ),
        Value::Mapping(mapping) => {
            let mut out = Mapping::new();
            for (key, value) in mapping {
                let mut inner = path.to_vec();
                inner.extend(key.as_str());
                out.insert(key.clone(), references(value, root, depth, &inner, report));
            }
            Value::Mapping(out)
        }
        Value::Tagged(tagged) if tagged.tag == "reference" => {
            let keys = value::texts(&tagged.value).unwrap_or_default();
            let shown = keys.join(", ");
            if keys.is_empty() {
                report.error(path, "`!reference` must have a list of keys");
                return Value::Null;
            }
            if depth >= MAX_REFERENCES {
                report.error(path, format!("`!reference [{shown}]` is nested too deeply"));
                return Value::Null;
            }
            let mut found = root.get(keys[0].as_str());
            for key in &keys[1..] {
                found = found.and_then(|value| match value {
                    Value::Sequence(items) => items.get(key.parse::<usize>().ok()?),
                    other => other.get(key.as_str()),
                });
            }
            if let Some(found) = found {
                references(found, root, depth + 1, path, report)
            } else {
                report.error(path, format!("`!reference [{shown}]` leads nowhere"));
                Value::Null
            }
        }
        Value::Tagged(tagged) => {
            report.warn(path, format!("the tag `{}` has no meaning here", tagged.tag));
            references(&tagged.value, root, depth, path, report)
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> (Value, Vec<String>) {
        let mut report = Report::default();
        let mapping = resolve(&serde_yaml::from_str(text).unwrap(), &mut report);
        let errors = report.errors.iter().map(|p| format!("{}: {}", p.path, p.what)).collect();
        (Value::Mapping(mapping), errors)
    }

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn extends_merges_mappings_deeply_and_replaces_lists() {
        let (value, errors) = resolved(
            ".a: {script: [a], variables: {X: 1, Y: 1}, image: a}\n\
             .b: {extends: .a, variables: {Y: 2}}\n\
             .c: {script: [c], tags: [t]}\n\
             test: {extends: [.b, .c], variables: {Z: 3}}\n",
        );
        assert_eq!(errors, [""; 0]);
        let expected = "{script: [c], variables: {X: 1, Y: 2, Z: 3}, image: a, tags: [t]}";
        assert_eq!(value["test"], yaml(expected));
    }

    #[test]
    fn extends_of_nothing_and_of_itself_are_errors() {
        let (_, errors) = resolved("a: {extends: b}\nb: {extends: a}\nc: {extends: .gone}\n");
        assert_eq!(
            errors,
            [
                "b.extends: `a` extends itself",
                "a.extends: `b` extends itself",
                "c.extends: there is no `.gone`"
            ]
        );
    }

    #[test]
    fn references_are_resolved_in_lists_mappings_and_through_each_other() {
        let (value, errors) = resolved(
            ".s: {script: [one, !reference [.t, script]], variables: {A: 1}}\n\
             .t: {script: [two]}\n\
             test:\n  script: [!reference [.s, script], three]\n  variables: !reference [.s, variables]\n\
             \x20 image: !reference [.s, variables, A]\n  services: [!reference [.t, script, 0]]\n",
        );
        assert_eq!(errors, [""; 0]);
        let expected =
            "{script: [[one, [two]], three], variables: {A: 1}, image: 1, services: [two]}";
        assert_eq!(value["test"], yaml(expected));
    }

    #[test]
    fn references_to_nothing_and_in_a_circle_are_errors() {
        let (_, errors) = resolved(
            ".a: {script: [!reference [.a, script]]}\ntest: {script: [!reference [.gone, script]]}\n",
        );
        assert_eq!(
            errors,
            [
                ".a.script: `!reference [.a, script]` is nested too deeply",
                "test.script: `!reference [.gone, script]` leads nowhere"
            ]
        );
    }
}

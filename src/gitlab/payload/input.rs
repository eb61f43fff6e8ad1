//! `inputs` of a job: `${{ job.inputs.… }}` in a payload is interpolated before anything else looks at
//! it (docs/compatibility.md, "Job inputs").
//!
//! An expression is a path, `job.inputs.<key>` with members
//! (`.name`, `["name"]`) and elements (`[1]`), or `str(…)`, `num(…)` or `bool(…)` of an expression.
//! A value that is no text becomes its JSON.

use serde_json::Value;

use crate::gitlab::api::wire::{Input, JobPayload};

/// Why an input cannot be used. The job's author reads this; it shows no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Content of another type than announced, or no content.
    #[error("the job input `{key}` is no {kind}")]
    Type {
        /// The input.
        key: String,
        /// What the server said it is.
        kind: String,
    },
    /// `${{` without its end.
    #[error("`${{{{` without its `}}}}`")]
    Open,
    /// Not understood.
    #[error("`${{{{ {text} }}}}` cannot be understood: {why}")]
    Syntax {
        /// The expression.
        text: String,
        /// Why.
        why: String,
    },
    /// There is nothing of that name.
    #[error("`${{{{ {text} }}}}` cannot be evaluated: {why}")]
    Value {
        /// The expression.
        text: String,
        /// Why.
        why: String,
    },
    /// Its value must not get into text.
    #[error("the job input `{key}` is sensitive and cannot be used in `${{{{ {text} }}}}`")]
    Sensitive {
        /// The input.
        key: String,
        /// The expression.
        text: String,
    },
}

/// Checks that each input is what it says it is.
///
/// # Errors
/// With the first that is not.
pub(super) fn validate(inputs: &[Input]) -> Result<(), InputError> {
    for input in inputs {
        let (kind, content) = (input.value.kind.as_str(), &input.value.content);
        let fits = match kind {
            "string" => content.is_string(),
            "number" => content.is_number(),
            "boolean" => content.is_boolean(),
            "array" => content.is_array(),
            "struct" => content.is_object(),
            _ => false,
        };
        if input.key.is_empty() || !fits {
            return Err(InputError::Type { key: input.key.clone(), kind: kind.to_owned() });
        }
    }
    Ok(())
}

/// Replaces expressions in all fields that may have them. Without inputs nothing is replaced.
///
/// # Errors
/// With the first expression that cannot be.
pub(super) fn interpolate(payload: &mut JobPayload) -> Result<(), InputError> {
    if payload.inputs.is_empty() {
        return Ok(());
    }
    let inputs = std::mem::take(&mut payload.inputs);
    let fill = |text: &mut String| -> Result<(), InputError> {
        if text.contains(OPEN) {
            *text = expand(text, &inputs)?;
        }
        Ok(())
    };
    for step in &mut payload.steps {
        if matches!(step.name.as_str(), "script" | "after_script") {
            step.script.iter_mut().try_for_each(fill)?;
        }
    }
    for image in std::iter::once(&mut payload.image).chain(&mut payload.services) {
        fill(&mut image.name)?;
        image.command.iter_mut().flatten().try_for_each(fill)?;
        image.entrypoint.iter_mut().flatten().try_for_each(fill)?;
        image.pull_policy.iter_mut().try_for_each(fill)?;
        image.executor_opts.values_mut().try_for_each(|value| fill_all(value, &fill))?;
    }
    for artifact in &mut payload.artifacts {
        fill(&mut artifact.name)?;
        artifact.paths.iter_mut().chain(&mut artifact.exclude).try_for_each(fill)?;
        fill(&mut artifact.when)?;
        fill(&mut artifact.expire_in)?;
    }
    for cache in &mut payload.cache {
        fill(&mut cache.key)?;
        fill(&mut cache.policy)?;
        cache.paths.iter_mut().chain(&mut cache.fallback_keys).try_for_each(fill)?;
        fill(&mut cache.when)?;
    }
    payload.inputs = inputs;
    Ok(())
}

/// All text in a value.
fn fill_all(
    value: &mut Value,
    fill: &impl Fn(&mut String) -> Result<(), InputError>,
) -> Result<(), InputError> {
    match value {
        Value::String(text) => fill(text),
        Value::Array(values) => values.iter_mut().try_for_each(|value| fill_all(value, fill)),
        Value::Object(map) => map.values_mut().try_for_each(|value| fill_all(value, fill)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

const OPEN: &str = "${{";
const CLOSE: &str = "}}";

fn expand(text: &str, inputs: &[Input]) -> Result<String, InputError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(OPEN) {
        out.push_str(&rest[..start]);
        let inside = &rest[start + OPEN.len()..];
        let end = close(inside).ok_or(InputError::Open)?;
        out.push_str(&shown(&evaluate(&inside[..end], inputs)?));
        rest = &inside[end + CLOSE.len()..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the expression ends; braces in quotes do not end it.
fn close(text: &str) -> Option<usize> {
    let mut quoted: Option<char> = None;
    for (at, c) in text.char_indices() {
        match quoted {
            Some(quote) if c == quote => quoted = None,
            None if matches!(c, '"' | '\'') => quoted = Some(c),
            None if text[at..].starts_with(CLOSE) => return Some(at),
            Some(_) | None => {}
        }
    }
    None
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn evaluate(text: &str, inputs: &[Input]) -> Result<Value, InputError> {
    let mut parser = Parser { text: text.trim(), rest: text.trim(), inputs };
    let value = parser.expression()?;
    if parser.rest.is_empty() {
        Ok(value)
    } else {
        Err(parser.syntax(format!("`{}` is too much", parser.rest)))
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    inputs: &'a [Input],
}

impl<'a> Parser<'a> {
    fn syntax(&self, why: impl Into<String>) -> InputError {
        InputError::Syntax { text: self.text.to_owned(), why: why.into() }
    }

    fn value(&self, why: impl Into<String>) -> InputError {
        InputError::Value { text: self.text.to_owned(), why: why.into() }
    }

    /// Whether `token` is next, which is then passed.
    fn take(&mut self, token: char) -> bool {
        let rest = self.rest.trim_start();
        let taken = rest.strip_prefix(token);
        self.rest = taken.map_or(rest, str::trim_start);
        taken.is_some()
    }

    fn must(&mut self, token: char) -> Result<(), InputError> {
        if self.take(token) { Ok(()) } else { Err(self.syntax(format!("`{token}` is missing"))) }
    }

    fn name(&mut self) -> Result<&'a str, InputError> {
        let rest = self.rest.trim_start();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.syntax("a name is missing"));
        }
        self.rest = rest[end..].trim_start();
        Ok(&rest[..end])
    }

    fn expression(&mut self) -> Result<Value, InputError> {
        let name = self.name()?;
        if name != "job" {
            self.must('(')?;
            let value = self.expression()?;
            self.must(')')?;
            return self.call(name, value);
        }
        self.must('.')?;
        if self.name()? != "inputs" {
            return Err(self.syntax("only `job.inputs` is known"));
        }
        let key = if self.take('[') {
            let key = self.quoted()?;
            self.must(']')?;
            key
        } else {
            self.must('.')?;
            self.name()?
        };
        let Some(input) = self.inputs.iter().find(|input| input.key == key) else {
            return Err(self.value(format!("the job has no input `{key}`")));
        };
        if input.value.sensitive {
            let (key, text) = (key.to_owned(), self.text.to_owned());
            return Err(InputError::Sensitive { key, text });
        }
        self.members(&input.value.content)
    }

    fn members(&mut self, mut value: &'a Value) -> Result<Value, InputError> {
        loop {
            value = if self.take('.') {
                let name = self.name()?;
                value.get(name).ok_or_else(|| self.value(format!("there is no `{name}`")))?
            } else if self.take('[') {
                let found = self.element(value)?;
                self.must(']')?;
                found
            } else {
                return Ok(value.clone());
            };
        }
    }

    fn element(&mut self, value: &'a Value) -> Result<&'a Value, InputError> {
        if self.rest.starts_with(['"', '\'']) {
            let name = self.quoted()?;
            return value.get(name).ok_or_else(|| self.value(format!("there is no `{name}`")));
        }
        let digits = self.name()?;
        let index: usize =
            digits.parse().map_err(|_| self.syntax(format!("`{digits}` is no index")))?;
        value.get(index).ok_or_else(|| self.value(format!("there is no element {index}")))
    }

    fn quoted(&mut self) -> Result<&'a str, InputError> {
        let rest = self.rest.trim_start();
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let quote = quote.ok_or_else(|| self.syntax("a quoted name is missing"))?;
        let end = rest[1..].find(quote).ok_or_else(|| self.syntax("a quote is not closed"))?;
        self.rest = rest[end + 2..].trim_start();
        Ok(&rest[1..=end])
    }

    fn call(&self, function: &str, value: Value) -> Result<Value, InputError> {
        match (function, &value) {
            ("str", _) => Ok(Value::String(shown(&value))),
            ("num", Value::Number(_)) | ("bool", Value::Bool(_)) => Ok(value),
            ("num", Value::String(text)) => serde_json::from_str::<serde_json::Number>(text.trim())
                .map(Value::Number)
                .map_err(|_| self.value("the text is no number")),
            ("bool", Value::String(text)) => match text.trim() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(self.value("the text is neither true nor false")),
            },
            ("num" | "bool", _) => Err(self.value(format!("{function}() cannot convert this"))),
            (other, _) => Err(self.syntax(format!("`{other}` is no function or name"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inputs() -> Vec<Input> {
        serde_json::from_value(json!([
            {"key": "profile", "value": {"type": "string", "content": "release"}},
            {"key": "count", "value": {"type": "number", "content": 3}},
            {"key": "fast", "value": {"type": "boolean", "content": true}},
            {"key": "list", "value": {"type": "array", "content": ["a", "b", {"c": 1.5}]}},
            {"key": "on-call", "value": {"type": "struct", "content": {"who": {"name": "é"}}}},
            {"key": "secret", "value": {"type": "string", "content": "hush", "sensitive": true}},
        ]))
        .unwrap()
    }

    fn of(text: &str) -> Result<String, String> {
        expand(text, &inputs()).map_err(|error| error.to_string())
    }

    #[test]
    fn paths_elements_members_and_conversions_are_evaluated() {
        for (text, expected) in [
            ("cargo test --profile ${{ job.inputs.profile }}!", "cargo test --profile release!"),
            ("${{job.inputs.count}}/${{ job.inputs.fast }}", "3/true"),
            ("${{ job.inputs.list[1] }}", "b"),
            ("${{ job.inputs.list[2].c }}", "1.5"),
            ("${{ job.inputs.list[ 2 ][\"c\"] }}", "1.5"),
            ("${{ job.inputs.on-call.who.name }}", "é"),
            ("${{ job.inputs['on-call'].who['name'] }}", "é"),
            ("${{ str(job.inputs.list) }}", r#"["a","b",{"c":1.5}]"#),
            ("${{ num(str(job.inputs.count)) }}", "3"),
            ("$ { {{ }} ${A} ${{ job.inputs.count }}", "$ { {{ }} ${A} 3"),
        ] {
            assert_eq!(of(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_evaluated_is_shown_with_its_reason() {
        for (text, reason) in [
            ("${{ job.inputs.nope }}", "the job has no input `nope`"),
            ("${{ job.inputs.list[3] }}", "there is no element 3"),
            ("${{ job.inputs.profile.x }}", "there is no `x`"),
            ("${{ job.inputs.profile", "without its"),
            ("${{ job.inputs.profile profile }}", "is too much"),
            ("${{ env.HOME }}", "`(` is missing"),
            ("${{ upper(job.inputs.profile) }}", "`upper` is no function"),
            ("${{ }}", "a name is missing"),
            ("${{ num(job.inputs.profile) }}", "is no number"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let error = of("${{ job.inputs.secret }}").unwrap_err();
        assert!(error.contains("`secret` is sensitive") && !error.contains("hush"), "{error}");
    }

    #[test]
    fn content_must_be_of_the_type_that_is_said() {
        let of = |value| validate(&serde_json::from_value::<Vec<Input>>(value).unwrap());
        assert_eq!(validate(&inputs()), Ok(()));
        for wrong in [
            json!([{"key": "a", "value": {"type": "number", "content": "3"}}]),
            json!([{"key": "a", "value": {"type": "string", "content": null}}]),
            json!([{"key": "a", "value": {"type": "text", "content": "3"}}]),
            json!([{"key": "", "value": {"type": "string", "content": "3"}}]),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn inputs_are_replaced_where_they_may_be_and_nowhere_else() {
        let text = "${{ job.inputs.profile }}";
        let mut payload: JobPayload = serde_json::from_value(json!({
            "id": 1, "token": "t", "inputs": serde_json::to_value(inputs()).unwrap(),
            "steps": [
                {"name": "script", "script": [text]},
                {"name": "after_script", "script": [text]},
                {"name": "release", "script": [text]},
            ],
            "variables": [{"key": "A", "value": text}],
            "image": {"name": text, "alias": text, "entrypoint": [text], "pull_policy": [text],
                      "executor_opts": {"docker": {"user": text}}},
            "services": [{"name": text, "command": [text]}],
            "artifacts": [{"name": text, "paths": [text], "exclude": [text], "when": text,
                           "expire_in": text}],
            "cache": [{"key": text, "policy": text, "paths": [text], "when": text,
                       "fallback_keys": [text]}],
        }))
        .unwrap();
        interpolate(&mut payload).unwrap();
        let all = serde_json::to_string(&payload).unwrap();
        assert_eq!(all.matches(text).count(), 3, "{all}");
        assert_eq!(payload.steps[2].script, [text]);
        assert_eq!(payload.variables[0].value, text);
        assert_eq!(payload.image.alias, text);
    }

    #[test]
    fn without_inputs_nothing_is_replaced() {
        let mut payload: JobPayload = serde_json::from_value(json!({
            "id": 1, "token": "t", "steps": [{"name": "script", "script": ["${{ 1 }}"]}],
        }))
        .unwrap();
        interpolate(&mut payload).unwrap();
        assert_eq!(payload.steps[0].script, ["${{ 1 }}"]);
    }
}

//! Reads the fields of a mapping with the type they must have, and reports the others.

use serde_yaml::{Mapping, Value};

use super::{problem::Report, value};

/// A mapping and the keys that lead to it.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    pub(crate) map: &'a Mapping,
    at: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    /// The mapping at `at`.
    pub(crate) fn new(map: &'a Mapping, at: &[&'a str]) -> Self {
        Self { map, at: at.to_vec() }
    }

    /// The keys that lead to `key`.
    pub(crate) fn path(&self, key: &'a str) -> Vec<&'a str> {
        let mut path = self.at.clone();
        path.push(key);
        path
    }

    /// A field that is there and not null.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A scalar.
    pub(crate) fn text(&self, key: &'a str, report: &mut Report) -> Option<String> {
        let written = self.value(key)?;
        let text = value::text(written);
        if text.is_none() {
            let what = format!("must be a string, found {}", value::found(written));
            report.error(&self.path(key), what);
        }
        text
    }

    /// A scalar or a list of them.
    pub(crate) fn texts(&self, key: &'a str, report: &mut Report) -> Vec<String> {
        self.maybe_texts(key, report).unwrap_or_default()
    }

    /// A scalar or a list of them, if it is there.
    pub(crate) fn maybe_texts(&self, key: &'a str, report: &mut Report) -> Option<Vec<String>> {
        let written = self.value(key)?;
        let texts = value::texts(written);
        if texts.is_none() {
            let found = match written {
                Value::Sequence(_) => "a list with something else in it",
                other => value::kind(other),
            };
            let what = format!(
                "must be a string or a list of strings, nested at most 10 levels deep, found {found}"
            );
            report.error(&self.path(key), what);
        }
        texts
    }

    /// A boolean.
    pub(crate) fn boolean(&self, key: &'a str, report: &mut Report) -> Option<bool> {
        let written = self.value(key)?;
        let boolean = value::boolean(written);
        if boolean.is_none() {
            let what = format!("must be true or false, found {}", value::found(written));
            report.error(&self.path(key), what);
        }
        boolean
    }

    /// A mapping.
    pub(crate) fn inner(&self, key: &'a str, report: &mut Report) -> Option<Fields<'a>> {
        let written = self.value(key)?;
        let map = written.as_mapping();
        if map.is_none() {
            let what = format!("must be a mapping, found {}", value::kind(written));
            report.error(&self.path(key), what);
        }
        Some(Fields { map: map?, at: self.path(key) })
    }

    /// One of `words`, or a text with variables.
    pub(crate) fn word(&self, key: &'a str, words: &[&str], report: &mut Report) -> String {
        let Some(text) = self.text(key, report) else { return String::new() };
        if !words.contains(&text.as_str()) && !text.contains('$') {
            let what = format!("must be one of {}, found `{text}`", words.join(", "));
            report.error(&self.path(key), what);
        }
        text
    }

    /// Warns of every key that is not `known`.
    pub(crate) fn only(&self, known: &[&str], report: &mut Report) {
        for key in self.map.keys().filter_map(Value::as_str) {
            if !known.contains(&key) {
                let path: Vec<&str> = self.at.iter().copied().chain([key]).collect();
                report.warn(&path, "is not supported and has no effect here");
            }
        }
    }
}

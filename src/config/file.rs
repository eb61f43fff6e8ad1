//! The file as written: a reader over its tables that takes values out by key and type, notes
//! every problem with its place instead of stopping at the first, and knows at the end which keys
//! were never read. What the values mean is decided in `check`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    ops::Range,
    time::Duration,
};

use toml_edit::{Item, TableLike, Value};

use super::problem::{Problem, Warning};
use crate::base::{duration, secret::Secret};

/// Problems and warnings that were found while a file was read, and the keys that were read.
#[derive(Debug)]
pub(super) struct Notes<'a> {
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Warning>>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Notes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            read: RefCell::default(),
        }
    }

    /// The line of a byte range, counted from 1.
    pub(super) fn line(&self, span: Option<Range<usize>>) -> Option<usize> {
        let before = self.text.get(..span?.start)?;
        Some(before.bytes().filter(|&b| b == b'\n').count() + 1)
    }

    /// Notes a problem that belongs to no key.
    pub(super) fn problem(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Problems, warnings, and the keys that were read, without the numbers of tables.
    pub(super) fn into_parts(self) -> (Vec<Problem>, Vec<Warning>, BTreeSet<String>) {
        let (mut problems, mut warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        problems.sort_by_key(|problem| problem.line);
        warnings.sort_by_key(|warning| warning.line);
        // A key that is read twice is reported once.
        problems.dedup();
        warnings.dedup();
        (problems, warnings, self.read.into_inner())
    }
}

/// One table of the file; an absent table reads as an empty one.
#[derive(Clone)]
pub(super) struct Section<'a> {
    notes: &'a Notes<'a>,
    table: Option<&'a dyn TableLike>,
    path: String,
    line: Option<usize>,
    known: RefCell<Vec<String>>,
}

impl<'a> Section<'a> {
    pub(super) fn root(notes: &'a Notes<'a>, table: &'a dyn TableLike) -> Self {
        Self {
            notes,
            table: Some(table),
            path: String::new(),
            line: None,
            known: RefCell::default(),
        }
    }

    /// Whether the file has this table.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Where the key stands, as messages name it.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The key's item and its line. An exact spelling takes precedence; other letter case is
    /// accepted, as gitlab-runner's decoder does.
    fn find(&self, key: &str) -> Option<(&'a Item, Option<usize>)> {
        self.known.borrow_mut().push(key.to_owned());
        self.notes.read.borrow_mut().insert(without_numbers(&self.path_of(key)));
        let table = self.table?;
        let (name, item) = table.get_key_value(key).or_else(|| {
            let name = table.iter().map(|(name, _)| name).find(|n| n.eq_ignore_ascii_case(key))?;
            table.get_key_value(name)
        })?;
        let line = self.notes.line(name.span().or_else(|| item.span()));
        Some((item, line.or(self.line)))
    }

    /// Whether the key is there at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Notes a problem of `key`; `value` must not be a secret.
    pub(super) fn problem(&self, key: &str, value: Option<&str>, why: impl Display, hint: &str) {
        let found = self.find(key);
        let is_number = found.is_some_and(|(item, _)| item.is_integer());
        let as_toml = |value: &str| if is_number { value.to_owned() } else { format!("{value:?}") };
        self.notes.problem(Problem {
            key: self.path_of(key),
            line: found.map_or(self.line, |(_, line)| line),
            value: value.map(as_toml),
            why: why.to_string(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        });
    }

    /// Notes a warning about `key`.
    pub(super) fn warn(&self, key: &str, message: impl Display) {
        let line = self.find(key).map_or(self.line, |(_, line)| line);
        let message = message.to_string();
        self.notes.warnings.borrow_mut().push(Warning { key: self.path_of(key), line, message });
    }

    fn wrong_type(&self, key: &str, item: &Item, expected: &str) {
        let why = format!("must be {expected}, found {}", type_name(item));
        // Where text is expected, a value of another type may be a secret all the same.
        let may_be_shown = matches!(expected, "a whole number" | "true or false");
        self.problem(key, item.as_str().filter(|_| may_be_shown), why, "");
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        take: impl FnOnce(&'a Item) -> Option<T>,
    ) -> Option<T> {
        let (item, _) = self.find(key)?;
        let value = take(item);
        if value.is_none() {
            self.wrong_type(key, item, expected);
        }
        value
    }

    /// A text; empty counts as absent, as for gitlab-runner.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let text = self.typed(key, "text", Item::as_str)?;
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A text that must not be shown.
    pub(super) fn secret(&self, key: &str) -> Secret {
        Secret::new(self.text(key).unwrap_or_default())
    }

    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        self.typed(key, "a whole number", Item::as_integer)
    }

    /// A whole number of a narrower type; what does not fit is a problem.
    pub(super) fn number<T: TryFrom<i64>>(&self, key: &str) -> Option<T> {
        let number = self.integer(key)?;
        let narrow = T::try_from(number).ok();
        if narrow.is_none() {
            self.problem(key, Some(&number.to_string()), "out of range", "");
        }
        narrow
    }

    /// A number of which zero and less mean the default.
    pub(super) fn positive<T: TryFrom<i64>>(&self, key: &str) -> Option<T> {
        if self.integer(key).is_some_and(|number| number <= 0) {
            return None;
        }
        self.number(key)
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        self.typed(key, "true or false", Item::as_bool)
    }

    /// A list of texts; absent reads as empty.
    pub(super) fn list(&self, key: &str) -> Vec<String> {
        self.typed(key, "a list of texts", texts).unwrap_or_default()
    }

    /// A text or a list of texts; `None` when absent or without entries.
    pub(super) fn text_or_list(&self, key: &str) -> Option<Vec<String>> {
        let take = |item: &'a Item| match item.as_str() {
            Some("") => Some(Vec::new()),
            Some(text) => Some(vec![text.to_owned()]),
            None => texts(item),
        };
        self.typed(key, "a text or a list of texts", take).filter(|list| !list.is_empty())
    }

    /// A table of texts.
    pub(super) fn map(&self, key: &str) -> BTreeMap<String, String> {
        self.table_of(key, "text", |value| value.as_str().map(str::to_owned))
    }

    /// A table of switches.
    pub(super) fn switches(&self, key: &str) -> BTreeMap<String, bool> {
        self.table_of(key, "true or false", Item::as_bool)
    }

    /// A table of lists.
    pub(super) fn lists(&self, key: &str) -> BTreeMap<String, Vec<String>> {
        self.table_of(key, "a list of texts", texts)
    }

    fn table_of<T>(
        &self,
        key: &str,
        expected: &str,
        take: impl Fn(&Item) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let section = self.table(key);
        let Some(table) = section.table else { return BTreeMap::new() };
        let mut map = BTreeMap::new();
        for (name, item) in table.iter() {
            match take(item) {
                Some(value) => {
                    map.insert(name.to_owned(), value);
                }
                None => section.in_map(|| section.wrong_type(name, item, expected)),
            }
        }
        map
    }

    /// Notes a problem of an entry of a free table, such as a label.
    pub(super) fn problem_in_map(&self, key: &str, value: Option<&str>, why: impl Display) {
        self.in_map(|| self.problem(key, value, why, ""));
    }

    /// Notes a warning about an entry of a free table.
    pub(super) fn warn_in_map(&self, key: &str, message: impl Display) {
        self.in_map(|| self.warn(key, message));
    }

    /// Runs `note` without letting the keys of a free table count as keys of the file.
    fn in_map(&self, note: impl FnOnce()) {
        let before = self.notes.read.borrow().clone();
        note();
        *self.notes.read.borrow_mut() = before;
    }

    /// A duration with its sign: text as Go writes it, or nanoseconds.
    pub(super) fn duration(&self, key: &str) -> Option<(bool, Duration)> {
        let (item, _) = self.find(key)?;
        match (item.as_str(), item.as_integer()) {
            (Some(""), _) => None,
            (Some(text), _) => match duration::parse(text) {
                Ok(duration) => Some(duration),
                Err(error) => {
                    self.problem(key, Some(text), error, "write for example \"90s\" or \"1h30m\"");
                    None
                }
            },
            (_, Some(nanos)) => Some((nanos < 0, Duration::from_nanos(nanos.unsigned_abs()))),
            _ => {
                self.wrong_type(key, item, "a duration such as \"90s\"");
                None
            }
        }
    }

    /// A duration of which zero and less mean the default.
    pub(super) fn positive_duration(&self, key: &str) -> Option<Duration> {
        self.duration(key).filter(|(negative, d)| !negative && !d.is_zero()).map(|(_, d)| d)
    }

    /// A point in time, RFC 3339; Go's zero time counts as absent.
    pub(super) fn timestamp(&self, key: &str) -> Option<String> {
        let take = |item: &'a Item| {
            item.as_datetime().map(ToString::to_string).or_else(|| item.as_str().map(str::to_owned))
        };
        let text = self.typed(key, "a point in time", take)?;
        (!text.is_empty() && !text.starts_with("0001-01-01")).then_some(text)
    }

    /// A text that `parse` must understand.
    pub(super) fn parsed<T, E: Display>(
        &self,
        key: &str,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, Some(&text), error, hint);
                None
            }
        }
    }

    /// A text that is one of `words`, as its value.
    pub(super) fn one_of<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        self.parsed(key, "", |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                match words.split_last() {
                    Some((last, [])) => format!("must be {last}"),
                    Some((last, others)) => format!("must be {} or {last}", others.join(", ")),
                    None => String::new(),
                }
            })
        })
    }

    /// A list whose entries `parse` must understand; others are problems and are left out.
    pub(super) fn parsed_list<T, E: Display>(
        &self,
        key: &str,
        hint: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        let mut parsed = Vec::new();
        for text in self.list(key) {
            match parse(&text) {
                Ok(value) => parsed.push(value),
                Err(error) => self.problem(key, Some(&text), error, hint),
            }
        }
        parsed
    }

    fn child(&self, key: &str, number: Option<usize>, table: Option<&'a dyn TableLike>) -> Self {
        let mut path = self.path_of(key);
        if let Some(number) = number {
            path = format!("{path}[{number}]");
        }
        Self { notes: self.notes, table, path, line: self.line, known: RefCell::default() }
    }

    /// The table under `key`.
    pub(super) fn table(&self, key: &str) -> Self {
        let found = self.find(key);
        let table = self.typed(key, "a table", |item| item.as_table_like());
        Self {
            line: found.and_then(|(_, line)| line).or(self.line),
            ..self.child(key, None, table)
        }
    }

    /// The array of tables under `key`, written either way.
    pub(super) fn tables(&self, key: &str) -> Vec<Self> {
        let Some((item, _)) = self.find(key) else { return Vec::new() };
        if let Some(array) = item.as_array_of_tables() {
            let one = |(number, table): (usize, &'a toml_edit::Table)| Self {
                line: self.notes.line(table.span()).or(self.line),
                ..self.child(key, Some(number), Some(table))
            };
            return array.iter().enumerate().map(one).collect();
        }
        let inline = |value: &'a Value| value.as_inline_table().map(|t| t as &'a dyn TableLike);
        let inline: Option<Vec<_>> =
            item.as_array().and_then(|array| array.iter().map(inline).collect());
        let Some(inline) = inline else {
            self.wrong_type(key, item, "an array of tables");
            return Vec::new();
        };
        let one = |(number, table)| self.child(key, Some(number), Some(table));
        inline.into_iter().enumerate().map(one).collect()
    }

    /// A key that is known and has no effect here: warned of when it is set to something.
    pub(super) fn unsupported(&self, key: &str, message: &str) {
        if let Some((item, _)) = self.find(key)
            && !is_unset(item)
        {
            self.warn(key, message);
        }
    }

    /// Warns of every key that was not read.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        let known = self.known.borrow().clone();
        for (name, _) in table.iter() {
            if known.iter().any(|key| key.eq_ignore_ascii_case(name)) {
                continue;
            }
            let message = match nearest(name, &known) {
                Some(near) => format!("unknown key, ignored; did you mean `{near}`?"),
                None => "unknown key, ignored".to_owned(),
            };
            self.in_map(|| self.warn(name, message));
        }
    }
}

fn texts(item: &Item) -> Option<Vec<String>> {
    item.as_array()?.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

/// Whether a value is what gitlab-runner writes for "not set": empty, zero, false.
fn is_unset(item: &Item) -> bool {
    fn is_unset_value(value: &Value) -> bool {
        match value {
            Value::String(text) => text.value().is_empty(),
            Value::Integer(number) => *number.value() == 0,
            Value::Float(number) => *number.value() == 0.0,
            Value::Boolean(on) => !on.value(),
            Value::Datetime(_) => false,
            Value::Array(array) => array.is_empty(),
            Value::InlineTable(table) => table.iter().all(|(_, v)| is_unset_value(v)),
        }
    }
    match item {
        Item::None => true,
        Item::Value(value) => is_unset_value(value),
        Item::Table(table) => table.iter().all(|(_, item)| is_unset(item)),
        Item::ArrayOfTables(array) => array.is_empty(),
    }
}

fn type_name(item: &Item) -> &'static str {
    match item {
        Item::None => "nothing",
        Item::Table(_) | Item::Value(Value::InlineTable(_)) => "a table",
        Item::ArrayOfTables(_) => "an array of tables",
        Item::Value(Value::String(_)) => "text",
        Item::Value(Value::Integer(_)) => "a whole number",
        Item::Value(Value::Float(_)) => "a decimal number",
        Item::Value(Value::Boolean(_)) => "true or false",
        Item::Value(Value::Datetime(_)) => "a point in time",
        Item::Value(Value::Array(_)) => "a list",
    }
}

/// `runners[0].docker.image` as `runners.docker.image`.
fn without_numbers(path: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

/// The known key that is at most two edits away.
fn nearest<'k>(name: &str, known: &'k [String]) -> Option<&'k str> {
    let lower = name.to_ascii_lowercase();
    known
        .iter()
        .map(|key| (distance(&lower, &key.to_ascii_lowercase()), key.as_str()))
        .filter(|&(distance, key)| distance <= 2 && distance < key.len() / 2)
        .min()
        .map(|(_, key)| key)
}

/// The number of single-character edits between two texts (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_answered_with_the_nearest_known_one() {
        let known: Vec<String> = ["image", "volumes", "memory"].map(str::to_owned).into();
        assert_eq!(nearest("volume", &known), Some("volumes"));
        assert_eq!(nearest("memmory", &known), Some("memory"));
        assert_eq!(nearest("nothing_like_it", &known), None);
    }

    #[test]
    fn what_gitlab_runner_writes_for_nothing_counts_as_unset() {
        let text = "a = ''\nb = 0\nc = false\nd = []\n[e]\nf = 0\n";
        let document = toml_edit::Document::parse(text).unwrap();
        assert!(document.iter().all(|(_, item)| is_unset(item)));
        let document = toml_edit::Document::parse("[e]\nf = 1\n").unwrap();
        assert!(!document.iter().all(|(_, item)| is_unset(item)));
    }
}

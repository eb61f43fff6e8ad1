//! The variables of a job: assembled in order, expanded once.

use std::fmt;

use crate::config::values;

/// A variable as it was written.
#[derive(Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a property of its own")]
pub struct Variable {
    /// Name.
    pub key: String,
    /// Value, or the content of a file variable.
    pub value: String,
    /// Given to services too.
    pub public: bool,
    /// The value goes to a file, and the environment has its path.
    pub file: bool,
    /// Masked in the trace.
    pub masked: bool,
    /// Not expanded.
    pub raw: bool,
}

impl fmt::Debug for Variable {
    /// Prints the name alone: any value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Variable").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Variables in order, as they were written. Later ones take precedence.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    list: Vec<Sourced>,
}

/// A variable, and whose it is.
#[derive(Debug, Clone)]
struct Sourced {
    variable: Variable,
    /// Made by the runner: services see it though it is not public.
    internal: bool,
}

/// Variables with their references replaced, each name once.
#[derive(Debug, Clone, Default)]
pub struct Expanded {
    list: Vec<ExpandedVariable>,
}

/// One of [`Expanded`].
#[derive(Clone, PartialEq, Eq)]
pub struct ExpandedVariable {
    /// Name.
    pub key: String,
    /// What the environment holds: the value, or the path of a file variable.
    pub value: String,
    /// What a file variable's file holds.
    pub file: Option<String>,
    /// Masked in the trace.
    pub masked: bool,
    /// Services see it: it is public, or the runner's own.
    pub for_services: bool,
}

impl fmt::Debug for ExpandedVariable {
    /// Prints the name alone: any value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpandedVariable").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Variables {
    /// Adds one as the server sent it.
    pub fn push(&mut self, variable: Variable) {
        self.list.push(Sourced { variable, internal: false });
    }

    /// Adds one of the runner's own.
    pub fn push_own(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.list.push(Sourced {
            variable: Variable { key: key.into(), value: value.into(), ..Variable::default() },
            internal: true,
        });
    }

    /// Adds a file variable of the runner's own.
    pub fn push_own_file(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.push_own(key, value);
        if let Some(last) = self.list.last_mut() {
            last.variable.file = true;
        }
    }

    /// The value as written, of the last definition.
    #[must_use]
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.find(key).map(|v| v.value.as_str())
    }

    fn find(&self, key: &str) -> Option<&Variable> {
        self.list.iter().rev().map(|e| &e.variable).find(|v| v.key == key)
    }

    /// Replaces references, one pass: each by the value as written of the last definition, a file
    /// variable's by its path below `temp_dir`. Raw values stay as they are.
    #[must_use]
    pub fn expand(&self, temp_dir: &str) -> Expanded {
        let path = |key: &str| format!("{temp_dir}/{key}");
        let lookup =
            |key: &str| self.find(key).map(|v| if v.file { path(key) } else { v.value.clone() });
        let mut list: Vec<ExpandedVariable> = Vec::with_capacity(self.list.len());
        for Sourced { variable, internal } in &self.list {
            let value = if variable.raw {
                variable.value.clone()
            } else {
                expand(&variable.value, &lookup)
            };
            list.retain(|v| v.key != variable.key);
            list.push(ExpandedVariable {
                key: variable.key.clone(),
                masked: variable.masked,
                for_services: variable.public || *internal,
                file: variable.file.then(|| value.clone()),
                value: if variable.file { path(&variable.key) } else { value },
            });
        }
        Expanded { list }
    }
}

impl Expanded {
    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &ExpandedVariable> {
        self.list.iter()
    }

    /// Adds one of the runner's own, in place of any of that name.
    pub fn set_own(&mut self, key: &str, value: &str) {
        self.list.retain(|v| v.key != key);
        self.list.push(ExpandedVariable {
            key: key.to_owned(),
            value: value.to_owned(),
            file: None,
            masked: false,
            for_services: true,
        });
    }

    /// Takes a variable out.
    pub fn remove(&mut self, key: &str) {
        self.list.retain(|v| v.key != key);
    }

    /// What the environment holds under this name.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.list.iter().find(|v| v.key == key).map(|v| v.value.as_str())
    }

    /// The value, of a file variable its content: for settings such as `DOCKER_AUTH_CONFIG`.
    #[must_use]
    pub fn content(&self, key: &str) -> Option<&str> {
        self.list
            .iter()
            .find(|v| v.key == key)
            .map(|v| v.file.as_deref().unwrap_or(v.value.as_str()))
    }

    /// Replaces references in text that is no variable, such as an image's name.
    #[must_use]
    pub fn expand(&self, text: &str) -> String {
        expand(text, &|key: &str| self.value(key).map(str::to_owned))
    }

    /// The environment, `KEY=value`.
    #[must_use]
    pub fn environment(&self) -> Vec<String> {
        self.list.iter().map(|v| format!("{}={}", v.key, v.value)).collect()
    }
}

/// Replaces `$NAME` and `${NAME}`; `$$` gives `$`; names of a shell's special parameters and
/// unknown names give nothing (Go: `os.Expand`, as GitLab Runner uses it).
fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let name_length = |s: &str| {
            s.char_indices()
                .find(|(i, c)| {
                    !(c.is_ascii_alphabetic() || *c == '_' || *i > 0 && c.is_ascii_digit())
                })
                .map_or(s.len(), |(i, _)| i)
        };
        if let Some(braced) = rest.strip_prefix('{') {
            match braced.find('}') {
                Some(end) => {
                    out.push_str(&resolve(&braced[..end], lookup));
                    rest = &braced[end + 1..];
                }
                // An open brace without an end is bad syntax: it is eaten, as Go does.
                None => rest = braced,
            }
            continue;
        }
        match rest.chars().next() {
            None => out.push('$'),
            Some('$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some('*' | '#' | '@' | '!' | '?' | '-' | '0'..='9') => rest = &rest[1..],
            Some(_) => match name_length(rest) {
                0 => out.push('$'),
                length => {
                    out.push_str(&resolve(&rest[..length], lookup));
                    rest = &rest[length..];
                }
            },
        }
    }
    out.push_str(rest);
    out
}

fn resolve(name: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    if name == "$" { "$".to_owned() } else { lookup(name).unwrap_or_default() }
}

/// A boolean as settings variables write it, blanks around it aside (Go: `strconv.ParseBool`).
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    values::boolean(text.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> Variables {
        let mut variables = Variables::default();
        for (key, value) in list {
            variables.push(Variable {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
                ..Variable::default()
            });
        }
        variables
    }

    #[test]
    fn docker_67_the_last_definition_wins() {
        let expanded = variables(&[("A", "1"), ("B", "$A"), ("A", "2")]).expand("/t");
        assert_eq!(expanded.value("A"), Some("2"));
        assert_eq!(expanded.value("B"), Some("2"));
        assert_eq!(expanded.iter().filter(|v| v.key == "A").count(), 1);
    }

    #[test]
    fn docker_69_expansion_is_one_pass() {
        let expanded = variables(&[("A", "$B"), ("B", "$C"), ("C", "1")]).expand("/t");
        assert_eq!(expanded.value("A"), Some("$C"));
        assert_eq!(expanded.value("B"), Some("1"));
    }

    #[test]
    fn docker_70_71_dollars_braces_and_unknown_names() {
        let expanded = variables(&[
            ("X", "x"),
            ("A", "$$X ${X}$X-$UNKNOWN.${UNKNOWN} %X% $ $1$@"),
            ("B", "a$"),
            ("C", "$X_Y ${X}_Y $(id)"),
        ])
        .expand("/t");
        assert_eq!(expanded.value("A"), Some("$X xx-. %X% $ "));
        assert_eq!(expanded.value("B"), Some("a$"));
        assert_eq!(expanded.value("C"), Some(" x_Y $(id)"));
    }

    #[test]
    fn docker_72_raw_variables_are_a_source_but_not_expanded() {
        let mut variables = variables(&[("A", "$R")]);
        variables.push(Variable {
            key: "R".into(),
            value: "r$A".into(),
            raw: true,
            ..Variable::default()
        });
        let expanded = variables.expand("/t");
        assert_eq!(expanded.value("R"), Some("r$A"));
        assert_eq!(expanded.value("A"), Some("r$A"));
    }

    #[test]
    fn docker_74_75_a_file_variable_is_its_path_and_has_its_content() {
        let mut variables = variables(&[("A", "$F")]);
        variables.push(Variable {
            key: "F".into(),
            value: "{}".into(),
            file: true,
            ..Variable::default()
        });
        let expanded = variables.expand("/t");
        assert_eq!(expanded.value("A"), Some("/t/F"));
        assert_eq!(expanded.value("F"), Some("/t/F"));
        assert_eq!(expanded.content("F"), Some("{}"));
    }

    #[test]
    fn values_do_not_print() {
        let expanded = variables(&[("A", "hidden")]).expand("/t");
        assert!(!format!("{expanded:?}").contains("hidden"));
    }

    #[test]
    fn booleans_are_read_as_go_reads_them() {
        assert_eq!(parse_bool("True"), Some(true));
        assert_eq!(parse_bool("0"), Some(false));
        assert_eq!(parse_bool("yes"), None);
    }
}

//! `$NAME` and `${NAME}` in values.

use std::collections::BTreeMap;

/// Replaces variables; unknown ones become nothing, `$$` becomes a dollar.
pub(crate) fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let lookup = |name: &str| values.get(name).cloned();
    Expansion { lookup: &lookup, keep: false, open: Vec::new() }.run(text)
}

/// Replaces the variables that `lookup` knows and leaves the rest for whoever knows more: the
/// runner, which expands what it gets once more (GitLab: `keep_undefined`). A value that refers to
/// itself keeps that reference.
pub(crate) fn expand_known(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    Expansion { lookup, keep: true, open: Vec::new() }.run(text)
}

/// How many characters of `text` can be a variable's name.
pub(crate) fn name_length(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
}

struct Expansion<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    keep: bool,
    open: Vec<String>,
}

impl Expansion<'_> {
    fn run(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let reference = &rest[at..];
            rest = &reference[1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push_str(if self.keep { "$$" } else { "$" });
                rest = after;
                continue;
            }
            let (name, after) = match rest.strip_prefix('{').and_then(|r| r.split_once('}')) {
                Some((name, after)) => (name, after),
                None => rest.split_at(name_length(rest)),
            };
            if name.is_empty() || name_length(name) != name.len() {
                out.push('$');
                continue;
            }
            rest = after;
            let circle = self.open.iter().any(|open| open == name);
            match (self.lookup)(name).filter(|_| !circle) {
                Some(value) => {
                    self.open.push(name.to_owned());
                    out += &self.run(&value);
                    self.open.pop();
                }
                None if self.keep => out.push_str(&reference[..reference.len() - after.len()]),
                None => {}
            }
        }
        out + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> BTreeMap<String, String> {
        [("BRANCH", "main"), ("NESTED", "x-$BRANCH"), ("LOOP", "a $LOOP"), ("A", "$B"), ("B", "$A")]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    #[test]
    fn expansion_ends_and_leaves_what_is_no_variable() {
        let text = "a $NESTED ${BRANCH}b $$X $(cmd) $NONE. 5$";
        assert_eq!(expand(text, &values()), "a x-main mainb $X $(cmd) . 5$");
        assert_eq!(expand("$LOOP", &values()), "a ");
    }

    #[test]
    fn what_is_not_known_is_left_for_the_runner() {
        let values = values();
        let lookup = |name: &str| values.get(name).cloned();
        let text = "$CI_PROJECT_DIR/${NESTED} ${HOME:-x} $$X";
        assert_eq!(expand_known(text, &lookup), "$CI_PROJECT_DIR/x-main ${HOME:-x} $$X");
        assert_eq!(expand_known("$LOOP", &lookup), "a $LOOP");
        assert_eq!(expand_known("$A", &lookup), "$A");
    }
}

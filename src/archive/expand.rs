//! Expansion of variables in paths and names as a POSIX shell does it: parameters, quotes and
//! backslashes. Commands and arithmetic are not run but refused, and the result is one word: it is
//! not split, and globs in it are left for [`super::select`].

use std::borrow::Cow;

use crate::base::glob::{self, Wildcards};

/// Why a text was not expanded. The caller warns and keeps it as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExpandError {
    /// `$(…)` or backquotes.
    #[error("command substitution is not supported")]
    Command,
    /// `$((…))`.
    #[error("arithmetic is not supported")]
    Arithmetic,
    /// A quote or brace that is not closed.
    #[error("`{0}` without its end")]
    Unclosed(char),
    /// What stands between `${` and `}`.
    #[error("bad substitution `${{{0}}}`")]
    BadSubstitution(String),
    /// `${V:?text}` of a variable that is not set, or empty.
    #[error("{name}: {message}")]
    NotSet { name: String, message: String },
}

/// Expands `text`; `lookup` gives a variable's value, `None` when it is not set.
///
/// ```text
/// $V ${V} ${#V}                       the value, its length in characters
/// ${V-x} ${V=x} ${V+x} ${V?x}         another text by whether V is set; with `:` not empty, too
/// ${V%x} ${V%%x} ${V#x} ${V##x}       without a suffix or prefix that matches the pattern
/// 'x' "x" \x                          as the shell takes them
/// ```
///
/// `${V=x}` gives `x` and assigns nothing.
pub(crate) fn expand(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut reader = Reader { rest: text, lookup, depth: 0 };
    let out = reader.word(End::Text)?;
    Ok(out)
}

/// Deeper nesting is a mistake, or an attempt on the stack.
const DEEPEST: usize = 32;

/// Where a word ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Text,
    /// At the `}` of `${V:-word}`.
    Brace {
        quoted: bool,
    },
    /// At the closing double quote.
    Quote,
}

struct Reader<'a> {
    rest: &'a str,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<char> {
        let first = self.rest.chars().next()?;
        self.rest = &self.rest[first.len_utf8()..];
        Some(first)
    }

    fn take(&mut self, prefix: &str) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Reads and expands up to `end`, which is taken too.
    fn word(&mut self, end: End) -> Result<String, ExpandError> {
        let quoted = matches!(end, End::Quote | End::Brace { quoted: true });
        let mut out = String::new();
        loop {
            let Some(c) = self.next() else {
                return match end {
                    End::Text => Ok(out),
                    End::Quote => Err(ExpandError::Unclosed('"')),
                    End::Brace { .. } => Err(ExpandError::Unclosed('{')),
                };
            };
            match c {
                '}' if matches!(end, End::Brace { .. }) => return Ok(out),
                '"' if end == End::Quote => return Ok(out),
                '"' => out.push_str(&self.word(End::Quote)?),
                '\'' if !quoted => {
                    let Some((inside, rest)) = self.rest.split_once('\'') else {
                        return Err(ExpandError::Unclosed('\''));
                    };
                    out.push_str(inside);
                    self.rest = rest;
                }
                '\\' => match self.next() {
                    // Within double quotes a backslash only escapes what is special there.
                    Some(c) if quoted && !"$`\"\\}".contains(c) => out.extend(['\\', c]),
                    Some(c) => out.push(c),
                    None => out.push('\\'),
                },
                '`' => return Err(ExpandError::Command),
                '$' => self.dollar(quoted, &mut out)?,
                c => out.push(c),
            }
        }
    }

    fn name(&mut self) -> &'a str {
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let length = if self.rest.starts_with(is_first) {
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
            self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len())
        } else {
            0
        };
        let (name, rest) = self.rest.split_at(length);
        self.rest = rest;
        name
    }

    fn dollar(&mut self, quoted: bool, out: &mut String) -> Result<(), ExpandError> {
        if self.take("((") {
            return Err(ExpandError::Arithmetic);
        }
        if self.take("(") {
            return Err(ExpandError::Command);
        }
        if self.take("{") {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err(ExpandError::BadSubstitution("… nested too deeply".into()));
            }
            out.push_str(&self.braced(quoted)?);
            self.depth -= 1;
            return Ok(());
        }
        match self.name() {
            // A dollar sign that begins nothing is one. There are no positional parameters here.
            "" => out.push('$'),
            name => out.push_str(&(self.lookup)(name).unwrap_or_default()),
        }
        Ok(())
    }

    fn braced(&mut self, quoted: bool) -> Result<String, ExpandError> {
        let all = self.rest;
        let bad = || {
            let inside = all.split_once('}').map_or(all, |(inside, _)| inside);
            ExpandError::BadSubstitution(inside.to_owned())
        };
        let length = self.rest.starts_with('#') && self.take("#");
        let name = self.name();
        if name.is_empty() {
            return Err(bad());
        }
        let value = (self.lookup)(name);
        if length {
            let length = value.unwrap_or_default().chars().count();
            return if self.take("}") { Ok(length.to_string()) } else { Err(bad()) };
        }
        if self.take("}") {
            return Ok(value.unwrap_or_default());
        }
        let end = End::Brace { quoted };
        for (operator, longest) in [("%%", true), ("%", false)] {
            if self.take(operator) {
                let pattern = self.pattern()?;
                return Ok(without_suffix(&value.unwrap_or_default(), &pattern, longest)
                    .ok_or_else(bad)?
                    .into_owned());
            }
        }
        for (operator, longest) in [("##", true), ("#", false)] {
            if self.take(operator) {
                let pattern = self.pattern()?;
                return Ok(without_prefix(&value.unwrap_or_default(), &pattern, longest)
                    .ok_or_else(bad)?
                    .into_owned());
            }
        }
        // With a colon an empty value counts as none.
        let value = if self.take(":") { value.filter(|value| !value.is_empty()) } else { value };
        let Some(operator) = self.next() else { return Err(ExpandError::Unclosed('{')) };
        if !"-=+?".contains(operator) {
            return Err(bad());
        }
        // The word is expanded even where it is not needed: its end must be found anyway.
        let word = self.word(end)?;
        match (operator, value) {
            ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            (_, Some(value)) => Ok(value),
            ('?', None) => Err(ExpandError::NotSet {
                name: name.to_owned(),
                message: if word.is_empty() { "is not set".into() } else { word },
            }),
            (_, None) => Ok(word),
        }
    }

    /// The pattern of a removal up to its `}`: quoted characters in it stand for themselves.
    fn pattern(&mut self) -> Result<String, ExpandError> {
        let mut pattern = String::new();
        let escape = |text: &str, pattern: &mut String| {
            for c in text.chars() {
                if "*?[]{}\\".contains(c) {
                    pattern.push('\\');
                }
                pattern.push(c);
            }
        };
        loop {
            match self.next() {
                None => return Err(ExpandError::Unclosed('{')),
                Some('}') => return Ok(pattern),
                Some('"') => escape(&self.word(End::Quote)?, &mut pattern),
                Some('\'') => {
                    let Some((inside, rest)) = self.rest.split_once('\'') else {
                        return Err(ExpandError::Unclosed('\''));
                    };
                    escape(inside, &mut pattern);
                    self.rest = rest;
                }
                Some('\\') => {
                    let c = self.next().unwrap_or('\\');
                    escape(c.encode_utf8(&mut [0; 4]), &mut pattern);
                }
                Some('`') => return Err(ExpandError::Command),
                Some('$') => self.dollar(false, &mut pattern)?,
                // Braces are no alternatives in a shell's pattern.
                Some('{') => pattern.push_str("\\{"),
                Some(c) => pattern.push(c),
            }
        }
    }
}

fn matcher(pattern: &str) -> Option<globset::GlobMatcher> {
    glob::compile(pattern, Wildcards::Anything).ok()
}

/// Places where `value` can be cut in two.
fn cuts(value: &str) -> impl DoubleEndedIterator<Item = usize> {
    let mut cuts: Vec<usize> = value.char_indices().map(|(at, _)| at).collect();
    cuts.push(value.len());
    cuts.into_iter()
}

fn without_suffix<'v>(value: &'v str, pattern: &str, longest: bool) -> Option<Cow<'v, str>> {
    let matcher = matcher(pattern)?;
    let fits = |at: &usize| matcher.is_match(&value[*at..]);
    let cut = if longest { cuts(value).find(fits) } else { cuts(value).rev().find(fits) };
    Some(value[..cut.unwrap_or(value.len())].into())
}

fn without_prefix<'v>(value: &'v str, pattern: &str, longest: bool) -> Option<Cow<'v, str>> {
    let matcher = matcher(pattern)?;
    let fits = |at: &usize| matcher.is_match(&value[..*at]);
    let cut = if longest { cuts(value).rev().find(fits) } else { cuts(value).find(fits) };
    Some(value[cut.unwrap_or(0)..].into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "V" => Some("value".into()),
            "EMPTY" => Some(String::new()),
            "PATH_" => Some("a/b/file.tar.gz".into()),
            "UMLAUT" => Some("zwölf".into()),
            "GLOB" => Some("*".into()),
            "BRANCH_1" => Some("main".into()),
            _ => None,
        }
    }

    #[test]
    fn parameters_are_expanded_as_a_posix_shell_does() {
        for (text, expanded) in [
            ("plain/path-1.txt", "plain/path-1.txt"),
            ("$V", "value"),
            ("${V}x$BRANCH_1/", "valuexmain/"),
            ("$UNSET.$V", ".value"),
            ("${UNSET:-d}", "d"),
            ("${EMPTY:-d}${EMPTY-d}", "d"),
            ("${UNSET-d}", "d"),
            ("${UNSET:=d}", "d"),
            ("${UNSET=d}", "d"),
            ("${V:+x}${UNSET:+y}${EMPTY:+z}${EMPTY+w}", "xw"),
            ("${V:?}", "value"),
            ("${#V} ${#UMLAUT} ${#UNSET}", "5 5 0"),
            ("${UNSET:-${V}-$BRANCH_1}", "value-main"),
            ("${UNSET:-\"a}b\"}", "a}b"),
            ("${UNSET:-'a}b'}", "a}b"),
            ("${PATH_%.*} ${PATH_%%.*}", "a/b/file.tar a/b/file"),
            ("${PATH_#*/} ${PATH_##*/}", "b/file.tar.gz file.tar.gz"),
            ("${V%x}${V#x}", "valuevalue"),
            ("${V%'*'}${V%\\*}", "valuevalue"),
            ("${V%\"$GLOB\"}", "value"),
            ("'$V'", "$V"),
            ("\"$V '$V'\"", "value 'value'"),
            ("\\$V \"\\$V\" \"\\n\"", "$V $V \\n"),
            ("$ $1 100$", "$ $1 100$"),
            ("*.{a,b} [!x]", "*.{a,b} [!x]"),
            ("grün/$V", "grün/value"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(expanded), "{text}");
        }
    }

    #[test]
    fn what_a_shell_would_run_or_refuse_is_an_error() {
        for (text, error) in [
            ("$(id)", "command substitution is not supported"),
            ("`id`", "command substitution is not supported"),
            ("$((1+1))", "arithmetic is not supported"),
            ("'a", "`'` without its end"),
            ("\"a", "`\"` without its end"),
            ("${V", "`{` without its end"),
            ("${V:-x", "`{` without its end"),
            ("${}", "bad substitution `${}`"),
            ("${V!x}", "bad substitution `${V!x}`"),
            ("${1}", "bad substitution `${1}`"),
            ("${UNSET:?no such thing}", "UNSET: no such thing"),
            ("${UNSET?}", "UNSET: is not set"),
        ] {
            assert_eq!(expand(text, &env).unwrap_err().to_string(), error, "{text}");
        }
        assert!(expand(&"${A:-".repeat(100_000), &env).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_expanded_or_refused(text in "[$\\{}:%#'\"`()V a-]{0,30}") {
            let _ = expand(&text, &env);
        }

        #[test]
        fn text_without_special_characters_stays(text in "[^$`'\"\\\\]*") {
            prop_assert_eq!(expand(&text, &env), Ok(text));
        }
    }

    /// The shell of this machine is the judge.
    #[test]
    fn the_shell_agrees() {
        for text in [
            "${V%%l*}x${V#v}",
            "${EMPTY:-a\"b c\"d}",
            "\"a\\b\\\\c\\\"d\"",
            "${UNSET:-\"${V}\"}",
            "\"${UNSET:-'q'}\"",
            "${V+\\}x}",
            "${PATH_#*[b]}",
            "${PATH_%%[!a]*}",
            "\"${V%\"ue\"}\"",
        ] {
            let script = format!("printf %s {text}");
            let output = std::process::Command::new("sh")
                .args(["-fc", &script])
                .envs(["V", "EMPTY", "PATH_"].map(|name| (name, env(name).unwrap())))
                .output()
                .unwrap();
            // The words of an unquoted expansion are split by the shell, not by us.
            let shell = String::from_utf8(output.stdout).unwrap();
            assert_eq!(expand(text, &env).unwrap(), shell, "{text}");
        }
    }
}

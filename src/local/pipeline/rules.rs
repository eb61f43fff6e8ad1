//! Expressions of `rules:if` (GitLab: `Gitlab::Ci::Pipeline::Expression`).

use std::collections::BTreeMap;

use super::expand::{self, expand};

/// Variables to evaluate with.
#[derive(Debug, Clone)]
pub(crate) struct Variables<'a> {
    values: &'a BTreeMap<String, String>,
}

impl<'a> Variables<'a> {
    /// Wraps the values.
    pub(crate) fn new(values: &'a BTreeMap<String, String>) -> Self {
        Self { values }
    }

    /// The value of `name`, variables in it expanded.
    fn value(&self, name: &str) -> Option<String> {
        self.values.get(name).map(|value| expand(value, self.values))
    }
}

/// Whether the expression of an `if` holds; the error says what is wrong with it.
pub(crate) fn holds(text: &str, variables: &Variables<'_>) -> Result<bool, String> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, variables };
    let value = parser.or()?;
    if parser.at < tokens.len() {
        return Err(format!("cannot read the rest of `{text}`"));
    }
    Ok(value.truthy())
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Equal,
    NotEqual,
    Matches,
    MatchesNot,
    Null,
    Text(String),
    Variable(String),
    Pattern(String),
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (token, after) =
            token(rest).ok_or_else(|| format!("cannot read `{rest}` in `{text}`"))?;
        out.push(token);
        rest = after.trim_start();
    }
    Ok(out)
}

fn token(text: &str) -> Option<(Token, &str)> {
    for (sign, token) in [
        ("&&", Token::And),
        ("||", Token::Or),
        ("==", Token::Equal),
        ("!=", Token::NotEqual),
        ("=~", Token::Matches),
        ("!~", Token::MatchesNot),
        ("(", Token::Open),
        (")", Token::Close),
    ] {
        if let Some(after) = text.strip_prefix(sign) {
            return Some((token, after));
        }
    }
    let first = text.chars().next()?;
    let inner = &text[first.len_utf8()..];
    match first {
        '"' | '\'' => {
            let (content, after) = inner.split_once(first)?;
            Some((Token::Text(content.to_owned()), after))
        }
        '$' => {
            let (name, after) = match inner.strip_prefix('{') {
                Some(braced) => braced.split_once('}')?,
                None => inner.split_at(expand::name_length(inner)),
            };
            (!name.is_empty()).then(|| (Token::Variable(name.to_owned()), after))
        }
        '/' => {
            let end = pattern_end(inner)?;
            let after = &inner[end + 1..];
            let flags = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let token = Token::Pattern(format!("/{}/{}", &inner[..end], &after[..flags]));
            Some((token, &after[flags..]))
        }
        _ => {
            let after = text.strip_prefix("null").or_else(|| text.strip_prefix("nil"))?;
            (expand::name_length(after) == 0).then_some((Token::Null, after))
        }
    }
}

/// Where the unescaped `/` is that ends a pattern.
fn pattern_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '/' if !escaped => return Some(at),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Null,
    Bool(bool),
    Text(String),
}

impl Operand {
    fn truthy(&self) -> bool {
        match self {
            Operand::Null => false,
            Operand::Bool(b) => *b,
            Operand::Text(text) => !text.is_empty(),
        }
    }

    fn text(self) -> Option<String> {
        match self {
            Operand::Text(text) => Some(text),
            Operand::Null | Operand::Bool(_) => None,
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    variables: &'a Variables<'a>,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.tokens.get(self.at) == Some(token);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<Operand, String> {
        let mut left = self.and()?;
        while self.take(&Token::Or) {
            let right = self.and()?;
            left = Operand::Bool(left.truthy() || right.truthy());
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Operand, String> {
        let mut left = self.comparison()?;
        while self.take(&Token::And) {
            let right = self.comparison()?;
            left = Operand::Bool(left.truthy() && right.truthy());
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Operand, String> {
        let left = self.operand()?;
        let (negated, pattern) = match self.tokens.get(self.at) {
            Some(Token::Equal) => (false, false),
            Some(Token::NotEqual) => (true, false),
            Some(Token::Matches) => (false, true),
            Some(Token::MatchesNot) => (true, true),
            _ => return Ok(left),
        };
        self.at += 1;
        let right = self.operand()?;
        let equal = if pattern { matches(left, right)? } else { left == right };
        Ok(Operand::Bool(equal != negated))
    }

    fn operand(&mut self) -> Result<Operand, String> {
        match self.next() {
            Some(Token::Open) => {
                let value = self.or()?;
                if self.take(&Token::Close) {
                    Ok(value)
                } else {
                    Err("a `)` is missing".to_owned())
                }
            }
            Some(Token::Null) => Ok(Operand::Null),
            Some(Token::Text(text) | Token::Pattern(text)) => Ok(Operand::Text(text)),
            Some(Token::Variable(name)) => {
                Ok(self.variables.value(&name).map_or(Operand::Null, Operand::Text))
            }
            Some(other) => Err(format!("did not expect {other:?}")),
            None => Err("the expression ends too early".to_owned()),
        }
    }
}

/// Whether `left` matches `/pattern/flags`; null matches nothing.
fn matches(left: Operand, right: Operand) -> Result<bool, String> {
    let Some(pattern) = right.text() else { return Ok(false) };
    let regex = regex(&pattern)?;
    Ok(left.text().is_some_and(|text| regex.is_match(&text)))
}

/// Compiles `/pattern/flags`.
pub(crate) fn regex(pattern: &str) -> Result<regex::Regex, String> {
    let wrong = || format!("`{pattern}` is not a pattern such as /main/");
    let (body, flags) =
        pattern.strip_prefix('/').and_then(|p| p.rsplit_once('/')).ok_or_else(wrong)?;
    regex::RegexBuilder::new(&body.replace("\\/", "/"))
        .case_insensitive(flags.contains('i'))
        .dot_matches_new_line(flags.contains('m'))
        .build()
        .map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> BTreeMap<String, String> {
        [
            ("BRANCH", "main"),
            ("EMPTY", ""),
            ("NESTED", "x-$BRANCH"),
            ("PATTERN", "/^ma/"),
            ("TITLE", "Draft: a/b"),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
    }

    #[test]
    fn expressions_mean_what_they_mean_at_gitlab() {
        let values = variables();
        for (text, expected) in [
            ("$BRANCH", true),
            ("$EMPTY", false),
            ("$NONE", false),
            ("$NONE == null", true),
            ("$EMPTY == null", false),
            ("$EMPTY == \"\"", true),
            ("$BRANCH != null", true),
            ("$BRANCH == 'main'", true),
            ("${BRANCH} == \"main\"", true),
            ("\"main\" == $BRANCH", true),
            ("$BRANCH != \"main\"", false),
            ("$NESTED == \"x-main\"", true),
            ("$BRANCH =~ /^MA/", false),
            ("$BRANCH =~ /^MA/i", true),
            ("$BRANCH =~ $PATTERN", true),
            ("$TITLE =~ /a\\/b$/", true),
            ("$TITLE !~ /^Draft/", false),
            ("$NONE =~ /x/", false),
            ("$NONE !~ /x/", true),
            ("$NONE || $BRANCH && $EMPTY", false),
            ("($NONE || $BRANCH) && $BRANCH == \"main\"", true),
            ("$BRANCH && ($EMPTY || $NONE)", false),
        ] {
            assert_eq!(holds(text, &Variables::new(&values)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn broken_expressions_say_what_is_wrong() {
        let values = variables();
        for text in ["$A ==", "($A", "$A == == $B", "main == $A", "$A =~ /[/", "$A $B", "'x", ""] {
            assert!(holds(text, &Variables::new(&values)).is_err(), "{text}");
        }
        let error = holds("$BRANCH =~ \"main\"", &Variables::new(&values)).unwrap_err();
        assert_eq!(error, "`main` is not a pattern such as /main/");
    }
}

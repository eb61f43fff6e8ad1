//! Globs, compiled in one place: `*`, `?`, `[a-z]`, `{a,b}`, and `\` before a character that is
//! meant as itself.

use globset::{ErrorKind, GlobBuilder, GlobMatcher};

/// What `*` and `?` match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wildcards {
    /// Anything but `/`, as in names of files and images; `**` as a whole component matches any
    /// number of components.
    WithinComponent,
    /// Anything, as in the patterns of a shell's `case` and `${name#pattern}`.
    Anything,
}

/// Why a text is no glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct GlobError(ErrorKind);

/// Compiles `pattern`, which then must match the whole of a text.
///
/// # Errors
/// When it is no glob.
pub(crate) fn compile(pattern: &str, wildcards: Wildcards) -> Result<GlobMatcher, GlobError> {
    GlobBuilder::new(pattern)
        .literal_separator(wildcards == Wildcards::WithinComponent)
        .backslash_escape(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| GlobError(error.kind().clone()))
}

/// Whether `pattern` matches the whole of `text`; one that is no glob matches nothing.
#[must_use]
pub(crate) fn matches(pattern: &str, wildcards: Wildcards, text: &str) -> bool {
    compile(pattern, wildcards).is_ok_and(|glob| glob.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stop_at_a_slash_or_do_not() {
        for (pattern, text, within, anything) in [
            ("a*", "abc", true, true),
            ("a*", "a/b", false, true),
            ("a?b", "a/b", false, true),
            ("a/**/b", "a/x/y/b", true, true),
            ("{a,b}c", "bc", true, true),
            (r"a\*", "a*", true, true),
            (r"a\*", "ab", false, false),
            ("a", "ab", false, false),
        ] {
            assert_eq!(matches(pattern, Wildcards::WithinComponent, text), within, "{pattern}");
            assert_eq!(matches(pattern, Wildcards::Anything, text), anything, "{pattern}");
        }
    }

    #[test]
    fn a_text_that_is_no_glob_says_why_and_matches_nothing() {
        assert!(!matches("[", Wildcards::Anything, "["));
        let error = compile("a[", Wildcards::WithinComponent).unwrap_err();
        assert_eq!(error.to_string(), "unclosed character class; missing ']'");
    }
}

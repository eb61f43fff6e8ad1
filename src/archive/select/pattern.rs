//! Globs as GitLab's users know them (doublestar v4), on top of `globset`.
//!
//! To `globset` alone, `./a` and `a/` are not `a`, and `a/**` does not match `a` itself. So patterns are taken apart before: alternatives first, then the part
//! without special characters, which is only looked up, then one matcher for each level, so that
//! directories that cannot match are not read.

use std::path::{Component, Path, PathBuf};

use globset::GlobMatcher;

use crate::base::glob::{self, Wildcards};

/// One alternative of a pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    /// What has no special characters, relative to the project.
    base: PathBuf,
    /// One matcher a level below `base`, up to the first `**`.
    levels: Vec<GlobMatcher>,
    /// With a `**`: matchers for all that is below `base`.
    deep: Option<Deep>,
}

#[derive(Debug)]
struct Deep {
    all: GlobMatcher,
    /// `a/**` also matches `a`.
    itself: Option<Itself>,
}

#[derive(Debug)]
enum Itself {
    /// Nothing is left of the pattern without its `**`: the base.
    Base,
    Glob(GlobMatcher),
}

/// Why a pattern cannot be used.
#[derive(Debug)]
pub(super) enum PatternError {
    /// It is not below the project directory.
    Outside,
    Bad(String),
}

/// More alternatives are a mistake.
const MOST_ALTERNATIVES: usize = 1000;

const SPECIAL: &[char] = &['*', '?', '[', '\\'];

impl Pattern {
    /// Reads a pattern that is relative to `project_dir` or begins with it.
    pub(super) fn parse(text: &str, project_dir: &Path) -> Result<Vec<Self>, PatternError> {
        let mut alternatives = Vec::new();
        alternatives_of(text, &mut alternatives)?;
        alternatives.iter().map(|text| Self::one(text, project_dir)).collect()
    }

    fn one(text: &str, project_dir: &Path) -> Result<Self, PatternError> {
        let mut parts = clean(text, project_dir)?;
        let literal = parts.iter().take_while(|part| !part.contains(SPECIAL)).count();
        let rest = parts.split_off(literal);
        let base: PathBuf = parts.iter().collect();
        let levels = rest
            .iter()
            .take_while(|part| *part != "**")
            .map(|part| glob(part))
            .collect::<Result<Vec<_>, _>>()?;
        let deep = if levels.len() == rest.len() { None } else { Some(Deep::new(&rest)?) };
        Ok(Self { base, levels, deep })
    }

    /// Where to begin to look.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Whether `below`, relative to the base, so many levels deep, matches.
    pub(super) fn matches(&self, below: &Path, depth: usize) -> bool {
        match &self.deep {
            None => depth == self.levels.len() && self.fits(below),
            Some(Deep { itself: Some(Itself::Base), .. }) if depth == 0 => true,
            Some(_) if depth == 0 => false,
            Some(Deep { all, itself }) => {
                all.is_match(below)
                    || matches!(itself, Some(Itself::Glob(glob)) if glob.is_match(below))
            }
        }
    }

    /// Whether something in the directory `below` could match.
    pub(super) fn may_match_below(&self, below: &Path, depth: usize) -> bool {
        (depth < self.levels.len() || self.deep.is_some()) && self.fits(below)
    }

    /// Whether each part of `below` fits its level, as far as there are levels.
    fn fits(&self, below: &Path) -> bool {
        below.iter().zip(&self.levels).all(|(part, level)| level.is_match(part))
    }

    /// Whether `path`, relative to the project, matches.
    pub(super) fn matches_whole(&self, path: &Path) -> bool {
        path.strip_prefix(&self.base)
            .is_ok_and(|below| self.matches(below, below.components().count()))
    }
}

impl Deep {
    fn new(rest: &[String]) -> Result<Self, PatternError> {
        let trailing = rest.iter().rev().take_while(|part| *part == "**").count();
        let without = &rest[..rest.len() - trailing];
        let itself = match (trailing, without) {
            (0, _) => None,
            (_, []) => Some(Itself::Base),
            (_, without) => Some(Itself::Glob(glob(&without.join("/"))?)),
        };
        Ok(Self { all: glob(&rest.join("/"))?, itself })
    }
}

fn glob(text: &str) -> Result<GlobMatcher, PatternError> {
    glob::compile(text, Wildcards::WithinComponent)
        .map_err(|error| PatternError::Bad(format!("syntax error in pattern: {error}")))
}

/// The parts of a path relative to the project, without `.`, `..` and empty ones, and with no two
/// `**` after one another.
fn clean(text: &str, project_dir: &Path) -> Result<Vec<String>, PatternError> {
    let mut parts: Vec<&str> = Vec::new();
    let mut above = 0;
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => above += usize::from(parts.pop().is_none()),
            part => parts.push(part),
        }
    }
    let mut project = project_dir.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part),
        _ => None,
    });
    if text.starts_with('/') {
        // Nothing is above the root.
        let mut rest = parts.into_iter();
        if !project.all(|wanted| rest.next().is_some_and(|part| wanted == part)) {
            return Err(PatternError::Outside);
        }
        parts = rest.collect();
    } else if above > 0 {
        // Out and in again, as in `../project/a`.
        let names: Vec<_> = project.collect();
        let back = &names[names.len().saturating_sub(above)..];
        let returns =
            parts.len() >= back.len() && back.iter().zip(&parts).all(|(name, part)| name == part);
        if !returns || back.is_empty() || above > names.len() {
            return Err(PatternError::Outside);
        }
        parts.drain(..back.len());
    }
    let mut clean: Vec<String> = parts.into_iter().map(str::to_owned).collect();
    clean.dedup_by(|a, b| a == "**" && b == "**");
    Ok(clean)
}

/// Takes `{a,b}` apart, the first pair first; what comes out has no unescaped braces.
fn alternatives_of(text: &str, out: &mut Vec<String>) -> Result<(), PatternError> {
    let bad = |what: &str| Err(PatternError::Bad(format!("syntax error in pattern: {what}")));
    let mut open = None;
    let mut depth = 0;
    let mut commas = Vec::new();
    let mut characters = text.char_indices();
    let mut in_class = false;
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => {
                characters.next();
            }
            '[' => in_class = true,
            ']' => in_class = false,
            _ if in_class => {}
            '{' => {
                depth += 1;
                open = open.or(Some(at));
            }
            ',' if depth == 1 => commas.push(at),
            '}' if depth == 0 => return bad("`}` without `{`"),
            '}' => {
                depth -= 1;
                if let (0, Some(open)) = (depth, open) {
                    let (before, after) = (&text[..open], &text[at + 1..]);
                    let mut start = open + 1;
                    for end in commas.into_iter().chain([at]) {
                        alternatives_of(&[before, &text[start..end], after].concat(), out)?;
                        start = end + 1;
                    }
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    if depth > 0 {
        return bad("`{` without `}`");
    }
    if out.len() >= MOST_ALTERNATIVES {
        return bad("too many alternatives");
    }
    out.push(text.to_owned());
    Ok(())
}

//! Which files an artifact or a cache takes: globs, directories with all they hold, files git does
//! not track, less what is excluded (docs/compatibility.md, "Selection of files").
//!
//! Names are resolved in the project directory and never leave it; symbolic links are taken as links.
//! The messages are gitlab-runner's own, as users search for them.

mod pattern;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt, fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::Command,
};

use self::pattern::{Pattern, PatternError};
use super::expand::expand;

/// Said as an error when nothing was selected for an artifact; the job goes on.
pub(crate) const NO_FILES_TO_UPLOAD: &str = "No files to upload";
/// Said as a warning when nothing was selected for a cache.
pub(crate) const NO_FILES_TO_CACHE: &str = "No files to cache.";

/// What the job's author asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Globs, before the expansion of variables.
    pub(crate) paths: &'a [String],
    /// Globs taken out again.
    pub(crate) exclude: &'a [String],
    /// Adds files git does not track, ignored ones too.
    pub(crate) untracked: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Relative to the project directory, sorted by their bytes, unique; directories are entries.
    pub(crate) files: Vec<PathBuf>,
    /// What to tell the job's author, in order.
    pub(crate) notes: Vec<Note>,
}

/// A line for the trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// How bad it is.
    pub(crate) severity: Severity,
    pub(crate) text: String,
}

/// How bad a [`Note`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Good to know.
    Info,
    /// Likely a mistake.
    Warning,
    /// A mistake.
    Error,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.severity {
            Severity::Info => "",
            Severity::Warning => "WARNING: ",
            Severity::Error => "ERROR: ",
        };
        write!(f, "{prefix}{}", self.text)
    }
}

/// Selects files below `project_dir`; `env` gives the variables for the expansion.
#[must_use]
pub(crate) fn select(
    project_dir: &Path,
    wanted: &Wanted<'_>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Selection {
    let mut selector =
        Selector { project_dir, found: BTreeSet::new(), notes: Vec::new(), exclude: Vec::new() };
    for rule in wanted.exclude {
        let rule = selector.expanded(rule, env);
        match Pattern::parse(&rule, project_dir) {
            Ok(patterns) => selector.exclude.push(Exclude { rule, patterns, count: 0 }),
            Err(PatternError::Outside) => {
                selector.warn(format!("isExcluded: {}", outside(&rule)));
            }
            Err(PatternError::Bad(error)) => selector.warn(format!("{rule}: {error}")),
        }
    }
    for path in wanted.paths {
        let path = selector.expanded(path, env);
        selector.path(&path);
    }
    if wanted.untracked {
        selector.untracked();
    }
    for Exclude { rule, count, .. } in &selector.exclude {
        if *count > 0 {
            let text = format!("{rule}: excluded {count} files");
            selector.notes.push(Note { severity: Severity::Info, text });
        }
    }
    let files = selector.found.into_iter().map(|path| std::ffi::OsString::from_vec(path).into());
    Selection { files: files.collect(), notes: selector.notes }
}

fn outside(path: &str) -> String {
    format!("artifact path is not a subpath of project directory: {path}")
}

struct Exclude {
    rule: String,
    patterns: Vec<Pattern>,
    /// How often it took something out.
    count: usize,
}

struct Selector<'a> {
    project_dir: &'a Path,
    /// As bytes: that is the order archives have.
    found: BTreeSet<Vec<u8>>,
    notes: Vec<Note>,
    exclude: Vec<Exclude>,
}

impl Selector<'_> {
    fn warn(&mut self, text: String) {
        self.notes.push(Note { severity: Severity::Warning, text });
    }

    fn expanded(&mut self, text: &str, env: &dyn Fn(&str) -> Option<String>) -> String {
        expand(text, env).unwrap_or_else(|error| {
            self.warn(format!("{text}: {error}"));
            text.to_owned()
        })
    }

    fn path(&mut self, path: &str) {
        if path.is_empty() {
            self.warn("No matching files. Path is empty.".into());
            return;
        }
        let patterns = match Pattern::parse(path, self.project_dir) {
            Ok(patterns) => patterns,
            Err(PatternError::Outside) => {
                self.warn(format!("processPath: {}", outside(path)));
                return;
            }
            Err(PatternError::Bad(error)) => {
                self.warn(format!("{path}: {error}"));
                return;
            }
        };
        let mut count = 0;
        for pattern in &patterns {
            if !self.is_inside(pattern.base()) {
                self.warn(format!("processPath: {}", outside(path)));
                return;
            }
            count += self.matches(pattern);
        }
        if count == 0 {
            self.warn(format!(
                "{path}: no matching files. Ensure that the artifact path is relative to the \
                 working directory ({})",
                self.project_dir.display()
            ));
        } else {
            let text = format!("{path}: found {count} matching artifact files and directories");
            self.notes.push(Note { severity: Severity::Info, text });
        }
    }

    /// Whether no link on the way to `base` leads out of the project. What is not there does not.
    fn is_inside(&self, base: &Path) -> bool {
        let parent = base.parent().unwrap_or(Path::new(""));
        let real = |path: &Path| fs::canonicalize(path);
        match (real(&self.project_dir.join(parent)), real(self.project_dir)) {
            (Ok(parent), Ok(root)) => parent.starts_with(root),
            _ => true,
        }
    }

    /// Takes what a pattern matches, each directory with all it holds; gives how often something was
    /// taken. That counts a file once for itself and once for each matching directory it is in.
    fn matches(&mut self, pattern: &Pattern) -> usize {
        let base = self.project_dir.join(pattern.base());
        let mut count = 0;
        // By depth, whether the entry on the way to the current one matches.
        let mut matching: Vec<bool> = Vec::new();
        let mut walk =
            walkdir::WalkDir::new(&base).follow_root_links(false).sort_by_file_name().into_iter();
        while let Some(entry) = walk.next() {
            // What cannot be read is not there, as for a shell's globs.
            let Ok(entry) = entry else { continue };
            let below = entry.path().strip_prefix(&base).unwrap_or(Path::new(""));
            let depth = entry.depth();
            matching.truncate(depth);
            let within = matching.iter().filter(|matches| **matches).count();
            let own = pattern.matches(below, depth);
            matching.push(own);
            let times = within + usize::from(own);
            if times > 0 {
                let path = join(pattern.base(), below);
                count += self.take(&path, times);
            } else if entry.file_type().is_dir() && !pattern.may_match_below(below, depth) {
                walk.skip_current_dir();
            }
        }
        count
    }

    /// Takes one path, unless it is excluded; gives how often it counts.
    fn take(&mut self, path: &Path, times: usize) -> usize {
        let rule = self
            .exclude
            .iter_mut()
            .find(|rule| rule.patterns.iter().any(|pattern| pattern.matches_whole(path)));
        if let Some(rule) = rule {
            rule.count += times;
            return 0;
        }
        // The project directory itself counts but is no entry of an archive.
        if !path.as_os_str().is_empty() {
            self.found.insert(path.as_os_str().as_bytes().to_vec());
        }
        times
    }

    fn untracked(&mut self) {
        let output = Command::new("git")
            .args(["ls-files", "-o", "-z"])
            .current_dir(self.project_dir)
            .output();
        let output = match output {
            Ok(output) if output.status.success() => output.stdout,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let why = said.lines().last().unwrap_or("no reason given").to_owned();
                self.warn(format!("untracked: {} ({why})", output.status));
                return;
            }
            Err(error) => {
                self.warn(format!("untracked: cannot run git: {error}"));
                return;
            }
        };
        let mut count = 0;
        for name in output.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            // A repository within ends in a slash.
            let path = Path::new(OsStr::from_bytes(name.strip_suffix(b"/").unwrap_or(name)));
            if fs::symlink_metadata(self.project_dir.join(path)).is_ok() {
                count += self.take(path, 1);
            }
        }
        if count == 0 {
            self.warn("untracked: no files".into());
        } else {
            let text = format!("untracked: found {count} files");
            self.notes.push(Note { severity: Severity::Info, text });
        }
    }
}

/// Joins without the slash that joining an empty path adds.
fn join(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { base.to_owned() } else { base.join(below) }
}

#[cfg(test)]
mod tests;

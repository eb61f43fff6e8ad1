//! What is wrong with a pipeline file, or has no effect here, and where it says so.

use std::{fmt, path::PathBuf};

/// One thing to tell the author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The file, as the author knows it.
    pub(crate) file: String,
    /// Line in it, when it could be found.
    pub(crate) line: Option<usize>,
    /// Keys that lead there, such as `test.rules.0.if`.
    pub(crate) path: String,
    pub(crate) what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.what)
    }
}

/// Why a pipeline file cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PipelineError {
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A file is not YAML.
    #[error("`{file}` is not valid YAML")]
    Yaml {
        file: String,
        /// What the parser says, with line and column.
        source: serde_yaml::Error,
    },
    /// The file says something that cannot be run; all of it.
    #[error("the pipeline file is not valid:\n{}", lines(.0))]
    Invalid(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

/// Collects problems while a pipeline is read, and finds their lines in the texts.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// These prevent a run.
    pub(crate) errors: Vec<Problem>,
    /// These do not.
    pub(crate) warnings: Vec<Problem>,
    sources: Vec<(String, String)>,
}

impl Report {
    /// Adds a file that was read; the first is the main file.
    pub(crate) fn source(&mut self, name: &str, text: &str) {
        self.sources.push((name.to_owned(), text.to_owned()));
    }

    /// Adds an error at the keys of `path`.
    pub(crate) fn error(&mut self, path: &[&str], what: impl Into<String>) {
        let problem = self.problem(path, what.into());
        if !self.errors.contains(&problem) {
            self.errors.push(problem);
        }
    }

    /// Adds a warning at the keys of `path`.
    pub(crate) fn warn(&mut self, path: &[&str], what: impl Into<String>) {
        let problem = self.problem(path, what.into());
        if !self.warnings.contains(&problem) {
            self.warnings.push(problem);
        }
    }

    /// The errors, if there are any.
    pub(crate) fn check(&mut self) -> Result<(), PipelineError> {
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(PipelineError::Invalid(std::mem::take(&mut self.errors)))
    }

    /// A problem at the keys of `path`.
    pub(crate) fn problem(&self, path: &[&str], what: String) -> Problem {
        let found = self
            .sources
            .iter()
            .rev()
            .map(|(name, text)| (name, locate(text, path)))
            .max_by_key(|(_, (depth, _))| *depth);
        let main = self.sources.first().map(|(name, _)| name.clone()).unwrap_or_default();
        let (file, line) = match found {
            Some((name, (depth, line))) if depth > 0 => (name.clone(), Some(line)),
            _ => (main, None),
        };
        Problem { file, line, path: path.join("."), what }
    }
}

/// How many keys of `path` the block mappings of `text` lead to, and the line of the last.
fn locate(text: &str, path: &[&str]) -> (usize, usize) {
    let (mut depth, mut line, mut parent) = (0, 0, None);
    for (number, content) in text.lines().enumerate() {
        let trimmed = content.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let indent = content.len() - trimmed.len();
        if parent.is_some_and(|parent| indent <= parent) {
            break;
        }
        let Some(key) = path.get(depth) else { break };
        if parent.is_none() && indent > 0 {
            continue;
        }
        if is_key(trimmed, key) {
            (depth, line, parent) = (depth + 1, number + 1, Some(indent));
        }
    }
    (depth, line)
}

fn is_key(line: &str, key: &str) -> bool {
    let line = line.strip_prefix("- ").unwrap_or(line);
    let rest = ['"', '\'']
        .iter()
        .find_map(|quote| line.strip_prefix(*quote)?.strip_prefix(key)?.strip_prefix(*quote))
        .or_else(|| line.strip_prefix(key));
    rest.is_some_and(|rest| {
        let rest = rest.trim_start();
        rest == ":" || rest.starts_with(": ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_file_line_and_key() {
        let mut report = Report::default();
        report.source(
            ".gitlab-ci.yml",
            "# c\nbuild:\n  script: x\n\n\"test it\":\n  script: y\n  trigger: z\n",
        );
        report.source("ci/more.yml", "deploy:\n  rules:\n    - if: $A\n      changes: [a]\n");
        report.error(&["test it", "trigger"], "is not supported");
        report.error(&["deploy", "rules", "0", "changes"], "no");
        report.error(&["gone"], "no");
        let shown: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                ".gitlab-ci.yml:7: test it.trigger: is not supported",
                "ci/more.yml:2: deploy.rules.0.changes: no",
                ".gitlab-ci.yml: gone: no",
            ]
        );
        assert!(report.check().unwrap_err().to_string().contains("\n  .gitlab-ci.yml:7: test it"));
    }
}

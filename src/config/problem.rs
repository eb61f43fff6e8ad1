//! What is wrong with a file, and what its operator should know. Never holds a secret.

use std::{fmt, path::PathBuf};

/// Something in the file that keeps it from being used. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key, `runners[0].docker.memory`; empty when the file is no TOML at all.
    pub key: String,
    /// Line, counted from 1.
    pub line: Option<usize>,
    /// The value as TOML, where it may be shown.
    pub value: Option<String>,
    /// What is wrong with it.
    pub why: String,
    /// What to write in its place.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if !self.key.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.why)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that keeps a file from being used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub path: PathBuf,
    /// At least one, in file order.
    pub problems: Vec<Problem>,
    /// Warnings about the rest of the file.
    pub warnings: Vec<Warning>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "{count} {noun} in `{}`", self.path.display())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// Something in the file that the operator should know of, and that does not stop anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Path of the key.
    pub key: String,
    /// Line, counted from 1.
    pub line: Option<usize>,
    /// A sentence for the operator.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: {}", self.key, self.message)
    }
}

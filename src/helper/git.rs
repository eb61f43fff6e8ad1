//! How git is run: in which directory and environment, with its output in the trace.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::error::Error;
use super::files::parent;
use super::frames::FrameSender;
use super::process;

/// Git as a task runs it. No `Debug`: the environment has secrets.
pub(super) struct Git {
    directory: PathBuf,
    environment: Environment,
    trace: FrameSender,
}

/// The variables of a task: the helper's own and the job's, or exactly what a hook left.
#[derive(Clone, Default)]
pub(super) struct Environment {
    exact: bool,
    variables: Vec<(String, String)>,
}

impl Environment {
    /// The environment that a hook left; nothing is added to it.
    pub(super) fn exactly(variables: Vec<(String, String)>) -> Self {
        Self { exact: true, variables }
    }

    /// Sets a variable; a later one takes precedence.
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.variables.push((name.to_owned(), value.into()));
    }

    /// The value that a program would see.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        let set = self.variables.iter().rev().find(|(set, _)| set == name);
        match set {
            Some((_, value)) => Some(value.clone()),
            None if self.exact => None,
            None => std::env::var(name).ok(),
        }
    }

    /// Sets the variables of a program.
    pub(super) fn apply(&self, command: &mut Command) {
        if self.exact {
            command.env_clear();
        }
        let variables = self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        process::set_environment(command, variables);
    }
}

impl Git {
    pub(super) fn new(directory: &Path, environment: Environment, trace: &FrameSender) -> Self {
        Self { directory: directory.to_owned(), environment, trace: trace.clone() }
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        self.environment.apply(&mut command);
        // Never a question, as there is nobody to answer it.
        command.env("GIT_TERMINAL_PROMPT", "0").env("GCM_INTERACTIVE", "Never");
        // A broken repository must not lead to one further up, whose files would then be cleaned.
        command.env("GIT_CEILING_DIRECTORIES", parent(&self.directory));
        command.current_dir(&self.directory).args(arguments);
        command
    }

    /// Runs git with its output in the trace; returns its exit code.
    pub(super) async fn code(&self, arguments: &[&str]) -> Result<i32, Error> {
        process::stream(&mut self.command(arguments), &self.trace).await.map_err(no_git)
    }

    /// Runs git with its output in the trace; an exit code other than 0 is an error.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<(), Error> {
        match self.code(arguments).await? {
            0 => Ok(()),
            code => Err(failed(arguments, code)),
        }
    }

    /// Runs git without showing its output; returns its exit code and what it wrote to stdout.
    pub(super) async fn quiet(&self, arguments: &[&str]) -> Result<(i32, String), Error> {
        process::capture(&mut self.command(arguments)).await.map_err(no_git)
    }

    /// Sets a key of a configuration file to one value, without showing its output. `like` is a pattern of the
    /// values that it replaces.
    pub(super) async fn configure(
        &self,
        file: &str,
        key: &str,
        value: &str,
        like: &str,
    ) -> Result<(), Error> {
        let arguments = ["config", file, "--replace-all", key, value, like];
        match self.quiet(&arguments).await?.0 {
            0 => Ok(()),
            code => Err(failed(&arguments, code)),
        }
    }
}

fn no_git(source: std::io::Error) -> Error {
    Error::Spawn { program: "git".to_owned(), source }
}

/// Names the subcommand only: git itself has said more in the trace.
fn failed(arguments: &[&str], code: i32) -> Error {
    let mut rest = arguments;
    while let ["-c", _, after @ ..] = rest {
        rest = after;
    }
    let words: &[&str] = match rest {
        ["submodule" | "lfs", ..] => &rest[..rest.len().min(2)],
        _ => &rest[..rest.len().min(1)],
    };
    Error::Git { command: format!("git {}", words.join(" ")), code }
}

/// A value as git's configuration files have it, in quotes.
pub(super) fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for character in value.chars() {
        match character {
            '"' | '\\' => {
                text.push('\\');
                text.push(character);
            }
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            // Git has no escape for it, and none of our values has a use for it.
            '\0' | '\r' => {}
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

/// A pattern (POSIX extended) that matches the text and nothing else.
pub(super) fn pattern(text: &str) -> String {
    let mut pattern = String::from("^");
    for character in text.chars() {
        if character.is_ascii_punctuation() && !"/-_'\"<>&%#@!~`,:;=".contains(character) {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('$');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_subcommand_and_no_argument() {
        let named = |arguments: &[&str]| failed(arguments, 1).to_string();
        assert_eq!(named(&["-c", "a=b", "fetch", "origin"]), "`git fetch` failed with exit code 1");
        assert_eq!(
            named(&["submodule", "update", "--init"]),
            "`git submodule update` failed with exit code 1"
        );
    }

    #[test]
    fn values_are_quoted_as_git_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config");
        let value = "a \"b\" \\ # ; !f() { x; }\tend\nnext";
        std::fs::write(&file, format!("[a]\n\tb = {}\n", quoted(value))).unwrap();
        let output = std::process::Command::new("git")
            .args(["config", "-z", "-f"])
            .arg(&file)
            .args(["--get", "a.b"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{value}\0"));
    }

    #[test]
    fn a_pattern_matches_its_text_only() {
        assert_eq!(pattern("/builds/a.b+c (1)"), r"^/builds/a\.b\+c \(1\)$");
    }

    #[test]
    fn what_a_hook_left_hides_the_helpers_own_variables() {
        let mut environment = Environment::exactly(vec![("A".into(), "1".into())]);
        environment.set("A", "2");
        assert_eq!(environment.value("A").as_deref(), Some("2"));
        assert_eq!(environment.value("PATH"), None);
        assert!(Environment::default().value("PATH").is_some());
    }
}

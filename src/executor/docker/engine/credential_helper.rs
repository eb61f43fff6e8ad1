//! Running `docker-credential-<name>` programs, which keep or make credentials.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::base::secret::Secret;

/// How long a credential helper may take. Some ask a cloud's API.
pub(super) const HELPER_DEADLINE: Duration = Duration::from_secs(30);

/// The user name by which a helper says that its secret is an identity token
/// (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

/// What a registry is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Credential {
    pub(super) username: String,
    pub(super) password: Secret,
    /// Instead of both, for a token server.
    pub(super) identity_token: Secret,
    /// Instead of all, for the registry.
    pub(super) registry_token: Secret,
}

impl Credential {
    pub(super) fn is_empty(&self) -> bool {
        self.username.is_empty()
            && self.password.is_empty()
            && self.identity_token.is_empty()
            && self.registry_token.is_empty()
    }
}

/// Runs `docker-credential-<name>` programs (docker-credential-helpers: the verb is the argument,
/// the server goes to stdin, JSON comes back).
pub(super) struct Helpers {
    /// `PATH`.
    pub(super) path: Option<OsString>,
    /// For one run.
    pub(super) deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("docker-credential-{name} is not in PATH")]
    Missing { name: String },
    #[error("docker-credential-{name} {verb} cannot be run: {source}")]
    Run { name: String, verb: &'static str, source: std::io::Error },
    #[error("docker-credential-{name} {verb} did not end within {seconds} s")]
    Late { name: String, verb: &'static str, seconds: u64 },
    #[error("docker-credential-{name} {verb} failed: {message}")]
    Failed { name: String, verb: &'static str, message: String },
    #[error("docker-credential-{name} {verb} did not answer as a credential helper does")]
    Answer { name: String, verb: &'static str },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: Secret,
}

impl Helpers {
    /// The servers it has credentials for.
    pub(super) async fn list(&self, name: &str) -> Result<Vec<String>, HelperError> {
        let answer = self.run(name, "list", "").await?;
        let listed: BTreeMap<String, String> = serde_json::from_slice(&answer)
            .map_err(|_| HelperError::Answer { name: name.to_owned(), verb: "list" })?;
        Ok(listed.into_keys().collect())
    }

    /// The credentials for one.
    pub(super) async fn get(&self, name: &str, server: &str) -> Result<Credential, HelperError> {
        let answer = self.run(name, "get", server).await?;
        let answer: HelperAnswer = serde_json::from_slice(&answer)
            .map_err(|_| HelperError::Answer { name: name.to_owned(), verb: "get" })?;
        Ok(if answer.username == TOKEN_USER {
            Credential { identity_token: answer.secret, ..Credential::default() }
        } else {
            Credential {
                username: answer.username,
                password: answer.secret,
                ..Credential::default()
            }
        })
    }

    async fn run(
        &self,
        name: &str,
        verb: &'static str,
        input: &str,
    ) -> Result<Vec<u8>, HelperError> {
        let program = format!("docker-credential-{name}");
        let program = self
            .path
            .as_deref()
            .and_then(|path| find_in(path, Path::new(&program)))
            .ok_or_else(|| HelperError::Missing { name: name.to_owned() })?;
        let failed = |source| HelperError::Run { name: name.to_owned(), verb, source };
        let mut command = Command::new(program);
        command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
        let exchange = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A helper that does not read its input is judged by its answer.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(self.deadline, exchange)
            .await
            .map_err(|_| HelperError::Late {
                name: name.to_owned(),
                verb,
                seconds: self.deadline.as_secs(),
            })?
            .map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        // Helpers explain failures on stdout; a secret is only there after success.
        let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        let message = String::from_utf8_lossy(said).trim().chars().take(200).collect::<String>();
        let message = if message.is_empty() { output.status.to_string() } else { message };
        Err(HelperError::Failed { name: name.to_owned(), verb, message })
    }
}

/// The program of that name in a `PATH`.
pub(super) fn find_in(path: &std::ffi::OsStr, program: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    std::env::split_paths(path)
        .filter(|d| d.is_absolute())
        .map(|d| d.join(program))
        .find(|p| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A `PATH` with one helper of the given script.
    pub(in crate::executor::docker::engine) fn helper(
        name: &str,
        script: &str,
    ) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let draft = dir.path().join("draft");
        let file = dir.path().join(format!("docker-credential-{name}"));
        std::fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        // Another process makes the program: what is open for writing here could be open in a
        // child that another test just forked, and then cannot be run.
        let install = std::process::Command::new("install")
            .args(["-m", "755"])
            .args([&draft, &file])
            .status();
        assert!(install.unwrap().success());
        dir
    }

    #[tokio::test]
    async fn helpers_that_fail_or_hang_are_named() {
        let path = helper("sad", "echo no such key; exit 1");
        let helpers = Helpers { path: Some(path.path().into()), deadline: HELPER_DEADLINE };
        let error = helpers.get("sad", "r.example").await.unwrap_err();
        assert_eq!(error.to_string(), "docker-credential-sad get failed: no such key");
        let path = helper("slow", "exec sleep 600");
        let mut with_sleep = path.path().as_os_str().to_owned();
        with_sleep.push(":/usr/bin:/bin");
        let helpers = Helpers { path: Some(with_sleep), deadline: Duration::from_millis(50) };
        let error = helpers.get("slow", "r.example").await.unwrap_err();
        assert!(matches!(error, HelperError::Late { .. }), "{error}");
    }
}

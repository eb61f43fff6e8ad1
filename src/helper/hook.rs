//! Scripts before and after git, as the job or the runner's settings have them.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use tokio::process::Command;

use super::error::Error;
use super::frames::FrameSender;
use super::git::Environment;
use super::process;

/// A hook: what it is called and the script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook<'a> {
    pub(super) name: &'static str,
    pub(super) script: &'a str,
}

/// Runs the script in the first shell there is; an exit code other than 0 ends the stage.
///
/// Returns the environment that the script ended with, as what it exports is meant for git (an ssh
/// agent, proxies): in gitlab-runner both are parts of one script. `None` when the script exited
/// early, or the image has no `env -0`.
pub(super) async fn run(
    hook: Hook<'_>,
    directory: Option<&Path>,
    temp: &Path,
    environment: &Environment,
    trace: &FrameSender,
) -> Result<Option<Environment>, Error> {
    let after = temporary(temp)?;
    let after_path = after.path().to_string_lossy().into_owned();
    let mut script = temporary(temp)?;
    // On a line of its own, whatever the script ends with; `$?` is kept as `set -e` may be off.
    let text = format!(
        "{}\nlongshore_code=$?\nenv -0 >{} 2>/dev/null || :\nexit $longshore_code\n",
        hook.script,
        shell_words::quote(&after_path)
    );
    script.write_all(text.as_bytes()).map_err(Error::file("write", script.path()))?;

    for shell in ["bash", "sh"] {
        let mut command = Command::new(shell);
        environment.apply(&mut command);
        if let Some(directory) = directory {
            command.current_dir(directory);
        }
        match process::stream(command.arg(script.path()), trace).await {
            Ok(0) => return Ok(left(after.path())),
            Ok(code) => return Err(Error::Hook { hook: hook.name, code }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Spawn { program: shell.to_owned(), source }),
        }
    }
    Err(Error::NoShell(hook.name))
}

fn temporary(directory: &Path) -> Result<tempfile::NamedTempFile, Error> {
    tempfile::Builder::new()
        .prefix(".longshore-")
        .tempfile_in(directory)
        .map_err(Error::file("make a file in", directory))
}

fn left(path: &Path) -> Option<Environment> {
    let bytes = fs::read(path).ok().filter(|bytes| !bytes.is_empty())?;
    let variables = bytes
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
        .filter(|(name, _)| !matches!(*name, "PWD" | "OLDPWD" | "SHLVL" | "_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    Some(Environment::exactly(variables))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    async fn run_hook(script: &str) -> Result<Option<Environment>, Error> {
        let temp = tempfile::tempdir().unwrap();
        let (frames, _sent) = mpsc::channel(64);
        let hook = Hook { name: "pre_get_sources_script", script };
        let mut environment = Environment::default();
        environment.set("FROM_JOB", "1");
        let end = run(hook, None, temp.path(), &environment, &FrameSender::new(frames)).await;
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0, "nothing stays");
        end
    }

    #[tokio::test]
    async fn what_a_hook_exports_is_handed_on() {
        let environment = run_hook("export A='x\ny'; unset FROM_JOB # end").await.unwrap().unwrap();
        assert_eq!(environment.value("A").as_deref(), Some("x\ny"));
        assert_eq!(environment.value("FROM_JOB"), None);
        assert!(environment.value("PATH").is_some());
    }

    #[tokio::test]
    async fn a_hooks_own_exit_code_is_kept() {
        assert!(run_hook("exit 0").await.unwrap().is_none());
        for (script, expected) in [("exit 3", 3), ("(exit 4)", 4), ("set -e\n(exit 5)\ntrue", 5)] {
            match run_hook(script).await {
                Err(Error::Hook { code, .. }) => assert_eq!(code, expected, "{script}"),
                other => panic!("{script}: {:?}", other.map(|_| ())),
            }
        }
    }

    #[tokio::test]
    async fn a_hook_has_no_stdin_to_wait_for() {
        assert!(run_hook("cat").await.is_ok());
    }
}

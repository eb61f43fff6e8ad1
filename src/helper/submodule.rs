//! Submodules (docs/compatibility.md, "Submodules").

use std::path::Path;

use super::credentials;
use super::error::Error;
use super::frames::FrameSender;
use super::git::Git;
use crate::workload::transfer::Sources;

/// Cleans submodules where `GIT_CLEAN_FLAGS` is `none`, which applies to the project alone.
const CLEAN: &str = "-ffdx";

/// Updates the submodules to the commits that the project names.
pub(super) async fn update(
    git: &Git,
    task: &Sources,
    external: &Path,
    lfs: bool,
    trace: &FrameSender,
) -> Result<(), Error> {
    let Some(recursive) = task.submodules.recursive else {
        trace.notice("Skipping Git submodules setup").await;
        return Ok(());
    };
    if let Some(pair) = incomplete(&task.submodules.paths) {
        return Err(Error::SubmodulePath(pair.to_owned()));
    }
    let how = if recursive { " recursively" } else { "" };
    let depth = task.submodules.depth;
    let depth_text =
        if depth > 0 { format!(" with git depth set to {depth}") } else { String::new() };
    trace.notice(&format!("Updating/initializing submodules{how}{depth_text}...")).await;

    let commands = Commands { git, task, recursive, external };
    git.run(&["submodule", "init"]).await?;
    commands.sync().await?;
    // Of no use to a work tree that is broken, which the update then mends or reports.
    commands.clean().await?;
    commands.reset().await?;
    if commands.update().await? == 0 {
        trace.notice("Updated submodules").await;
        commands.sync().await?;
    } else {
        trace.warning("Updating submodules failed. Retrying...").await;
        // A commit may be missing from what a remote gives by default. And what was cloned before the
        // failure has no files yet: without them the update does not see the submodules in it.
        commands.fetch_branches().await?;
        commands.reset().await?;
        commands.sync().await?;
        succeed("git submodule update", commands.update().await?)?;
        succeed("git submodule foreach", commands.reset().await?)?;
        trace.notice("Updated submodules").await;
    }
    commands.clean().await?;
    commands.include().await?;
    if lfs {
        succeed("git lfs pull", commands.each("git lfs pull").await?)?;
    }
    Ok(())
}

/// `:(exclude)` and its path are one word; alone it would exclude everything.
fn incomplete(paths: &[String]) -> Option<&str> {
    paths.iter().map(String::as_str).find(|path| *path == ":(exclude)")
}

fn succeed(command: &str, code: i32) -> Result<(), Error> {
    match code {
        0 => Ok(()),
        code => Err(Error::Git { command: command.to_owned(), code }),
    }
}

struct Commands<'a> {
    git: &'a Git,
    task: &'a Sources,
    recursive: bool,
    external: &'a Path,
}

impl Commands<'_> {
    fn recursive(&self) -> &'static [&'static str] {
        if self.recursive { &["--recursive"] } else { &[] }
    }

    fn paths(&self) -> Vec<&str> {
        let paths = &self.task.submodules.paths;
        let separator = if paths.is_empty() { None } else { Some("--") };
        separator.into_iter().chain(paths.iter().map(String::as_str)).collect()
    }

    async fn sync(&self) -> Result<(), Error> {
        let mut arguments = vec!["submodule", "sync"];
        arguments.extend(self.recursive());
        arguments.extend(self.paths());
        self.git.run(&arguments).await
    }

    async fn each(&self, command: &str) -> Result<i32, Error> {
        let mut arguments = vec!["submodule", "foreach"];
        arguments.extend(self.recursive());
        arguments.push(command);
        self.git.code(&arguments).await
    }

    async fn clean(&self) -> Result<i32, Error> {
        self.each(&clean(self.task.clean_flags.as_deref())).await
    }

    async fn reset(&self) -> Result<i32, Error> {
        self.each("git reset --hard").await
    }

    /// In each as far as it goes.
    async fn fetch_branches(&self) -> Result<i32, Error> {
        let include = format!("include.path={}", self.external.display());
        let refspec = "+refs/heads/*:refs/remotes/origin/*";
        let fetch = shell_words::join(["git", "-c", &include, "fetch", "origin", refspec]);
        self.each(&format!("{fetch} || :")).await
    }

    async fn update(&self) -> Result<i32, Error> {
        let include = format!("include.path={}", self.external.display());
        let mut arguments = vec!["-c", &include, "submodule", "update", "--init"];
        arguments.extend(self.recursive());
        let depth = self.task.submodules.depth.to_string();
        if self.task.submodules.depth > 0 {
            arguments.extend(["--depth", &depth]);
        }
        arguments.extend(self.task.submodules.update_flags.iter().map(String::as_str));
        arguments.extend(self.paths());
        self.git.code(&arguments).await
    }

    /// Lets the job's own git authenticate in submodules, in all of them whatever the strategy.
    async fn include(&self) -> Result<(), Error> {
        let path = self.external.to_string_lossy();
        let like = format!("{}$", regex::escape(credentials::EXTERNAL));
        let command = shell_words::join([
            "git",
            "config",
            "--replace-all",
            "include.path",
            path.as_ref(),
            like.as_str(),
        ]);
        let arguments = ["submodule", "--quiet", "foreach", "--quiet", "--recursive", &command];
        self.git.run(&arguments).await
    }
}

/// The command that cleans a submodule.
pub(super) fn clean(flags: Option<&[String]>) -> String {
    match flags {
        Some(flags) => format!("git clean {}", shell_words::join(flags)),
        None => format!("git clean {CLEAN}"),
    }
}

#[cfg(test)]
mod tests;

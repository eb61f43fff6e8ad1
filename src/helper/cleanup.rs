//! Removes what only the job needed (docs/compatibility.md, "Cleanup after a job").
//!
//! Every step is tried, whatever became of those before; all failures are reported together.

use std::path::{Component, Path};

use super::credentials;
use super::error::Error;
use super::files;
use super::frames::FrameSender;
use super::git::{Environment, Git};
use super::hygiene;
use super::sources::{HOME, TEMPLATE, off_thread};
use super::submodule;
use crate::{
    base::error_chain,
    workload::transfer::{CleanUp, Strategy},
};

/// Cleans up after a job.
pub(super) async fn clean_up(task: &CleanUp, trace: &FrameSender) -> Result<(), Error> {
    let project = Path::new(&task.project_dir);
    let temp = Path::new(&task.temp_dir);
    let mut failures = Vec::new();
    let mut note = |end: Result<(), Error>| {
        if let Err(error) = end {
            failures.push(error_chain(&error));
        }
    };

    for name in credentials::FILES.into_iter().chain([TEMPLATE, HOME]) {
        note(files::remove(&temp.join(name)));
    }
    for name in task.file_variables.iter().filter(|name| is_name(name)) {
        note(files::remove(&temp.join(name)));
    }
    for entry in std::fs::read_dir(temp).into_iter().flatten().flatten() {
        // Files that a task was writing when it was stopped.
        if entry.file_name().to_string_lossy().starts_with(".longshore-") {
            note(files::remove(&entry.path()));
        }
    }
    let submodules = task.submodules;
    note(off_thread(project, move |path| hygiene::remove_locks(path, submodules)).await);
    if task.clean_config {
        // Before git runs for the last time: a job's hooks and settings do not run in here.
        let work = move |path: &Path| hygiene::remove_configuration(path, submodules);
        note(off_thread(project, work).await);
    }
    if let Some((strategy, flags)) = &task.worktree {
        note(clean_worktree(task, *strategy, flags, trace).await);
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::CleanUp(failures.join("; "))) }
}

/// Names come from a job's variables, and none of them may lead out of the directory.
fn is_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

/// `FF_ENABLE_JOB_CLEANUP`.
async fn clean_worktree(
    task: &CleanUp,
    strategy: Strategy,
    flags: &[String],
    trace: &FrameSender,
) -> Result<(), Error> {
    let project = Path::new(&task.project_dir);
    match strategy {
        Strategy::None => {
            trace.notice("Skipping build directory cleanup step").await;
            Ok(())
        }
        Strategy::Clone | Strategy::Empty => {
            off_thread(project, |path| {
                files::empty_directory(path)?;
                // Not when it is a mount or its parent is not ours; it is empty, which is enough.
                let _ = std::fs::remove_dir(path);
                Ok(())
            })
            .await
        }
        Strategy::Fetch => {
            if !project.join(".git/HEAD").exists() {
                return Ok(());
            }
            let git = Git::new(project, Environment::default(), trace);
            // None with `GIT_CLEAN_FLAGS=none`, which says nothing about submodules.
            let flags = (!flags.is_empty()).then_some(flags);
            if let Some(flags) = flags {
                let mut clean = vec!["-c", "safe.directory=*", "clean"];
                clean.extend(flags.iter().map(String::as_str));
                git.run(&clean).await?;
            }
            git.run(&["-c", "safe.directory=*", "reset", "--hard"]).await?;
            if task.submodules {
                let clean = submodule::clean(flags);
                for command in [clean.as_str(), "git reset --hard"] {
                    let safe = "safe.directory=*";
                    git.run(&["-c", safe, "submodule", "foreach", "--recursive", command]).await?;
                }
            }
            Ok(())
        }
    }
}

/// Removes tracked and untracked files from a work tree before the next attempt at its sources. A work
/// tree that git cannot work in is removed as a whole, so that the next attempt differs.
pub(super) async fn clear_worktree(project: &Path, trace: &FrameSender) -> Result<(), Error> {
    if !project.join(".git").exists() {
        return Ok(());
    }
    let git = Git::new(project, Environment::default(), trace);
    let safe = "safe.directory=*";
    let remove = ["-c", safe, "rm", "-rf", "--ignore-unmatch", "--quiet", "."];
    let clean = ["-c", safe, "clean", "-ffdx", "-q"];
    if git.code(&remove).await? == 0 && git.code(&clean).await? == 0 {
        return Ok(());
    }
    trace.warning("git cannot clear the project's directory, so all in it is removed").await;
    off_thread(project, files::empty_directory).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_removed() {
        for name in ["CA", "my.key", "..x"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "/etc", "../x", "a/../../x", "a/b"] {
            assert!(!is_name(name), "{name}");
        }
    }
}

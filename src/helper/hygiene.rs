//! What earlier jobs may have left in a repository that would break git or change what it does
//! (docs/compatibility.md, "Steps of `get_sources`", steps 4 and 5).
//!
//! A work tree is reused by jobs of the same project, and whoever runs jobs there may write to
//! `.git`: its configuration and hooks must not run in the helper, which has the next job's token.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::files::remove;

const LOCKS: [&str; 5] =
    ["index.lock", "shallow.lock", "HEAD.lock", "config.lock", "hooks/post-checkout"];

/// Removes the locks of git processes that were killed, in the repository and, when `submodules`
/// is set, in those of its submodules.
pub(super) fn remove_locks(project: &Path, submodules: bool) -> Result<(), Error> {
    for repository in repositories(project, submodules) {
        for name in LOCKS {
            remove(&repository.join(name))?;
        }
        for entry in walkdir::WalkDir::new(repository.join("refs")).into_iter().flatten() {
            let lock = entry.path().extension().is_some_and(|extension| extension == "lock");
            if lock && !entry.file_type().is_dir() {
                remove(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Removes configuration and hooks. Git creates the configuration again.
///
/// Beyond what gitlab-runner removes: `commondir` and a `.git` that is not a directory would lead git
/// to a configuration elsewhere, and `config.worktree` is one more configuration.
pub(super) fn remove_configuration(project: &Path, submodules: bool) -> Result<(), Error> {
    let git = project.join(".git");
    if fs::symlink_metadata(&git).is_ok_and(|metadata| !metadata.is_dir()) {
        remove(&git)?;
    }
    for repository in repositories(project, submodules) {
        for name in ["config", "config.worktree", "commondir", "hooks"] {
            remove(&repository.join(name))?;
        }
    }
    Ok(())
}

/// The repository of the project and those of its submodules, at any depth: directories under
/// `modules` that have a `HEAD`. A submodule's name may be anything, `hooks` and `config` too, so
/// that names alone do not say what a directory is.
fn repositories(project: &Path, submodules: bool) -> Vec<PathBuf> {
    let mut found = vec![project.join(".git")];
    if !submodules {
        return found;
    }
    let mut open = vec![found[0].join("modules")];
    while let Some(directory) = open.pop() {
        if !fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.is_dir()) {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            if fs::symlink_metadata(path.join("HEAD")).is_ok() {
                open.push(path.join("modules"));
                found.push(path);
            } else {
                open.push(path);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn docker_133_stale_locks_go_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let git = root.path().join(".git");
        let module = git.join("modules/lib/hooks");
        let stale = [
            git.join("index.lock"),
            git.join("shallow.lock"),
            git.join("HEAD.lock"),
            git.join("config.lock"),
            git.join("hooks/post-checkout"),
            git.join("refs/heads/deep/main.lock"),
            module.join("index.lock"),
            module.join("refs/remotes/origin/x.lock"),
        ];
        let kept = [
            git.join("HEAD"),
            git.join("refs/heads/main"),
            git.join("hooks/pre-commit"),
            git.join("objects/pack/a.lock"),
            module.join("HEAD"),
        ];
        stale.iter().chain(&kept).for_each(|path| file(path));
        remove_locks(root.path(), false).unwrap();
        assert!(module.join("index.lock").exists(), "submodules are not enabled");
        remove_locks(root.path(), true).unwrap();
        for path in &stale {
            assert!(!path.exists(), "{}", path.display());
        }
        for path in &kept {
            assert!(path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn docker_134_configuration_and_hooks_go_in_submodules_too() {
        let root = tempfile::tempdir().unwrap();
        let git = root.path().join(".git");
        let module = git.join("modules/config/modules/hooks");
        let gone = [
            git.join("config"),
            git.join("config.worktree"),
            git.join("commondir"),
            git.join("hooks/pre-commit"),
            git.join("modules/config/config"),
            module.join("config"),
            module.join("hooks/post-checkout"),
        ];
        let kept = [
            git.join("HEAD"),
            git.join("refs/heads/config"),
            git.join("modules/config/HEAD"),
            git.join("modules/config/refs/heads/hooks/config"),
            module.join("HEAD"),
        ];
        gone.iter().chain(&kept).for_each(|path| file(path));
        remove_configuration(root.path(), true).unwrap();
        for path in &gone {
            assert!(!path.exists(), "{}", path.display());
        }
        for path in &kept {
            assert!(path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn docker_134_a_git_file_that_leads_elsewhere_goes() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(".git"), "gitdir: evil\n").unwrap();
        file(&root.path().join("evil/config"));
        remove_configuration(root.path(), true).unwrap();
        assert!(!root.path().join(".git").exists());
    }

    #[test]
    fn a_linked_modules_directory_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        file(&outside.join("HEAD"));
        file(&outside.join("config"));
        fs::create_dir_all(root.path().join("p/.git/modules")).unwrap();
        std::os::unix::fs::symlink(&outside, root.path().join("p/.git/modules/x")).unwrap();
        remove_configuration(&root.path().join("p"), true).unwrap();
        assert!(outside.join("config").exists());
    }
}

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::helper::testing::{Host, Repository, run, succeed};

fn exists(task: &Sources, name: &str) -> bool {
    PathBuf::from(&task.project_dir).join(name).exists()
}

/// A project with `lib`, which has `lib/inner` itself, and `tool`.
fn nested() -> (Host, Repository, String) {
    let host = Host::start();
    let inner = host.repository("inner");
    let inner_sha = host.commit(&inner, &[("i", "1")]);
    let lib = host.repository("lib");
    host.commit(&lib, &[("old", "1")]);
    host.submodule(&lib, "inner", &host.url("inner"), &inner_sha);
    let lib_sha = host.commit(&lib, &[("l", "1")]);
    let tool = host.repository("tool");
    let tool_sha = host.commit(&tool, &[("t", "1")]);
    let app = host.repository("app");
    host.submodule(&app, "lib", "../lib.git", &lib_sha);
    host.submodule(&app, "tool", &host.url("tool"), &tool_sha);
    let sha = host.commit(&app, &[("a", "1")]);
    (host, app, sha)
}

#[tokio::test]
async fn docker_141_normal_takes_the_first_level_and_recursive_all() {
    let (host, app, sha) = nested();
    let mut task = host.task(&app, &sha);
    succeed(&task).await;
    assert!(!exists(&task, "lib/l"), "none");
    task.submodules.recursive = Some(false);
    let trace = succeed(&task).await;
    assert!(trace.contains("Updating/initializing submodules...\x1b"), "{trace}");
    assert!(trace.contains("Updated submodules\x1b"), "{trace}");
    assert!(exists(&task, "lib/l") && exists(&task, "tool/t") && !exists(&task, "lib/inner/i"));
    fs::write(PathBuf::from(&task.project_dir).join("lib/untracked"), "x").unwrap();
    fs::write(PathBuf::from(&task.project_dir).join("lib/l"), "changed").unwrap();

    task.submodules.recursive = Some(true);
    task.submodules.depth = 1;
    task.clean_flags = None;
    let trace = succeed(&task).await;
    assert!(trace.contains("submodules recursively with git depth set to 1..."), "{trace}");
    assert!(exists(&task, "lib/inner/i"));
    assert!(!exists(&task, "lib/untracked"), "cleaned whatever the project's flags are");
    let directory = PathBuf::from(&task.project_dir);
    assert_eq!(fs::read_to_string(directory.join("lib/l")).unwrap(), "1");

    // The job's own git authenticates in all of them.
    for path in ["lib", "lib/inner", "tool"] {
        let (success, text) = host.git(&directory.join(path), &["fetch", "origin"]);
        assert!(success, "{path}: {text}");
    }
}

#[tokio::test]
async fn docker_141_paths_depth_and_flags_are_handed_on() {
    let (host, app, sha) = nested();
    let mut task = host.task(&app, &sha);
    task.strategy = crate::workload::transfer::Strategy::Clone;
    task.submodules.recursive = Some(false);
    task.submodules.paths = vec!["lib".into()];
    task.submodules.depth = 1;
    task.submodules.update_flags = vec!["--jobs".into(), "2".into()];
    succeed(&task).await;
    assert!(exists(&task, "lib/l") && !exists(&task, "tool/t"));
    let directory = PathBuf::from(&task.project_dir).join("lib");
    assert_eq!(host.git(&directory, &["rev-list", "--count", "HEAD"]).1, "1");

    task.submodules.update_flags = vec!["--no-such-flag".into()];
    let (end, _) = run(&task).await;
    let done = end.unwrap_err().done();
    assert_eq!(done.exit_code, 1);
    assert_eq!(done.error.as_deref(), Some("`git submodule update` failed with exit code 1"));

    task.submodules.paths = vec![":(exclude)".into(), "lib".into()];
    assert!(matches!(run(&task).await.0, Err(Error::SubmodulePath(_))));
    task.submodules.paths = vec![":(exclude)lib".into()];
    task.submodules.update_flags.clear();
    succeed(&task).await;
    assert!(exists(&task, "tool/t") && !exists(&task, "lib/l"));
}

#[tokio::test]
async fn docker_142_a_submodule_by_ssh_is_fetched_over_https() {
    let host = Host::start();
    let lib = host.repository("lib");
    let lib_sha = host.commit(&lib, &[("l", "1")]);
    let app = host.repository("app");
    host.submodule(&app, "one", "git@127.0.0.1:lib.git", &lib_sha);
    host.submodule(&app, "two", "ssh://git@127.0.0.1/lib.git", &lib_sha);
    let sha = host.commit(&app, &[]);
    let mut task = host.task(&app, &sha);
    task.submodules.recursive = Some(false);
    task.submodules.force_https = true;
    succeed(&task).await;
    assert!(exists(&task, "one/l") && exists(&task, "two/l"));
}

#[tokio::test]
async fn docker_143_the_first_failure_of_the_update_is_tried_again() {
    let (host, app, sha) = nested();
    let mut task = host.task(&app, &sha);
    task.submodules.recursive = Some(true);
    // Git itself tries a clone twice.
    host.fail("tool", 2);
    let trace = succeed(&task).await;
    assert!(trace.contains("WARNING: Updating submodules failed. Retrying..."), "{trace}");
    assert!(exists(&task, "lib/inner/i") && exists(&task, "tool/t"), "{trace}");
}

#[tokio::test]
async fn a_submodule_that_moved_is_updated_in_the_tree_of_an_earlier_job() {
    let (host, app, sha) = nested();
    let mut task = host.task(&app, &sha);
    task.submodules.recursive = Some(true);
    task.submodules.depth = 1;
    succeed(&task).await;
    let tool = Repository { name: "tool".into(), work: host.path("work/tool") };
    let tool_sha = host.commit(&tool, &[("t", "2")]);
    host.commit(&tool, &[("t", "3")]);
    host.submodule(&app, "tool", &host.url("tool"), &tool_sha);
    task.sha = host.commit(&app, &[("a", "2")]);
    let trace = succeed(&task).await;
    let text = fs::read_to_string(PathBuf::from(&task.project_dir).join("tool/t")).unwrap();
    assert_eq!(text, "2", "{trace}");
}

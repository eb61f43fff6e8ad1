//! Sources where a real engine, its volumes and a real git matter.

use std::{fs, path::Path};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    engine::engine,
    gitlab::{Endpoint, Fault, job},
    longshore::{Case, Options},
};

/// A case whose builds directory is a directory of this machine.
async fn host_bound() -> (Case, TempDir) {
    let builds = tempfile::tempdir().unwrap();
    let volumes = format!(r#"["{}:/builds"]"#, builds.path().display());
    let options = Options { volumes: Some(volumes), ..Options::on_bridge() };
    (Case::with(options).await, builds)
}

/// All regular files below `directory`.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let found = walkdir::WalkDir::new(directory).into_iter().map(Result::unwrap);
    found.filter(|e| e.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

/// Files below `directory` that have `text` in them.
fn files_with(directory: &Path, text: &str) -> Vec<std::path::PathBuf> {
    let has = |path: &std::path::PathBuf| {
        fs::read(path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
    };
    files(directory).into_iter().filter(has).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_111_147_a_bound_builds_directory_is_shared_and_keeps_no_secret() {
    let (case, builds) = host_bound().await;
    let sha = case.gitlab.commit("group/bound", &[("a.txt", "1\n")]);
    let spec =
        job(&["pwd", "cat \"$KEYFILE\"; echo", "echo K=v >> \"$GITLAB_ENV\"", "echo kept > kept"])
            .sources("group/bound", &sha)
            .variable_as(json!({"key": "KEYFILE", "value": "file-secret-value", "file": true}));
    let ended = case.run_over(spec).await;
    ended.assert_success();
    // The short token of `RUNNER_TOKEN`, and the first slot.
    let project = "integrati/0/group/bound";
    ended.assert_lines(&[&format!("/builds/{project}"), "file-secret-value"]);
    let kept = fs::read_to_string(builds.path().join(project).join("kept")).unwrap();
    assert_eq!(kept, "kept\n");
    for secret in [&ended.token, "file-secret-value"] {
        let found = files_with(builds.path(), secret);
        assert!(found.is_empty(), "{secret} is in {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_148_without_tokens_in_addresses_no_file_has_it_while_git_still_can() {
    let (case, _builds) = host_bound().await;
    let sha = case.gitlab.commit("group/bare", &[("a.txt", "1\n")]);
    let script = [
        "if grep -rl \"$CI_JOB_TOKEN\" /builds; then echo found; else echo none; fi",
        "git -c safe.directory='*' fetch -q origin && echo fetched",
    ];
    let spec = job(&script).image("debian:stable").sources("group/bare", &sha);
    let ended = case.run(spec.variable("FF_GIT_URLS_WITHOUT_TOKENS", "true")).await;
    ended.assert_success();
    ended.assert_lines(&["none", "fetched"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_132_strategy_none_keeps_a_bound_tree_and_empty_starts_anew() {
    let (case, builds) = host_bound().await;
    let group = builds.path().join("integrati/0/group");
    for project in ["none", "none-empty"] {
        fs::create_dir_all(group.join(project)).unwrap();
        fs::write(group.join(project).join("left"), "").unwrap();
    }
    for (strategy, expected) in [("none", "left ."), ("empty", ".")] {
        let look = job(&["ls -A | tr '\\n' ' '; echo .", "pwd"]);
        let ended = case.run_over(look.variable("GIT_STRATEGY", strategy)).await;
        ended.assert_success();
        ended.assert_lines(&[expected]);
        ended.assert_contains("/builds/integrati/0/group/none");
    }
    assert!(group.join("none/left").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_63_110_what_a_job_wrote_to_gitlab_env_is_not_there_for_the_next() {
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/env", &[("a.txt", "1\n")]);
    let script = ["echo LEAKED=yes >> \"$GITLAB_ENV\"", "touch .git/kept"];
    let first = job(&script).after(&["echo after=$LEAKED"]).sources("group/env", &sha);
    let first = case.run_over(first).await;
    first.assert_success();
    first.assert_lines(&["after=yes"]);
    let script = ["echo leaked=[$LEAKED]", "test -e .git/kept && echo kept"];
    let second = case.run_over(job(&script).sources("group/env", &sha)).await;
    second.assert_success();
    second.assert_lines(&["leaked=[]", "kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_110_the_builds_volume_is_kept_for_fetch_and_removed_for_clone() {
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/kept", &[("a.txt", "1\n")]);
    let project = case.gitlab.project_id.to_string();
    let builds = || {
        let label = format!("label=com.gitlab.gitlab-runner.project.id={project}");
        let format = r#"{{.Name}} {{.Label "com.gitlab.gitlab-runner.destination"}}"#;
        let all = engine().docker(&["volume", "ls", "--filter", &label, "--format", format]);
        all.lines().filter(|line| line.ends_with(" /builds")).map(str::to_owned).collect::<Vec<_>>()
    };
    for strategy in ["clone", "empty"] {
        let spec = job(&["true"]).sources("group/kept", &sha).variable("GIT_STRATEGY", strategy);
        case.run_over(spec).await.assert_success();
        assert_eq!(builds(), Vec::<String>::new(), "{strategy}");
    }
    case.run_over(job(&["true"]).sources("group/kept", &sha)).await.assert_success();
    let kept = builds();
    assert_eq!(kept.len(), 1, "{kept:?}");
    case.run_over(job(&["true"]).sources("group/kept", &sha)).await.assert_success();
    assert_eq!(builds(), kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_136_138_git_in_the_script_fetches_as_the_job_and_depth_is_kept() {
    let case = Case::on_bridge().await;
    for content in ["1\n", "2\n"] {
        case.gitlab.commit("group/deep", &[("a.txt", content)]);
    }
    let sha = case.gitlab.commit("group/deep", &[("a.txt", "3\n")]);
    let shallow = job(&[
        "git rev-list --count HEAD",
        "git rev-parse --is-shallow-repository",
        "git fetch -q --unshallow origin && git rev-list --count HEAD",
    ]);
    // The server gives the depth and where the job may change it.
    let shallow = shallow.image("debian:stable").sources("group/deep", &sha);
    let ended = case.run(shallow.depth(1)).await;
    ended.assert_success();
    ended.assert_lines(&["1", "true", "3"]);
    let whole = job(&["git rev-list --count HEAD", "git rev-parse --is-shallow-repository"]);
    let whole = whole.image("debian:stable").sources("group/deep", &sha);
    let ended = case.run(whole.depth(0)).await;
    ended.assert_success();
    ended.assert_lines(&["3", "false"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_138_a_later_job_without_depth_completes_a_shallow_copy() {
    let case = Case::on_bridge().await;
    case.gitlab.commit("group/shallow", &[("a.txt", "1\n")]);
    let sha = case.gitlab.commit("group/shallow", &[("a.txt", "2\n")]);
    let spec = || {
        job(&["git rev-list --count HEAD", "test -e .git/kept && echo kept", "touch .git/kept"])
            .image("debian:stable")
            .sources("group/shallow", &sha)
    };
    let first =
        spec().set("/steps/0/script", json!(["git rev-list --count HEAD; touch .git/kept"]));
    case.run_over(first.depth(1)).await.assert_lines(&["1"]);
    let ended = case.run(spec().depth(0)).await;
    ended.assert_success();
    ended.assert_lines(&["2", "kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_141_submodules_come_as_far_down_as_asked_for() {
    let case = Case::on_bridge().await;
    let gitlab = &case.gitlab;
    let deepest = gitlab.commit("group/deepest", &[("d.txt", "deepest\n")]);
    gitlab.commit("group/middle", &[("m.txt", "middle\n")]);
    let middle = gitlab.commit_submodule("group/middle", "in/deepest", "../deepest.git", &deepest);
    gitlab.commit("group/top", &[("t.txt", "top\n")]);
    gitlab.commit_submodule("group/top", "other", "../deepest.git", &deepest);
    let url = format!("{}/group/middle.git", gitlab.url);
    let sha = gitlab.commit_submodule("group/top", "lib/middle", &url, &middle);
    let look = "cat lib/middle/m.txt lib/middle/in/deepest/d.txt other/d.txt 2>/dev/null || :";
    let all = [
        ("none", "", &["(end)"][..]),
        ("normal", "", &["middle", "deepest", "(end)"]),
        ("normal", "lib", &["middle", "(end)"]),
        ("recursive", "", &["middle", "deepest", "deepest", "(end)"]),
    ];
    let spec = |(strategy, paths, _): &(&str, &str, &[&str])| {
        job(&[look, "echo '(end)'"])
            .sources("group/top", &sha)
            .variable("GIT_STRATEGY", "clone")
            .variable("GIT_SUBMODULE_STRATEGY", strategy)
            .variable("GIT_SUBMODULE_PATHS", paths)
            .variable("GIT_SUBMODULE_DEPTH", "1")
    };
    for (ended, (.., expected)) in case.run_all(all.iter().map(spec)).await.iter().zip(all) {
        ended.assert_success();
        let plain = ended.plain();
        let found: Vec<_> =
            plain.lines().filter(|l| ["middle", "deepest", "(end)"].contains(l)).collect();
        assert_eq!(found, expected, "{}", ended.story());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_145_sources_that_fail_once_are_tried_again_in_a_cleared_tree() {
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/flaky", &[("a.txt", "fetched\n")]);
    case.gitlab.fault(Endpoint::Git, Fault::status(500));
    let spec = job(&["cat a.txt"])
        .sources("group/flaky", &sha)
        .variable("GET_SOURCES_ATTEMPTS", "2")
        // The pause is a second, not five.
        .variable("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", "false");
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["fetched"]);
    let text = ended.text();
    let sections: Vec<_> = text
        .split("section_start:")
        .skip(1)
        .filter_map(|s| s.split(['\r', ':']).nth(1))
        .filter(|name| ["get_sources", "clear_worktree"].contains(name))
        .collect();
    assert_eq!(sections, ["get_sources", "clear_worktree", "get_sources"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_149_another_users_script_can_write_to_the_tree_and_the_next_job_can_fetch() {
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/user", &[("dir/a.txt", "1\n")]);
    let image = json!({"name": "busybox:latest", "executor_opts": {"docker": {"user": "$WHO"}}});
    let script = [
        "id -u",
        "echo 2 > dir/a.txt && touch new dir/new && mkdir own && touch own/f",
        "rm -rf dir && echo removed",
        "touch /cache/f /builds/f && echo volumes",
    ];
    let spec = job(&script).set("/image", image).variable("WHO", "1234");
    let ended = case.run_over(spec.sources("group/user", &sha)).await;
    ended.assert_success();
    ended.assert_lines(&["1234", "removed", "volumes"]);
    let ended = case.run(job(&["id -u; ls; cat dir/a.txt"]).sources("group/user", &sha)).await;
    ended.assert_success();
    ended.assert_lines(&["0", "dir", "1"]);
    ended.assert_no_line("own");
}

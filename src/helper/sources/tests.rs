use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::*;
use crate::base::secret::Secret;
use crate::helper::testing::{Host, TOKEN, run, succeed};
use crate::workload::transfer::{CleanUp, ObjectFormat};
use crate::{base::error_chain, helper::cleanup::clean_up};

fn project(task: &Sources) -> PathBuf {
    PathBuf::from(&task.project_dir)
}

fn variable(name: &str, value: &str) -> (String, Secret) {
    (name.to_owned(), Secret::new(value))
}

fn read(task: &Sources, name: &str) -> String {
    fs::read_to_string(project(task).join(name)).unwrap_or_default()
}

fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn the_trace_tells_what_is_done() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    task.depth = 20;
    task.correlation_id = Some("01HX".into());
    let trace = succeed(&task).await;
    let notice = |text: &str| format!("\x1b[32;1m{text}\x1b[0;m\n");
    let init = format!("Initialized empty Git repository in {}/.git/\n", task.project_dir);
    let expected = [
        notice("Gitaly correlation ID: 01HX"),
        notice("Fetching changes with git depth set to 20..."),
        init,
        notice("Created fresh repository."),
        notice(&format!("Checking out {} as detached HEAD (ref is main)...", &sha[..8])),
        notice("Skipping Git submodules setup"),
    ];
    assert_eq!(trace, expected.concat());
}

#[tokio::test]
async fn docker_130_fetch_uses_the_work_tree_again_and_cleans_it() {
    let host = Host::start();
    let repository = host.repository("app");
    let first = host.commit(&repository, &[("a", "1"), (".gitignore", "ignored\n")]);
    let mut task = host.task(&repository, &first);
    succeed(&task).await;
    for name in ["untracked", "ignored", "deep/er/untracked", ".git/kept"] {
        let path = project(&task).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    fs::write(project(&task).join("a"), "changed").unwrap();
    task.sha = host.commit(&repository, &[("a", "2")]);
    let trace = succeed(&task).await;
    assert_eq!(read(&task, "a"), "2");
    assert_eq!(read(&task, ".git/kept"), "x");
    for name in ["untracked", "ignored", "deep"] {
        assert!(!project(&task).join(name).exists(), "{name}");
    }
    assert!(trace.contains("Removing untracked\n"), "{trace}");
    assert!(!trace.contains("fresh"), "{trace}");

    fs::write(project(&task).join("untracked"), "x").unwrap();
    task.clean_flags = None;
    succeed(&task).await;
    assert_eq!(read(&task, "untracked"), "x");
}

#[tokio::test]
async fn docker_131_clone_begins_with_an_empty_directory() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    succeed(&task).await;
    fs::write(project(&task).join(".git/kept"), "x").unwrap();
    fs::create_dir(project(&task).join("locked")).unwrap();
    fs::write(project(&task).join("locked/file"), "x").unwrap();
    fs::set_permissions(project(&task).join("locked"), fs::Permissions::from_mode(0o500)).unwrap();
    // Of another user, where the tests may do that.
    let other = Some(12345);
    let _ = std::os::unix::fs::chown(project(&task).join("locked"), other, other);
    task.strategy = Strategy::Clone;
    task.clean_flags = None;
    let trace = succeed(&task).await;
    assert!(trace.contains("Created fresh repository."), "{trace}");
    assert_eq!(read(&task, "a"), "1");
    assert!(!project(&task).join(".git/kept").exists());
    assert!(!project(&task).join("locked").exists());
}

#[tokio::test]
async fn a_native_clone_or_what_stands_in_for_it_with_an_older_git_can_be_fetched_in() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    task.strategy = Strategy::Clone;
    task.native_clone = true;
    task.depth = 1;
    for reference in ["main", "refs/heads/main"] {
        task.reference = reference.to_owned();
        succeed(&task).await;
        assert_eq!(read(&task, "a"), "1");
        assert!(!read(&task, ".git/config").contains(TOKEN));
        let (success, text) = host.git(&project(&task), &["fetch", "origin"]);
        assert!(success, "{text}");
    }
}

#[tokio::test]
async fn docker_132_none_keeps_the_directory_and_empty_empties_it() {
    let host = Host::start();
    let repository = host.repository("app");
    let mut task = host.task(&repository, "");
    task.url = "http://127.0.0.1:1/nothing.git".into();
    task.pre_script = Some("exit 1".into());
    task.strategy = Strategy::None;
    succeed(&task).await;
    assert_eq!(fs::read_dir(project(&task)).unwrap().count(), 0);
    fs::write(project(&task).join("kept"), "x").unwrap();
    let trace = succeed(&task).await;
    assert_eq!(read(&task, "kept"), "x");
    assert!(!project(&task).join(".git").exists());
    assert!(trace.contains("Skipping Git repository setup\x1b"), "{trace}");
    task.strategy = Strategy::Empty;
    let trace = succeed(&task).await;
    assert_eq!(fs::read_dir(project(&task)).unwrap().count(), 0);
    assert!(trace.contains("and creating an empty build directory"), "{trace}");
}

#[tokio::test]
async fn docker_133_locks_of_a_killed_job_do_not_break_the_next() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    succeed(&task).await;
    for name in ["index", "shallow", "HEAD", "config", "refs/remotes/origin/main"] {
        fs::write(project(&task).join(format!(".git/{name}.lock")), "").unwrap();
    }
    task.sha = host.commit(&repository, &[("a", "2")]);
    succeed(&task).await;
    assert_eq!(read(&task, "a"), "2");
}

#[tokio::test]
async fn docker_134_configuration_and_hooks_of_an_earlier_job_do_not_run() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    succeed(&task).await;
    let directory = project(&task);
    let leave = |name: &str| {
        let script = format!("#!/bin/sh\ntouch {}\n", host.path(name).display());
        program(&host.path("evil"), &script);
        program(&directory.join(".git/hooks/reference-transaction"), &script);
        let config = directory.join(".git/config");
        let mut text = fs::read_to_string(&config).unwrap();
        text.push_str("[core]\n\tfsmonitor = ");
        text.push_str(host.path("evil").to_str().unwrap());
        fs::write(config, text).unwrap();
    };
    leave("ran");
    task.sha = host.commit(&repository, &[("a", "2")]);
    succeed(&task).await;
    assert_eq!(read(&task, "a"), "2");
    assert!(!host.path("ran").exists());

    leave("ran");
    task.clean_config = false;
    task.sha = host.commit(&repository, &[("a", "3")]);
    succeed(&task).await;
    assert!(host.path("ran").exists(), "this is what the setting is against");
}

#[tokio::test]
async fn docker_135_136_origin_has_no_credentials_and_the_job_can_fetch() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    // A new configuration, one kept from an earlier job, and one of another token.
    for clean_config in [true, false, false] {
        let mut task = host.task(&repository, &sha);
        task.clean_config = clean_config;
        succeed(&task).await;
        let directory = project(&task);
        let config = read(&task, ".git/config");
        assert!(!config.contains(TOKEN), "{config}");
        assert_eq!(config.matches("[include]").count(), 1, "{config}");
        let (_, url) = host.git(&directory, &["config", "remote.origin.url"]);
        assert_eq!(url, host.url("app"));
        let before = host.users("app").len();
        let (success, text) = host.git(&directory, &["fetch", "origin"]);
        assert!(success, "{text}");
        assert_eq!(host.users("app")[before..].last(), Some(&Some("gitlab-ci-token".into())));
    }
}

#[tokio::test]
async fn docker_137_the_commit_is_checked_out_detached_though_the_branch_moved() {
    let host = Host::start();
    let repository = host.repository("app");
    let first = host.commit(&repository, &[("a", "1")]);
    host.commit(&repository, &[("a", "2")]);
    let task = host.task(&repository, &first);
    succeed(&task).await;
    assert_eq!(host.git(&project(&task), &["rev-parse", "HEAD"]), (true, first));
    assert!(!host.git(&project(&task), &["symbolic-ref", "-q", "HEAD"]).0);
    assert_eq!(read(&task, "a"), "1");
}

#[tokio::test]
async fn docker_138_depth_is_shallow_and_none_unshallows() {
    let host = Host::start();
    let repository = host.repository("app");
    let mut sha = String::new();
    for text in ["1", "2", "3"] {
        sha = host.commit(&repository, &[("a", text)]);
    }
    let count = |task: &Sources| host.git(&project(task), &["rev-list", "--count", "HEAD"]).1;
    let mut task = host.task(&repository, &sha);
    task.depth = 2;
    succeed(&task).await;
    assert_eq!(count(&task), "2");
    task.depth = 0;
    let trace = succeed(&task).await;
    assert_eq!(count(&task), "3");
    assert!(trace.contains("Fetching changes..."), "{trace}");
    assert!(!project(&task).join(".git/shallow").exists());
}

#[tokio::test]
async fn docker_139_the_flags_of_fetch_are_those_of_the_task_alone() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    assert!(host.git(&repository.work, &["push", "-q", "origin", "HEAD:refs/heads/old"]).0);
    let mut task = host.task(&repository, &sha);
    succeed(&task).await;
    let old = |task: &Sources| {
        host.git(&project(task), &["rev-parse", "-q", "--verify", "refs/remotes/origin/old"]).0
    };
    assert!(old(&task));
    assert!(host.git(&repository.work, &["push", "-q", "origin", ":refs/heads/old"]).0);
    task.fetch_flags = Vec::new();
    succeed(&task).await;
    assert!(old(&task), "nothing said to prune");
    task.fetch_flags = vec!["--prune".into()];
    let trace = succeed(&task).await;
    assert!(!old(&task));
    assert!(trace.contains("[deleted]"), "git is not quiet and its words are passed on: {trace}");
}

#[tokio::test]
async fn docker_140_without_checkout_the_old_tree_stays() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    succeed(&task).await;
    fs::write(project(&task).join("untracked"), "x").unwrap();
    task.sha = host.commit(&repository, &[("a", "2")]);
    task.checkout = false;
    let trace = succeed(&task).await;
    assert!(trace.contains("Skipping Git checkout"), "{trace}");
    assert_eq!((read(&task, "a").as_str(), read(&task, "untracked").as_str()), ("1", "x"));
    let (known, _) = host.git(&project(&task), &["cat-file", "-e", &task.sha]);
    assert!(known, "it is fetched all the same");
}

#[tokio::test]
async fn docker_144_large_files_are_pulled_after_the_checkout_where_there_is_lfs() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    // A stand-in for the program: that one writes down how it is called.
    let log = host.path("lfs.log");
    let script = format!("#!/bin/sh\necho \"$* $GIT_LFS_SKIP_SMUDGE\" >>{}\n", log.display());
    program(&host.path("bin/git-lfs"), &script);
    let path = format!("{}:{}", host.path("bin").display(), std::env::var("PATH").unwrap());
    let plain = task.clone();
    task.env.push(("PATH".into(), Secret::new(path)));
    succeed(&task).await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "version 1\npull 1\n");
    fs::remove_file(&log).unwrap();
    task.skip_lfs = true;
    succeed(&task).await;
    assert!(!log.exists());

    if !host.git(&project(&plain), &["lfs", "version"]).0 {
        let trace = succeed(&plain).await;
        assert!(!trace.to_lowercase().contains("lfs"), "its absence is no news: {trace}");
    }
}

#[tokio::test]
async fn what_a_killed_job_left_for_its_later_stages_is_not_for_the_next_job() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    let left = Path::new(&task.temp_dir).join("gitlab_runner_env");
    for strategy in [Strategy::Fetch, Strategy::None] {
        task.strategy = strategy;
        fs::create_dir_all(&task.temp_dir).unwrap();
        fs::write(&left, "PATH=/elsewhere\n").unwrap();
        succeed(&task).await;
        assert!(!left.exists(), "{strategy:?}");
    }
}

#[tokio::test]
async fn without_clean_flags_the_job_cleanup_only_resets() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let task = host.task(&repository, &sha);
    succeed(&task).await;
    fs::write(project(&task).join("a"), "changed").unwrap();
    fs::write(project(&task).join("untracked"), "x").unwrap();
    let worktree = Some((Strategy::Fetch, Vec::new()));
    let (frames, _sent) = tokio::sync::mpsc::channel(64);
    clean_up(&CleanUp { worktree, ..after(&task) }, &FrameSender::new(frames)).await.unwrap();
    assert_eq!(read(&task, "a"), "1");
    assert!(project(&task).join("untracked").exists());
}

fn after(task: &Sources) -> CleanUp {
    CleanUp {
        project_dir: task.project_dir.clone(),
        temp_dir: task.temp_dir.clone(),
        file_variables: vec!["KEY".into()],
        worktree: None,
        clean_config: task.clean_config,
        submodules: false,
    }
}

#[tokio::test]
async fn docker_147_after_the_job_no_file_has_the_token() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    task.ca = Some("pem".into());
    task.client_certificate = Some(("cert".into(), Secret::new(TOKEN)));
    task.server = Some(host.server());
    // Plain HTTP does not look at them.
    succeed(&task).await;
    fs::write(Path::new(&task.temp_dir).join("KEY"), TOKEN).unwrap();
    assert!(!host.leaks(&["builds"]).is_empty(), "the job needs it until then");
    let (frames, _sent) = tokio::sync::mpsc::channel(64);
    clean_up(&after(&task), &FrameSender::new(frames)).await.unwrap();
    assert_eq!(host.leaks(&["builds", "home"]), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(&task.temp_dir).unwrap().count(), 0);
    assert_eq!(read(&task, "a"), "1");
}

#[tokio::test]
async fn docker_148_no_file_has_the_token_during_the_job_either() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    for strategy in [Strategy::None, Strategy::Fetch] {
        let mut task = host.task(&repository, &sha);
        task.strategy = strategy;
        task.tokens_in_environment_only = true;
        succeed(&task).await;
        assert_eq!(host.leaks(&["builds", "home"]), Vec::<PathBuf>::new());
        // As the job's container has it: anywhere, by the seed.
        let seed = Path::new(&task.temp_dir).join(credentials::SEED);
        let fetch = ["ls-remote", &task.url];
        let token = ("CI_JOB_TOKEN", TOKEN);
        let global = ("GIT_CONFIG_GLOBAL", seed.to_str().unwrap());
        let (success, text) = host.git_with(host.root.path(), &fetch, &[token, global]);
        assert!(success, "{text}");
        assert!(!host.git_with(host.root.path(), &fetch, &[global]).0);
    }
    let task = host.task(&repository, &sha);
    let fetch = ["fetch", "origin"];
    let (success, text) = host.git_with(&project(&task), &fetch, &[("CI_JOB_TOKEN", TOKEN)]);
    assert!(success, "the repository includes it too: {text}");
}

#[tokio::test]
async fn docker_149_a_tree_of_another_user_is_no_hindrance() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    task.safe_directory = false;
    succeed(&task).await;
    for entry in walkdir::WalkDir::new(project(&task)) {
        if std::os::unix::fs::lchown(entry.unwrap().path(), Some(12345), Some(12345)).is_err() {
            return; // Only root can make such a tree.
        }
    }
    assert!(run(&task).await.0.is_err(), "git refuses it");
    task.safe_directory = true;
    succeed(&task).await;
    succeed(&task).await;
    let global = fs::read_to_string(host.path("home/.gitconfig")).unwrap();
    assert_eq!(global.matches("directory =").count(), 1, "{global}");
}

#[tokio::test]
async fn docker_65_hooks_run_around_git() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    task.env.push(variable("FROM_JOB", "yes"));
    task.pre_script =
        Some("echo pre $FROM_JOB $(ls); export GIT_AUTHOR_NAME=hook; cd /".to_owned());
    task.post_script = Some("echo post $(cat a) $GIT_AUTHOR_NAME".to_owned());
    let trace = succeed(&task).await;
    let place = |text: &str| trace.find(text).unwrap_or_else(|| panic!("{text}: {trace}"));
    assert!(place("pre yes") < place("Fetching changes"));
    assert!(place("Skipping Git submodules") < place("post 1 hook\n"));

    task.post_script = Some("exit 42".to_owned());
    let (end, _) = run(&task).await;
    assert_eq!(end.unwrap_err().done().exit_code, 42);
    task.pre_script = Some("exit 41".to_owned());
    let (end, trace) = run(&task).await;
    let done = end.unwrap_err().done();
    assert_eq!(done.exit_code, 41);
    assert_eq!(
        done.error.as_deref(),
        Some("hook `pre_get_sources_script` failed with exit code 41")
    );
    assert!(!trace.contains("Fetching"), "{trace}");
}

#[tokio::test]
async fn a_commit_that_is_not_there_is_named_with_its_ref() {
    let host = Host::start();
    let repository = host.repository("app");
    let first = host.commit(&repository, &[("a", "1")]);
    host.commit(&repository, &[("a", "2")]);
    let mut task = host.task(&repository, &first);
    task.depth = 1;
    let (end, _) = run(&task).await;
    let text = error_chain(&end.unwrap_err());
    assert!(text.starts_with(&format!("commit {first} of ref `main` is not among")), "{text}");
    assert!(text.contains("with git depth 1"), "{text}");

    task.sha = "1234567".into();
    assert!(matches!(run(&task).await.0, Err(Error::ShortSha(_))));
}

#[tokio::test]
async fn a_failed_fetch_has_gits_code_and_words() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    task.token = Secret::new("wrong");
    let (end, trace) = run(&task).await;
    let done = end.unwrap_err().done();
    assert_eq!(done.exit_code, 128);
    assert_eq!(done.error.as_deref(), Some("`git fetch` failed with exit code 128"));
    assert!(trace.contains("fatal: "), "{trace}");
    assert!(!trace.contains("wrong"), "{trace}");
}

#[tokio::test]
async fn a_bundle_is_a_remote_without_credentials() {
    let host = Host::start();
    let repository = host.repository("app");
    host.commit(&repository, &[("a", "1")]);
    let sha = host.commit(&repository, &[("a", "2")]);
    let bundle = host.path("app.bundle");
    let bundle = bundle.to_str().unwrap();
    assert!(host.git(&repository.work, &["bundle", "create", bundle, "--all"]).0);
    let mut task = host.task(&repository, &sha);
    task.url = bundle.to_owned();
    task.server = None;
    task.depth = 20;
    succeed(&task).await;
    assert_eq!(read(&task, "a"), "2");
    assert!(host.leaks(&["builds", "home"]).is_empty());
}

#[tokio::test]
async fn a_repository_of_the_other_object_format_is_made_again_and_again() {
    let host = Host::start();
    let repository = host.repository("app");
    let template = ["init", "-q", "--object-format=sha256", "-b", "main", "--template="];
    fs::remove_dir_all(repository.work.join(".git")).unwrap();
    fs::remove_dir_all(host.path("server/app.git")).unwrap();
    assert!(host.git(&repository.work, &template).0);
    let bare = host.path("server/app.git");
    let bare = bare.to_str().unwrap();
    assert!(host.git(&repository.work, &[&template[..], &["--bare", bare]].concat()).0);
    assert!(host.git(&repository.work, &["remote", "add", "origin", bare]).0);
    let mut task = host.task(&repository, &host.commit(&repository, &[("a", "1")]));
    task.object_format = ObjectFormat::Sha256;
    succeed(&task).await;
    task.sha = host.commit(&repository, &[("a", "2")]);
    succeed(&task).await;
    assert_eq!(read(&task, "a"), "2");
}

#[tokio::test]
async fn a_home_that_is_missing_is_made_beside_the_project() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let mut task = host.task(&repository, &sha);
    task.env = vec![
        variable("HOME", "/nowhere/at/all"),
        variable("GIT_CONFIG_NOSYSTEM", "1"),
        variable("XDG_CONFIG_HOME", "/nowhere/at/all"),
    ];
    succeed(&task).await;
    assert!(Path::new(&task.temp_dir).join(HOME).join(".gitconfig").exists());
}

#[test]
fn versions_of_git_are_compared_by_number() {
    assert_eq!(version("git version 2.39.5"), Some((2, 39)));
    assert!(version("git version 2.49.0.windows.1") >= Some(NATIVE_CLONE));
    assert!(version("git version 2.5") < Some(NATIVE_CLONE));
    assert_eq!(version("no"), None);
}

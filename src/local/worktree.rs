//! The work tree as it is, uncommitted changes and all, as a git bundle that stands for the
//! project's repository. Nothing is written to the user's repository: the index is a copy, new
//! objects go to a temporary repository that borrows the others. (git renews the times of loose
//! objects that it would have written again; it always does, and only ever delays their pruning.)

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{io::AsyncWriteExt, process::Command};

/// Variables that would send git to another repository, as when exec is run by a git hook.
const LOCAL_VARIABLES: &[&str] = &[
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
];

/// Why the sources cannot be packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorktreeError {
    #[error("cannot start git")]
    Start(#[source] std::io::Error),
    #[error("`git {command}` failed: {stderr}")]
    Git { command: String, stderr: String },
    /// A file cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    File { path: PathBuf, source: std::io::Error },
}

/// The last commit, as far as jobs see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Its hash; empty without a commit.
    pub(crate) sha: String,
    pub(crate) author_name: String,
    pub(crate) author_email: String,
    /// As git takes it: seconds and offset.
    pub(crate) author_date: String,
    /// Time of the commit, ISO 8601.
    pub(crate) timestamp: String,
    /// The whole message.
    pub(crate) message: String,
}

/// What git knows of the project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Top of the work tree, or the directory itself if there is no repository.
    pub(crate) root: PathBuf,
    /// Whether there is a repository.
    pub(crate) is_repository: bool,
    /// `sha1` or `sha256`.
    pub(crate) object_format: String,
    /// The branch, unless HEAD is detached.
    pub(crate) branch: Option<String>,
    /// The tag, if HEAD is detached at one.
    pub(crate) tag: Option<String>,
    /// The branch that new clones get.
    pub(crate) default_branch: String,
    /// URL of `origin`.
    pub(crate) remote: Option<String>,
    /// The last commit.
    pub(crate) commit: Commit,
    /// `user.name` and `user.email`.
    pub(crate) user: (String, String),
}

impl Facts {
    /// Branch or tag, as `CI_COMMIT_REF_NAME`.
    pub(crate) fn reference(&self) -> &str {
        self.branch.as_deref().or(self.tag.as_deref()).unwrap_or("detached")
    }
}

/// A bundle with one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    pub(crate) path: PathBuf,
    pub(crate) sha: String,
    /// The branch that leads to it, without `refs/heads/`.
    pub(crate) reference: String,
}

/// Asks git about `directory`.
pub(crate) async fn facts(directory: &Path) -> Result<Facts, WorktreeError> {
    let git = Git::in_directory(directory);
    let root = match git.run(&["rev-parse", "--show-toplevel"]).await {
        Ok(root) => PathBuf::from(root),
        Err(WorktreeError::Git { stderr, .. }) if stderr.contains("not a git repository") => {
            let root = std::fs::canonicalize(directory)
                .map_err(|source| WorktreeError::File { path: directory.to_owned(), source })?;
            return Ok(Facts {
                root,
                object_format: "sha1".to_owned(),
                branch: Some("main".to_owned()),
                default_branch: "main".to_owned(),
                ..Facts::default()
            });
        }
        Err(error) => return Err(error),
    };
    let git = Git::in_directory(&root);
    let branch = git.ask(&["symbolic-ref", "-q", "--short", "HEAD"]).await?;
    let tag = match branch {
        Some(_) => None,
        None => git.ask(&["describe", "--exact-match", "--tags", "HEAD"]).await?,
    };
    let (default_branch, object_format, remote, commit, name, email) = tokio::try_join!(
        default_branch(&git, branch.as_deref()),
        git.run(&["rev-parse", "--show-object-format"]),
        git.ask(&["remote", "get-url", "origin"]),
        last_commit(&git),
        git.ask(&["config", "user.name"]),
        git.ask(&["config", "user.email"]),
    )?;
    Ok(Facts {
        is_repository: true,
        object_format,
        remote,
        commit,
        user: (name.unwrap_or_default(), email.unwrap_or_default()),
        root,
        branch,
        tag,
        default_branch,
    })
}

async fn default_branch(git: &Git, branch: Option<&str>) -> Result<String, WorktreeError> {
    let head = ["symbolic-ref", "-q", "--short", "refs/remotes/origin/HEAD"];
    if let Some(head) = git.ask(&head).await? {
        return Ok(head.strip_prefix("origin/").unwrap_or(&head).to_owned());
    }
    for name in ["main", "master"] {
        let reference = format!("refs/heads/{name}");
        if git.ask(&["rev-parse", "-q", "--verify", &reference]).await?.is_some() {
            return Ok(name.to_owned());
        }
    }
    Ok(branch.unwrap_or("main").to_owned())
}

async fn last_commit(git: &Git) -> Result<Commit, WorktreeError> {
    let format = "--format=%H%x00%an%x00%ae%x00%ad%x00%cI%x00%B";
    let arguments =
        ["-c", "log.showSignature=false", "log", "-1", "--date=raw", format, "HEAD", "--"];
    let Some(shown) = git.ask(&arguments).await? else { return Ok(Commit::default()) };
    let mut parts = shown.splitn(6, '\0').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Ok(Commit {
        sha: next(),
        author_name: next(),
        author_email: next(),
        author_date: next(),
        timestamp: next(),
        message: next(),
    })
}

/// Packs the work tree into a bundle in the directory `into`.
pub(crate) async fn bundle(facts: &Facts, into: &Path) -> Result<Bundle, WorktreeError> {
    let repository = into.join("sources.git");
    let format = format!("--object-format={}", facts.object_format);
    let path = repository.to_string_lossy().into_owned();
    let here = Git::in_directory(&facts.root);
    here.run(&["init", "-q", "--bare", "--template=", &format, &path]).await?;
    let packing = here.clone().with("GIT_INDEX_FILE", into.join("index"));
    let packing = if facts.is_repository {
        borrow(&here, facts, &repository, into).await?;
        packing.with("GIT_OBJECT_DIRECTORY", repository.join("objects"))
    } else {
        packing.with("GIT_DIR", &repository).with("GIT_WORK_TREE", &facts.root)
    };
    add(&packing, &facts.root).await?;
    let tree = packing.run(&["write-tree"]).await?;
    let sha = commit(&packing, facts, &tree).await?;
    let temporary = here.with("GIT_DIR", &repository);
    let reference = facts.reference().to_owned();
    let full = format!("refs/heads/{reference}");
    temporary.run(&["update-ref", &full, &sha]).await?;
    let bundle = into.join("sources.bundle");
    let file = bundle.to_string_lossy().into_owned();
    // Deltas cost more time than they save on a bundle that is read once, from the same disk.
    temporary.run(&["-c", "pack.window=0", "bundle", "create", "-q", &file, &full]).await?;
    for (path, removed) in [
        (&repository, tokio::fs::remove_dir_all(&repository).await),
        (&into.join("index"), tokio::fs::remove_file(into.join("index")).await),
    ] {
        removed.map_err(|source| WorktreeError::File { path: path.clone(), source })?;
    }
    Ok(Bundle { path: bundle, sha, reference })
}

/// Lets the temporary repository use the objects and a copy of the index of the user's.
async fn borrow(
    git: &Git,
    facts: &Facts,
    repository: &Path,
    into: &Path,
) -> Result<(), WorktreeError> {
    let objects = facts.root.join(git.run(&["rev-parse", "--git-path", "objects"]).await?);
    let alternates = repository.join("objects/info/alternates");
    let index = facts.root.join(git.run(&["rev-parse", "--git-path", "index"]).await?);
    let copy = into.join("index");
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(repository.join("objects/info"))?;
        std::fs::write(&alternates, format!("{}\n", objects.display()))?;
        if index.exists() {
            std::fs::copy(&index, &copy)?;
            // git tells whether a file changed since the index was written from the index's time:
            // a newer copy would hide changes made in the same instant.
            let modified = std::fs::metadata(&index)?.modified()?;
            std::fs::File::options().write(true).open(&copy)?.set_modified(modified)?;
        }
        Ok(())
    };
    write().map_err(|source| WorktreeError::File { path: repository.to_owned(), source })
}

async fn add(git: &Git, root: &Path) -> Result<(), WorktreeError> {
    // Files of git LFS go in as they are: its objects are not in a bundle, and what is no pointer
    // passes through its filter in the job.
    let settings = [
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.safecrlf=false",
        "-c",
        "advice.addEmbeddedRepo=false",
        "-c",
        "filter.lfs.clean=",
        "-c",
        "filter.lfs.process=",
        "-c",
        "filter.lfs.required=false",
    ];
    let arguments = |rest: &[&'static str]| [&settings[..], rest].concat();
    git.run(&arguments(&["add", "-A"])).await?;
    let attributes = std::fs::read_to_string(root.join(".gitattributes")).unwrap_or_default();
    if attributes.contains("filter=lfs") {
        git.run(&arguments(&["add", "--renormalize", "."])).await?;
    }
    Ok(())
}

/// Makes the commit. It has the author, time and message of the last one, so that the same work
/// tree always gives the same commit.
async fn commit(git: &Git, facts: &Facts, tree: &str) -> Result<String, WorktreeError> {
    let or = |text: &str, default: &str| {
        if text.trim().is_empty() { default.to_owned() } else { text.to_owned() }
    };
    let name = or(&facts.commit.author_name, "longshore");
    let email = or(&facts.commit.author_email, "longshore@localhost");
    let date = or(&facts.commit.author_date, "@0 +0000");
    let git = git
        .clone()
        .with("GIT_AUTHOR_NAME", &name)
        .with("GIT_AUTHOR_EMAIL", &email)
        .with("GIT_AUTHOR_DATE", &date)
        .with("GIT_COMMITTER_NAME", &name)
        .with("GIT_COMMITTER_EMAIL", &email)
        .with("GIT_COMMITTER_DATE", &date);
    let message = or(&facts.commit.message, "Work tree");
    git.run_with(&["commit-tree", tree, "-F", "-"], message.as_bytes()).await
}

/// git in a directory, with some environment.
#[derive(Debug, Clone)]
struct Git {
    directory: PathBuf,
    environment: Vec<(&'static str, std::ffi::OsString)>,
}

impl Git {
    fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), environment: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name, value.as_ref().to_owned()));
        self
    }

    /// Its output, without the newline at the end.
    async fn run(&self, arguments: &[&str]) -> Result<String, WorktreeError> {
        self.run_with(arguments, b"").await
    }

    /// Its output, or `None` if it failed because there is no answer.
    async fn ask(&self, arguments: &[&str]) -> Result<Option<String>, WorktreeError> {
        match self.run(arguments).await {
            Ok(output) => Ok(Some(output).filter(|output| !output.is_empty())),
            Err(WorktreeError::Git { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn run_with(&self, arguments: &[&str], input: &[u8]) -> Result<String, WorktreeError> {
        let mut command = Command::new("git");
        for variable in LOCAL_VARIABLES {
            command.env_remove(variable);
        }
        command
            .current_dir(&self.directory)
            .args(arguments)
            .env("LC_ALL", "C")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(WorktreeError::Start)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A git that does not read its input says why with its status.
            let _ = stdin.write_all(input).await;
        }
        let output = child.wait_with_output().await.map_err(WorktreeError::Start)?;
        if !output.status.success() {
            return Err(WorktreeError::Git {
                command: arguments.join(" "),
                stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    async fn git(directory: &Path, arguments: &[&str]) -> String {
        Git::in_directory(directory)
            .with("GIT_CONFIG_GLOBAL", "/dev/null")
            .run(arguments)
            .await
            .unwrap()
    }

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    async fn repository() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        git(dir.path(), &["init", "-q", "-b", "topic/x"]).await;
        git(dir.path(), &["config", "user.name", "Ann"]).await;
        git(dir.path(), &["config", "user.email", "ann@example.net"]).await;
        for (name, text) in [("same", "1"), ("changed", "old"), ("gone", "x"), ("kept.log", "t")] {
            write(dir.path(), name, text);
        }
        write(dir.path(), ".gitignore", "*.log\nout/\n");
        git(dir.path(), &["add", "-A", "-f"]).await;
        git(dir.path(), &["commit", "-q", "-m", "First\n\nBody"]).await;
        dir
    }

    /// Every file of a directory with its size and, but for git's objects, its time.
    fn state(directory: &Path) -> BTreeMap<PathBuf, (u64, Option<std::time::SystemTime>)> {
        walkdir::WalkDir::new(directory)
            .into_iter()
            .flatten()
            .map(|entry| {
                let metadata = entry.metadata().unwrap();
                let object = entry.path().starts_with(directory.join(".git/objects"));
                let time = (!object).then(|| metadata.modified().unwrap());
                (entry.into_path(), (metadata.len(), time))
            })
            .collect()
    }

    async fn checked_out(bundle: &Bundle, refspec: &str) -> tempfile::TempDir {
        let out = tempfile::tempdir().unwrap();
        git(out.path(), &["init", "-q"]).await;
        git(out.path(), &["fetch", "-q", bundle.path.to_str().unwrap(), refspec]).await;
        git(out.path(), &["checkout", "-q", &bundle.sha]).await;
        out
    }

    #[tokio::test]
    async fn the_bundle_has_the_work_tree_as_it_is_and_the_repository_is_not_touched() {
        let dir = repository().await;
        write(dir.path(), "changed", "new");
        write(dir.path(), "deep/untracked", "u");
        write(dir.path(), "out/ignored", "i");
        write(dir.path(), "staged", "s");
        git(dir.path(), &["add", "staged"]).await;
        std::fs::remove_file(dir.path().join("gone")).unwrap();
        let before = state(dir.path());
        let facts = facts(&dir.path().join("deep")).await.unwrap();
        let into = tempfile::tempdir().unwrap();
        let bundle = bundle(&facts, into.path()).await.unwrap();
        assert!(state(dir.path()) == before, "nothing may change");
        assert_eq!(bundle.reference, "topic/x");

        let refspec = "+refs/heads/topic/x:refs/remotes/origin/topic/x";
        let out = checked_out(&bundle, refspec).await;
        let files = git(out.path(), &["ls-files"]).await;
        let expected = [".gitignore", "changed", "deep/untracked", "kept.log", "same", "staged"];
        assert_eq!(files.lines().collect::<Vec<_>>(), expected);
        assert_eq!(std::fs::read_to_string(out.path().join("changed")).unwrap(), "new");
        let shown = git(out.path(), &["log", "--format=%an <%ae> %B"]).await;
        assert_eq!(shown.trim(), "Ann <ann@example.net> First\n\nBody");
        assert_eq!(std::fs::read_dir(into.path()).unwrap().count(), 1, "only the bundle is left");
    }

    #[tokio::test]
    async fn the_same_work_tree_gives_the_same_commit() {
        let dir = repository().await;
        let facts = facts(dir.path()).await.unwrap();
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = bundle(&facts, one.path()).await.unwrap();
        let second = bundle(&facts, two.path()).await.unwrap();
        assert_eq!(first.sha, second.sha);
    }

    #[tokio::test]
    async fn facts_are_those_of_the_repository() {
        let dir = repository().await;
        git(dir.path(), &["remote", "add", "origin", "git@git.example.net:a/b.git"]).await;
        let on_branch = facts(dir.path()).await.unwrap();
        assert_eq!(on_branch.reference(), "topic/x");
        assert_eq!(on_branch.default_branch, "topic/x");
        assert_eq!(on_branch.remote.as_deref(), Some("git@git.example.net:a/b.git"));
        assert_eq!(on_branch.commit.message.trim_end(), "First\n\nBody");
        assert_eq!(on_branch.user.0, "Ann");
        git(dir.path(), &["tag", "v1"]).await;
        git(dir.path(), &["checkout", "-q", "--detach"]).await;
        let detached = facts(dir.path()).await.unwrap();
        assert_eq!((detached.branch.as_deref(), detached.tag.as_deref()), (None, Some("v1")));
    }

    #[tokio::test]
    async fn a_linked_work_tree_is_one_as_well() {
        let dir = repository().await;
        let parent = tempfile::tempdir().unwrap();
        let linked = parent.path().join("linked");
        git(dir.path(), &["worktree", "add", "-q", "-b", "other", linked.to_str().unwrap()]).await;
        write(&linked, "changed", "here");
        let facts = facts(&linked).await.unwrap();
        assert_eq!(facts.reference(), "other");
        let into = tempfile::tempdir().unwrap();
        let bundle = bundle(&facts, into.path()).await.unwrap();
        let out = checked_out(&bundle, "+refs/heads/other:refs/remotes/origin/other").await;
        assert_eq!(std::fs::read_to_string(out.path().join("changed")).unwrap(), "here");
        assert_eq!(std::fs::read_to_string(out.path().join("same")).unwrap(), "1");
    }

    #[tokio::test]
    async fn a_directory_without_a_repository_and_one_without_a_commit_work_too() {
        for init in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            if init {
                git(dir.path(), &["init", "-q", "-b", "main"]).await;
            }
            write(dir.path(), "a/b", "c");
            write(dir.path(), ".gitignore", "no\n");
            write(dir.path(), "no", "x");
            let facts = facts(dir.path()).await.unwrap();
            assert_eq!((facts.is_repository, facts.commit.sha.as_str()), (init, ""));
            let into = tempfile::tempdir().unwrap();
            let bundle = bundle(&facts, into.path()).await.unwrap();
            let out = checked_out(&bundle, "+refs/heads/main:refs/remotes/origin/main").await;
            assert_eq!(git(out.path(), &["ls-files"]).await, ".gitignore\na/b");
            assert_eq!(dir.path().join(".git").exists(), init);
        }
    }

    #[tokio::test]
    async fn a_file_git_cannot_add_is_an_error_that_says_so() {
        let dir = repository().await;
        let mut facts = facts(dir.path()).await.unwrap();
        facts.object_format = "sha9".to_owned();
        let into = tempfile::tempdir().unwrap();
        let error = bundle(&facts, into.path()).await.unwrap_err().to_string();
        assert!(error.starts_with("`git init") && error.contains("sha9"), "{error}");
    }
}

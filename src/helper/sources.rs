//! The stage `get_sources`: from a task to a work tree at the job's commit.
//!
//! The steps that comments number are those of docs/compatibility.md, "Steps of `get_sources`". Git is
//! run directly, with no script between; a stage with the default settings is five short git
//! processes.

use std::path::{Path, PathBuf};

use super::credentials;
use super::error::Error;
use super::files;
use super::frames::FrameSender;
use super::git::{Environment, Git, pattern, quoted};
use super::hook::{self, Hook};
use super::hygiene;
use super::submodule;
use crate::workload::transfer::{ENV_FILE, ObjectFormat, Sources, Strategy};

/// Name of git's template under `temp_dir`.
pub(super) const TEMPLATE: &str = "git-template";

/// Stands in for a home directory that is missing or not writable.
pub(super) const HOME: &str = ".gitlab-runner.home";

/// Characters of a commit id that people are shown, and the fewest there may be.
const SHORT: usize = 8;

/// First git with `clone --revision`.
const NATIVE_CLONE: (u32, u32) = (2, 49);

/// Fetches and checks out the sources.
pub(super) async fn sources(task: &Sources, trace: &FrameSender) -> Result<(), Error> {
    let project = Path::new(&task.project_dir);
    let temp = Path::new(&task.temp_dir);
    files::real_directory(temp)?;
    // A job that was killed has left its own, and it is not for this one.
    files::remove(&temp.join(ENV_FILE))?;
    match task.strategy {
        Strategy::None => {
            std::fs::create_dir_all(project).map_err(Error::file("make directory", project))?;
            without_sources(task, "Skipping Git repository setup", trace).await
        }
        Strategy::Empty => {
            off_thread(project, files::empty_directory).await?;
            let text = "Skipping Git repository setup and creating an empty build directory";
            without_sources(task, text, trace).await
        }
        Strategy::Fetch | Strategy::Clone => with_sources(task, trace).await,
    }
}

/// No git, and no hooks; the job itself may use git.
async fn without_sources(task: &Sources, text: &str, trace: &FrameSender) -> Result<(), Error> {
    if task.tokens_in_environment_only {
        credentials::write(task, &mut Environment::default())?;
    }
    trace.notice(text).await;
    trace.notice("Skipping Git checkout").await;
    trace.notice("Skipping Git submodules setup").await;
    Ok(())
}

async fn with_sources(task: &Sources, trace: &FrameSender) -> Result<(), Error> {
    if task.sha.len() < SHORT || !task.sha.is_char_boundary(SHORT) {
        return Err(Error::ShortSha(task.sha.clone()));
    }
    let temp = Path::new(&task.temp_dir);
    // 1, 3
    let mut environment = Environment::default();
    for (name, value) in &task.env {
        environment.set(name, value.expose());
    }
    home(&mut environment, temp)?;
    let external = credentials::write(task, &mut environment)?;
    // 2
    if let Some(script) = &task.pre_script {
        let hook = Hook { name: "pre_get_sources_script", script };
        if let Some(left) = hook::run(hook, None, temp, &environment, trace).await? {
            environment = left;
        }
    }
    // Large files come all at once at the end, and not one by one at the checkout.
    environment.set("GIT_LFS_SKIP_SMUDGE", "1");

    if let Some(id) = &task.correlation_id {
        trace.notice(&format!("Gitaly correlation ID: {id}")).await;
    }
    let stage = Stage { task, trace, external, template: temp.join(TEMPLATE), environment };
    let git = stage.repository().await?;
    let lfs = if task.checkout {
        stage.check_out(&git).await?
    } else {
        trace.notice("Skipping Git checkout").await;
        false
    };
    // 14
    submodule::update(&git, task, &stage.external, lfs, trace).await?;
    // 15
    if let Some(script) = &task.post_script {
        let hook = Hook { name: "post_get_sources_script", script };
        hook::run(hook, Some(git.directory()), temp, git.environment(), trace).await?;
    }
    Ok(())
}

/// Git's global configuration is in the home directory, so there must be one to write to.
fn home(environment: &mut Environment, temp: &Path) -> Result<(), Error> {
    let writable = environment.value("HOME").is_some_and(|home| {
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        Path::new(&home).is_dir() && rustix::fs::access(home.as_str(), access).is_ok()
    });
    if !writable {
        let home = temp.join(HOME);
        files::real_directory(&home)?;
        environment.set("HOME", home.to_string_lossy());
    }
    Ok(())
}

struct Stage<'a> {
    task: &'a Sources,
    trace: &'a FrameSender,
    external: PathBuf,
    template: PathBuf,
    environment: Environment,
}

impl Stage<'_> {
    fn project(&self) -> &Path {
        Path::new(&self.task.project_dir)
    }

    /// Steps 4 to 10: a repository that has the commit.
    async fn repository(&self) -> Result<Git, Error> {
        let task = self.task;
        if task.strategy == Strategy::Clone {
            off_thread(self.project(), files::empty_directory).await?;
        } else {
            files::real_directory(self.project())?;
            let (clean, submodules) = (task.clean_config, task.submodules.recursive.is_some());
            off_thread(self.project(), move |project| {
                hygiene::remove_locks(project, submodules)?;
                if clean { hygiene::remove_configuration(project, submodules) } else { Ok(()) }
            })
            .await?;
        }
        let git = Git::new(self.project(), self.environment.clone(), self.trace);
        self.mark_safe(&git).await?;
        if task.strategy == Strategy::Clone && task.native_clone {
            if newer(&git, NATIVE_CLONE).await? {
                self.clone_natively(&git).await?;
                return Ok(git);
            }
            self.trace
                .warning("git in the helper image is older than 2.49: fetching in place of cloning")
                .await;
        }
        let depth = self.depth();
        if depth > 0 {
            let text = format!("Fetching changes with git depth set to {depth}...");
            self.trace.notice(&text).await;
        } else {
            self.trace.notice("Fetching changes...").await;
        }
        self.initialize(&git).await?;
        self.fetch(&git, depth).await?;
        Ok(git)
    }

    /// The depth of the fetch; a bundle has a depth of its own.
    fn depth(&self) -> i64 {
        if self.task.url.starts_with('/') { 0 } else { self.task.depth }
    }

    /// Step 6: lets git work in directories of other users. Submodules are repositories of their
    /// own, whose paths are not known before; all belong to this project.
    async fn mark_safe(&self, git: &Git) -> Result<(), Error> {
        if !self.task.safe_directory {
            return Ok(());
        }
        let submodules = self.task.submodules.recursive.is_some();
        let directory = if submodules { "*" } else { self.task.project_dir.as_str() };
        git.configure("--global", "safe.directory", directory, &pattern(directory)).await
    }

    /// Step 6: what git copies into a new repository, its hooks (none) and configuration.
    fn write_template(&self, remote: bool) -> Result<(), Error> {
        files::remove(&self.template)?;
        files::real_directory(&self.template)?;
        let include = quoted(&self.external.to_string_lossy());
        let mut text = format!(
            "[init]\n\tdefaultBranch = none\n[fetch]\n\trecurseSubmodules = false\n\
             [credential]\n\tinteractive = never\n[gc]\n\tautoDetach = false\n\
             [include]\n\tpath = {include}\n"
        );
        if remote {
            text.push_str("[remote \"origin\"]\n\turl = ");
            text.push_str(&quoted(&self.task.url));
            text.push_str("\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n");
        }
        files::write_fresh(&self.template.join("config"), text.as_bytes())
    }

    /// Steps 7 to 9.
    async fn initialize(&self, git: &Git) -> Result<(), Error> {
        let repository = self.project().join(".git");
        let fresh = !repository.join("HEAD").exists();
        let configured = repository.join("config").exists();
        self.write_template(true)?;
        let template = format!("--template={}", self.template.display());
        let mut arguments = vec!["-c", "init.defaultBranch=none", "init", &template];
        if self.task.object_format == ObjectFormat::Sha256 {
            arguments.push("--object-format=sha256");
        }
        arguments.push(&self.task.project_dir);
        git.run(&arguments).await?;
        if configured {
            // The template is for new files only, and this one was kept.
            let any = ".*";
            git.configure("--local", "remote.origin.url", &self.task.url, any).await?;
            let refspec = "+refs/heads/*:refs/remotes/origin/*";
            git.configure("--local", "remote.origin.fetch", refspec, any).await?;
            let external = self.external.to_string_lossy();
            let name = regex::escape(credentials::EXTERNAL);
            git.configure("--local", "include.path", &external, &format!("{name}$")).await?;
        }
        if fresh {
            self.trace.notice("Created fresh repository.").await;
        }
        Ok(())
    }

    /// Step 10.
    async fn fetch(&self, git: &Git, depth: i64) -> Result<(), Error> {
        let agent = format!("http.userAgent={}", self.task.user_agent);
        let mut arguments = vec!["-c", &agent, "fetch", "origin", "--no-recurse-submodules"];
        arguments.extend(self.task.refspecs.iter().map(String::as_str));
        let depth = depth.to_string();
        if self.depth() > 0 {
            arguments.extend(["--depth", &depth]);
        }
        arguments.extend(self.task.fetch_flags.iter().map(String::as_str));
        let bundle = self.task.url.starts_with('/');
        if self.depth() <= 0 && !bundle && self.project().join(".git/shallow").exists() {
            arguments.push("--unshallow");
        }
        git.run(&arguments).await
    }

    /// `FF_USE_GIT_NATIVE_CLONE`.
    async fn clone_natively(&self, git: &Git) -> Result<(), Error> {
        let depth = self.depth();
        let reference = &self.task.reference;
        if depth > 0 {
            let text =
                format!("Cloning repository for {reference} with git depth set to {depth}...");
            self.trace.notice(&text).await;
        } else {
            self.trace.notice(&format!("Cloning repository for {reference}...")).await;
        }
        self.write_template(false)?;
        let agent = format!("http.userAgent={}", self.task.user_agent);
        let template = format!("--template={}", self.template.display());
        // The token's rewriting is not in a repository's configuration yet.
        let include = format!("include.path={}", self.external.display());
        let depth = format!("--depth={depth}");
        let mut arguments = vec!["-c", &agent, "-c", &include, "clone", "--no-checkout"];
        arguments.extend([self.task.url.as_str(), &self.task.project_dir, &template]);
        if self.depth() > 0 {
            arguments.push(&depth);
        }
        let kind = if reference.starts_with("refs/") { "--revision" } else { "--branch" };
        arguments.extend([kind, reference]);
        arguments.extend(self.task.clone_flags.iter().map(String::as_str));
        git.run(&arguments).await
    }

    /// Steps 11 to 13. Returns whether git-lfs is there.
    async fn check_out(&self, git: &Git) -> Result<bool, Error> {
        let task = self.task;
        let (short, reference) = (&task.sha[..SHORT], &task.reference);
        let text = format!("Checking out {short} as detached HEAD (ref is {reference})...");
        self.trace.notice(&text).await;
        let arguments = ["-c", "submodule.recurse=false", "checkout", "-f", "-q", &task.sha];
        if let Err(error) = git.run(&arguments).await {
            let commit = format!("{}^{{commit}}", task.sha);
            return match git.quiet(&["cat-file", "-e", &commit]).await? {
                (0, _) => Err(error),
                _ => Err(self.unreachable()),
            };
        }
        if let Some(flags) = &task.clean_flags {
            let mut arguments = vec!["clean"];
            arguments.extend(flags.iter().map(String::as_str));
            git.run(&arguments).await?;
        }
        let lfs = !task.skip_lfs && git.quiet(&["lfs", "version"]).await?.0 == 0;
        if lfs {
            git.run(&["lfs", "pull"]).await?;
        }
        Ok(lfs)
    }

    fn unreachable(&self) -> Error {
        let depth = self.depth();
        let hint = if depth > 0 { format!(" with git depth {depth}") } else { String::new() };
        let (sha, reference) = (self.task.sha.clone(), self.task.reference.clone());
        Error::Unreachable { sha, reference, hint }
    }
}

/// Whether git is of this version or a later one.
async fn newer(git: &Git, wanted: (u32, u32)) -> Result<bool, Error> {
    let (_, text) = git.quiet(&["version"]).await?;
    Ok(version(&text).is_some_and(|version| version >= wanted))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(2)?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Runs work on many files where it may block.
pub(super) async fn off_thread(
    path: &Path,
    work: impl FnOnce(&Path) -> Result<(), Error> + Send + 'static,
) -> Result<(), Error> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || work(&path)).await.map_err(Error::Interrupted)?
}

#[cfg(test)]
mod tests;

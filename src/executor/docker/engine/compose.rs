//! What is in the helper image and in the portable helper: which files of this host, and where.

use std::{
    collections::HashSet,
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::base::error_chain;

use super::{
    credential_helper::find_in,
    helper::{EXECUTABLE, HelperImageError, PATH, PORTABLE},
    program::{Linkage, Program, linkage},
    tree::{Tree, TreeError},
};

/// Programs of git that are not links to `git`: what fetching over HTTP and submodules need.
const GIT_PARTS: [&str; 6] = [
    "git-remote-http",
    "git-remote-https",
    "git-sh-i18n",
    "git-sh-i18n--envsubst",
    "git-sh-setup",
    "git-submodule",
];

/// What git's scripts and an operator's `pre_get_sources_script` may expect of a system. What the
/// host lacks of it, the image lacks too.
const TOOLS: [&str; 39] = [
    "awk", "basename", "bash", "cat", "chmod", "chown", "cp", "cut", "date", "dirname", "env",
    "expr", "false", "find", "git-lfs", "grep", "head", "id", "ln", "ls", "mkdir", "mktemp", "mv",
    "printf", "pwd", "rm", "rmdir", "sed", "sleep", "sort", "stat", "tail", "tee", "touch", "tr",
    "true", "uname", "wc", "xargs",
];

/// Libraries that glibc loads by name, not by link (`nsswitch.conf`). Newer ones have them built
/// in.
const NAME_SERVICE: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

/// Where distributions keep the bundle of CA certificates.
const CA_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The host as the image is composed from it.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// Our executable.
    pub(super) executable: PathBuf,
    /// Where programs are looked for.
    pub(super) path: OsString,
    /// Name of the images.
    pub(super) repository: String,
}

impl Host {
    pub(super) fn this() -> Self {
        Self {
            executable: ourselves(),
            path: PATH.into(),
            repository: crate::guard::HELPER_REPOSITORY.to_owned(),
        }
    }
}

/// This process's executable, also when its file was replaced by an upgrade. Not `/proc/self`:
/// the loader that is asked about it is a process of its own.
pub(super) fn ourselves() -> PathBuf {
    format!("/proc/{}/exe", std::process::id()).into()
}

/// The tree of the helper image, and what is not in it.
pub(super) fn compose(host: &Host) -> Result<(Tree, Vec<String>), HelperImageError> {
    let mut composer = Composer::default();
    let find = |name: &str| find_in(&host.path, Path::new(name));
    let git = find("git").ok_or(HelperImageError::NoGit)?;
    if !Path::new("/bin/sh").exists() {
        return Err(HelperImageError::NoShell);
    }
    composer.tree.file(Path::new(EXECUTABLE), &host.executable)?;
    composer.needs_of(&host.executable)?;
    composer.program(Path::new("/bin/sh"))?;
    composer.git(&git)?;
    for tool in TOOLS {
        match find(tool) {
            None => composer.missing(tool),
            Some(path) => {
                if let Err(error) = composer.program(&path) {
                    composer.warnings.push(format!(
                        "`{tool}` will not work in the helper: {}",
                        error_chain(&error)
                    ));
                }
            }
        }
    }
    composer.name_service()?;
    composer.certificates()?;
    let tree = &mut composer.tree;
    tree.text(
        Path::new("/etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    );
    tree.text(Path::new("/etc/group"), "root:x:0:\nnogroup:x:65534:\n");
    tree.text(
        Path::new("/etc/nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\n\
         protocols: files\nservices: files\n",
    );
    tree.directory(Path::new("/root"), 0o700);
    tree.directory(Path::new("/tmp"), 0o1777);
    Ok((composer.tree, composer.warnings))
}

#[derive(Default)]
struct Composer {
    tree: Tree,
    warnings: Vec<String>,
    /// Programs whose needs are in the tree.
    done: HashSet<PathBuf>,
    /// Where glibc is, which every loader searches.
    library_directory: Option<PathBuf>,
}

impl Composer {
    fn missing(&mut self, tool: &str) {
        self.warnings.push(format!("`{tool}` is not installed here, the helper does not have it"));
    }

    /// Adds a program at its own path, with all it needs.
    fn program(&mut self, path: &Path) -> Result<(), TreeError> {
        let path = self.tree.mirror(path)?;
        self.needs_of(&path)
    }

    fn needs_of(&mut self, path: &Path) -> Result<(), TreeError> {
        if !self.done.insert(path.to_owned()) {
            return Ok(());
        }
        match Program::of(path)? {
            Program::Static => Ok(()),
            Program::Script { interpreter } => self.program(&interpreter),
            Program::Dynamic { loader } => {
                self.tree.mirror(&loader)?;
                self.libraries(&linkage(path, &loader)?)
            }
        }
    }

    fn libraries(&mut self, linkage: &Linkage) -> Result<(), TreeError> {
        if let Some(glibc) = linkage.libraries.iter().find(|l| l.name == "libc.so.6") {
            self.library_directory = glibc.path.parent().map(Path::to_owned);
        }
        for library in &linkage.libraries {
            self.tree.mirror(&library.path)?;
            // There is no `ld.so.cache` in the image: what is in a directory of its own needs a
            // link where the loader looks.
            if let Some(directory) = self.library_directory.clone() {
                let expected = directory.join(&library.name);
                if library.path.parent() != Some(&directory) && !expected.exists() {
                    let directory = self.tree.mirror(&directory)?;
                    self.tree.link(&directory.join(&library.name), &library.path);
                }
            }
        }
        Ok(())
    }

    fn name_service(&mut self) -> Result<(), TreeError> {
        let Some(directory) = self.library_directory.clone() else { return Ok(()) };
        for library in NAME_SERVICE {
            let path = directory.join(library);
            if path.exists() {
                self.tree.mirror(&path)?;
            }
        }
        Ok(())
    }

    /// git, its links to itself, and the parts of it that are programs of their own.
    fn git(&mut self, git: &Path) -> Result<(), HelperImageError> {
        self.program(git)?;
        let output = std::process::Command::new(git)
            .arg("--exec-path")
            .env_clear()
            .output()
            .map_err(|source| TreeError::Read { path: git.to_owned(), source })?;
        let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let directory = self.tree.mirror(&directory)?;
        let read = |source| TreeError::Read { path: directory.clone(), source };
        let mut names: Vec<PathBuf> = std::fs::read_dir(&directory)
            .and_then(|all| all.map(|entry| Ok(entry?.path())).collect())
            .map_err(read)?;
        names.sort();
        let itself = [git.to_owned(), directory.join("git")].map(|p| p.canonicalize().ok());
        for path in names {
            let name = path.file_name().unwrap_or_default();
            let same = path.canonicalize().is_ok_and(|p| itself.contains(&Some(p)));
            if same || GIT_PARTS.iter().any(|part| name == *part) {
                let path = self.tree.mirror(&path)?;
                // Some parts are read by others and have no first line of their own.
                if Program::of(&path).is_ok() {
                    self.needs_of(&path)?;
                }
            }
        }
        let part = |name: &str| self.tree.contains(&directory.join(name));
        let lacking: Vec<_> = GIT_PARTS.into_iter().filter(|name| !part(name)).collect();
        for name in lacking {
            self.missing(name);
        }
        // Without it `git init` complains.
        let share = directory.parent().and_then(Path::parent).map(|p| p.join("share"));
        if let Some(share) = share {
            self.tree.directory(&share.join("git-core/templates"), 0o755);
        }
        Ok(())
    }

    fn certificates(&mut self) -> Result<(), TreeError> {
        let Some(bundle) = CA_BUNDLES.iter().map(Path::new).find(|path| path.exists()) else {
            self.warnings.push(
                "no bundle of CA certificates is installed here (package `ca-certificates`), \
                 the helper trusts no public server"
                    .to_owned(),
            );
            return Ok(());
        };
        self.tree.mirror(bundle)?;
        // Programs look at different places; the first is Debian's.
        let debian = Path::new(CA_BUNDLES[0]);
        if bundle == debian { Ok(()) } else { self.tree.file(debian, bundle) }
    }
}

/// The tree of the portable helper, and how to run it.
pub(super) fn portable(executable: &Path) -> Result<(Tree, Vec<String>), TreeError> {
    let root = Path::new(PORTABLE);
    let mut tree = Tree::default();
    let program = root.join("longshore").display().to_string();
    tree.file(Path::new(&program), executable)?;
    let mut command = vec![program];
    if let Program::Dynamic { loader } = Program::of(executable)? {
        let linkage = linkage(executable, &loader)?;
        let libraries = root.join("lib");
        tree.directory(&libraries, 0o755);
        tree.file(&root.join("ld.so"), &loader)?;
        let glibc = linkage.libraries.iter().find(|l| l.name == "libc.so.6");
        let glibc = glibc.and_then(|l| l.path.parent()).map(Path::to_owned);
        for library in &linkage.libraries {
            tree.file(&libraries.join(&library.name), &library.path)?;
        }
        for (name, directory) in NAME_SERVICE.iter().zip(glibc.iter().cycle()) {
            let path = directory.join(name);
            if path.exists() {
                tree.file(&libraries.join(name), &path)?;
            }
        }
        let loader = root.join("ld.so").display().to_string();
        let libraries = libraries.display().to_string();
        command.splice(0..0, [loader, "--library-path".to_owned(), libraries]);
    }
    Ok((tree, command))
}

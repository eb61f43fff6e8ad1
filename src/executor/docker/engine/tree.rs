//! A tree of files that is composed from parts of this host's, and its tar and hash.
//!
//! Paths are mirrored with the symbolic links that lead to them, so that everything is found in
//! the tree where it is found on the host. What is in a tree is `helper_image`'s business.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::base::ids::hex;

type Hash = [u8; 32];

/// Symbolic links on one path, as the kernel counts them (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A part of the tree that could not be read, or is not as it must be.
#[derive(Debug, thiserror::Error)]
pub(super) enum TreeError {
    #[error("cannot read `{path}`", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{path}` is not a program for this system", path = path.display())]
    NotElf { path: PathBuf },
    #[error("cannot ask `{loader}` for the libraries of `{path}`: {message}",
        loader = loader.display(), path = path.display())]
    Loader { loader: PathBuf, path: PathBuf, message: String },
    #[error("`{path}` needs the library {library}, which is not installed", path = path.display())]
    MissingLibrary { path: PathBuf, library: String },
}

#[derive(Debug, Clone)]
enum Node {
    Directory { mode: u32 },
    Link { target: PathBuf },
    File { source: Source, executable: bool },
}

#[derive(Debug, Clone)]
enum Source {
    Host { path: PathBuf, key: Identity },
    Text(Bytes),
}

/// A file's content has not changed while all of this is the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Files, directories and links by their path in the tree, without the leading `/`.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

pub(super) fn read_error(path: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let path = path.to_owned();
    move |source| TreeError::Read { path, source }
}

impl Tree {
    /// Adds a directory and those it is in.
    pub(super) fn directory(&mut self, path: &Path, mode: u32) {
        if let Some(parent) = relative(path).parent().filter(|p| !p.as_os_str().is_empty())
            && !self.nodes.contains_key(parent)
        {
            self.directory(parent, 0o755);
        }
        self.nodes.entry(relative(path)).or_insert(Node::Directory { mode });
    }

    /// Adds a file of this text.
    pub(super) fn text(&mut self, path: &Path, text: impl Into<Bytes>) {
        self.node(path, Node::File { source: Source::Text(text.into()), executable: false });
    }

    /// Adds the content of a host's file under a name of its own.
    pub(super) fn file(&mut self, path: &Path, host: &Path) -> Result<(), TreeError> {
        let metadata = fs::metadata(host).map_err(read_error(host))?;
        self.node(path, host_file(host, &metadata));
        Ok(())
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &Path) {
        self.node(path, Node::Link { target: target.to_owned() });
    }

    fn node(&mut self, path: &Path, node: Node) {
        if let Some(parent) = path.parent().filter(|p| *p != Path::new("/")) {
            self.directory(parent, 0o755);
        }
        self.nodes.entry(relative(path)).or_insert(node);
    }

    /// Adds what is at `path` on the host, with all links on the way, and gives the path it ends
    /// at. Of a directory, the directory alone is added.
    pub(super) fn mirror(&mut self, path: &Path) -> Result<PathBuf, TreeError> {
        let failed = || read_error(path);
        let mut pending: VecDeque<OsString> = parts(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == ".." {
                at.pop();
                continue;
            }
            let here = at.join(&part);
            let metadata = fs::symlink_metadata(&here).map_err(failed())?;
            if metadata.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed()(io::Error::other("too many symbolic links")));
                }
                let target = fs::read_link(&here).map_err(failed())?;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for part in parts(&target).into_iter().rev() {
                    pending.push_front(part);
                }
                self.link(&here, &target);
            } else {
                if metadata.is_dir() {
                    self.directory(&here, 0o755);
                } else {
                    self.node(&here, host_file(&here, &metadata));
                }
                at = here;
            }
        }
        Ok(at)
    }

    /// Whether there is something at `path`.
    pub(super) fn contains(&self, path: &Path) -> bool {
        self.nodes.contains_key(&relative(path))
    }

    /// Hashes what has to be hashed; after this, [`Sealed`] gives name and tar.
    pub(super) fn seal(self, hashes: &mut Hashes) -> Result<Sealed, TreeError> {
        let mut entries = Vec::with_capacity(self.nodes.len());
        let mut first: HashMap<(Hash, bool), PathBuf> = HashMap::new();
        let mut all = Sha256::new();
        for (path, node) in self.nodes {
            let mut say = |kind: &str, detail: &[u8]| {
                for part in [path.as_os_str().as_encoded_bytes(), kind.as_bytes(), detail] {
                    all.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
                    all.update(part);
                }
            };
            let entry = match node {
                Node::Directory { mode } => {
                    say("directory", &mode.to_be_bytes());
                    Entry::Directory { mode }
                }
                Node::Link { target } => {
                    say("link", target.as_os_str().as_encoded_bytes());
                    Entry::Link { target }
                }
                Node::File { source, executable } => {
                    let hash = hashes.of(&source)?;
                    say(if executable { "program" } else { "file" }, &hash);
                    if let Some(first) = first.get(&(hash, executable)) {
                        Entry::Same { path: first.clone(), executable }
                    } else {
                        first.insert((hash, executable), path.clone());
                        Entry::File { source, executable }
                    }
                }
            };
            entries.push((path, entry));
        }
        let name = hex(&all.finalize());
        Ok(Sealed { name, entries })
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn host_file(path: &Path, metadata: &Metadata) -> Node {
    let source = Source::Host { path: path.to_owned(), key: Identity::of(metadata) };
    Node::File { source, executable: metadata.mode() & 0o111 != 0 }
}

/// Hashes of files that were read before.
#[derive(Debug, Default)]
pub(super) struct Hashes {
    known: HashMap<Identity, Hash>,
}

impl Hashes {
    fn of(&mut self, source: &Source) -> Result<Hash, TreeError> {
        let (path, key) = match source {
            Source::Text(text) => return Ok(Sha256::digest(text).into()),
            Source::Host { path, key } => (path, key),
        };
        if let Some(hash) = self.known.get(key) {
            return Ok(*hash);
        }
        let mut file = File::open(path).map_err(read_error(path))?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; 256 << 10];
        loop {
            let length = file.read(&mut piece).map_err(read_error(path))?;
            if length == 0 {
                break;
            }
            hash.update(&piece[..length]);
        }
        let hash = hash.finalize().into();
        self.known.insert(key.clone(), hash);
        Ok(hash)
    }
}

#[derive(Debug)]
enum Entry {
    Directory {
        mode: u32,
    },
    Link {
        target: PathBuf,
    },
    File {
        source: Source,
        executable: bool,
    },
    /// The same content and mode as another file, which comes earlier.
    Same {
        path: PathBuf,
        executable: bool,
    },
}

/// A tree that will not change any more.
#[derive(Debug)]
pub(super) struct Sealed {
    name: String,
    entries: Vec<(PathBuf, Entry)>,
}

impl Sealed {
    /// Hexadecimal hash over all paths, modes and contents.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Writes the tar. Times and owners in it are those of nobody, so that equal trees give equal
    /// tars.
    pub(super) fn write(&self, to: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(to);
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, path, io::empty())?;
                }
                Entry::Link { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, target)?;
                }
                Entry::Same { path: first, executable } => {
                    header.set_entry_type(tar::EntryType::Link);
                    // Unpacking it sets this mode on the file that both are.
                    header.set_mode(mode_of(*executable));
                    tar.append_link(&mut header, path, first)?;
                }
                Entry::File { source, executable } => {
                    header.set_mode(mode_of(*executable));
                    match source {
                        Source::Text(text) => {
                            header.set_size(u64::try_from(text.len()).map_err(io::Error::other)?);
                            tar.append_data(&mut header, path, &text[..])?;
                        }
                        Source::Host { path: host, .. } => {
                            let file = File::open(host)?;
                            let length = file.metadata()?.len();
                            header.set_size(length);
                            tar.append_data(&mut header, path, file.take(length))?;
                        }
                    }
                }
            }
        }
        tar.into_inner()?.flush()
    }
}

fn mode_of(executable: bool) -> u32 {
    if executable { 0o755 } else { 0o644 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(tree: &Tree) -> Sealed {
        tree.clone().seal(&mut Hashes::default()).unwrap()
    }

    fn listing(sealed: &Sealed) -> Vec<String> {
        let mut tar = Vec::new();
        sealed.write(&mut tar).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let link = entry.link_name().unwrap().map(|l| format!(" -> {}", l.display()));
            format!(
                "{:?} {:o} {}{}",
                entry.header().entry_type(),
                entry.header().mode().unwrap(),
                entry.path().unwrap().display(),
                link.unwrap_or_default()
            )
        });
        entries.collect()
    }

    #[test]
    fn links_on_the_way_are_part_of_the_tree_and_equal_files_are_stored_once() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().canonicalize().unwrap();
        fs::create_dir(root.join("usr")).unwrap();
        fs::write(root.join("usr/git-1"), "git").unwrap();
        fs::write(root.join("usr/git-copy"), "git").unwrap();
        for file in ["usr/git-1", "usr/git-copy"] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(root.join(file), mode).unwrap();
        }
        std::os::unix::fs::symlink("usr", root.join("bin")).unwrap();
        std::os::unix::fs::symlink(root.join("bin/git-1"), root.join("usr/git")).unwrap();
        let mut tree = Tree::default();
        assert_eq!(tree.mirror(&root.join("bin/git")).unwrap(), root.join("usr/git-1"));
        tree.mirror(&root.join("bin/../bin/git-copy")).unwrap();
        let prefix = relative(&root).display().to_string();
        let lines: Vec<_> = listing(&sealed(&tree))
            .into_iter()
            .filter(|line| line.contains(&format!("{prefix}/")))
            .map(|line| line.replace(&prefix, "R"))
            .collect();
        assert_eq!(
            lines,
            [
                "Symlink 777 R/bin -> usr",
                "Directory 755 R/usr",
                "Symlink 777 R/usr/git -> /R/bin/git-1",
                "Regular 755 R/usr/git-1",
                "Link 755 R/usr/git-copy -> R/usr/git-1",
            ]
        );
    }

    #[test]
    fn the_name_changes_with_any_content_mode_or_path() {
        let mut tree = Tree::default();
        tree.text(Path::new("/etc/passwd"), "root");
        tree.directory(Path::new("/tmp"), 0o1777);
        let name = sealed(&tree).name().to_owned();
        assert_eq!(name.len(), 64);
        assert_eq!(sealed(&tree).name(), name);
        let mut other = Tree::default();
        other.text(Path::new("/etc/passwd"), "boot");
        other.directory(Path::new("/tmp"), 0o1777);
        assert_ne!(sealed(&other).name(), name);
        let mut other = Tree::default();
        other.text(Path::new("/etc/passwd"), "root");
        other.directory(Path::new("/tmp"), 0o777);
        assert_ne!(sealed(&other).name(), name);
        tree.link(Path::new("/bin"), Path::new("usr/bin"));
        assert_ne!(sealed(&tree).name(), name);
    }

    #[test]
    fn a_file_is_read_again_only_when_it_changed() {
        let host = tempfile::tempdir().unwrap();
        let file = host.path().join("f");
        fs::write(&file, "one").unwrap();
        let mut hashes = Hashes::default();
        let mut name = || {
            let mut tree = Tree::default();
            tree.file(Path::new("/f"), &file).unwrap();
            (tree.seal(&mut hashes).unwrap().name().to_owned(), hashes.known.len())
        };
        let first = name();
        assert_eq!(name(), first);
        fs::write(&file, "another").unwrap();
        let (changed, known) = name();
        assert_ne!(changed, first.0);
        assert_eq!(known, 2);
    }
}

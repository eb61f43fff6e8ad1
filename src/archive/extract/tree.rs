//! Makes files below one directory and nowhere else, whatever names it is given.
//!
//! Every directory on the way to an entry is opened from the one above it without following links,
//! so that a link in the way, be it from the archive or from an earlier job, is an error and never
//! leads out, even when another process changes the tree meanwhile.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid},
    io::Errno,
};

/// What an entry is given besides its content.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attributes {
    /// The permission bits; `None` leaves what the umask gives.
    pub(super) mode: Option<u32>,
    /// Seconds since 1970.
    pub(super) modified: Option<i64>,
    /// uid and gid, set where that is allowed.
    pub(super) owner: Option<(u32, u32)>,
}

/// Why an entry was not made.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It would leave the directory; says how.
    Escapes(&'static str),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The name of an entry, taken apart: it stays below the directory as long as no link is in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryPath(PathBuf);

impl EntryPath {
    /// Takes a name; `None` for the directory itself.
    pub(super) fn parse(name: &[u8]) -> Result<Option<Self>, Refusal> {
        if name.contains(&0) {
            return Err(Refusal::Escapes("its name has a zero byte"));
        }
        let mut path = PathBuf::new();
        for component in Path::new(OsStr::from_bytes(name)).components() {
            match component {
                Component::Normal(part) => path.push(part),
                Component::CurDir => {}
                Component::ParentDir => return Err(Refusal::Escapes("its name has `..`")),
                Component::RootDir | Component::Prefix(_) => {
                    return Err(Refusal::Escapes("its name is absolute"));
                }
            }
        }
        Ok((!path.as_os_str().is_empty()).then_some(Self(path)))
    }

    fn parent(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new(""))
    }

    fn base(&self) -> &OsStr {
        self.0.file_name().unwrap_or_default()
    }

    /// How many directories it is below.
    pub(super) fn depth(&self) -> usize {
        self.0.components().count()
    }
}

/// The directory everything goes below; each thread has a clone of its own.
#[derive(Clone)]
pub(super) struct Tree {
    root: Arc<OwnedFd>,
    /// The directory used last: entries come sorted more often than not.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
}

const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);

impl Tree {
    /// Opens the directory, following links to it: it is longshore's choice, not the archive's.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        Ok(Self { root: Arc::new(root), last: None })
    }

    /// Opens a directory below the root; makes what is missing when `make` is set.
    fn directory(&mut self, path: &Path, make: bool) -> Result<Arc<OwnedFd>, Refusal> {
        if path.as_os_str().is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(directory));
        }
        let mut current = Arc::clone(&self.root);
        for part in path {
            current = Arc::new(open_directory(&current, part, make)?);
        }
        self.last = Some((path.to_owned(), Arc::clone(&current)));
        Ok(current)
    }

    /// Makes a directory, and those above it. Mode and time are set by [`Self::finish_directory`].
    pub(super) fn make_directory(&mut self, path: &EntryPath) -> Result<(), Refusal> {
        let parent = self.directory(path.parent(), true)?;
        match rustix::fs::mkdirat(&parent, path.base(), Mode::from_raw_mode(0o777)) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let there = rustix::fs::statat(&parent, path.base(), AtFlags::SYMLINK_NOFOLLOW)?;
        match rustix::fs::FileType::from_raw_mode(there.st_mode) {
            rustix::fs::FileType::Directory => Ok(()),
            rustix::fs::FileType::Symlink => Err(Refusal::Escapes("a link is in its place")),
            _ => {
                rustix::fs::unlinkat(&parent, path.base(), AtFlags::empty())?;
                Ok(rustix::fs::mkdirat(&parent, path.base(), Mode::from_raw_mode(0o777))?)
            }
        }
    }

    /// Gives a directory its attributes: last, as files made in it change its time, and a mode may
    /// forbid to make them.
    pub(super) fn finish_directory(
        &mut self,
        path: &EntryPath,
        attributes: Attributes,
    ) -> Result<(), Refusal> {
        let directory = self.directory(&path.0, false)?;
        apply(&*directory, attributes)
    }

    /// Makes a file of what `content` gives, in place of a file or link that is there.
    pub(super) fn make_file(
        &mut self,
        path: &EntryPath,
        content: &mut impl Read,
        buffer: &mut [u8],
        attributes: Attributes,
    ) -> Result<(), Refusal> {
        let parent = self.directory(path.parent(), true)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let initial = if attributes.mode.is_some() { 0o600 } else { 0o666 };
        let file = replacing(&parent, path.base(), || {
            rustix::fs::openat(&parent, path.base(), flags, Mode::from_raw_mode(initial))
        })?;
        let mut file = File::from(file);
        loop {
            match content.read(buffer) {
                Ok(0) => break,
                Ok(read) => io::Write::write_all(&mut file, &buffer[..read])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        apply(&file, attributes)
    }

    /// Makes a symbolic link. Where it points is not looked at: nothing is ever made through it.
    pub(super) fn make_link(
        &mut self,
        path: &EntryPath,
        target: &[u8],
        attributes: Attributes,
    ) -> Result<(), Refusal> {
        let parent = self.directory(path.parent(), true)?;
        replacing(&parent, path.base(), || rustix::fs::symlinkat(target, &parent, path.base()))?;
        if let Some((uid, gid)) = attributes.owner {
            let (uid, gid) = owner(uid, gid);
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let _ = rustix::fs::chownat(&parent, path.base(), uid, gid, flags);
        }
        if let Some(seconds) = attributes.modified {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            // Some file systems keep no times for links.
            let _ = rustix::fs::utimensat(&parent, path.base(), &times(seconds), flags);
        }
        Ok(())
    }

    /// Makes another name for a file that is below the root too.
    pub(super) fn make_hard_link(
        &mut self,
        path: &EntryPath,
        target: &EntryPath,
    ) -> Result<(), Refusal> {
        if path == target {
            return Ok(());
        }
        let from = self.directory(target.parent(), false)?;
        let there = rustix::fs::statat(&from, target.base(), AtFlags::SYMLINK_NOFOLLOW)?;
        if rustix::fs::FileType::from_raw_mode(there.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(Refusal::Escapes("it is a hard link to something that is no file"));
        }
        let parent = self.directory(path.parent(), true)?;
        replacing(&parent, path.base(), || {
            rustix::fs::linkat(&from, target.base(), &parent, path.base(), AtFlags::empty())
        })?;
        Ok(())
    }
}

fn open_directory(parent: &OwnedFd, name: &OsStr, make: bool) -> Result<OwnedFd, Refusal> {
    let open = || rustix::fs::openat(parent, name, DIRECTORY, Mode::empty());
    match open() {
        Ok(directory) => Ok(directory),
        Err(Errno::NOENT) if make => {
            match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => Ok(open()?),
                Err(error) => Err(error.into()),
            }
        }
        // `O_DIRECTORY | O_NOFOLLOW` says ELOOP or ENOTDIR of a link, by kernel and file system.
        Err(Errno::LOOP) => Err(Refusal::Escapes("a link is in its way")),
        Err(Errno::NOTDIR) if is_link(parent, name) => {
            Err(Refusal::Escapes("a link is in its way"))
        }
        Err(error) => Err(error.into()),
    }
}

fn is_link(parent: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|there| {
        rustix::fs::FileType::from_raw_mode(there.st_mode) == rustix::fs::FileType::Symlink
    })
}

/// Runs `make`, which fails when something has the name already; then removes that, be it a file, a
/// link or an empty directory, and runs it again.
fn replacing<T>(
    parent: &OwnedFd,
    name: &OsStr,
    make: impl Fn() -> rustix::io::Result<T>,
) -> Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => {}
        other => return other,
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {
            rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
        }
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    make()
}

fn apply(file: &impl AsFd, attributes: Attributes) -> Result<(), Refusal> {
    if let Some((uid, gid)) = attributes.owner {
        let (uid, gid) = owner(uid, gid);
        // Only root may, and not in every user namespace.
        let _ = rustix::fs::fchown(file, uid, gid);
    }
    // After the owner: changing that clears the set-user-id bit.
    if let Some(mode) = attributes.mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o7777))?;
    }
    if let Some(seconds) = attributes.modified {
        rustix::fs::futimens(file, &times(seconds))?;
    }
    Ok(())
}

/// An id of all ones means "leave it" to the kernel and is no id.
fn owner(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    ((uid != u32::MAX).then(|| Uid::from_raw(uid)), (gid != u32::MAX).then(|| Gid::from_raw(gid)))
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

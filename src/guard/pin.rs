//! How a bind's source that was checked becomes what is mounted (G-53 … G-57).
//!
//! The source is walked from a handle of its mapping's root, no link followed, and that handle is
//! mounted in a directory that no job can reach; the engine is given that place. It stays until
//! nothing uses it any more, so what the job does to its workspace later changes nothing. It needs a
//! guard in the engine's mount namespace that may mount: this process's own, or a container beside the
//! engine ([`super::container`]). Where neither is possible, binds are refused.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use super::refusal::Refusal;

/// A handle mounted at a private place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pin {
    path: PathBuf,
}

impl Pin {
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens `rest` below `root` and mounts it at `at` (not there yet). `make` creates missing
    /// directories.
    ///
    /// # Errors
    /// When it is not there, leads over a link, or is neither directory nor regular file.
    pub(crate) fn new(root: &Path, rest: &Path, make: bool, at: &Path) -> Result<Self, PinError> {
        let handle = open(root, rest, make)?;
        let is_directory = match FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Err(PinError::Kind),
        };
        if is_directory {
            fs::create_dir(at)?;
        } else {
            fs::File::create_new(at)?;
        }
        let mounted = (|| {
            // The bits of AT_EMPTY_PATH; the tree without what is mounted in it.
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            let tree = rustix::mount::open_tree(&handle, "", flags)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&tree, "", rustix::fs::CWD, at, flags)?;
            let pin = Self { path: at.to_owned() };
            rustix::mount::mount_change(at, MountPropagationFlags::PRIVATE)?;
            Ok::<_, rustix::io::Errno>(pin)
        })();
        match mounted {
            Ok(pin) => Ok(pin),
            Err(error) => {
                remove(at);
                Err(PinError::Mount(error.into()))
            }
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if rustix::mount::unmount(&self.path, UnmountFlags::DETACH).is_ok() {
            remove(&self.path);
        }
    }
}

/// Removes a mount point that nothing is mounted at; never what is in it.
fn remove(at: &Path) {
    if fs::remove_dir(at).is_err() {
        drop(fs::remove_file(at));
    }
}

/// Unmounts and removes what an earlier guard left in its directory of pins.
pub(crate) fn clear(pins: &Path) {
    let Ok(entries) = fs::read_dir(pins) else { return };
    for entry in entries.flatten() {
        let _ = rustix::mount::unmount(entry.path(), UnmountFlags::DETACH);
        remove(&entry.path());
    }
}

/// Why a source cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PinError {
    /// It is not there.
    #[error("it does not exist")]
    Missing,
    /// A part of it is a symbolic link, or another file system.
    #[error("a symbolic link or another file system is on the way")]
    Link,
    /// It is a device, a socket or a pipe.
    #[error("it is neither a directory nor a regular file")]
    Kind,
    #[error("it cannot be mounted")]
    Mount(#[source] io::Error),
    #[error("it cannot be opened")]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for PinError {
    fn from(error: rustix::io::Errno) -> Self {
        match error {
            rustix::io::Errno::NOENT => Self::Missing,
            rustix::io::Errno::LOOP | rustix::io::Errno::XDEV | rustix::io::Errno::NOTDIR => {
                Self::Link
            }
            error => Self::Io(error.into()),
        }
    }
}

impl PinError {
    /// The same for the client. `is_mount` tells the two forms of binds apart, as the engine does.
    #[must_use]
    pub(crate) fn refusal(&self, job: &str, is_mount: bool) -> Refusal {
        match self {
            Self::Missing if is_mount => Refusal {
                status: 400,
                message: format!(
                    "invalid mount config for type \"bind\": \
                     bind source path does not exist: {job}"
                ),
                rule: "G-55",
            },
            Self::Missing => {
                Refusal::because(&format!("the bind source {job} does not exist"), "G-55")
            }
            Self::Link => Refusal::because(
                &format!("the bind source {job} leads over a symbolic link or another file system"),
                "G-53",
            ),
            Self::Kind => Refusal::because(
                &format!("the bind source {job} is neither a directory nor a regular file"),
                "G-54",
            ),
            Self::Mount(_) => Refusal::because(
                "binds of the workspace are not possible here: the guard cannot mount",
                "G-57",
            ),
            Self::Io(_) => {
                Refusal::because(&format!("the bind source {job} cannot be opened"), "G-53")
            }
        }
    }
}

/// The handle of `rest` below `root`, no link followed (G-53).
fn open(root: &Path, rest: &Path, make: bool) -> Result<OwnedFd, PinError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut handle =
        rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty())?;
    let beneath = |from: &OwnedFd, path: &Path| {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(from.as_fd(), path, flags, Mode::empty(), resolve)
    };
    for part in rest {
        let part = Path::new(part);
        handle = match beneath(&handle, part) {
            Err(rustix::io::Errno::NOENT) if make => {
                let parent = rustix::fs::fstat(&handle)?;
                match rustix::fs::mkdirat(&handle, part, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let made = beneath(&handle, part)?;
                own(&made, &parent)?;
                made
            }
            opened => opened?,
        };
        // `O_PATH | O_NOFOLLOW` opens a link itself.
        if FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) == FileType::Symlink {
            return Err(PinError::Link);
        }
    }
    Ok(handle)
}

/// Gives a directory that was just made to the owner of its parent.
fn own(made: &OwnedFd, parent: &rustix::fs::Stat) -> Result<(), PinError> {
    let owner = rustix::fs::Uid::from_raw(parent.st_uid);
    let group = rustix::fs::Gid::from_raw(parent.st_gid);
    rustix::fs::chownat(made, "", Some(owner), Some(group), rustix::fs::AtFlags::EMPTY_PATH)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn g_53_links_devices_and_dots_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        symlink("/", root.path().join("out")).unwrap();
        symlink("a", root.path().join("in")).unwrap();
        symlink("/etc/passwd", root.path().join("a/file")).unwrap();
        let opened = |rest: &str| open(root.path(), Path::new(rest), false);
        assert!(opened("").is_ok() && opened("a/b").is_ok());
        for rest in ["out", "in", "in/b", "out/etc", "a/file"] {
            assert!(matches!(opened(rest), Err(PinError::Link)), "{rest}");
        }
        assert!(matches!(opened("none"), Err(PinError::Missing)));
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let at = root.path().join("pin");
        let refused = Pin::new(root.path(), Path::new("pipe"), false, &at);
        assert!(matches!(refused, Err(PinError::Kind)) && !at.exists());
    }

    #[test]
    fn g_55_missing_directories_are_made_below_the_root_only() {
        let root = tempfile::tempdir().unwrap();
        symlink("/tmp", root.path().join("out")).unwrap();
        assert!(open(root.path(), Path::new("x/y"), true).is_ok());
        assert!(root.path().join("x/y").is_dir());
        assert!(open(root.path(), Path::new("out/longshore-never"), true).is_err());
        assert!(!Path::new("/tmp/longshore-never").exists());
    }
}

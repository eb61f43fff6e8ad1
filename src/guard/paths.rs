//! Binds of the workspace: where a path of the job really is (pure), and how what was checked
//! becomes what is mounted (G-52 … G-58, way A of section 7.2).
//!
//! The source is walked from a handle of its mapping's root, no link followed, and that handle is
//! mounted in a directory that no job can reach; the engine is given that place. It stays until
//! nothing uses it any more, so what the job does to its workspace later changes nothing. It needs a
//! guard in the engine's mount namespace that may mount: this process's own, or a sidecar beside the
//! engine ([`super::sidecar`]). Ways B and C are used in no set-up; where neither is possible, binds
//! are refused.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use super::{Refusal, settings::GuardSettings};

/// Where a path of the job leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The guarded socket.
    Socket,
    /// Below a mapping.
    Mapped {
        /// Its index.
        mapping: usize,
        /// The rest of the path: plain parts, possibly none.
        rest: PathBuf,
    },
}

/// Where `source`, as the job names it, leads (G-52).
///
/// # Errors
/// When it is not absolute, or nothing of it can be bound.
pub fn place(source: &str, settings: &GuardSettings) -> Result<Place, Refusal> {
    if source.chars().any(char::is_control) {
        return Err(Refusal::malformed("a bind's source has control characters", "G-52"));
    }
    let Some(clean) = clean(source) else {
        return Err(Refusal::malformed("a bind's source must be an absolute path", "G-52"));
    };
    if settings.socket_paths.contains(&clean) {
        return Ok(Place::Socket);
    }
    for (mapping, entry) in settings.workspace.iter().enumerate() {
        let root = entry.job.trim_end_matches('/');
        let rest = match clean.strip_prefix(root) {
            Some("") => "",
            Some(rest) if rest.starts_with('/') => &rest[1..],
            _ => continue,
        };
        return Ok(Place::Mapped { mapping, rest: PathBuf::from(rest) });
    }
    Err(Refusal::because(
        &format!(
            "the bind source {clean} exists only inside the job's container; \
             use a path in the job's project directory, or a volume"
        ),
        "G-52",
    ))
}

/// An absolute path without repeated slashes, `.` and `..`; `None` for a relative one.
fn clean(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// A handle mounted at a private place, until it is dropped.
#[derive(Debug)]
pub struct Pin {
    path: PathBuf,
}

impl Pin {
    /// The private place.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens `rest` below `root` and mounts it at `at` (not there yet). `make` creates missing
    /// directories.
    ///
    /// # Errors
    /// When it is not there, leads over a link, or is neither directory nor regular file.
    pub fn new(root: &Path, rest: &Path, make: bool, at: &Path) -> Result<Self, PinError> {
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
pub fn clear(pins: &Path) {
    let Ok(entries) = fs::read_dir(pins) else { return };
    for entry in entries.flatten() {
        let _ = rustix::mount::unmount(entry.path(), UnmountFlags::DETACH);
        remove(&entry.path());
    }
}

/// Why a source cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It is not there.
    #[error("it does not exist")]
    Missing,
    /// A part of it is a symbolic link, or another file system.
    #[error("a symbolic link or another file system is on the way")]
    Link,
    /// It is a device, a socket or a pipe.
    #[error("it is neither a directory nor a regular file")]
    Kind,
    /// Mounting failed.
    #[error("it cannot be mounted")]
    Mount(#[source] io::Error),
    /// Something else failed.
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
    pub fn refusal(&self, job: &str, is_mount: bool) -> Refusal {
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
    use crate::guard::settings::Mapping;

    fn settings() -> GuardSettings {
        let mut settings = GuardSettings::new("1", ("l".into(), "1".into()), "n", Path::new("/x"));
        for job in ["/builds/acme/app", "/cache/"] {
            let mapping = Mapping { job: job.to_owned(), host: "/host".into(), read_only: false };
            settings.workspace.push(mapping);
        }
        settings
    }

    #[test]
    fn g_52_sources_are_cleaned_and_lie_below_a_mapping_on_a_boundary() {
        let settings = settings();
        for (source, mapping, rest) in [
            ("/builds/acme/app", 0, ""),
            ("/builds/acme/app/", 0, ""),
            ("/builds//acme/./app/x/../data", 0, "data"),
            ("/../builds/acme/app/a b", 0, "a b"),
            ("/cache/x", 1, "x"),
        ] {
            let expected = Place::Mapped { mapping, rest: rest.into() };
            assert_eq!(place(source, &settings), Ok(expected), "{source}");
        }
        for source in [
            "/builds/acme/app/../other",
            "/builds/acme",
            "/builds/acme/app-b",
            "/",
            "/tmp/foo",
            "/builds/acme/app/../../../etc",
            "/var/run",
            "/var/run/docker.sock/..",
            "/proc/self/root",
        ] {
            assert_eq!(place(source, &settings).unwrap_err().status, 403, "{source}");
        }
        for source in ["relative", "", "./x", "/builds/acme/app/\n"] {
            assert_eq!(place(source, &settings).unwrap_err().status, 400, "{source}");
        }
        for source in ["/var/run/docker.sock", "/run/./docker.sock", "/var/run//docker.sock"] {
            assert_eq!(place(source, &settings), Ok(Place::Socket));
        }
    }

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

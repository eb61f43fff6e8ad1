//! Directories of this host put into a container that runs, which no engine does: copies of their
//! mounts, moved in its mount namespace. For that, longshore must be root on the engine's host and
//! have the same directories as the engine; a witness, which is in the container already, shows both.
//!
//! Only for a container whose files are its image's: where a path leads is read in it.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags},
    thread::{LinkNameSpaceType, UnshareFlags},
};

/// A directory, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Graft {
    /// On this host.
    pub(super) source: PathBuf,
    /// In the container.
    pub(super) destination: String,
}

/// A container, as far as it is known from here.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Its first process.
    pub(super) pid: i64,
    /// A directory of this host that it has.
    pub(super) witness: Graft,
}

/// Why nothing can be put into a container.
#[derive(Debug, thiserror::Error)]
pub enum GraftError {
    /// The engine is on another host.
    #[error("the engine at {host} is not on this host")]
    Remote {
        /// Its address.
        host: String,
    },
    /// The container does not run.
    #[error("the container has ended")]
    Ended,
    /// It is not here, or not any more.
    #[error(
        "the container's files cannot be seen from here: does the engine run on this host, in the \
         same mount namespace?"
    )]
    Elsewhere(#[source] io::Error),
    /// What is at the witness's place is something else.
    #[error(
        "the container has another directory where this host's should be: does the engine run in \
         the same mount namespace?"
    )]
    Other,
    /// It may not be entered.
    #[error("the container's mount namespace cannot be entered; longshore must be root")]
    Enter(#[source] io::Error),
    /// A mount failed.
    #[error("cannot mount {} at {destination} in the container", source_path.display())]
    Mount {
        /// The directory.
        source_path: PathBuf,
        /// Where to.
        destination: String,
        /// Why.
        source: io::Error,
    },
    /// It is a bug.
    #[error("the thread that mounts panicked")]
    Panicked,
}

/// Puts `grafts` into the container, parents first; none only shows that it is possible. Blocks.
pub(super) fn graft(target: &Target, grafts: &[Graft]) -> Result<(), GraftError> {
    // The thread is another container's afterwards, and ends.
    thread::scope(|scope| scope.spawn(|| enter_and_mount(target, grafts)).join())
        .unwrap_or(Err(GraftError::Panicked))
}

fn enter_and_mount(target: &Target, grafts: &[Graft]) -> Result<(), GraftError> {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let witness = identity(&target.witness.source).map_err(GraftError::Elsewhere)?;
    let namespace =
        File::open(format!("/proc/{}/ns/mnt", target.pid)).map_err(GraftError::Elsewhere)?;
    let mut sorted: Vec<&Graft> = grafts.iter().collect();
    sorted.sort_by_key(|graft| graft.destination.matches('/').count());
    let copies = sorted.into_iter().map(|graft| copy(graft).map(|tree| (graft, tree)));
    let copies = copies.collect::<Result<Vec<_>, _>>()?;
    enter(&namespace).map_err(|error| GraftError::Enter(error.into()))?;
    // Its number may be another process's by now.
    let found = identity(Path::new(&target.witness.destination)).map_err(GraftError::Elsewhere)?;
    if found != witness {
        return Err(GraftError::Other);
    }
    for (graft, tree) in copies {
        attach(&graft.destination, &tree).map_err(|error| graft.failed(error))?;
    }
    Ok(())
}

/// Makes this thread one of the namespace's, with its root.
fn enter(namespace: &File) -> rustix::io::Result<()> {
    #[expect(deprecated, reason = "the new one is unsafe for file descriptors, which stay shared")]
    rustix::thread::unshare(UnshareFlags::FS)?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}

/// A copy of the directory's mount that is nowhere yet, with what is mounted in it, as engines do.
fn copy(graft: &Graft) -> Result<OwnedFd, GraftError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(rustix::fs::CWD, &graft.source, flags)
        .map_err(|error| graft.failed(error.into()))
}

fn attach(destination: &str, tree: &OwnedFd) -> io::Result<()> {
    fs::create_dir_all(destination)?;
    let place = fs::canonicalize(destination)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", rustix::fs::CWD, &place, flags)?;
    // What the container mounts below it is not the host's.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change(&place, private)?)
}

impl Graft {
    fn failed(&self, source: io::Error) -> GraftError {
        let (source_path, destination) = (self.source.clone(), self.destination.clone());
        GraftError::Mount { source_path, destination, source }
    }
}

/// Whether this process could enter a container on this host at all.
pub(super) fn possible() -> Result<(), GraftError> {
    let enter_own = || {
        let namespace = File::open("/proc/self/ns/mnt").map_err(GraftError::Enter)?;
        enter(&namespace).map_err(|error| GraftError::Enter(error.into()))
    };
    thread::scope(|scope| scope.spawn(enter_own).join()).unwrap_or(Err(GraftError::Panicked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_other_files_is_not_touched() {
        if possible().is_err() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["here", "there", "source"] {
            fs::create_dir(at(name)).unwrap();
        }
        let witness = |destination: &str| Target {
            pid: std::process::id().into(),
            witness: Graft {
                source: at("here"),
                destination: at(destination).to_str().unwrap().to_owned(),
            },
        };
        let place = at("place");
        let grafts =
            [Graft { source: at("source"), destination: place.to_str().unwrap().to_owned() }];
        assert!(matches!(graft(&witness("there"), &grafts), Err(GraftError::Other)));
        assert!(matches!(graft(&witness("nowhere"), &grafts), Err(GraftError::Elsewhere(_))));
        assert!(!place.exists());
    }
}

//! Files and directories: receive, send, stat, open, empty.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::error::Error;
use super::frames::FrameSender;
use crate::helper::protocol::{self, CHUNK, Done, FileInfo, Frame, Receive};

/// Makes the directories and opens them to every user.
pub(super) fn open_directories(paths: &[String]) -> Result<(), Error> {
    for path in paths.iter().map(Path::new) {
        fs::create_dir_all(path).map_err(Error::file("make directory", path))?;
        let mode = fs::metadata(path).map_err(Error::file("look at", path))?.mode();
        // Only the owner may change the mode, and an open directory needs no change.
        if mode & 0o777 != 0o777 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777))
                .map_err(Error::file("open directory", path))?;
        }
    }
    Ok(())
}

/// Receives the `Data* End` that follow a task. An error of the stream itself is the outer one. When
/// the file cannot be written, its pieces are still read to the end, so that the next task is found.
pub(super) async fn receive(
    task: &Receive,
    input: &mut (impl AsyncRead + Unpin),
) -> io::Result<Result<(), Error>> {
    let path = Path::new(&task.path);
    let mut target = begin(path);
    loop {
        match protocol::read(input).await? {
            Some(Frame::Data(piece)) => {
                if let Ok((file, _)) = &mut target
                    && let Err(error) = file.write_all(&piece).await
                {
                    target = Err(Error::file("write", path)(error));
                }
            }
            Some(Frame::End) => break,
            Some(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "another frame in the middle of a file",
                ));
            }
            None => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "stream ended in the middle of a file",
                ));
            }
        }
    }
    Ok(match target {
        Ok((file, place)) => finish(file, place, task).await,
        Err(error) => Err(error),
    })
}

fn begin(path: &Path) -> Result<(tokio::fs::File, tempfile::TempPath), Error> {
    let directory = parent(path);
    fs::create_dir_all(directory).map_err(Error::file("make directory", directory))?;
    // The umask decides, as for a file of the job's own.
    let temporary = tempfile::Builder::new()
        .prefix(".longshore-")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(Error::file("make a file in", directory))?;
    let (file, place) = temporary.into_parts();
    Ok((tokio::fs::File::from_std(file), place))
}

async fn finish(
    mut file: tokio::fs::File,
    place: tempfile::TempPath,
    task: &Receive,
) -> Result<(), Error> {
    let path = Path::new(&task.path);
    file.flush().await.map_err(Error::file("write", path))?;
    if let Some(seconds) = task.modified {
        let file = file.into_std().await;
        file.set_modified(time(seconds)).map_err(Error::file("set the time of", path))?;
    }
    place.persist(path).map_err(|error| Error::file("write", path)(error.error))
}

fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

/// The directory that a file is in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Size and time of a file, when there is one.
pub(super) fn stat(path: &Path) -> Result<Option<FileInfo>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(FileInfo { size: metadata.len(), modified: metadata.mtime() })),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::file("look at", path)(error)),
    }
}

/// Sends a file as `Data* End`. The `End` is missing when reading fails on the way.
pub(super) async fn send(path: &Path, trace: &FrameSender) -> Result<Done, Error> {
    let mut file = tokio::fs::File::open(path).await.map_err(Error::file("open", path))?;
    let info = stat(path)?;
    loop {
        let mut piece = BytesMut::with_capacity(CHUNK);
        while piece.len() < CHUNK {
            let room = CHUNK - piece.len();
            let read = (&mut file).take(room as u64).read_buf(&mut piece).await;
            if read.map_err(Error::file("read", path))? == 0 {
                break;
            }
        }
        if piece.is_empty() {
            break;
        }
        trace.send(Frame::Data(piece.freeze())).await;
    }
    trace.send(Frame::End).await;
    Ok(Done { file: info, ..Done::default() })
}

/// Fails unless the path is a directory itself, not a link to one that an earlier job left in its
/// place.
pub(super) fn real_directory(path: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
        fs::remove_file(path).map_err(Error::file("remove", path))?;
    }
    fs::create_dir_all(path).map_err(Error::file("make directory", path))
}

/// A new file with this text, whatever was in its place: the text never goes through a link.
pub(super) fn write_fresh(path: &Path, text: &[u8]) -> Result<(), Error> {
    remove(path)?;
    let create = |path| OpenOptions::new().write(true).create_new(true).open(path);
    let mut file: File = create(path).map_err(Error::file("make", path))?;
    file.write_all(text).map_err(Error::file("write", path))
}

/// Removes a file, a link or a directory with all that is in it; it may be absent.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            remove_directory(path).map_err(Error::file("remove", path))
        }
        Ok(_) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", path)(error))
            }
            _ => Ok(()),
        },
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(())
        }
        Err(error) => Err(Error::file("look at", path)(error)),
    }
}

/// Removes all that is in a directory, which stays (it may be a mount, or its parent not ours).
pub(super) fn empty_directory(path: &Path) -> Result<(), Error> {
    real_directory(path)?;
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            unlock(path).and_then(|()| fs::read_dir(path))
        }
        other => other,
    };
    for entry in entries.map_err(Error::file("read directory", path))? {
        let entry = entry.map_err(Error::file("read directory", path))?.path();
        if remove(&entry).is_err() {
            unlock(path).map_err(Error::file("open directory", path))?;
            remove(&entry)?;
        }
    }
    Ok(())
}

fn unlock(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))
}

/// A user who is not root cannot remove what is in a directory without write permission (tools
/// leave such caches); those of their own can be changed.
fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => return other,
    }
    // A directory is opened before it is read, as the walk yields it first.
    let mut walk = walkdir::WalkDir::new(path).follow_links(false).into_iter();
    let _ = unlock(path);
    while let Some(entry) = walk.next() {
        if let Ok(entry) = entry
            && entry.file_type().is_dir()
            && unlock(entry.path()).is_err()
        {
            walk.skip_current_dir();
        }
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opened_directories_are_open_to_all_and_can_be_opened_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let paths = [path.to_str().unwrap().to_owned()];
        open_directories(&paths).unwrap();
        open_directories(&paths).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o777);
    }

    #[test]
    fn an_emptied_directory_stays_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let directory = root.path().join("project");
        fs::create_dir_all(directory.join("locked/in")).unwrap();
        fs::write(directory.join("locked/in/file"), "x").unwrap();
        fs::write(directory.join(".hidden"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, directory.join("link")).unwrap();
        fs::set_permissions(directory.join("locked/in"), fs::Permissions::from_mode(0o500))
            .unwrap();
        fs::set_permissions(directory.join("locked"), fs::Permissions::from_mode(0o100)).unwrap();
        empty_directory(&directory).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn a_link_in_place_of_a_directory_or_file_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::write(&outside, "theirs").unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        write_fresh(&link, b"ours").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(&link).unwrap(), "ours");

        let elsewhere = root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let directory = root.path().join("directory");
        std::os::unix::fs::symlink(&elsewhere, &directory).unwrap();
        real_directory(&directory).unwrap();
        assert!(fs::symlink_metadata(&directory).unwrap().is_dir());
    }

    #[test]
    fn an_absent_file_has_no_size() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(stat(&root.path().join("none")).unwrap(), None);
        let file = root.path().join("file");
        fs::write(&file, "four").unwrap();
        assert_eq!(stat(&file).unwrap().unwrap().size, 4);
        assert_eq!(stat(&file.join("below")).unwrap(), None);
    }
}

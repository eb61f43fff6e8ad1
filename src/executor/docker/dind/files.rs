//! Files for a container that has not started, as the tar that the engine unpacks in its root.

use std::io;

use tar::{Builder, EntryType, Header};

/// Files in the order in which they are added. What goes wrong is said at the end.
pub(in crate::executor::docker) struct Files {
    tar: Builder<Vec<u8>>,
    /// Whether there are any, and all of them.
    whole: Option<io::Result<()>>,
}

impl Files {
    /// None yet.
    pub(in crate::executor::docker) fn new() -> Self {
        Self { tar: Builder::new(Vec::new()), whole: None }
    }

    /// A directory that all may enter.
    pub(in crate::executor::docker) fn directory(&mut self, path: &str, owner: u32) {
        let path = format!("{}/", path.trim_end_matches('/'));
        self.add(&path, EntryType::Directory, 0o755, owner, "");
    }

    /// A directory in which all may write.
    pub(in crate::executor::docker) fn open_directory(&mut self, path: &str) {
        let path = format!("{}/", path.trim_end_matches('/'));
        self.add(&path, EntryType::Directory, 0o777, 0, "");
    }

    /// A file.
    pub(in crate::executor::docker) fn file(
        &mut self,
        path: &str,
        mode: u32,
        owner: u32,
        content: &str,
    ) {
        self.add(path, EntryType::Regular, mode, owner, content);
    }

    /// A symbolic link of root's.
    pub(in crate::executor::docker) fn link(&mut self, path: &str, target: &str) {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        header.set_size(0);
        let added = self.tar.append_link(&mut header, path.trim_start_matches('/'), target);
        self.note(added);
    }

    /// The tar; `None` when there is nothing in it.
    pub(in crate::executor::docker) fn finish(self) -> io::Result<Option<Vec<u8>>> {
        self.whole.map_or(Ok(None), |whole| whole.and_then(|()| self.tar.into_inner()).map(Some))
    }

    fn add(&mut self, path: &str, kind: EntryType, mode: u32, owner: u32, content: &str) {
        let mut header = header(kind, mode, owner);
        header.set_size(content.len() as u64);
        let path = path.trim_start_matches('/');
        let added = self.tar.append_data(&mut header, path, content.as_bytes());
        self.note(added);
    }

    fn note(&mut self, added: io::Result<()>) {
        self.whole = Some(self.whole.take().unwrap_or(Ok(())).and(added));
    }
}

fn header(kind: EntryType, mode: u32, owner: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.into());
    header.set_gid(owner.into());
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_put_where_there_is_nothing() {
        assert_eq!(Files::new().finish().unwrap(), None);
    }

    #[test]
    fn a_link_keeps_its_target() {
        let mut files = Files::new();
        files.link("/var/run/docker.sock", "/run/x/docker.sock");
        let tar = files.finish().unwrap().unwrap();
        let mut tar = tar::Archive::new(tar.as_slice());
        let entry = tar.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("var/run/docker.sock"));
        assert_eq!(entry.link_name().unwrap().unwrap().to_str(), Some("/run/x/docker.sock"));
    }
}

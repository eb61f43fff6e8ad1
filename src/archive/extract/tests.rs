use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
};

use proptest::prelude::*;
use zip::write::SimpleFileOptions;

use super::*;

/// An entry as a hostile archive may have it.
#[derive(Debug, Clone)]
enum Hostile {
    File,
    Directory,
    Symlink(String),
    HardLink(String),
}

fn zip_of(entries: &[(String, Hostile)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    for (name, entry) in entries {
        // Names that the writer itself refuses, such as a second one alike, are not there.
        let _ = match entry {
            Hostile::File | Hostile::HardLink(_) => {
                zip.start_file(name.as_str(), options).map(|()| zip.write_all(b"evil").unwrap())
            }
            Hostile::Directory => zip.add_directory(name.as_str(), options),
            Hostile::Symlink(target) => zip.add_symlink(name.as_str(), target.as_str(), options),
        };
    }
    zip.finish().unwrap().into_inner()
}

/// The tar crate refuses hostile names, so they are put into the header by hand.
fn tar_of(entries: &[(String, Hostile)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, entry) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        header.set_uid(0);
        header.set_gid(0);
        let mut link = |target: &str| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        };
        let (kind, content): (_, &[u8]) = match entry {
            Hostile::File => (tar::EntryType::Regular, b"evil"),
            Hostile::Directory => (tar::EntryType::Directory, b""),
            Hostile::Symlink(target) => {
                link(target);
                (tar::EntryType::Symlink, b"")
            }
            Hostile::HardLink(target) => {
                link(target);
                (tar::EntryType::Link, b"")
            }
        };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap()
}

/// A place with something to protect beside the directory `into`, which has links to it.
struct Place {
    whole: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let whole = tempfile::tempdir().unwrap();
        for directory in ["into/inside", "outside"] {
            fs::create_dir_all(whole.path().join(directory)).unwrap();
        }
        fs::write(whole.path().join("outside/precious"), "precious").unwrap();
        symlink("../outside", whole.path().join("into/way-out")).unwrap();
        symlink("inside", whole.path().join("into/way-in")).unwrap();
        symlink("../outside/precious", whole.path().join("into/file-link")).unwrap();
        Self { whole }
    }

    fn root(&self) -> PathBuf {
        self.whole.path().join("into")
    }

    fn extract(&self, bytes: &[u8]) -> Result<Extracted, ExtractError> {
        let archive = self.whole.path().join("archive");
        fs::write(&archive, bytes).unwrap();
        let result = extract(&archive, &self.root());
        fs::remove_file(archive).unwrap();
        result
    }

    /// Everything that is not below `into`, with its content and link count.
    fn around(&self) -> Vec<(PathBuf, Vec<u8>, u64)> {
        let mut around = Vec::new();
        for entry in walkdir::WalkDir::new(self.whole.path()).sort_by_file_name() {
            let entry = entry.unwrap();
            if entry.path().starts_with(self.root()) || entry.depth() == 0 {
                continue;
            }
            let metadata = entry.metadata().unwrap();
            let content =
                if metadata.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
            let links = if metadata.is_file() { metadata.nlink() } else { 0 };
            around.push((entry.path().to_owned(), content, links));
        }
        around
    }
}

fn file(name: &str) -> (String, Hostile) {
    (name.to_owned(), Hostile::File)
}

fn link(name: &str, target: &str) -> (String, Hostile) {
    (name.to_owned(), Hostile::Symlink(target.to_owned()))
}

#[test]
fn docker_175_entries_that_leave_the_directory_are_refused_by_name() {
    let absolute = tempfile::tempdir().unwrap();
    let absolute = absolute.path().join("evil").display().to_string();
    let cases: Vec<(Vec<(String, Hostile)>, &str)> = vec![
        (vec![file("../evil")], "../evil"),
        (vec![file("a/../../evil")], "a/../../evil"),
        (vec![file(&absolute)], &absolute),
        (vec![("../evil/".into(), Hostile::Directory)], "../evil/"),
        (vec![link("../evil", "x")], "../evil"),
        // Through links that were there before, out and even in.
        (vec![file("way-out/evil")], "way-out/evil"),
        (vec![file("way-in/evil")], "way-in/evil"),
        (vec![("way-out/".into(), Hostile::Directory)], "way-out/"),
        (vec![link("way-out/evil", "x")], "way-out/evil"),
    ];
    for (entries, name) in cases {
        for bytes in [zip_of(&entries), tar_of(&entries)] {
            let place = Place::new();
            let before = place.around();
            let error = place.extract(&bytes).unwrap_err();
            assert!(
                matches!(&error, ExtractError::Escapes { entry, .. } if entry == name),
                "{error}"
            );
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(place.around(), before);
        }
    }
    assert!(!PathBuf::from(absolute).exists());
}

#[test]
fn docker_175_a_link_of_the_archive_is_no_way_out() {
    let entries = [link("dir", "../outside"), file("dir/precious"), file("dir/evil")];
    for bytes in [zip_of(&entries), tar_of(&entries)] {
        let place = Place::new();
        let before = place.around();
        // The files come first, so that the link finds a directory that is not empty in its place.
        let error = place.extract(&bytes).unwrap_err();
        assert!(matches!(&error, ExtractError::Entry { entry, .. } if entry == "dir"), "{error}");
        assert_eq!(place.around(), before);
    }
}

#[test]
fn docker_175_hard_links_to_the_outside_are_refused() {
    for target in ["../outside/precious", "/etc/passwd", "way-out/precious", "file-link"] {
        let place = Place::new();
        let before = place.around();
        let entries = [("evil".to_owned(), Hostile::HardLink(target.to_owned()))];
        let error = place.extract(&tar_of(&entries)).unwrap_err();
        assert!(
            matches!(&error, ExtractError::Escapes { entry, .. } if entry == "evil"),
            "{error}"
        );
        assert_eq!(place.around(), before);
    }
    let place = Place::new();
    let entries = [file("a"), ("b".to_owned(), Hostile::HardLink("a".to_owned()))];
    place.extract(&tar_of(&entries)).unwrap();
    assert_eq!(fs::metadata(place.root().join("b")).unwrap().nlink(), 2);
}

#[test]
fn files_and_links_in_the_place_of_an_entry_are_replaced() {
    for bytes in
        [zip_of(&[file("file-link"), file("plain")]), tar_of(&[file("file-link"), file("plain")])]
    {
        let place = Place::new();
        fs::write(place.root().join("plain"), "a longer text than before").unwrap();
        let before = place.around();
        assert_eq!(place.extract(&bytes).unwrap(), Extracted { entries: 2 });
        assert_eq!(place.around(), before);
        for name in ["file-link", "plain"] {
            assert!(fs::symlink_metadata(place.root().join(name)).unwrap().is_file());
            assert_eq!(fs::read(place.root().join(name)).unwrap(), b"evil");
        }
    }
}

#[test]
fn gzip_and_what_is_no_archive_are_refused() {
    let place = Place::new();
    assert!(matches!(place.extract(&[0x1f, 0x8b, 8, 0]), Err(ExtractError::Gzip)));
    assert!(matches!(place.extract(b"hello"), Err(ExtractError::Zip { .. })));
    assert!(matches!(place.extract(b""), Err(ExtractError::Zip { .. })));
    let cut = tar_of(&[file("a")]);
    assert!(place.extract(&cut[..cut.len() / 2]).is_err());
}

#[test]
fn a_changed_byte_in_a_zip_is_noticed() {
    let place = Place::new();
    let mut bytes = zip_of(&[file("a")]);
    let at = bytes.windows(2).position(|w| w == b"a\x00" || w[0] == b'a').unwrap() + 2;
    bytes[at] ^= 0x55;
    assert!(place.extract(&bytes).is_err());
}

fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "..",
        ".",
        "",
        "way-out",
        "way-in",
        "inside",
        "file-link",
        "outside",
        "precious",
    ]);
    (any::<bool>(), prop::collection::vec(part, 1..4)).prop_map(|(rooted, parts)| {
        let name = parts.join("/");
        if rooted && name.starts_with('a') { format!("/{name}") } else { name }
    })
}

fn hostile() -> impl Strategy<Value = Hostile> {
    prop_oneof![
        Just(Hostile::File),
        Just(Hostile::Directory),
        name().prop_map(Hostile::Symlink),
        name().prop_map(Hostile::HardLink),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn nothing_is_ever_written_outside(
        first in prop::collection::vec((name(), hostile()), 1..6),
        second in prop::collection::vec((name(), hostile()), 1..6),
        tar in any::<bool>(),
    ) {
        let place = Place::new();
        let before = place.around();
        for entries in [first, second] {
            let bytes = if tar { tar_of(&entries) } else { zip_of(&entries) };
            let _ = place.extract(&bytes);
            prop_assert_eq!(place.around(), before.clone());
        }
    }
}

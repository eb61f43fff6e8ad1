use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;

use super::*;
use crate::archive::extract::extract;

const ALL: [Format; 3] = [Format::Zip, Format::ZipZstd, Format::TarZstd];

/// What a tree looks like: path to kind, mode, time and content.
type Listing = BTreeMap<PathBuf, (char, u32, i64, Vec<u8>)>;

fn listing(root: &Path) -> Listing {
    walkdir::WalkDir::new(root)
        .min_depth(1)
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            let metadata = entry.metadata().unwrap();
            let (kind, content) = if metadata.is_dir() {
                ('d', Vec::new())
            } else if metadata.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                ('l', target.as_os_str().as_bytes().to_vec())
            } else {
                ('f', fs::read(entry.path()).unwrap())
            };
            (path, (kind, metadata.mode() & 0o7777, metadata.mtime(), content))
        })
        .collect()
}

fn set(path: &Path, mode: u32, modified: u64) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    File::open(path).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(modified)).unwrap();
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

/// A tree with one of everything, and the list of its files.
fn example() -> (tempfile::TempDir, Vec<PathBuf>) {
    let project = tempfile::tempdir().unwrap();
    let root = project.path();
    fs::create_dir_all(root.join("bin/deep")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    let text = "all work and no play ".repeat(200_000);
    for (name, content, mode) in [
        ("bin/tool", b"#!/bin/sh\n".to_vec(), 0o755),
        ("bin/deep/secret", b"x".to_vec(), 0o600),
        ("bin/setuid", b"s".to_vec(), 0o4755),
        ("large.txt", text.into_bytes(), 0o644),
        ("large.bin", noise(3 << 20, 7), 0o640),
        ("nothing", Vec::new(), 0o644),
        ("read-only", b"y".to_vec(), 0o400),
        ("umlaut-ü and space", b"z".to_vec(), 0o644),
    ] {
        fs::write(root.join(name), content).unwrap();
        set(&root.join(name), mode, 1_600_000_001);
    }
    symlink("tool", root.join("bin/link")).unwrap();
    symlink("/usr/bin/python3", root.join("python")).unwrap();
    symlink("missing", root.join("dangling")).unwrap();
    for (name, mode) in [("bin/deep", 0o700), ("bin", 0o755), ("empty", 0o555)] {
        set(&root.join(name), mode, 1_500_000_003);
    }
    let files = listing(root).into_keys().collect();
    (project, files)
}

fn pack(format: Format, level: Level, project: &Path, files: &[PathBuf]) -> Vec<u8> {
    let mut out = Vec::new();
    let entries = write(format, level, project, files, &mut out).unwrap();
    assert!(format == Format::Raw || format == Format::Gzip || entries == files.len() as u64);
    out
}

fn unpack(bytes: &[u8]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("archive"), bytes).unwrap();
    fs::create_dir(place.path().join("into")).unwrap();
    extract(&place.path().join("archive"), &place.path().join("into")).unwrap();
    place
}

/// Times of symbolic links cannot be set by the standard library, so they are not compared.
fn without_link_times(mut listing: Listing) -> Listing {
    for (kind, _, modified, _) in listing.values_mut() {
        if *kind == 'l' {
            *modified = 0;
        }
    }
    listing
}

#[test]
fn docker_161_163_modes_times_and_links_survive_in_every_format() {
    let (project, files) = example();
    let before = without_link_times(listing(project.path()));
    for format in ALL {
        for level in [Level::Fastest, Level::Default, Level::Slowest] {
            let place = unpack(&pack(format, level, project.path(), &files));
            let after = without_link_times(listing(&place.path().join("into")));
            assert_eq!(
                after.keys().collect::<Vec<_>>(),
                before.keys().collect::<Vec<_>>(),
                "{format:?} {level:?}"
            );
            for (path, entry) in &before {
                assert!(after[path] == *entry, "{format:?} {level:?} {}", path.display());
            }
        }
    }
}

#[test]
fn docker_168_a_zip_has_unix_modes_links_sorted_names_and_directory_entries() {
    let (project, files) = example();
    let bytes = pack(Format::Zip, Level::Default, project.path(), &files);
    let mut zip = ::zip::ZipArchive::new(io::Cursor::new(bytes)).unwrap();
    let names: Vec<String> =
        (0..zip.len()).map(|n| zip.by_index(n).unwrap().name().unwrap().into_owned()).collect();
    assert!(names.is_sorted(), "{names:?}");
    assert!(names.contains(&"bin/".to_owned()) && names.contains(&"empty/".to_owned()));
    assert_eq!(zip.by_name("bin/tool").unwrap().unix_mode(), Some(0o100_755));
    let mut link = zip.by_name("bin/link").unwrap();
    assert_eq!(link.unix_mode().map(|mode| mode & 0o170_000), Some(0o120_000));
    let mut target = String::new();
    link.read_to_string(&mut target).unwrap();
    assert_eq!(target, "tool");
}

/// Whether `tool` is there to judge our archives.
fn has(tool: &str) -> bool {
    Command::new(tool).arg("--help").output().is_ok()
}

#[test]
fn other_programs_read_our_archives() {
    let (project, files) = example();
    let before = without_link_times(listing(project.path()));
    let place = tempfile::tempdir().unwrap();
    let run = |into: &str, program: &str, arguments: &[&str]| {
        let into = place.path().join(into);
        fs::create_dir(&into).unwrap();
        let output = Command::new(program).args(arguments).current_dir(&into).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        without_link_times(listing(&into))
    };
    for (format, name) in [(Format::Zip, "a.zip"), (Format::TarZstd, "a.tar.zst")] {
        let bytes = pack(format, Level::Default, project.path(), &files);
        fs::write(place.path().join(name), bytes).unwrap();
    }
    if has("unzip") {
        // unzip drops set-user-id bits unless told to keep them.
        assert!(run("unzip", "unzip", &["-q", "-K", "../a.zip"]) == before);
    }
    if has("tar") && has("zstd") {
        assert!(run("tar", "tar", &["--zstd", "-xpf", "../a.tar.zst"]) == before);
    }
    if has("python3") {
        let script = "import zipfile; z = zipfile.ZipFile('../a.zip'); assert z.testzip() is None";
        run("python", "python3", &["-c", script]);
    }
}

#[test]
fn seventy_thousand_entries_need_zip64_and_get_it() {
    let project = tempfile::tempdir().unwrap();
    // The same name over and over: a zip does not mind, and the directory stays small.
    fs::write(project.path().join("a"), "").unwrap();
    let files = vec![PathBuf::from("a"); 70_000];
    let bytes = pack(Format::Zip, Level::Default, project.path(), &files);
    let end = &bytes[bytes.len() - 22..];
    assert_eq!(&end[8..12], &[0xff; 4]);
    assert_eq!(&bytes[bytes.len() - 42..bytes.len() - 38], &0x0706_4b50_u32.to_le_bytes());
    if has("python3") {
        let path = project.path().join("a.zip");
        fs::write(&path, bytes).unwrap();
        let script = "import sys, zipfile; print(len(zipfile.ZipFile(sys.argv[1]).infolist()))";
        let output = Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "70000");
    }
}

#[test]
fn members_and_offsets_over_four_gigabytes_need_zip64_and_get_it() {
    use super::pack::{Framing, Packed};

    /// Leaves a hole for every large piece.
    struct Sparse(File);
    impl Write for Sparse {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.len() < 1 << 20 {
                return self.0.write(bytes);
            }
            io::Seek::seek_relative(&mut self.0, i64::try_from(bytes.len()).unwrap())?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let project = tempfile::tempdir().unwrap();
    fs::write(project.path().join("large"), "").unwrap();
    fs::write(project.path().join("small"), "").unwrap();
    let mut large = Member::of(project.path(), Path::new("large")).unwrap().unwrap();
    let small = Member::of(project.path(), Path::new("small")).unwrap().unwrap();
    let path = project.path().join("a.zip");
    let mut framing = zip::ZipFraming::new(Sparse(File::create(&path).unwrap()));
    let piece = vec![0; 64 << 20];
    large.size = 68 * piece.len() as u64;
    framing.begin(&large, compress::Codec::Deflate(5)).unwrap();
    for _ in 0..68 {
        framing.part(&piece).unwrap();
    }
    framing.end(&large, 7, large.size).unwrap();
    let data = b"content".to_vec();
    let packed = Packed { codec: None, crc: super::pack::crc32(&data), size: 7, data };
    framing.whole(&small, packed).unwrap();
    assert_eq!(framing.finish().unwrap(), 2);

    let mut read = ::zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
    let found = read.by_index_raw(0).unwrap();
    assert_eq!((found.size(), found.compressed_size()), (large.size, large.size));
    drop(found);
    let mut content = String::new();
    read.by_name("small").unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    if has("python3") {
        let script = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); \
                      print(z.infolist()[0].file_size, z.read('small').decode())";
        let output = Command::new("python3").args(["-c", script]).arg(&path).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(printed, format!("{} content", large.size), "{output:?}");
    }
}

#[test]
fn docker_169_gzip_has_one_member_for_each_regular_file() {
    let (project, files) = example();
    let bytes = pack(Format::Gzip, Level::Default, project.path(), &files);
    let mut expected = Vec::new();
    let mut rest = &bytes[..];
    for path in &files {
        let whole = project.path().join(path);
        if !fs::symlink_metadata(&whole).unwrap().is_file() {
            continue;
        }
        let content = fs::read(whole).unwrap();
        let mut member = flate2::bufread::GzDecoder::new(rest);
        let mut read = Vec::new();
        member.read_to_end(&mut read).unwrap();
        assert!(read == content, "{}", path.display());
        let header = member.header().unwrap();
        if path.to_str().unwrap().is_ascii() {
            assert_eq!(header.filename().unwrap(), path.file_name().unwrap().as_bytes());
            assert_eq!(header.comment().unwrap(), path.as_os_str().as_bytes());
        } else {
            assert!(header.comment().unwrap().starts_with(b"e:"));
        }
        rest = member.into_inner();
        expected.extend(content);
    }
    assert!(rest.is_empty());
    let mut all = Vec::new();
    flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut all).unwrap();
    assert!(all == expected);
}

#[test]
fn docker_170_raw_with_two_files_fails() {
    let project = tempfile::tempdir().unwrap();
    fs::write(project.path().join("a"), "one").unwrap();
    fs::write(project.path().join("b"), "two").unwrap();
    assert_eq!(pack(Format::Raw, Level::Default, project.path(), &["a".into()]), b"one");
    let two = ["a".into(), "b".into()];
    let error = write(Format::Raw, Level::Default, project.path(), &two, io::sink()).unwrap_err();
    assert_eq!(error.to_string(), "a raw artifact must be exactly one file, but 2 were found");
}

#[test]
fn sockets_and_fifos_are_left_out() {
    let project = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(project.path().join("socket")).unwrap();
    fs::write(project.path().join("a"), "one").unwrap();
    for format in ALL {
        let files = ["a".into(), "socket".into()];
        let mut out = Vec::new();
        assert_eq!(write(format, Level::Default, project.path(), &files, &mut out).unwrap(), 1);
    }
}

#[test]
fn a_file_that_vanished_is_named() {
    let project = tempfile::tempdir().unwrap();
    let files = ["gone".into()];
    let error = write(Format::Zip, Level::Default, project.path(), &files, io::sink()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read `gone`");
}

#[test]
fn a_writer_that_fails_ends_the_work() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (project, files) = example();
    for format in [Format::Zip, Format::ZipZstd, Format::TarZstd, Format::Gzip] {
        let error = write(format, Level::Default, project.path(), &files, Full(1000)).unwrap_err();
        assert!(matches!(error, ArchiveError::Write { .. }), "{format:?} {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_packed_comes_back(
        files in prop::collection::btree_map(
            "[a-c]{1,2}(/[a-zé ]{1,3}){0,2}",
            (prop::collection::vec(any::<u8>(), 0..2000), 1..=2_500_usize, any::<u16>(), 0..2_000_000_000_u64),
            0..12,
        ),
        level in prop::sample::select(vec![
            Level::Fastest, Level::Fast, Level::Default, Level::Slow, Level::Slowest,
        ]),
    ) {
        let project = tempfile::tempdir().unwrap();
        for (name, (content, times, mode, modified)) in &files {
            let path = project.path().join(name);
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.is_dir() {
                fs::write(&path, content.repeat(*times)).unwrap();
                set(&path, u32::from(*mode) & 0o777 | 0o400, *modified);
            }
        }
        let before = listing(project.path());
        let list: Vec<PathBuf> = before.keys().cloned().collect();
        for format in ALL {
            let place = unpack(&pack(format, level, project.path(), &list));
            prop_assert!(listing(&place.path().join("into")) == before, "{:?}", format);
        }
    }
}

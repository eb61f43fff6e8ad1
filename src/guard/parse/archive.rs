//! Archives that the engine is going to unpack, read first (G-64, G-72). Pure but for reading.
//!
//! A reader of tar of its own, stricter than the engine's: what two readers could take in two
//! ways (sparse files, base-256 sizes, extended sizes, two long names for one entry) is refused.

use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use serde_json::Value;

use crate::guard::{ids::is_id, image::Reference, refusal::Refusal};

use super::json;

/// How large a Dockerfile may be.
const DOCKERFILE: u64 = 1 << 20;
/// How large a list of images may be.
const MANIFEST: u64 = 4 << 20;
/// How large the records before an entry may be.
const EXTENDED: u64 = 1 << 20;
/// How many entries there may be.
const ENTRIES: usize = 2_000_000;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Link,
    Special,
}

fn bad(what: &str) -> Refusal {
    Refusal::malformed(&format!("the archive {what}"), "G-72")
}

/// Reads the plain or gzip-compressed archive to its end and gives the Dockerfile in it.
///
/// # Errors
/// When it cannot be read in one way only, or there is not exactly one such Dockerfile.
pub fn dockerfile(archive: impl Read, wanted: &str, most: u64) -> Result<Vec<u8>, Refusal> {
    let wanted = if wanted.is_empty() { "Dockerfile" } else { wanted };
    let wanted = clean(wanted)?;
    let any_case = wanted == "Dockerfile";
    let (mut found, mut count) = (Vec::new(), 0);
    walk(archive, most, |name, kind, size, content| {
        if name == wanted || any_case && name.eq_ignore_ascii_case(&wanted) {
            count += 1;
            if kind != Kind::File || size > DOCKERFILE {
                return Err(bad("has a Dockerfile that is no plain file of up to 1 MiB"));
            }
            content.read_to_end(&mut found).map_err(unreadable)?;
        }
        Ok(())
    })?;
    match count {
        1 => Ok(found),
        0 => Err(bad(&format!("does not have the Dockerfile {wanted}"))),
        _ => Err(bad(&format!("has the Dockerfile {wanted} more than once"))),
    }
}

/// A tag that an archive makes, and the id that its image would have by what the archive says.
pub type Loaded = (Reference, Option<String>);

/// Reads an archive of images to its end and gives the tags that it would make.
///
/// # Errors
/// When it cannot be read in one way only, or is not as `docker save` makes them.
pub fn images(archive: impl Read, most: u64) -> Result<Vec<Loaded>, Refusal> {
    const LISTS: [&str; 3] = ["manifest.json", "repositories", "index.json"];
    let mut lists: [Option<Vec<u8>>; 3] = [None, None, None];
    walk(archive, most, |name, kind, size, content| {
        let Some(which) = LISTS.iter().position(|list| list.eq_ignore_ascii_case(name)) else {
            return Ok(());
        };
        if LISTS[which] != name || kind != Kind::File || size > MANIFEST || lists[which].is_some() {
            return Err(bad(&format!("has no single plain {}", LISTS[which])));
        }
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(unreadable)?;
        lists[which] = Some(bytes);
        Ok(())
    })?;
    let [manifest, repositories, index] = lists;
    let manifest = manifest.ok_or_else(|| bad("has no manifest.json"))?;
    let mut tags = manifest_tags(&json::value(&manifest)?)?;
    if let Some(bytes) = repositories {
        for (repository, found) in json::object(&bytes)? {
            let found = found.as_object().ok_or_else(|| bad("has odd repositories"))?;
            for tag in found.keys() {
                let reference = Reference::parse(&format!("{repository}:{tag}"));
                let reference = reference.ok_or_else(|| bad("names an odd tag"))?;
                if tags.iter().all(|(known, _)| *known != reference) {
                    tags.push((reference, None));
                }
            }
        }
    }
    if let Some(bytes) = index {
        let names: Vec<Reference> = tags.iter().map(|(name, _)| name.clone()).collect();
        index_names(&Value::Object(json::object(&bytes)?), &names)?;
    }
    Ok(tags)
}

/// The image's id by the name of its configuration: `HEX.json`, or `blobs/sha256/HEX`.
fn id_of(config: &str) -> Option<String> {
    let name = config.rsplit('/').next().unwrap_or_default();
    Some(format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name))).filter(|id| is_id(id))
}

fn manifest_tags(manifest: &Value) -> Result<Vec<Loaded>, Refusal> {
    let odd = || bad("has an odd manifest.json");
    let list = manifest.as_array().ok_or_else(odd)?;
    let configs: Vec<&str> = list.iter().filter_map(|item| item.get("Config")?.as_str()).collect();
    let mut tags = Vec::new();
    for item in list {
        let id = item.get("Config").and_then(Value::as_str).and_then(id_of);
        for (key, value) in item.as_object().ok_or_else(odd)? {
            match (&**key, value) {
                ("Config", Value::String(_)) | ("RepoTags", Value::Null) => {}
                ("Layers", Value::Array(layers)) if layers.iter().all(Value::is_string) => {}
                ("RepoTags", Value::Array(names)) => {
                    for name in names {
                        let name = name.as_str().ok_or_else(odd)?;
                        let tag = Reference::parse(name).ok_or_else(|| bad("names an odd tag"))?;
                        tags.push((tag, id.clone()));
                    }
                }
                // An image of the same archive.
                ("Parent", Value::String(parent))
                    if parent.is_empty()
                        || configs.iter().any(|config| {
                            config.contains(parent.trim_start_matches("sha256:"))
                        }) => {}
                ("LayerSources", value) if value.as_object().is_none_or(sources_are_local) => {}
                _ => return Err(odd()),
            }
        }
    }
    Ok(tags)
}

/// Sources with addresses would be fetched by the engine.
fn sources_are_local(sources: &serde_json::Map<String, Value>) -> bool {
    sources.values().all(|source| {
        source.as_object().is_some_and(|source| {
            source.iter().all(|(key, value)| match &**key {
                "mediaType" | "digest" => value.is_string(),
                "size" => value.is_i64(),
                _ => json::is_empty(value),
            })
        })
    })
}

/// All names in an index's annotations must be among the tags that were judged.
fn index_names(index: &Value, tags: &[Reference]) -> Result<(), Refusal> {
    match index {
        Value::Array(items) => items.iter().try_for_each(|item| index_names(item, tags)),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            if key.to_ascii_lowercase().ends_with("image.name") {
                let name = value.as_str().and_then(Reference::parse);
                if !name.is_some_and(|name| tags.contains(&name)) {
                    return Err(bad("has an index that names other tags than its manifest"));
                }
            }
            index_names(value, tags)
        }),
        _ => Ok(()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: io::Error) -> Refusal {
    bad(&format!("cannot be read: {error}"))
}

/// The name as the engine takes it: no `./`, no slash at either end.
fn clean(name: &str) -> Result<String, Refusal> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(bad("has a name that leads up")),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Goes through all entries. No entry may lie below a link.
fn walk(
    archive: impl Read,
    most: u64,
    mut each: impl FnMut(&str, Kind, u64, &mut dyn Read) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut reader = decompressed(archive)?.take(most);
    let mut links = BTreeSet::new();
    let mut parents = BTreeSet::new();
    let (mut long, mut count) = (None::<String>, 0);
    while let Some(header) = block(&mut reader)? {
        if header.iter().all(|b| *b == 0) {
            match block(&mut reader)? {
                Some(second) if second.iter().any(|b| *b != 0) => {
                    return Err(bad("has a lone empty block"));
                }
                _ => break,
            }
        }
        count += 1;
        if count > ENTRIES {
            return Err(bad("has too many entries"));
        }
        let (name, kind, size) = entry(&header)?;
        let padded = size.div_ceil(512) * 512;
        if let Extended::Some(kind) = kind.0 {
            if size > EXTENDED {
                return Err(bad("has an extended header that is too large"));
            }
            let mut bytes = Vec::new();
            (&mut reader).take(padded).read_to_end(&mut bytes).map_err(unreadable)?;
            if bytes.len() as u64 != padded {
                return Err(bad("is cut off"));
            }
            bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
            if let Some(name) = kind.name(&bytes)?
                && long.replace(name).is_some()
            {
                return Err(bad("has two long names for an entry"));
            }
            continue;
        }
        let kind = kind.1;
        let is_directory = kind == Kind::Directory || long.as_ref().unwrap_or(&name).ends_with('/');
        let kind = if is_directory && kind == Kind::File { Kind::Directory } else { kind };
        if kind != Kind::File && size != 0 {
            return Err(bad("has content where none belongs"));
        }
        let name = clean(&long.take().unwrap_or(name))?;
        if kind == Kind::Link {
            links.insert(name.clone());
        }
        let mut above = name.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if !parents.insert(parent.to_owned()) {
                break;
            }
            above = parent;
        }
        let mut content = (&mut reader).take(size);
        each(&name, kind, size, &mut content)?;
        let read = size - content.limit();
        let skipped = io::copy(&mut (&mut reader).take(padded - read), &mut io::sink())
            .map_err(unreadable)?;
        if skipped != padded - read {
            return Err(bad("is cut off"));
        }
    }
    // What follows the end is no archive any more.
    io::copy(&mut reader, &mut io::sink()).map_err(unreadable)?;
    if reader.limit() == 0 {
        return Err(Refusal {
            status: 413,
            message: "guard: the archive is too large (G-86)".into(),
            rule: "G-86",
        });
    }
    if links.iter().any(|link| parents.contains(link)) {
        return Err(bad("has an entry below a link"));
    }
    Ok(())
}

/// A record about the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Record {
    Pax,
    PaxGlobal,
    LongName,
    LongLink,
}

enum Extended {
    None,
    Some(Record),
}

impl Record {
    /// The name that it gives the next entry.
    fn name(self, bytes: &[u8]) -> Result<Option<String>, Refusal> {
        let text = |bytes: &[u8]| {
            let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
            String::from_utf8(bytes.to_vec())
                .ok()
                .filter(|text| !text.contains('\0'))
                .ok_or_else(|| bad("has an odd long name"))
        };
        match self {
            Self::LongName => text(bytes).map(Some),
            Self::LongLink => Ok(None),
            Self::Pax => records(bytes, |key| {
                [
                    "mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment", "path",
                    "linkpath",
                ]
                .contains(&key)
                    || key.starts_with("SCHILY.")
                    || key.starts_with("LIBARCHIVE.")
            }),
            Self::PaxGlobal => records(bytes, |key| key == "comment"),
        }
    }
}

/// Records of the form `LENGTH KEY=VALUE\n`; gives the one named `path`.
fn records(mut bytes: &[u8], known: impl Fn(&str) -> bool) -> Result<Option<String>, Refusal> {
    let odd = || bad("has an odd extended header");
    let mut path = None;
    while !bytes.is_empty() {
        let blank = bytes.iter().take(8).position(|b| *b == b' ').ok_or_else(odd)?;
        let digits = std::str::from_utf8(&bytes[..blank]).map_err(|_| odd())?;
        if digits.starts_with(['0', '+']) {
            return Err(odd());
        }
        let length: usize = digits.parse().map_err(|_| odd())?;
        let record = bytes.get(blank + 1..length).ok_or_else(odd)?;
        bytes = &bytes[length..];
        let record = record.strip_suffix(b"\n").ok_or_else(odd)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(odd)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| odd())?;
        if !known(key) {
            return Err(bad(&format!("has an extended header {key}")));
        }
        if key == "path" {
            let value = String::from_utf8(record[equals + 1..].to_vec()).map_err(|_| odd())?;
            if value.is_empty() || value.contains('\0') || path.replace(value).is_some() {
                return Err(odd());
            }
        }
    }
    Ok(path)
}

fn entry(header: &[u8; 512]) -> Result<(String, (Extended, Kind), u64), Refusal> {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
        .sum();
    if octal(&header[148..156]) != Some(sum) {
        return Err(bad("has a wrong checksum"));
    }
    // Another format keeps times where this one keeps its prefix.
    if &header[508..512] == b"tar\0" {
        return Err(bad("is of an old format"));
    }
    let size = octal(&header[124..136]).ok_or_else(|| bad("has an odd size"))?;
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8(bytes[..end].to_vec()).map_err(|_| bad("has a name that is no text"))
    };
    let mut name = text(&header[..100])?;
    if &header[257..263] == b"ustar\0" && header[345] != 0 {
        name = format!("{}/{name}", text(&header[345..500])?);
    }
    let kind = match header[156] {
        b'0' | 0 => Kind::File,
        b'5' => Kind::Directory,
        b'1' | b'2' => Kind::Link,
        b'3' | b'4' | b'6' => Kind::Special,
        b'x' => return Ok((name, (Extended::Some(Record::Pax), Kind::File), size)),
        b'g' => return Ok((name, (Extended::Some(Record::PaxGlobal), Kind::File), size)),
        b'L' => return Ok((name, (Extended::Some(Record::LongName), Kind::File), size)),
        b'K' => return Ok((name, (Extended::Some(Record::LongLink), Kind::File), size)),
        _ => return Err(bad("has an entry of an unknown kind")),
    };
    Ok((name, (Extended::None, kind), size))
}

/// A number as octal digits, with blanks before and a blank or NUL after.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches([' ', '\0']);
    if text.is_empty() {
        return Some(0);
    }
    if !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        return None;
    }
    u64::from_str_radix(text, 8).ok()
}

/// The next block; `None` at the end, which must not be within one.
fn block(reader: &mut impl Read) -> Result<Option<[u8; 512]>, Refusal> {
    let mut block = [0; 512];
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..]).map_err(unreadable)? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(bad("is cut off")),
            n => filled += n,
        }
    }
    Ok(Some(block))
}

/// The archive itself, of a plain or gzip-compressed one, as the engine tells them apart.
fn decompressed<'a>(mut archive: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Refusal> {
    let mut head = Vec::new();
    (&mut archive).take(10).read_to_end(&mut head).map_err(unreadable)?;
    let others: [&[u8]; 3] = [b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"];
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == *b"\x2a\x4d\x18";
    if others.iter().any(|magic| head.starts_with(magic)) || skippable {
        return Err(bad("must be plain or compressed with gzip"));
    }
    let gzip = head.starts_with(b"\x1f\x8b\x08");
    let whole = io::Cursor::new(head).chain(archive);
    Ok(if gzip {
        Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(whole)))
    } else {
        Box::new(io::BufReader::with_capacity(1 << 16, whole))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tar(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            if kind.is_file() {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, content.as_bytes()).unwrap();
            } else {
                header.set_size(0);
                builder.append_link(&mut header, name, content).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;
    const LINK: tar::EntryType = tar::EntryType::Symlink;

    #[test]
    fn g_72_the_dockerfile_is_found_once_and_plain() {
        let found = |entries: &[_], wanted| dockerfile(&*tar(entries), wanted, 1 << 20);
        let long = "d/".repeat(80) + "Dockerfile";
        assert_eq!(
            found(&[("Dockerfile", FILE, "FROM a"), ("b", FILE, "x")], "").unwrap(),
            b"FROM a"
        );
        assert_eq!(found(&[("x/D", FILE, "FROM b")], "./x//D").unwrap(), b"FROM b");
        assert_eq!(found(&[(&long, FILE, "FROM c")], &long).unwrap(), b"FROM c");
        for (entries, wanted) in [
            (&[("a", FILE, "")][..], ""),
            (&[("Dockerfile", FILE, "a"), ("./Dockerfile", FILE, "b")], ""),
            (&[("Dockerfile", FILE, "a"), ("dockerfile", FILE, "b")], ""),
            (&[("Dockerfile", LINK, "a")], ""),
            (&[("Dockerfile", FILE, "a"), ("d", LINK, "."), ("d/Dockerfile", FILE, "b")], ""),
            (&[("x/D", FILE, "a"), ("x", LINK, "y")], "x/D"),
            (&[("Dockerfile", FILE, "a")], "../Dockerfile"),
        ] {
            assert!(found(entries, wanted).is_err(), "{entries:?}");
        }
    }

    #[test]
    fn g_64_tags_of_an_archive_are_all_found() {
        let image = |manifest: &str| images(&*tar(&[("manifest.json", FILE, manifest)]), 1 << 20);
        let tags =
            image(r#"[{"Config":"a.json","RepoTags":["x:1","r.example/y"],"Layers":["l"]}]"#)
                .unwrap();
        assert_eq!(
            tags.iter().map(|(tag, id)| (tag.short(), id.is_none())).collect::<Vec<_>>(),
            [("x:1".to_owned(), true), ("r.example/y:latest".to_owned(), true)]
        );
        let id = "ab".repeat(32);
        for config in [format!("{id}.json"), format!("blobs/sha256/{id}")] {
            let tags = image(&format!(r#"[{{"Config":"{config}","RepoTags":["x:1"]}}]"#)).unwrap();
            assert_eq!(tags[0].1.as_deref(), Some(&*format!("sha256:{id}")));
        }
        for manifest in [
            r#"[{"Config":"a","repotags":["x:1"],"Layers":[]}]"#,
            r#"[{"Config":"a","RepoTags":[],"RepoTags":["x"],"Layers":[]}]"#,
            r#"[{"Config":"a","Parent":"sha256:abc","Layers":[]}]"#,
            r#"[{"Config":"a","LayerSources":{"sha256:a":{"urls":["http://x"]}}}]"#,
            "{}",
            "",
            "[1]",
        ] {
            assert!(image(manifest).is_err(), "{manifest}");
        }
        let twice = [("manifest.json", FILE, "[]"), ("./manifest.json", FILE, "[]")];
        assert!(images(&*tar(&twice), 1 << 20).is_err());
        let index = [
            ("manifest.json", FILE, "[]"),
            (
                "index.json",
                FILE,
                r#"{"manifests":[{"annotations":{"io.containerd.image.name":"x"}}]}"#,
            ),
        ];
        assert!(images(&*tar(&index), 1 << 20).is_err());
    }

    #[test]
    fn archives_that_are_compressed_oddly_or_too_large_are_refused() {
        let plain = tar(&[("Dockerfile", FILE, "FROM a")]);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut packed, &plain).unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(dockerfile(&*packed, "", 1 << 20).unwrap(), b"FROM a");
        assert_eq!(dockerfile(&*packed, "", 1024).unwrap_err().status, 413);
        assert!(dockerfile(&b"BZh91AY"[..], "", 1 << 20).is_err());
        assert!(dockerfile(&plain[..700], "", 1 << 20).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_panics(at in 0_usize..2560, byte: u8) {
            let mut bytes = tar(&[("Dockerfile", FILE, "FROM a"), ("b", LINK, "c")]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = dockerfile(&*bytes, "", 1 << 20);
        }
    }
}

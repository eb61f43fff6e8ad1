//! References to images in one canonical form (G-61). Pure.

use super::ids::{is_id, is_id_like};

/// Repository of the images that longshore composes for its helper containers. Jobs cannot use the
/// name.
pub(crate) const HELPER_REPOSITORY: &str = "longshore-helper";

/// Repository of the image from which the helper's program is put into other images. Jobs cannot use
/// the name.
pub(crate) const PORTABLE_REPOSITORY: &str = "longshore-portable";

/// The registry of references that name none: Docker Hub.
pub(super) const HUB: &str = "docker.io";

/// A reference by name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `docker.io`, or `HOST[:PORT]`.
    pub(crate) registry: String,
    /// With `library/` where the hub means it.
    pub(crate) path: String,
    /// The tag; `latest` when there is neither tag nor digest.
    pub(crate) tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads `text` as the engine does; `None` for what is none, or looks like an id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > 512 || is_id_like(text) {
            return None;
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_id(digest)) {
            return None;
        }
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].split_once(':') {
            Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
            None => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return None;
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => (HUB, name),
        };
        let registry = if registry == "index.docker.io" { HUB } else { registry };
        if !is_host(registry) || path.is_empty() || !path.split('/').all(is_component) {
            return None;
        }
        let path = if registry == HUB && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if is_id_like(path.strip_prefix("library/").unwrap_or(&path)) {
            return None;
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Some(Self { registry: registry.to_owned(), path, tag, digest: digest.map(str::to_owned) })
    }

    /// Parses `repo` with a tag given apart, as `POST /images/create` and `…/tag` have it. A tag
    /// that is a digest is one.
    #[must_use]
    pub(crate) fn of_parts(repository: &str, tag: &str) -> Option<Self> {
        if tag.is_empty() {
            return Self::parse(repository);
        }
        let whole = Self::parse(repository)?;
        let name = format!("{}/{}", whole.registry, whole.path);
        if tag.contains(':') {
            Self::parse(&format!("{name}@{tag}"))
        } else {
            Self::parse(&format!("{name}:{tag}"))
        }
    }

    /// The repository in full, `docker.io/library/debian`.
    #[must_use]
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The one spelling that is compared and sent.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.with_ends(self.repository())
    }

    /// The short spelling, `debian:latest`, that globs and people use.
    #[must_use]
    pub(crate) fn short(&self) -> String {
        let name = if self.registry == HUB {
            self.path.strip_prefix("library/").unwrap_or(&self.path).to_owned()
        } else {
            self.repository()
        };
        self.with_ends(name)
    }

    fn with_ends(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest);
        }
        name
    }
}

fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    tag.len() <= 128
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        })
        && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_component(part: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    edge(part.bytes().next())
        && edge(part.bytes().last())
        && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        && !part.contains("..")
        && !part.contains("___")
        && !part.contains("._")
        && !part.contains("_.")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn g_61_spellings_of_one_tag_are_one() {
        for text in [
            "x",
            "x:latest",
            "library/x",
            "docker.io/x",
            "index.docker.io/library/x:latest",
            "docker.io/library/x",
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.canonical(), "docker.io/library/x:latest", "{text}");
            assert_eq!(reference.short(), "x:latest");
        }
        let other = Reference::parse("r.example:5000/g/x:1").unwrap();
        assert_eq!(other.canonical(), "r.example:5000/g/x:1");
        assert_eq!(Reference::of_parts("x:1", "2").unwrap().short(), "x:2");
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(Reference::of_parts("x", &digest).unwrap().short(), format!("x@{digest}"));
        assert_eq!(Reference::of_parts("x:1", "").unwrap().short(), "x:1");
    }

    #[test]
    fn what_is_no_reference_or_looks_like_an_id_is_none() {
        let id = "0".repeat(64);
        for text in [
            "",
            "X",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:b:c",
            "a@b",
            "-a",
            "a b",
            "a?b",
            "a%2f",
            "sha256:abc",
            "deadbeefcafe",
            &id,
            &format!("library/{id}"),
            "a:\n",
            "é",
            "HOST.x/a",
            "docker.io/deadbeefcafe",
            "a.-/b",
        ] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn canonical_references_are_stable(text in "[a-z0-9.:/@_-]{1,40}") {
            if let Some(reference) = Reference::parse(&text) {
                let canonical = reference.canonical();
                prop_assert_eq!(Reference::parse(&canonical).map(|r| r.canonical()), Some(canonical.clone()));
                prop_assert_eq!(Reference::parse(&reference.short()).map(|r| r.canonical()), Some(canonical));
            }
        }
    }
}

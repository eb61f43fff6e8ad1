//! References to images in one canonical form, and the policy on them (G-60, G-61, G-65). Pure.

use globset::GlobBuilder;

use super::{Refusal, settings::ImagePolicy};

/// The default registry.
pub(super) const HUB: &str = "docker.io";

/// A reference by name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `docker.io`, or `HOST[:PORT]`.
    pub registry: String,
    /// With `library/` where the hub means it.
    pub path: String,
    /// The tag; `latest` when there is neither tag nor digest.
    pub tag: Option<String>,
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
    pub fn of_parts(repository: &str, tag: &str) -> Option<Self> {
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
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The one spelling that is compared and sent.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.with_ends(self.repository())
    }

    /// The short spelling, `debian:latest`, that globs and people use.
    #[must_use]
    pub fn short(&self) -> String {
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

    /// Whether policy shows this image to all jobs (G-60). A digest matches no glob on tags.
    #[must_use]
    pub fn is_shared(&self, policy: &ImagePolicy) -> bool {
        let short = self.short();
        policy.shared.iter().any(|glob| {
            GlobBuilder::new(glob)
                .literal_separator(true)
                .build()
                .is_ok_and(|glob| glob.compile_matcher().is_match(&short))
        })
    }

    /// Whether its registry may be asked (G-65).
    ///
    /// # Errors
    /// When it may not.
    pub fn may_ask(&self, policy: &ImagePolicy) -> Result<(), Refusal> {
        may_ask(&self.registry, policy)
    }
}

/// Whether a registry may be asked (G-65).
///
/// # Errors
/// When it may not.
pub fn may_ask(registry: &str, policy: &ImagePolicy) -> Result<(), Refusal> {
    if policy.registries.iter().any(|allowed| allowed == registry) {
        return Ok(());
    }
    Err(Refusal::because(
        &format!("the registry {registry} is not among those of this runner"),
        "G-65",
    ))
}

/// Whether `text` is an id in full.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && is_hex(hex))
}

/// Whether `text` could be an id, or the beginning of one that clients shorten to (G-48, G-61).
#[must_use]
pub fn is_id_like(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    (12..=64).contains(&hex.len()) && is_hex(hex) || text.starts_with("sha256:")
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
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

    #[test]
    fn g_60_shared_images_are_those_of_the_globs() {
        let policy = ImagePolicy {
            shared: vec!["ci/*:*".into(), "debian:*".into()],
            ..ImagePolicy::default()
        };
        for (text, shared) in [
            ("ci/base", true),
            ("docker.io/ci/base:1", true),
            ("debian", true),
            ("ci/a/b", false),
            ("evil/ci/base", false),
            ("r.example/debian", false),
            ("debian-x", false),
        ] {
            assert_eq!(Reference::parse(text).unwrap().is_shared(&policy), shared, "{text}");
        }
    }

    #[test]
    fn g_65_registries_are_exact() {
        let policy = ImagePolicy::default();
        assert!(Reference::parse("debian").unwrap().may_ask(&policy).is_ok());
        for text in ["localhost/x", "127.0.0.1:5000/x", "169.254.169.254/x", "docker.io.evil/x"] {
            assert!(Reference::parse(text).unwrap().may_ask(&policy).is_err(), "{text}");
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

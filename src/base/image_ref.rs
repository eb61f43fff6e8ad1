//! References to images, taken apart in one place.

/// The parts of a reference, which is not checked; [`is_reference`] does that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRef<'a> {
    /// All of it.
    pub text: &'a str,
    /// The registry's host, where it has one, and the path.
    pub name: &'a str,
    /// Tag, without its colon.
    pub tag: Option<&'a str>,
    /// Digest, without its `@`.
    pub digest: Option<&'a str>,
}

impl<'a> ImageRef<'a> {
    /// Takes `text` apart: a colon before the last slash belongs to a port.
    #[must_use]
    pub fn of(text: &'a str) -> Self {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        Self { text, name, tag, digest }
    }

    /// Under which registries' credentials are looked up: the name, with the registry's host in
    /// lower case, and `docker.io/` for images of Docker Hub.
    #[must_use]
    pub fn registry_path(&self) -> String {
        match self.name.split_once('/') {
            Some((host, path)) if is_host(host) => {
                let host = host.to_ascii_lowercase();
                let host = if host == "index.docker.io" { "docker.io" } else { &host };
                format!("{host}/{path}")
            }
            _ => format!("docker.io/{}", self.name),
        }
    }

    /// The reference with `:latest` when it has neither tag nor digest and is no id.
    #[must_use]
    pub fn with_tag(&self) -> String {
        if self.digest.is_some() || self.tag.is_some() || is_image_id(self.text) {
            return self.text.to_owned();
        }
        format!("{}:latest", self.text)
    }
}

/// Whether the first part of a reference names a registry, not a user of Docker Hub
/// (distribution/reference, `splitDockerDomain`).
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase)
}

/// Whether this can be a reference or an id at all: only the characters of one
/// (distribution/reference, `ReferenceRegexp`), and no path part that an address would be
/// normalised by.
#[must_use]
pub fn is_reference(text: &str) -> bool {
    let of_reference = |c: char| c.is_ascii_alphanumeric() || "._-/:@+".contains(c);
    !text.is_empty()
        && text.chars().all(of_reference)
        && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether this is an image's id and not a name.
#[must_use]
pub fn is_image_id(reference: &str) -> bool {
    let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
    hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_reduced_to_the_path_of_their_registry() {
        for (reference, path) in [
            ("alpine", "docker.io/alpine"),
            ("alpine:3", "docker.io/alpine"),
            ("group/image:3@sha256:00", "docker.io/group/image"),
            ("index.docker.io/group/image", "docker.io/group/image"),
            ("Registry.Example.com:5000/Group/image:3", "registry.example.com:5000/Group/image"),
            ("localhost/image", "localhost/image"),
        ] {
            assert_eq!(ImageRef::of(reference).registry_path(), path, "{reference}");
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_reference() {
        for good in ["alpine", "r.example:5000/g/x_y:1.0-rc.1", "x@sha256:00", "sha256:00"] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "a b", "../containers/x", "a/./b", "/a", "a//b", "a?b", "a%2fb", "$IMAGE"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn a_missing_tag_is_latest() {
        for (reference, tagged) in [
            ("alpine", "alpine:latest"),
            ("host:5000/alpine", "host:5000/alpine:latest"),
            ("alpine:3", "alpine:3"),
            ("alpine@sha256:00", "alpine@sha256:00"),
        ] {
            assert_eq!(ImageRef::of(reference).with_tag(), tagged);
        }
        let id = format!("sha256:{}", "0".repeat(64));
        assert_eq!(ImageRef::of(&id).with_tag(), id);
    }

    #[test]
    fn a_port_is_no_tag() {
        let parts = |text| {
            let ImageRef { name, tag, digest, .. } = ImageRef::of(text);
            (name, tag, digest)
        };
        assert_eq!(parts("h:5000/a"), ("h:5000/a", None, None));
        assert_eq!(parts("h:5000/a:1"), ("h:5000/a", Some("1"), None));
        assert_eq!(parts("a:1@sha256:00"), ("a", Some("1"), Some("sha256:00")));
        assert_eq!(parts("a@sha256:00"), ("a", None, Some("sha256:00")));
    }
}

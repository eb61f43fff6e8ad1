//! References to images. Pure.

/// A reference as registries' credentials are looked up by: without tag and digest, with the
/// registry's host in lower case, and `docker.io/` for images of Docker Hub.
#[must_use]
pub fn registry_path(reference: &str) -> String {
    let (name, _) = reference.split_once('@').unwrap_or((reference, ""));
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let name = match name[last..].find(':') {
        Some(colon) => &name[..last + colon],
        None => name,
    };
    match name.split_once('/') {
        Some((host, path)) if is_host(host) => {
            let host = host.to_ascii_lowercase();
            let host = if host == "index.docker.io" { "docker.io" } else { &host };
            format!("{host}/{path}")
        }
        _ => format!("docker.io/{name}"),
    }
}

/// Whether the first part of a reference names a registry, not a user of Docker Hub
/// (distribution/reference, `splitDockerDomain`).
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase)
}

/// The reference with `:latest` when it has neither tag nor digest.
#[must_use]
pub fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if reference.contains('@') || last.contains(':') || is_image_id(reference) {
        reference.to_owned()
    } else {
        format!("{reference}:latest")
    }
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
            assert_eq!(registry_path(reference), path, "{reference}");
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
            assert_eq!(with_tag(reference), tagged);
        }
        let id = format!("sha256:{}", "0".repeat(64));
        assert_eq!(with_tag(&id), id);
    }
}

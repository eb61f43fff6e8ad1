//! Where the source of a bind leads: to the workspace, to the guarded socket, or nowhere (G-52). Pure.

use std::path::PathBuf;

use crate::guard::{refusal::Refusal, settings::GuardSettings};

/// Where a path of the job leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindSource {
    /// To the guarded socket itself.
    Socket,
    /// To a directory that the job can bind, or below one.
    Mapped {
        /// The index of that directory in the settings' workspace.
        mapping: usize,
        /// The rest of the path: plain parts, possibly none.
        rest: PathBuf,
    },
}

/// Where `source`, as the job names it, leads (G-52).
///
/// # Errors
/// When it is not absolute, or nothing of it can be bound.
pub(super) fn bind_source(source: &str, settings: &GuardSettings) -> Result<BindSource, Refusal> {
    if source.chars().any(char::is_control) {
        return Err(Refusal::malformed("a bind's source has control characters", "G-52"));
    }
    let Some(clean) = clean(source) else {
        return Err(Refusal::malformed("a bind's source must be an absolute path", "G-52"));
    };
    if settings.socket_paths.contains(&clean) {
        return Ok(BindSource::Socket);
    }
    for (mapping, entry) in settings.workspace.iter().enumerate() {
        let root = entry.job.trim_end_matches('/');
        let rest = match clean.strip_prefix(root) {
            Some("") => "",
            Some(rest) if rest.starts_with('/') => &rest[1..],
            _ => continue,
        };
        return Ok(BindSource::Mapped { mapping, rest: PathBuf::from(rest) });
    }
    Err(Refusal::because(
        &format!(
            "the bind source {clean} exists only inside the job's container; \
             use a path in the job's project directory, or a volume"
        ),
        "G-52",
    ))
}

/// An absolute path without repeated slashes, `.` and `..`; `None` for a relative one.
fn clean(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::guard::settings::Mapping;

    fn settings() -> GuardSettings {
        let mut settings = GuardSettings::new("1", ("l".into(), "1".into()), "n", Path::new("/x"));
        for job in ["/builds/acme/app", "/cache/"] {
            let mapping = Mapping { job: job.to_owned(), host: "/host".into(), read_only: false };
            settings.workspace.push(mapping);
        }
        settings
    }

    #[test]
    fn g_52_sources_are_cleaned_and_lie_below_a_mapping_on_a_boundary() {
        let settings = settings();
        for (source, mapping, rest) in [
            ("/builds/acme/app", 0, ""),
            ("/builds/acme/app/", 0, ""),
            ("/builds//acme/./app/x/../data", 0, "data"),
            ("/../builds/acme/app/a b", 0, "a b"),
            ("/cache/x", 1, "x"),
        ] {
            let expected = BindSource::Mapped { mapping, rest: rest.into() };
            assert_eq!(bind_source(source, &settings), Ok(expected), "{source}");
        }
        for source in [
            "/builds/acme/app/../other",
            "/builds/acme",
            "/builds/acme/app-b",
            "/",
            "/tmp/foo",
            "/builds/acme/app/../../../etc",
            "/var/run",
            "/var/run/docker.sock/..",
            "/proc/self/root",
        ] {
            assert_eq!(bind_source(source, &settings).unwrap_err().status, 403, "{source}");
        }
        for source in ["relative", "", "./x", "/builds/acme/app/\n"] {
            assert_eq!(bind_source(source, &settings).unwrap_err().status, 400, "{source}");
        }
        for source in ["/var/run/docker.sock", "/run/./docker.sock", "/var/run//docker.sock"] {
            assert_eq!(bind_source(source, &settings), Ok(BindSource::Socket));
        }
    }
}

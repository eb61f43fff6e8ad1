//! Entries of `volumes`: `[source:]destination[:mode][,label][,propagation]`. Grammar only; what a
//! destination becomes is the plan's business.

use std::fmt;

/// One entry of `volumes`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Host path or name of a volume; `None` for a cache volume.
    pub source: Option<String>,
    /// Path in the container, with variables still in it.
    pub destination: String,
    /// What follows the destination, as written, without the first colon; empty for nothing.
    pub options: String,
}

/// Why an entry is not a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// No part of it is a path.
    #[error("the destination must be an absolute path")]
    Destination,
    /// It would cover the container's own root.
    #[error("the destination must not be `/`")]
    Root,
    /// Characters that no path or volume name of this grammar has.
    #[error("a path or volume name must not be empty or contain any of \\ * ? \" < > | or spaces")]
    Characters,
    /// An unknown, repeated or misplaced option.
    #[error(
        "the options are a mode (ro, rw, O), a label (z, Z) and a propagation \
         ([r]shared, [r]slave, [r]private), in this order"
    )]
    Options,
}

impl Volume {
    /// Takes `text` apart (GitLab Runner: `helpers/volumes/parser`, the Linux one).
    pub fn parse(text: &str) -> Result<Self, VolumeError> {
        let parts: Vec<&str> = text.split(':').collect();
        // A second part that is a path makes the first one a source: `/a:/b`, `name:/b`.
        let (source, destination, options) = match parts.as_slice() {
            [source, destination, options @ ..] if destination.starts_with('/') => {
                (Some(*source), *destination, options)
            }
            [destination, options @ ..] if destination.starts_with('/') => {
                (None, *destination, options)
            }
            _ => return Err(VolumeError::Destination),
        };
        if destination.trim_matches('/').is_empty() {
            return Err(VolumeError::Root);
        }
        let (destination, inline) = split_options(destination);
        let good = |text: &str| {
            !text.is_empty()
                && !text.contains(|c: char| "\\*?\"<>|".contains(c) || c.is_whitespace())
        };
        if !good(destination) || !source.is_none_or(good) {
            return Err(VolumeError::Characters);
        }
        let options = inline.into_iter().chain(options.iter().copied()).collect::<Vec<_>>();
        check_options(&options)?;
        Ok(Self {
            source: source.map(str::to_owned),
            destination: destination.to_owned(),
            options: options.join(":"),
        })
    }
}

impl Volume {
    /// Whether its source is an engine's socket.
    #[must_use]
    pub fn is_engine_socket(&self) -> bool {
        let source = self.source.as_deref().unwrap_or_default();
        source.starts_with('/') && source.trim_end_matches('/').ends_with("/docker.sock")
    }
}

/// A label or propagation may follow the destination after a comma as well as after a colon.
fn split_options(destination: &str) -> (&str, Option<&str>) {
    match destination.split_once(',') {
        Some((path, options)) if check_options(&[options]).is_ok() => (path, Some(options)),
        _ => (destination, None),
    }
}

fn check_options(options: &[&str]) -> Result<(), VolumeError> {
    let mut last = 0;
    for option in options.iter().flat_map(|part| part.split(',')) {
        let rank = match option.to_ascii_lowercase().as_str() {
            "ro" | "rw" | "o" => 1,
            "z" => 2,
            "shared" | "slave" | "private" | "rshared" | "rslave" | "rprivate" => 3,
            _ => return Err(VolumeError::Options),
        };
        if rank <= last {
            return Err(VolumeError::Options);
        }
        last = rank;
    }
    Ok(())
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}:")?;
        }
        f.write_str(&self.destination)?;
        if !self.options.is_empty() {
            write!(f, ":{}", self.options)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Result<(Option<String>, String, String), VolumeError> {
        Volume::parse(text).map(|v| (v.source, v.destination, v.options))
    }

    #[test]
    fn docker_107_the_forms_of_a_volume_are_told_apart() {
        let of = |source: Option<&str>, destination: &str, options: &str| {
            Ok((source.map(str::to_owned), destination.to_owned(), options.to_owned()))
        };
        assert_eq!(parts("/cache"), of(None, "/cache", ""));
        assert_eq!(parts("/cache:ro"), of(None, "/cache", "ro"));
        assert_eq!(parts("/host:/dst:ro"), of(Some("/host"), "/dst", "ro"));
        assert_eq!(parts("name:/dst/$CI_X"), of(Some("name"), "/dst/$CI_X", ""));
        assert_eq!(parts("/h:/d:ro,Z,rshared"), of(Some("/h"), "/d", "ro,Z,rshared"));
        assert_eq!(parts("/h:/d:rw:z"), of(Some("/h"), "/d", "rw:z"));
        assert_eq!(parts("/h:/d,z"), of(Some("/h"), "/d", "z"));
        let socket = "/var/run/docker.sock:/var/run/docker.sock";
        assert_eq!(Volume::parse(socket).unwrap().to_string(), socket);
    }

    #[test]
    fn docker_108_a_wrong_volume_says_what_is_wrong() {
        assert_eq!(parts("relative"), Err(VolumeError::Destination));
        assert_eq!(parts("/host:relative"), Err(VolumeError::Options));
        assert_eq!(parts("name:relative"), Err(VolumeError::Destination));
        assert_eq!(parts("/"), Err(VolumeError::Root));
        assert_eq!(parts("/host:/"), Err(VolumeError::Root));
        assert_eq!(parts("/host:/a b"), Err(VolumeError::Characters));
        assert_eq!(parts(":/dst"), Err(VolumeError::Characters));
        assert_eq!(parts("/host:/dst:z:ro"), Err(VolumeError::Options));
        assert_eq!(parts("/host:/dst:ro:ro"), Err(VolumeError::Options));
        assert_eq!(parts("/host:/dst:rx"), Err(VolumeError::Options));
        assert_eq!(parts(""), Err(VolumeError::Destination));
    }
}

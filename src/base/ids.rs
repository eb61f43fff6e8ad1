//! Names and numbers that must not be mixed up, and the hex that many are made of.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use super::random;

/// A job's number at its server, as in `PUT /jobs/:id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A project's number at its server.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ProjectId(pub i64);

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A runner's description in the configuration: what logs, traces and metrics call it. Several
/// runners may have the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunnerName(String);

impl RunnerName {
    /// Takes the name as it is written.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as it is written; empty when the runner has none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The part of a runner token that may be shown: in logs, container names and
/// `CI_RUNNER_SHORT_TOKEN`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShortToken(String);

impl ShortToken {
    /// How many characters of a token are shown, once its known prefixes are gone
    /// (GitLab Runner: `helpers.ShortenToken`).
    const LENGTH: usize = 9;

    /// Shortens `token`: strips `glrt-` with an optional `t1_`, `t2_`, `t3_`, or one of these
    /// alone, or `glrtr-`; then `glcbt-`; then `GR` and seven hex digits.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let partition = |t: &str| {
            ["t1_", "t2_", "t3_"].iter().find_map(|p| t.strip_prefix(p)).map(str::to_owned)
        };
        let mut rest = if let Some(t) = token.strip_prefix("glrt-") {
            partition(t).unwrap_or_else(|| t.to_owned())
        } else if let Some(t) = partition(token) {
            t
        } else {
            token.strip_prefix("glrtr-").unwrap_or(token).to_owned()
        };
        if let Some(t) = rest.strip_prefix("glcbt-") {
            rest = t.to_owned();
        }
        if let Some(t) = rest.strip_prefix("GR") {
            let is_hex = |c: char| c.is_ascii_hexdigit();
            if t.len() >= 7 && t.is_char_boundary(7) && t[..7].chars().all(is_hex) {
                rest = t[7..].to_owned();
            }
        }
        Self(rest.chars().take(Self::LENGTH).collect())
    }

    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShortToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// `N` random bytes in hex: a text that nobody can guess, or that nothing else has.
#[must_use]
pub fn random_hex<const N: usize>() -> String {
    hex(&random::bytes::<N>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_two_digits() {
        assert_eq!(hex(&[0, 0x0a, 0xf0, 0xff]), "000af0ff");
        assert_eq!(random_hex::<8>().len(), 16);
        assert_ne!(random_hex::<8>(), random_hex::<8>());
    }

    #[test]
    fn short_tokens_follow_the_vectors_of_the_job_api() {
        for (token, short) in [
            ("glrt-t1_ABCDEFGHIJKLMNOP", "ABCDEFGHI"),
            ("glrtr-ABCDEFGHIJKL", "ABCDEFGHI"),
            ("t3_ABCDEFGHIJKL", "ABCDEFGHI"),
            ("short", "short"),
            ("glcbt-64_yX2nqTq3v9mC1rT7eKfA", "64_yX2nqT"),
            ("GR1348941abcdefghijkl", "abcdefghi"),
        ] {
            assert_eq!(ShortToken::of(token).as_str(), short, "{token}");
        }
    }
}

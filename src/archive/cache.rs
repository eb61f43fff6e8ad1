//! Names of caches: keys as people write them become names of directories and objects that cannot
//! leave their place (docs/compatibility.md, "Cache keys" and "Where caches are kept"). Pure: the
//! helper handles the files, [`super::store`] the objects.

use sha2::{Digest, Sha256};

use crate::{
    base::ids::{ProjectId, ShortToken, hex},
    config::CacheConfig,
};

/// Name of the archive, whatever its format.
pub(crate) const ARCHIVE: &str = "cache.zip";

/// A cache's key that is safe to use in paths and object names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// As it is in paths.
    pub(crate) text: String,
    /// As people know it: for messages and metadata.
    pub(crate) human: String,
    /// It is not as it was written.
    pub(crate) changed: bool,
    hashed: bool,
}

impl Key {
    /// What to warn of, if the key had to be changed.
    #[must_use]
    pub(crate) fn warning(&self) -> Option<String> {
        self.changed.then(|| format!("cache key {:?} sanitized to {:?}", self.human, self.text))
    }
}

/// Why a cache is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// Nothing is left of the key.
    #[error("cache key {0:?} could not be sanitized")]
    Empty(String),
    /// The object would not be below its base.
    #[error("object `{0}` is outside the project's caches")]
    Outside(String),
}

/// Makes a key of `raw`, which is expanded already. With `hash` (`FF_HASH_CACHE_KEYS`) it is the
/// SHA-256 of it, and nothing must be changed. With `!hash` this gives the other name that the same
/// cache may have from before the flag was switched.
pub(crate) fn key(raw: &str, hash: bool) -> Result<Key, KeyError> {
    let text = if hash { hex(&Sha256::digest(raw)) } else { sanitize(raw) };
    if raw.is_empty() || text.is_empty() {
        return Err(KeyError::Empty(raw.to_owned()));
    }
    let changed = !hash && text != raw;
    Ok(Key { text, human: raw.to_owned(), changed, hashed: hash })
}

fn sanitize(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(c) = rest.chars().next() {
        let encoded = rest.get(..3).map(str::to_ascii_lowercase);
        let (decoded, length) = match (c, encoded.as_deref()) {
            (_, Some("%2f")) => ('/', 3),
            (_, Some("%2e")) => ('.', 3),
            ('\\', _) => ('/', 1),
            (c, _) => (c, c.len_utf8()),
        };
        text.push(decoded);
        rest = &rest[length..];
    }
    // Trimming may leave a `..` or nothing as the last part, so it goes on until nothing changes.
    loop {
        let cleaned = clean(&text);
        let trimmed = cleaned.trim_end();
        if trimmed == text {
            return text;
        }
        trimmed.clone_into(&mut text);
    }
}

/// The path as if `/` were above it, without slashes at its ends.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The keys to try when a cache is restored, and what to warn of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// In the order of trying.
    pub(crate) keys: Vec<Key>,
    /// Lines for the trace.
    pub(crate) warnings: Vec<String>,
}

/// The order in which keys are tried: `first`, the cache's own `fallback_keys`, and
/// `CACHE_FALLBACK_KEY` as `last`, which must not be a protected branch's cache.
#[must_use]
pub(crate) fn chain(first: Key, fallback_keys: &[String], last: Option<&str>, hash: bool) -> Chain {
    let mut chain = Chain { keys: vec![first], warnings: Vec::new() };
    let mut add = |raw: &str| match key(raw, hash) {
        Ok(key) => {
            chain.warnings.extend(key.warning());
            if chain.keys.iter().all(|other| other.text != key.text) {
                chain.keys.push(key);
            }
        }
        Err(error) => chain.warnings.push(error.to_string()),
    };
    fallback_keys.iter().filter(|key| !key.is_empty()).for_each(|key| add(key));
    match last {
        None | Some("") => {}
        Some(last) if is_protected(last) => chain
            .warnings
            .push(format!("CACHE_FALLBACK_KEY {last:?} not allowed: it ends in \"-protected\"")),
        Some(last) => add(last),
    }
    chain
}

/// Whether the key is the name that GitLab gives to caches of protected branches, in disguise too.
fn is_protected(key: &str) -> bool {
    [key, &sanitize(key)]
        .iter()
        .any(|key| key.trim_end_matches(['.', ' ', '/']).ends_with("-protected"))
}

/// The local archive in the helper's container; `directory` is that of the project's caches.
#[must_use]
pub(crate) fn local_path(directory: &str, key: &Key) -> String {
    format!("{}/{}/{ARCHIVE}", directory.trim_end_matches('/'), key.text)
}

/// The object in the store. No file name is appended to the key.
pub(crate) fn object_name(
    config: &CacheConfig,
    token: &ShortToken,
    project_id: ProjectId,
    key: &Key,
) -> Result<String, KeyError> {
    let runner = if config.shared { String::new() } else { format!("runner/{token}") };
    let base = clean(&format!("{}/{runner}/project/{project_id}", config.path));
    let name = if key.hashed {
        // Objects of one project over many prefixes.
        clean(&format!("{base}/{}/{}", key.text.get(..2).unwrap_or_default(), key.text))
    } else {
        clean(&format!("{base}/{}", key.text))
    };
    if name.strip_prefix(&base).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/')) {
        Ok(name)
    } else {
        Err(KeyError::Outside(name))
    }
}

/// Whether an archive of `size` bytes stays local.
#[must_use]
pub(crate) fn is_too_large(config: &CacheConfig, size: u64) -> bool {
    config.max_uploaded_archive_size > 0 && size > config.max_uploaded_archive_size
}

/// Whether a local archive makes a download needless: it is not older than the object. Times are in
/// seconds since 1970; an object without one is always had.
#[must_use]
pub(crate) fn is_current(local: i64, remote: Option<i64>) -> bool {
    remote.is_some_and(|remote| local >= remote)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn docker_150_keys_are_sanitized_with_a_warning() {
        let key = key("a/../b\\c%2fd ", false).unwrap();
        assert_eq!(key.text, "b/c/d");
        assert!(key.changed);
        assert_eq!(key.warning().unwrap(), "cache key \"a/../b\\\\c%2fd \" sanitized to \"b/c/d\"");
        for (raw, sanitized) in [
            ("main-1", "main-1"),
            ("job/main", "job/main"),
            ("/a//b/", "a/b"),
            ("../../etc", "etc"),
            ("%2E%2e%2Fx", "x"),
            ("grün %2", "grün %2"),
            ("a b ", "a b"),
            (" a", " a"),
        ] {
            let key = super::key(raw, false).unwrap();
            assert_eq!(key.text, sanitized, "{raw}");
            assert_eq!(key.changed, key.text != raw, "{raw}");
        }
    }

    #[test]
    fn docker_150_a_key_of_which_nothing_is_left_is_refused() {
        for raw in ["..", "", ".", "/", "a/..", "%2e%2e", " ", "\\", "x/../ ", "a/.. "] {
            assert_eq!(key(raw, false), Err(KeyError::Empty(raw.to_owned())), "{raw}");
        }
        let error = key("..", false).unwrap_err().to_string();
        assert_eq!(error, "cache key \"..\" could not be sanitized");
    }

    #[test]
    fn hashed_keys_are_the_sha256_of_the_key_as_written() {
        let key = key("../x", true).unwrap();
        assert_eq!(key.text.len(), 64);
        assert!(!key.changed);
        let abc = super::key("abc", true).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(abc.text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn docker_152_the_local_archive_is_below_the_project() {
        let key = key("main-1", false).unwrap();
        let path = local_path("/cache/group/sub/project", &key);
        assert_eq!(path, "/cache/group/sub/project/main-1/cache.zip");
    }

    #[test]
    fn docker_153_object_names_have_no_suffix_and_shared_ones_no_runner() {
        let token = ShortToken::of("glrt-t1_ABCDEFGHIJKL");
        let mut config = CacheConfig { path: "prefix".into(), ..CacheConfig::default() };
        let plain = key("a/b", false).unwrap();
        let name = |config: &CacheConfig, key: &Key| {
            object_name(config, &token, ProjectId(7), key).unwrap()
        };
        assert_eq!(name(&config, &plain), "prefix/runner/ABCDEFGHI/project/7/a/b");
        config.shared = true;
        assert_eq!(name(&config, &plain), "prefix/project/7/a/b");
        config.path = String::new();
        assert_eq!(name(&config, &plain), "project/7/a/b");
        let hashed = key("abc", true).unwrap();
        assert_eq!(name(&config, &hashed), format!("project/7/ba/{}", hashed.text));
    }

    #[test]
    fn docker_154_fallback_keys_are_tried_in_order_and_protected_ones_refused() {
        let first = || key("main", false).unwrap();
        let fallbacks = ["a".to_owned(), "b/../c".to_owned(), "..".to_owned(), String::new()];
        let all = chain(first(), &fallbacks, Some("last"), false);
        let texts: Vec<&str> = all.keys.iter().map(|key| key.text.as_str()).collect();
        assert_eq!(texts, ["main", "a", "c", "last"]);
        assert_eq!(all.warnings.len(), 2, "{:?}", all.warnings);
        for bad in
            ["x-protected", "x-protected.", "x-protected . ", "x-protected/", "x-protected%2f"]
        {
            for hash in [false, true] {
                let all = chain(first(), &[], Some(bad), hash);
                assert_eq!(all.keys.len(), 1, "{bad}");
                assert!(all.warnings[0].contains("CACHE_FALLBACK_KEY"), "{:?}", all.warnings);
            }
        }
        assert_eq!(chain(first(), &[], Some("x-protected-not"), false).keys.len(), 2);
    }

    #[test]
    fn docker_162_a_local_archive_that_is_not_older_is_used() {
        assert!(is_current(100, Some(100)));
        assert!(is_current(101, Some(100)));
        assert!(!is_current(99, Some(100)));
        assert!(!is_current(99, None));
    }

    #[test]
    fn docker_160_an_archive_over_the_limit_stays_local() {
        let mut config = CacheConfig::default();
        assert!(!is_too_large(&config, u64::MAX));
        config.max_uploaded_archive_size = 10;
        assert!(!is_too_large(&config, 10));
        assert!(is_too_large(&config, 11));
    }

    proptest! {
        #[test]
        fn no_key_leaves_its_place(raw in "([a./\\\\ ]|%2[eE]|%2[fF]|\\.\\.){0,12}", shared in any::<bool>()) {
            if let Ok(key) = key(&raw, false) {
                let parts: Vec<&str> = key.text.split('/').collect();
                prop_assert!(parts.iter().all(|part| !part.is_empty() && *part != "." && *part != ".."));
                prop_assert_eq!(key.text.trim_end(), &key.text);
                let config = CacheConfig { shared, ..CacheConfig::default() };
                let name = object_name(&config, &ShortToken::of("t"), ProjectId(1), &key).unwrap();
                let end = format!("project/1/{}", key.text);
                prop_assert!(name.ends_with(&end));
            }
        }
    }
}

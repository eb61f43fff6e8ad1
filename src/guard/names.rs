//! Scoped names (G-49): containers, volumes and networks are called `PREFIX-NAME` on the engine,
//! and tags `PREFIX.invalid/REGISTRY/REPOSITORY:TAG`, so that two jobs can use one name at once. Pure.
//!
//! The rest of the guard knows the job's names only. They are changed in the last step before a
//! request is sent ([`super::policy::translate`]), and in the first step after an answer has come
//! ([`Names::strip`]). The prefix is in nothing else that the engine says, so it is taken out of
//! every text of an answer, and no field can be forgotten. What looks like an id is no name that a
//! job can give (G-48): anonymous volumes keep theirs, as do containers that the engine named.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::base::ids::hex;

use super::{ids::is_id_like, image::Reference};

/// The top-level domain that no registry is in (RFC 2606).
const NOWHERE: &str = ".invalid";

/// What stands for the colon before a registry's port, which a repository cannot have.
const COLON: &str = "__";

/// How things are called on the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Names {
    /// As the job calls them.
    Plain,
    /// With this before it, and a hyphen. It must be of the characters of names, and so long and
    /// random that nothing else the job sees has it.
    Scoped(String),
}

impl Names {
    /// Scoped names of what has this label.
    #[must_use]
    pub fn of(identity: &(String, String)) -> Self {
        let digest = Sha256::digest(format!("{}={}", identity.0, identity.1));
        // The letter keeps it from being taken for an id.
        Self::Scoped(format!("g{}", hex(&digest[..8])))
    }

    /// What the engine calls it.
    #[must_use]
    pub(crate) fn upstream(&self, name: &str) -> String {
        match self {
            Self::Scoped(prefix) if !is_id_like(name) => format!("{prefix}-{name}"),
            _ => name.to_owned(),
        }
    }

    /// What a tag of the job's is called on the engine where tags are scoped.
    pub(crate) fn upstream_tag(&self, tag: &Reference) -> Reference {
        match self {
            Self::Scoped(prefix) => Reference {
                registry: registry(prefix),
                path: format!("{}/{}", tag.registry.replace(':', COLON), tag.path),
                ..tag.clone()
            },
            Self::Plain => tag.clone(),
        }
    }

    /// Whether the prefix is in this name, which a job may not give: it would come back as another.
    #[must_use]
    pub(crate) fn are_in(&self, name: &str) -> bool {
        matches!(self, Self::Scoped(prefix) if name.contains(prefix))
    }

    /// Takes the prefix out of an answer.
    pub(crate) fn strip(&self, value: &mut Value) {
        if let Self::Scoped(prefix) = self {
            strip(value, prefix);
        }
    }
}

fn strip(value: &mut Value, prefix: &str) {
    let plain = |text: &str| plain_tags(&text.replace(&format!("{prefix}-"), ""), prefix);
    match value {
        Value::String(text) if text.contains(prefix) => *text = plain(text),
        Value::Array(items) => items.iter_mut().for_each(|item| strip(item, prefix)),
        Value::Object(map) => {
            if map.keys().any(|key| key.contains(prefix)) {
                let renamed = std::mem::take(map).into_iter();
                *map = renamed.map(|(key, value)| (plain(&key), value)).collect();
            }
            map.values_mut().for_each(|value| strip(value, prefix));
        }
        _ => {}
    }
}

/// The registry that all tags of a job are of on the engine.
fn registry(prefix: &str) -> String {
    format!("{prefix}{NOWHERE}")
}

/// What the tags of a job with this label begin with on the engine.
pub(crate) fn registry_of(identity: &(String, String)) -> Option<String> {
    match Names::of(identity) {
        Names::Scoped(prefix) => Some(registry(&prefix) + "/"),
        Names::Plain => None,
    }
}

/// `text` with the tags that it names as the job calls them.
fn plain_tags(text: &str, prefix: &str) -> String {
    let registry = registry(prefix) + "/";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(&registry) {
        out.push_str(&rest[..at]);
        rest = &rest[at + registry.len()..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        let (name, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        let whole = match name.split_once('/') {
            Some((registry, path)) => format!("{}/{path}", registry.replace(COLON, ":")),
            None => name.to_owned(),
        };
        out.push_str(&Reference::parse(&whole).map_or(whole, |reference| reference.short()));
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn g_49_names_go_out_with_the_prefix_and_come_back_without() {
        let names = Names::of(&("longshore.job".into(), "1".into()));
        let Names::Scoped(prefix) = &names else { panic!("scoped") };
        assert_ne!(Names::of(&("longshore.job".into(), "2".into())), names);
        assert_eq!(names.upstream("db"), format!("{prefix}-db"));
        assert!(names.are_in(&format!("{prefix}-db")) && !names.are_in("db"));
        assert_eq!(names.upstream(&"a".repeat(64)), "a".repeat(64));
        let mut answer = json!({
            "Name": format!("/{prefix}-db"),
            "Networks": { format!("{prefix}-net"): { "Aliases": ["db"] } },
            "Names": [format!("/{prefix}-a/{prefix}-b")],
            "Labels": { "com.docker.compose.project": "p" },
            "RepoTags": [format!("{prefix}.invalid/docker.io/library/app:1")],
            "Count": 1,
        });
        names.strip(&mut answer);
        assert_eq!(
            answer,
            json!({
                "Name": "/db", "Networks": { "net": { "Aliases": ["db"] } }, "Names": ["/a/b"],
                "Labels": { "com.docker.compose.project": "p" }, "RepoTags": ["app:1"], "Count": 1,
            })
        );
    }

    #[test]
    fn g_49_tags_go_out_below_a_registry_of_nobody_and_come_back_as_they_were() {
        let names = Names::of(&("longshore.guard".into(), "1".into()));
        let Names::Scoped(prefix) = &names else { panic!("scoped") };
        for name in ["app:1", "group/app:latest", "registry.example/a/b:x", "localhost:5000/a:1"] {
            let tag = Reference::parse(name).unwrap();
            let upstream = names.upstream_tag(&tag);
            // The engine can read it.
            assert_eq!(Reference::parse(&upstream.canonical()), Some(upstream.clone()), "{name}");
            assert!(upstream.registry.ends_with(NOWHERE));
            let said = format!("Untagged: {}, x", upstream.canonical());
            assert_eq!(plain_tags(&said, prefix), format!("Untagged: {name}, x"));
        }
        assert_eq!(plain_tags("nothing of it", prefix), "nothing of it");
    }
}

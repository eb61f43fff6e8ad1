//! Tags of a job (G-49, G-61). Where names are scoped, a tag that the job makes is on the engine as
//! `PREFIX.invalid/REGISTRY/REPOSITORY:TAG`: two jobs can build one tag at once, and none puts an
//! image where others look for one. The name itself is there only until the engine has found the
//! image by it (for a push, a save, a `FROM`, a load), one job at a time. Pulls wait for nobody: a
//! build whose base was moved by one is failed.
//!
//! Images that are to outlive their job keep the names that it gave them: their tags are not
//! scoped.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Method, StatusCode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::base::ids::hex;

use super::{
    Refusal,
    exchange::unreachable,
    image::{HUB, Reference},
    journal::Entry,
    names::Names,
    policy,
    serve::Shared,
    settings::GuardSettings,
};

/// How long until a name that another job uses is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a name is waited for: another job's build may have it for its base.
const PATIENCE: Duration = Duration::from_mins(10);

/// The top-level domain that no registry is in (RFC 2606).
const NOWHERE: &str = ".invalid";

/// What stands for the colon before a registry's port, which a repository cannot have.
const COLON: &str = "__";

impl GuardSettings {
    /// Whether the job's tags have other names on the engine.
    #[must_use]
    pub fn scopes_tags(&self) -> bool {
        matches!(self.names, Names::Scoped(_)) && self.images.remove
    }

    /// What a tag of the job's is called on the engine.
    #[must_use]
    pub fn upstream_tag(&self, tag: &Reference) -> Reference {
        match &self.names {
            Names::Scoped(prefix) if self.scopes_tags() => Reference {
                registry: registry(prefix),
                path: format!("{}/{}", tag.registry.replace(':', COLON), tag.path),
                ..tag.clone()
            },
            _ => tag.clone(),
        }
    }
}

/// The registry that all tags of a job are of on the engine.
fn registry(prefix: &str) -> String {
    format!("{prefix}{NOWHERE}")
}

/// What the tags of a job with this label begin with on the engine.
pub(super) fn registry_of(identity: &(String, String)) -> Option<String> {
    match Names::of(identity) {
        Names::Scoped(prefix) => Some(registry(&prefix) + "/"),
        Names::Plain => None,
    }
}

/// `text` with the tags that it names as the job calls them.
pub(super) fn plain(text: &str, prefix: &str) -> String {
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

/// A name that means the job's image on the engine while this lives. No other guard has it
/// meanwhile.
pub(super) struct Held {
    shared: Arc<Shared>,
    pub(super) tag: Reference,
    /// The image that was put under it, and is taken away from it again.
    pub(super) id: Option<String>,
    lock: Option<Lock>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let (shared, tag) = (Arc::clone(&self.shared), self.tag.clone());
        let (id, lock) = (self.id.take(), self.lock.take());
        let Some(id) = id else { return };
        self.shared.tasks.spawn(async move {
            shared.take_away(&tag, &id).await;
            drop(lock);
        });
    }
}

impl Shared {
    /// Has a tag of the job's under its own name on the engine, for as long as what this gives
    /// lives.
    pub(super) async fn hold(self: &Arc<Self>, tag: &Reference) -> Result<Held, Refusal> {
        let held = self.reserve(tag).await?;
        self.put(held, tag).await?.ok_or_else(|| in_use(tag))
    }

    /// The same for a push, which another spelling of the registry serves as well: what others have
    /// pulled under the name is there still, and stays, and nobody else's build is waited for.
    pub(super) async fn hold_to_push(self: &Arc<Self>, tag: &Reference) -> Result<Held, Refusal> {
        let Some(other) = same_registry(tag) else { return self.hold(tag).await };
        if let Some(held) = self.try_reserve(tag)?
            && let Some(held) = self.put(held, tag).await?
        {
            return Ok(held);
        }
        let held = self.reserve(&other).await?;
        self.put(held, tag).await?.ok_or_else(|| in_use(tag))
    }

    /// Puts the image of a tag under the name that is held. `None` where the engine has another
    /// there.
    async fn put(&self, mut held: Held, tag: &Reference) -> Result<Option<Held>, Refusal> {
        let name = &held.tag;
        let id = self.owned().tag(&tag.canonical()).map(|tag| tag.id.clone());
        let Some(id) = id.filter(|_| self.settings.scopes_tags()) else { return Ok(Some(held)) };
        match self.meaning(name).await? {
            Some(found) if found == id => {}
            Some(_) => return Ok(None),
            None => {
                let tags = vec![name.canonical()];
                self.note(&Entry::Tagging { tags, image: Some(id.clone()) })?;
                let put = self.put_tag(name, &id).await;
                held.id = Some(id);
                put?;
            }
        }
        Ok(Some(held))
    }

    /// Keeps others from a name that is going to be made.
    pub(super) async fn reserve(self: &Arc<Self>, tag: &Reference) -> Result<Held, Refusal> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.try_reserve(tag)? {
                Some(held) => return Ok(held),
                None if Instant::now() < until => tokio::time::sleep(AGAIN).await,
                None => return Err(in_use(tag)),
            }
        }
    }

    /// `None` while another has it.
    fn try_reserve(self: &Arc<Self>, tag: &Reference) -> Result<Option<Held>, Refusal> {
        let mut lock = None;
        if self.settings.scopes_tags() {
            let taken = lock_directory().and_then(|directory| {
                Lock::try_take(&directory.join(hex(&Sha256::digest(tag.canonical())[..16])))
            });
            lock = taken.map_err(|error| {
                tracing::error!(%error, "the tags of guarded jobs cannot be locked");
                Refusal::failed(500, "the tag cannot be locked")
            })?;
            if lock.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(Held { shared: Arc::clone(self), tag: tag.clone(), id: None, lock }))
    }

    /// The image that the engine has under this name.
    pub(super) async fn meaning(&self, tag: &Reference) -> Result<Option<String>, Refusal> {
        let path = format!("/images/{}/json", tag.canonical());
        let details = self.engine.get(&path).await.map_err(unreachable)?;
        Ok(details.and_then(|details| Some(details["Id"].as_str()?.to_owned())))
    }

    /// Whether a name that was held to the end still means what it did: a pull may have moved it.
    pub(super) async fn is_unmoved(&self, held: &Held) -> bool {
        let id = self.owned().tag(&held.tag.canonical()).map(|tag| tag.id.clone());
        !self.settings.scopes_tags() || self.meaning(&held.tag).await.is_ok_and(|found| found == id)
    }

    /// Whether the name may be made on the engine: it does not exist, or the job made it (G-61).
    pub(super) async fn free_tag(&self, tag: &Reference) -> Result<(), Refusal> {
        policy::new_tag(tag, &self.settings)?;
        let is_own = !self.settings.scopes_tags()
            && self.owned().tag(&tag.canonical()).is_some_and(|tag| tag.made);
        if is_own || self.meaning(tag).await?.is_none() { Ok(()) } else { Err(in_use(tag)) }
    }

    /// Enters an image that was pulled. What the job itself had made under this name it has no more.
    pub(super) async fn pulled(&self, tag: &Reference, id: &str) {
        let canonical = tag.canonical();
        let before = self.owned().tag(&canonical).filter(|before| before.made).cloned();
        if let Some(before) = before.filter(|_| self.settings.scopes_tags()) {
            self.take_away(&self.settings.upstream_tag(tag), &before.id).await;
            self.change(|owned| owned.forget_tag(&canonical));
        }
        self.change(|owned| owned.add_tag(canonical, id, false));
    }

    /// Tags an image of the job's, as the job asked, and enters it.
    pub(super) async fn tag_image(&self, tag: &Reference, id: &str) -> Result<(), Refusal> {
        let upstream = self.settings.upstream_tag(tag);
        let tags = vec![upstream.canonical()];
        self.note(&Entry::Tagging { tags, image: Some(id.to_owned()) })?;
        self.put_tag(&upstream, id).await?;
        self.made(id, Some(tag));
        Ok(())
    }

    async fn put_tag(&self, tag: &Reference, id: &str) -> Result<(), Refusal> {
        let (repository, name) = (tag.repository(), tag.tag.clone().unwrap_or_default());
        let query = [("repo", &*repository), ("tag", &*name)];
        let path = format!("/images/{id}/tag");
        let (status, _) =
            self.engine.json(&Method::POST, &path, &query, None).await.map_err(unreachable)?;
        if status == StatusCode::CREATED {
            return Ok(());
        }
        Err(Refusal::failed(502, &format!("the engine answered {status} to the tag")))
    }

    /// Takes a name off the engine, unless it means another image by now.
    pub(super) async fn take_away(&self, tag: &Reference, id: &str) {
        if self.meaning(tag).await.ok().flatten().as_deref() != Some(id) {
            return;
        }
        let path = format!("/images/{}", tag.canonical());
        let removed = self.engine.json(&Method::DELETE, &path, &[("noprune", "1")], None).await;
        if removed.is_ok_and(|(status, _): (StatusCode, Value)| status.is_success()) {
            self.noted(&Entry::Untag(tag.canonical()));
        }
    }
}

fn in_use(tag: &Reference) -> Refusal {
    let tag = tag.short();
    let what = format!(
        "the tag {tag} is in use on this host and was not made by this job, which needs another"
    );
    Refusal::because(&what, "G-61")
}

/// The same tag at the same registry, as nobody spells it; `None` where there is no other way to.
fn same_registry(tag: &Reference) -> Option<Reference> {
    let registry = match &*tag.registry {
        // Where the engine itself goes for it (moby: `registry.DefaultV2Registry`).
        HUB => "registry-1.docker.io".to_owned(),
        registry if !registry.contains(':') => format!("{registry}:443"),
        _ => return None,
    };
    Some(Reference { registry, ..tag.clone() })
}

/// One name on this host, for one guard at a time, whichever process it is in.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The one before may have removed it meanwhile: then it is nobody's lock.
        let is_there = std::fs::metadata(path)
            .is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
        Ok(is_there.then(|| Self { path: path.to_owned(), _file: file }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// Where the locks are: closed to other users, and gone with the next boot.
fn lock_directory() -> io::Result<PathBuf> {
    let user = rustix::process::geteuid();
    let directory = if user.is_root() {
        PathBuf::from("/run/longshore/tags")
    } else {
        std::env::temp_dir().join(format!("longshore-tags-{}", user.as_raw()))
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let found = std::fs::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != user.as_raw() || found.mode() & 0o077 != 0 {
        let message = format!("{} is not a directory of its user's alone", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> GuardSettings {
        GuardSettings::new("1", ("longshore.guard".into(), "1".into()), "n", Path::new("/x"))
    }

    #[test]
    fn g_49_tags_go_out_below_a_registry_of_nobody_and_come_back_as_they_were() {
        let settings = settings();
        let Names::Scoped(prefix) = &settings.names else { panic!("scoped") };
        for name in ["app:1", "group/app:latest", "registry.example/a/b:x", "localhost:5000/a:1"] {
            let tag = Reference::parse(name).unwrap();
            let upstream = settings.upstream_tag(&tag);
            // The engine can read it.
            assert_eq!(Reference::parse(&upstream.canonical()), Some(upstream.clone()), "{name}");
            assert!(upstream.registry.ends_with(NOWHERE));
            let said = format!("Untagged: {}, x", upstream.canonical());
            assert_eq!(plain(&said, prefix), format!("Untagged: {name}, x"));
        }
        assert_eq!(plain("nothing of it", prefix), "nothing of it");
    }

    #[test]
    fn tags_of_images_that_stay_keep_their_names() {
        let mut settings = settings();
        settings.images.remove = false;
        let tag = Reference::parse("app:1").unwrap();
        assert_eq!(settings.upstream_tag(&tag), tag);
    }

    #[test]
    fn a_name_has_one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Lock::try_take(&path).unwrap();
        assert!(first.is_some() && Lock::try_take(&path).unwrap().is_none());
        drop(first);
        assert!(!path.exists());
        assert!(Lock::try_take(&path).unwrap().is_some());
    }
}

//! Tags of a job on the engine (G-49, G-61). Where names are scoped, a tag that the job makes is there
//! as `PREFIX.invalid/REGISTRY/REPOSITORY:TAG`: two jobs can build one tag at once, and none puts an
//! image where others look for one. The name itself is there only until the engine has found the
//! image by it (for a push, a save, a `FROM`, a load), one job at a time. Pulls do not wait: a
//! build whose base a pull has moved fails.
//!
//! Images that are to outlive their job keep the names that it gave them: their tags are not
//! scoped.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::guard::{
    ids::is_id,
    image::{HUB, Reference},
    policy::tags::new_tag,
    refusal::Refusal,
};

use super::{backend::Backend, journal::JournalEntry, response::unreachable, tag_lock::TagLock};

/// How long until a name that another job uses is tried again.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a name is waited for: another job's build may have it for its base.
const PATIENCE: Duration = Duration::from_mins(10);

/// A name that means the job's image on the engine while this lives. No other guard has it
/// meanwhile.
pub(super) struct HeldTag {
    tags: Tags,
    pub(super) tag: Reference,
    /// The image that was put under it, and is taken away from it again.
    pub(super) id: Option<String>,
    lock: Option<TagLock>,
}

impl Drop for HeldTag {
    fn drop(&mut self) {
        let (tags, tag) = (self.tags.clone(), self.tag.clone());
        let (id, lock) = (self.id.take(), self.lock.take());
        let Some(id) = id else { return };
        self.tags.backend.tasks.spawn(async move {
            tags.take_away(&tag, &id).await;
            drop(lock);
        });
    }
}

#[derive(Debug, Clone)]
pub(super) struct Tags {
    backend: Arc<Backend>,
}

impl Tags {
    pub(super) fn new(backend: &Arc<Backend>) -> Self {
        Self { backend: Arc::clone(backend) }
    }

    /// Makes the engine find the job's image by the tag's own name, as long as the result lives.
    pub(super) async fn hold(&self, tag: &Reference) -> Result<HeldTag, Refusal> {
        let held = self.reserve(tag).await?;
        self.put(held, tag).await?.ok_or_else(|| in_use(tag))
    }

    /// The same for a push, which another spelling of the registry serves as well: what others have
    /// pulled under the name stays, and no other job's build is waited for.
    pub(super) async fn hold_to_push(&self, tag: &Reference) -> Result<HeldTag, Refusal> {
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
    async fn put(&self, mut held: HeldTag, tag: &Reference) -> Result<Option<HeldTag>, Refusal> {
        let name = &held.tag;
        let id =
            self.backend.inventory.owned().images.tag(&tag.canonical()).map(|tag| tag.id.clone());
        let Some(id) = id.filter(|_| self.backend.settings.scopes_tags()) else {
            return Ok(Some(held));
        };
        match self.meaning(name).await? {
            Some(found) if found == id => {}
            Some(_) => return Ok(None),
            None => {
                let tags = vec![name.canonical()];
                self.backend
                    .inventory
                    .announce(&JournalEntry::Tagging { tags, image: Some(id.clone()) })?;
                let put = self.put_tag(name, &id).await;
                held.id = Some(id);
                put?;
            }
        }
        Ok(Some(held))
    }

    /// Locks a name that is going to be made.
    pub(super) async fn reserve(&self, tag: &Reference) -> Result<HeldTag, Refusal> {
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
    fn try_reserve(&self, tag: &Reference) -> Result<Option<HeldTag>, Refusal> {
        let mut lock = None;
        if self.backend.settings.scopes_tags() {
            lock = TagLock::try_of(tag).map_err(|error| {
                tracing::error!(%error, "cannot lock the tags of guarded jobs");
                Refusal::failed(500, "the tag cannot be locked")
            })?;
            if lock.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(HeldTag { tags: self.clone(), tag: tag.clone(), id: None, lock }))
    }

    /// The image that the engine has under this name.
    pub(super) async fn meaning(&self, tag: &Reference) -> Result<Option<String>, Refusal> {
        let path = format!("/images/{}/json", tag.canonical());
        let details = self.backend.get(&path).await?;
        Ok(details.and_then(|details| Some(details["Id"].as_str()?.to_owned())))
    }

    /// Whether a name that was held to the end still means what it did: a pull may have moved it.
    pub(super) async fn is_unmoved(&self, held: &HeldTag) -> bool {
        let id = self
            .backend
            .inventory
            .owned()
            .images
            .tag(&held.tag.canonical())
            .map(|tag| tag.id.clone());
        !self.backend.settings.scopes_tags()
            || self.meaning(&held.tag).await.is_ok_and(|found| found == id)
    }

    /// Whether the name may be made on the engine: it does not exist, or the job made it (G-61).
    pub(super) async fn free_tag(&self, tag: &Reference) -> Result<(), Refusal> {
        new_tag(tag, &self.backend.settings)?;
        let is_own = !self.backend.settings.scopes_tags()
            && self
                .backend
                .inventory
                .owned()
                .images
                .tag(&tag.canonical())
                .is_some_and(|tag| tag.made);
        if is_own || self.meaning(tag).await?.is_none() { Ok(()) } else { Err(in_use(tag)) }
    }

    /// Enters an image that was pulled. A tag of that name that the job made before is gone.
    pub(super) async fn pulled(&self, tag: &Reference, id: &str) {
        let canonical = tag.canonical();
        let before = self
            .backend
            .inventory
            .owned()
            .images
            .tag(&canonical)
            .filter(|before| before.made)
            .cloned();
        if let Some(before) = before.filter(|_| self.backend.settings.scopes_tags()) {
            self.take_away(&self.backend.settings.upstream_tag(tag), &before.id).await;
            self.backend.inventory.change(|owned| owned.images.forget_tag(&canonical));
        }
        self.backend.inventory.change(|owned| owned.images.add_tag(canonical, id, false));
    }

    /// Tags an image of the job's, as the job asked, and enters it.
    pub(super) async fn tag_image(&self, tag: &Reference, id: &str) -> Result<(), Refusal> {
        let upstream = self.backend.settings.upstream_tag(tag);
        let tags = vec![upstream.canonical()];
        self.backend
            .inventory
            .announce(&JournalEntry::Tagging { tags, image: Some(id.to_owned()) })?;
        self.put_tag(&upstream, id).await?;
        self.made(id, Some(tag));
        Ok(())
    }

    async fn put_tag(&self, tag: &Reference, id: &str) -> Result<(), Refusal> {
        let (repository, name) = (tag.repository(), tag.tag.clone().unwrap_or_default());
        let query = [("repo", &*repository), ("tag", &*name)];
        let path = format!("/images/{id}/tag");
        let (status, _) = self
            .backend
            .engine
            .json(&Method::POST, &path, &query, None)
            .await
            .map_err(unreachable)?;
        if status == StatusCode::CREATED {
            return Ok(());
        }
        Err(Refusal::failed(502, &format!("the engine answered {status} to the tag")))
    }

    /// Writes down that tags of the job's are going to be made.
    pub(super) fn announce(
        &self,
        tags: &[Reference],
        image: Option<String>,
    ) -> Result<(), Refusal> {
        if tags.is_empty() {
            return Ok(());
        }
        let tags =
            tags.iter().map(|tag| self.backend.settings.upstream_tag(tag).canonical()).collect();
        self.backend.inventory.announce(&JournalEntry::Tagging { tags, image })
    }

    /// Enters an image that the job made, and the tag that it gave it.
    pub(super) fn made(&self, id: &str, reference: Option<&Reference>) {
        if is_id(id) {
            self.backend.inventory.record(&match reference {
                Some(reference) => {
                    let upstream = self.backend.settings.upstream_tag(reference);
                    JournalEntry::Tag(upstream.canonical(), id.to_owned())
                }
                None => JournalEntry::Image(id.to_owned()),
            });
        }
        self.backend.inventory.change(|owned| {
            owned.images.add(id);
            if let Some(reference) = reference.filter(|_| is_id(id)) {
                owned.images.add_tag(reference.canonical(), id, true);
            }
        });
    }

    /// Enters a tag that was just made, by what the engine has under it.
    pub(super) async fn tagged(&self, reference: &Reference) {
        let upstream = self.backend.settings.upstream_tag(reference);
        if let Ok(Some(id)) = self.meaning(&upstream).await {
            self.made(&id, Some(reference));
        }
    }

    /// Enters an image that a step of a build has made, by the beginning of its id.
    pub(super) fn made_by_step(&self, step: String) {
        self.backend.inventory.record(&JournalEntry::Step(step.clone()));
        self.backend.inventory.change(|owned| owned.images.add_step(step));
    }

    /// A tag that was loaded becomes the job's.
    pub(super) async fn keep_loaded(&self, held: &mut HeldTag) {
        let Ok(Some(id)) = self.meaning(&held.tag).await else { return };
        if self.backend.settings.scopes_tags() {
            self.backend.inventory.record(&JournalEntry::Tag(held.tag.canonical(), id.clone()));
            held.id = Some(id.clone());
            if let Err(error) = self.tag_image(&held.tag, &id).await {
                tracing::warn!(%error, tag = held.tag.short(), "cannot tag a loaded image");
            }
        } else {
            self.made(&id, Some(&held.tag));
        }
    }

    /// The digest that a push gave the image. The engine has it under the name that was pushed, or had
    /// it there until that was taken away.
    pub(super) async fn keep_digest(&self, tag: &Reference, pushed: &Reference, digest: String) {
        let id =
            self.backend.inventory.owned().images.tag(&tag.canonical()).map(|tag| tag.id.clone());
        let Some(id) = id.filter(|_| self.backend.settings.scopes_tags()) else { return };
        let of = |name: &Reference| Reference {
            tag: None,
            digest: Some(digest.clone()),
            ..name.clone()
        };
        self.backend.inventory.record(&JournalEntry::Tag(of(pushed).canonical(), id.clone()));
        self.take_away(&of(pushed), &id).await;
        self.backend.inventory.change(|owned| owned.images.add_digest(of(tag), &id));
    }

    /// Removes a tag from the engine, unless it is another image's by now.
    pub(super) async fn take_away(&self, tag: &Reference, id: &str) {
        if self.meaning(tag).await.ok().flatten().as_deref() != Some(id) {
            return;
        }
        let path = format!("/images/{}", tag.canonical());
        let removed =
            self.backend.engine.json(&Method::DELETE, &path, &[("noprune", "1")], None).await;
        if removed.is_ok_and(|(status, _): (StatusCode, Value)| status.is_success()) {
            self.backend.inventory.record(&JournalEntry::Untag(tag.canonical()));
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

/// The same tag at the same registry in an unusual spelling; `None` where there is none.
fn same_registry(tag: &Reference) -> Option<Reference> {
    let registry = match &*tag.registry {
        // Where the engine itself goes for it (moby: `registry.DefaultV2Registry`).
        HUB => "registry-1.docker.io".to_owned(),
        registry if !registry.contains(':') => format!("{registry}:443"),
        _ => return None,
    };
    Some(Reference { registry, ..tag.clone() })
}

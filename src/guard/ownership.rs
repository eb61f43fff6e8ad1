//! What a job owns on the engine: full ids and names (G-4, G-45, G-47, G-50, G-51). No I/O.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{ids::is_id, image::Reference, pin::Pin, refusal::Refusal};

/// How many removed objects of a kind are remembered, for events that come late.
const REMEMBERED: usize = 1024;

/// The objects of one job.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    /// Containers, and what is executed in them.
    pub containers: OwnedContainers,
    /// Networks but for the default one, which is the guard's.
    pub networks: OwnedNetworks,
    /// Named and anonymous volumes.
    pub volumes: OwnedVolumes,
    /// Images that the job made or pulled.
    pub images: OwnedImages,
}

impl Owned {
    /// Whether an event about this object is the job's to see, removed ones included.
    pub(crate) fn knows(&self, id: &str) -> bool {
        self.containers.by_id.contains_key(id)
            || self.networks.by_id.contains_key(id)
            || self.volumes.names.contains(id)
            || self.images.ids.contains(id)
            || [&self.containers.gone, &self.networks.gone, &self.volumes.gone]
                .iter()
                .any(|gone| gone.contains(id))
    }
}

/// The ids of objects that were removed last.
#[derive(Debug, Clone, Default)]
struct Removed(VecDeque<String>);

impl Removed {
    fn add(&mut self, id: &str) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(id.to_owned());
    }

    fn contains(&self, id: &str) -> bool {
        self.0.iter().any(|removed| removed == id)
    }
}

/// The job's containers and what is executed in them.
#[derive(Debug, Clone, Default)]
pub struct OwnedContainers {
    by_id: BTreeMap<String, OwnedContainer>,
    /// Execs and their containers.
    execs: BTreeMap<String, String>,
    /// How many are being created.
    creating: usize,
    gone: Removed,
}

/// A container of the job.
#[derive(Debug, Clone, Default)]
pub struct OwnedContainer {
    /// The container's name, without a slash.
    pub name: String,
    /// The image as the client spelled it.
    pub(crate) image: String,
    /// Whether it is one of the runner's own, which the job has few rights on (G-51).
    pub(crate) is_self: bool,
    /// What it mounts of the workspace: where it is pinned, and how the job calls it.
    pub(crate) binds: Vec<Bind>,
}

/// A bind of the workspace or of the socket.
#[derive(Debug, Clone)]
pub(crate) struct Bind {
    /// The source that the engine was given.
    pub(crate) source: String,
    /// The path that the job named.
    pub(crate) job: String,
    /// Keeps the source mounted; none for the socket.
    #[expect(dead_code, reason = "it is mounted as long as this lives")]
    pub(crate) pin: Option<Arc<Pin>>,
}

impl OwnedContainer {
    /// A container of this name that the job made, without binds.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

impl OwnedContainers {
    /// The container that `reference` means (G-47): full id, name, or unambiguous beginning of an
    /// id.
    ///
    /// # Errors
    /// In the engine's words, when it is none or several.
    pub(crate) fn find(&self, reference: &str) -> Result<(&str, &OwnedContainer), Refusal> {
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some((id, found)) = self.by_id.get_key_value(reference) {
            return Ok((id, found));
        }
        if let Some((id, found)) = self.by_id.iter().find(|(_, c)| c.name == name) {
            return Ok((id, found));
        }
        prefixed(&self.by_id, reference)
            .ok_or_else(|| Refusal::missing(format!("No such container: {reference}")))
    }

    /// A container that is not one of the runner's own.
    ///
    /// # Errors
    /// When there is none, or it is (G-51).
    pub(crate) fn find_own(&self, reference: &str) -> Result<(&str, &OwnedContainer), Refusal> {
        let (id, found) = self.find(reference)?;
        if found.is_self {
            return Err(Refusal::denied("this operation on the job's own container", "G-51"));
        }
        Ok((id, found))
    }

    /// The container of an exec.
    ///
    /// # Errors
    /// In the engine's words, when there is no such exec.
    pub(crate) fn exec(&self, id: &str) -> Result<&str, Refusal> {
        match self.execs.get_key_value(id) {
            Some((id, _)) => Ok(id),
            None => Err(Refusal::missing(format!("No such exec instance: {id}"))),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &OwnedContainer)> {
        self.by_id.iter().map(|(id, container)| (&**id, container))
    }

    /// How many containers there are or soon will be, the runner's own not counted.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.creating + self.by_id.values().filter(|c| !c.is_self).count()
    }

    /// A container is about to be created; [`Self::end_creating`] follows in any case.
    pub(crate) fn begin_creating(&mut self) {
        self.creating += 1;
    }

    pub(crate) fn end_creating(&mut self) {
        self.creating = self.creating.saturating_sub(1);
    }

    /// A container was created.
    pub fn add(&mut self, id: String, container: OwnedContainer) {
        self.by_id.insert(id, container);
    }

    /// Enters one of the runner's own containers.
    pub fn adopt(&mut self, id: String, name: String) {
        let container = OwnedContainer { name, is_self: true, ..OwnedContainer::default() };
        self.by_id.insert(id, container);
    }

    /// The container has a new name.
    pub(crate) fn rename(&mut self, id: &str, name: &str) {
        if let Some(container) = self.by_id.get_mut(id) {
            name.clone_into(&mut container.name);
        }
    }

    /// The container is gone, with its execs. Returns its binds, so that the caller drops their pins.
    pub(crate) fn forget(&mut self, id: &str) -> Vec<Bind> {
        self.execs.retain(|_, container| container != id);
        let gone = self.by_id.remove(id);
        if gone.is_some() {
            self.gone.add(id);
        }
        gone.map(|container| container.binds).unwrap_or_default()
    }

    /// An exec was created.
    pub(crate) fn add_exec(&mut self, id: String, container: &str) {
        self.execs.insert(id, container.to_owned());
    }
}

/// The job's networks but for the default one.
#[derive(Debug, Clone, Default)]
pub struct OwnedNetworks {
    by_id: BTreeMap<String, String>,
    /// The names of those that are being created.
    pending: BTreeSet<String>,
    gone: Removed,
}

impl OwnedNetworks {
    /// The network that `reference` means.
    ///
    /// # Errors
    /// In the engine's words, when there is none.
    pub(crate) fn find(&self, reference: &str) -> Result<(&str, &str), Refusal> {
        if let Some((id, name)) = self.by_id.get_key_value(reference) {
            return Ok((id, name));
        }
        if let Some((id, name)) = self.by_id.iter().find(|(_, name)| *name == reference) {
            return Ok((id, name));
        }
        prefixed(&self.by_id, reference)
            .map(|(id, name)| (id, &**name))
            .ok_or_else(|| Refusal::missing(format!("network {reference} not found")))
    }

    /// All networks: id and name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_id.iter().map(|(id, name)| (&**id, &**name))
    }

    /// Whether a network of that name is being created.
    #[must_use]
    pub(crate) fn is_creating(&self, name: &str) -> bool {
        self.pending.contains(name)
    }

    /// How many networks there are or soon will be.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.by_id.len() + self.pending.len()
    }

    /// A network is about to be created; [`Self::end_creating`] follows in any case.
    pub(crate) fn begin_creating(&mut self, name: &str) {
        self.pending.insert(name.to_owned());
    }

    pub(crate) fn end_creating(&mut self, name: &str) {
        self.pending.remove(name);
    }

    /// A network was created.
    pub fn add(&mut self, id: String, name: &str) {
        self.by_id.insert(id, name.to_owned());
    }

    /// The network is gone, by id or name.
    pub(crate) fn forget(&mut self, reference: &str) {
        let id = self.find(reference).ok().map(|(id, _)| id.to_owned());
        if let Some(id) = id {
            self.by_id.remove(&id);
            self.gone.add(&id);
        }
    }
}

/// The job's volumes, named and anonymous.
#[derive(Debug, Clone, Default)]
pub struct OwnedVolumes {
    names: BTreeSet<String>,
    /// The names of those that are being created.
    pending: BTreeSet<String>,
    gone: Removed,
}

impl OwnedVolumes {
    /// Whether the volume is the job's.
    #[must_use]
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// In the engine's words, when it is not the job's.
    pub(crate) fn find(&self, name: &str) -> Result<(), Refusal> {
        if self.contains(name) {
            return Ok(());
        }
        Err(Refusal::missing(format!("get {name}: no such volume")))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether a volume of that name is being created.
    #[must_use]
    pub(crate) fn is_creating(&self, name: &str) -> bool {
        self.pending.contains(name)
    }

    /// How many volumes there are.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.names.len()
    }

    /// A volume is about to be created; [`Self::end_creating`] follows in any case.
    pub(crate) fn begin_creating(&mut self, name: &str) {
        self.pending.insert(name.to_owned());
    }

    pub(crate) fn end_creating(&mut self, name: &str) {
        self.pending.remove(name);
    }

    /// The job has this volume.
    pub fn add(&mut self, name: &str) {
        self.names.insert(name.to_owned());
    }

    /// The volume is gone.
    pub(crate) fn forget(&mut self, name: &str) {
        if self.names.remove(name) {
            self.gone.add(name);
        }
    }
}

/// The images that the job made or pulled, and its names for them.
#[derive(Debug, Clone, Default)]
pub struct OwnedImages {
    ids: BTreeSet<String>,
    tags: BTreeMap<String, OwnedTag>,
    steps: Vec<String>,
    /// Digests of what the job pushed, and the images that they are of.
    digests: Vec<(Reference, String)>,
}

/// A tag of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedTag {
    pub(crate) id: String,
    /// Whether the job made it, and did not just pull it.
    pub(crate) made: bool,
}

impl OwnedImages {
    /// Whether the image is the job's, by its id in full.
    #[must_use]
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// All images by id.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.ids.iter().map(String::as_str)
    }

    /// How many images there are.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.ids.len()
    }

    /// The job has this image.
    pub fn add(&mut self, id: &str) {
        if is_id(id) {
            self.ids.insert(id.to_owned());
        }
    }

    /// The image is gone.
    pub(crate) fn forget(&mut self, id: &str) {
        self.ids.remove(id);
        self.digests.retain(|(_, image)| image != id);
        self.tags.retain(|_, tag| tag.id != id);
    }

    /// The job's tag, by its canonical name.
    #[must_use]
    pub(crate) fn tag(&self, canonical: &str) -> Option<&OwnedTag> {
        self.tags.get(canonical)
    }

    pub(crate) fn tags(&self) -> impl Iterator<Item = (&str, &OwnedTag)> {
        self.tags.iter().map(|(name, tag)| (&**name, tag))
    }

    /// The job has this tag.
    pub(crate) fn add_tag(&mut self, canonical: String, id: &str, made: bool) {
        self.add(id);
        // A pull does not make a tag that the job made somebody else's.
        let made = made || self.tags.get(&canonical).is_some_and(|tag| tag.made);
        self.tags.insert(canonical, OwnedTag { id: id.to_owned(), made });
    }

    /// The tag is gone.
    pub(crate) fn forget_tag(&mut self, canonical: &str) {
        self.tags.remove(canonical);
    }

    /// A build's output says that a step made this image, by the beginning of its id. A step can print
    /// the same words itself, so they give the job no right to see an image, and clean-up removes only
    /// images that nothing else refers to.
    pub(crate) fn add_step(&mut self, id: String) {
        self.steps.push(id);
    }

    /// What steps of builds made, the oldest first.
    #[must_use]
    pub(crate) fn steps(&self) -> &[String] {
        &self.steps
    }

    /// A push gave the image this digest.
    pub(crate) fn add_digest(&mut self, digest: Reference, id: &str) {
        let pushed = (digest, id.to_owned());
        if !self.digests.contains(&pushed) {
            self.digests.push(pushed);
        }
    }

    /// The digests that pushes gave the image.
    pub(crate) fn digests<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Reference> {
        self.digests.iter().filter(move |(_, image)| image == id).map(|(digest, _)| digest)
    }
}

fn prefixed<'a, T>(map: &'a BTreeMap<String, T>, prefix: &str) -> Option<(&'a str, &'a T)> {
    if prefix.is_empty() {
        return None;
    }
    let mut found = map.range(prefix.to_owned()..).take_while(|(id, _)| id.starts_with(prefix));
    match (found.next(), found.next()) {
        (Some((id, value)), None) => Some((id, value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned() -> Owned {
        let mut owned = Owned::default();
        for (id, name) in [("aa11", "one"), ("aa22", "two"), ("bb33", "aa11x")] {
            let container = OwnedContainer::new(name);
            owned.containers.add(id.to_owned(), container);
        }
        owned
    }

    #[test]
    fn g_47_a_reference_is_an_id_a_name_or_the_beginning_of_one_id() {
        let owned = owned();
        for (reference, id) in
            [("aa11", "aa11"), ("/one", "aa11"), ("two", "aa22"), ("b", "bb33"), ("aa11x", "bb33")]
        {
            assert_eq!(owned.containers.find(reference).unwrap().0, id, "{reference}");
        }
        for reference in ["aa", "", "/", "cc", "on"] {
            let refusal = owned.containers.find(reference).unwrap_err();
            assert_eq!(refusal.message, format!("No such container: {reference}"));
            assert_eq!(refusal.status, 404);
        }
    }

    #[test]
    fn g_51_the_jobs_own_container_may_be_seen_and_not_touched() {
        let mut owned = owned();
        owned.containers.adopt("cc44".to_owned(), "build".to_owned());
        assert!(owned.containers.find("build").is_ok());
        assert_eq!(owned.containers.find_own("build").unwrap_err().rule, "G-51");
        assert_eq!(owned.containers.count(), 3);
    }

    #[test]
    fn g_50_what_is_gone_counts_no_more_and_its_events_are_known() {
        let mut owned = owned();
        owned.containers.add_exec("e1".to_owned(), "aa11");
        owned.containers.forget("aa11");
        assert_eq!(owned.containers.count(), 2);
        assert!(owned.containers.exec("e1").is_err());
        assert!(owned.knows("aa11") && !owned.knows("zz"));
    }
}

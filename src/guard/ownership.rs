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
    pub containers: OwnedContainers,
    pub networks: OwnedNetworks,
    pub volumes: OwnedVolumes,
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
    /// Without a slash.
    pub name: String,
    /// The image as the client spelled it.
    pub image: String,
    /// Whether it is one of the runner's, with restricted rights (G-51).
    pub is_self: bool,
    /// What it mounts of the workspace: where it is pinned, and how the job calls it.
    pub binds: Vec<Bind>,
}

/// A bind of the workspace, or of the socket.
#[derive(Debug, Clone)]
pub struct Bind {
    /// As the engine was told.
    pub source: String,
    /// As the job said.
    pub job: String,
    /// Keeps it mounted; none for the socket.
    pub pin: Option<Arc<Pin>>,
}

impl OwnedContainers {
    /// The container that `reference` means (G-47): full id, name, or unambiguous beginning of an
    /// id.
    ///
    /// # Errors
    /// In the engine's words, when it is none or several.
    pub fn find(&self, reference: &str) -> Result<(&str, &OwnedContainer), Refusal> {
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
    pub fn find_own(&self, reference: &str) -> Result<(&str, &OwnedContainer), Refusal> {
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
    pub fn exec(&self, id: &str) -> Result<&str, Refusal> {
        match self.execs.get_key_value(id) {
            Some((id, _)) => Ok(id),
            None => Err(Refusal::missing(format!("No such exec instance: {id}"))),
        }
    }

    /// All containers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &OwnedContainer)> {
        self.by_id.iter().map(|(id, container)| (&**id, container))
    }

    /// How many containers there are or soon will be, the runner's own not counted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.creating + self.by_id.values().filter(|c| !c.is_self).count()
    }

    /// A container is about to be created; answered by [`Self::end_creating`].
    pub fn begin_creating(&mut self) {
        self.creating += 1;
    }

    /// A creation came to its end, whichever.
    pub fn end_creating(&mut self) {
        self.creating = self.creating.saturating_sub(1);
    }

    /// A container was created.
    pub fn add(&mut self, id: String, container: OwnedContainer) {
        self.by_id.insert(id, container);
    }

    /// One of the runner's own containers.
    pub fn adopt(&mut self, id: String, name: String) {
        let container = OwnedContainer { name, is_self: true, ..OwnedContainer::default() };
        self.by_id.insert(id, container);
    }

    /// The container has a new name.
    pub fn rename(&mut self, id: &str, name: &str) {
        if let Some(container) = self.by_id.get_mut(id) {
            name.clone_into(&mut container.name);
        }
    }

    /// The container is gone, with its execs. Its pins are given back, to be let go elsewhere.
    pub fn forget(&mut self, id: &str) -> Vec<Bind> {
        self.execs.retain(|_, container| container != id);
        let gone = self.by_id.remove(id);
        if gone.is_some() {
            self.gone.add(id);
        }
        gone.map(|container| container.binds).unwrap_or_default()
    }

    /// An exec was created.
    pub fn add_exec(&mut self, id: String, container: &str) {
        self.execs.insert(id, container.to_owned());
    }
}

/// The job's networks.
#[derive(Debug, Clone, Default)]
pub struct OwnedNetworks {
    /// Their names.
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
    pub fn find(&self, reference: &str) -> Result<(&str, &str), Refusal> {
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
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_id.iter().map(|(id, name)| (&**id, &**name))
    }

    /// Whether a network of that name is being created.
    #[must_use]
    pub fn is_creating(&self, name: &str) -> bool {
        self.pending.contains(name)
    }

    /// How many networks there are or soon will be.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_id.len() + self.pending.len()
    }

    /// A network is about to be created; answered by [`Self::end_creating`].
    pub fn begin_creating(&mut self, name: &str) {
        self.pending.insert(name.to_owned());
    }

    /// A network's creation came to its end, whichever.
    pub fn end_creating(&mut self, name: &str) {
        self.pending.remove(name);
    }

    /// A network was created.
    pub fn add(&mut self, id: String, name: &str) {
        self.by_id.insert(id, name.to_owned());
    }

    /// The network is gone, by id or name.
    pub fn forget(&mut self, reference: &str) {
        let id = self.find(reference).ok().map(|(id, _)| id.to_owned());
        if let Some(id) = id {
            self.by_id.remove(&id);
            self.gone.add(&id);
        }
    }
}

/// The job's volumes.
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
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// In the engine's words, when it is not the job's.
    pub fn find(&self, name: &str) -> Result<(), Refusal> {
        if self.contains(name) {
            return Ok(());
        }
        Err(Refusal::missing(format!("get {name}: no such volume")))
    }

    /// All volumes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether a volume of that name is being created.
    #[must_use]
    pub fn is_creating(&self, name: &str) -> bool {
        self.pending.contains(name)
    }

    /// How many volumes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// A volume is about to be created; answered by [`Self::end_creating`].
    pub fn begin_creating(&mut self, name: &str) {
        self.pending.insert(name.to_owned());
    }

    /// A volume's creation came to its end, whichever.
    pub fn end_creating(&mut self, name: &str) {
        self.pending.remove(name);
    }

    /// The job has this volume.
    pub fn add(&mut self, name: &str) {
        self.names.insert(name.to_owned());
    }

    /// The volume is gone.
    pub fn forget(&mut self, name: &str) {
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
pub struct OwnedTag {
    /// The image's id.
    pub id: String,
    /// Whether the job made it, and did not just pull it.
    pub made: bool,
}

impl OwnedImages {
    /// Whether the image is the job's, by its id in full.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    /// All images by id.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.ids.iter().map(String::as_str)
    }

    /// How many images there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// The job has this image.
    pub fn add(&mut self, id: &str) {
        if is_id(id) {
            self.ids.insert(id.to_owned());
        }
    }

    /// The image is gone.
    pub fn forget(&mut self, id: &str) {
        self.ids.remove(id);
        self.digests.retain(|(_, image)| image != id);
        self.tags.retain(|_, tag| tag.id != id);
    }

    /// The job's tag, by its canonical name.
    #[must_use]
    pub fn tag(&self, canonical: &str) -> Option<&OwnedTag> {
        self.tags.get(canonical)
    }

    /// All tags.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &OwnedTag)> {
        self.tags.iter().map(|(name, tag)| (&**name, tag))
    }

    /// The job has this tag.
    pub fn add_tag(&mut self, canonical: String, id: &str, made: bool) {
        self.add(id);
        // A pull does not make a tag that the job made somebody else's.
        let made = made || self.tags.get(&canonical).is_some_and(|tag| tag.made);
        self.tags.insert(canonical, OwnedTag { id: id.to_owned(), made });
    }

    /// The tag is gone.
    pub fn forget_tag(&mut self, canonical: &str) {
        self.tags.remove(canonical);
    }

    /// A build says that a step of it made this image, by the beginning of its id. What a step prints
    /// could be the same words: the job sees no image by them, and in the end only one goes that
    /// nobody else can mean.
    pub fn add_step(&mut self, id: String) {
        self.steps.push(id);
    }

    /// What steps of builds made, the oldest first.
    #[must_use]
    pub fn steps(&self) -> &[String] {
        &self.steps
    }

    /// A push gave the image this digest.
    pub fn add_digest(&mut self, digest: Reference, id: &str) {
        let pushed = (digest, id.to_owned());
        if !self.digests.contains(&pushed) {
            self.digests.push(pushed);
        }
    }

    /// The digests that pushes gave the image.
    pub fn digests<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Reference> {
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
            let container = OwnedContainer { name: name.to_owned(), ..OwnedContainer::default() };
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

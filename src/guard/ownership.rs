//! What a job owns on the engine: full ids and names (G-4, G-45, G-47, G-50, G-51). No I/O.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{Refusal, image::Reference, paths::Pin};

/// How many removed ids are remembered, for events that come late.
const REMEMBERED: usize = 1024;

/// The registry of one guard.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<String, String>,
    volumes: BTreeSet<String>,
    networks: BTreeMap<String, String>,
    images: BTreeSet<String>,
    steps: Vec<String>,
    tags: BTreeMap<String, Tag>,
    /// Digests of what the job pushed, and the images that they are of.
    digests: Vec<(Reference, String)>,
    gone: VecDeque<String>,
    creating: usize,
    pending_networks: BTreeSet<String>,
    pending_volumes: BTreeSet<String>,
}

/// A container of the job.
#[derive(Debug, Clone, Default)]
pub struct Container {
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

/// A tag of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// The image's id.
    pub id: String,
    /// Whether the job made it, and did not just pull it.
    pub made: bool,
}

impl Owned {
    /// The container that `reference` means (G-47): full id, name, or unambiguous beginning of an
    /// id.
    ///
    /// # Errors
    /// In the engine's words, when it is none or several.
    pub fn container(&self, reference: &str) -> Result<(&str, &Container), Refusal> {
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some((id, found)) = self.containers.get_key_value(reference) {
            return Ok((id, found));
        }
        if let Some((id, found)) = self.containers.iter().find(|(_, c)| c.name == name) {
            return Ok((id, found));
        }
        prefixed(&self.containers, reference)
            .ok_or_else(|| Refusal::missing(format!("No such container: {reference}")))
    }

    /// A container that is not one of the runner's own.
    ///
    /// # Errors
    /// When there is none, or it is (G-51).
    pub fn own_container(&self, reference: &str) -> Result<(&str, &Container), Refusal> {
        let (id, found) = self.container(reference)?;
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

    /// The network that `reference` means.
    ///
    /// # Errors
    /// In the engine's words, when there is none.
    pub fn network(&self, reference: &str) -> Result<(&str, &str), Refusal> {
        if let Some((id, name)) = self.networks.get_key_value(reference) {
            return Ok((id, name));
        }
        if let Some((id, name)) = self.networks.iter().find(|(_, name)| *name == reference) {
            return Ok((id, name));
        }
        prefixed(&self.networks, reference)
            .map(|(id, name)| (id, &**name))
            .ok_or_else(|| Refusal::missing(format!("network {reference} not found")))
    }

    /// Whether the volume is the job's.
    #[must_use]
    pub fn has_volume(&self, name: &str) -> bool {
        self.volumes.contains(name)
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// In the engine's words, when it is not the job's.
    pub fn volume(&self, name: &str) -> Result<(), Refusal> {
        if self.has_volume(name) {
            return Ok(());
        }
        Err(Refusal::missing(format!("get {name}: no such volume")))
    }

    /// Whether the image is the job's, by its id in full.
    #[must_use]
    pub fn has_image(&self, id: &str) -> bool {
        self.images.contains(id)
    }

    /// The job's image whose id begins so.
    #[must_use]
    pub fn image_by_prefix(&self, hex: &str) -> Option<&str> {
        let mut found = self.images.iter().filter(|id| id["sha256:".len()..].starts_with(hex));
        match (found.next(), found.next()) {
            (Some(id), None) => Some(id),
            _ => None,
        }
    }

    /// The job's tag, by its canonical name.
    #[must_use]
    pub fn tag(&self, canonical: &str) -> Option<&Tag> {
        self.tags.get(canonical)
    }

    /// All tags.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &Tag)> {
        self.tags.iter().map(|(name, tag)| (&**name, tag))
    }

    /// All images by id.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        self.images.iter().map(String::as_str)
    }

    /// All containers.
    pub fn containers(&self) -> impl Iterator<Item = (&str, &Container)> {
        self.containers.iter().map(|(id, container)| (&**id, container))
    }

    /// All networks: id and name.
    pub fn networks(&self) -> impl Iterator<Item = (&str, &str)> {
        self.networks.iter().map(|(id, name)| (&**id, &**name))
    }

    /// All volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.volumes.iter().map(String::as_str)
    }

    /// Whether an event about this object is the job's to see, removed ones included.
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        self.containers.contains_key(id)
            || self.networks.contains_key(id)
            || self.volumes.contains(id)
            || self.images.contains(id)
            || self.gone.iter().any(|gone| gone == id)
    }

    /// Whether a network of that name is being created.
    #[must_use]
    pub fn is_creating_network(&self, name: &str) -> bool {
        self.pending_networks.contains(name)
    }

    /// Whether a volume of that name is being created.
    #[must_use]
    pub fn is_creating_volume(&self, name: &str) -> bool {
        self.pending_volumes.contains(name)
    }

    /// How many containers there are or soon will be, the runner's own not counted.
    #[must_use]
    pub fn container_count(&self) -> usize {
        self.creating + self.containers.values().filter(|c| !c.is_self).count()
    }

    /// How many networks there are or soon will be.
    #[must_use]
    pub fn network_count(&self) -> usize {
        self.networks.len() + self.pending_networks.len()
    }

    /// How many volumes there are.
    #[must_use]
    pub fn volume_count(&self) -> usize {
        self.volumes.len()
    }

    /// How many images there are.
    #[must_use]
    pub fn image_count(&self) -> usize {
        self.images.len()
    }

    /// A container is about to be created; answered by [`Self::settle_container`].
    pub fn expect_container(&mut self) {
        self.creating += 1;
    }

    /// A creation came to its end, whichever.
    pub fn settle_container(&mut self) {
        self.creating = self.creating.saturating_sub(1);
    }

    /// A container was created.
    pub fn add_container(&mut self, id: String, container: Container) {
        self.containers.insert(id, container);
    }

    /// One of the runner's own containers.
    pub fn adopt(&mut self, id: String, name: String) {
        let container = Container { name, is_self: true, ..Container::default() };
        self.containers.insert(id, container);
    }

    /// The container has a new name.
    pub fn rename(&mut self, id: &str, name: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            name.clone_into(&mut container.name);
        }
    }

    /// The container is gone, with its execs. Its pins are given back, to be let go elsewhere.
    pub fn forget_container(&mut self, id: &str) -> Vec<Bind> {
        self.execs.retain(|_, container| container != id);
        let gone = self.containers.remove(id);
        if gone.is_some() {
            self.remember(id);
        }
        gone.map(|container| container.binds).unwrap_or_default()
    }

    /// An exec was created.
    pub fn add_exec(&mut self, id: String, container: &str) {
        self.execs.insert(id, container.to_owned());
    }

    /// A volume is about to be created; answered by [`Self::settle_volume`].
    pub fn expect_volume(&mut self, name: &str) {
        self.pending_volumes.insert(name.to_owned());
    }

    /// A volume's creation came to its end, whichever.
    pub fn settle_volume(&mut self, name: &str) {
        self.pending_volumes.remove(name);
    }

    /// The job has this volume.
    pub fn add_volume(&mut self, name: &str) {
        self.volumes.insert(name.to_owned());
    }

    /// The volume is gone.
    pub fn forget_volume(&mut self, name: &str) {
        if self.volumes.remove(name) {
            self.remember(name);
        }
    }

    /// A network is about to be created; answered by [`Self::settle_network`].
    pub fn expect_network(&mut self, name: &str) {
        self.pending_networks.insert(name.to_owned());
    }

    /// A network's creation came to its end, whichever.
    pub fn settle_network(&mut self, name: &str) {
        self.pending_networks.remove(name);
    }

    /// A network was created.
    pub fn add_network(&mut self, id: String, name: &str) {
        self.networks.insert(id, name.to_owned());
    }

    /// The network is gone, by id or name.
    pub fn forget_network(&mut self, reference: &str) {
        let id = self.network(reference).ok().map(|(id, _)| id.to_owned());
        if let Some(id) = id {
            self.networks.remove(&id);
            self.remember(&id);
        }
    }

    /// The job has this image.
    pub fn add_image(&mut self, id: &str) {
        if super::image::is_id(id) {
            self.images.insert(id.to_owned());
        }
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

    /// The image is gone.
    pub fn forget_image(&mut self, id: &str) {
        self.images.remove(id);
        self.digests.retain(|(_, image)| image != id);
        self.tags.retain(|_, tag| tag.id != id);
    }

    /// The job has this tag.
    pub fn add_tag(&mut self, canonical: String, id: &str, made: bool) {
        self.add_image(id);
        // A pull does not make a tag that the job made somebody else's.
        let made = made || self.tags.get(&canonical).is_some_and(|tag| tag.made);
        self.tags.insert(canonical, Tag { id: id.to_owned(), made });
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

    /// The tag is gone.
    pub fn forget_tag(&mut self, canonical: &str) {
        self.tags.remove(canonical);
    }

    fn remember(&mut self, id: &str) {
        if self.gone.len() == REMEMBERED {
            self.gone.pop_front();
        }
        self.gone.push_back(id.to_owned());
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
            let container = Container { name: name.to_owned(), ..Container::default() };
            owned.add_container(id.to_owned(), container);
        }
        owned
    }

    #[test]
    fn g_47_a_reference_is_an_id_a_name_or_the_beginning_of_one_id() {
        let owned = owned();
        for (reference, id) in
            [("aa11", "aa11"), ("/one", "aa11"), ("two", "aa22"), ("b", "bb33"), ("aa11x", "bb33")]
        {
            assert_eq!(owned.container(reference).unwrap().0, id, "{reference}");
        }
        for reference in ["aa", "", "/", "cc", "on"] {
            let refusal = owned.container(reference).unwrap_err();
            assert_eq!(refusal.message, format!("No such container: {reference}"));
            assert_eq!(refusal.status, 404);
        }
    }

    #[test]
    fn g_51_the_jobs_own_container_may_be_seen_and_not_touched() {
        let mut owned = owned();
        owned.adopt("cc44".to_owned(), "build".to_owned());
        assert!(owned.container("build").is_ok());
        assert_eq!(owned.own_container("build").unwrap_err().rule, "G-51");
        assert_eq!(owned.container_count(), 3);
    }

    #[test]
    fn g_50_what_is_gone_counts_no_more_and_its_events_are_known() {
        let mut owned = owned();
        owned.add_exec("e1".to_owned(), "aa11");
        owned.forget_container("aa11");
        assert_eq!(owned.container_count(), 2);
        assert!(owned.exec("e1").is_err());
        assert!(owned.knows("aa11") && !owned.knows("zz"));
    }
}

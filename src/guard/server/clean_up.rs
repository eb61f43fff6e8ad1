//! The clean-up after a job: all that it made is removed, whatever state it is in. It is idempotent, continues after failures, and returns what could not be removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::guard::{ids::is_id_like, image::Reference, names::registry_of, parse::target::encode};

use super::{backend::Backend, engine::Engine, journal::JournalContents};

/// How often containers are listed: some may have been in creation the time before.
const ROUNDS: usize = 5;
/// How long one removal may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the engine may take to finish what it was creating when its client died.
const SETTLING: Duration = Duration::from_millis(300);

/// The list of images.
const IMAGES: &str = "/images/json";

/// What is to be removed, beside all that has the labels.
pub(super) struct Leftovers {
    engine: Engine,
    /// The further ones count, too: a container of another job whose image this job built has
    /// this job's identity from that image, but its own job's labels.
    labels: BTreeMap<String, String>,
    /// The labels of images.
    image_labels: BTreeMap<String, String>,
    containers: BTreeSet<String>,
    /// By id; the default network last, by name where its id was never known.
    networks: Vec<String>,
    volumes: BTreeSet<String>,
    /// Tags, and the images that they must mean.
    tags: BTreeMap<String, BTreeSet<String>>,
    images: BTreeSet<String>,
    /// The images of single steps of builds, the oldest first.
    steps: Vec<String>,
    images_go: bool,
    /// Whether the engine may still be creating what a dead guard requested.
    is_abandoned: bool,
}

impl Leftovers {
    /// What a guard has made.
    pub(super) fn of(backend: &Backend, made_network: bool) -> Self {
        let owned = backend.inventory.owned();
        let pulled: BTreeSet<&str> =
            owned.images.tags().filter(|(_, tag)| !tag.made).map(|(_, tag)| &*tag.id).collect();
        let mut networks: Vec<String> =
            owned.networks.iter().map(|(id, _)| id.to_owned()).collect();
        if made_network {
            networks.push(backend.facts.network_id.clone());
        }
        let mut tags = backend.inventory.journal().tags;
        tags.extend(owned.images.tags().filter(|(_, tag)| tag.made).filter_map(|(name, tag)| {
            let upstream = backend.settings.upstream_tag(&Reference::parse(name)?);
            Some((upstream.canonical(), BTreeSet::from([tag.id.clone()])))
        }));
        Self {
            engine: backend.engine.clone(),
            labels: backend.settings.all_labels(),
            image_labels: backend.settings.image_labels(),
            containers: owned
                .containers
                .iter()
                .filter(|(_, container)| !container.is_self)
                .map(|(id, _)| id.to_owned())
                .collect(),
            networks,
            volumes: owned
                .volumes
                .names()
                .map(|name| backend.settings.names.upstream(name))
                .collect(),
            tags,
            images: owned
                .images
                .ids()
                .filter(|id| !pulled.contains(id))
                .map(str::to_owned)
                .collect(),
            steps: owned.images.steps().to_vec(),
            images_go: backend.settings.images.remove,
            is_abandoned: false,
        }
    }

    /// What a dead guard has left.
    pub(super) fn recorded(engine: &Engine, journal: JournalContents) -> Self {
        Self {
            engine: engine.clone(),
            labels: journal.labels,
            image_labels: journal.image_labels,
            containers: BTreeSet::new(),
            networks: journal.network.into_iter().collect(),
            volumes: journal.volumes,
            tags: journal.tags,
            images: journal.images,
            steps: journal.steps,
            images_go: journal.images_go,
            is_abandoned: true,
        }
    }

    /// Removes containers, networks, volumes and images. Returns what could not be removed, and why.
    pub(super) async fn remove(mut self) -> Vec<String> {
        let mut left = Vec::new();
        self.containers(&mut left).await;
        self.networks(&mut left).await;
        self.volumes(&mut left).await;
        if self.images_go {
            self.images().await;
        }
        left
    }

    /// One exchange with the engine within [`DEADLINE`]: the status and the value of the answer.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<(StatusCode, Value), String> {
        let asked = self.engine.json(&method, path, query, body.as_ref());
        match tokio::time::timeout(DEADLINE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the engine takes too long".to_owned()),
        }
    }

    /// What a list at `path` has under all labels of such things: the text in `field` of each entry.
    async fn listed(
        &self,
        path: &str,
        query: &[(&str, &str)],
        field: &str,
    ) -> Result<Vec<String>, String> {
        let labels = if path == IMAGES { &self.image_labels } else { &self.labels };
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let filters = json!({ "label": labels }).to_string();
        let query = [query, &[("filters", &*filters)]].concat();
        let (status, list) = self.ask(Method::GET, path, &query, None).await?;
        if status != StatusCode::OK {
            return Err(format!("the engine answered {status}"));
        }
        let list = list.get("Volumes").unwrap_or(&list).as_array().cloned().unwrap_or_default();
        Ok(list.iter().filter_map(|entry| Some(entry[field].as_str()?.to_owned())).collect())
    }

    async fn containers(&mut self, left: &mut Vec<String>) {
        let mut ids = std::mem::take(&mut self.containers);
        let mut failed = Vec::new();
        for round in 0..ROUNDS {
            match self.listed("/containers/json", &[("all", "1")], "Id").await {
                Ok(found) => ids.extend(found),
                Err(error) => failed.push(format!("containers: {error}")),
            }
            if ids.is_empty() && (round > 1 || !self.is_abandoned) {
                break;
            }
            if ids.is_empty() {
                tokio::time::sleep(SETTLING).await;
                continue;
            }
            failed.clear();
            for id in std::mem::take(&mut ids) {
                if let Err(error) = self.container(&id).await {
                    failed.push(format!("container {id}: {error}"));
                    ids.insert(id);
                }
            }
        }
        left.extend(failed);
    }

    async fn container(&self, id: &str) -> Result<(), String> {
        let path = format!("/containers/{id}");
        let remove = || self.ask(Method::DELETE, &path, &[("force", "1"), ("v", "1")], None);
        let first = gone(remove().await);
        if first.is_ok() {
            return first;
        }
        // The container may be paused, or its policy may have started it again.
        let policy = json!({ "RestartPolicy": { "Name": "no" } });
        drop(self.ask(Method::POST, &format!("{path}/update"), &[], Some(policy)).await);
        drop(self.ask(Method::POST, &format!("{path}/unpause"), &[], None).await);
        drop(self.ask(Method::POST, &format!("{path}/kill"), &[], None).await);
        gone(remove().await)
    }

    async fn networks(&self, left: &mut Vec<String>) {
        let mut networks = self.listed("/networks", &[], "Id").await.unwrap_or_default();
        networks.extend(self.networks.iter().cloned());
        networks.sort_unstable();
        networks.dedup();
        for id in networks {
            let path = format!("/networks/{}", encode(&id));
            // A name alone could be that of another job's network.
            if self.is_abandoned && !is_id_like(&id) && !self.has_labels(&path).await {
                continue;
            }
            if gone(self.ask(Method::DELETE, &path, &[], None).await).is_ok() {
                continue;
            }
            // A container of the runner's is still connected to it.
            let details = self.ask(Method::GET, &path, &[], None).await;
            let inside = details
                .ok()
                .and_then(|(_, mut network)| Some(network.get_mut("Containers")?.take()));
            for container in
                inside.as_ref().and_then(Value::as_object).into_iter().flat_map(|m| m.keys())
            {
                let body = json!({ "Container": container, "Force": true });
                let path = format!("{path}/disconnect");
                drop(self.ask(Method::POST, &path, &[], Some(body)).await);
            }
            if let Err(error) = gone(self.ask(Method::DELETE, &path, &[], None).await) {
                left.push(format!("network {id}: {error}"));
            }
        }
    }

    /// Whether the network has labels of the guard's, and no others.
    async fn has_labels(&self, path: &str) -> bool {
        let Ok((StatusCode::OK, network)) = self.ask(Method::GET, path, &[], None).await else {
            return false;
        };
        let own = |(key, value): (&String, &Value)| {
            self.labels.get(key).map(String::as_str) == value.as_str()
        };
        network["Labels"].as_object().is_none_or(|labels| labels.iter().all(own))
    }

    async fn volumes(&self, left: &mut Vec<String>) {
        let mut names = self.volumes.clone();
        names.extend(self.listed("/volumes", &[], "Name").await.unwrap_or_default());
        for name in names {
            let path = format!("/volumes/{}", encode(&name));
            let removed = self.ask(Method::DELETE, &path, &[("force", "1")], None).await;
            if let Err(error) = gone(removed) {
                left.push(format!("volume {name}: {error}"));
            }
        }
    }

    /// Tags that the job made, then images that only it had. What others use meanwhile stays.
    async fn images(&mut self) {
        for (name, ids) in &self.tags {
            let path = format!("/images/{name}");
            let Some(details) = self.image(&path).await else { continue };
            let has_labels = self
                .image_labels
                .iter()
                .all(|(key, value)| details["Config"]["Labels"][key] == value.as_str());
            let id = details["Id"].as_str().unwrap_or_default();
            if ids.contains(id) || has_labels {
                drop(self.ask(Method::DELETE, &path, &[], None).await);
                self.images.insert(id.to_owned());
            } else if self.is_abandoned && ids.is_empty() {
                // A warning once is all: the guard will never know.
                tracing::warn!(
                    image = name,
                    "image may be another job's and stays: it was being loaded when the guard died"
                );
            }
        }
        // Images of failed builds, and unnamed ones, which the guard did not see.
        let unnamed = self.listed(IMAGES, &[], "Id").await.unwrap_or_default();
        self.images.extend(unnamed);
        for id in &self.images {
            self.unused(id, |_| true).await;
        }
        // Removing the last image of a build removes its parents, too. An image that was not built has no
        // parent.
        for id in self.steps.iter().rev() {
            let is_built =
                |details: &Value| details["Parent"].as_str().is_some_and(|id| !id.is_empty());
            self.unused(id, is_built).await;
        }
    }

    /// Removes an image that no tag and no digest refers to.
    async fn unused(&self, id: &str, is_own: impl Fn(&Value) -> bool) {
        let path = format!("/images/{id}");
        let Some(mut details) = self.image(&path).await else { return };
        // Tags of the guard's own that a crash kept out of the journal.
        if let Some(Value::Array(tags)) = details.get_mut("RepoTags") {
            let identity = self.image_labels.iter().next();
            let registry = identity.and_then(|(k, v)| registry_of(&(k.clone(), v.clone())));
            let is_own = |tag: &Value| {
                let tag = tag.as_str().unwrap_or_default();
                registry.as_deref().is_some_and(|registry| tag.starts_with(registry))
            };
            for tag in tags.extract_if(.., |tag| is_own(tag)) {
                let path = format!("/images/{}", tag.as_str().unwrap_or_default());
                drop(self.ask(Method::DELETE, &path, &[("noprune", "1")], None).await);
            }
        }
        // With a tag or a digest left, another job uses the image.
        let used = |name: &str| details[name].as_array().is_some_and(|list| !list.is_empty());
        if is_own(&details) && !used("RepoTags") && !used("RepoDigests") {
            drop(self.ask(Method::DELETE, &path, &[], None).await);
        }
    }

    async fn image(&self, path: &str) -> Option<Value> {
        match self.ask(Method::GET, &format!("{path}/json"), &[], None).await {
            Ok((StatusCode::OK, details)) => Some(details),
            _ => None,
        }
    }
}

/// Whether an object is gone after this answer; the engine's reason otherwise.
fn gone(answer: Result<(StatusCode, Value), String>) -> Result<(), String> {
    match answer {
        Ok((status, _)) if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
        Ok((_, value))
            if value["message"].as_str().is_some_and(|m| m.contains("already in progress")) =>
        {
            Ok(())
        }
        Ok((status, value)) => Err(value["message"].as_str().unwrap_or(status.as_str()).to_owned()),
        Err(error) => Err(error),
    }
}

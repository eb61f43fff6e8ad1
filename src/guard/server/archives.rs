//! Archives that are read before the engine gets them: spooled to a file without a name, scanned,
//! and sent as they were scanned (G-64, G-72 … G-75).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};
use serde_json::{Map, Value, json};

use crate::guard::{
    image::Reference,
    parse::{archive, dockerfile, json as strict},
    policy::{credentials::registry_host, forward::Forward},
    refusal::Refusal,
};

use super::{
    backend::Backend,
    engine::Outgoing,
    images::{Images, ResolvedImage},
    journal::JournalEntry,
    response::{full, unreachable},
    spool::{Spool, spool},
    tags::{HeldTag, Tags},
};

/// How many images a build may need, and how many tags may be loaded at once.
const IMAGES: usize = 100;
/// How much larger than what was sent an archive may be, unpacked.
const UNPACKED: u64 = 8;

/// The archives that a job sends, and the images that its builds need.
#[derive(Debug)]
pub(super) struct Archives {
    backend: Arc<Backend>,
    images: Images,
    tags: Tags,
}

impl Archives {
    pub(super) fn new(backend: &Arc<Backend>, images: &Images, tags: &Tags) -> Self {
        Self { backend: Arc::clone(backend), images: images.clone(), tags: tags.clone() }
    }

    /// Reads an archive of images to its end, and judges it (G-64). Its tags are the request's from
    /// here on.
    pub(super) async fn read_images(
        &self,
        archive: &mut Option<Incoming>,
        held: &mut Vec<HeldTag>,
    ) -> Result<File, Refusal> {
        let most = self.backend.settings.limits.upload.saturating_mul(UNPACKED);
        let body = body_of(archive)?;
        let (mut tags, file) =
            spool(body, &self.backend.settings, move |archive| archive::images(archive, most))
                .await?;
        // Always in the same order, so that no two requests wait for each other.
        tags.sort_by_key(|(tag, _)| tag.canonical());
        tags.dedup_by(|(a, _), (b, _)| a == b);
        if tags.len() > IMAGES {
            return Err(Refusal::limit("tags in one archive", IMAGES));
        }
        for (tag, image) in tags {
            held.push(self.tags.reserve(&tag).await?);
            self.tags.free_tag(&tag).await?;
            self.backend
                .inventory
                .announce(&JournalEntry::Tagging { tags: vec![tag.canonical()], image })?;
        }
        Ok(file)
    }

    /// Reads a build's context to its end, and judges it (G-72 … G-75).
    pub(super) async fn read_context(
        &self,
        forward: &mut Forward,
        archive: &mut Option<Incoming>,
    ) -> Result<File, Refusal> {
        let most = self.backend.settings.limits.upload.saturating_mul(UNPACKED);
        let name = parameter(forward, "dockerfile").to_owned();
        let arguments = arguments(parameter(forward, "buildargs"))?;
        let judge = move |archive: &mut Spool| {
            dockerfile::images(&archive::dockerfile(archive, &name, most)?, &arguments)
        };
        let (needed, file) = spool(body_of(archive)?, &self.backend.settings, judge).await?;
        self.need_images(needed, forward).await?;
        Ok(file)
    }

    /// Finds all images that a build needs, or pulls them, and checks that the job may use them (G-73).
    async fn need_images(&self, needed: Vec<String>, forward: &mut Forward) -> Result<(), Refusal> {
        // With `pull` the engine would also pull shared images; the guard pulls the others itself.
        let pull = parameter(forward, "pull") == "1";
        forward.query.retain(|(name, _)| name != "pull");
        let credentials = self.allowed_credentials(forward)?;
        let mut open = needed;
        let mut seen = BTreeSet::new();
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            if seen.len() > IMAGES {
                return Err(Refusal::because("Dockerfile: too many images", "G-73"));
            }
            let found = self.base_image(&name, pull, &credentials, forward).await?;
            let lines: Vec<String> = found.details["Config"]["OnBuild"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|line| Some(line.as_str()?.to_owned()))
                .collect();
            open.extend(dockerfile::triggers(&lines)?);
        }
        Ok(())
    }

    async fn base_image(
        &self,
        name: &str,
        pull: bool,
        credentials: &Map<String, Value>,
        forward: &mut Forward,
    ) -> Result<ResolvedImage, Refusal> {
        // The engine would find any image by an id, so only names are accepted.
        let reference = Reference::parse(name).ok_or_else(|| {
            Refusal::because(&format!("Dockerfile: {name} is no name of an image"), "G-73")
        })?;
        let is_made = self
            .backend
            .inventory
            .owned()
            .images
            .tag(&reference.canonical())
            .is_some_and(|tag| tag.made);
        let found = self.images.find(name).await;
        if is_made && self.backend.settings.scopes_tags() {
            forward.held.push(reference);
            return found;
        }
        let is_pulled = !is_made && !self.backend.settings.images.shares(&reference);
        if !(is_pulled && (pull || found.is_err())) {
            return self.same_image(&reference, found?).await;
        }
        self.backend.settings.images.may_ask(&reference.registry)?;
        self.pull(&reference, credentials).await?;
        self.images.find(name).await
    }

    /// The engine resolves a name by itself; it must find what the job sees under it.
    async fn same_image(
        &self,
        reference: &Reference,
        found: ResolvedImage,
    ) -> Result<ResolvedImage, Refusal> {
        let path = format!("/images/{}/json", reference.canonical());
        let now = self.backend.get(&path).await?.unwrap_or_default();
        if now["Id"].as_str() == Some(&found.id) {
            return Ok(found);
        }
        Err(Refusal::because(
            &format!(
                "Dockerfile: {} is not the image that this job has any more",
                reference.short()
            ),
            "G-73",
        ))
    }

    async fn pull(
        &self,
        reference: &Reference,
        credentials: &Map<String, Value>,
    ) -> Result<(), Refusal> {
        let tag = reference.digest.clone().or_else(|| reference.tag.clone()).unwrap_or_default();
        let query = [("fromImage".to_owned(), reference.repository()), ("tag".to_owned(), tag)];
        let own =
            credentials.iter().find(|(server, _)| registry_host(server) == reference.registry);
        let headers = own
            .map(|(_, auth)| ("x-registry-auth", BASE64_URL_SAFE.encode(auth.to_string())))
            .into_iter()
            .collect();
        let answer = self
            .backend
            .engine
            .send(Outgoing {
                method: &Method::POST,
                path: "/images/create",
                query: &query,
                content_type: None,
                headers,
                body: full(Bytes::new()),
                upgrade: false,
            })
            .await
            .map_err(unreachable)?;
        let failed = || {
            Refusal::missing(format!(
                "pull access denied for {}, or it does not exist",
                reference.short()
            ))
        };
        if !answer.status().is_success() {
            return Err(failed());
        }
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(unreachable)?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if text.len() > 16 << 20 {
                return Err(Refusal::failed(502, "the pull says too much"));
            }
        }
        // The status is 200 even when the pull failed (G-67).
        let bad = text.split(|byte| *byte == b'\n').any(|line| {
            serde_json::from_slice::<Value>(line).is_ok_and(|line| line.get("error").is_some())
        });
        if bad {
            return Err(failed());
        }
        let id = self.tags.meaning(reference).await?.ok_or_else(failed)?;
        self.tags.pulled(reference, &id).await;
        Ok(())
    }

    /// The request's credentials for registries that may be asked. Others are not sent on.
    fn allowed_credentials(&self, forward: &mut Forward) -> Result<Map<String, Value>, Refusal> {
        let Some(header) = &forward.registries else { return Ok(Map::new()) };
        let odd = || Refusal::malformed("the registry's credentials are not base64", "G-66");
        let mut map = strict::object(&BASE64_URL_SAFE.decode(header).map_err(|_| odd())?)?;
        let allowed = &self.backend.settings.images.registries;
        map.retain(|server, _| allowed.iter().any(|host| host == registry_host(server)));
        forward.registries = Some(BASE64_URL_SAFE.encode(json!(map).to_string()));
        Ok(map)
    }
}

fn body_of(archive: &mut Option<Incoming>) -> Result<Incoming, Refusal> {
    archive.take().ok_or_else(|| Refusal::malformed("there is no archive", "G-26"))
}

fn parameter<'a>(forward: &'a Forward, name: &str) -> &'a str {
    forward.query.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
}

fn arguments(text: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let arguments = strict::object(text.as_bytes())?;
    Ok(arguments
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_str()?.to_owned())))
        .collect())
}

//! The engine's images as a job's requests name them: found, put in, removed.

use std::sync::Arc;

use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::guard::{
    ids::{is_hex, is_id, is_id_like},
    image::Reference,
    policy::{
        context::PolicyContext,
        filter,
        forward::{Forward, ImageUse, SentBody},
    },
    refusal::Refusal,
};

use super::{
    backend::Backend,
    journal::JournalEntry,
    response::{BoxBody, json_response, unreachable},
};

/// An image of the engine that the job may see.
#[derive(Debug, Clone)]
pub(super) struct ResolvedImage {
    pub(super) id: String,
    /// The name it was found by.
    pub(super) reference: Option<Reference>,
    pub(super) details: Value,
}

/// The images that the job sees.
#[derive(Debug, Clone)]
pub(super) struct Images {
    backend: Arc<Backend>,
}

impl Images {
    pub(super) fn new(backend: &Arc<Backend>) -> Self {
        Self { backend: Arc::clone(backend) }
    }

    /// Writes a resolved image where it belongs.
    pub(super) fn place(&self, forward: &mut Forward, found: &ResolvedImage, how: ImageUse) {
        let name = match (how, &found.reference) {
            (ImageUse::Name, Some(reference)) => {
                if self
                    .backend
                    .inventory
                    .owned()
                    .images
                    .tag(&reference.canonical())
                    .is_some_and(|tag| tag.made)
                {
                    forward.held.push(reference.clone());
                }
                reference.canonical()
            }
            _ => found.id.clone(),
        };
        forward.path = forward.path.replace("{image}", &name);
        if how != ImageUse::Container {
            return;
        }
        let SentBody::Json(body) = &mut forward.body else { return };
        body.insert("Image".to_owned(), json!(found.id));
        if !forward.needs.publish_all {
            return;
        }
        let mut exposed: Vec<String> = Vec::new();
        for ports in [&found.details["Config"]["ExposedPorts"], &body["ExposedPorts"]] {
            exposed.extend(ports.as_object().into_iter().flat_map(|ports| ports.keys().cloned()));
        }
        let bindings = &mut body["HostConfig"]["PortBindings"];
        if !bindings.is_object() {
            *bindings = json!({});
        }
        for port in exposed {
            if bindings.get(&port).is_none() {
                bindings[port] = json!([{ "HostIp": self.backend.facts.gateway, "HostPort": "" }]);
            }
        }
    }

    /// The image that `name` means, when the job may see it (G-47, G-60).
    pub(super) async fn find(&self, name: &str) -> Result<ResolvedImage, Refusal> {
        let missing = || {
            let shown = Reference::parse(name).map_or_else(|| name.to_owned(), |r| r.short());
            Refusal::missing(format!("No such image: {shown}"))
        };
        let context = self.backend.context();
        let mut wanted = None;
        let reference = Reference::parse(name);
        if let Some(reference) = &reference {
            let canonical = reference.canonical();
            if let Some(tag) = context.owned.images.tag(&canonical) {
                wanted = Some(tag.id.clone());
            } else if self.backend.settings.images.shares(reference) || reference.digest.is_some() {
                wanted = Some(canonical);
            }
        }
        let found_by_name = wanted.is_some();
        if wanted.is_none() {
            wanted = self.find_by_id(name, &context).await?;
        }
        let path = format!("/images/{}/json", wanted.ok_or_else(missing)?);
        let mut details = self.backend.get(&path).await?.ok_or_else(missing)?;
        self.backend.settings.names.strip(&mut details);
        let id = details["Id"].as_str().unwrap_or_default().to_owned();
        // A digest, too, shows only what the job sees otherwise.
        let visible = is_id(&id) && filter::image(details.clone(), &context).is_some();
        if !visible {
            return Err(missing());
        }
        Ok(ResolvedImage { id, reference: reference.filter(|_| found_by_name), details })
    }

    async fn find_by_id(
        &self,
        name: &str,
        context: &PolicyContext,
    ) -> Result<Option<String>, Refusal> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.is_empty() || hex.len() > 64 || !is_hex(hex) {
            return Ok(None);
        }
        let mut list = self.backend.get("/images/json").await?.unwrap_or_default();
        self.backend.settings.names.strip(&mut list);
        let visible = filter::images(list, context);
        let listed =
            visible.as_array().into_iter().flatten().filter_map(|image| image["Id"].as_str());
        let mut found: Vec<&str> = listed
            .chain(context.owned.images.ids())
            .filter(|id| id["sha256:".len().min(id.len())..].starts_with(hex))
            .collect();
        found.sort_unstable();
        found.dedup();
        Ok(match found[..] {
            [id] => Some(id.to_owned()),
            _ => None,
        })
    }

    /// `DELETE /images/{name}` (G-62, G-68).
    pub(super) async fn remove(
        &self,
        name: &str,
        forward: &Forward,
    ) -> Result<Response<BoxBody>, Refusal> {
        let found = self.find(name).await?;
        let owned = self.backend.inventory.owned();
        let tag = found.reference.as_ref().filter(|_| !is_id_like(name));
        let shared = |text: &str| {
            Refusal::because(
                &format!("the image {text} is used by other jobs and cannot be removed"),
                "G-68",
            )
        };
        let path = match &tag {
            Some(reference) => match owned.images.tag(&reference.canonical()) {
                None => return Err(shared(name)),
                Some(tag) if !tag.made => {
                    // Other jobs may use the tag, so only this job's use of it ends (G-62).
                    self.backend
                        .inventory
                        .change(|owned| owned.images.forget_tag(&reference.canonical()));
                    let untagged = json!([{ "Untagged": reference.short() }]);
                    return Ok(json_response(StatusCode::OK, &untagged));
                }
                Some(_) => self.backend.settings.upstream_tag(reference).canonical(),
            },
            None => {
                let tags = found.details["RepoTags"].as_array();
                let all_made = tags.into_iter().flatten().filter_map(Value::as_str).all(|tag| {
                    Reference::parse(tag)
                        .and_then(|reference| owned.images.tag(&reference.canonical()))
                        .is_some_and(|tag| tag.made)
                });
                if !owned.images.contains(&found.id) || !all_made {
                    return Err(shared(name));
                }
                found.id.clone()
            }
        };
        let query: Vec<(&str, &str)> =
            forward.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let sent = self
            .backend
            .engine
            .json(&Method::DELETE, &format!("/images/{path}"), &query, None)
            .await;
        let (status, mut value) = sent.map_err(unreachable)?;
        self.backend.settings.names.strip(&mut value);
        if !status.is_success() {
            let message = value["message"].as_str().unwrap_or_default();
            let message = filter::message(message, &self.backend.context());
            return Ok(json_response(status, &json!({ "message": message })));
        }
        if tag.is_some() {
            self.backend.inventory.record(&JournalEntry::Untag(path));
        }
        self.backend.inventory.change(|owned| {
            if let Some(reference) = tag {
                owned.images.forget_tag(&reference.canonical());
            }
            for deleted in value.as_array().into_iter().flatten() {
                if let Some(id) = deleted["Deleted"].as_str() {
                    owned.images.forget(id);
                }
            }
        });
        Ok(json_response(status, &value))
    }
}

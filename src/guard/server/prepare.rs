//! What must be done before a request can be sent: objects found or made, binds pinned, archives
//! read, tags held.

use std::{net::Ipv4Addr, sync::Arc};

use hyper::{Method, StatusCode, body::Incoming};
use serde_json::json;

use crate::guard::{
    image::Reference,
    ownership::Bind,
    parse::target,
    peer::Route,
    policy::{
        forward::{FollowUp, Forward, SentBody},
        translate,
    },
    refusal::Refusal,
};

use super::{
    archives::Archives,
    backend::Backend,
    images::Images,
    pins::Pins,
    response::unreachable,
    tags::{HeldTag, Tags},
};

/// A request that can be sent.
pub(super) struct Prepared {
    pub(super) forward: Forward,
    pub(super) binds: Vec<Bind>,
    /// The archive that was read.
    pub(super) spool: Option<std::fs::File>,
    /// Tags that are held until the request's end.
    pub(super) held: Vec<HeldTag>,
    pub(super) _pending: Option<PendingCreation>,
}

/// An object that is being created: it counts against the limits until this is dropped.
pub(super) struct PendingCreation {
    backend: Arc<Backend>,
    what: PendingObject,
}

#[derive(Debug, Clone)]
enum PendingObject {
    Container,
    Network(String),
    Volume(String),
}

impl PendingCreation {
    fn new(backend: &Arc<Backend>, what: PendingObject) -> Self {
        backend.inventory.change(|owned| match &what {
            PendingObject::Container => owned.containers.begin_creating(),
            PendingObject::Network(name) => owned.networks.begin_creating(name),
            PendingObject::Volume(name) => owned.volumes.begin_creating(name),
        });
        Self { backend: Arc::clone(backend), what }
    }
}

impl Drop for PendingCreation {
    fn drop(&mut self) {
        self.backend.inventory.change(|owned| match &self.what {
            PendingObject::Container => owned.containers.end_creating(),
            PendingObject::Network(name) => owned.networks.end_creating(name),
            PendingObject::Volume(name) => owned.volumes.end_creating(name),
        });
    }
}

#[derive(Debug)]
pub(super) struct Preparation {
    backend: Arc<Backend>,
    images: Images,
    tags: Tags,
    archives: Archives,
    pins: Pins,
}

impl Preparation {
    pub(super) fn new(backend: &Arc<Backend>, images: &Images, tags: &Tags, pins: Pins) -> Self {
        Self {
            backend: Arc::clone(backend),
            images: images.clone(),
            tags: tags.clone(),
            archives: Archives::new(backend, images, tags),
            pins,
        }
    }

    /// Makes a request ready to be sent. What is held for it is released when the result is dropped.
    pub(super) async fn prepare(
        &self,
        mut forward: Forward,
        archive: &mut Option<Incoming>,
    ) -> Result<Prepared, Refusal> {
        let created = match &forward.follow_up {
            FollowUp::Created { .. } => Some(PendingObject::Container),
            FollowUp::Network(name) => Some(PendingObject::Network(name.clone())),
            _ => None,
        };
        let mut pending = created.map(|what| PendingCreation::new(&self.backend, what));
        let tags = std::mem::take(&mut forward.new_tags);
        for tag in tags.iter().filter(|_| !self.backend.settings.scopes_tags()) {
            self.tags.free_tag(tag).await?;
        }
        let mut image = None;
        if let Some((name, how)) = forward.image.clone() {
            let found = self.images.find(&name).await?;
            self.images.place(&mut forward, &found, how);
            image = Some(found.id);
        }
        self.tags.announce(&tags, image)?;
        for (number, name) in forward.needs.image_mounts.clone() {
            let found = self.images.find(&name).await?;
            if let SentBody::Json(body) = &mut forward.body {
                body["HostConfig"]["Mounts"][number]["Source"] = json!(found.id);
            }
        }
        self.free_subnets(&forward.needs.subnets).await?;
        if let FollowUp::Network(name) = &forward.follow_up {
            self.free_network(name).await?;
        }
        for name in forward.needs.volumes.clone() {
            self.own_volume(&name, forward.follow_up == FollowUp::Volume).await?;
            if forward.follow_up == FollowUp::Volume {
                // The engine sends the volume's event before its answer.
                pending = Some(PendingCreation::new(&self.backend, PendingObject::Volume(name)));
            }
        }
        let binds = self.binds(&mut forward).await?;
        translate::to_engine(&mut forward, &self.backend.context());
        let mut held = Vec::new();
        let spool = match forward.body {
            SentBody::Context => Some(self.archives.read_context(&mut forward, archive).await?),
            SentBody::Images => Some(self.archives.read_images(archive, &mut held).await?),
            _ => None,
        };
        if let FollowUp::Pushed(tag) = &forward.follow_up {
            let name = self.tags.hold_to_push(tag).await?;
            forward.path = format!("/images/{}/push", name.tag.repository());
            held.push(name);
        }
        // Always in the same order, so that no two requests wait for each other.
        forward.held.sort_by_key(Reference::canonical);
        forward.held.dedup();
        for tag in &forward.held {
            held.push(self.tags.hold(tag).await?);
        }
        Ok(Prepared { forward, binds, spool, held, _pending: pending })
    }

    /// Whether subnets overlap no network of the host.
    async fn free_subnets(&self, subnets: &[(Ipv4Addr, u8)]) -> Result<(), Refusal> {
        for (address, prefix) in subnets {
            let routes = self.backend.engine.routes().await;
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            let overlaps = |route: Route| route.overlaps(address.to_bits(), mask);
            // Routes that cannot be read count as overlapping (G-7).
            if routes.is_none_or(|routes| routes.into_iter().any(overlaps)) {
                return Err(Refusal::because("this subnet overlaps a network of the host", "G-1"));
            }
        }
        Ok(())
    }

    /// Refuses a network's name that exists: older engines make two networks of one name (G-49).
    async fn free_network(&self, name: &str) -> Result<(), Refusal> {
        let path =
            format!("/networks/{}", target::encode(&self.backend.settings.names.upstream(name)));
        match self.backend.get(&path).await? {
            None => Ok(()),
            Some(_) => Err(Refusal::conflict(&format!("network with name {name} already exists"))),
        }
    }

    /// Makes the volume the job's, unless it exists (G-49). `is_new` leaves making it to the
    /// request itself.
    async fn own_volume(&self, name: &str, is_new: bool) -> Result<(), Refusal> {
        if self.backend.inventory.owned().volumes.contains(name) {
            return Ok(());
        }
        let upstream = self.backend.settings.names.upstream(name);
        let path = format!("/volumes/{}", target::encode(&upstream));
        if self.backend.get(&path).await?.is_some() {
            return Err(Refusal::conflict("a volume with this name is in use"));
        }
        if is_new {
            return Ok(());
        }
        self.backend.inventory.change(|owned| owned.volumes.add(name));
        let body = json!({ "Name": upstream, "Driver": "local", "Labels": self.backend.settings.all_labels() });
        let made =
            self.backend.engine.json(&Method::POST, "/volumes/create", &[], Some(&body)).await;
        match made.map_err(unreachable)? {
            (StatusCode::CREATED, made) if self.backend.is_labelled(&made) => Ok(()),
            _ => {
                self.backend.inventory.change(|owned| owned.volumes.forget(name));
                Err(Refusal::conflict("a volume with this name is in use"))
            }
        }
    }

    /// What a new container mounts of the workspace: its own binds, and those of containers whose
    /// volumes it takes over.
    async fn binds(&self, forward: &mut Forward) -> Result<Vec<Bind>, Refusal> {
        let mut binds = self.pins.pin(forward, &self.backend.settings).await?;
        let owned = self.backend.inventory.owned();
        for id in &forward.needs.volumes_from {
            if let Ok((_, container)) = owned.containers.find(id) {
                binds.extend(container.binds.iter().cloned());
            }
        }
        Ok(binds)
    }
}

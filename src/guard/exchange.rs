//! One request: read, judged, made ready for, sent. What comes back is [`super::answer`]'s.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{
        CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
        SERVER, TRANSFER_ENCODING, UPGRADE,
    },
};
use serde_json::{Map, Value, json};

use crate::{base::error_chain, guard::peer::Route};

use super::{
    Refusal,
    audit::{AuditEvent, Decision},
    engine::{Body, Outgoing, full},
    image::Reference,
    journal::Entry,
    json, names,
    ownership::Bind,
    paths::{Pin, Place},
    policy::{self, BodyKind, Call, Forward, ImageUse, Reply, Sent, Then, Verdict},
    serve::Shared,
    spool::spooled,
    tags::Held,
    target,
};

/// How long the next piece of a body may take (G-86).
const PROGRESS: Duration = Duration::from_mins(1);
/// The longest request line (G-21).
const LINE: usize = 16 << 10;

type Slot = Arc<tokio::sync::OwnedSemaphorePermit>;

/// What was made ready for a request.
pub(super) struct Ready {
    pub(super) forward: Forward,
    pub(super) binds: Vec<Bind>,
    /// The archive that was read.
    pub(super) spool: Option<std::fs::File>,
    /// Names on the engine that are this request's until its end.
    pub(super) held: Vec<Held>,
    /// Counts what is being made until the end of the request.
    pub(super) _counted: Option<Counted>,
}

/// Something that is being created; counted until then.
pub(super) struct Counted {
    shared: Arc<Shared>,
    what: Created,
}

#[derive(Debug, Clone)]
enum Created {
    Container,
    Network(String),
    Volume(String),
}

impl Counted {
    fn new(shared: &Arc<Shared>, what: Created) -> Self {
        shared.change(|owned| match &what {
            Created::Container => owned.expect_container(),
            Created::Network(name) => owned.expect_network(name),
            Created::Volume(name) => owned.expect_volume(name),
        });
        Self { shared: Arc::clone(shared), what }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.change(|owned| match &self.what {
            Created::Container => owned.settle_container(),
            Created::Network(name) => owned.settle_network(name),
            Created::Volume(name) => owned.settle_volume(name),
        });
    }
}

impl Shared {
    /// Answers a request, whatever it is.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: u64,
        slot: Slot,
    ) -> Result<Response<Body>, Infallible> {
        let started = Instant::now();
        let method = request.method().clone();
        let asks_for_upgrade = request.headers().contains_key(UPGRADE);
        let mut route = "-".to_owned();
        let outcome = Box::pin(Arc::clone(&self).decide(request, &mut route, slot)).await;
        let (mut response, decision, refusal) = match outcome {
            Ok((response, decision)) => (response, decision, None),
            Err(refusal) => {
                tracing::debug!(rule = refusal.rule, %route, message = %refusal, "request refused");
                (refused(&refusal), Decision::Refused, Some(refusal))
            }
        };
        self.count(refusal.as_ref());
        self.own_headers(response.headers_mut());
        if asks_for_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // What came after it was meant for the stream, and is no request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(events) = self.audit() {
            let event = AuditEvent {
                time: jiff::Timestamp::now().to_string(),
                job: self.settings.job.clone(),
                connection,
                method: method.to_string(),
                route,
                decision,
                rule: refusal
                    .as_ref()
                    .map(|refusal| refusal.rule.into())
                    .filter(|rule| rule != "-"),
                message: refusal.map(|refusal| refusal.message),
                status: response.status().as_u16(),
                milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            // Nobody who listens is nobody to tell.
            drop(events.send(event).await);
        }
        Ok(response)
    }

    async fn decide(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        route: &mut String,
        slot: Slot,
    ) -> Result<(Response<Body>, Decision), Refusal> {
        let head = head(&request)?;
        let whole = request.uri().to_string();
        if whole.len() > LINE || request.uri().authority().is_some() {
            return Err(Refusal::malformed("the request's target must be a path", "G-23"));
        }
        let target = target::parse(&whole)?;
        *route = policy::route(&target);
        let upgrade = head.upgrade.then(|| hyper::upgrade::on(&mut request));
        let method = request.method().clone();
        let kind = policy::body_kind(&method, &target);
        media_type(request.headers(), kind)?;
        let mut archive = None;
        let mut body = Map::new();
        match kind {
            BodyKind::Json => body = self.json_body(request.into_body()).await?,
            BodyKind::Archive => archive = Some(request.into_body()),
            BodyKind::Ignored => {}
        }
        let call = Call {
            method: &method,
            target: &target,
            body: &body,
            auth: head.auth,
            registries: head.registries,
        };
        let forward = match policy::judge(&call, &self.world()) {
            Verdict::Refuse(refusal) => return Err(refusal),
            Verdict::Answer(reply) => return Ok((self.reply(&method, reply), Decision::Answered)),
            Verdict::Forward(forward) => *forward,
        };
        if let Some(answer) = self.without_engine(&forward).await? {
            return Ok((answer, Decision::Answered));
        }
        let mut ready = Arc::clone(&self).ready(forward, &mut archive).await?;
        let (content_type, sent) = self.sent(&mut ready, archive)?;
        let mut headers = Vec::new();
        let auths = [
            ("x-registry-auth", &ready.forward.auth),
            ("x-registry-config", &ready.forward.registries),
        ];
        for (name, value) in auths {
            headers.extend(value.clone().map(|value| (name, value)));
        }
        let hijack = ready.forward.then == Then::Hijack && upgrade.is_some();
        let outgoing = Outgoing {
            method: &ready.forward.method,
            path: &ready.forward.path,
            query: &ready.forward.query,
            content_type,
            headers,
            body: sent,
            upgrade: hijack,
        };
        let answer = self.engine.send(outgoing).await.map_err(|error| {
            tracing::debug!(%error, %route, "request to the engine failed");
            Refusal::failed(502, "the engine cannot be reached, or broke off")
        })?;
        let response = self.answered(ready, answer, upgrade.filter(|_| hijack), slot).await?;
        Ok((response, Decision::Forwarded))
    }

    async fn json_body(&self, body: Incoming) -> Result<Map<String, Value>, Refusal> {
        let most = self.settings.limits.json;
        let collected = tokio::time::timeout(PROGRESS, Limited::new(body, most).collect()).await;
        match collected {
            Ok(Ok(collected)) => json::object(&collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal {
                status: 413,
                message: "guard: the body is too large (G-35)".to_owned(),
                rule: "G-35",
            }),
            Ok(Err(_)) => Err(Refusal::malformed("the body broke off", "G-22")),
            Err(_) => Err(Refusal {
                status: 408,
                message: "guard: the body took too long (G-86)".to_owned(),
                rule: "G-86",
            }),
        }
    }

    fn own_headers(&self, headers: &mut HeaderMap) {
        let (major, minor) = self.ground.version;
        if let Ok(version) = HeaderValue::try_from(format!("{major}.{minor}")) {
            headers.insert("api-version", version);
        }
        headers.insert("ostype", HeaderValue::from_static("linux"));
        headers.insert("docker-experimental", HeaderValue::from_static("false"));
        headers.insert(SERVER, HeaderValue::from_static("longshore-guard"));
    }

    fn reply(&self, method: &Method, reply: Reply) -> Response<Body> {
        let mut response = match reply {
            Reply::Ping => {
                let mut response =
                    Response::new(full(if method == Method::HEAD { "" } else { "OK" }));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                headers.insert("builder-version", HeaderValue::from_static("1"));
                headers.insert("swarm", HeaderValue::from_static("inactive"));
                headers.insert(
                    "cache-control",
                    HeaderValue::from_static("no-cache, no-store, must-revalidate"),
                );
                response
            }
            Reply::Json(value) => answer_json(StatusCode::OK, &value),
        };
        self.own_headers(response.headers_mut());
        response
    }

    /// What is answered after a look at the engine, without sending the request.
    async fn without_engine(&self, forward: &Forward) -> Result<Option<Response<Body>>, Refusal> {
        if let Then::Pulled(reference) = &forward.then {
            // A pull would move a tag that all jobs use.
            if reference.is_shared(&self.settings.images)
                && self.image(&reference.canonical()).await.is_ok()
            {
                let status = format!("Status: Image is up to date for {}", reference.short());
                return Ok(Some(answer_json(StatusCode::OK, &json!({ "status": status }))));
            }
        }
        if let Some((name, ImageUse::Remove)) = &forward.image {
            return self.remove_image(name, forward).await.map(Some);
        }
        Ok(None)
    }

    /// Does what must be done first.
    async fn ready(
        self: Arc<Self>,
        mut forward: Forward,
        archive: &mut Option<Incoming>,
    ) -> Result<Ready, Refusal> {
        let created = match &forward.then {
            Then::Created { .. } => Some(Created::Container),
            Then::Network(name) => Some(Created::Network(name.clone())),
            _ => None,
        };
        let mut counted = created.map(|what| Counted::new(&self, what));
        let tags = std::mem::take(&mut forward.new_tags);
        for tag in tags.iter().filter(|_| !self.settings.scopes_tags()) {
            self.free_tag(tag).await?;
        }
        let mut image = None;
        if let Some((name, how)) = forward.image.clone() {
            let found = self.image(&name).await?;
            self.place_image(&mut forward, &found, how);
            image = Some(found.id);
        }
        self.note_tags(&tags, image)?;
        for (number, name) in forward.needs.image_mounts.clone() {
            let found = self.image(&name).await?;
            if let Sent::Json(body) = &mut forward.body {
                body["HostConfig"]["Mounts"][number]["Source"] = json!(found.id);
            }
        }
        for (address, prefix) in &forward.needs.subnets {
            let routes = self.engine.routes().await;
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
            let overlaps = |route: Route| route.overlaps(address.to_bits(), mask);
            // What cannot be seen counts as yes (G-7).
            if routes.is_none_or(|routes| routes.into_iter().any(overlaps)) {
                return Err(Refusal::because("this subnet overlaps a network of the host", "G-1"));
            }
        }
        if let Then::Network(name) = &forward.then {
            self.free_network(name).await?;
        }
        for name in forward.needs.volumes.clone() {
            self.own_volume(&name, forward.then == Then::Volume).await?;
            if forward.then == Then::Volume {
                // Its event comes before its answer.
                counted = Some(Counted::new(&self, Created::Volume(name)));
            }
        }
        let binds = Arc::clone(&self).pin(&mut forward).await?;
        names::outward(&mut forward, &self.world());
        let mut held = Vec::new();
        let spool = match forward.body {
            Sent::Context => Some(self.read_context(&mut forward, archive).await?),
            Sent::Images => Some(self.read_images(archive, &mut held).await?),
            _ => None,
        };
        if let Then::Pushed(tag) = &forward.then {
            let name = self.hold_to_push(tag).await?;
            forward.path = format!("/images/{}/push", name.tag.repository());
            held.push(name);
        }
        // In one order, so that no two requests wait for each other.
        forward.held.sort_by_key(Reference::canonical);
        forward.held.dedup();
        for tag in &forward.held {
            held.push(self.hold(tag).await?);
        }
        Ok(Ready { forward, binds, spool, held, _counted: counted })
    }

    /// Writes down that tags of the job's are going to be made.
    fn note_tags(&self, tags: &[Reference], image: Option<String>) -> Result<(), Refusal> {
        if tags.is_empty() {
            return Ok(());
        }
        let tags = tags.iter().map(|tag| self.settings.upstream_tag(tag).canonical()).collect();
        self.note(&Entry::Tagging { tags, image })
    }

    /// Older engines make two networks of one name (G-49).
    async fn free_network(&self, name: &str) -> Result<(), Refusal> {
        let path = format!("/networks/{}", target::encode(&self.settings.names.upstream(name)));
        match self.engine.get(&path).await.map_err(unreachable)? {
            None => Ok(()),
            Some(_) => Err(Refusal::conflict(&format!("network with name {name} already exists"))),
        }
    }

    /// Makes the volume the job's, unless it exists (G-49, 8.1). `is_new` leaves making it to the
    /// request itself.
    async fn own_volume(&self, name: &str, is_new: bool) -> Result<(), Refusal> {
        if self.owned().has_volume(name) {
            return Ok(());
        }
        let upstream = self.settings.names.upstream(name);
        let path = format!("/volumes/{}", target::encode(&upstream));
        if self.engine.get(&path).await.map_err(unreachable)?.is_some() {
            return Err(Refusal::conflict("a volume with this name is in use"));
        }
        if is_new {
            return Ok(());
        }
        self.change(|owned| owned.add_volume(name));
        let body =
            json!({ "Name": upstream, "Driver": "local", "Labels": self.settings.all_labels() });
        let made = self.engine.json(&Method::POST, "/volumes/create", &[], Some(&body)).await;
        match made.map_err(unreachable)? {
            (StatusCode::CREATED, made) if self.is_own(&made) => Ok(()),
            _ => {
                self.change(|owned| owned.forget_volume(name));
                Err(Refusal::conflict("a volume with this name is in use"))
            }
        }
    }

    /// Whether what the engine says it made has this guard's mark: it gives a volume of the same
    /// name that somebody else made a moment before as if it were new.
    pub(super) fn is_own(&self, made: &Value) -> bool {
        let (key, mark) = &self.settings.identity;
        made["Labels"][key] == **mark
    }

    /// Pins the sources of binds, and puts the pins into the body.
    async fn pin(self: Arc<Self>, forward: &mut Forward) -> Result<Vec<Bind>, Refusal> {
        let mut binds = Vec::new();
        for need in &forward.needs.binds {
            let (mapping, rest) = match &need.place {
                Place::Socket => {
                    let source = self.settings.socket.display().to_string();
                    binds.push(Bind { source, job: need.job.clone(), pin: None });
                    continue;
                }
                Place::Mapped { mapping, rest } => (*mapping, rest.clone()),
            };
            if !self.can_pin {
                return Err(Refusal::because(
                    "binds of the workspace are not possible here",
                    "G-57",
                ));
            }
            let root = self.settings.workspace[mapping].host.clone();
            let (make, at) = (need.make, self.next_pin());
            let pinned =
                tokio::task::spawn_blocking(move || Pin::new(&root, &rest, make, &at)).await;
            let pin = pinned
                .map_err(|_| Refusal::failed(500, "the bind cannot be made"))?
                .map_err(|error| {
                    tracing::debug!(error = error_chain(&error), "bind refused");
                    error.refusal(&need.job, need.is_mount)
                })?;
            let source = pin.path().display().to_string();
            binds.push(Bind { source, job: need.job.clone(), pin: Some(Arc::new(pin)) });
        }
        if let Sent::Json(body) = &mut forward.body {
            place_binds(body, &binds);
        }
        let owned = self.owned();
        for id in &forward.needs.volumes_from {
            if let Ok((_, container)) = owned.container(id) {
                binds.extend(container.binds.iter().cloned());
            }
        }
        Ok(binds)
    }

    /// The body to send, and its type.
    fn sent(
        &self,
        ready: &mut Ready,
        archive: Option<Incoming>,
    ) -> Result<(Option<&'static str>, Body), Refusal> {
        Ok(match std::mem::replace(&mut ready.forward.body, Sent::Nothing) {
            Sent::Nothing => (None, full(Bytes::new())),
            Sent::Json(body) => (Some("application/json"), full(Value::Object(body).to_string())),
            Sent::Archive => {
                let body =
                    archive.ok_or_else(|| Refusal::malformed("there is no archive", "G-26"))?;
                let most = usize::try_from(self.settings.limits.upload).unwrap_or(usize::MAX);
                (Some("application/x-tar"), Limited::new(body, most).boxed_unsync())
            }
            Sent::Context | Sent::Images => {
                let spool = ready.spool.take();
                let spool =
                    spool.ok_or_else(|| Refusal::malformed("there is no archive", "G-26"))?;
                (Some("application/x-tar"), spooled(spool))
            }
        })
    }
}

/// Puts the pins where their tokens stand.
fn place_binds(body: &mut Map<String, Value>, binds: &[Bind]) {
    let of = |text: &str| -> Option<(&Bind, usize)> {
        let rest = text.strip_prefix("@bind-")?;
        let (number, _) = rest.split_once('@')?;
        Some((binds.get(number.parse::<usize>().ok()?)?, "@bind-@".len() + number.len()))
    };
    let Some(host) = body.get_mut("HostConfig") else { return };
    for bind in host.get_mut("Binds").and_then(Value::as_array_mut).into_iter().flatten() {
        let text = bind.as_str().unwrap_or_default();
        if let Some((found, length)) = of(text) {
            *bind = json!(format!("{}{}", found.source, &text[length..]));
        }
    }
    for mount in host.get_mut("Mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if mount["Type"] != "bind" {
            continue;
        }
        if let Some((found, _)) = of(mount["Source"].as_str().unwrap_or_default()) {
            mount["Source"] = json!(found.source);
        }
    }
}

/// What counts of a request's head.
struct Head {
    upgrade: bool,
    auth: Option<String>,
    registries: Option<String>,
}

/// Judges the head as far as the server left something to judge (G-20 … G-22, G-66).
fn head(request: &Request<Incoming>) -> Result<Head, Refusal> {
    let headers = request.headers();
    if !matches!(request.version(), Version::HTTP_11 | Version::HTTP_10) {
        return Err(Refusal::malformed("only HTTP/1.1 is spoken here", "G-20"));
    }
    let several = |name: &HeaderName| headers.get_all(name).iter().count();
    if several(&CONTENT_LENGTH) > 1
        || several(&TRANSFER_ENCODING) > 1
        || headers.contains_key(CONTENT_LENGTH) && headers.contains_key(TRANSFER_ENCODING)
        || several(&CONTENT_TYPE) > 1
    {
        return Err(Refusal::malformed("the body's length or type is said twice", "G-22"));
    }
    if headers.get(TRANSFER_ENCODING).is_some_and(|value| value != "chunked") {
        return Err(Refusal::malformed("an unknown transfer encoding", "G-22"));
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        return Err(Refusal::malformed("an encoded body", "G-22"));
    }
    let upgrade = match headers.get(UPGRADE) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"h2c") => {
            return Err(Refusal::malformed("only HTTP/1.1 is spoken here", "G-20"));
        }
        Some(value) => value.as_bytes().eq_ignore_ascii_case(b"tcp"),
    };
    let header = |name: &str| match headers.get(name) {
        None => Ok(None),
        Some(_) if headers.get_all(name).iter().count() > 1 => {
            Err(Refusal::malformed(&format!("the header {name} occurs twice"), "G-3"))
        }
        Some(value) => decoded(value).map(Some),
    };
    let auth = header("x-registry-auth")?
        .map(|map| policy::credentials(&map))
        .transpose()?
        .map(|map| BASE64_URL_SAFE.encode(Value::Object(map).to_string()));
    let registries = header("x-registry-config")?
        .map(|map| {
            let mut out = Map::new();
            for (host, value) in map {
                let value = super::fields::object(&value, "X-Registry-Config")?;
                out.insert(host, Value::Object(policy::credentials(value)?));
            }
            Ok::<_, Refusal>(BASE64_URL_SAFE.encode(Value::Object(out).to_string()))
        })
        .transpose()?;
    Ok(Head { upgrade, auth, registries })
}

fn decoded(value: &HeaderValue) -> Result<Map<String, Value>, Refusal> {
    let bytes = BASE64_URL_SAFE
        .decode(value.as_bytes())
        .or_else(|_| BASE64_STANDARD.decode(value.as_bytes()))
        .map_err(|_| Refusal::malformed("the registry's credentials are not base64", "G-66"))?;
    json::object(&bytes)
}

/// G-26: forms would win over the query.
fn media_type(headers: &HeaderMap, kind: BodyKind) -> Result<(), Refusal> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or("?").to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let good = match kind {
        BodyKind::Ignored => {
            !["application/x-www-form-urlencoded", "multipart/form-data"].contains(&essence)
        }
        BodyKind::Json => ["application/json", "text/plain", ""].contains(&essence),
        BodyKind::Archive => [
            "application/x-tar",
            "application/tar",
            "application/octet-stream",
            "application/json",
            "text/plain",
            "application/gzip",
            "application/x-gzip",
            "",
        ]
        .contains(&essence),
    };
    if good {
        Ok(())
    } else {
        Err(Refusal::malformed(&format!("a body of type {essence}"), "G-26"))
    }
}

/// A refusal in the engine's form.
pub(super) fn refused(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
    answer_json(status, &json!({ "message": refusal.message }))
}

/// An answer in JSON.
pub(super) fn answer_json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(format!("{value}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The engine did not answer.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn unreachable(error: super::engine::Broken) -> Refusal {
    tracing::debug!(%error, "request to the engine failed");
    Refusal::failed(502, "the engine cannot be reached, or broke off")
}

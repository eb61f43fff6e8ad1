//! What the engine answers: passed on, or cut down to what is the job's.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::{
    Method, Response, StatusCode,
    body::Frame,
    header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, UPGRADE},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::{
    Refusal,
    body::World,
    engine::{Body, Broken, full, whole},
    exchange::{Ready, answer_json, unreachable},
    filter,
    image::{Reference, is_id, is_id_like},
    journal::Entry,
    lines::Lines,
    ownership::Container,
    policy::{Filter, Forward, NameFilter, Then},
    serve::Shared,
    stream::Answer,
    tags::Held,
};

/// How long the watch waits before it asks again.
const AGAIN: Duration = Duration::from_secs(1);

type Slot = Arc<tokio::sync::OwnedSemaphorePermit>;

impl Shared {
    /// Turns the engine's answer into the client's.
    pub(super) async fn answered(
        self: &Arc<Self>,
        ready: Ready,
        answer: Response<Answer>,
        upgrade: Option<OnUpgrade>,
        slot: Slot,
    ) -> Result<Response<Body>, Refusal> {
        let status = answer.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.hijacked(answer, upgrade, slot);
        }
        if status.is_client_error() || status.is_server_error() {
            return Ok(self.failed(&ready, answer).await);
        }
        let then = ready.forward.then.clone();
        match then {
            Then::Pass | Then::Hijack => Ok(passed(answer, ready.held)),
            Then::Filter(what) => self.filtered(what, &ready.forward.names, answer).await,
            Then::Events => Ok(self.lines(answer, filter::event)),
            Then::Stats => Ok(self.lines(answer, |piece, _| Some(piece))),
            Then::Pulled(_) | Then::Built(_) | Then::Loaded | Then::Made(_) | Then::Pushed(_)
                if status == StatusCode::OK =>
            {
                Ok(self.listened(then, ready, answer))
            }
            _ => self.registered(ready, answer).await,
        }
    }

    /// The connection becomes a stream, in both directions (G-28, G-29).
    fn hijacked(
        self: &Arc<Self>,
        mut answer: Response<Answer>,
        upgrade: Option<OnUpgrade>,
        slot: Slot,
    ) -> Result<Response<Body>, Refusal> {
        let client =
            upgrade.ok_or_else(|| Refusal::failed(502, "the engine switched protocols"))?;
        let engine = hyper::upgrade::on(&mut answer);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _slot = slot;
            let relay = async {
                let (client, engine) = tokio::try_join!(client, engine)?;
                let (mut client, mut engine) = (TokioIo::new(client), TokioIo::new(engine));
                // The end of one direction is passed on; the other goes on.
                tokio::io::copy_bidirectional(&mut client, &mut engine).await?;
                Ok::<_, Broken>(())
            };
            tokio::select! {
                () = stop.cancelled() => {}
                result = relay => if let Err(error) = result {
                    tracing::debug!(%error, "a hijacked stream broke off");
                },
            }
        });
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let kind = answer.headers().get(CONTENT_TYPE).cloned();
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        headers.insert(
            CONTENT_TYPE,
            kind.unwrap_or_else(|| HeaderValue::from_static("application/vnd.docker.raw-stream")),
        );
        Ok(response)
    }

    /// An answer in JSON, with the job's names.
    async fn stripped(&self, answer: Response<Answer>) -> Result<Value, Refusal> {
        let mut value = whole(answer.into_body()).await.map_err(unreachable)?;
        self.settings.names.strip(&mut value);
        Ok(value)
    }

    /// The engine's refusal, without what it says of others.
    async fn failed(&self, ready: &Ready, answer: Response<Answer>) -> Response<Body> {
        let status = answer.status();
        if ready.forward.method == Method::HEAD {
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = status;
            return response;
        }
        let value = self.stripped(answer).await.unwrap_or_default();
        let mut message =
            value["message"].as_str().unwrap_or("the engine gave no reason").to_owned();
        if status == StatusCode::NOT_FOUND {
            self.gone(&ready.forward);
        }
        if status == StatusCode::CONFLICT && message.contains("is already in use by container") {
            let name = ready.forward.query.iter().find(|(name, _)| name == "name");
            let mut name = json!(name.map_or("", |(_, name)| name.as_str()));
            self.settings.names.strip(&mut name);
            let name = name.as_str().unwrap_or_default();
            message = format!(
                "Conflict. The container name \"/{name}\" is already in use. \
                 You have to remove (or rename) that container to be able to reuse that name."
            );
        }
        answer_json(status, &json!({ "message": filter::message(&message, &self.world()) }))
    }

    /// The engine does not have what the registry has (G-50).
    fn gone(&self, forward: &Forward) {
        match &forward.then {
            Then::Removed(id) => drop(self.change(|owned| owned.forget_container(id))),
            Then::VolumeRemoved(name) => self.change(|owned| owned.forget_volume(name)),
            Then::NetworkRemoved(id) => self.change(|owned| owned.forget_network(id)),
            _ => {}
        }
    }

    async fn filtered(
        &self,
        what: Filter,
        names: &NameFilter,
        answer: Response<Answer>,
    ) -> Result<Response<Body>, Refusal> {
        let value = self.stripped(answer).await?;
        let world = self.world();
        let cut = match what {
            Filter::Version => Some(filter::version(&value, &world)),
            Filter::Info => Some(filter::info(&value, &world)),
            Filter::Usage => Some(filter::usage(value, &world)),
            Filter::Container => Some(filter::container(value, &world)),
            Filter::Containers => Some(filter::containers(value, &world)),
            Filter::Image => filter::image(value, &world),
            Filter::Images => Some(filter::images(value, &world)),
            Filter::History => Some(filter::history(value, &world)),
            Filter::Network => filter::network(value, &world),
            Filter::Networks => Some(filter::networks(value, &world)),
            Filter::Volume => Some(filter::volume(value, &world)),
            Filter::Volumes => Some(filter::volumes(value, &world)),
        };
        let mut cut = cut.ok_or_else(|| Refusal::missing("page not found".to_owned()))?;
        filter::named(&mut cut, names);
        Ok(answer_json(StatusCode::OK, &cut))
    }

    /// Enters what was made or removed, and passes the answer on.
    async fn registered(
        self: &Arc<Self>,
        ready: Ready,
        answer: Response<Answer>,
    ) -> Result<Response<Body>, Refusal> {
        let status = answer.status();
        let value = self.stripped(answer).await?;
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let mut shown = value.clone();
        match ready.forward.then {
            Then::Created { image } => {
                let id = text("Id");
                let details = self
                    .engine
                    .get(&format!("/containers/{id}/json"))
                    .await
                    .map_err(unreachable)?;
                let mut details = details.unwrap_or_default();
                self.settings.names.strip(&mut details);
                let name =
                    details["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
                let container = Container { name, image, is_self: false, binds: ready.binds };
                // Anonymous volumes have no name before.
                for mount in details["Mounts"].as_array().into_iter().flatten() {
                    if mount["Type"] == "volume" {
                        let volume = mount["Name"].as_str().unwrap_or_default();
                        if is_id_like(volume) {
                            self.noted(&Entry::Volume(volume.to_owned()));
                        }
                        self.change(|owned| owned.add_volume(volume));
                    }
                }
                self.change(|owned| owned.add_container(id, container));
                if let Some(Value::Array(warnings)) = shown.get_mut("Warnings") {
                    let world = self.world();
                    for warning in warnings {
                        *warning =
                            json!(filter::message(warning.as_str().unwrap_or_default(), &world));
                    }
                }
            }
            Then::Removed(id) => drop(self.change(|owned| owned.forget_container(&id))),
            Then::Renamed(id, name) => self.change(|owned| owned.rename(&id, &name)),
            Then::Exec(container) => self.change(|owned| owned.add_exec(text("Id"), &container)),
            Then::Volume => {
                if !self.owned().has_volume(&text("Name")) && !self.is_own(&value) {
                    return Err(Refusal::conflict("a volume with this name is in use"));
                }
                self.change(|owned| owned.add_volume(&text("Name")));
                shown = filter::volume(shown, &self.world());
            }
            Then::VolumeRemoved(name) => self.change(|owned| owned.forget_volume(&name)),
            Then::Network(name) => {
                self.change(|owned| owned.add_network(text("Id"), &name));
            }
            Then::NetworkRemoved(id) => self.change(|owned| owned.forget_network(&id)),
            Then::Tagged(reference) => {
                self.tagged(&reference).await;
            }
            Then::Made(reference) => self.made(&text("Id"), reference.as_ref()),
            Then::Pruned(list) => {
                for name in value[list].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    self.change(|owned| match list {
                        "ContainersDeleted" => drop(owned.forget_container(name)),
                        "NetworksDeleted" => owned.forget_network(name),
                        _ => owned.forget_volume(name),
                    });
                }
            }
            _ => {}
        }
        if status == StatusCode::NO_CONTENT || value.is_null() {
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = status;
            return Ok(response);
        }
        Ok(answer_json(status, &shown))
    }

    /// Completes the journal. The thing is there: that it cannot be written down changes nothing.
    pub(super) fn noted(&self, entry: &Entry) {
        drop(self.note(entry));
    }

    pub(super) fn made(&self, id: &str, reference: Option<&Reference>) {
        if is_id(id) {
            self.noted(&match reference {
                Some(reference) => {
                    let upstream = self.settings.upstream_tag(reference);
                    Entry::Tag(upstream.canonical(), id.to_owned())
                }
                None => Entry::Image(id.to_owned()),
            });
        }
        self.change(|owned| {
            owned.add_image(id);
            if let Some(reference) = reference.filter(|_| is_id(id)) {
                owned.add_tag(reference.canonical(), id, true);
            }
        });
    }

    /// Enters a tag that was just made, by what the engine has under it.
    async fn tagged(&self, reference: &Reference) {
        let upstream = self.settings.upstream_tag(reference);
        if let Ok(Some(id)) = self.meaning(&upstream).await {
            self.made(&id, Some(reference));
        }
    }

    /// Values that come one by one, in lines, as `judge` leaves them.
    fn lines(
        self: &Arc<Self>,
        answer: Response<Answer>,
        judge: fn(Value, &World) -> Option<Value>,
    ) -> Response<Body> {
        let shared = Arc::clone(self);
        let start = (BodyStream::new(answer.into_body()), Lines::default());
        let pieces = stream::unfold(start, move |(mut body, mut lines)| {
            let shared = Arc::clone(&shared);
            async move {
                loop {
                    let frame = body.next().await?;
                    let frame: Frame<Bytes> = match frame {
                        Ok(frame) => frame,
                        Err(error) => return Some((Err(Broken::from(error)), (body, lines))),
                    };
                    let Some(data) = frame.data_ref() else { continue };
                    let world = shared.world();
                    let mut out = Vec::new();
                    for line in lines.feed(data) {
                        let Ok(mut value) = serde_json::from_slice(&line) else { continue };
                        shared.settings.names.strip(&mut value);
                        if let Some(value) = judge(value, &world) {
                            out.extend_from_slice(value.to_string().as_bytes());
                            out.push(b'\n');
                        }
                    }
                    if !out.is_empty() {
                        return Some((Ok(Frame::data(Bytes::from(out))), (body, lines)));
                    }
                }
            }
        });
        streamed(pieces)
    }
}

/// Follows the engine's events, so that containers that go by themselves are gone here (G-50),
/// until the guard stops.
pub(super) async fn watch(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = follow(&shared) => {}
        }
        // The engine went away; what it removes meanwhile is told by its 404s.
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn follow(shared: &Shared) {
    let (key, value) = &shared.settings.identity;
    let filters = json!({
        "type": ["container"], "event": ["destroy"], "label": [format!("{key}={value}")],
    });
    let query = [("filters".to_owned(), filters.to_string())];
    let outgoing = super::engine::Outgoing {
        method: &Method::GET,
        path: "/events",
        query: &query,
        content_type: None,
        headers: Vec::new(),
        body: full(Bytes::new()),
        upgrade: false,
    };
    let Ok(answer) = shared.engine.send(outgoing).await else { return };
    let mut body = BodyStream::new(answer.into_body());
    let mut lines = Lines::default();
    while let Some(Ok(frame)) = body.next().await {
        for line in frame.data_ref().map(|data| lines.feed(data)).unwrap_or_default() {
            let event: Value = serde_json::from_slice(&line).unwrap_or_default();
            if let Some(id) = event["Actor"]["ID"].as_str() {
                drop(shared.change(|owned| owned.forget_container(id)));
            }
        }
    }
}

/// The answer as it comes. What it needs held is held until it begins: the engine has found the
/// image by then.
fn passed(answer: Response<Answer>, mut held: Vec<Held>) -> Response<Body> {
    let (parts, body) = answer.into_parts();
    let body = body.map_frame(move |frame| {
        held.clear();
        frame
    });
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = parts.status;
    for name in [CONTENT_TYPE, HeaderName::from_static("x-docker-container-path-stat")] {
        if let Some(value) = parts.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// These pieces of JSON as they come.
pub(super) fn streamed(
    pieces: impl stream::Stream<Item = Result<Frame<Bytes>, Broken>> + Send + 'static,
) -> Response<Body> {
    let pieces: Pin<Box<dyn stream::Stream<Item = _> + Send>> = Box::pin(pieces);
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

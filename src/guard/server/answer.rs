//! What the engine answers: passed on, or cut down to what is the job's.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, BodyStream};
use hyper::{
    Method, Response, StatusCode,
    body::Frame,
    header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, UPGRADE},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::guard::{
    ids::is_id_like,
    ownership::OwnedContainer,
    parse::lines::Lines,
    policy::{
        context::PolicyContext,
        filter,
        forward::{AnswerFilter, FollowUp, Forward, NameFilter},
    },
    refusal::Refusal,
};

use super::{
    backend::Backend,
    engine_body::EngineBody,
    journal::JournalEntry,
    prepare::Prepared,
    progress::listened,
    response::{BoxBody, BoxError, empty, json_response, streamed},
    tags::{HeldTag, Tags},
};

/// A client's connection as one of those that a job may have open; it counts as long as this lives.
pub(super) type ConnectionPermit = Arc<tokio::sync::OwnedSemaphorePermit>;

/// Turns the engine's answers into the client's.
#[derive(Debug)]
pub(super) struct Answers {
    backend: Arc<Backend>,
    tags: Tags,
}

impl Answers {
    pub(super) fn new(backend: &Arc<Backend>, tags: &Tags) -> Self {
        Self { backend: Arc::clone(backend), tags: tags.clone() }
    }

    /// Turns the engine's answer into the client's.
    pub(super) async fn answered(
        &self,
        prepared: Prepared,
        answer: Response<EngineBody>,
        upgrade: Option<OnUpgrade>,
        permit: ConnectionPermit,
    ) -> Result<Response<BoxBody>, Refusal> {
        let status = answer.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.hijacked(answer, upgrade, permit);
        }
        if status.is_client_error() || status.is_server_error() {
            return Ok(self.failed(&prepared, answer).await);
        }
        let follow_up = prepared.forward.follow_up.clone();
        match follow_up {
            FollowUp::Pass | FollowUp::Hijack => Ok(passed(answer, prepared.held)),
            FollowUp::Filter(what) => self.filtered(what, &prepared.forward.names, answer).await,
            FollowUp::Events => Ok(self.lines(answer, filter::event)),
            FollowUp::Stats => Ok(self.lines(answer, |piece, _| Some(piece))),
            FollowUp::Pulled(_)
            | FollowUp::Built(_)
            | FollowUp::Loaded
            | FollowUp::Made(_)
            | FollowUp::Pushed(_)
                if status == StatusCode::OK =>
            {
                Ok(listened(&self.tags, follow_up, prepared, answer))
            }
            _ => self.registered(prepared, answer).await,
        }
    }

    /// The connection becomes a stream, in both directions (G-28, G-29).
    fn hijacked(
        &self,
        mut answer: Response<EngineBody>,
        upgrade: Option<OnUpgrade>,
        permit: ConnectionPermit,
    ) -> Result<Response<BoxBody>, Refusal> {
        let client =
            upgrade.ok_or_else(|| Refusal::failed(502, "the engine switched protocols"))?;
        let engine = hyper::upgrade::on(&mut answer);
        let stop = self.backend.stop.clone();
        self.backend.tasks.spawn(async move {
            let _permit = permit;
            let relay = async {
                let (client, engine) = tokio::try_join!(client, engine)?;
                let (mut client, mut engine) = (TokioIo::new(client), TokioIo::new(engine));
                // The end of one direction is passed on, and the other direction stays open.
                tokio::io::copy_bidirectional(&mut client, &mut engine).await?;
                Ok::<_, BoxError>(())
            };
            tokio::select! {
                () = stop.cancelled() => {}
                result = relay => if let Err(error) = result {
                    tracing::debug!(%error, "hijacked stream broke off");
                },
            }
        });
        let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
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

    /// The engine's refusal, without what it says of others.
    async fn failed(&self, prepared: &Prepared, answer: Response<EngineBody>) -> Response<BoxBody> {
        let status = answer.status();
        if prepared.forward.method == Method::HEAD {
            return empty(status);
        }
        let value = self.backend.json_of(answer).await.unwrap_or_default();
        let mut message =
            value["message"].as_str().unwrap_or("the engine gave no reason").to_owned();
        if status == StatusCode::NOT_FOUND {
            self.gone(&prepared.forward);
        }
        if status == StatusCode::CONFLICT && message.contains("is already in use by container") {
            let name = prepared.forward.query.iter().find(|(name, _)| name == "name");
            let mut name = json!(name.map_or("", |(_, name)| name.as_str()));
            self.backend.settings.names.strip(&mut name);
            let name = name.as_str().unwrap_or_default();
            message = format!(
                "Conflict. The container name \"/{name}\" is already in use. \
                 You have to remove (or rename) that container to be able to reuse that name."
            );
        }
        json_response(
            status,
            &json!({ "message": filter::message(&message, &self.backend.context()) }),
        )
    }

    /// The engine does not have what the registry has (G-50).
    fn gone(&self, forward: &Forward) {
        match &forward.follow_up {
            FollowUp::Removed(id) => {
                drop(self.backend.inventory.change(|owned| owned.containers.forget(id)));
            }
            FollowUp::VolumeRemoved(name) => {
                self.backend.inventory.change(|owned| owned.volumes.forget(name));
            }
            FollowUp::NetworkRemoved(id) => {
                self.backend.inventory.change(|owned| owned.networks.forget(id));
            }
            _ => {}
        }
    }

    async fn filtered(
        &self,
        what: AnswerFilter,
        names: &NameFilter,
        answer: Response<EngineBody>,
    ) -> Result<Response<BoxBody>, Refusal> {
        let value = self.backend.json_of(answer).await?;
        let context = self.backend.context();
        let cut = match what {
            AnswerFilter::Version => Some(filter::version(&value, &context)),
            AnswerFilter::Info => Some(filter::info(&value, &context)),
            AnswerFilter::Usage => Some(filter::usage(value, &context)),
            AnswerFilter::Container => Some(filter::container(value, &context)),
            AnswerFilter::Containers => Some(filter::containers(value, &context)),
            AnswerFilter::Image => filter::image(value, &context),
            AnswerFilter::Images => Some(filter::images(value, &context)),
            AnswerFilter::History => Some(filter::history(value, &context)),
            AnswerFilter::Network => filter::network(value, &context),
            AnswerFilter::Networks => Some(filter::networks(value, &context)),
            AnswerFilter::Volume => Some(filter::volume(value, &context)),
            AnswerFilter::Volumes => Some(filter::volumes(value, &context)),
        };
        let mut cut = cut.ok_or_else(|| Refusal::missing("page not found".to_owned()))?;
        filter::named(&mut cut, names);
        Ok(json_response(StatusCode::OK, &cut))
    }

    /// Enters what was made or removed, and passes the answer on.
    async fn registered(
        &self,
        prepared: Prepared,
        answer: Response<EngineBody>,
    ) -> Result<Response<BoxBody>, Refusal> {
        let status = answer.status();
        let value = self.backend.json_of(answer).await?;
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let mut shown = value.clone();
        match prepared.forward.follow_up {
            FollowUp::Created { image } => {
                let id = text("Id");
                let details = self.backend.get(&format!("/containers/{id}/json")).await?;
                let mut details = details.unwrap_or_default();
                self.backend.settings.names.strip(&mut details);
                let name =
                    details["Name"].as_str().unwrap_or_default().trim_start_matches('/').to_owned();
                let container =
                    OwnedContainer { name, image, is_self: false, binds: prepared.binds };
                // Only now are the names of anonymous volumes known.
                for mount in details["Mounts"].as_array().into_iter().flatten() {
                    if mount["Type"] == "volume" {
                        let volume = mount["Name"].as_str().unwrap_or_default();
                        if is_id_like(volume) {
                            self.backend.inventory.record(&JournalEntry::Volume(volume.to_owned()));
                        }
                        self.backend.inventory.change(|owned| owned.volumes.add(volume));
                    }
                }
                self.backend.inventory.change(|owned| owned.containers.add(id, container));
                if let Some(Value::Array(warnings)) = shown.get_mut("Warnings") {
                    let context = self.backend.context();
                    for warning in warnings {
                        *warning =
                            json!(filter::message(warning.as_str().unwrap_or_default(), &context));
                    }
                }
            }
            FollowUp::Removed(id) => {
                drop(self.backend.inventory.change(|owned| owned.containers.forget(&id)));
            }
            FollowUp::Renamed(id, name) => {
                self.backend.inventory.change(|owned| owned.containers.rename(&id, &name));
            }
            FollowUp::Exec(container) => self
                .backend
                .inventory
                .change(|owned| owned.containers.add_exec(text("Id"), &container)),
            FollowUp::Volume => {
                if !self.backend.inventory.owned().volumes.contains(&text("Name"))
                    && !self.backend.is_labelled(&value)
                {
                    return Err(Refusal::conflict("a volume with this name is in use"));
                }
                self.backend.inventory.change(|owned| owned.volumes.add(&text("Name")));
                shown = filter::volume(shown, &self.backend.context());
            }
            FollowUp::VolumeRemoved(name) => {
                self.backend.inventory.change(|owned| owned.volumes.forget(&name));
            }
            FollowUp::Network(name) => {
                self.backend.inventory.change(|owned| owned.networks.add(text("Id"), &name));
            }
            FollowUp::NetworkRemoved(id) => {
                self.backend.inventory.change(|owned| owned.networks.forget(&id));
            }
            FollowUp::Tagged(reference) => {
                self.tags.tagged(&reference).await;
            }
            FollowUp::Made(reference) => self.tags.made(&text("Id"), reference.as_ref()),
            FollowUp::Pruned(list) => {
                for name in value[list].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    self.backend.inventory.change(|owned| match list {
                        "ContainersDeleted" => drop(owned.containers.forget(name)),
                        "NetworksDeleted" => owned.networks.forget(name),
                        _ => owned.volumes.forget(name),
                    });
                }
            }
            _ => {}
        }
        if status == StatusCode::NO_CONTENT || value.is_null() {
            return Ok(empty(status));
        }
        Ok(json_response(status, &shown))
    }

    /// Values that come one by one, in lines, as `judge` leaves them.
    fn lines(
        &self,
        answer: Response<EngineBody>,
        judge: fn(Value, &PolicyContext) -> Option<Value>,
    ) -> Response<BoxBody> {
        let backend = Arc::clone(&self.backend);
        let start = (BodyStream::new(answer.into_body()), Lines::default());
        let pieces = stream::unfold(start, move |(mut body, mut lines)| {
            let backend = Arc::clone(&backend);
            async move {
                loop {
                    let frame = body.next().await?;
                    let frame: Frame<Bytes> = match frame {
                        Ok(frame) => frame,
                        Err(error) => return Some((Err(BoxError::from(error)), (body, lines))),
                    };
                    let Some(data) = frame.data_ref() else { continue };
                    let context = backend.context();
                    let mut out = Vec::new();
                    for line in lines.feed(data) {
                        let Ok(mut value) = serde_json::from_slice(&line) else { continue };
                        backend.settings.names.strip(&mut value);
                        if let Some(value) = judge(value, &context) {
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

/// The answer as it comes. What it needs held is held until it begins: the engine has found the
/// image by then.
fn passed(answer: Response<EngineBody>, mut held: Vec<HeldTag>) -> Response<BoxBody> {
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

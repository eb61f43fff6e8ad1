//! One request: read, judged, made ready for, sent. What comes back is [`super::answer`]'s.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER, UPGRADE},
};
use serde_json::{Map, Value, json};

use crate::guard::{
    audit::{AuditEvent, Decision},
    parse::{json, target},
    policy::{
        decide::judge,
        forward::{Call, FollowUp, Forward, ImageUse, Reply, SentBody, Verdict},
        route::{BodyKind, body_kind, route as route_of},
    },
    refusal::Refusal,
};

use super::{
    answer::{Answers, ConnectionPermit},
    backend::Backend,
    engine::Outgoing,
    images::Images,
    pins::Pins,
    prepare::{Preparation, Prepared},
    report::Report,
    request_head::{head, media_type},
    response::{BoxBody, full, json_response, refused, unreachable},
    spool::spooled,
    tags::Tags,
};

/// How long the next piece of a body may take (G-86).
const PROGRESS: Duration = Duration::from_mins(1);
/// The longest request line (G-21).
const LINE: usize = 16 << 10;

/// Answers the requests of one job.
#[derive(Debug)]
pub(super) struct Exchanges {
    backend: Arc<Backend>,
    images: Images,
    preparation: Preparation,
    answers: Answers,
    report: Arc<Report>,
}

impl Exchanges {
    pub(super) fn new(backend: &Arc<Backend>, pins: Pins, report: &Arc<Report>) -> Self {
        let (images, tags) = (Images::new(backend), Tags::new(backend));
        Self {
            backend: Arc::clone(backend),
            preparation: Preparation::new(backend, &images, &tags, pins),
            answers: Answers::new(backend, &tags),
            images,
            report: Arc::clone(report),
        }
    }

    /// Answers a request, and reports it.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        connection: u64,
        permit: ConnectionPermit,
    ) -> Result<Response<BoxBody>, Infallible> {
        let started = Instant::now();
        let method = request.method().clone();
        let asks_for_upgrade = request.headers().contains_key(UPGRADE);
        let mut route = "-".to_owned();
        let outcome = Box::pin(self.decide(request, &mut route, permit)).await;
        let (mut response, decision, refusal) = match outcome {
            Ok((response, decision)) => (response, decision, None),
            Err(refusal) => {
                tracing::debug!(rule = refusal.rule, %route, message = %refusal, "request refused");
                (refused(&refusal), Decision::Refused, Some(refusal))
            }
        };
        self.report.count(refusal.as_ref());
        self.own_headers(response.headers_mut());
        if asks_for_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // The client meant what follows for the stream, so it must not be read as a request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(events) = self.report.events() {
            let event = AuditEvent {
                time: jiff::Timestamp::now().to_string(),
                job: self.backend.settings.job.clone(),
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
            // The log may have ended.
            drop(events.send(event).await);
        }
        Ok(response)
    }

    async fn decide(
        &self,
        mut request: Request<Incoming>,
        route: &mut String,
        permit: ConnectionPermit,
    ) -> Result<(Response<BoxBody>, Decision), Refusal> {
        let head = head(&request)?;
        let whole = request.uri().to_string();
        if whole.len() > LINE || request.uri().authority().is_some() {
            return Err(Refusal::malformed("the request's target must be a path", "G-23"));
        }
        let target = target::parse(&whole)?;
        *route = route_of(&target);
        let upgrade = head.upgrade.then(|| hyper::upgrade::on(&mut request));
        let method = request.method().clone();
        let kind = body_kind(&method, &target);
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
        let forward = match judge(&call, &self.backend.context()) {
            Verdict::Refuse(refusal) => return Err(refusal),
            Verdict::Answer(reply) => return Ok((self.reply(&method, reply), Decision::Answered)),
            Verdict::Forward(forward) => *forward,
        };
        if let Some(answer) = self.without_engine(&forward).await? {
            return Ok((answer, Decision::Answered));
        }
        let mut prepared = self.preparation.prepare(forward, &mut archive).await?;
        let (content_type, sent) = self.sent(&mut prepared, archive)?;
        let mut headers = Vec::new();
        let auths = [
            ("x-registry-auth", &prepared.forward.auth),
            ("x-registry-config", &prepared.forward.registries),
        ];
        for (name, value) in auths {
            headers.extend(value.clone().map(|value| (name, value)));
        }
        let hijack = prepared.forward.follow_up == FollowUp::Hijack && upgrade.is_some();
        let outgoing = Outgoing {
            method: &prepared.forward.method,
            path: &prepared.forward.path,
            query: &prepared.forward.query,
            content_type,
            headers,
            body: sent,
            upgrade: hijack,
        };
        let answer = self.backend.engine.send(outgoing).await.map_err(unreachable)?;
        let response =
            self.answers.answered(prepared, answer, upgrade.filter(|_| hijack), permit).await?;
        Ok((response, Decision::Forwarded))
    }

    async fn json_body(&self, body: Incoming) -> Result<Map<String, Value>, Refusal> {
        let most = self.backend.settings.limits.json;
        let collected = tokio::time::timeout(PROGRESS, Limited::new(body, most).collect()).await;
        match collected {
            Ok(Ok(collected)) => json::object(&collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err(Refusal::too_large("the body", "G-35"))
            }
            Ok(Err(_)) => Err(Refusal::malformed("the body broke off", "G-22")),
            Err(_) => Err(Refusal::too_slow()),
        }
    }

    fn own_headers(&self, headers: &mut HeaderMap) {
        let (major, minor) = self.backend.facts.version;
        if let Ok(version) = HeaderValue::try_from(format!("{major}.{minor}")) {
            headers.insert("api-version", version);
        }
        headers.insert("ostype", HeaderValue::from_static("linux"));
        headers.insert("docker-experimental", HeaderValue::from_static("false"));
        headers.insert(SERVER, HeaderValue::from_static("longshore-guard"));
    }

    fn reply(&self, method: &Method, reply: Reply) -> Response<BoxBody> {
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
            Reply::Json(value) => json_response(StatusCode::OK, &value),
        };
        self.own_headers(response.headers_mut());
        response
    }

    /// The answer where the request is not sent, though its object is on the engine.
    async fn without_engine(
        &self,
        forward: &Forward,
    ) -> Result<Option<Response<BoxBody>>, Refusal> {
        if let FollowUp::Pulled(reference) = &forward.follow_up {
            // A pull would move a tag that all jobs use.
            if self.backend.settings.images.shares(reference)
                && self.images.find(&reference.canonical()).await.is_ok()
            {
                let status = format!("Status: Image is up to date for {}", reference.short());
                return Ok(Some(json_response(StatusCode::OK, &json!({ "status": status }))));
            }
        }
        if let Some((name, ImageUse::Remove)) = &forward.image {
            return self.images.remove(name, forward).await.map(Some);
        }
        Ok(None)
    }

    /// The body to send, and its type.
    fn sent(
        &self,
        prepared: &mut Prepared,
        archive: Option<Incoming>,
    ) -> Result<(Option<&'static str>, BoxBody), Refusal> {
        Ok(match std::mem::replace(&mut prepared.forward.body, SentBody::Nothing) {
            SentBody::Nothing => (None, full(Bytes::new())),
            SentBody::Json(body) => {
                (Some("application/json"), full(Value::Object(body).to_string()))
            }
            SentBody::Archive => {
                let body =
                    archive.ok_or_else(|| Refusal::malformed("there is no archive", "G-26"))?;
                let most =
                    usize::try_from(self.backend.settings.limits.upload).unwrap_or(usize::MAX);
                (Some("application/x-tar"), Limited::new(body, most).boxed_unsync())
            }
            SentBody::Context | SentBody::Images => {
                let spool = prepared.spool.take();
                let spool =
                    spool.ok_or_else(|| Refusal::malformed("there is no archive", "G-26"))?;
                (Some("application/x-tar"), spooled(spool))
            }
        })
    }
}

//! The job API's client: one for each server and token. Endpoints of jobs are here, those of
//! runners in `runners`, artifacts in `artifact`; how a call is made is `transport`'s business.

use std::{fmt, path::PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::{
    Method,
    header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::{
    Serialize,
    de::{DeserializeOwned, Deserializer as _, IgnoredAny, MapAccess, Visitor},
};

use super::{
    address::{api_base, clean},
    error::{ClientError, TransportError, json_problem},
    reply::{PatchOutcome, PatchReply, UpdateReply, text},
    settings::ClientSettings,
    transport::{Call, Content, MAX_ANSWER, Timing, Transport},
    wire::{Info, JobPayload, JobRequest, JobUpdate},
};
use crate::base::{error_chain, ids::JobId, secret::Secret};

/// `Content-Type` and `Accept` of JSON.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Where the server says that something has changed in the runner's queue.
const LAST_UPDATE: &str = "x-gitlab-last-update";

/// The client: owns connections, TLS (renewed when its files change) and the queue cursor. Share it
/// by `Arc`. Every call is cancelled by dropping its future.
pub struct Client {
    pub(super) transport: Transport,
    pub(super) token: Secret,
    cursor: Mutex<Option<String>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("url", &clean(&self.transport.url("")))
            .finish_non_exhaustive()
    }
}

/// The answer to a job request.
#[derive(Debug)]
pub struct JobReply {
    /// A job, or why there is none.
    pub job: Received,
    /// Whether the server accepts the runner: false only when the server does not know its token.
    pub healthy: bool,
    /// Whether the server asked for less on the way (for adaptive request concurrency).
    pub retried: bool,
    /// `None` when there was no answer.
    pub status: Option<u16>,
    /// The request in the server's logs (`X-Request-Id`), if it answered.
    pub request_id: Option<String>,
    /// For the operator, when the call failed.
    pub problem: Option<String>,
}

/// The outcome of a job request.
#[derive(Debug)]
pub enum Received {
    /// A job.
    Job(Box<JobPayload>),
    /// The server believes that it gave a job away, but its payload cannot be understood: fail that
    /// job with the reason, if it is known which one it is.
    Undecodable {
        /// The job.
        id: Option<JobId>,
        /// Its token.
        token: Option<Secret>,
        /// Why, without any value of the payload.
        error: String,
    },
    /// No job.
    Nothing,
}

/// An answer, read as far as it is needed.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    body: Bytes,
    /// What broke the body off.
    broken: Option<TransportError>,
    /// `<METHOD> <address>: `.
    what: String,
    address: String,
}

impl Answer {
    /// The body, which must be JSON, and say so.
    pub(super) fn decode<T: DeserializeOwned>(&mut self) -> Result<T, TransportError> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        let address = self.address.clone();
        if !is_json(&self.headers) {
            let media_type = text(&self.headers, CONTENT_TYPE.as_str());
            return Err(TransportError::NotJson {
                address,
                status: self.status,
                media_type: media_type.unwrap_or("no media type").to_owned(),
            });
        }
        let mut json = serde_json::Deserializer::from_slice(&self.body);
        let decoded = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let problem = json_problem(error.inner());
            match error.path().to_string().as_str() {
                "." => problem,
                path => format!("`{path}`: {problem}"),
            }
        });
        decoded
            .and_then(|decoded| {
                json.end().map_err(|error| json_problem(&error))?;
                Ok(decoded)
            })
            .map_err(|reason| TransportError::Undecodable { address, reason })
    }

    /// What the server says went wrong.
    pub(super) fn message(&self) -> String {
        let status = status_text(self.status);
        let message = if is_json(&self.headers) { error_text(&self.body) } else { None };
        match message {
            Some(message) if message == status => format!("{}{status}", self.what),
            Some(message) => format!("{}{status} ({message})", self.what),
            None => status,
        }
    }
}

/// `<code> <reason>`.
pub(super) fn status_text(status: u16) -> String {
    let reason = reqwest::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    format!("{status} {}", reason.unwrap_or_default()).trim_end().to_owned()
}

/// Whether the media type is exactly that of JSON; parameters do not matter.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = text(headers, CONTENT_TYPE.as_str()).and_then(|t| t.split(';').next());
    media_type.is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
}

/// `message` of an error's body: text, or texts by field.
fn error_text(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let texts = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(texts) => {
            let texts: Vec<_> = texts.iter().filter_map(serde_json::Value::as_str).collect();
            texts.join("; ")
        }
        other => other.to_string(),
    };
    let message = match body.get("message")? {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Object(fields) => {
            let fields = fields.iter().map(|(field, value)| format!("{field}: {}", texts(value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        _ => return None,
    };
    let line = message.chars().map(|c| if c.is_control() { ' ' } else { c });
    Some(line.take(1000).collect())
}

impl Client {
    /// A client for the settings, which are all that can be wrong with it: an error here is final
    /// until they change.
    pub fn new(settings: ClientSettings) -> Result<Self, ClientError> {
        Self::with(settings, None, Timing::JOB_API)
    }

    /// The same, but every connection goes to this socket, whatever the url's host is.
    pub fn over_unix_socket(
        socket: PathBuf,
        settings: ClientSettings,
    ) -> Result<Self, ClientError> {
        Self::with(settings, Some(socket), Timing::JOB_API)
    }

    pub(super) fn with(
        settings: ClientSettings,
        socket: Option<PathBuf>,
        timing: Timing,
    ) -> Result<Self, ClientError> {
        let base = api_base(&settings.url)?;
        let transport = Transport::new(base, &settings, socket, timing)?;
        Ok(Self { transport, token: settings.token, cursor: Mutex::new(None) })
    }

    /// Asks for a job; may take as long as the server likes to hold the request.
    pub async fn request_job(&self, info: &Info, system_id: &str) -> JobReply {
        let last_update = self.cursor.lock().clone();
        let body = JobRequest { info, token: &self.token, system_id, last_update };
        let call = self.json(Method::POST, "jobs/request", &body);
        let call = call.token("runner-token", &self.token).header(ACCEPT, JSON);
        let (answer, retried) = self.answer(call, Some(201)).await;
        let nothing = |healthy, status, request_id, problem| JobReply {
            job: Received::Nothing,
            healthy,
            retried,
            status,
            request_id,
            problem,
        };
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => return nothing(true, None, None, Some(error_chain(&error))),
        };
        let status = Some(answer.status);
        let request_id = text(&answer.headers, "x-request-id").map(str::to_owned);
        match answer.status {
            201 => match answer.decode() {
                Ok(payload) => {
                    self.note_cursor(&answer);
                    let job = Received::Job(Box::new(payload));
                    JobReply { job, healthy: true, retried, status, request_id, problem: None }
                }
                Err(error) => {
                    let Salvaged { id, token } = salvage(&answer.body);
                    let error = error_chain(&error);
                    let job = Received::Undecodable { id, token, error: error.clone() };
                    JobReply {
                        job,
                        healthy: true,
                        retried,
                        status,
                        request_id,
                        problem: Some(error),
                    }
                }
            },
            204 => {
                self.note_cursor(&answer);
                nothing(true, status, request_id, None)
            }
            other => {
                self.note_cursor(&answer);
                nothing(other != 403, status, request_id, Some(answer.message()))
            }
        }
    }

    /// Reports a job's state: acknowledges it, keeps it alive, ends it.
    pub async fn update_job(&self, id: JobId, update: &JobUpdate<'_>) -> UpdateReply {
        let call = self.json(Method::PUT, &format!("jobs/{id}"), update);
        let (answer, _) = self.answer(call.token("job-token", update.token), None).await;
        match answer {
            Ok(answer) => {
                self.note_cursor(&answer);
                let problem = (answer.status >= 300).then(|| answer.message());
                UpdateReply::of(answer.status, &answer.headers, problem)
            }
            Err(error) => UpdateReply::lost(error_chain(&error)),
        }
    }

    /// Sends a piece of trace that begins at byte `start`. An empty piece is not sent.
    pub async fn patch_trace(
        &self,
        id: JobId,
        token: &Secret,
        debug_trace: bool,
        start: u64,
        chunk: Bytes,
    ) -> PatchReply {
        let Some(last) = (chunk.len() as u64).checked_sub(1) else {
            let outcome = PatchOutcome::Accepted;
            return PatchReply {
                outcome,
                remote: None,
                interval: None,
                status: None,
                problem: None,
            };
        };
        let mut url = self.transport.url(&format!("jobs/{id}/trace"));
        url.set_query(Some(&format!("debug_trace={debug_trace}")));
        let kind = HeaderValue::from_static("text/plain");
        let content = Content::Bytes { kind, bytes: chunk };
        let mut call = Call::new(Method::PATCH, url, content, self.transport.timing);
        if let Ok(range) = HeaderValue::from_str(&format!("{start}-{}", start.saturating_add(last)))
        {
            call = call.header(CONTENT_RANGE, range);
        }
        let (answer, _) = self.answer(call.token("job-token", token), None).await;
        match answer {
            Ok(answer) => {
                let problem = (answer.status != 202).then(|| answer.message());
                PatchReply::of(answer.status, &answer.headers, problem)
            }
            Err(error) => PatchReply::lost(error_chain(&error)),
        }
    }

    /// What jobs trust the server by: the CA file as it is, else, once a connection was made, the
    /// chain that it was verified by. `None` for plain http.
    #[must_use]
    pub fn server_ca(&self) -> Option<String> {
        self.transport.is_tls().then(|| self.transport.tls().server_ca()).flatten()
    }

    /// Client certificate and key as in their files, for jobs. `None` for plain http.
    #[must_use]
    pub fn client_certificate(&self) -> Option<(String, Secret)> {
        self.transport.is_tls().then(|| self.transport.tls().client_certificate()).flatten()
    }

    /// A call with a JSON body.
    pub(super) fn json(&self, method: Method, path: &str, body: &impl Serialize) -> Call<'static> {
        // Our own types have string keys and no failing serializers.
        let bytes = serde_json::to_vec(body).unwrap_or_default().into();
        let content = Content::Bytes { kind: JSON, bytes };
        Call::new(method, self.transport.url(path), content, self.transport.timing)
    }

    /// Makes the call, and reads the whole body if the status is `expected`, else only what explains
    /// it.
    pub(super) async fn answer(
        &self,
        call: Call<'_>,
        expected: Option<u16>,
    ) -> (Result<Answer, TransportError>, bool) {
        let address = clean(&call.url);
        let what = format!("{} {address}: ", call.method);
        let timing = call.timing;
        let (response, retried) = self.transport.send(call).await;
        let response = match response {
            Ok(response) => response,
            Err(error) => return (Err(error), retried),
        };
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let request_id = text(&headers, "x-request-id");
        tracing::debug!(http.status = status, request_id, call = what, "GitLab answered");
        let (body, broken) = if Some(status) == expected {
            self.transport.read(response, MAX_ANSWER, timing).await
        } else {
            (self.transport.read_little(response, timing).await, None)
        };
        (Ok(Answer { status, headers, body, broken, what, address }), retried)
    }

    /// Keeps the queue cursor of an answer that has one.
    pub(super) fn note_cursor(&self, answer: &Answer) {
        if let Some(cursor) = text(&answer.headers, LAST_UPDATE).filter(|cursor| !cursor.is_empty())
        {
            *self.cursor.lock() = Some(cursor.to_owned());
        }
    }
}

/// What is left of a payload that cannot be understood.
#[derive(Default)]
struct Salvaged {
    id: Option<JobId>,
    token: Option<Secret>,
}

/// Reads `id` and `token` at the top of JSON that may break off or go wrong anywhere.
fn salvage(body: &[u8]) -> Salvaged {
    struct Top<'a>(&'a mut Salvaged);
    impl<'de> Visitor<'de> for Top<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a job")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<String>()? {
                match key.as_str() {
                    "id" => {
                        let value: serde_json::Value = map.next_value()?;
                        self.0.id = value.as_i64().map(JobId);
                    }
                    "token" => {
                        let value: serde_json::Value = map.next_value()?;
                        self.0.token = value.as_str().map(Secret::new);
                    }
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(())
        }
    }
    let mut salvaged = Salvaged::default();
    // What came before an error is all that matters here.
    let _ = serde_json::Deserializer::from_slice(body).deserialize_map(Top(&mut salvaged));
    salvaged
}

#[cfg(test)]
mod tests;

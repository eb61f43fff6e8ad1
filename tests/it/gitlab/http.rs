//! The endpoints that the runner uses (docs/compatibility.md, "Job API"), and the checks of the
//! requests to them.

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State as Extract},
    http::{Method, Response, request::Parts},
};
use serde_json::{Value, json};

use super::{
    Endpoint, Fault, JobState, LEGACY_TOKEN, REGISTRATION_TOKEN, RUNNER_TOKEN, Shared, State,
    Upload, git,
};

/// The 31 keys of `info.features` (docs/compatibility.md, "Announced features").
pub(super) const FEATURES: [&str; 31] = [
    "variables",
    "image",
    "services",
    "artifacts",
    "cache",
    "fallback_cache_keys",
    "shared",
    "upload_multiple_artifacts",
    "upload_raw_artifacts",
    "session",
    "terminal",
    "refspecs",
    "masking",
    "proxy",
    "raw_variables",
    "artifacts_exclude",
    "multi_build_steps",
    "trace_reset",
    "trace_checksum",
    "trace_size",
    "vault_secrets",
    "cancelable",
    "return_exit_code",
    "service_variables",
    "service_multiple_aliases",
    "image_executor_opts",
    "service_executor_opts",
    "cancel_gracefully",
    "native_steps_integration",
    "two_phase_job_commit",
    "job_inputs",
];

/// The largest body of a patch, in bytes (docs/compatibility.md, "Sending the trace").
const LARGEST_PATCH: usize = 1_048_576;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(serve).with_state(shared)
}

async fn serve(Extract(shared): Extract<Arc<Shared>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return message(400);
    };
    let response = if head.uri.path().contains(".git/") {
        serve_git(&shared, &head, body).await
    } else if head.uri.path() == "/api/v4/jobs/request" {
        request_job(&shared, &head, &body).await
    } else {
        let mut state = shared.lock();
        check_headers(&mut state, &head);
        answer(&mut state, &head, &body)
    };
    shared.lock().requests.push(super::Recorded {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
    });
    shared.changed();
    response
}

async fn serve_git(shared: &Shared, head: &Parts, body: Bytes) -> Response<Body> {
    if let Some(fault) = shared.lock().take_fault(Endpoint::Git) {
        return fault.response();
    }
    let known = git::password(&head.headers).is_some_and(|password| {
        shared.lock().jobs.values().any(|job| job.token == password && job.executing())
    });
    if known { shared.repositories.serve(head, body).await } else { git::ask_for_password() }
}

/// Checks the headers that every API request must have (docs/compatibility.md, "Request headers").
fn check_headers(state: &mut State, head: &Parts) {
    let id = git::text(&head.headers, "x-request-id");
    let is_hex = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    let path = head.uri.path();
    if !is_hex {
        state.violations.push(format!("{path}: X-Request-Id `{id}` is not 32 hex digits"));
    }
    let direct = head.uri.query().is_some_and(|query| query.contains("direct_download"));
    if git::text(&head.headers, "user-agent").is_empty() && !direct {
        state.violations.push(format!("{path}: no User-Agent"));
    }
}

fn check_info(state: &mut State, path: &str, body: &Value) {
    for feature in FEATURES {
        if !body["info"]["features"][feature].is_boolean() {
            state.violations.push(format!("{path}: info.features lacks `{feature}`"));
        }
    }
}

/// Notes a token header that differs from the token in the body.
fn check_token(state: &mut State, head: &Parts, name: &str, body: &Value) {
    if git::text(&head.headers, name) != body["token"].as_str().unwrap_or_default() {
        state.violations.push(format!("{}: {name} differs from the body's token", head.uri.path()));
    }
}

async fn request_job(shared: &Shared, head: &Parts, body: &[u8]) -> Response<Body> {
    let Ok(query) = serde_json::from_slice::<Value>(body) else {
        return message(400);
    };
    let deadline = {
        let mut state = shared.lock();
        check_headers(&mut state, head);
        check_info(&mut state, head.uri.path(), &query);
        check_token(&mut state, head, "runner-token", &query);
        state.polls.push(query.clone());
        shared.changed();
        if let Some(fault) = state.take_fault(Endpoint::Request) {
            return fault.response();
        }
        if query["token"] != RUNNER_TOKEN {
            return message(403);
        }
        tokio::time::Instant::now() + state.long_poll
    };
    let mut changes = shared.changes.subscribe();
    loop {
        changes.borrow_and_update();
        {
            let mut state = shared.lock();
            let cursor = format!("cursor-{}", state.submitted);
            if let Some(id) = state.queue.pop_front() {
                let two_phase = query["info"]["features"]["two_phase_job_commit"] == true;
                let job = state.jobs.get_mut(&id).unwrap();
                let status = if two_phase { "waiting" } else { "running" };
                status.clone_into(&mut job.status);
                let payload = job.payload.to_string();
                return with_cursor(json_answer(201, payload), &cursor);
            }
            if query["last_update"] != cursor {
                return with_cursor(empty(204), &cursor);
            }
        }
        if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
            return empty(204);
        }
    }
}

fn answer(state: &mut State, head: &Parts, body: &[u8]) -> Response<Body> {
    let path = head.uri.path().strip_prefix("/api/v4/").unwrap_or_default();
    if let Some(rest) = path.strip_prefix("jobs/") {
        let (id, what) = rest.split_once('/').unwrap_or((rest, ""));
        let Some(id) = id.parse().ok().filter(|id| state.jobs.contains_key(id)) else {
            return message(404);
        };
        return match (&head.method, what) {
            (&Method::PUT, "") => update(state, head, id, body),
            (&Method::PATCH, "trace") => patch(state, head, id, body),
            (&Method::POST, "artifacts") => upload(state, head, id, body),
            (&Method::GET, "artifacts") => download(state, head, id),
            _ => message(405),
        };
    }
    let query: Value = serde_json::from_slice(body).unwrap_or_default();
    let known = query["token"] == RUNNER_TOKEN || query["token"] == LEGACY_TOKEN;
    match (&head.method, path) {
        (&Method::POST, "runners/verify") => {
            check_token(state, head, "runner-token", &query);
            let found = json!({"id": 1, "token": query["token"], "token_expires_at": null});
            if known { json_answer(200, found.to_string()) } else { message(403) }
        }
        (&Method::POST, "runners") if query["token"] == REGISTRATION_TOKEN => {
            check_info(state, head.uri.path(), &query);
            let made = json!({"id": 2, "token": LEGACY_TOKEN, "token_expires_at": null});
            json_answer(201, made.to_string())
        }
        (&Method::DELETE, "runners" | "runners/managers") => {
            if known {
                empty(204)
            } else {
                message(403)
            }
        }
        (&Method::GET, "runners/router/discovery") => message(501),
        _ => message(404),
    }
}

impl State {
    fn take_fault(&mut self, endpoint: Endpoint) -> Option<Fault> {
        self.faults.get_mut(&endpoint)?.pop_front()
    }

    fn note(&mut self, id: i64, what: &str) {
        self.violations.push(format!("job {id}: {what}"));
    }

    fn job(&mut self, id: i64) -> &mut JobState {
        self.jobs.get_mut(&id).unwrap()
    }

    /// The answer to a request for a job that no longer executes; counts what comes after.
    fn refuse(&mut self, id: i64, is_patch: bool) -> Response<Body> {
        let job = self.job(id);
        let told = job.after_abort.is_some();
        let (patches, puts) = job.after_abort.get_or_insert((0, 0));
        if told {
            *(if is_patch { &mut *patches } else { &mut *puts }) += 1;
        }
        let too_many = *patches > 1 || *puts > 1;
        let status = job.status.clone();
        job.may_stay_short = true;
        if too_many {
            self.note(id, "more than one patch and one PUT after the abort");
        }
        header(message(403), "Job-Status", &status)
    }

    /// Adds what every answer to an executing job says.
    fn executing(&self, id: i64, response: Response<Body>) -> Response<Body> {
        let response = header(response, "Job-Status", &self.jobs[&id].status);
        header(response, "X-GitLab-Trace-Update-Interval", &self.trace_interval.to_string())
    }
}

/// `PUT jobs/:id` (docs/compatibility.md, "Job updates").
fn update(state: &mut State, head: &Parts, id: i64, body: &[u8]) -> Response<Body> {
    let Ok(update) = serde_json::from_slice::<Value>(body) else {
        return message(400);
    };
    check_info(state, head.uri.path(), &update);
    check_token(state, head, "job-token", &update);
    // An HTTP library may say that it takes anything, which is the same as saying nothing.
    if head.headers.get("accept").is_some_and(|accept| accept != "*/*") {
        state.note(id, "PUT that asks for a kind of answer");
    }
    if update["token"] != state.job(id).token.as_str() {
        return message(403);
    }
    let wanted = update["state"].as_str().unwrap_or_default().to_owned();
    let waiting = state.job(id).status == "waiting";
    if !waiting && !state.job(id).executing() {
        let finished = matches!(state.job(id).status.as_str(), "success" | "failed");
        // A runner that was killed in between may have to ask.
        if wanted == "running" && finished && !state.job(id).may_jump {
            state.note(id, "running after a final state");
        }
        return state.refuse(id, false);
    }
    match wanted.as_str() {
        "running" => {
            if state.job(id).updates.is_empty() {
                if update["output"] != json!({}) || update.get("checksum").is_some() {
                    state.note(id, "the acknowledgement has a checksum or size");
                }
                if let Some(fault) = state.take_fault(Endpoint::Acknowledge) {
                    if fault.takes_effect {
                        let job = state.job(id);
                        "running".clone_into(&mut job.status);
                        job.updates.push(update);
                    }
                    return fault.response();
                }
            }
            let job = state.job(id);
            if waiting {
                "running".clone_into(&mut job.status);
            }
            job.updates.push(update);
            state.executing(id, message(200))
        }
        "success" | "failed" if waiting => message(400),
        "success" | "failed" => finish(state, id, update, &wanted),
        other => {
            state.note(id, &format!("state `{other}`"));
            message(400)
        }
    }
}

fn finish(state: &mut State, id: i64, update: Value, wanted: &str) -> Response<Body> {
    let job = state.job(id);
    let stored = job.trace.len();
    let mut crc = flate2::Crc::new();
    crc.update(&job.trace);
    let checksum = format!("crc32:{:08x}", crc.sum());
    let claimed = usize::try_from(update["output"]["bytesize"].as_u64().unwrap_or(0)).unwrap();
    let matches = update["output"]["checksum"] == checksum.as_str() && claimed == stored;
    if !matches && !job.may_stay_short {
        state.note(id, &format!("final update of {claimed} bytes, {stored} stored ({checksum})"));
    }
    if let Some(fault) = state.take_fault(Endpoint::Final) {
        let job = state.job(id);
        job.finals.push((Instant::now(), fault.status));
        if fault.status == 412 {
            job.trace.clear();
            job.may_jump = true;
        }
        if fault.takes_effect {
            wanted.clone_into(&mut job.status);
            job.updates.push(update);
        }
        return fault.response();
    }
    let job = state.job(id);
    job.finals.push((Instant::now(), 200));
    let canceled = job.status == "canceling";
    if canceled { "canceled" } else { wanted }.clone_into(&mut job.status);
    job.updates.push(update);
    state.executing(id, message(200))
}

/// `PATCH jobs/:id/trace` (docs/compatibility.md, "Sending the trace").
fn patch(state: &mut State, head: &Parts, id: i64, body: &[u8]) -> Response<Body> {
    if git::text(&head.headers, "job-token") != state.job(id).token {
        return message(403);
    }
    if !state.job(id).executing() && state.job(id).status != "waiting" {
        return state.refuse(id, true);
    }
    if !head.uri.query().is_some_and(|query| query.contains("debug_trace=")) {
        state.note(id, "patch without debug_trace");
    }
    if git::text(&head.headers, "content-type") != "text/plain" {
        state.note(id, "patch that is not text/plain");
    }
    let range = git::text(&head.headers, "content-range");
    let Some((start, end)) = range
        .split_once('-')
        .and_then(|(start, end)| Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()?)))
    else {
        state.note(id, &format!("Content-Range `{range}`"));
        return message(400);
    };
    if body.is_empty() || start + body.len() != end + 1 {
        state.note(id, &format!("Content-Range {range} with {} bytes", body.len()));
    }
    if body.len() > LARGEST_PATCH {
        state.note(id, &format!("a patch of {} bytes", body.len()));
    }
    let fault = state.take_fault(Endpoint::Trace);
    let job = state.job(id);
    let refused = fault.as_ref().is_some_and(|fault| !fault.takes_effect);
    let status = match &fault {
        _ if !refused && start != job.trace.len() => 416,
        Some(fault) => fault.status,
        None => 202,
    };
    job.patches.push((start, body.len(), status));
    if start != job.trace.len() && !job.may_jump {
        let stored = job.trace.len();
        state.note(id, &format!("patch from {start}, {stored} stored"));
    }
    let job = state.job(id);
    if status == 416 && !refused {
        let stored = format!("0-{}", job.trace.len());
        return state.executing(id, header(message(416), "Range", &stored));
    }
    job.may_jump = fault.is_some();
    if let Some(fault) = fault.filter(|fault| !fault.takes_effect) {
        job.may_stay_short |= matches!(fault.status, 403 | 404);
        return fault.response();
    }
    // Far enough back for a value that is split over two patches.
    let from = job.trace.len().saturating_sub(4096);
    job.trace.extend_from_slice(body);
    if job.secrets.is_match(&job.trace[from..]) {
        state.note(id, "a masked value is in the trace");
    }
    if status != 202 {
        return message(status);
    }
    let stored = format!("0-{}", state.job(id).trace.len());
    state.executing(id, header(message(202), "Range", &stored))
}

/// `POST jobs/:id/artifacts` (docs/compatibility.md, "Artifact upload").
fn upload(state: &mut State, head: &Parts, id: i64, body: &[u8]) -> Response<Body> {
    if git::text(&head.headers, "job-token") != state.job(id).token {
        return message(403);
    }
    if !state.job(id).executing() {
        state.note(id, "an artifact for a job that is over");
        return header(message(403), "Job-Status", &state.jobs[&id].status);
    }
    let fault = state.take_fault(Endpoint::Upload);
    if let Some(fault) = fault.as_ref().filter(|fault| !fault.takes_effect) {
        return fault.response();
    }
    let Some((filename, content)) = only_part(&git::text(&head.headers, "content-type"), body)
    else {
        state.note(id, "an artifact that is not one part `file`");
        return message(400);
    };
    let query = head.uri.query().unwrap_or_default().to_owned();
    state.job(id).uploads.push(Upload { filename, content, query });
    fault.map_or_else(|| message(201), |fault| fault.response())
}

/// File name and content of a form with the one part `file` (RFC 7578).
fn only_part(content_type: &str, body: &[u8]) -> Option<(String, Vec<u8>)> {
    let boundary = content_type.split_once("boundary=")?.1.trim_matches('"');
    let start = format!("--{boundary}\r\n");
    let end = format!("\r\n--{boundary}--");
    let part = body.strip_prefix(start.as_bytes())?;
    let part = &part[..memchr(part, end.as_bytes())?];
    let split = memchr(part, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&part[..split]).ok()?;
    let disposition =
        head.lines().find(|line| line.to_lowercase().starts_with("content-disposition"))?;
    if !disposition.contains("name=\"file\"") {
        return None;
    }
    let filename = disposition.split_once("filename=\"")?.1.split('"').next()?;
    Some((filename.to_owned(), part[split + 4..].to_vec()))
}

fn memchr(text: &[u8], what: &[u8]) -> Option<usize> {
    aho_corasick::AhoCorasick::new([what]).ok()?.find(text).map(|found| found.start())
}

/// `GET jobs/:id/artifacts` (docs/compatibility.md, "Artifact download"), without separate storage.
fn download(state: &mut State, head: &Parts, id: i64) -> Response<Body> {
    let token = git::text(&head.headers, "job-token");
    if !state.jobs.values().any(|job| job.token == token) {
        return message(403);
    }
    if let Some(fault) = state.take_fault(Endpoint::Download) {
        return fault.response();
    }
    let archives = &state.jobs[&id].uploads;
    match archives.iter().rfind(|upload| upload.query.contains("artifact_type=archive")) {
        None => message(404),
        Some(upload) => Response::builder()
            .header("Content-Type", "application/octet-stream")
            .body(Body::from(upload.content.clone()))
            .unwrap(),
    }
}

impl Fault {
    fn response(&self) -> Response<Body> {
        self.headers
            .iter()
            .fold(message(self.status), |response, (name, value)| header(response, name, value))
    }
}

/// An answer as the API words them.
fn message(status: u16) -> Response<Body> {
    json_answer(status, json!({"message": status.to_string()}).to_string())
}

fn json_answer(status: u16, body: String) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("Content-Type", "application/json")
        .body(Body::from(body))
        .unwrap()
}

fn empty(status: u16) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

fn header(mut response: Response<Body>, name: &'static str, value: &str) -> Response<Body> {
    response.headers_mut().insert(
        axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
        value.parse().unwrap(),
    );
    response
}

fn with_cursor(response: Response<Body>, cursor: &str) -> Response<Body> {
    header(response, "X-GitLab-Last-Update", cursor)
}

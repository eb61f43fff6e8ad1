//! The job server: the part of GitLab's API that a runner talks to, on a loopback listener, for
//! one pipeline and one runner.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{patch, post, put},
};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::{io::ReaderStream, sync::CancellationToken};

use super::{
    coordinator::{Coordinator, Ending, Offer, Refusal, Stored},
    dotenv,
    upload::{Upload, UploadError},
};
use crate::{
    archive::extract,
    base::{error_chain, ids::JobId},
    gitlab::api::wire::{JobState, TraceOutput},
};

/// How long a request for a job is held; GitLab's Workhorse usually holds 50 s.
const HOLD: Duration = Duration::from_secs(50);
/// Seconds between two pieces of a trace: somebody watches.
const TRACE_INTERVAL: &str = "1";

type Shared = State<Arc<Coordinator>>;

/// Serves until `stop` is cancelled and every request is answered.
pub(crate) async fn serve(
    listener: TcpListener,
    coordinator: Arc<Coordinator>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(coordinator)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(coordinator: Arc<Coordinator>) -> Router {
    Router::new()
        .route("/api/v4/runners/verify", post(verify))
        .route("/api/v4/jobs/request", post(request_job))
        .route("/api/v4/jobs/{id}", put(update))
        .route("/api/v4/jobs/{id}/trace", patch(trace))
        .route("/api/v4/jobs/{id}/artifacts", post(upload).get(download))
        .fallback(|| async { plain(StatusCode::NOT_FOUND) })
        .layer(middleware::from_fn(request_id))
        .with_state(coordinator)
}

/// Gives back the request's id, as GitLab does.
async fn request_id(request: Request, next: Next) -> Response {
    let id = request.headers().get("x-request-id").cloned();
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

#[derive(Deserialize)]
struct RunnerBody {
    #[serde(default)]
    token: String,
}

async fn verify(State(server): Shared, body: Bytes) -> Response {
    if !is_runner(&server, &body) {
        return plain(StatusCode::FORBIDDEN);
    }
    let token = server.runner_token.expose();
    let answer = serde_json::json!({ "id": 1, "token": token, "token_expires_at": null });
    axum::Json(answer).into_response()
}

fn is_runner(server: &Coordinator, body: &[u8]) -> bool {
    serde_json::from_slice::<RunnerBody>(body)
        .is_ok_and(|body| body.token == server.runner_token.expose())
}

async fn request_job(State(server): Shared, body: Bytes) -> Response {
    if !is_runner(&server, &body) {
        return plain(StatusCode::FORBIDDEN);
    }
    let held = tokio::time::timeout(HOLD, async {
        loop {
            // Listening before looking, so that no change is missed in between.
            let mut changed = std::pin::pin!(server.changed());
            changed.as_mut().enable();
            match server.take() {
                Offer::Job(payload) => return Some(payload),
                Offer::Done => return None,
                Offer::Wait => changed.await,
            }
        }
    });
    let offer = held.await;
    server.flush().await;
    match offer {
        Ok(Some(payload)) => (StatusCode::CREATED, axum::Json(payload)).into_response(),
        Ok(None) | Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

#[derive(Deserialize)]
struct UpdateBody {
    token: Option<String>,
    state: Option<JobState>,
    failure_reason: Option<String>,
    #[serde(default)]
    output: Option<TraceOutput>,
    exit_code: Option<i32>,
}

async fn update(
    State(server): Shared,
    Path(id): Path<i64>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Ok(body) = serde_json::from_slice::<UpdateBody>(&body) else {
        return plain(StatusCode::BAD_REQUEST);
    };
    let job = match running_job(&server, id, body.token.as_deref(), &headers) {
        Ok(job) => job,
        Err(refusal) => return refusal,
    };
    match body.state {
        None => return plain(StatusCode::BAD_REQUEST),
        Some(JobState::Running) => {}
        Some(state @ (JobState::Success | JobState::Failed)) => server.end(
            job,
            Ending {
                success: state == JobState::Success,
                exit_code: body.exit_code.unwrap_or_default(),
                reason: body.failure_reason,
                output: body.output.unwrap_or_default(),
            },
        ),
    }
    server.flush().await;
    let mut response = (StatusCode::OK, "200").into_response();
    job_headers(&server, job, &mut response);
    response
}

async fn trace(
    State(server): Shared,
    Path(id): Path<i64>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let job = match running_job(&server, id, None, &headers) {
        Ok(job) => job,
        Err(refusal) => return refusal,
    };
    let start = headers
        .get(header::CONTENT_RANGE)
        .and_then(|range| range.to_str().ok()?.split('-').next()?.trim().parse().ok());
    let Some(start) = start else { return plain(StatusCode::BAD_REQUEST) };
    let (status, length) = match server.append(job, start, body) {
        Ok(length) => (StatusCode::ACCEPTED, length),
        Err(length) => (StatusCode::RANGE_NOT_SATISFIABLE, length),
    };
    server.flush().await;
    let mut response = (status, [(header::RANGE, format!("0-{length}"))]).into_response();
    job_headers(&server, job, &mut response);
    response
}

#[derive(Deserialize)]
struct UploadQuery {
    #[serde(default)]
    artifact_format: String,
    #[serde(default)]
    artifact_type: String,
}

async fn upload(
    State(server): Shared,
    Path(id): Path<i64>,
    Query(query): Query<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let job = match running_job(&server, id, None, &headers) {
        Ok(job) => job,
        Err(refusal) => return refusal,
    };
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let folder = server.folder(job);
    let upload = match Upload::receive(content_type.unwrap_or_default(), body, folder).await {
        Ok(upload) => upload,
        Err(error @ UploadError::Write { .. }) => return storage_failed(&error),
        Err(error) => return message(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let kind = if query.artifact_type.is_empty() { "archive" } else { &query.artifact_type };
    let response = keep(&server, job, kind, &query.artifact_format, upload).await;
    server.flush().await;
    response
}

async fn keep(
    server: &Coordinator,
    job: usize,
    kind: &str,
    format: &str,
    upload: Upload,
) -> Response {
    if let Some(known) = server.stored(job, kind) {
        return if known.sha256 == upload.sha256 {
            (StatusCode::CREATED, "201").into_response()
        } else {
            let text = format!("another artifact of the type {kind} was uploaded before");
            message(StatusCode::BAD_REQUEST, &text)
        };
    }
    let mut variables = Vec::new();
    if kind == "dotenv" {
        let gzipped = format == "gzip";
        let read = upload
            .file()
            .map(|file| tokio::task::spawn_blocking(move || dotenv::read(file, gzipped)));
        let Ok(read) = read else { return plain(StatusCode::SERVICE_UNAVAILABLE) };
        variables = match read.await {
            Ok(Ok(variables)) => variables,
            Ok(Err(text)) => return message(StatusCode::BAD_REQUEST, &text),
            Err(_) => return plain(StatusCode::SERVICE_UNAVAILABLE),
        };
    }
    let path = server.folder(job).join(server.free_name(job, kind, &upload.filename));
    let stored = Stored {
        kind: kind.to_owned(),
        filename: upload.filename.clone(),
        path: path.clone(),
        size: upload.size,
        sha256: upload.sha256,
    };
    if let Err(error) = upload.keep(&path) {
        return storage_failed(&error);
    }
    server.store(job, stored, variables);
    if kind == "archive" && matches!(format, "" | "zip" | "zipzstd" | "tarzstd") {
        unpack(path).await;
    }
    (StatusCode::CREATED, "201").into_response()
}

/// Puts an archive's files beside it, for the user; later jobs are given the archive itself.
async fn unpack(archive: PathBuf) {
    let extracted = tokio::task::spawn_blocking(move || {
        let folder = archive.parent().unwrap_or(&archive);
        extract::extract(&archive, folder)
    });
    match extracted.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = error_chain(&error), "artifacts stay packed");
        }
        Err(error) => tracing::warn!(%error, "artifacts stay packed"),
    }
}

fn storage_failed(error: &UploadError) -> Response {
    tracing::warn!(error = %error, "cannot store an artifact");
    message(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}

async fn download(State(server): Shared, Path(id): Path<i64>, headers: HeaderMap) -> Response {
    let Some(token) = job_token(&headers) else { return plain(StatusCode::UNAUTHORIZED) };
    let source = server.plan.index(JobId(id));
    match source.map_or_else(|| server.may_read(token, usize::MAX), |s| server.may_read(token, s)) {
        None => return plain(StatusCode::UNAUTHORIZED),
        Some(false) => return plain(StatusCode::FORBIDDEN),
        Some(true) => {}
    }
    let Some(archive) = source.and_then(|source| server.stored(source, "archive")) else {
        return plain(StatusCode::NOT_FOUND);
    };
    let Ok(file) = tokio::fs::File::open(&archive.path).await else {
        return plain(StatusCode::NOT_FOUND);
    };
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, archive.size.to_string()),
    ];
    (headers, Body::from_stream(ReaderStream::with_capacity(file, 64 * 1024))).into_response()
}

fn job_token(headers: &HeaderMap) -> Option<&str> {
    headers.get("job-token").and_then(|token| token.to_str().ok())
}

fn job_headers(server: &Coordinator, job: usize, response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert("job-status", HeaderValue::from_static(server.status(job)));
    let interval = HeaderValue::from_static(TRACE_INTERVAL);
    headers.insert("x-gitlab-trace-update-interval", interval);
}

/// The job that asks, by a token of its body or its headers; what it is told where it is none, or
/// does not run any more.
#[expect(clippy::result_large_err, reason = "the answer is sent at once")]
fn running_job(
    server: &Coordinator,
    id: i64,
    token: Option<&str>,
    headers: &HeaderMap,
) -> Result<usize, Response> {
    let tokens: Vec<&str> = token.into_iter().chain(job_token(headers)).collect();
    server.authenticate(JobId(id), &tokens).map_err(|refusal| {
        let mut response = plain(StatusCode::FORBIDDEN);
        if let Refusal::NotRunning(status) = refusal {
            response.headers_mut().insert("job-status", HeaderValue::from_static(status));
        }
        response
    })
}

/// An answer that only says its status, as GitLab words it.
fn plain(status: StatusCode) -> Response {
    message(status, &status.to_string())
}

fn message(status: StatusCode, text: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "message": text }))).into_response()
}

#[cfg(test)]
mod tests;

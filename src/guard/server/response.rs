//! Bodies, and answers to the client.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::Frame,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde_json::{Value, json};

use crate::guard::refusal::Refusal;

/// Why a body or a connection broke off.
pub(in crate::guard) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is sent to the engine or to the client.
pub(super) type BoxBody = UnsyncBoxBody<Bytes, BoxError>;

/// A body of these bytes.
pub(super) fn full(bytes: impl Into<Bytes>) -> BoxBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn empty(status: StatusCode) -> Response<BoxBody> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<BoxBody> {
    let mut response = Response::new(full(format!("{value}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A refusal in the engine's form.
pub(super) fn refused(refusal: &Refusal) -> Response<BoxBody> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
    json_response(status, &json!({ "message": refusal.message }))
}

/// Pieces of JSON that are sent as they come.
pub(super) fn streamed(
    pieces: impl stream::Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + 'static,
) -> Response<BoxBody> {
    let pieces: Pin<Box<dyn stream::Stream<Item = _> + Send>> = Box::pin(pieces);
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The refusal for an engine that did not answer.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn unreachable(error: BoxError) -> Refusal {
    tracing::debug!(%error, "request to the engine failed");
    Refusal::failed(502, "the engine cannot be reached, or broke off")
}

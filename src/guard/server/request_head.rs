//! The head of a request, judged as far as the server left something to judge (G-20 … G-22, G-26,
//! G-66).

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE},
};
use hyper::{
    HeaderMap, Request, Version,
    body::Incoming,
    header::{
        CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING,
        UPGRADE,
    },
};
use serde_json::{Map, Value};

use crate::guard::{
    parse::json,
    policy::{body::fields, credentials::credentials, route::BodyKind},
    refusal::Refusal,
};

/// What of a head is of use.
pub(super) struct Head {
    pub(super) upgrade: bool,
    pub(super) auth: Option<String>,
    pub(super) registries: Option<String>,
}

/// Judges a head (G-20 … G-22, G-66).
pub(super) fn head(request: &Request<Incoming>) -> Result<Head, Refusal> {
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
        .map(|map| credentials(&map))
        .transpose()?
        .map(|map| BASE64_URL_SAFE.encode(Value::Object(map).to_string()));
    let registries = header("x-registry-config")?
        .map(|map| {
            let mut out = Map::new();
            for (host, value) in map {
                let value = fields::object(&value, "X-Registry-Config")?;
                out.insert(host, Value::Object(credentials(value)?));
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

/// Refuses forms, whose fields the engine would prefer to those of the query (G-26).
pub(super) fn media_type(headers: &HeaderMap, kind: BodyKind) -> Result<(), Refusal> {
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

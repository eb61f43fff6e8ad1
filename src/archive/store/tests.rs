//! There is no S3 here. [`FakeS3`] is a named fake: an HTTP server on the loopback that keeps objects
//! in memory and checks each request's presigned query as S3 does (AWS Signature Version 4,
//! "Authenticating Requests: Using Query Parameters"), with code of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::HeaderMap,
    response::{IntoResponse, Response as Answer},
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use futures_util::FutureExt;

use super::*;
use crate::base::{hash::hmac_sha256, ids::hex, secret::Secret};

const SECRET: &str = "secret-key-of-the-test";

#[derive(Default)]
struct Objects {
    stored: BTreeMap<String, (Vec<u8>, HeaderMap)>,
    /// Statuses to answer with first, whatever is asked.
    failures: VecDeque<u16>,
    /// Method and status of each request.
    seen: Vec<String>,
    expiries: Vec<String>,
}

struct FakeS3 {
    objects: Arc<Mutex<Objects>>,
    endpoint: Url,
    _server: JoinSet<()>,
}

impl FakeS3 {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let objects = Arc::new(Mutex::new(Objects::default()));
        let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&objects));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { objects, endpoint, _server: server }
    }

    fn config(&self) -> S3Config {
        S3Config {
            endpoint: self.endpoint.clone(),
            access_key: "AKEY".into(),
            secret_key: Secret::new(SECRET),
            session_token: None,
            bucket: "caches".into(),
            region: "eu-west-1".into(),
            path_style: true,
        }
    }

    fn store(&self) -> Store {
        store(&self.config())
    }

    fn fail(&self, statuses: &[u16]) {
        self.objects.lock().failures.extend(statuses);
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.objects.lock().seen)
    }
}

/// A store that does not wait between tries.
fn store(config: &S3Config) -> Store {
    let expiry = Duration::from_hours(1);
    let mut store = Store::new(config, expiry, Duration::from_secs(20)).unwrap();
    store.retry = Backoff::constant(3, Duration::ZERO);
    store
}

async fn answer(State(objects): State<Arc<Mutex<Objects>>>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let mut objects = objects.lock();
    let path = parts.uri.path().to_owned();
    let (status, headers, body) = if let Err(why) = check(&parts) {
        (403, HeaderMap::new(), why.into_bytes())
    } else if let Some(status) = objects.failures.pop_front() {
        (status, HeaderMap::new(), Vec::new())
    } else {
        let query = parts.uri.query().unwrap_or_default();
        let expires = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Expires="));
        objects.expiries.push(expires.unwrap_or_default().to_owned());
        match parts.method.as_str() {
            "PUT" => {
                objects.stored.insert(path, (body.to_vec(), parts.headers.clone()));
                (200, HeaderMap::new(), Vec::new())
            }
            method => match objects.stored.get(&path) {
                None => (404, HeaderMap::new(), Vec::new()),
                Some((content, sent)) => {
                    let mut headers = HeaderMap::new();
                    headers
                        .insert("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap());
                    headers.insert("x-amz-meta-cachekey", sent["x-amz-meta-cachekey"].clone());
                    if method == "HEAD" {
                        headers.insert("content-length", content.len().into());
                        (200, headers, Vec::new())
                    } else {
                        (200, headers, content.clone())
                    }
                }
            },
        }
    };
    objects.seen.push(format!("{} {status}", parts.method));
    (axum::http::StatusCode::from_u16(status).unwrap(), headers, body).into_response()
}

/// Checks a presigned request.
fn check(parts: &axum::http::request::Parts) -> Result<(), String> {
    let mut query: Vec<(&str, &str)> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    let take = |name: &str| {
        query
            .iter()
            .find(|pair| pair.0 == name)
            .map(|pair| pair.1.to_owned())
            .ok_or(name.to_owned())
    };
    let signature = take("X-Amz-Signature")?;
    let date = take("X-Amz-Date")?;
    let names = take("X-Amz-SignedHeaders")?.replace("%3B", ";");
    let credential = take("X-Amz-Credential")?.replace("%2F", "/");
    if take("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" {
        return Err("algorithm".into());
    }
    let expected = format!("AKEY/{}/eu-west-1/s3/aws4_request", &date[..8]);
    if credential != expected {
        return Err(format!("credential {credential}"));
    }
    let signed: Vec<&str> = names.split(';').collect();
    for name in parts.headers.keys().map(axum::http::HeaderName::as_str) {
        if name.starts_with("x-amz-") && !signed.contains(&name) {
            return Err(format!("{name} is not signed"));
        }
    }
    query.retain(|pair| pair.0 != "X-Amz-Signature");
    query.sort_unstable();
    let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut headers = String::new();
    for name in &signed {
        let value = parts.headers.get(*name).ok_or_else(|| format!("no {name}"))?;
        headers.extend([name, ":", value.to_str().unwrap().trim(), "\n"]);
    }
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{names}\nUNSIGNED-PAYLOAD",
        parts.method,
        parts.uri.path(),
        query.join("&")
    );
    let scope = expected.strip_prefix("AKEY/").unwrap();
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for part in scope.split('/') {
        key = mac(&key, part);
    }
    if hex(&mac(&key, &text)) == signature { Ok(()) } else { Err("signature".into()) }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac_sha256(key, text.as_bytes()).to_vec()
}

const UPLOAD: Upload<'_> = Upload { size: 10, modified: 1_445_412_480, cache_key: "main  ü-1\n" };

/// A body in two pieces whose length the client does not know.
fn body() -> futures_util::future::BoxFuture<'static, io::Result<reqwest::Body>> {
    let pieces = ["01234", "56789"].map(|piece| Ok::<_, io::Error>(Bytes::from(piece)));
    async move { Ok(reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))) }.boxed()
}

async fn content(download: &mut Download) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(chunk) = download.chunk().await.unwrap() {
        content.extend_from_slice(&chunk);
    }
    content
}

#[tokio::test]
async fn an_object_is_stored_found_and_had_again() {
    let s3 = FakeS3::start().await;
    let store = s3.store();
    let object = "prefix/project/7/feature/a b+ü";
    assert_eq!(store.head(object).await.unwrap(), None);
    assert!(store.get(object).await.unwrap().is_none());
    store.put(object, &UPLOAD, body).await.unwrap();
    let head = Head {
        size: Some(10),
        modified: Some(1_445_412_480),
        cache_key: Some("main %C3%BC-1".into()),
    };
    assert_eq!(store.head(object).await.unwrap(), Some(head));
    let mut download = store.get(object).await.unwrap().unwrap();
    assert_eq!(content(&mut download).await, b"0123456789");
    let objects = s3.objects.lock();
    let (_, headers) = &objects.stored["/caches/prefix/project/7/feature/a%20b%2B%C3%BC"];
    assert_eq!(headers["content-length"], "10");
    assert!(!headers.contains_key("transfer-encoding"));
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(headers["last-modified"], "Wed, 21 Oct 2015 07:28:00 GMT");
    assert_eq!(objects.seen, ["HEAD 404", "GET 404", "PUT 200", "HEAD 200", "GET 200"]);
}

#[tokio::test]
async fn docker_159_a_presigned_request_lives_as_long_as_the_job() {
    let s3 = FakeS3::start().await;
    s3.store().head("a").await.unwrap();
    let month = Duration::from_hours(30 * 24);
    Store::new(&s3.config(), month, Duration::from_secs(20)).unwrap().head("a").await.unwrap();
    assert_eq!(s3.objects.lock().expiries, ["3600", "604800"]);
}

#[tokio::test]
async fn failures_of_the_store_are_tried_three_times() {
    let s3 = FakeS3::start().await;
    let store = s3.store();
    s3.fail(&[503, 500]);
    store.put("a", &UPLOAD, body).await.unwrap();
    assert_eq!(s3.seen(), ["PUT 503", "PUT 500", "PUT 200"]);
    s3.fail(&[500, 502, 503]);
    let error = store.get("a").await.unwrap_err();
    assert_eq!(error.to_string(), "the cache's store answered 503 Service Unavailable for `a`");
    assert_eq!(s3.seen(), ["GET 500", "GET 502", "GET 503"]);
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let s3 = FakeS3::start().await;
    let config = S3Config { secret_key: Secret::new("wrong"), ..s3.config() };
    let error = store(&config).put("a", &UPLOAD, body).await.unwrap_err();
    assert!(matches!(error, StoreError::Status { status, .. } if status.as_u16() == 403));
    assert_eq!(s3.seen(), ["PUT 403"]);
}

#[tokio::test]
async fn an_error_shows_neither_address_nor_signature() {
    let s3 = FakeS3::start().await;
    let mut config = s3.config();
    // Nobody listens there any more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = store(&config).head("a").await.unwrap_err();
    let all = format!("{error:?} {error}");
    assert!(matches!(error, StoreError::Transport { .. }));
    assert!(!all.contains("X-Amz") && !all.contains("AKEY"), "{all}");
    let debug = format!("{:?}", s3.store());
    assert!(!debug.contains(SECRET), "{debug}");
}

#[tokio::test]
async fn a_body_that_cannot_be_had_is_an_error_of_its_own() {
    let s3 = FakeS3::start().await;
    let body = || async { Err(io::ErrorKind::NotFound.into()) }.boxed();
    let error = s3.store().put("a", &UPLOAD, body).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot read the archive for `a`");
    assert!(s3.seen().is_empty());
}

#[test]
fn the_bucket_is_in_the_path_or_in_the_host_name() {
    let mut config = S3Config {
        endpoint: "https://s3.example".parse().unwrap(),
        access_key: "AKEY".into(),
        secret_key: Secret::new(SECRET),
        session_token: Some(Secret::new("session")),
        bucket: "caches".into(),
        region: "us-east-1".into(),
        path_style: true,
    };
    let url = store(&config).put_url("a", "k");
    assert!(url.as_str().starts_with("https://s3.example/caches/a?"), "{url}");
    assert!(url.as_str().contains("X-Amz-Security-Token=session"), "{url}");
    config.path_style = false;
    let url = store(&config).put_url("a", "k");
    assert!(url.as_str().starts_with("https://caches.s3.example/a?"), "{url}");
}

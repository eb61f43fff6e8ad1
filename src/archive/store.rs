//! The caches' object store: S3, or what is compatible with it, through presigned requests
//! (docs/compatibility.md, "Cache storage"). Runs in longshore, so that no credential of the store
//! comes near a job.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::{Client, Response, StatusCode, header};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use url::Url;

use crate::{base::backoff::Backoff, config::S3Config};

/// How often a request is tried.
const RETRY: Backoff = Backoff::constant(3, Duration::from_secs(1));
/// To connect (gitlab-runner: `cacheClient`).
const CONNECT: Duration = Duration::from_secs(30);
/// What S3 allows for a presigned request (AWS Signature Version 4, query parameters).
const LONGEST_EXPIRY: Duration = Duration::from_hours(7 * 24);

/// Header that keeps the key as people know it.
const CACHE_KEY: &str = "x-amz-meta-cachekey";

/// Why an object could not be fetched or stored. No message has an address, as addresses are signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The settings make no address.
    #[error("no bucket `{bucket}` at `{endpoint}`")]
    Bucket { bucket: String, endpoint: String },
    /// The HTTP client could not be made.
    #[error("cannot make an HTTP client for the cache")]
    Client { source: reqwest::Error },
    #[error("the cache's store answered {status} for `{object}`")]
    Status { object: String, status: StatusCode },
    /// No answer, or one that broke off.
    #[error("cannot reach the cache's store for `{object}`")]
    Transport { object: String, source: reqwest::Error },
    /// What was to be sent could not be had.
    #[error("cannot read the archive for `{object}`")]
    Body { object: String, source: io::Error },
}

/// A client of one bucket.
#[derive(Debug)]
pub(crate) struct Store {
    client: Client,
    bucket: Bucket,
    credentials: Credentials,
    expiry: Duration,
    retry: Backoff,
}

/// What is known of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) size: Option<u64>,
    /// Seconds since 1970.
    pub(crate) modified: Option<i64>,
    /// The key as people know it.
    pub(crate) cache_key: Option<String>,
}

/// An object whose bytes are still to be received.
#[derive(Debug)]
pub(crate) struct Download {
    object: String,
    response: Response,
}

impl Download {
    /// The next piece; `None` at the end. An error means that what came so far is worth nothing:
    /// ask for the object again, or go on without it.
    ///
    /// # Errors
    /// When the answer breaks off.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.response.chunk().await.map_err(|error| transport(&self.object, error))
    }
}

/// What is sent beside the bytes of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upload<'a> {
    /// Bytes; the store wants to know before.
    pub(crate) size: u64,
    /// Of the archive, seconds since 1970.
    pub(crate) modified: i64,
    /// The key as people know it.
    pub(crate) cache_key: &'a str,
}

impl Store {
    /// The store of `config`. `expiry` is how long a request may begin after it was signed, the
    /// job's timeout; `timeout` bounds each request (`CACHE_REQUEST_TIMEOUT`).
    pub(crate) fn new(
        config: &S3Config,
        expiry: Duration,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let style = if config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let (name, region) = (config.bucket.clone(), config.region.clone());
        let bucket = Bucket::new(config.endpoint.clone(), style, name, region).map_err(|_| {
            StoreError::Bucket {
                bucket: config.bucket.clone(),
                endpoint: config.endpoint.host_str().unwrap_or_default().to_owned(),
            }
        })?;
        let (key, secret) = (config.access_key.as_str(), config.secret_key.expose());
        let credentials = match &config.session_token {
            Some(token) => Credentials::new_with_token(key, secret, token.expose()),
            None => Credentials::new(key, secret),
        };
        let client = Client::builder()
            .timeout(timeout)
            .connect_timeout(CONNECT)
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| StoreError::Client { source })?;
        let expiry = expiry.clamp(Duration::from_secs(1), LONGEST_EXPIRY);
        Ok(Self { client, bucket, credentials, expiry, retry: RETRY })
    }

    /// Asks about an object; `None` when there is none.
    pub(crate) async fn head(&self, object: &str) -> Result<Option<Head>, StoreError> {
        let sign = || self.bucket.head_object(Some(&self.credentials), object).sign(self.expiry);
        let response = self.ask(object, || self.client.head(sign())).await?;
        Ok(response.as_ref().map(head))
    }

    /// Asks for an object; `None` when there is none.
    pub(crate) async fn get(&self, object: &str) -> Result<Option<Download>, StoreError> {
        let sign = || self.bucket.get_object(Some(&self.credentials), object).sign(self.expiry);
        let response = self.ask(object, || self.client.get(sign())).await?;
        Ok(response.map(|response| Download { object: object.to_owned(), response }))
    }

    /// Stores an object. `body` gives its bytes, for each try again.
    pub(crate) async fn put(
        &self,
        object: &str,
        upload: &Upload<'_>,
        mut body: impl FnMut() -> BoxFuture<'static, io::Result<reqwest::Body>> + Send,
    ) -> Result<(), StoreError> {
        let cache_key = header_text(upload.cache_key);
        let mut made = 0;
        loop {
            let body = body()
                .await
                .map_err(|source| StoreError::Body { object: object.to_owned(), source })?;
            let mut request = self
                .client
                .put(self.put_url(object, &cache_key))
                .header(CACHE_KEY, &cache_key)
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, upload.size);
            if let Some(modified) = http_date(upload.modified) {
                request = request.header(header::LAST_MODIFIED, modified);
            }
            made += 1;
            let error = match request.body(body).send().await {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => {
                    StoreError::Status { object: object.to_owned(), status: response.status() }
                }
                Err(error) => transport(object, error),
            };
            self.again(made, error).await?;
        }
    }

    fn put_url(&self, object: &str, cache_key: &str) -> Url {
        let mut action = self.bucket.put_object(Some(&self.credentials), object);
        action.headers_mut().insert(CACHE_KEY, cache_key);
        action.sign(self.expiry)
    }

    /// Makes a request without a body; `None` for 404.
    async fn ask(
        &self,
        object: &str,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> Result<Option<Response>, StoreError> {
        let mut made = 0;
        loop {
            made += 1;
            let error = match request().send().await {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => return Ok(None),
                Ok(response) if response.status().is_success() => return Ok(Some(response)),
                Ok(response) => {
                    StoreError::Status { object: object.to_owned(), status: response.status() }
                }
                Err(error) => transport(object, error),
            };
            self.again(made, error).await?;
        }
    }

    /// Waits if another try makes sense, and gives the error back if not.
    async fn again(&self, made: u32, error: StoreError) -> Result<(), StoreError> {
        let retryable = match &error {
            StoreError::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            StoreError::Transport { .. } => true,
            StoreError::Bucket { .. } | StoreError::Client { .. } | StoreError::Body { .. } => {
                false
            }
        };
        match self.retry.pause_after(made) {
            Some(pause) if retryable => tokio::time::sleep(pause).await,
            _ => return Err(error),
        }
        Ok(())
    }
}

/// Without the address, which is signed and so as good as the credentials.
fn transport(object: &str, error: reqwest::Error) -> StoreError {
    StoreError::Transport { object: object.to_owned(), source: error.without_url() }
}

fn head(response: &Response) -> Head {
    let text = |name: &str| response.headers().get(name)?.to_str().ok();
    Head {
        size: text("content-length").and_then(|text| text.parse().ok()),
        modified: text("last-modified").and_then(|text| {
            let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            Some(time.as_second())
        }),
        cache_key: text(CACHE_KEY).map(str::to_owned),
    }
}

fn http_date(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()
}

/// A key as a header can hold it: what is not printable ASCII, percent-encoded, and without spaces
/// at its ends, which signatures do not have either.
fn header_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c.is_ascii_graphic() || c == ' ' {
            out.push(c);
        } else {
            out.extend(url::form_urlencoded::byte_serialize(c.encode_utf8(&mut [0; 4]).as_bytes()));
        }
    }
    // Runs of spaces are one in a signature (AWS Signature Version 4, canonical headers).
    out.split(' ').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;

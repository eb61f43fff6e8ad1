//! Artifacts on the wire: one upload, one download. What goes into an archive, and how often a
//! transfer is tried, is the caller's business; which outcome deserves another try is said here.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::BodyExt;
use reqwest::{
    Body, Method, Response,
    header::{CONTENT_TYPE, HeaderValue, LOCATION},
};
use url::{Url, form_urlencoded};

use super::{
    client::{Client, status_text},
    error::TransportError,
    reply::text,
    retry,
    transport::{ByteStream, Call, Content, Timing},
};
use crate::base::{
    error_chain,
    ids::{JobId, random_hex},
    secret::Secret,
};

/// What is said of an upload.
#[derive(Debug, Clone)]
pub struct ArtifactUpload {
    /// Name of the archive, with its extension.
    pub file_name: String,
    /// `zip`, `gzip`, …; empty to leave it to the server.
    pub format: String,
    /// `archive`, `junit`, …; empty to leave it to the server.
    pub kind: String,
    /// As in the job; empty to leave it to the server.
    pub expire_in: String,
    /// Deadline of each attempt.
    pub upload_timeout: Duration,
    /// Deadline of the answer, once the content is out.
    pub response_header_timeout: Duration,
}

/// The answer to an upload.
#[derive(Debug)]
pub struct UploadReply {
    /// What came of it.
    pub outcome: UploadOutcome,
    /// `None` when there was no answer.
    pub status: Option<u16>,
    /// What went wrong, for the trace.
    pub problem: Option<String>,
}

/// What came of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadOutcome {
    /// Stored.
    Stored,
    /// The content belongs elsewhere, but could not be sent again: try with a client for this url.
    Redirected {
        /// Scheme and host.
        url: String,
    },
    /// The token has no right to it.
    Forbidden,
    /// Larger than the server takes.
    TooLarge,
    /// Storage has no time.
    Unavailable,
    /// Anything else.
    Failed,
}

/// An archive on its way in.
pub struct Download {
    /// Bytes, if the server said.
    pub length: Option<u64>,
    response: Response,
    address: String,
}

impl Download {
    /// The archive's bytes. An error means that the archive is not complete.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, TransportError>> + Send {
        let address = self.address;
        self.response.bytes_stream().map(move |chunk| {
            chunk.map_err(|error| TransportError::Http {
                address: address.clone(),
                source: error.without_url(),
            })
        })
    }
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download").field("length", &self.length).finish_non_exhaustive()
    }
}

/// A download that brought no archive.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The token has no right to it; no further attempt will help.
    #[error("not allowed to download the artifacts: {message}")]
    Forbidden {
        /// Rendered answer.
        message: String,
    },
    /// There are none, or no longer; no further attempt will help.
    #[error("the artifacts are not there: {message}")]
    NotFound {
        /// Rendered answer.
        message: String,
    },
    /// Another attempt may help.
    #[error("the server did not hand out the artifacts: {message}")]
    Failed {
        /// Rendered answer.
        message: String,
    },
    /// Another attempt may help.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl Client {
    /// Uploads one archive: one try, with the retries of every call inside. `content` is asked for
    /// the archive at each attempt and after a redirect; it may say `None` when it cannot be had
    /// again, which ends the attempts.
    pub async fn upload_artifact(
        &self,
        id: JobId,
        token: &Secret,
        upload: &ArtifactUpload,
        mut content: impl FnMut() -> Option<Body> + Send,
    ) -> UploadReply {
        let mut url = self.transport.url(&format!("jobs/{id}/artifacts"));
        url.set_query(Some(&query(upload)));
        let boundary = random_hex::<16>();
        let (head, tail) = multipart(&boundary, &upload.file_name);
        let Ok(kind) = HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}"))
        else {
            unreachable!("hex digits are fit for a header");
        };
        let mut make = || {
            let body = content()?.into_data_stream().map(|chunk| chunk.map_err(Into::into));
            let head = futures_util::stream::iter([Ok(head.clone())]);
            let tail = futures_util::stream::iter([Ok(tail.clone())]);
            Some(Box::pin(head.chain(body).chain(tail)) as ByteStream)
        };
        let timing = Timing {
            whole: upload.upload_timeout,
            answer: upload.response_header_timeout,
            ..self.transport.timing
        };
        let content = Content::Stream { kind, make: &mut make };
        let call = Call::new(Method::POST, url, content, timing).token("job-token", token);
        let (answer, _) = self.answer(call, None).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let problem = Some(error_chain(&error));
                return UploadReply { outcome: UploadOutcome::Failed, status: None, problem };
            }
        };
        let outcome = match answer.status {
            201 => UploadOutcome::Stored,
            307 | 308 => text(&answer.headers, LOCATION.as_str())
                .and_then(|location| self.transport.url("").join(location).ok())
                .filter(|target| matches!(target.scheme(), "http" | "https"))
                .map_or(UploadOutcome::Failed, |target| UploadOutcome::Redirected {
                    url: target.origin().ascii_serialization(),
                }),
            403 => UploadOutcome::Forbidden,
            413 => UploadOutcome::TooLarge,
            503 => UploadOutcome::Unavailable,
            _ => UploadOutcome::Failed,
        };
        let problem = (outcome != UploadOutcome::Stored).then(|| answer.message());
        UploadReply { outcome, status: Some(answer.status), problem }
    }

    /// Downloads an archive: one attempt. A `direct` one asks first, without following, whether the
    /// archive is in storage, and then again, following there.
    pub async fn download_artifact(
        &self,
        id: JobId,
        token: &Secret,
        direct: bool,
    ) -> Result<Download, DownloadError> {
        let mut url = self.transport.url(&format!("jobs/{id}/artifacts"));
        url.set_query(Some(if direct { "direct_download=true" } else { "" }));
        let timing = self.transport.timing;
        let call = |timing| {
            let call = Call::new(Method::GET, url.clone(), Content::Nothing, timing);
            call.token("job-token", token)
        };
        if direct {
            let mut probe = call(Timing { retry: retry::NEVER, ..timing });
            (probe.follow, probe.user_agent) = (false, false);
            let response = self.transport.send(probe).await.0?;
            if !matches!(response.status().as_u16(), 302 | 307) {
                return self.downloaded(&url, response).await;
            }
        }
        let response = self.transport.send(call(timing)).await.0?;
        self.downloaded(&url, response).await
    }

    async fn downloaded(&self, url: &Url, response: Response) -> Result<Download, DownloadError> {
        let status = response.status().as_u16();
        if status == 200 {
            let address = super::address::clean(url);
            return Ok(Download { length: response.content_length(), response, address });
        }
        let kind = text(response.headers(), CONTENT_TYPE.as_str()).unwrap_or_default().to_owned();
        let body = self.transport.read_little(response, self.transport.timing).await;
        let message = match storage_error(status, &kind, &body) {
            Some(reason) => format!("{} ({reason})", status_text(status)),
            None => status_text(status),
        };
        Err(match status {
            401 | 403 => DownloadError::Forbidden { message },
            404 => DownloadError::NotFound { message },
            _ => DownloadError::Failed { message },
        })
    }
}

/// The query, with empty values left out; it may be empty, and is then still sent as `?`.
fn query(upload: &ArtifactUpload) -> String {
    let pairs = [
        ("artifact_format", &upload.format),
        ("artifact_type", &upload.kind),
        ("expire_in", &upload.expire_in),
    ];
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(pairs.into_iter().filter(|(_, value)| !value.is_empty()));
    query.finish()
}

/// What stands before and after the content of a form's only part.
fn multipart(boundary: &str, file_name: &str) -> (Bytes, Bytes) {
    let file_name = file_name
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\r', "%0D")
        .replace('\n', "%0A");
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; \
         filename=\"{file_name}\"\r\nContent-Type: application/octet-stream\r\n\r\n"
    );
    (head.into(), format!("\r\n--{boundary}--\r\n").into())
}

/// What a store that speaks S3 says of a refusal.
fn storage_error(status: u16, kind: &str, body: &[u8]) -> Option<String> {
    let media_type = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if status != 403 || !matches!(media_type.as_str(), "application/xml" | "text/xml") {
        return None;
    }
    let body = std::str::from_utf8(body).ok()?;
    let error = body.split_once("<Error>")?.1;
    let element = |name: &str| {
        let rest = error.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
    };
    Some(format!("{}: {}", element("Code")?, element("Message")?))
}

#[cfg(test)]
mod tests;

//! Artifacts towards GitLab: their names, when a transfer is tried again, and what the job's author
//! reads of it (docs/compatibility.md, "Artifact upload" and "Artifact download"). Pure: who
//! transfers drives an HTTP client with these.

use std::{fmt::Write as _, time::Duration};

use super::select::{Note, Severity};
use crate::{
    base::{
        backoff::Backoff,
        ids::{JobId, ShortToken},
    },
    workload::transfer::Format,
};

/// The name of an artifact that has none.
pub(crate) const DEFAULT_NAME: &str = "artifacts";

/// The archive's name without its ending: the last element of the expanded name.
#[must_use]
pub(crate) fn stem(name: &str) -> String {
    match name.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => "default".to_owned(),
        Some(last) => last.to_owned(),
    }
}

/// The file's name in the request.
#[must_use]
pub(crate) fn file_name(stem: &str, format: Format) -> String {
    let ending = match format {
        Format::Zip | Format::ZipZstd => ".zip",
        Format::Gzip => ".gz",
        Format::TarZstd => ".tar.zst",
        Format::Raw => "",
    };
    format!("{stem}{ending}")
}

/// The outcome of a request. The client follows redirects itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An answer with this status.
    Status(u16),
    /// No answer, or one that broke off.
    Broken,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Done,
    /// Try again after this time.
    Retry(Duration),
    /// It failed for good.
    GiveUp(Failure),
}

/// Why it failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// 401 (of a download) or 403.
    #[error("permission denied")]
    Forbidden,
    /// 404 of a download.
    #[error("not found")]
    NotFound,
    /// 413.
    #[error("too large archive")]
    TooLarge,
    /// 503 to the last.
    #[error("service unavailable")]
    Unavailable,
    /// Anything else.
    #[error("invalid answer or no answer")]
    Other,
}

/// The tries of an upload. A try is one whole call of the client, whatever it repeats within.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct UploadTries {
    made: u32,
}

impl UploadTries {
    /// Says what follows from the answer to the current try.
    pub(crate) fn next(&mut self, answer: Answer) -> Next {
        let (attempts, failure) = match answer {
            Answer::Status(201) => return Next::Done,
            Answer::Status(403) => (1, Failure::Forbidden),
            Answer::Status(413) => (1, Failure::TooLarge),
            Answer::Status(503) => (6, Failure::Unavailable),
            Answer::Status(_) | Answer::Broken => (3, Failure::Other),
        };
        self.made += 1;
        let policy =
            Backoff { attempts, first: Duration::from_secs(1), longest: Duration::from_secs(5) };
        policy.pause_after(self.made).map_or(Next::GiveUp(failure), Next::Retry)
    }
}

/// The tries of a download.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DownloadTries {
    direct: bool,
    made: u32,
}

impl DownloadTries {
    const POLICY: Backoff = Backoff::constant(3, Duration::from_secs(1));

    /// `direct` is `FF_USE_DIRECT_DOWNLOAD`.
    #[must_use]
    pub(crate) fn new(direct: bool) -> Self {
        Self { direct, made: 0 }
    }

    /// Whether the current try says `direct_download=true`; if not, it does not say `false` either.
    #[must_use]
    pub(crate) fn is_direct(self) -> bool {
        self.direct && self.made == 0
    }

    /// Says what follows from the answer to the current try. 302 and 307 of a direct one are not
    /// for here: they are followed.
    pub(crate) fn next(&mut self, answer: Answer) -> Next {
        let failure = match answer {
            Answer::Status(200) => return Next::Done,
            Answer::Status(401 | 403) => return Next::GiveUp(Failure::Forbidden),
            Answer::Status(404) => return Next::GiveUp(Failure::NotFound),
            Answer::Status(_) | Answer::Broken => Failure::Other,
        };
        self.made += 1;
        Self::POLICY.pause_after(self.made).map_or(Next::GiveUp(failure), Next::Retry)
    }
}

/// An answer as a line of the trace tells it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    /// The job whose artifacts they are.
    pub(crate) job: JobId,
    /// The part of its token that may be shown.
    pub(crate) token: &'a ShortToken,
    /// The status and its text, `201 Created`; `None` without an answer.
    pub(crate) status: Option<(u16, &'a str)>,
    /// `X-Request-Id` of the answer.
    pub(crate) correlation_id: Option<&'a str>,
}

impl Told<'_> {
    /// Message and fields, laid out as gitlab-runner does it.
    fn line(&self, severity: Severity, message: &str) -> Note {
        let mut text = format!("{message:<44} ");
        if let Some(id) = self.correlation_id {
            let _ = write!(text, " correlation_id={id}");
        }
        let _ = write!(text, " id={}", self.job);
        if let Some((code, reason)) = self.status {
            let _ = write!(text, " responseStatus={code} {reason}");
        }
        let _ = write!(text, " token={}", self.token);
        Note { severity, text }
    }
}

/// The line about an answer to an upload. `message` is the body's own, which is shown in place of
/// the status's text.
#[must_use]
pub(crate) fn upload_line(kind: &str, told: &Told<'_>, message: Option<&str>, next: &Next) -> Note {
    let kind = if kind.is_empty() { String::new() } else { format!(" as \"{kind}\"") };
    let outcome = match told.status {
        Some((code, reason)) => format!("{code} {}", message.unwrap_or(reason)),
        None => message.unwrap_or("error").to_owned(),
    };
    let severity = match next {
        Next::Done => Severity::Info,
        Next::Retry(_) => Severity::Warning,
        Next::GiveUp(_) => Severity::Error,
    };
    told.line(severity, &format!("Uploading artifacts{kind} to coordinator... {outcome}"))
}

/// The line about an answer to a download.
#[must_use]
pub(crate) fn download_line(told: &Told<'_>, next: &Next) -> Note {
    let (severity, outcome) = match (next, told.status) {
        (Next::Done, _) => (Severity::Info, "ok"),
        (_, Some((401, _))) => (Severity::Error, "unauthorized"),
        (_, Some((403, _))) => (Severity::Error, "forbidden"),
        (_, Some((404, _))) => (Severity::Error, "not found"),
        (Next::GiveUp(_), _) => (Severity::Error, "failed"),
        (Next::Retry(_), _) => (Severity::Warning, "failed"),
    };
    told.line(severity, &format!("Downloading artifacts from coordinator... {outcome}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many tries there are with these answers, the waits between them, and the end.
    fn upload(status: impl Fn(u32) -> u16) -> (Vec<u64>, Next) {
        let mut tries = UploadTries::default();
        let mut waits = Vec::new();
        loop {
            match tries.next(Answer::Status(status(u32::try_from(waits.len()).unwrap()))) {
                Next::Retry(after) => waits.push(after.as_secs()),
                end => return (waits, end),
            }
        }
    }

    #[test]
    fn docker_171_api_139_forbidden_and_too_large_are_tried_once() {
        assert_eq!(upload(|_| 403), (vec![], Next::GiveUp(Failure::Forbidden)));
        assert_eq!(upload(|_| 413), (vec![], Next::GiveUp(Failure::TooLarge)));
    }

    #[test]
    fn docker_171_api_140_other_failures_are_tried_three_times() {
        for status in [200, 400, 401, 404, 405, 500, 307] {
            assert_eq!(upload(|_| status), (vec![1, 2], Next::GiveUp(Failure::Other)), "{status}");
        }
        let mut tries = UploadTries::default();
        assert_eq!(tries.next(Answer::Broken), Next::Retry(Duration::from_secs(1)));
        assert_eq!(tries.next(Answer::Status(201)), Next::Done);
    }

    #[test]
    fn docker_171_api_141_service_unavailable_is_tried_six_times() {
        assert_eq!(upload(|_| 503), (vec![1, 2, 4, 5, 5], Next::GiveUp(Failure::Unavailable)));
        // The third try is the last of any other failure.
        let mixed = upload(|n| if n < 4 { 503 } else { 500 });
        assert_eq!(mixed, (vec![1, 2, 4, 5], Next::GiveUp(Failure::Other)));
    }

    #[test]
    fn docker_167_api_136_137_names_are_the_last_element_with_the_formats_ending() {
        let named = |name: &str, format| file_name(&stem(name), format);
        assert_eq!(named(DEFAULT_NAME, Format::Zip), "artifacts.zip");
        assert_eq!(named("a/b", Format::Zip), "b.zip");
        assert_eq!(named("a/b/", Format::Gzip), "b.gz");
        assert_eq!(named("report.xml", Format::Raw), "report.xml");
        assert_eq!(named("x", Format::ZipZstd), "x.zip");
        assert_eq!(named("x", Format::TarZstd), "x.tar.zst");
        for name in ["", ".", "/", "a/..", "./"] {
            assert_eq!(named(name, Format::Zip), "default.zip", "{name}");
        }
    }

    #[test]
    fn docker_174_api_146_147_only_the_first_download_is_direct() {
        let mut tries = DownloadTries::new(true);
        assert!(tries.is_direct());
        for _ in 0..2 {
            let next = tries.next(Answer::Status(500));
            assert_eq!(next, Next::Retry(Duration::from_secs(1)));
            assert!(!tries.is_direct());
        }
        assert_eq!(tries.next(Answer::Broken), Next::GiveUp(Failure::Other));
        assert!(!DownloadTries::new(false).is_direct());
    }

    #[test]
    fn docker_173_api_148_downloads_that_may_not_be_end_at_once() {
        for (status, failure) in
            [(401, Failure::Forbidden), (403, Failure::Forbidden), (404, Failure::NotFound)]
        {
            let mut tries = DownloadTries::new(true);
            assert_eq!(tries.next(Answer::Status(status)), Next::GiveUp(failure));
        }
        assert_eq!(DownloadTries::new(true).next(Answer::Status(200)), Next::Done);
    }

    #[test]
    fn lines_read_as_gitlab_runners() {
        let token = ShortToken::of("glcbt-64_Xokc_gABC");
        let told =
            |status| Told { job: JobId(6), token: &token, status, correlation_id: Some("01K") };
        let created = told(Some((201, "Created")));
        assert_eq!(
            upload_line("archive", &created, None, &Next::Done).to_string(),
            "Uploading artifacts as \"archive\" to coordinator... 201 Created  correlation_id=01K \
             id=6 responseStatus=201 Created token=64_Xokc_g"
        );
        let bad = told(Some((400, "Bad Request")));
        assert_eq!(
            upload_line("", &bad, Some("duplicate variables"), &Next::GiveUp(Failure::Other))
                .to_string(),
            "ERROR: Uploading artifacts to coordinator... 400 duplicate variables  \
             correlation_id=01K id=6 responseStatus=400 Bad Request token=64_Xokc_g"
        );
        let missing = told(Some((404, "Not Found")));
        assert_eq!(
            download_line(&missing, &Next::GiveUp(Failure::NotFound)).to_string(),
            "ERROR: Downloading artifacts from coordinator... not found  correlation_id=01K id=6 \
             responseStatus=404 Not Found token=64_Xokc_g"
        );
        assert_eq!(
            download_line(&told(None), &Next::Retry(Duration::ZERO)).to_string(),
            "WARNING: Downloading artifacts from coordinator... failed  correlation_id=01K id=6 \
             token=64_Xokc_g"
        );
    }
}

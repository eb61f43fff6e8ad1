//! Artifacts of jobs, kept by GitLab.

use std::{
    io,
    path::{Path, PathBuf},
};

use futures_util::{FutureExt, TryStreamExt, future::BoxFuture};
use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
    time::sleep,
};
use tokio_util::io::ReaderStream;

use super::{
    api::{ArtifactUpload, DownloadError},
    job_client::JobClient,
    provenance::Provenance,
};
use crate::{
    archive::{
        artifact::{self, Answer, DownloadTries, Next, Told, UploadTries},
        select::{Note, Severity},
    },
    base::{error_chain, ids::ShortToken},
    config::ArtifactConfig,
    executor::buffered_log::{BufferedLog, LogEvent},
    runner::ArtifactStore,
    workload::{
        Workload,
        spec::{ArtifactSpec, Dependency},
    },
};

/// Bytes of the buffers between a file and what it is sent over.
const BUFFER: usize = 256 << 10;

/// See the module.
pub(super) struct GitlabArtifacts {
    pub(super) client: JobClient,
    pub(super) config: ArtifactConfig,
    pub(super) provenance: Provenance,
}

/// Why artifacts of another job could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("cannot keep them in {}", path.display())]
    Keep { path: PathBuf, source: io::Error },
}

impl FetchError {
    /// The server's answer, as far as there was one that counts.
    fn status(&self) -> Option<u16> {
        match self {
            Self::Download(DownloadError::Forbidden { .. }) => Some(403),
            Self::Download(DownloadError::NotFound { .. }) => Some(404),
            Self::Download(DownloadError::Failed { .. } | DownloadError::Transport(_))
            | Self::Keep { .. } => None,
        }
    }
}

impl GitlabArtifacts {
    async fn fetch(&self, job: &Dependency, is_direct: bool, to: &Path) -> Result<(), FetchError> {
        let client = &self.client.client;
        let download = client.download_artifact(job.id, &job.token, is_direct).await?;
        let mut pieces = std::pin::pin!(download.into_stream());
        let keep = |source| FetchError::Keep { path: to.to_owned(), source };
        let mut file = BufWriter::with_capacity(BUFFER, File::create(to).await.map_err(keep)?);
        while let Some(piece) = pieces.try_next().await.map_err(DownloadError::from)? {
            file.write_all(&piece).await.map_err(keep)?;
        }
        file.flush().await.map_err(keep)
    }

    async fn download(
        &self,
        job: &Dependency,
        to: &Path,
        is_direct: bool,
        log: &BufferedLog,
    ) -> bool {
        let mut tries = DownloadTries::new(is_direct);
        let token = ShortToken::of(job.token.expose());
        loop {
            let got = self.fetch(job, tries.is_direct(), to).await;
            let status = match &got {
                Ok(()) => Some(200),
                Err(error) => error.status(),
            };
            let next = tries.next(answer(status));
            let told = Told {
                job: job.id,
                token: &token,
                status: status.map(named),
                correlation_id: None,
            };
            write(log, artifact::download_line(&told, &next));
            if let Err(error) = &got {
                log.log(LogEvent::Warning(error_chain(error)));
            }
            match next {
                Next::Done => return true,
                Next::Retry(pause) => sleep(pause).await,
                Next::GiveUp(_) => return false,
            }
        }
    }

    async fn upload(
        &self,
        plan: &ArtifactSpec,
        file_name: &str,
        path: &Path,
        log: &BufferedLog,
    ) -> bool {
        let JobClient { client, job, token, .. } = &self.client;
        let upload = ArtifactUpload {
            file_name: file_name.to_owned(),
            format: plan.format.map(|format| format.as_str().to_owned()).unwrap_or_default(),
            kind: plan.kind.clone(),
            expire_in: plan.expire_in.clone(),
            upload_timeout: self.config.upload_timeout,
            response_header_timeout: self.config.response_header_timeout,
        };
        let short = ShortToken::of(token.expose());
        let mut tries = UploadTries::default();
        loop {
            let content = || {
                let file = std::fs::File::open(path).ok()?;
                let stream = ReaderStream::with_capacity(File::from_std(file), BUFFER);
                Some(reqwest::Body::wrap_stream(stream))
            };
            let reply = client.upload_artifact(*job, token, &upload, content).await;
            // The client follows redirects, as the archive can be read again; one that it does not
            // leads nowhere.
            let next = tries.next(answer(reply.status));
            let status = reply.status.map(named);
            let told = Told { job: *job, token: &short, status, correlation_id: None };
            let problem = reply.problem.as_deref();
            write(log, artifact::upload_line(&upload.kind, &told, problem, &next));
            match next {
                Next::Done => return true,
                Next::Retry(pause) => sleep(pause).await,
                Next::GiveUp(_) => return false,
            }
        }
    }
}

impl ArtifactStore for GitlabArtifacts {
    fn download<'a>(
        &'a self,
        job: &'a Dependency,
        to: &'a Path,
        is_direct: bool,
        log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool> {
        self.download(job, to, is_direct, log).boxed()
    }

    fn upload<'a>(
        &'a self,
        artifact: &'a ArtifactSpec,
        file_name: &'a str,
        file: &'a Path,
        log: &'a BufferedLog,
    ) -> BoxFuture<'a, bool> {
        self.upload(artifact, file_name, file, log).boxed()
    }

    fn provenance(&self, artifact: &ArtifactSpec, workload: &Workload) -> Option<String> {
        self.provenance.statement(artifact, workload)
    }
}

fn write(log: &BufferedLog, note: Note) {
    log.log(match note.severity {
        Severity::Info => LogEvent::Plain(note.text),
        Severity::Warning => LogEvent::Warning(note.text),
        Severity::Error => LogEvent::Error(note.text),
    });
}

/// A status as the rules of tries take it.
fn answer(status: Option<u16>) -> Answer {
    status.map_or(Answer::Broken, Answer::Status)
}

/// A status with its name.
fn named(status: u16) -> (u16, &'static str) {
    let name = reqwest::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    (status, name.unwrap_or_default())
}

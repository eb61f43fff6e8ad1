//! Artifacts: those of other jobs fetched before the script, this job's uploaded after it.

use std::{io, path::PathBuf};

use futures_util::TryStreamExt;
use tokio::{
    fs::File,
    io::{AsyncWriteExt, BufWriter},
    time::sleep,
};
use tokio_util::io::ReaderStream;

use crate::{
    archive::{
        artifact::{self, Answer, DownloadTries, Next, Told, UploadTries},
        select::{self, Note, Severity},
    },
    base::{
        error_chain,
        ids::{JobId, ShortToken},
        secret::Secret,
    },
    gitlab::api::{ArtifactUpload, DownloadError},
    helper::protocol::{Archive, Extract, Task},
    workload::{outcome::Outcome, spec::ArtifactSpec, transfer::Format},
};

use super::{
    super::{ending::Ending, provenance},
    BUFFER, Spooled, Stages, ending,
};

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

impl Stages<'_> {
    pub(super) async fn download_artifacts(&mut self) -> Ending {
        const NAME: &str = "download_artifacts";
        if self.plan.transfers.dependencies.is_empty() {
            return Ok(Outcome::Success);
        }
        let mut attempts = self.attempts(self.plan.settings.attempts.artifacts);
        loop {
            let section = self.curtain.section(NAME, "Downloading artifacts");
            let mut outcome = Outcome::Success;
            for dependency in &self.plan.transfers.dependencies {
                self.plain(format!(
                    "Downloading artifacts for {} ({})...",
                    dependency.name, dependency.id
                ));
                outcome = self.download(dependency.id, &dependency.token).await?;
                if outcome != Outcome::Success {
                    break;
                }
            }
            drop(section);
            if outcome == Outcome::Success || !attempts.again().await {
                return Ok(outcome);
            }
        }
    }

    async fn download(&mut self, id: JobId, token: &Secret) -> Ending {
        let spooled = self.spool_file("artifacts");
        let mut tries = DownloadTries::new(self.plan.flags.on("FF_USE_DIRECT_DOWNLOAD"));
        let short = ShortToken::of(token.expose());
        loop {
            let got = self.download_once(id, token, tries.is_direct(), &spooled.0).await;
            let status = match &got {
                Ok(()) => Some(200),
                Err(error) => error.status(),
            };
            let next = tries.next(&answer(status));
            let told =
                Told { job: id, token: &short, status: status.map(named), correlation_id: None };
            self.note(artifact::download_line(&told, &next));
            if let Err(error) = &got {
                self.warn(error_chain(error));
            }
            match next {
                Next::Done => break,
                Next::Retry(pause) => sleep(pause).await,
                Next::Follow(_) | Next::GiveUp(_) => {
                    return Ok(Outcome::ScriptFailed { exit_code: 1 });
                }
            }
        }
        let archive = format!("{}/artifacts-{id}", self.plan.directories.temp);
        let given = self.give_file(&spooled.0, &archive, None).await?;
        if given.exit_code != 0 {
            return Ok(ending(&given));
        }
        let into = self.plan.directories.project.clone();
        let done = self.ask(&Task::Extract(Extract { archive, into, remove: true })).await?;
        Ok(ending(&done))
    }

    async fn download_once(
        &mut self,
        id: JobId,
        token: &Secret,
        direct: bool,
        to: &std::path::Path,
    ) -> Result<(), FetchError> {
        let download = self.client.download_artifact(id, token, direct).await?;
        let mut pieces = std::pin::pin!(download.into_stream());
        let keep = |source| FetchError::Keep { path: to.to_owned(), source };
        let mut file = BufWriter::with_capacity(BUFFER, File::create(to).await.map_err(keep)?);
        while let Some(piece) = pieces.try_next().await.map_err(DownloadError::from)? {
            file.write_all(&piece).await.map_err(keep)?;
        }
        file.flush().await.map_err(keep)
    }

    /// Uploads what is to be uploaded after a script that ended so.
    pub(in crate::runner) async fn upload_artifacts(&mut self, succeeded: bool) -> Ending {
        let artifacts = self.plan.transfers.artifacts.iter();
        let artifacts: Vec<ArtifactSpec> =
            artifacts.filter(|a| a.when.matches(succeeded)).cloned().collect();
        if artifacts.is_empty() {
            return Ok(Outcome::Success);
        }
        let (name, title) = if succeeded {
            ("upload_artifacts_on_success", "Uploading artifacts for successful job")
        } else {
            ("upload_artifacts_on_failure", "Uploading artifacts for failed job")
        };
        let _section = self.curtain.section(name, title);
        let mut outcome = Outcome::Success;
        for artifact in &artifacts {
            self.plain("Uploading artifacts...");
            outcome = self.upload(artifact).await?;
            if outcome != Outcome::Success {
                break;
            }
        }
        Ok(outcome)
    }

    async fn upload(&mut self, plan: &ArtifactSpec) -> Ending {
        let format = plan.format.unwrap_or(Format::Zip);
        let name = if plan.name.is_empty() { artifact::DEFAULT_NAME } else { &plan.name };
        let task = Task::Archive(Box::new(Archive {
            name: name.to_owned(),
            paths: plan.paths.clone(),
            exclude: plan.exclude.clone(),
            untracked: plan.untracked,
            format,
            level: self.plan.settings.artifact_level,
            metadata: provenance::statement(plan, self.plan, self.job, self.runner),
            ..self.archive()
        }));
        let spooled = self.spool_file("artifacts");
        let (done, written) = self.take_file(&task, &spooled.0).await?;
        if let Some(error) = &done.error {
            self.error(error);
        }
        if done.exit_code != 0 {
            return Ok(ending(&done));
        }
        if done.empty {
            self.error(select::NO_FILES_TO_UPLOAD);
            return Ok(Outcome::Success);
        }
        if let Some(error) = written {
            self.error(format!("cannot keep the archive for its upload: {error}"));
            return Ok(Outcome::ScriptFailed { exit_code: 1 });
        }
        let stem = done.name.unwrap_or_else(|| artifact::DEFAULT_NAME.to_owned());
        let upload = ArtifactUpload {
            file_name: artifact::file_name(&stem, format),
            format: plan.format.map(Format::as_str).unwrap_or_default().to_owned(),
            kind: plan.kind.clone(),
            expire_in: plan.expire_in.clone(),
            upload_timeout: self.runner.artifact.upload_timeout,
            response_header_timeout: self.runner.artifact.response_header_timeout,
        };
        self.send_archive(&upload, &spooled).await
    }

    async fn send_archive(&mut self, upload: &ArtifactUpload, spooled: &Spooled) -> Ending {
        let short = ShortToken::of(self.job.token.expose());
        let mut tries = UploadTries::default();
        loop {
            let content = || {
                let file = std::fs::File::open(&spooled.0).ok()?;
                let stream = ReaderStream::with_capacity(File::from_std(file), BUFFER);
                Some(reqwest::Body::wrap_stream(stream))
            };
            let reply =
                self.client.upload_artifact(self.job.id, &self.job.token, upload, content).await;
            // The client follows redirects, as the archive can be read again; one that it does not
            // leads nowhere.
            let next = tries.next(answer(reply.status));
            let status = reply.status.map(named);
            let told = Told { job: self.job.id, token: &short, status, correlation_id: None };
            self.note(artifact::upload_line(&upload.kind, &told, reply.problem.as_deref(), &next));
            match next {
                Next::Done => return Ok(Outcome::Success),
                Next::Retry(pause) => sleep(pause).await,
                Next::Follow(_) | Next::GiveUp(_) => {
                    return Ok(Outcome::ScriptFailed { exit_code: 1 });
                }
            }
        }
    }

    fn note(&self, note: Note) {
        match note.severity {
            Severity::Info => self.plain(note.text),
            Severity::Warning => self.warn(note.text),
            Severity::Error => self.error(note.text),
        }
    }
}

/// A status as the rules of tries take it.
fn answer(status: Option<u16>) -> Answer {
    status.map_or(Answer::Broken, Answer::Status)
}

/// A status with its words.
fn named(status: u16) -> (u16, &'static str) {
    let words = reqwest::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    (status, words.unwrap_or_default())
}

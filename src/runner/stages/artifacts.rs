//! Artifacts: those of other jobs fetched before the script, this job's uploaded after it.

use crate::{
    archive::{artifact, select},
    helper::protocol::{Archive, Extract, Task},
    workload::{
        outcome::Outcome,
        spec::{ArtifactSpec, Dependency},
        transfer::Format,
    },
};

use super::{super::ending::Ending, Stages, ending};

/// How a stage ends whose files could not be moved.
const FAILED: Outcome = Outcome::ScriptFailed { exit_code: 1 };

impl Stages<'_> {
    pub(super) async fn download_artifacts(&mut self) -> Ending {
        const NAME: &str = "download_artifacts";
        if self.workload.transfers.dependencies.is_empty() {
            return Ok(Outcome::Success);
        }
        let mut attempts = self.attempts(self.workload.settings.attempts.artifacts);
        loop {
            let section = self.log.section(NAME, "Downloading artifacts");
            let mut outcome = Outcome::Success;
            for dependency in &self.workload.transfers.dependencies {
                self.plain(format!(
                    "Downloading artifacts for {} ({})...",
                    dependency.name, dependency.id
                ));
                outcome = self.download(dependency).await?;
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

    async fn download(&mut self, dependency: &Dependency) -> Ending {
        let spooled = self.spool_file("artifacts");
        let is_direct = self.workload.flags.on("FF_USE_DIRECT_DOWNLOAD");
        let download = self.artifacts.download(dependency, &spooled.0, is_direct, self.log);
        if !download.await {
            return Ok(FAILED);
        }
        let archive = format!("{}/artifacts-{}", self.workload.directories.temp, dependency.id);
        let given = self.give_file(&spooled.0, &archive, None).await?;
        if given.exit_code != 0 {
            return Ok(ending(&given));
        }
        let into = self.workload.directories.project.clone();
        let done = self.ask(&Task::Extract(Extract { archive, into, remove: true })).await?;
        Ok(ending(&done))
    }

    /// Uploads what is to be uploaded after a script that ended so.
    pub(in crate::runner) async fn upload_artifacts(&mut self, succeeded: bool) -> Ending {
        let artifacts: Vec<ArtifactSpec> = self
            .workload
            .transfers
            .artifacts
            .iter()
            .filter(|a| a.when.matches(succeeded))
            .cloned()
            .collect();
        if artifacts.is_empty() {
            return Ok(Outcome::Success);
        }
        let (name, title) = if succeeded {
            ("upload_artifacts_on_success", "Uploading artifacts for successful job")
        } else {
            ("upload_artifacts_on_failure", "Uploading artifacts for failed job")
        };
        let _section = self.log.section(name, title);
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
        let name = if plan.name.is_empty() { artifact::DEFAULT_NAME } else { &plan.name };
        let format = plan.format.unwrap_or(Format::Zip);
        let task = Task::Archive(Box::new(Archive {
            name: name.to_owned(),
            paths: plan.paths.clone(),
            exclude: plan.exclude.clone(),
            untracked: plan.untracked,
            format,
            level: self.workload.settings.artifact_level,
            metadata: self.artifacts.provenance(plan, self.workload),
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
            return Ok(FAILED);
        }
        let stem = done.name.unwrap_or_else(|| artifact::DEFAULT_NAME.to_owned());
        let file_name = artifact::file_name(&stem, format);
        let kept = self.artifacts.upload(plan, &file_name, &spooled.0, self.log).await;
        Ok(if kept { Outcome::Success } else { FAILED })
    }
}

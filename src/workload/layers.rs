//! Layer-cache slots (`[runners.docker.dind] storage = "slot"`): data roots of jobs' daemons that
//! later jobs use again. Here is decided which jobs may share one; which one a job gets, and what
//! becomes of it afterwards, is `runner::layers`'s.
//!
//! Jobs share slots when runner, machine, project, trust and the daemon's image are the same. What a
//! job writes into its data root, later jobs with the same key build on: so jobs that are trusted
//! less have slots of their own.

use std::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

use crate::{
    base::ids::hex,
    config::{DindStorage, RunnerConfig},
    gitlab::api::wire::JobPayload,
};

use super::{Place, access::Sidecar, mount, service::ServicePlan};

/// How far a job is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Its ref is protected.
    Protected,
    /// A ref of the project's that is not.
    Project,
    /// It runs what somebody outside the project wrote: a merge request from a fork.
    Outside,
}

impl Trust {
    /// Of a job. The server's own variables come first in the payload, and a job may define them
    /// again but cannot take them away: so whatever any definition says counts against it.
    #[must_use]
    pub fn of(payload: &JobPayload, protected: bool) -> Self {
        let project = payload.job_info.project_id.to_string();
        let values = |name: &'static str| {
            let all = payload.variables.iter().filter(move |variable| variable.key == name);
            all.map(|variable| variable.value.as_str()).filter(|value| !value.is_empty())
        };
        let differs = |source: &'static str, target: &'static str| {
            values(source).any(|source| values(target).any(|target| target != source))
        };
        let is_outside = values("CI_MERGE_REQUEST_SOURCE_PROJECT_ID").any(|id| id != project)
            || differs("CI_MERGE_REQUEST_SOURCE_PROJECT_ID", "CI_MERGE_REQUEST_PROJECT_ID")
            || differs("CI_MERGE_REQUEST_SOURCE_PROJECT_PATH", "CI_MERGE_REQUEST_PROJECT_PATH")
            || differs(
                "CI_EXTERNAL_PULL_REQUEST_SOURCE_REPOSITORY",
                "CI_EXTERNAL_PULL_REQUEST_TARGET_REPOSITORY",
            );
        match (is_outside, protected) {
            (true, _) => Self::Outside,
            (false, true) => Self::Protected,
            (false, false) => Self::Project,
        }
    }

    /// The word for it in names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::Project => "project",
            Self::Outside => "outside",
        }
    }
}

/// A job's place among slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlan {
    /// Jobs with the same key may use a slot one after the other.
    pub key: String,
    /// The runner on this machine, over all its keys.
    pub owner: String,
    /// How far the job is trusted; it is part of the key.
    pub trust: Trust,
    /// Bytes that an earlier job left in it; `None` for a slot that is new. Known when the job has
    /// its slot.
    pub reused: Option<u64>,
}

impl fmt::Display for SlotPlan {
    /// One line for the job's author.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reused {
            None => f.write_str("Docker layers: none yet; later jobs find this job's"),
            Some(size) => write!(f, "Docker layers: {} MiB of earlier jobs", size >> 20),
        }
    }
}

impl SlotPlan {
    /// Name of a new slot's volume.
    pub(super) fn new_volume(&self, place: &Place) -> String {
        format!("runner-{}-layers-{}-{}", self.key, self.trust.as_str(), place.random)
    }
}

/// The owner in a plan of a runner's.
#[must_use]
pub fn owner(runner: &RunnerConfig, system_id: &str) -> String {
    digest(&format!("{}-{system_id}", mount::lasting_name(runner)))
}

/// The place of a job with this daemon; `None` where its data root is fresh. A daemon whose command
/// we do not understand is not asked to leave its data root in order, and gets no slot.
pub(super) fn plan(
    payload: &JobPayload,
    runner: &RunnerConfig,
    place: &Place,
    protected: bool,
    sidecar: &Sidecar,
    services: &[ServicePlan],
) -> Option<SlotPlan> {
    let docker = &runner.docker;
    if docker.dind.storage != DindStorage::Slot || docker.disable_cache || !sidecar.is_understood {
        return None;
    }
    let service = services.iter().find(|service| service.container == sidecar.container)?;
    let trust = Trust::of(payload, protected);
    let owner = owner(runner, &place.system_id);
    let mut text = owner.clone();
    // One fork's jobs are not another's.
    let source = payload.variables.iter().find(|v| v.key == "CI_MERGE_REQUEST_SOURCE_PROJECT_ID");
    if let (Trust::Outside, Some(source)) = (trust, source) {
        let _infallible = write!(text, "\n{}", source.value);
    }
    // An older daemon cannot read what a newer one has written.
    let parts = [
        &payload.job_info.project_id.to_string(),
        trust.as_str(),
        &service.image,
        &sidecar.data_root,
    ];
    for part in parts {
        let _infallible = write!(text, "\n{part}");
    }
    Some(SlotPlan { key: digest(&text), owner, trust, reused: None })
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workload::testing::Case;

    const SLOT: &str = "[runners.docker.dind]\nstorage = \"slot\"";

    fn trust(variables: &[(&str, &str)], protected: bool) -> Trust {
        let case = variables.iter().fold(Case::new(), |case, (k, v)| case.variable(k, v));
        Trust::of(&case.job().payload, protected)
    }

    #[test]
    fn trust_goes_by_the_ref_and_by_where_a_merge_request_comes_from() {
        assert_eq!(trust(&[], true), Trust::Protected);
        assert_eq!(trust(&[], false), Trust::Project);
        let source = "CI_MERGE_REQUEST_SOURCE_PROJECT_ID";
        let target = "CI_MERGE_REQUEST_PROJECT_ID";
        let own = [(source, "42"), (target, "42")];
        assert_eq!(trust(&own, false), Trust::Project);
        assert_eq!(trust(&[(source, "43"), (target, "42")], true), Trust::Outside);
        // The pipeline of a fork's merge request in the fork itself.
        assert_eq!(trust(&[(source, "42"), (target, "41")], false), Trust::Outside);
        let paths = ["CI_MERGE_REQUEST_SOURCE_PROJECT_PATH", "CI_MERGE_REQUEST_PROJECT_PATH"];
        assert_eq!(trust(&[(paths[0], "eve/x"), (paths[1], "acme/x")], true), Trust::Outside);
        assert_eq!(trust(&[(paths[0], "acme/x"), (paths[1], "acme/x")], true), Trust::Protected);
    }

    #[test]
    fn a_job_from_outside_cannot_write_itself_in() {
        let source = "CI_MERGE_REQUEST_SOURCE_PROJECT_ID";
        let target = "CI_MERGE_REQUEST_PROJECT_ID";
        for again in ["42", "43", ""] {
            let forged = [(source, "43"), (target, "42"), (source, again), (target, again)];
            assert_eq!(trust(&forged, true), Trust::Outside, "{again}");
        }
    }

    fn case() -> Case {
        Case::new().with("services", json!([{"name": "docker:dind"}])).docker(SLOT)
    }

    fn slot(case: &Case) -> (String, SlotPlan) {
        let mounts = case.plan().mounts;
        let volume = mounts.daemon.unwrap();
        assert!(volume.kept);
        (volume.name, mounts.slot.unwrap())
    }

    #[test]
    fn jobs_share_slots_that_may_and_no_others() {
        let (name, usual) = slot(&case());
        assert_eq!(usual.trust, Trust::Project);
        assert_eq!(name, format!("runner-{}-layers-project-00112233445566aa", usual.key));
        // Another slot of the runner's is the same to it.
        let mut other = case();
        other.place.project_slot = 2;
        assert_eq!(slot(&other).1, usual);
        let source = "CI_MERGE_REQUEST_SOURCE_PROJECT_ID";
        let mut keys = vec![usual.key];
        for different in [
            case().git("protected", true),
            case().variable(source, "43"),
            case().variable(source, "44"),
            case().with("job_info", json!({"name": "unit", "stage": "test", "project_id": 43})),
            case().with("services", json!([{"name": "docker:27-dind"}])),
        ] {
            keys.push(slot(&different).1.key);
        }
        let mut elsewhere = case();
        elsewhere.place.system_id = "s_ba9876543210".to_owned();
        keys.push(slot(&elsewhere).1.key);
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
        // A fork's job of a protected ref is a fork's job.
        let forged = case().git("protected", true).variable(source, "43");
        assert_eq!(slot(&forged).1.trust, Trust::Outside);
    }

    #[test]
    fn where_no_slot_is_asked_for_or_can_be_the_data_root_is_fresh() {
        let dind = json!([{"name": "docker:dind"}]);
        let fresh = Case::new().with("services", dind.clone());
        let disabled = Case::new()
            .with("services", dind.clone())
            .docker(&format!("disable_cache = true\n{SLOT}"));
        let strange = json!([{"name": "docker:dind", "command": ["sh", "-c", "dockerd"]}]);
        for case in [fresh, disabled, case().with("services", strange)] {
            let mounts = case.plan().mounts;
            assert_eq!(mounts.slot, None);
            assert!(!mounts.daemon.unwrap().kept);
        }
        let own = format!("volumes = [\"/srv/docker:/var/lib/docker\"]\n{SLOT}");
        let mounts = Case::new().with("services", dind).docker(&own).plan().mounts;
        assert_eq!((mounts.slot, mounts.daemon), (None, None));
    }
}

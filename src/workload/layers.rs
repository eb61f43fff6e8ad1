//! Layer-cache slots (`[runners.docker.dind] storage = "slot"`): data roots of jobs' daemons that
//! later jobs use again. Here is decided which jobs may share one; which one a job gets is lent to it
//! ([`LayerSlotLease`](super::placement::LayerSlotLease)).
//!
//! Jobs share slots when runner, machine, project, trust and the daemon's image are the same. What a
//! job writes into its data root, later jobs with the same key build on: so jobs that are trusted
//! less have slots of their own.

use std::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

use crate::{
    base::ids::hex,
    config::{DindStorage, RunnerConfig},
};

use super::{
    access::DindPlan,
    names::lasting_name,
    placement::Placement,
    service::ServicePlan,
    spec::{JobSpec, Trust},
};

/// A job's claim to a layer-cache slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSlotPlan {
    /// Jobs with the same key may use a slot one after the other.
    pub key: String,
    /// The runner on this machine, over all its keys.
    pub owner: String,
    /// How far the job is trusted; it is part of the key.
    pub trust: Trust,
    /// Bytes that an earlier job left in it; `None` for a slot that is new.
    pub reused: Option<u64>,
}

impl fmt::Display for LayerSlotPlan {
    /// One line for the job's author.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reused {
            None => f.write_str("Docker layers: none yet; later jobs find this job's"),
            Some(size) => write!(f, "Docker layers: {} MiB of earlier jobs", size >> 20),
        }
    }
}

impl LayerSlotPlan {
    /// Name of the slot's volume: the one that was lent to the job, or else a new one.
    pub(super) fn volume(&self, placement: &Placement) -> String {
        match &placement.leases.layer_slot {
            Some(lease) => lease.volume.clone(),
            None => {
                format!("runner-{}-layers-{}-{}", self.key, self.trust.as_str(), placement.random)
            }
        }
    }
}

/// [`LayerSlotPlan::owner`] of a runner's jobs on a machine.
#[must_use]
pub fn owner(runner: &RunnerConfig, system_id: &str) -> String {
    digest(&format!("{}-{system_id}", lasting_name(runner)))
}

/// The slot of a job with this daemon; `None` where its data root is fresh. A daemon whose command is
/// not understood is not asked to leave its data root in order, and gets no slot.
pub(super) fn plan(
    job: &JobSpec,
    runner: &RunnerConfig,
    placement: &Placement,
    dind: &DindPlan,
    services: &[ServicePlan],
) -> Option<LayerSlotPlan> {
    let containers = &runner.containers;
    if containers.dind.storage != DindStorage::Slot
        || containers.volumes.disable_cache
        || !dind.is_understood
    {
        return None;
    }
    let service = services.iter().find(|service| service.container == dind.container)?;
    let trust = job.source.trust;
    let owner = owner(runner, &placement.system_id);
    let mut text = owner.clone();
    // One fork's jobs are not another's.
    if let (Trust::Outside, Some(fork)) = (trust, &job.source.fork) {
        let _infallible = write!(text, "\n{fork}");
    }
    // An older daemon cannot read what a newer one has written.
    let parts = [&job.project.id.to_string(), trust.as_str(), &service.image, &dind.data_root];
    for part in parts {
        let _infallible = write!(text, "\n{part}");
    }
    let reused = placement.leases.layer_slot.as_ref().map(|lease| lease.size);
    Some(LayerSlotPlan { key: digest(&text), owner, trust, reused })
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workload::{placement::LayerSlotLease, testing::Case};

    const SLOT: &str = "[runners.docker.dind]\nstorage = \"slot\"";

    fn case() -> Case {
        Case::new().with("services", json!([{"name": "docker:dind"}])).docker(SLOT)
    }

    fn slot(case: &Case) -> (String, LayerSlotPlan) {
        let mounts = case.plan().mounts;
        let volume = mounts.daemon.unwrap();
        assert!(volume.kept);
        (volume.name, mounts.layer_slot.unwrap())
    }

    #[test]
    fn jobs_share_slots_that_may_and_no_others() {
        let (name, usual) = slot(&case());
        assert_eq!(usual.trust, Trust::Project);
        assert_eq!(name, format!("runner-{}-layers-project-00112233445566aa", usual.key));
        // Another slot of the runner's is the same to it.
        let mut other = case();
        other.placement.project_slot = 2;
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
        elsewhere.placement.system_id = "s_ba9876543210".to_owned();
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
    fn a_slot_that_is_lent_takes_the_place_of_a_new_one() {
        let mut case = case();
        let (_, new) = slot(&case);
        let lease = LayerSlotLease { volume: "earlier".to_owned(), size: 7 };
        case.placement.leases.layer_slot = Some(lease);
        let (name, lent) = slot(&case);
        assert_eq!((name.as_str(), lent.reused), ("earlier", Some(7)));
        assert_eq!(LayerSlotPlan { reused: None, ..lent }, new);
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
            assert_eq!(mounts.layer_slot, None);
            assert!(!mounts.daemon.unwrap().kept);
        }
        let own = format!("volumes = [\"/srv/docker:/var/lib/docker\"]\n{SLOT}");
        let mounts = Case::new().with("services", dind).docker(&own).plan().mounts;
        assert_eq!((mounts.layer_slot, mounts.daemon), (None, None));
    }
}

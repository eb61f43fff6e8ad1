//! What comes after a job's end: what it made is removed, and the ledger forgets it.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    executor::{Removal, Removed, Session},
    ledger::JobRecord,
    workload::Workload,
};

use super::{Runner, slots::JobSlot};

/// How long a job's removal may take before it is left to the next start.
const REMOVAL_DEADLINE: Duration = Duration::from_mins(5);

/// How long an executor that went away is left alone before the removal is tried again.
const REMOVAL_PAUSE: Duration = Duration::from_secs(2);

/// How often a removal is tried that may go better a moment later.
const RETRIES: u32 = 3;

/// What there may be of a job that has ended.
#[derive(Default)]
pub(super) struct Remains {
    /// The last session that was opened for it.
    pub(super) session: Option<Arc<dyn Session>>,
    /// Something may have been under way when the job ended.
    pub(super) is_uncertain: bool,
}

/// Removes what a job made. True when nothing is left; the job's slot is free after it.
pub(super) async fn remove(
    runner: Arc<Runner>,
    workload: Option<Arc<Workload>>,
    remains: Remains,
    slot: JobSlot,
) -> bool {
    let Some(session) = remains.session else {
        if let Some(workload) = workload {
            runner.executor.release(&workload).await;
        }
        return true;
    };
    let how = if remains.is_uncertain { Removal::StoppedJob } else { Removal::Job };
    let slot = Mutex::new(Some(slot));
    let names_free = || drop(slot.lock().take());
    let mut is_known_unreachable = false;
    let mut tries = 0;
    loop {
        let removal = session.remove(how, &names_free);
        let Ok(removed) = timeout(REMOVAL_DEADLINE, removal).await else {
            tracing::warn!("removal of the job took too long; it is left to the next start");
            return false;
        };
        tries += 1;
        // The last tries are made when the process ends; the next start goes on.
        let is_tried_again = (removed.is_unreachable || removed.is_retryable && tries < RETRIES)
            && !runner.process.removals.is_closed();
        if !is_tried_again {
            log_left(&removed);
            return removed.is_clean();
        }
        if removed.is_unreachable && !is_known_unreachable {
            log_left(&removed);
            tracing::warn!("executor went away; removal of the job goes on when it is back");
            is_known_unreachable = true;
        }
        sleep(REMOVAL_PAUSE).await;
    }
}

/// Forgets the job once its end was reported and nothing of it is left.
pub(super) async fn close(record: JobRecord, is_reported: bool, removal: JoinHandle<bool>) {
    let is_removed = removal.await.unwrap_or(false);
    if is_reported && is_removed {
        close_record(record);
    }
}

pub(super) fn close_record(record: JobRecord) {
    if let Err(error) = record.close() {
        tracing::warn!(%error, "failed to remove the job's directory");
    }
}

/// Tells the operator what of a job could not be removed.
pub(super) fn log_left(removed: &Removed) {
    for error in &removed.left {
        tracing::warn!(error, "failed to remove a resource of the job");
    }
}

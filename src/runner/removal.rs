//! What comes after a job's end: what it made is removed, and the ledger forgets it.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time::timeout};

use crate::{
    base::{error_chain, ids::JobId},
    executor::docker::{
        Docker,
        clean_up::{self, Anonymous},
        engine::{self, Engine},
    },
    ledger::{JobRecord, Thing},
    workload::Workload,
};

use super::{Runner, layers, slots::Slot};

/// How long a job's removal may take before it is left to the next start.
const REMOVAL_DEADLINE: Duration = Duration::from_mins(5);

/// How long an engine that went away is left alone before the removal is tried again.
const REMOVAL_PAUSE: Duration = Duration::from_secs(2);

/// How often it is tried where only a guarded socket has left something: its engine may have been
/// back a moment later.
const GUARD_TRIES: u32 = 3;

/// What a job has made, as far as its removal must know.
#[derive(Default)]
pub(super) struct Made {
    /// Set once something may be there.
    pub(super) engine: Option<Engine>,
    /// The job's place on it, with its guarded socket.
    pub(super) docker: Option<Arc<Docker>>,
    /// Something may have been under way when the job was stopped.
    pub(super) uncertain: bool,
}

/// Removes what a job made. True when nothing is left; the job's numbers are free after it.
pub(super) async fn remove(
    runner: Arc<Runner>,
    plan: Option<Arc<Workload>>,
    made: Made,
    job: JobId,
    slot: Slot,
) -> bool {
    let Some(plan) = plan else { return true };
    let Some(engine) = made.engine else {
        layers::put_back(&runner, &plan).await;
        return true;
    };
    let docker = made.docker;
    let mut kept = None;
    let mut slot = Some(slot);
    let mut known = false;
    let mut tries = 0;
    loop {
        let late_of = made.uncertain.then_some(job);
        let removal = async {
            // What the job made itself uses what longshore made.
            let left = match &docker {
                Some(docker) => docker.close_guard().await,
                None => Vec::new(),
            };
            log_left(&left);
            let errors = remove_once(&runner, &engine, &plan, late_of, &mut slot, &mut kept).await;
            (left, errors)
        };
        let Ok((left, errors)) = timeout(REMOVAL_DEADLINE, removal).await else {
            tracing::warn!("removal of the job's containers took too long; the next start goes on");
            return false;
        };
        tries += 1;
        let is_gone = errors.iter().any(engine::Error::is_gone);
        // The last tries are made when the daemon ends; the next start goes on.
        let waits = (is_gone || !left.is_empty() && tries < GUARD_TRIES)
            && !runner.shared.removals.is_closed();
        if !waits {
            log_errors(&errors);
            return errors.is_empty() && left.is_empty();
        }
        if !known && is_gone {
            log_errors(&errors);
            tracing::warn!("engine went away; removal goes on when it is back");
            known = true;
        }
        tokio::time::sleep(REMOVAL_PAUSE).await;
    }
}

/// Removes all that is planned, and what came late of a job that was stopped. The job's numbers are
/// free once its containers are gone.
async fn remove_once(
    runner: &Runner,
    engine: &Engine,
    plan: &Workload,
    late_of: Option<JobId>,
    slot: &mut Option<Slot>,
    kept: &mut Option<bool>,
) -> Vec<engine::Error> {
    let anonymous = Anonymous { remove: !runner.config.docker.volume_keep };
    let mut things = clean_up::things(plan);
    if let (Some(_), Some(daemon)) = (&plan.mounts.layer_slot, &plan.mounts.daemon) {
        let is_kept = match *kept {
            Some(known) => known,
            None => layers::give_back(runner, engine, plan).await,
        };
        *kept = Some(is_kept);
        if !is_kept {
            things.push(Thing::Volume(daemon.name.clone()));
        }
    }
    let mut errors = clean_up::remove_containers(engine, &things, anonymous).await;
    if errors.is_empty() {
        drop(slot.take());
    }
    if let Some(job) = late_of {
        // Before the volumes, which what comes late may use.
        let instance = runner.shared.state.instance();
        errors.extend(clean_up::remove_late(engine, instance, job, anonymous).await);
    }
    errors.extend(clean_up::remove_rest(engine, &things).await);
    if let (Some(false), Some(daemon)) = (*kept, &plan.mounts.daemon)
        && errors.is_empty()
    {
        runner.shared.layers.let_go(&daemon.name);
    }
    errors
}

/// Forgets the job once its server has its end and nothing of it is left.
pub(super) async fn close(record: JobRecord, delivered: bool, removal: JoinHandle<bool>) {
    let removed = removal.await.unwrap_or(false);
    if delivered && removed {
        close_record(record);
    }
}

pub(super) fn close_record(record: JobRecord) {
    if let Err(error) = record.close() {
        tracing::warn!(%error, "job's directory could not be removed");
    }
}

/// What a guarded socket could not remove.
pub(super) fn log_left(left: &[String]) {
    for what in left {
        tracing::warn!(what, "something that the job made is left");
    }
}

pub(super) fn log_errors(errors: &[engine::Error]) {
    for error in errors {
        tracing::warn!(error = error_chain(error), "something of the job is left");
    }
}

//! A server for tests: answers as it is told to, and remembers what it was asked and when.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::server::JobServer;
use crate::gitlab::api::{
    PatchOutcome, PatchReply, RemoteState, UpdateOutcome, UpdateReply,
    wire::{JobState, TraceOutput},
};
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// First and last byte, as in `Content-Range`.
    Patch(String, Bytes),
    Update(JobState, Option<String>, Option<i32>, TraceOutput),
}

/// Once it has given the answers that it was told, it takes everything.
pub(super) struct Fake {
    since: Instant,
    patches: Mutex<VecDeque<PatchReply>>,
    updates: Mutex<VecDeque<UpdateReply>>,
    asked: Mutex<Vec<(Duration, Asked)>>,
}

pub(super) fn patch(outcome: PatchOutcome) -> PatchReply {
    let status = match outcome {
        PatchOutcome::Accepted => 202,
        PatchOutcome::Mismatch { .. } => 416,
        PatchOutcome::NotFound => 404,
        PatchOutcome::Abort => 403,
        PatchOutcome::Failed => 400,
    };
    PatchReply { outcome, remote: None, interval: None, status: Some(status), problem: None }
}

pub(super) fn update(outcome: UpdateOutcome) -> UpdateReply {
    let status = match outcome {
        UpdateOutcome::Success => 200,
        UpdateOutcome::Accepted => 202,
        UpdateOutcome::TraceInvalid => 412,
        UpdateOutcome::Abort => 403,
        UpdateOutcome::Failed => 500,
    };
    UpdateReply { outcome, remote: None, interval: None, status: Some(status), problem: None }
}

pub(super) fn patch_with(remote: RemoteState) -> PatchReply {
    PatchReply { remote: Some(remote), ..patch(PatchOutcome::Accepted) }
}

pub(super) fn every(seconds: u64, outcome: PatchOutcome) -> PatchReply {
    PatchReply { interval: Some(Duration::from_secs(seconds)), ..patch(outcome) }
}

impl Fake {
    pub(super) fn new(
        patches: impl IntoIterator<Item = PatchReply>,
        updates: impl IntoIterator<Item = UpdateReply>,
    ) -> Self {
        Self {
            since: Instant::now(),
            patches: Mutex::new(patches.into_iter().collect()),
            updates: Mutex::new(updates.into_iter().collect()),
            asked: Mutex::default(),
        }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().iter().map(|(_, asked)| asked.clone()).collect()
    }

    /// What was asked in short: the range of a patch or the state of an update.
    pub(super) fn heard(&self) -> Vec<String> {
        self.asked.lock().iter().map(|(_, asked)| short(asked)).collect()
    }

    /// The same, each with the tenth of a second in which it was asked.
    pub(super) fn heard_at(&self) -> Vec<(u128, String)> {
        let asked = self.asked.lock();
        asked.iter().map(|(at, asked)| ((at.as_millis() + 50) / 100, short(asked))).collect()
    }

    fn hear(&self, asked: Asked) {
        self.asked.lock().push((self.since.elapsed(), asked));
    }
}

fn short(asked: &Asked) -> String {
    match asked {
        Asked::Patch(range, _) => range.clone(),
        Asked::Update(state, ..) => format!("{state:?}"),
    }
}

impl JobServer for Fake {
    async fn patch_trace(&self, start: u64, chunk: Bytes) -> PatchReply {
        let end = (start + chunk.len() as u64).checked_sub(1).expect("not empty");
        self.hear(Asked::Patch(format!("{start}-{end}"), chunk));
        self.patches.lock().pop_front().unwrap_or(patch(PatchOutcome::Accepted))
    }

    async fn update(
        &self,
        state: JobState,
        reason: Option<String>,
        exit_code: Option<i32>,
        output: TraceOutput,
    ) -> UpdateReply {
        self.hear(Asked::Update(state, reason, exit_code, output));
        self.updates.lock().pop_front().unwrap_or(update(UpdateOutcome::Success))
    }
}

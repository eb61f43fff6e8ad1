//! What a guard has done: counts of its requests, and an event for each.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::guard::{audit::AuditEvent, refusal::Refusal};

/// How many different messages of refusals are kept.
const MESSAGES: usize = 20;

/// What a guard did, and could not remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The number of all requests, refused ones included.
    pub(crate) requests: u64,
    /// How often each rule refused a request.
    pub refused: BTreeMap<String, u64>,
    /// The messages of the first 20 refusals that differ.
    pub(crate) messages: Vec<String>,
    /// What could not be removed, and why.
    pub left: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Report {
    summary: Mutex<Summary>,
    /// Where events go, until the guard stops, which ends the log.
    events: Mutex<Option<mpsc::Sender<AuditEvent>>>,
}

impl Report {
    /// A report that begins with what an earlier guard has left.
    pub(super) fn new(left: Vec<String>, events: Option<mpsc::Sender<AuditEvent>>) -> Self {
        let summary = Summary { left, ..Summary::default() };
        Self { summary: Mutex::new(summary), events: Mutex::new(events) }
    }

    pub(super) fn count(&self, refusal: Option<&Refusal>) {
        let mut summary = self.summary.lock();
        summary.requests += 1;
        // An object that does not exist is not a refusal of the guard's.
        if let Some(refusal) = refusal.filter(|refusal| refusal.rule != "-") {
            *summary.refused.entry(refusal.rule.to_owned()).or_default() += 1;
            if summary.messages.len() < MESSAGES && !summary.messages.contains(&refusal.message) {
                summary.messages.push(refusal.message.clone());
            }
        }
    }

    pub(super) fn summary(&self) -> Summary {
        self.summary.lock().clone()
    }

    /// Where events of the audit log go, if anybody wants them.
    pub(super) fn events(&self) -> Option<mpsc::Sender<AuditEvent>> {
        self.events.lock().clone()
    }

    /// Sends no more events.
    pub(super) fn end_events(&self) {
        drop(self.events.lock().take());
    }
}

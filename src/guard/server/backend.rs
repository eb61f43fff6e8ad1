//! The engine behind one guard: how it is reached, what is known of it, and what the job owns on it.

use std::sync::Arc;

use hyper::Response;
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::guard::{
    policy::context::{EngineFacts, PolicyContext},
    refusal::Refusal,
    settings::GuardSettings,
};

use super::{
    engine::{Engine, whole},
    engine_body::EngineBody,
    inventory::Inventory,
    response::unreachable,
};

/// All requests of a guard share it.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) settings: Arc<GuardSettings>,
    pub(super) facts: Arc<EngineFacts>,
    pub(super) engine: Engine,
    pub(super) inventory: Inventory,
    /// What the guard does beside its requests; it waits for these tasks when it ends.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the guard ends.
    pub(super) stop: CancellationToken,
}

impl Backend {
    /// What a decision about a request is made from, as it is now.
    pub(super) fn context(&self) -> PolicyContext {
        PolicyContext {
            settings: Arc::clone(&self.settings),
            facts: Arc::clone(&self.facts),
            owned: self.inventory.owned(),
        }
    }

    /// `GET path` of the engine, when it has it, with the engine's own names.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, Refusal> {
        self.engine.get(path).await.map_err(unreachable)
    }

    /// An answer of the engine in JSON, with the job's names.
    pub(super) async fn json_of(&self, answer: Response<EngineBody>) -> Result<Value, Refusal> {
        let mut value = whole(answer.into_body()).await.map_err(unreachable)?;
        self.settings.names.strip(&mut value);
        Ok(value)
    }

    /// Whether what the engine says it made has this guard's label: it gives a volume of the same
    /// name that somebody else made a moment before as if it were new.
    pub(super) fn is_labelled(&self, made: &Value) -> bool {
        let (key, mark) = &self.settings.identity;
        made["Labels"][key] == **mark
    }
}

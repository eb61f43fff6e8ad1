//! All that a decision is made from.

use std::sync::Arc;

use crate::guard::{ownership::Owned, settings::GuardSettings};

/// What the guard knows of the engine it stands before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// The version that is spoken to it, and the highest for clients.
    pub version: (u32, u32),
    /// The default network's id.
    pub network_id: String,
    /// The default network's name on the engine.
    pub network: String,
    /// The default network's gateway, where ports are published; empty when it has none.
    pub gateway: String,
    /// How much CPU there is, in billionths.
    pub nano_cpus: i64,
    /// The default runtime's name.
    pub runtime: String,
}

/// All that a decision is made from.
#[derive(Debug, Clone)]
pub struct PolicyContext {
    /// What the operator allows.
    pub settings: Arc<GuardSettings>,
    /// The engine that requests go to.
    pub facts: Arc<EngineFacts>,
    /// What the job owns.
    pub owned: Arc<Owned>,
}

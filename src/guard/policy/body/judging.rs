//! A body that is being judged.

use crate::guard::{policy::context::PolicyContext, settings::GuardSettings};

use super::{fields::Rule, needs::Needs};

/// A decision in the making.
#[derive(Debug)]
pub(in crate::guard) struct Judging {
    pub(super) context: PolicyContext,
    pub(super) needs: Needs,
    pub(super) network: ContainerNetwork,
    pub(super) private_ipc: bool,
    pub(super) added_capabilities: Vec<String>,
    pub(super) links: Vec<String>,
}

/// The network that a container is going to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContainerNetwork {
    None,
    /// A network of the job's, by its full id.
    Own(String),
    /// The network of a container, by its full id.
    Container(String),
}

impl Judging {
    pub(super) fn new(context: &PolicyContext) -> Self {
        Self {
            context: context.clone(),
            needs: Needs::default(),
            network: ContainerNetwork::None,
            private_ipc: true,
            added_capabilities: Vec::new(),
            links: Vec::new(),
        }
    }

    pub(super) fn settings(&self) -> &GuardSettings {
        &self.context.settings
    }
}

pub(super) type Table = &'static [(&'static str, Rule<Judging>)];

pub(super) const ANY: Rule<Judging> = Rule::Whole(i64::MIN, i64::MAX);

//! What a judged body needs before it can be sent.

use serde_json::{Map, Value};

use crate::guard::policy::bind_source::BindSource;

/// What must be done before a request can be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Volumes that must exist and be the job's.
    pub volumes: Vec<String>,
    /// Sources to pin; `@bind-N@` in the body stands for the N-th.
    pub binds: Vec<BindNeed>,
    /// Containers whose pins the new one takes over.
    pub(crate) volumes_from: Vec<String>,
    /// Images in `Mounts`, by index there.
    pub(crate) image_mounts: Vec<(usize, String)>,
    /// Subnets that must not overlap the host's routes.
    pub subnets: Vec<(std::net::Ipv4Addr, u8)>,
    /// Whether all exposed ports are to be published.
    pub(crate) publish_all: bool,
}

/// A source to pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindNeed {
    /// The path that the job named.
    pub(crate) job: String,
    /// Where that leads.
    pub source: BindSource,
    /// Whether missing directories are made.
    pub(crate) make: bool,
    /// Whether it is from `Mounts`.
    pub(crate) is_mount: bool,
}

/// A body that was judged, and what it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// What is sent on.
    pub body: Map<String, Value>,
    /// What must be done first.
    pub needs: Needs,
}

//! What becomes of a request: sent on rebuilt, refused, or answered. Pure: a decision over the
//! request, the settings and what the job owns. What is not in these tables is refused.
//!
//! `decide` asks the tables of `containers`, `images`, `networks` and the others; the JSON of
//! a request is judged field by field in `body`. What is sent is a `forward`; `translate` puts
//! the engine's names into it. `filter` cuts the engine's answers down to what is the job's.

pub(super) mod bind_source;
pub(super) mod body;
mod build;
mod buildkit;
mod containers;
pub(super) mod context;
pub(super) mod credentials;
pub(super) mod decide;
pub(super) mod filter;
pub(super) mod forward;
mod images;
mod judge;
mod networks;
mod query;
pub(super) mod route;
mod system;
pub(super) mod tags;
#[cfg(test)]
mod tests;
pub(super) mod translate;
mod volumes;

pub use bind_source::BindSource;
pub use body::{
    container::{commit, container_create, exec_create, exec_start},
    host::table::container_update,
    needs::{BindNeed, Judged, Needs},
    network::{network_connect, network_create, network_disconnect},
    volume::volume_create,
};
pub use context::{EngineFacts, PolicyContext};
pub use decide::judge;
pub use forward::{Call, Forward, Reply, SentBody, Verdict};

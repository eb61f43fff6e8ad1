//! All that a job will do, determined before any of it is done. A [`Workload`] is pure data: made of
//! what the job asks for ([`JobSpec`]), the runner's settings and where it runs ([`Placement`]), with no
//! clock, randomness or disk. It knows neither the CI engine that the job comes from nor the executor
//! that will run it.

pub mod access;
pub mod cache;
pub mod directories;
mod environment;
pub mod error;
pub mod flags;
pub mod image;
pub mod layers;
pub mod mount;
pub mod names;
pub mod network;
pub mod outcome;
pub mod placement;
mod plan;
pub mod policy;
pub mod script;
pub mod service;
pub mod settings;
pub mod sources;
pub mod spec;
pub mod transfer;
pub mod variable;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use directories::Directories;
pub use error::WorkloadError;
pub use image::ImagePlan;
pub use network::NetworkPlan;
pub use placement::{Leases, Placement};
pub use plan::{JobFacts, Scripts, StepPlan, Transfers, Workload};
pub use spec::JobSpec;

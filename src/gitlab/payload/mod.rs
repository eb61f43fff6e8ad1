//! What a GitLab server sends as a job, turned into a [`JobSpec`](crate::workload::JobSpec). Nothing
//! past this module knows the wire's types.

mod convert;
mod error;
mod image;
pub mod input;
mod notice;
mod trust;

pub use convert::{job_spec, outline};
pub use error::InvalidJob;

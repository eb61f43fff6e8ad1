//! Files in and out of a job: artifacts and caches.
//!
//! Choosing, packing and extracting files is blocking code and runs in the job's helper container
//! ([`expand`], [`select`], [`mod@write`], [`extract`], [`fingerprint`], [`provenance`], [`save`]). What GitLab and the cache's
//! store are asked for runs in longshore itself ([`artifact`], [`cache`], [`store`]). Nothing here
//! knows the job: what a function needs is an argument.

pub mod artifact;
pub mod cache;
pub mod expand;
pub mod extract;
pub mod fingerprint;
pub mod provenance;
pub mod save;
pub mod select;
pub mod store;
pub mod write;

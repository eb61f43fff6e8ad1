//! Files in and out of a job: artifacts and caches.
//!
//! Choosing, packing and extracting files is blocking code and runs in the job's helper container
//! ([`expand`], [`select`], [`mod@write`], [`extract`], [`fingerprint`], [`provenance`], [`save`]). What GitLab and the cache's
//! store are asked for runs in longshore itself ([`artifact`], [`cache`], [`store`]). Nothing here
//! knows the job: what a function needs is an argument.

pub(crate) mod artifact;
pub(crate) mod cache;
pub(crate) mod expand;
pub(crate) mod extract;
pub(crate) mod fingerprint;
pub(crate) mod provenance;
pub(crate) mod save;
pub(crate) mod select;
pub(crate) mod store;
pub(crate) mod write;

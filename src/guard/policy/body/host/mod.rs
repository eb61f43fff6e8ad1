//! A container's host configuration and its update.

mod limits;
mod mounts;
pub(super) mod ports;
mod rights;
pub(in crate::guard) mod table;

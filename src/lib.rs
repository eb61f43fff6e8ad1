//! longshore, a CI runner.

/// Commit the binary was built from; `unknown` outside a build that says so.
pub const REVISION: &str = match option_env!("LONGSHORE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod docker;
pub mod exec;
pub mod executor;
pub mod helper;
pub mod ids;
pub mod job;
pub mod ledger;
pub mod plan;
pub mod protocol;
pub mod proxy;
pub mod runner;
pub mod secret;
pub mod trace;
pub mod transfer;

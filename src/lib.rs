//! longshore, a CI runner.

pub mod api;
pub mod config;
pub mod exec;
pub mod helper;
pub mod ids;
pub mod secret;

//! longshore, a CI runner.

pub mod api;
pub mod config;
pub mod docker;
pub mod helper;
pub mod ids;
pub mod secret;

//! longshore, a CI runner.

pub mod api;
pub mod cli;
pub mod config;
pub mod helper;
pub mod ids;
pub mod secret;

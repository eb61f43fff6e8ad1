//! Jobs in containers of a Docker engine.

pub mod spec;

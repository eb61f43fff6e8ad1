//! Conformance of plans: one payload, one file of settings, and what they come to. What the engine
//! is asked for is shown beside `executor::docker::spec`.

mod directories;
mod errors;
mod images;
mod script;
mod services;
mod settings;
mod stages;
mod variables;

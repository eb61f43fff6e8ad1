//! The built program against a GitLab made for the purpose and a real Docker engine.
//!
//! Each test has a GitLab, a longshore and a project of its own, so they run side by side on one
//! engine. A test that shows a numbered statement of `tests/conformance.md` has a name that begins with
//! its number.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
#![allow(clippy::print_stdout, reason = "what a failed test has to say")]

mod apart;
mod bad;
mod buildkit;
mod cgroup;
mod commands;
mod compose;
mod conformance;
mod control;
mod counter;
mod crash;
mod dind;
mod docker;
mod dood;
mod engine;
mod exec;
mod features;
mod files;
mod gitlab;
mod guard;
mod images;
mod longshore;
mod relay;
mod reload;
mod rootless;
mod scripts;
mod shells;
mod sidecar;
mod sources;
mod trace;
mod warm;

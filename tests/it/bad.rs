//! Bad input of every kind: it is named, nothing is lost, and longshore goes on.

mod config;
mod disk;
mod engine;
mod files;
mod payload;
mod server;

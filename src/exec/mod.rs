//! `longshore exec`.
mod coordinator;
mod dotenv;
mod multipart;
mod payload;
mod pipeline;
mod project;
mod server;
mod upload;
mod worktree;

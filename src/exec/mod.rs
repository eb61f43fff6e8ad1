//! `longshore exec`.
mod dotenv;
mod multipart;
mod payload;
mod pipeline;
mod project;
mod worktree;

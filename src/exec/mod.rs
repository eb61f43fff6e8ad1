//! `longshore exec`.
mod dotenv;
mod multipart;
mod pipeline;
mod worktree;

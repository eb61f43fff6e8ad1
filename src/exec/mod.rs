//! `longshore exec`.
mod pipeline;

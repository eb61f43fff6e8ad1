//! The story of a job on an executor in memory and a CI engine in memory: how it goes, and every way
//! in which it can go wrong.

mod failures;
mod fake;
mod removals;
mod stops;
mod stories;

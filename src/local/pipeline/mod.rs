//! A pipeline file, read as GitLab reads it: what it includes and extends, the jobs that its rules
//! let in, and in which order they run. It knows neither the runner nor a server; running the jobs is
//! the rest of `exec`.

mod choose;
mod expand;
mod fields;
mod job;
mod load;
mod matrix;
mod model;
mod parts;
mod problem;
mod read;
mod resolve;
mod rules;
mod schedule;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

pub(crate) use self::{
    expand::expand_known,
    matrix::is_instance,
    model::{AllowFailure, Job, Pipeline, When},
    parts::{Cache, CacheKey},
    problem::{PipelineError, Problem},
    read::{Source, read},
    schedule::{Schedule, State},
};

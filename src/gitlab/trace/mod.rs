//! How a job's trace and its final state reach GitLab: `PATCH /jobs/:id/trace` while the job runs
//! (`pump`), the rest of the trace and `PUT /jobs/:id` at its end (`finish`).

mod delivery;
#[cfg(test)]
mod fake;
mod finish;
mod pump;
mod server;

pub use self::{
    delivery::Delivery,
    finish::{DEFAULT_PASSES, Failure, Final, FinishError, Limits, finish},
    pump::{KeepAlive, pump},
    server::JobServer,
};

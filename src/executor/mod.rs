//! What runs a plan. An executor is asked in this order:
//!
//! 1. `prepare` makes what the plan names: network, services, containers. Images, services and
//!    sources are made ready at the same time; a failure of one stops the others.
//! 2. Stages run one after another: tasks of the helper, scripts in the job's image.
//! 3. `clean_up` removes all of it. It is safe after a failure at any point, and twice.
//!
//! Whatever is made is in the ledger first, so that `clean_up` can also be done by a later process.

pub mod curtain;
pub mod docker;

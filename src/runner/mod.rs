//! The runner: a job as its CI engine hands it over is run to its end ([`run()`]): its workload is
//! planned, a session of an executor carries it out, and the CI engine's reporter hears how it goes.
//! Nothing here knows a CI engine or an executor by name.

mod ending;
mod intake;
pub mod metrics;
mod process;
mod removal;
mod reporter;
mod run;
mod semaphore;
mod slots;
mod stages;
mod stops;
#[cfg(test)]
mod tests;
mod work;

pub use ending::SystemFailure;
pub use intake::{IncomingJob, ServerFacts};
pub use process::{Process, Runner, labels};
pub use reporter::{
    Acceptance, ArtifactStore, Conclusion, NotDelivered, Reporter, StopRequest, StreamOptions,
};
pub use run::run;
pub use semaphore::{Permit, ResizableSemaphore};
pub use slots::JobSlots;
pub use stops::{Interrupt, Signal};

//! longshore: a CI runner. It takes jobs from GitLab and runs each in containers of a Docker engine.
//!
//! This is the tour of the crate. `docs/architecture.md` has more: drawings, how an executor or a CI
//! engine is added, and a glossary.
//!
//! # A job, from poll to end
//!
//! ```text
//! gitlab: poll ── payload ──▶ JobSpec          what the job asks for, in no CI engine's words
//!                                │
//! runner: intake ─────────────▶ Workload       all that will run, as data; complete, never changed
//!                                │
//! ledger ◀── what it will make ──┤             on disk before anything is made
//!                                ▼
//! executor: Session   prepare ∥ helper         images and services, while sources are fetched
//!                     run_script               each step, then after_script
//!                                │ output
//! trace: mask, stamp, spool ◀────┤
//!                                ▼
//! gitlab: Reporter ◀── Outcome ── runner       the rest of the trace, then how the job ended,
//!                                              while the session removes what it made
//! ```
//! [`runner::run()`] is that story, from top to bottom; follow it there.
//!
//! # The modules
//!
//! Each may use those before it and none after it; `tests/layers` checks that, and that the files
//! inside a module have no import cycle.
//!
//! | module | what it is |
//! |---|---|
//! | [`base`] | ids, secrets, error chains |
//! | [`config`] | gitlab-runner's `config.toml`: as written, checked, watched, edited in place |
//! | [`workload`] | plans all that will run for a job; pure |
//! | [`trace`] | the log of a job: masked, stamped, spooled; knows no server |
//! | [`ledger`] | unfinished jobs, what they make, and how they ended |
//! | `archive` | archives, the selection of files for them, caches and their store |
//! | [`guard`] | the guarded socket: which requests to a Docker engine a job may make |
//! | [`helper`] | the program in the helper container (git, archives, files), and its protocol |
//! | [`executor`] | the contract of an executor, and Docker's |
//! | [`runner`] | runs one job to its end; job slots; metrics |
//! | [`gitlab`] | GitLab's API, and what is made of it: polling, payload, reporting, recovery |
//! | [`daemon`] | owner of every long-lived task: start, reload, drain |
//! | [`local`] | pipelines of a file, without a server |
//! | [`cli`] | one file per subcommand; the only place that prints |
//!
//! # What always holds
//!
//! - Three endings are kept apart: the script failed, the job was stopped, the system failed.
//! - What a job makes is in the ledger first and has a label of this longshore. It is removed with the
//!   job, or, after a crash, at the next start. Nothing without that label is ever removed.
//! - Bytes of a trace are kept until the server has confirmed them; the final state is reported after the
//!   server has all of them.
//! - A workload is planned without clock, randomness, disk or network; what it needs is an argument.
//! - Every task has an owner that waits for it. Removal does not listen to what stopped the job.
//! - A job keeps the settings that it began with. An invalid configuration changes nothing.
//! - Secrets are in [`base::secret::Secret`] until the moment they are sent.
//!
//! # What is absent on purpose
//!
//! Executors other than Docker's, autoscaling, and everything of Windows and macOS.

/// Commit the binary was built from; `unknown` outside a build that says so.
pub const REVISION: &str = match option_env!("LONGSHORE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

pub(crate) mod archive;
pub mod base;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod executor;
pub mod gitlab;
pub mod guard;
pub mod helper;
pub mod ledger;
pub mod local;
pub mod runner;
pub mod trace;
pub mod workload;

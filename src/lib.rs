//! longshore: a CI runner. It asks GitLab for jobs and runs each in containers of a Docker engine.
//!
//! # A job, from poll to end
//!
//! ```text
//! gitlab::api --POST jobs/request--> gitlab::payload --> JobSpec --> Workload (pure, complete)
//!                                                                  |
//!    ledger: what the job will make, noted first    +--------------+---------------+
//!                                                   |              |               |
//!                                            helper: sources,   services,    job image, its
//!                                            caches, artifacts  until ready  shell waiting
//!                                                   +--------------+---------------+
//!                                                                  |
//!                             scripts --> trace (mask, stamp, spool) --PATCH--> the server
//!                                                                  |
//!            after_script --> caches, artifacts --> final PUT; removal beside it; ledger closed
//! ```
//! [`runner::run()`] is that story, from top to bottom; follow it there.
//!
//! # The modules
//!
//! Each may use those before it and none after it; `tests/layers` checks that.
//!
//! | module | what it is |
//! |---|---|
//! | [`base`] | names and numbers that must not be mixed up; text that does not print; an error in one line |
//! | [`config`] | gitlab-runner's `config.toml`: as written, checked, watched, edited in place |
//! | [`workload`] | job × settings → all that will run, as data |
//! | [`trace`] | what the job's author reads: masked, stamped, kept until it is sent |
//! | [`ledger`] | what must be removed and said, noted before it is made |
//! | [`archive`] | archives, the choice of files for them, caches and their store |
//! | [`guard`] | the guarded socket: what of an engine's API a job may use, and all that it made with it |
//! | [`helper`] | what runs inside the helper container: git, archives, files; what it and longshore say to each other |
//! | [`executor`] | workloads carried out in containers; [`executor::docker::engine`] is the only door to an engine |
//! | [`runner`] | asks for jobs, runs each to its end, ends those of a process that died |
//! | [`gitlab`] | GitLab's runner API: what is sent, and how: retries, TLS, redirects; the delivery of traces and final states |
//! | [`daemon`] | owner of every long-lived task; changes of configuration; the ways to stop |
//! | [`local`] | pipelines of a file, with a job server in this process |
//! | [`cli`] | one file a subcommand; the only place that prints |
//!
//! # What always holds
//!
//! - Three endings are kept apart to the last call: the script failed, the job was stopped, the system
//!   failed ([`workload::outcome`]).
//! - What a job makes is in the ledger first and gone afterwards, also when longshore is killed, and bears
//!   a label of this longshore; nothing without that label is ever removed.
//! - Bytes of a trace are sent until the server has said that it has them; a final state is said when it
//!   has all of them.
//! - A plan is pure: no clock, randomness, disk or network; what it needs is an argument.
//! - Every task has an owner that waits for it; removal does not listen to what stopped the job.
//! - A job keeps the settings it began with; a configuration that is wrong changes nothing.
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

pub mod archive;
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

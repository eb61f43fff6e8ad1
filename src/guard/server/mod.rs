//! The guard at work: its socket, its connections to the engine, and what it does there.
//!
//! [`accept`] takes connections, [`exchange`] answers requests one by one: what was decided about one
//! is made ready for by [`prepare`], sent by [`engine`], and its answer passed on by [`answer`] and
//! [`progress`]. They share a [`backend`]. [`guard`] is the beginning and the end of it all.

mod accept;
mod answer;
mod archives;
mod backend;
mod clean_up;
pub(super) mod engine;
mod engine_body;
mod events;
mod exchange;
pub(super) mod guard;
mod images;
mod inventory;
mod journal;
mod patient_stream;
mod pins;
mod prepare;
mod progress;
pub(super) mod report;
mod request_head;
pub(super) mod response;
mod spool;
mod strict_stream;
mod survey;
mod tag_lock;
mod tags;

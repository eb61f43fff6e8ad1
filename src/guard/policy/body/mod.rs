//! Bodies of requests, judged field by field and built anew. Pure: what needs the engine or the disk
//! is asked for in [`needs`].

pub(in crate::guard) mod container;
pub(in crate::guard) mod fields;
pub(in crate::guard) mod host;
pub(in crate::guard) mod judging;
pub(in crate::guard) mod needs;
pub(in crate::guard) mod network;
#[cfg(test)]
mod tests;
mod values;
pub(in crate::guard) mod volume;

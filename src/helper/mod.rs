//! The helper: what runs inside a job's helper container, `longshore helper serve`.

pub mod protocol;

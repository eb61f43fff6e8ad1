//! What the guard tells a client whose request it does not send on.

/// A request that is not sent on: what the client reads, and the rule that says so
/// (`docs/guard.md`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The status of the HTTP response.
    pub status: u16,
    /// The text in the engine's error format.
    pub message: String,
    /// The rule's number, such as `G-1`; `-` where the engine itself would say the same.
    pub rule: &'static str,
}

impl Refusal {
    /// Something that this socket does not offer.
    pub(crate) fn denied(what: &str, rule: &'static str) -> Self {
        Self { status: 403, message: format!("guard: {what} is not available here ({rule})"), rule }
    }

    /// Something that is refused for the reason that `why` tells.
    pub(crate) fn because(why: &str, rule: &'static str) -> Self {
        Self { status: 403, message: format!("guard: {why} ({rule})"), rule }
    }

    /// Something that is malformed, or that two parsers could read differently.
    pub(crate) fn malformed(what: &str, rule: &'static str) -> Self {
        Self { status: 400, message: format!("guard: {what} ({rule})"), rule }
    }

    /// Something that does not exist, in the engine's words; foreign things are the same.
    pub(crate) fn missing(message: String) -> Self {
        Self { status: 404, message, rule: "-" }
    }

    /// A name that is taken.
    pub(crate) fn conflict(message: &str) -> Self {
        Self { status: 409, message: message.to_owned(), rule: "G-49" }
    }

    /// A limit on the number of the job's objects that was reached.
    pub(crate) fn limit(what: &str, most: usize) -> Self {
        Self::because(&format!("this job may have {most} {what} at a time"), "G-81")
    }

    /// More bytes than the limit of a body.
    pub(crate) fn too_large(what: &str, rule: &'static str) -> Self {
        Self { status: 413, message: format!("guard: {what} is too large ({rule})"), rule }
    }

    /// A body that made no progress for too long.
    pub(crate) fn too_slow() -> Self {
        Self {
            status: 408,
            message: "guard: the body took too long (G-86)".to_owned(),
            rule: "G-86",
        }
    }

    /// An error of the guard or of the engine.
    pub(crate) fn failed(status: u16, what: &str) -> Self {
        Self { status, message: format!("guard: {what} (G-7)"), rule: "G-7" }
    }
}

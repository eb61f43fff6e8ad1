//! What fails when an engine is asked for something.

use std::fmt;

/// A request to the engine that failed: what was tried, on what, and why it failed.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    operation: &'static str,
    object: String,
    source: Box<bollard::errors::Error>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        if self.object.is_empty() { Ok(()) } else { write!(f, " `{}`", self.object) }
    }
}

impl Error {
    /// For `map_err`: `operation` is a verb phrase that follows "cannot", `object` the name or id
    /// it was tried on, empty when there is none.
    pub fn of(
        operation: &'static str,
        object: &str,
    ) -> impl FnOnce(bollard::errors::Error) -> Self + Send + use<> {
        let object = object.to_owned();
        move |source| Self { operation, object, source: Box::new(source) }
    }

    /// The HTTP status the engine answered with, if it answered.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match &*self.source {
            bollard::errors::Error::DockerResponseServerError { status_code, .. } => {
                Some(*status_code)
            }
            _ => None,
        }
    }

    /// The engine's own words, if it answered.
    #[must_use]
    pub fn engine_message(&self) -> Option<&str> {
        match &*self.source {
            bollard::errors::Error::DockerResponseServerError { message, .. } => Some(message),
            bollard::errors::Error::DockerStreamError { error }
            | bollard::errors::Error::DockerContainerWaitError { error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether the object is in a state that forbids the operation, or its name is taken.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }

    /// Whether it is a container that could not be started.
    #[must_use]
    pub fn is_at_start(&self) -> bool {
        self.operation.starts_with("start the ")
    }

    /// Whether the engine itself could not be reached, or went away during the request.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        use bollard::errors::Error as E;
        match &*self.source {
            E::HyperLegacyError { .. }
            | E::HyperResponseError { .. }
            | E::SocketNotFoundError(_)
            | E::RequestTimeoutError => true,
            E::IOError { err } => {
                use std::io::ErrorKind as K;
                // A body that breaks off arrives as an I/O error of kind `Other` around hyper's.
                err.get_ref().is_some_and(
                    <dyn std::error::Error + std::marker::Send + std::marker::Sync + 'static>::is::<
                        hyper::Error,
                    >,
                ) || matches!(
                    err.kind(),
                    K::NotFound
                        | K::ConnectionRefused
                        | K::ConnectionReset
                        | K::ConnectionAborted
                        | K::BrokenPipe
                        | K::UnexpectedEof
                        | K::TimedOut
                )
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error_chain;

    fn answered(status_code: u16) -> Error {
        Error::of("inspect the image", "busybox")(
            bollard::errors::Error::DockerResponseServerError {
                status_code,
                message: "No such image: busybox".into(),
            },
        )
    }

    #[test]
    fn an_error_says_what_was_tried_and_keeps_the_cause() {
        let error = answered(404);
        assert_eq!(error.to_string(), "cannot inspect the image `busybox`");
        assert_eq!(
            error_chain(&error),
            "cannot inspect the image `busybox`: \
             Docker responded with status code 404: No such image: busybox"
        );
        assert_eq!(error.engine_message(), Some("No such image: busybox"));
    }

    #[test]
    fn an_answer_is_told_from_an_engine_that_is_gone() {
        assert!(answered(404).is_not_found() && !answered(409).is_not_found());
        assert!(answered(409).is_conflict() && !answered(404).is_conflict());
        assert!(!answered(500).is_gone());
        let gone = Error::of("list the images", "")(bollard::errors::Error::IOError {
            err: std::io::ErrorKind::ConnectionReset.into(),
        });
        assert!(gone.is_gone() && gone.status().is_none());
        assert_eq!(gone.to_string(), "cannot list the images");
    }
}

//! After which outcome of the script an artifact or a cache is saved.

/// `when` of an artifact or a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// When it succeeded; the default.
    #[default]
    OnSuccess,
    /// When it failed.
    OnFailure,
    /// Whatever happened.
    Always,
}

impl When {
    /// Reads the payload's word. What is empty or not known is the default, as a server may learn
    /// words that this runner has not.
    #[must_use]
    pub fn of(text: &str) -> Self {
        match text {
            "on_failure" => Self::OnFailure,
            "always" => Self::Always,
            _ => Self::OnSuccess,
        }
    }

    /// Whether it is saved after this outcome.
    #[must_use]
    pub fn applies(self, succeeded: bool) -> bool {
        match self {
            Self::OnSuccess => succeeded,
            Self::OnFailure => !succeeded,
            Self::Always => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_143_docker_157_when_decides_what_is_saved() {
        let saved = |text| {
            let when = When::of(text);
            (when.applies(true), when.applies(false))
        };
        assert_eq!(saved(""), (true, false));
        assert_eq!(saved("on_success"), (true, false));
        assert_eq!(saved("on_failure"), (false, true));
        assert_eq!(saved("always"), (true, true));
    }
}

//! How much of a trace is kept (`output_limit`).

/// GitLab Runner's limit when none is set.
pub const DEFAULT_LIMIT: u64 = 4 * 1024 * 1024;

/// Counts what is kept, up to a limit.
pub(super) struct Limit {
    most: u64,
    kept: u64,
    exceeded: bool,
}

/// What to keep of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admitted<'a> {
    /// This much of it.
    pub(super) text: &'a [u8],
    /// Then this, which is the last that is kept.
    pub(super) notice: Option<String>,
}

impl Limit {
    /// A limit of so many bytes (0: the default), of which `kept` are used.
    pub(super) fn new(limit: u64, kept: u64) -> Self {
        let limit = if limit == 0 { DEFAULT_LIMIT } else { limit };
        Self { most: limit, kept, exceeded: kept >= limit }
    }

    /// Counts `text`, which must be valid UTF-8 so that it can be cut between characters.
    pub(super) fn admit<'a>(&mut self, text: &'a [u8]) -> Admitted<'a> {
        if self.exceeded {
            return Admitted { text: &[], notice: None };
        }
        let room = self.most - self.kept;
        let length = text.len() as u64;
        if length < room {
            self.kept += length;
            return Admitted { text, notice: None };
        }
        self.exceeded = true;
        let mut end = usize::try_from(room).map_or(text.len(), |room| room.min(text.len()));
        while end > 0 && text.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
            end -= 1;
        }
        Admitted { text: &text[..end], notice: Some(notice(self.most)) }
    }
}

/// What is written where the rest is left out.
fn notice(limit: u64) -> String {
    format!(
        "\n\x1b[33;1mJob's log exceeded limit of {limit} bytes.\n\
         Job execution will continue but no more output will be collected.\x1b[0;m\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_94_docker_190_the_cut_is_between_characters() {
        let mut limit = Limit::new(5, 0);
        let admitted = limit.admit("abc€d".as_bytes());
        assert_eq!(admitted.text, b"abc");
        assert!(admitted.notice.is_some());
        assert_eq!(limit.admit(b"more"), Admitted { text: b"", notice: None });
    }

    #[test]
    fn the_limit_is_exceeded_by_what_just_fits() {
        let mut limit = Limit::new(4, 0);
        assert_eq!(limit.admit(b"abc"), Admitted { text: b"abc", notice: None });
        let admitted = limit.admit(b"d");
        assert_eq!(admitted.text, b"d");
        assert!(admitted.notice.is_some());
    }

    #[test]
    fn the_default_notice_is_as_long_as_gitlab_runners() {
        assert_eq!(notice(DEFAULT_LIMIT).len(), 122);
        assert_eq!(Limit::new(0, 0).most, 4_194_304);
    }
}

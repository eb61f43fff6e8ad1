//! A stricter reading of HTTP/1 than the server's, before the server reads (G-20, G-21, G-22).
//!
//! [`Lexer`] goes along with the bytes of a connection: heads, and bodies by their length or
//! chunks, as far as to know where the next head begins. It is pure.

const HEAD: usize = 64 << 10;
/// The longest request line.
const LINE: usize = 16 << 10;
const HEADERS: usize = 100;

/// What the next bytes of a connection belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LexerState {
    Head,
    /// This many bytes of a body are to come.
    Body(u64),
    /// In the line that says how long a chunk is: how many digits, their value, and whether they
    /// are over.
    Size(u8, u64, bool),
    Chunk(u64),
    /// In the end of a chunk's line or content; what must come, and what is after it.
    End(&'static [u8], After),
    /// In the lines after the last chunk: bytes in this line, and in all.
    Trailer(usize, usize),
    /// At the end of such a line.
    TrailerEnd(usize),
    /// After a request that asked for an upgrade: a stream, or nothing.
    Free,
}

/// What follows the end of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Chunk(u64),
    Size,
    Trailer,
    Head,
}

/// Reads one connection from its beginning on; see the module.
#[derive(Debug)]
pub struct Lexer {
    state: LexerState,
    head: Vec<u8>,
    /// Whether the request asks for an upgrade: what follows it belongs to the stream (G-29), and
    /// there is no next request.
    upgrade: bool,
}

/// What is wrong with a head or a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub &'static str);

impl Default for Lexer {
    fn default() -> Self {
        Self { state: LexerState::Head, head: Vec::new(), upgrade: false }
    }
}

impl Lexer {
    /// Reads on.
    ///
    /// # Errors
    /// When the bytes could be read in two ways. Nothing may be read after that.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while let Some(first) = bytes.first() {
            let taken = match self.state {
                LexerState::Head => {
                    self.byte(*first)?;
                    1
                }
                LexerState::Body(left) | LexerState::Chunk(left) => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let left = left - taken as u64;
                    self.state = match self.state {
                        LexerState::Body(_) if left == 0 => LexerState::Head,
                        LexerState::Body(_) => LexerState::Body(left),
                        _ if left == 0 => LexerState::End(b"\r\n", After::Size),
                        _ => LexerState::Chunk(left),
                    };
                    taken
                }
                LexerState::Free => return Ok(()),
                _ => {
                    self.state = framing(self.state, *first)?;
                    1
                }
            };
            if self.upgrade && self.state == LexerState::Head {
                self.state = LexerState::Free;
            }
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8) -> Result<(), Violation> {
        let previous = self.head.last().copied();
        match byte {
            b'\n' if previous != Some(b'\r') => {
                return Err(Violation("a line does not end in CRLF"));
            }
            b'\n' => {}
            _ if previous == Some(b'\r') => return Err(Violation("a line does not end in CRLF")),
            b'\t' | b'\r' | b' '..=b'~' | 0x80.. => {}
            _ => return Err(Violation("a control character in the head")),
        }
        self.head.push(byte);
        if self.head.len() > HEAD {
            return Err(Violation("the head is too large"));
        }
        if self.head.len() > LINE && !self.head.contains(&b'\n') {
            return Err(Violation("the request line is too long"));
        }
        if self.head.ends_with(b"\r\n\r\n") {
            let head = std::mem::take(&mut self.head);
            (self.state, self.upgrade) = framing_of(&head[..head.len() - 4])?;
        } else if self.head == b"\r\n" {
            return Err(Violation("an empty line before the request"));
        }
        Ok(())
    }
}

/// Judges a head without its last empty line, and says what follows it.
fn framing_of(head: &[u8]) -> Result<(LexerState, bool), Violation> {
    let mut lines =
        head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    request_line(lines.next().unwrap_or_default())?;
    let (mut length, mut chunked, mut upgrade, mut count) = (None, false, false, 0);
    for line in lines {
        count += 1;
        if count > HEADERS {
            return Err(Violation("too many headers"));
        }
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .ok_or(Violation("a header without a colon"))?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        if name.is_empty() || !name.iter().all(is_token) {
            return Err(Violation("a header's name is malformed"));
        }
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits =
                !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
            if !digits || length.is_some() {
                return Err(Violation("the body's length is malformed or said twice"));
            }
            let text = std::str::from_utf8(value).unwrap_or_default();
            length = text.parse::<u64>().ok();
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Violation("an unknown transfer encoding"));
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(Violation("the body's length is said in two ways")),
        (None, true) => Ok((LexerState::Size(0, 0, false), upgrade)),
        (Some(0) | None, false) => Ok((LexerState::Head, upgrade)),
        (Some(length), false) => Ok((LexerState::Body(length), upgrade)),
    }
}

fn request_line(line: &[u8]) -> Result<(), Violation> {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let plain = method.is_some_and(|m| !m.is_empty() && m.iter().all(u8::is_ascii_uppercase))
        && target.is_some_and(|t| t.first() == Some(&b'/') && t.iter().all(u8::is_ascii_graphic))
        && words.next().is_none();
    if !plain {
        return Err(Violation("the request line is malformed; the target must be a path"));
    }
    if !matches!(version, Some(b"HTTP/1.1" | b"HTTP/1.0")) {
        return Err(Violation("only HTTP/1.1 is spoken here"));
    }
    Ok(())
}

fn framing(state: LexerState, byte: u8) -> Result<LexerState, Violation> {
    const BAD: Violation = Violation("a chunk is malformed");
    Ok(match (state, byte) {
        (LexerState::Size(digits, value, false), _) if byte.is_ascii_hexdigit() => {
            if digits == 8 {
                return Err(BAD);
            }
            let digit = char::from(byte).to_digit(16).unwrap_or(0);
            LexerState::Size(digits + 1, value * 16 + u64::from(digit), false)
        }
        (LexerState::Size(0, ..), _) => return Err(BAD),
        (LexerState::Size(_, 0, _), b'\r') => LexerState::End(b"\n", After::Trailer),
        (LexerState::Size(_, value, _), b'\r') => LexerState::End(b"\n", After::Chunk(value)),
        // An extension, which is ignored up to the end of the line.
        (LexerState::Size(digits, value, false), b';') => LexerState::Size(digits, value, true),
        (LexerState::Size(digits, value, true), b'\t' | b' '..=b'~') if digits < 200 => {
            LexerState::Size(digits + 1, value, true)
        }
        (LexerState::End([only], after), _) if byte == *only => match after {
            After::Chunk(length) => LexerState::Chunk(length),
            After::Size => LexerState::Size(0, 0, false),
            After::Trailer => LexerState::Trailer(0, 0),
            After::Head => LexerState::Head,
        },
        (LexerState::End([first, rest @ ..], after), _) if byte == *first => {
            LexerState::End(rest, after)
        }
        (LexerState::Trailer(0, _), b'\r') => LexerState::End(b"\n", After::Head),
        (LexerState::Trailer(_, all), b'\r') => LexerState::TrailerEnd(all),
        (LexerState::Trailer(line, all), b'\t' | b' '..=b'~') if all < HEAD => {
            LexerState::Trailer(line + 1, all + 1)
        }
        (LexerState::TrailerEnd(all), b'\n') => LexerState::Trailer(0, all),
        _ => return Err(BAD),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reads(bytes: &[u8]) -> Result<LexerState, Violation> {
        let mut lexer = Lexer::default();
        lexer.feed(bytes).map(|()| lexer.state)
    }

    #[test]
    fn plain_requests_pass_one_after_the_other() {
        for text in [
            "GET /info HTTP/1.1\r\nHost: x\r\n\r\n",
            "POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\n\n\r\n\0xGET /y HTTP/1.0\r\n\r\n",
            "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: v\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(reads(text.as_bytes()), Ok(LexerState::Head), "{text:?}");
        }
    }

    #[test]
    fn g_29_what_follows_an_upgrade_is_its_streams() {
        for text in [
            "POST /x HTTP/1.1\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}\n\0GET x",
            "POST /x HTTP/1.1\r\nupgrade: tcp\r\n\r\nany\nthing",
            "POST /x HTTP/1.1\r\nUpgrade: tcp\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\n",
        ] {
            assert_eq!(reads(text.as_bytes()), Ok(LexerState::Free), "{text:?}");
        }
    }

    #[test]
    fn g_21_g_22_what_two_parsers_read_differently_is_refused() {
        for text in [
            "GET /info HTTP/1.1\nHost: x\n\n",
            "GET /info HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
            "GET /info HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET /info HTTP/1.1\r\nHost: x\ry\r\n\r\n",
            "GET /info HTTP/1.1\r\nX: a\0\r\n\r\n",
            "GET  /info HTTP/1.1\r\n\r\n",
            "GET http://x/info HTTP/1.1\r\n\r\n",
            "get /info HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "\r\nGET /info HTTP/1.1\r\n\r\n",
            "POST /x HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST /x HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
            "POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "POST /x HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
            "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc",
            "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n000000001\r\na",
            "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab",
        ] {
            assert!(reads(text.as_bytes()).is_err(), "{text:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(LINE));
        assert!(reads(long.as_bytes()).is_err());
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS + 1));
        assert!(reads(many.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_split_does_not_matter(
            text in "(GET|POST) /x HTTP/1.1\r\n(Content-Length: [0-9]|Transfer-Encoding: chunked|A: b)\r\n\r\n[0-9a-f;\r\n]{0,30}",
            cuts in prop::collection::vec(0_usize..90, 0..4),
        ) {
            let whole = reads(text.as_bytes());
            let mut lexer = Lexer::default();
            let mut cuts = cuts;
            cuts.push(text.len());
            cuts.sort_unstable();
            let mut at = 0;
            let mut pieces = Ok(());
            for cut in cuts {
                let cut = cut.min(text.len());
                pieces = pieces.and_then(|()| lexer.feed(&text.as_bytes()[at..cut]));
                at = cut;
            }
            prop_assert_eq!(pieces.map(|()| lexer.state), whole);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = reads(&bytes);
        }
    }
}

//! A multipart form, parsed as it arrives: bytes go in, pieces come out, and no more is kept than
//! a delimiter or the headers of a part (RFC 7578, RFC 2046 §5.1).

use aho_corasick::AhoCorasick;
use bytes::{Buf, Bytes, BytesMut};

/// Headers of a part are never near this.
const MAX_HEADERS: usize = 16 * 1024;
/// RFC 2046: a boundary has at most 70 characters.
const MAX_BOUNDARY: usize = 70;

/// Why a body is no form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MultipartError {
    /// The content type is another one or has no boundary.
    #[error("the content type is not multipart/form-data with a boundary")]
    ContentType,
    /// The body does not follow the format.
    #[error("the form is broken: {0}")]
    Broken(&'static str),
}

/// A part of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A part of the form begins.
    Start {
        /// Name of the field.
        name: String,
        /// Name of the file.
        filename: String,
    },
    /// Content of that part.
    Data(Bytes),
    /// The form is complete.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    AfterDelimiter,
    Headers,
    Body,
    Done,
}

/// The parser.
#[derive(Debug)]
pub(crate) struct Multipart {
    delimiter: AhoCorasick,
    length: usize,
    buffer: BytesMut,
    state: State,
}

impl Multipart {
    /// A parser for a body with this `Content-Type`.
    pub(crate) fn new(content_type: &str) -> Result<Self, MultipartError> {
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let boundary = parameter(parameters, "boundary").unwrap_or_default();
        let form = kind.trim().eq_ignore_ascii_case("multipart/form-data");
        if !form || boundary.is_empty() || boundary.len() > MAX_BOUNDARY {
            return Err(MultipartError::ContentType);
        }
        let delimiter = format!("\r\n--{boundary}");
        let finder = AhoCorasick::new([&delimiter]).map_err(|_| MultipartError::ContentType)?;
        // With a line end put before it, the first delimiter looks like the others.
        let buffer = BytesMut::from(&b"\r\n"[..]);
        let length = delimiter.len();
        Ok(Self { delimiter: finder, length, buffer, state: State::Preamble })
    }

    /// Takes the next bytes of the body; call [`Self::next`] until it gives `None`.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.state != State::Done {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next piece; `None` if more bytes are needed, or after the end.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, MultipartError> {
        loop {
            match self.state {
                State::Preamble => {
                    let (_, found) = self.until_delimiter();
                    if !found {
                        return Ok(None);
                    }
                    self.state = State::AfterDelimiter;
                }
                State::AfterDelimiter => {
                    if self.buffer.len() < 2 {
                        return Ok(None);
                    }
                    self.state = match &self.buffer[..2] {
                        b"--" => State::Done,
                        b"\r\n" => State::Headers,
                        _ => return Err(MultipartError::Broken("no line ends after a boundary")),
                    };
                    if self.state == State::Done {
                        self.buffer.clear();
                        return Ok(Some(Piece::End));
                    }
                }
                State::Headers => {
                    // The line end before them is still there, so that no headers work as well.
                    let end = self.buffer.windows(4).position(|w| w == b"\r\n\r\n");
                    let Some(end) = end else {
                        if self.buffer.len() > MAX_HEADERS {
                            return Err(MultipartError::Broken(
                                "the headers of a part are too long",
                            ));
                        }
                        return Ok(None);
                    };
                    let headers = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                    self.buffer.advance(end + 4);
                    self.state = State::Body;
                    return Ok(Some(start(&headers)));
                }
                State::Body => {
                    let (data, found) = self.until_delimiter();
                    if found {
                        self.state = State::AfterDelimiter;
                    }
                    if !data.is_empty() {
                        return Ok(Some(Piece::Data(data)));
                    }
                    if !found {
                        return Ok(None);
                    }
                }
                State::Done => return Ok(None),
            }
        }
    }

    /// Takes what is before the next delimiter, and the delimiter; without one, all that cannot be
    /// the beginning of one.
    fn until_delimiter(&mut self) -> (Bytes, bool) {
        if let Some(found) = self.delimiter.find(&self.buffer[..]) {
            let data = self.buffer.split_to(found.start()).freeze();
            self.buffer.advance(self.length);
            return (data, true);
        }
        let safe = self.buffer.len().saturating_sub(self.length - 1);
        (self.buffer.split_to(safe).freeze(), false)
    }
}

fn start(headers: &str) -> Piece {
    let disposition = headers.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    });
    let field = |name| disposition.and_then(|d| parameter(d, name)).unwrap_or_default();
    Piece::Start { name: field("name"), filename: field("filename") }
}

/// A parameter of a header's value, quoted or not.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', ';', '\t']);
        let end = rest.find(['=', ';'])?;
        let key = rest[..end].trim();
        if rest[end..].starts_with(';') {
            rest = &rest[end..];
            continue;
        }
        rest = &rest[end + 1..];
        let mut content = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let mut after = quoted.len();
            while let Some((at, c)) = characters.next() {
                match c {
                    '"' => {
                        after = at + 1;
                        break;
                    }
                    '\\' => content.extend(characters.next().map(|(_, c)| c)),
                    other => content.push(other),
                }
            }
            rest = &quoted[after..];
        } else {
            let end = rest.find(';').unwrap_or(rest.len());
            rest[..end].trim().clone_into(&mut content);
            rest = &rest[end..];
        }
        if key.eq_ignore_ascii_case(name) {
            return Some(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Name, filename and content of a part.
    type Field = (String, String, Vec<u8>);

    fn parse(body: &[u8], chunk: usize) -> Result<(Vec<Field>, bool), MultipartError> {
        let mut parser = Multipart::new("multipart/form-data; boundary=\"b-1\"").unwrap();
        let (mut parts, mut ended) = (Vec::new(), false);
        for bytes in body.chunks(chunk) {
            parser.feed(bytes);
            while let Some(piece) = parser.next()? {
                match piece {
                    Piece::Start { name, filename } => parts.push((name, filename, Vec::new())),
                    Piece::Data(data) => parts.last_mut().unwrap().2.extend_from_slice(&data),
                    Piece::End => ended = true,
                }
            }
            assert!(parser.buffer.len() < 200, "memory stays bounded");
        }
        Ok((parts, ended))
    }

    fn form(content: &[u8]) -> Vec<u8> {
        let mut body = b"preamble\r\n--b-1\r\nContent-Disposition: form-data; name=\"file\"; \
                         filename=\"a \\\"b\\\";.zip\"\r\nContent-Type: x/y\r\n\r\n"
            .to_vec();
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n--b-1\r\n\r\nsecond\r\n--b-1--\r\nepilogue");
        body
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_parts(
            content in proptest::collection::vec(
                prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'b'), any::<u8>()], 0..300),
            chunk in 1usize..64,
        ) {
            let (parts, ended) = parse(&form(&content), chunk).unwrap();
            prop_assert!(ended);
            prop_assert_eq!(&parts[0], &("file".to_owned(), "a \"b\";.zip".to_owned(), content));
            prop_assert_eq!(&parts[1].2, b"second");
        }
    }

    #[test]
    fn a_body_that_is_cut_off_does_not_end() {
        let body = form(b"content");
        let (_, ended) = parse(&body[..body.len() - 20], 7).unwrap();
        assert!(!ended);
    }

    #[test]
    fn what_is_no_form_is_refused() {
        for kind in
            ["text/plain; boundary=x", "multipart/form-data", "multipart/form-data; boundary="]
        {
            assert_eq!(Multipart::new(kind).unwrap_err(), MultipartError::ContentType, "{kind}");
        }
        assert!(parse(b"--b-1xx", 7).is_err());
        let mut parser = Multipart::new("multipart/form-data;boundary=b").unwrap();
        parser.feed(b"--b\r\n");
        parser.feed(&[b'x'; MAX_HEADERS]);
        assert!(parser.next().is_err());
    }
}

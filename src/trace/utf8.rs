//! Makes a stream valid UTF-8: each invalid byte becomes U+FFFD.
//!
//! It works on one stream at a time, before streams are mixed and lines are cut, so that a
//! character is never torn by another stream or by a line header.

use super::stage::{Scanned, Stage};

/// U+FFFD.
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// The stage; what it carries over is at most three bytes.
pub(super) struct Repair;

impl Stage for Repair {
    fn scan(&mut self, text: &[u8], last: bool, out: &mut Vec<u8>) -> Scanned {
        let mut written = 0;
        while let Err(error) = std::str::from_utf8(&text[written..]) {
            let bad = written + error.valid_up_to();
            let count = match error.error_len() {
                Some(count) => count,
                None if last => text.len() - bad,
                None => return Scanned { written, decided: bad },
            };
            out.extend_from_slice(&text[written..bad]);
            for _ in 0..count {
                out.extend_from_slice(REPLACEMENT);
            }
            written = bad + count;
        }
        Scanned { written, decided: text.len() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::stage::Carry, *};

    fn repaired<'a>(writes: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let (mut carry, mut room, mut all) = (Carry::new(Repair), Vec::new(), Vec::new());
        for write in writes {
            all.extend_from_slice(carry.pass(write, false, &mut room));
        }
        all.extend_from_slice(carry.pass(b"", true, &mut room));
        all
    }

    #[test]
    fn api_92_an_invalid_byte_becomes_the_replacement_character() {
        assert_eq!(repaired([&[0x61, 0xFE, 0x62][..]]), [0x61, 0xEF, 0xBF, 0xBD, 0x62]);
    }

    #[test]
    fn a_character_in_two_writes_is_whole() {
        assert_eq!(repaired([&b"\xE2\x82"[..], b"\xACx"]), "€x".as_bytes());
        assert_eq!(repaired([&b"\xE2\x82"[..]]), "\u{FFFD}\u{FFFD}".as_bytes());
    }

    proptest! {
        #[test]
        fn the_result_is_utf8_and_does_not_depend_on_the_split(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0xE2), Just(0x82), Just(0xF0)], 0..40),
            split in 0usize..40,
        ) {
            let (a, b) = bytes.split_at(split.min(bytes.len()));
            let whole = repaired([&bytes[..]]);
            prop_assert!(std::str::from_utf8(&whole).is_ok());
            prop_assert_eq!(repaired([a, b]), whole);
        }
    }
}

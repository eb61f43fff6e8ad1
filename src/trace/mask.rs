//! Hides secrets in a stream: masked values, values of known URL parameters, and what follows
//! known token prefixes, in this order. Each is replaced by `[MASKED]`.
//!
//! All three give the same result wherever writes end. Values that overlap in the output are
//! hidden together, by one `[MASKED]`: replacing only one of them would show part of the other.

use std::sync::Arc;

use super::{
    stage::{Scanned, Stage},
    words::Words,
};
use crate::base::secret::Secret;

/// What stands for a secret.
const MASKED: &[u8] = b"[MASKED]";

/// URL parameters whose values are hidden (GitLab Runner: `urlsanitizer`).
const PARAMETERS: [&[u8]; 6] = [
    b"private_token",
    b"authenticity_token",
    b"rss_token",
    b"x-amz-signature",
    b"x-amz-credential",
    b"x-amz-security-token",
];

/// The prefix of personal access tokens, always hidden.
const PERSONAL_PREFIX: &str = "glpat-";

/// GitLab's other token prefixes (`FF_MASK_ALL_DEFAULT_TOKENS`).
const DEFAULT_PREFIXES: [&str; 13] = [
    "gloas-",
    "gldt-",
    "glrt-",
    "glcbt-",
    "glrtr-",
    "glptt-",
    "glft-",
    "glimt-",
    "glagent-",
    "glsoat-",
    "glffct-",
    "_gitlab_session=",
    "gltok-",
];

/// What to hide in a trace.
#[derive(Debug, Clone, Default)]
pub struct Masks {
    /// Values; surrounding white space is ignored, empty ones too.
    pub phrases: Vec<Secret>,
    /// Token prefixes from the job's payload. Unlike GitLab Runner, all of them are applied.
    pub prefixes: Vec<String>,
    /// Whether all of GitLab's own token prefixes are applied, not just that of personal access
    /// tokens.
    pub all_default_prefixes: bool,
}

/// [`Masks`] made ready; shared by the streams of a job.
#[derive(Clone)]
pub struct Table {
    pub(super) phrases: Arc<Words>,
    pub(super) prefixes: Arc<Words>,
}

impl Table {
    /// Makes `masks` ready.
    #[must_use]
    pub fn new(masks: &Masks) -> Self {
        let defaults = if masks.all_default_prefixes { &DEFAULT_PREFIXES[..] } else { &[] };
        let prefixes = defaults.iter().copied().chain([PERSONAL_PREFIX]);
        let prefixes = prefixes.chain(masks.prefixes.iter().map(|p| p.trim()));
        Self {
            phrases: Arc::new(Words::new(masks.phrases.iter().map(|p| p.expose().trim()))),
            prefixes: Arc::new(Words::new(prefixes)),
        }
    }
}

/// Hides masked values; what it carries over is shorter than the longest of them.
pub(super) struct Phrases {
    pub(super) words: Arc<Words>,
    /// How many of the bytes carried over belong to a value that is already hidden.
    hidden: usize,
}

impl Phrases {
    pub(super) fn new(words: Arc<Words>) -> Self {
        Self { words, hidden: 0 }
    }
}

/// What stands at a place.
enum Found {
    Nothing,
    Word(usize),
    Undecided,
}

impl Stage for Phrases {
    fn scan(&mut self, text: &[u8], last: bool, out: &mut Vec<u8>) -> Scanned {
        let mut decided = if last { text.len() } else { self.words.unfinished(text, 0) };
        let (mut hidden, mut from) = (self.hidden, 0);
        while let Some((at, mut words)) = self.words.candidate(text, from)
            && at < decided
        {
            let tail = &text[at..];
            let found = words.find_map(|word| {
                if tail.starts_with(word) {
                    Some(Found::Word(word.len()))
                } else {
                    (!last && word.starts_with(tail)).then_some(Found::Undecided)
                }
            });
            match found.unwrap_or(Found::Nothing) {
                Found::Nothing => {}
                Found::Undecided => decided = at,
                Found::Word(length) => {
                    if at >= hidden {
                        out.extend_from_slice(&text[hidden..at]);
                        out.extend_from_slice(MASKED);
                    }
                    hidden = hidden.max(at + length);
                }
            }
            from = at + 1;
        }
        self.hidden = hidden.saturating_sub(decided);
        Scanned { written: hidden.min(decided), decided }
    }
}

/// Hides the values of known URL parameters.
#[derive(Default)]
pub(super) struct Parameters {
    /// Within a value.
    hiding: bool,
}

impl Parameters {
    /// Whether `byte` ends a value.
    fn ends(byte: u8) -> bool {
        matches!(byte, b'?' | b'&' | ..=b' ' | 0x7F)
    }

    /// Whether `tail` begins with a known name and `=`: how long both are.
    fn named(tail: &[u8], last: bool) -> Found {
        for name in PARAMETERS {
            let compared = name.len().min(tail.len());
            if tail[..compared].eq_ignore_ascii_case(&name[..compared]) {
                match tail.get(name.len()) {
                    Some(b'=') => return Found::Word(name.len() + 1),
                    None if !last => return Found::Undecided,
                    _ => {}
                }
            }
        }
        Found::Nothing
    }
}

impl Stage for Parameters {
    fn scan(&mut self, text: &[u8], last: bool, out: &mut Vec<u8>) -> Scanned {
        let (mut written, mut from) = (0, 0);
        loop {
            if self.hiding {
                let Some(end) = text[from..].iter().position(|&b| Self::ends(b)) else {
                    return Scanned { written: text.len(), decided: text.len() };
                };
                self.hiding = false;
                from += end;
                written = from;
            }
            let Some(at) = memchr::memchr2(b'?', b'&', &text[from..]) else {
                return Scanned { written, decided: text.len() };
            };
            let at = from + at;
            from = at + 1;
            match Self::named(&text[from..], last) {
                Found::Nothing => {}
                Found::Undecided => return Scanned { written, decided: at },
                Found::Word(length) => {
                    from += length;
                    out.extend_from_slice(&text[written..from]);
                    out.extend_from_slice(MASKED);
                    self.hiding = true;
                }
            }
        }
    }
}

/// Hides what follows known token prefixes.
pub(super) struct Tokens {
    words: Arc<Words>,
    /// Within a token.
    hiding: bool,
}

impl Tokens {
    pub(super) fn new(words: Arc<Words>) -> Self {
        Self { words, hiding: false }
    }

    /// Whether `byte` can be part of a token.
    fn belongs(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'=' | b'-')
    }
}

impl Stage for Tokens {
    fn scan(&mut self, text: &[u8], last: bool, out: &mut Vec<u8>) -> Scanned {
        let (mut written, mut from) = (0, 0);
        loop {
            if self.hiding {
                let Some(end) = text[from..].iter().position(|&b| !Self::belongs(b)) else {
                    return Scanned { written: text.len(), decided: text.len() };
                };
                self.hiding = false;
                from += end;
                written = from;
            }
            let Some((at, mut words)) = self.words.candidate(text, from) else {
                let decided = if last { text.len() } else { self.words.unfinished(text, from) };
                return Scanned { written, decided };
            };
            if !last {
                let decided = self.words.unfinished(text, from);
                if decided < at {
                    return Scanned { written, decided };
                }
            }
            let tail = &text[at..];
            let found = words.find_map(|word| match tail.get(word.len()) {
                None if !last && word.starts_with(tail) => Some(Found::Undecided),
                Some(&next) if Self::belongs(next) && tail.starts_with(word) => {
                    Some(Found::Word(word.len()))
                }
                _ => None,
            });
            match found.unwrap_or(Found::Nothing) {
                Found::Nothing => from = at + 1,
                Found::Undecided => return Scanned { written, decided: at },
                Found::Word(length) => {
                    from = at + length;
                    out.extend_from_slice(&text[written..from]);
                    out.extend_from_slice(MASKED);
                    self.hiding = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::stage::Carry, *};

    fn masks(phrases: &[&str]) -> Masks {
        Masks {
            phrases: phrases.iter().map(|p| Secret::new(*p)).collect(),
            all_default_prefixes: true,
            ..Masks::default()
        }
    }

    fn masked<'a>(masks: &Masks, writes: impl IntoIterator<Item = &'a [u8]>) -> String {
        let table = Table::new(masks);
        let mut phrases = Carry::new(Phrases::new(table.phrases));
        let mut parameters = Carry::new(Parameters::default());
        let mut tokens = Carry::new(Tokens::new(table.prefixes));
        let (mut a, mut b, mut c, mut all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut step = |write: &[u8], last| {
            let text = phrases.pass(write, last, &mut a);
            let text = parameters.pass(text, last, &mut b);
            all.extend_from_slice(tokens.pass(text, last, &mut c));
        };
        writes.into_iter().for_each(|write| step(write, false));
        step(b"", true);
        String::from_utf8_lossy(&all).into_owned()
    }

    fn of(phrases: &[&str], writes: &[&str]) -> String {
        masked(&masks(phrases), writes.iter().map(|w| w.as_bytes()))
    }

    #[test]
    fn api_82_docker_185_a_value_in_two_writes_is_masked_once() {
        assert_eq!(of(&["topsecret"], &["a tops", "ecret b"]), "a [MASKED] b");
        assert_eq!(of(&["secrets"], &["s", "secrets"]), "s[MASKED]");
        assert_eq!(of(&["aab"], &["aa", "ab"]), "a[MASKED]");
    }

    #[test]
    fn api_83_docker_185_the_longest_value_is_masked_as_a_whole() {
        assert_eq!(of(&["mask", "prefix_mask"], &["prefix_mask mask"]), "[MASKED] [MASKED]");
        assert_eq!(
            of(&["foo", "bar"], &["xfoox ybary ffoo barr"]),
            "x[MASKED]x y[MASKED]y f[MASKED] [MASKED]r"
        );
        let end = ["this is the end", "en foobar", "en"];
        assert_eq!(of(&end, &["this is the en", " foobar"]), "this is the [MASKED]");
        assert_eq!(of(&end, &["this is the en"]), "this is the [MASKED]");
        assert_eq!(of(&end, &["this is the en", "d"]), "[MASKED]");
        assert_eq!(of(&["foo"], &["foofoo"]), "[MASKED][MASKED]");
    }

    #[test]
    fn values_that_overlap_show_nothing_of_either() {
        assert_eq!(of(&["abc", "cdefg"], &["xabcdefgx"]), "x[MASKED]x");
        assert_eq!(of(&["abc", "cdefg"], &["xabc", "def", "gx"]), "x[MASKED]x");
        assert_eq!(of(&["abc", "cdefg"], &["xabc", "defx"]), "x[MASKED]defx");
    }

    #[test]
    fn api_84_a_value_of_several_lines_is_masked_only_as_a_whole() {
        assert_eq!(of(&["ab\ncd"], &["ab\nab\r\ncd"]), "ab\nab\r\ncd");
        assert_eq!(of(&["ab\ncd"], &["ab\n", "cd"]), "[MASKED]");
    }

    #[test]
    fn api_85_white_space_around_a_value_is_ignored() {
        assert_eq!(of(&[" secret\n", "  ", ""], &["a secret b  "]), "a [MASKED] b  ");
    }

    #[test]
    fn api_86_docker_187_values_of_known_url_parameters_are_masked() {
        for (text, expected) in [
            ("?x-amz-SIGNATURE=abc&z=1", "?x-amz-SIGNATURE=[MASKED]&z=1"),
            ("?private_token=", "?private_token=[MASKED]"),
            (
                "a&rss_token=&z ?X-Amz-Credential=é\n",
                "a&rss_token=[MASKED]&z ?X-Amz-Credential=[MASKED]\n",
            ),
            ("&?private_token=a?rss_token=b c", "&?private_token=[MASKED]?rss_token=[MASKED] c"),
            ("?private_tokens=a ?private_token", "?private_tokens=a ?private_token"),
        ] {
            assert_eq!(of(&[], &[text]), expected);
            let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
            assert_eq!(masked(&masks(&[]), bytes), expected);
        }
    }

    #[test]
    fn api_87_a_name_outside_a_url_is_left_alone() {
        assert_eq!(of(&[], &["private_token=abc"]), "private_token=abc");
    }

    #[test]
    fn api_88_api_89_docker_186_what_follows_a_token_prefix_is_masked() {
        for (text, expected) in [
            ("xglpat-A_b.c=- end", "xglpat-[MASKED] end"),
            ("glpat- rest glpat-", "glpat- rest glpat-"),
            ("glpat-impglpat-erdiet Lorem", "glpat-[MASKED] Lorem"),
            (
                "glrtr-x glrt-y _gitlab_session=z;",
                "glrtr-[MASKED] glrt-[MASKED] _gitlab_session=[MASKED];",
            ),
        ] {
            assert_eq!(of(&[], &[text]), expected);
            let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
            assert_eq!(masked(&masks(&[]), bytes), expected);
        }
        assert_eq!(masked(&Masks::default(), [&b"glrt-a glpat-b"[..]]), "glrt-a glpat-[MASKED]");
    }

    #[test]
    fn api_90_prefixes_of_the_payload_are_masked_however_many() {
        let mut masks = masks(&[]);
        masks.prefixes = (0..40).map(|n| format!(" acme{n}pat- ")).collect();
        masks.prefixes.push("a".into());
        for n in 0..40 {
            let text = format!(":acme{n}pat-x ");
            let expected = format!(":acme{n}pat-[MASKED] ");
            assert_eq!(masked(&masks, [text.as_bytes()]), expected);
        }
        assert_eq!(masked(&masks, [&b"gloas-x"[..]]), "gloas-[MASKED]");
    }

    #[test]
    fn masks_do_not_print_their_values() {
        assert!(!format!("{:?}", masks(&["topsecret"])).contains("topsecret"));
    }

    /// Marks every byte of every value, then replaces each run of overlapping values.
    fn naive(phrases: &[String], text: &str) -> String {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for at in 0..text.len() {
            let longest = phrases
                .iter()
                .filter(|p| !p.is_empty() && text[at..].starts_with(*p))
                .map(String::len)
                .max();
            let Some(length) = longest else { continue };
            match spans.last_mut() {
                Some(span) if at < span.1 => span.1 = span.1.max(at + length),
                _ => spans.push((at, at + length)),
            }
        }
        let (mut all, mut from) = (String::new(), 0);
        for (start, end) in spans {
            all += &text[from..start];
            all += "[MASKED]";
            from = end;
        }
        all + &text[from..]
    }

    fn pieces<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<_> = cuts.iter().map(|c| c % (text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn values_are_masked_as_a_naive_search_would_at_any_split(
            phrases in proptest::collection::vec("[ab]{1,12}", 0..5),
            text in "[abc]{0,60}",
            cuts in proptest::collection::vec(0usize..1000, 0..8),
        ) {
            let masks = Masks {
                phrases: phrases.iter().map(Secret::new).collect(),
                ..Masks::default()
            };
            prop_assert_eq!(masked(&masks, pieces(&text, &cuts)), naive(&phrases, &text));
        }

        #[test]
        fn masking_does_not_depend_on_the_split(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("?private_token="), Just("&rss_token="), Just("x"), Just(" "), Just("gl"),
                    Just("glpat-"), Just("glrt-"), Just("glrtr-"), Just("secret value"), Just("val"),
                    Just("sec"), Just("x-amz-"), Just("&"), Just("\n"), Just("glr"), Just("abc t: z"),
                ], 0..12),
            cuts in proptest::collection::vec(0usize..1000, 0..8),
        ) {
            let mut masks = masks(&["secret value", "value x", "val", "?private"]);
            masks.prefixes = vec!["abc t: ".into(), "gl".into(), "glrt-sec".into()];
            let text = words.concat();
            prop_assert_eq!(masked(&masks, pieces(&text, &cuts)), masked(&masks, [text.as_bytes()]));
        }
    }
}

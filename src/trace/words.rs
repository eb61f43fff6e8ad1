//! A set of words (masked values, token prefixes) and how to find where one may begin.
//!
//! The automaton knows only the first [`LEAD`] bytes of each word, so that its size does not depend
//! on how long the words are; whether a whole word stands there is for the caller to compare. It
//! keeps no state between calls: see `stage` for what is carried from one write to the next.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};

/// How many bytes of a word the automaton knows.
const LEAD: usize = 8;

/// A set of words, none of them empty.
pub(super) struct Words {
    /// In order of their bytes, each once.
    sorted: Vec<Vec<u8>>,
    /// Finds leads; none of them begins with another.
    leads: Option<AhoCorasick>,
    /// The words of each lead, as a range of `sorted`.
    groups: Vec<Range<usize>>,
    /// By byte, the words that begin with it, as a range of `sorted`.
    initials: Box<[Range<usize>]>,
}

impl Words {
    /// Takes the words in; empty ones are dropped.
    pub(super) fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut sorted: Vec<Vec<u8>> =
            words.into_iter().filter(|w| !w.is_empty()).map(|w| w.as_bytes().to_vec()).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let mut leads: Vec<&[u8]> = Vec::new();
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut initials = vec![0..0; 256].into_boxed_slice();
        for (n, word) in sorted.iter().enumerate() {
            let initial = &mut initials[usize::from(word[0])];
            *initial = if initial.end == 0 { n..n + 1 } else { initial.start..n + 1 };
            match (leads.last(), groups.last_mut()) {
                (Some(lead), Some(group)) if word.starts_with(lead) => group.end = n + 1,
                _ => {
                    leads.push(&word[..word.len().min(LEAD)]);
                    groups.push(n..n + 1);
                }
            }
        }
        let leads = (!leads.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostFirst)
                .build(&leads)
                .expect("words of at most eight bytes fit an automaton")
        });
        Self { sorted, leads, groups, initials }
    }

    /// The first place at or after `from` where a lead stands, and the words with that lead, those
    /// that can be longest first: of two words that both begin the same text, the longer comes
    /// first, and one that only the rest of the text can decide before both.
    pub(super) fn candidate<'a>(
        &'a self,
        text: &[u8],
        from: usize,
    ) -> Option<(usize, impl Iterator<Item = &'a [u8]>)> {
        let found = self.leads.as_ref()?.find(Input::new(text).range(from..))?;
        let group = &self.sorted[self.groups[found.pattern().as_usize()].clone()];
        Some((found.start(), group.iter().rev().map(Vec::as_slice)))
    }

    /// The first place at or after `from` where `text` ends within the lead of a word, or its end.
    pub(super) fn unfinished(&self, text: &[u8], from: usize) -> usize {
        let from = from.max((text.len() + 1).saturating_sub(LEAD));
        (from..text.len()).find(|&at| self.begins_with(&text[at..])).unwrap_or(text.len())
    }

    /// Whether a word begins with `tail` and is longer.
    fn begins_with(&self, tail: &[u8]) -> bool {
        let words = &self.sorted[self.initials[usize::from(tail[0])].clone()];
        let next = words.partition_point(|word| word.as_slice() <= tail);
        words.get(next).is_some_and(|word| word.starts_with(tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_one_lead_come_longest_first() {
        let words = Words::new(["https://a", "https://a/b", "https://", "x", ""]);
        let (at, group) = words.candidate(b"see https://a/b", 0).unwrap();
        assert_eq!(at, 4);
        let group: Vec<_> = group.collect();
        assert_eq!(group, [&b"https://a/b"[..], b"https://a", b"https://"]);
    }

    #[test]
    fn an_end_that_may_become_a_word_is_found() {
        let words = Words::new(["secret", "rets and more"]);
        assert_eq!(words.unfinished(b"my sec", 0), 3);
        assert_eq!(words.unfinished(b"my secret", 0), 6);
        assert_eq!(words.unfinished(b"my secret", 7), 9);
        assert_eq!(Words::new([]).unfinished(b"abc", 0), 3);
    }
}

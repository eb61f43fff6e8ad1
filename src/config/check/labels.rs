//! Labels of a runner.

use std::collections::BTreeMap;

use crate::config::file::Section;

/// How many labels there may be.
pub(super) const MAX_LABELS: usize = 32;

/// `labels` of a table, each of them valid (GitLab Runner: `common/labels.go`).
pub(super) fn labels(section: &Section<'_>) -> BTreeMap<String, String> {
    let labels = section.map("labels");
    let table = section.table("labels");
    let word = |text: &str, extra: &str, length: std::ops::RangeInclusive<usize>| {
        length.contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    for (key, value) in &labels {
        if !word(key, "_.-", 3..=65) || key.starts_with(['.', '-']) {
            let why = "the label's name must be 3 to 65 letters, digits, `_`, `.` or `-`, and \
                       begin with a letter, a digit or `_`";
            table.problem_in_map(key, None, why);
        }
        if !word(value, "._-", 1..=256) {
            let why = "the label's value must be 1 to 256 letters, digits, `.`, `_` or `-`";
            table.problem_in_map(key, Some(value), why);
        }
    }
    check_label_count(section, &labels);
    labels
}

pub(super) fn check_label_count(section: &Section<'_>, labels: &BTreeMap<String, String>) {
    if labels.len() > MAX_LABELS {
        let why = format!("there are {} labels, at most {MAX_LABELS} are allowed", labels.len());
        section.problem("labels", None, why, "");
    }
}

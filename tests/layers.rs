//! Keeps the layers of the library: reads the `crate::` paths in `src/` and fails when a module
//! uses a later one. Good will alone keeps no code base of this size free of cycles.
//!
//! A text scan is enough: it knows comments, strings and nested `use` lists, and nothing of
//! macros. Paths to another top-level module cannot be written any other way than from `crate`,
//! but for `super::` in a module file at the top, which is found too.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The modules; each may use only those before it. Of several that a path begins with, the longest
/// counts.
const LAYERS: [&str; 22] = [
    "base",
    "runner::metrics",
    "config",
    "gitlab::api",
    "workload::job",
    "helper::protocol",
    "workload",
    "trace",
    "ledger",
    "archive",
    "guard",
    "executor::docker::engine",
    "helper",
    "executor",
    "runner",
    "gitlab",
    "daemon::listen",
    "daemon",
    "local",
    "cli",
    "main",
    "lib",
];

fn place(path: &str) -> Option<usize> {
    let holds = |layer: &str| {
        path.strip_prefix(layer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let layers = LAYERS.iter().enumerate().filter(|(_, layer)| holds(layer));
    layers.max_by_key(|(_, layer)| layer.len()).map(|(place, _)| place)
}

/// `source` without comments, and with the insides of string and character literals blanked.
fn without_comments_and_literals(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            '/' if at(i + 1) == '/' => {
                while i < text.len() && text[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 1;
                i += 2;
                while i < text.len() && depth > 0 {
                    match (text[i], at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                }
                out.push(' ');
            }
            '"' => {
                i += 1;
                while i < text.len() && text[i] != '"' {
                    i += if text[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
                out.push_str("\"\"");
            }
            'r' if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_')
                || out.ends_with('b') =>
            {
                let hashes = text[i + 1..].iter().take_while(|c| **c == '#').count();
                if at(i + 1 + hashes) == '"' {
                    let end: Vec<char> =
                        std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                    i += 2 + hashes;
                    while i < text.len() && !text[i..].starts_with(&end) {
                        i += 1;
                    }
                    i += end.len();
                    out.push_str("\"\"");
                } else {
                    out.push('r');
                    i += 1;
                }
            }
            // A character, not a lifetime.
            '\'' if at(i + 1) == '\\' => {
                i += 3;
                while i < text.len() && text[i] != '\'' {
                    i += 1;
                }
                i += 1;
            }
            '\'' if at(i + 2) == '\'' => i += 3,
            c => {
                out.push(c);
                i += 1;
            }
        }
    }
    out
}

/// The paths after `crate::` in `source`: as they are, and of nested lists.
fn used(source: &str) -> BTreeSet<String> {
    let text = without_comments_and_literals(source);
    let mut found = BTreeSet::new();
    for (position, _) in text.match_indices("crate") {
        let before = text[..position].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = text[position + "crate".len()..].trim_start();
        if let Some(rest) = rest.strip_prefix("::") {
            paths("", rest, &mut found);
        }
    }
    found
}

/// The path that `text` begins with, or those of its list, each after `before`.
fn paths(before: &str, text: &str, found: &mut BTreeSet<String>) {
    let text = text.trim_start();
    if let Some(list) = text.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' if depth == 0 => {
                    paths(before, &list[start..i], found);
                    start = i + 1;
                }
                '}' => return paths(before, &list[start..i], found),
                _ => {}
            }
        }
        return;
    }
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() {
        return;
    }
    let path = if before.is_empty() { name.clone() } else { format!("{before}::{name}") };
    match text[name.len()..].trim_start().strip_prefix("::") {
        Some(rest) => paths(&path, rest, found),
        None => drop(found.insert(path)),
    }
}

/// What is wrong in one file of the top-level module `module`, `depth` modules below the root.
fn violations(module: &str, source: &str, depth: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(own) = place(module) else {
        return vec![format!("`{module}` has no place among the layers")];
    };
    for name in used(source) {
        match place(&name) {
            Some(other) if other > own => {
                wrong.push(format!("`{module}` uses `{name}`, which comes later"));
            }
            _ => {}
        }
    }
    // As many `super` as the file is deep are the root. Lines that are indented are in inline
    // modules (tests, mostly), one deeper.
    for line in without_comments_and_literals(source).lines() {
        let path = line.split_once("use ").map_or("", |(_, path)| path);
        let up = path.split("::").take_while(|part| *part == "super").count();
        if !line.starts_with(' ') && up >= depth {
            wrong.push(format!("`{module}` uses `super::` for the crate's root"));
        }
    }
    wrong
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_module_uses_a_later_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 3, "found only {files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let parts: Vec<_> =
            relative.with_extension("").iter().map(|p| p.to_str().unwrap().to_owned()).collect();
        if parts == ["lib"] {
            continue;
        }
        let depth = parts.iter().filter(|part| *part != "mod").count();
        let source = fs::read_to_string(&file).unwrap();
        let module: Vec<_> = parts.iter().filter(|part| *part != "mod").cloned().collect();
        for problem in violations(&module.join("::"), &source, depth) {
            wrong.push(format!("{}: {problem}", relative.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_lists_and_nested_lists_are_found() {
    let names = |source: &str| used(source).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::ids::JobId;"), ["ids::JobId"]);
    assert_eq!(
        names("use crate::{ids::{JobId, ShortToken}, secret};"),
        ["ids::JobId", "ids::ShortToken", "secret"]
    );
    assert_eq!(names("pub(crate) fn f() -> crate :: api::X {}"), ["api::X"]);
    assert_eq!(
        names("use crate::{\n  docker::{a::{b, c}, d},\n  plan as p,\n  trace::*,\n};"),
        ["docker::a::b", "docker::a::c", "docker::d", "plan"]
    );
    assert_eq!(names("use crate::{{job}, ledger,};"), ["job", "ledger"]);
}

#[test]
fn comments_and_literals_are_not_code() {
    for source in [
        "// crate::daemon",
        "/* crate::daemon /* crate::cli */ crate::exec */",
        "let s = \"crate::daemon \\\" crate::cli\";",
        "let s = r#\"crate::daemon \" crate::cli\"#;",
        "let s = br\"crate::daemon\";",
        "mycrate::daemon(); $crate::daemon!();",
    ] {
        assert!(used(source).is_empty(), "{source}");
    }
    let after = "let q = '\"'; let n = '\\n'; let l: &'static str = f::<'a>(); crate::daemon::x()";
    assert_eq!(used(after).into_iter().collect::<Vec<_>>(), ["daemon::x"]);
}

#[test]
fn a_later_module_and_the_root_by_super_are_reported() {
    let of = |module, source, depth| violations(module, source, depth).len();
    assert_eq!(of("workload", "use crate::{base::ids, config::Config};", 1), 0);
    assert_eq!(of("workload", "use crate::{base::ids, trace::Mask};", 1), 1);
    assert_eq!(of("workload", "use crate::gitlab::api::Client;", 1), 0);
    assert_eq!(of("workload", "use crate::gitlab::poll;", 1), 1);
    assert_eq!(of("workload", "use super::base::ids;", 1), 1);
    assert_eq!(of("workload::cache", "pub(crate) use super::super::base::ids;", 2), 1);
    assert_eq!(of("workload::cache", "use super::script;", 2), 0);
    assert_eq!(of("workload", "mod tests {\n    use super::*;\n}", 1), 0);
    assert_eq!(violations("colour", "", 1).len(), 1);
}

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

/// The top-level modules; each may use only those before it.
const LAYERS: [&str; 21] = [
    "ids", "causes", "secret", "metrics", "config", "api", "job", "protocol", "plan", "trace",
    "ledger", "docker", "proxy", "transfer", "helper", "executor", "runner", "daemon", "exec",
    "cli", "main",
];

fn place(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == module)
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

/// The first names after `crate::` in `source`: of paths, and of nested lists.
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
            first_names(rest, &mut found);
        }
    }
    found
}

/// The name that `path` begins with, or the names its list's entries begin with.
fn first_names(path: &str, found: &mut BTreeSet<String>) {
    let path = path.trim_start();
    let Some(list) = path.strip_prefix('{') else {
        let name: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !name.is_empty() {
            found.insert(name);
        }
        return;
    };
    let (mut depth, mut start) = (0, 0);
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                first_names(&list[start..i], found);
                start = i + 1;
            }
            '}' => {
                first_names(&list[start..i], found);
                return;
            }
            _ => {}
        }
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
        for problem in violations(&parts[0], &source, depth) {
            wrong.push(format!("{}: {problem}", relative.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_lists_and_nested_lists_are_found() {
    let names = |source: &str| used(source).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::ids::JobId;"), ["ids"]);
    assert_eq!(names("use crate::{ids::{JobId, ShortToken}, secret};"), ["ids", "secret"]);
    assert_eq!(names("pub(crate) fn f() -> crate :: api::X {}"), ["api"]);
    assert_eq!(
        names("use crate::{\n  docker::{a::{b, c}, d},\n  plan as p,\n  trace::*,\n};"),
        ["docker", "plan", "trace"]
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
    assert_eq!(used(after).into_iter().collect::<Vec<_>>(), ["daemon"]);
}

#[test]
fn a_later_module_and_the_root_by_super_are_reported() {
    assert!(violations("plan", "use crate::{ids, job::Job};", 1).is_empty());
    assert_eq!(violations("plan", "use crate::{ids, trace::Mask};", 1).len(), 1);
    assert_eq!(violations("plan", "use super::job::Job;", 1).len(), 1);
    assert_eq!(violations("plan", "pub(crate) use super::super::job::Job;", 2).len(), 1);
    assert!(violations("plan", "use super::script;", 2).is_empty());
    assert!(violations("plan", "mod tests {\n    use super::*;\n}", 1).is_empty());
    assert_eq!(violations("colour", "", 1).len(), 1);
}

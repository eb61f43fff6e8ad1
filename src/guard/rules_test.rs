//! Each rule that the code cites stands in `docs/guard.md`, where readers of a refusal look for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_rule_that_is_cited_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/guard.md")).unwrap();
    let definition = Regex::new(r"(?m)^\| (G-\d+) \| .+ \|$").unwrap();
    let numbers: Vec<&str> =
        definition.captures_iter(&page).map(|found| found.get(1).unwrap().as_str()).collect();
    let defined: BTreeSet<&str> = numbers.iter().copied().collect();
    assert_eq!(defined.len(), numbers.len(), "a rule is explained twice");

    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let citation = Regex::new(r"\bG-\d+\b").unwrap();
    let mut missing = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for rule in citation.find_iter(&text) {
            if !defined.contains(rule.as_str()) {
                missing.insert(rule.as_str().to_owned(), file.clone());
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/guard.md: {missing:?}");
}

//! Checks that what is cited exists: comments name pages and headings (`docs/compatibility.md,
//! "Labels"`), and pages link to files and headings.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Pages that are linked to before they are written. Remove an entry once its page is there.
const UNWRITTEN: &[&str] = &[];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `directory` whose names end in `.extension`.
fn files(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// The headings of a page.
fn headings(page: &str) -> Vec<&str> {
    let titles = page.lines().filter_map(|line| line.split_once("# "));
    titles.filter(|(marks, _)| marks.chars().all(|c| c == '#')).map(|(_, title)| title).collect()
}

/// The last part of a link to a heading (GitHub and GitLab).
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The pages that `source` cites, each with the headings that are named after it.
fn citations(source: &str) -> Vec<(String, Vec<String>)> {
    let lines = source.lines().map(|line| line.trim_start().trim_start_matches(['/', '!']).trim());
    let text = lines.collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for (start, _) in text.match_indices("docs/") {
        let Some((name, rest)) = text[start..].split_once(".md") else { continue };
        let is_of_another_project = text[..start].ends_with(": `");
        if is_of_another_project
            || !name.chars().all(|c| c.is_ascii_lowercase() || "/-".contains(c))
        {
            continue;
        }
        let mut rest = rest.trim_start_matches('`');
        let mut headings = Vec::new();
        while let Some((heading, after)) = [", \"", " and \""]
            .iter()
            .find_map(|before| rest.strip_prefix(before))
            .and_then(|quoted| quoted.split_once('"'))
        {
            headings.push(heading.to_owned());
            rest = after;
        }
        found.push((format!("{name}.md"), headings));
    }
    found
}

/// The targets of the links of a page that lead to files of the repository or to its own headings.
fn links(page: &str) -> impl Iterator<Item = &str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target).filter(|target| !target.contains("://"))
}

#[test]
fn what_comments_cite_exists() {
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    files(&root().join("tests"), "rs", &mut sources);
    let mut wrong = Vec::new();
    for file in sources.iter().filter(|file| !file.ends_with("tests/docs.rs")) {
        for (page, cited) in citations(&fs::read_to_string(file).unwrap()) {
            let text = fs::read_to_string(root().join(&page)).unwrap_or_default();
            if text.is_empty() {
                wrong.push(format!("{}: there is no {page}", file.display()));
            }
            let known = headings(&text);
            for heading in cited.iter().filter(|heading| !known.contains(&heading.as_str())) {
                wrong.push(format!("{}: {page} has no heading \"{heading}\"", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_of_pages_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    files(&root().join("docs"), "md", &mut pages);
    files(&root().join("tests"), "md", &mut pages);
    let mut wrong = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text).filter(|link| !UNWRITTEN.contains(link)) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            let is_there = heading.is_empty()
                || fs::read_to_string(&target)
                    .is_ok_and(|text| headings(&text).iter().any(|title| anchor(title) == heading));
            if !target.exists() || !is_there {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn citations_may_be_broken_over_lines() {
    let source = "/// Labels (docs/compatibility.md,\n    /// \"The shell\n    /// of a job\" and \
                  \"B\").\n//! See `docs/guard.md`, \"C\".\n// moby/moby: `docs/other.md`";
    let of = |page: &str, headings: &[&str]| {
        (format!("docs/{page}.md"), headings.iter().map(|h| (*h).to_owned()).collect())
    };
    let expected = [of("compatibility", &["The shell of a job", "B"]), of("guard", &["C"])];
    assert_eq!(citations(source), expected);
    assert_eq!(headings("# A\ntext # b\n## C d"), ["A", "C d"]);
    assert_eq!(anchor("Caches and `forks`"), "caches-and-forks");
}

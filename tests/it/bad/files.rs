//! Artifacts that would be read or written outside the project.

use std::io::{Cursor, Write};

use serde_json::json;
use zip::write::SimpleFileOptions;

use crate::{
    engine::engine,
    gitlab::{Upload, job},
    longshore::Case,
};

#[tokio::test(flavor = "multi_thread")]
async fn docker_165_artifact_paths_outside_the_project_are_named_and_not_sent() {
    let case = Case::start().await;
    let artifact = |paths: &[&str]| {
        json!({"name": "x", "paths": paths, "when": "on_success", "artifact_type": "archive",
               "artifact_format": "zip"})
    };
    let outside = ["../../secret", "/etc/passwd", "link/passwd"];
    let script = ["echo s > ../../secret", "ln -s /etc link"];
    let ended = case.run(job(&script).artifact(artifact(&outside))).await;
    ended.assert_success();
    for path in &outside[..2] {
        let warning = format!("artifact path is not a subpath of project directory: {path}");
        ended.assert_contains(&warning);
    }
    ended.assert_contains("No files to upload");
    assert!(ended.uploads.is_empty(), "{}", ended.story());
    engine().nothing_left_of(ended.id).await;
}

/// A zip with these entries; one with a target is a link.
fn archive(entries: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    for (name, target) in entries {
        match target {
            Some(target) => zip.add_symlink(*name, *target, options).unwrap(),
            None => {
                zip.start_file(*name, options).unwrap();
                zip.write_all(b"evil").unwrap();
            }
        }
    }
    zip.finish().unwrap().into_inner()
}

/// A job that is handed the archive fails with the entry's name, and writes nothing to `outside`.
async fn is_refused(entries: &[(&str, Option<&str>)], named: &str) {
    let case = Case::start().await;
    let mut earlier = case.run(job(&["true"])).await;
    earlier.assert_success();
    let upload = Upload {
        filename: "artifacts.zip".to_owned(),
        content: archive(entries),
        query: "artifact_format=zip&artifact_type=archive".to_owned(),
    };
    earlier.uploads.push(upload.clone());
    case.gitlab.with(|state| state.jobs.get_mut(&earlier.id).unwrap().uploads.push(upload));
    let ended = case.run(job(&["echo never"]).depends_on(&earlier)).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains(named);
    ended.assert_no_line("never");
    engine().nothing_left_of(ended.id).await;
    // The volume of the sources is kept for the next job of the slot: what was written would be
    // there.
    let look = ["find / -xdev -name evil-entry; find /builds -name evil-entry", "echo looked"];
    let next = case.run(job(&look)).await;
    next.assert_success();
    next.assert_lines(&["looked"]);
    next.assert_no_line("evil-entry");
    assert!(!next.plain().lines().any(|line| line.ends_with("/evil-entry")), "{}", next.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_175_an_entry_above_the_project_is_refused() {
    let name = "../../evil-entry";
    is_refused(&[(name, None)], name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_175_an_absolute_entry_is_refused_or_stays_inside() {
    let name = "/builds/evil-entry";
    is_refused(&[(name, None)], name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_175_an_entry_through_a_link_is_refused() {
    is_refused(&[("way", Some("/builds")), ("way/evil-entry", None)], "way").await;
}

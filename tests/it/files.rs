//! Sources, artifacts and caches.

use std::io::{Cursor, Read};

use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};

use crate::{
    engine::engine,
    gitlab::{Endpoint, Fault, Upload, job},
    longshore::Case,
};

fn archive(name: &str, paths: &[&str], when: &str) -> Value {
    json!({"name": name, "paths": paths, "when": when, "artifact_type": "archive",
           "artifact_format": "zip", "expire_in": "1 week"})
}

fn unzip(upload: &Upload) -> zip::ZipArchive<Cursor<&[u8]>> {
    zip::ZipArchive::new(Cursor::new(upload.content.as_slice())).unwrap()
}

fn names(upload: &Upload) -> Vec<String> {
    unzip(upload).file_names().map(|name| name.unwrap().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_137_194_the_jobs_commit_is_checked_out_though_the_branch_has_moved() {
    let case = Case::start().await;
    let wanted = case.gitlab.commit("group/src", &[("dir/file.txt", "content-42\n")]);
    case.gitlab.commit("group/src", &[("dir/file.txt", "later\n")]);
    let script =
        ["cat dir/file.txt", "cat .git/HEAD", "test \"$PWD\" = \"$CI_PROJECT_DIR\" && echo same"];
    let ended = case.run(job(&script).sources("group/src", &wanted)).await;
    ended.assert_success();
    ended.assert_lines(&["content-42", &wanted, "same"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_130_134_the_next_job_reuses_the_copy_without_what_was_left_in_it() {
    let case = Case::start().await;
    let sha = case.gitlab.commit("group/reuse", &[("a.txt", "1\n")]);
    let hook =
        "mkdir -p .git/hooks && printf '#!/bin/sh\\necho hooked\\n' > .git/hooks/post-checkout";
    let script = [
        "touch .git/was-here untracked",
        hook,
        "chmod 755 .git/hooks/post-checkout",
        "echo changed > a.txt",
    ];
    case.run_over(job(&script).sources("group/reuse", &sha)).await.assert_success();
    let script =
        ["test -e .git/was-here && echo reused", "test ! -e untracked && echo clean", "cat a.txt"];
    let ended = case.run(job(&script).sources("group/reuse", &sha)).await;
    ended.assert_success();
    ended.assert_lines(&["reused", "clean", "1"]);
    ended.assert_no_line("hooked");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_135_no_credentials_stand_in_the_remotes_address() {
    let case = Case::start().await;
    let sha = case.gitlab.commit("group/origin", &[("a.txt", "1\n")]);
    let script = ["if grep \"$CI_JOB_TOKEN\" .git/config; then echo found; else echo none; fi"];
    let ended = case.run(job(&script).sources("group/origin", &sha)).await;
    ended.assert_success();
    ended.assert_lines(&["none"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_131_a_clone_starts_from_an_empty_directory() {
    let case = Case::start().await;
    let sha = case.gitlab.commit("group/clone", &[("a.txt", "1\n")]);
    let first = job(&["touch .git/was-here"]).sources("group/clone", &sha);
    case.run_over(first).await.assert_success();
    let second = job(&["test ! -e .git/was-here && cat a.txt"]).sources("group/clone", &sha);
    let ended = case.run(second.variable("GIT_STRATEGY", "clone")).await;
    ended.assert_success();
    ended.assert_lines(&["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_had_fail_the_job_without_its_script() {
    let case = Case::start().await;
    let spec = job(&["echo never"]).after(&["echo neither"]);
    let ended = case.run(spec.sources("group/missing", &"1".repeat(40))).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_no_line("never");
    ended.assert_no_line("neither");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_136_docker_164_168_172_an_archive_has_what_was_asked_for_with_its_modes() {
    let case = Case::start().await;
    let mut wanted = archive("bundle", &["out/"], "on_success");
    wanted["exclude"] = json!(["out/**/*.tmp"]);
    let script = [
        "mkdir -p out/sub && echo one > out/one.txt && echo two > out/sub/.two && echo no > out/sub/x.tmp",
        "mkdir -p .git/hooks && printf '#!/bin/sh\\n' > out/tool && chmod 755 out/tool",
    ];
    let ended = case.run(job(&script).artifact(wanted)).await;
    ended.assert_success();
    let [upload] = ended.uploads.as_slice() else { panic!("{}", ended.story()) };
    assert_eq!(upload.filename, "bundle.zip");
    assert_eq!(upload.query, "artifact_format=zip&artifact_type=archive&expire_in=1+week");
    let mut zip = unzip(upload);
    let names = names(upload);
    for name in ["out/one.txt", "out/sub/.two", "out/tool"] {
        assert!(names.iter().any(|n| n == name), "{name} is not in {names:?}");
    }
    assert!(!names.iter().any(|n| n == "out/sub/x.tmp"), "{names:?}");
    assert_eq!(zip.by_name("out/tool").unwrap().unix_mode().unwrap() & 0o777, 0o755);
    let mut one = String::new();
    zip.by_name("out/one.txt").unwrap().read_to_string(&mut one).unwrap();
    assert_eq!(one, "one\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_143_docker_8_169_a_failed_job_uploads_what_is_meant_for_failures() {
    let case = Case::start().await;
    let report = json!({"name": "junit.xml", "paths": ["junit.xml"], "when": "always",
        "artifact_type": "junit", "artifact_format": "gzip"});
    let spec = job(&["echo l > log.txt; echo '<x/>' > junit.xml; exit 1"])
        .artifact(archive("logs", &["log.txt"], "on_failure"))
        .artifact(archive("good", &["log.txt"], "on_success"))
        .artifact(report);
    let ended = case.run(spec).await;
    ended.assert_failed("script_failure", Some(1));
    let uploaded: Vec<_> = ended.uploads.iter().map(|upload| upload.filename.as_str()).collect();
    assert_eq!(uploaded, ["logs.zip", "junit.xml.gz"], "{}", ended.story());
    let mut junit = String::new();
    MultiGzDecoder::new(ended.uploads[1].content.as_slice()).read_to_string(&mut junit).unwrap();
    assert_eq!(junit, "<x/>\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_138_docker_166_artifacts_that_match_nothing_are_told_of_and_not_sent() {
    let case = Case::start().await;
    let ended = case.run(job(&["true"]).artifact(archive("x", &["none/"], "on_success"))).await;
    ended.assert_success();
    assert!(ended.uploads.is_empty());
    ended.assert_contains("none/");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_sent_again_after_server_errors() {
    let case = Case::start().await;
    case.gitlab.fault(Endpoint::Upload, Fault::status(503));
    case.gitlab.fault(Endpoint::Upload, Fault::status(500));
    let spec = job(&["echo f > f"]).artifact(archive("x", &["f"], "on_success"));
    let ended = case.run(spec).await;
    ended.assert_success();
    assert_eq!(names(&ended.uploads[0]), ["f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_139_docker_11_171_an_upload_that_is_too_large_fails_the_job_at_once() {
    let case = Case::start().await;
    case.gitlab.fault(Endpoint::Upload, Fault::status(413));
    let spec = job(&["echo f > f"]).artifact(archive("x", &["f"], "on_success"));
    let ended = case.run(spec).await;
    ended.assert_failed("script_failure", Some(1));
    assert!(ended.uploads.is_empty(), "it was tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_144_145_docker_173_a_later_job_finds_the_artifacts_of_an_earlier_one() {
    let case = Case::start().await;
    let spec = job(&["mkdir d && echo carried > d/f && chmod 750 d/f"]);
    let one = case.run(spec.artifact(archive("x", &["d"], "on_success"))).await;
    one.assert_success();
    let bare = case.run(job(&["true"])).await;
    let two =
        case.run(job(&["cat d/f", "stat -c %a d/f"]).depends_on(&bare).depends_on(&one)).await;
    two.assert_success();
    two.assert_lines(&["carried", "750"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_147_a_download_is_tried_again_after_a_server_error() {
    let case = Case::start().await;
    let spec = job(&["echo carried > f"]).artifact(archive("x", &["f"], "on_success"));
    let one = case.run(spec).await;
    case.gitlab.fault(Endpoint::Download, Fault::status(500));
    let two = case.run(job(&["cat f"]).depends_on(&one)).await;
    two.assert_success();
    two.assert_lines(&["carried"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_156_163_a_cache_comes_back_under_its_key_alone() {
    let case = Case::start().await;
    let cache = |key: &str, policy: &str| {
        json!({"key": key, "paths": ["deps/"], "policy": policy, "when": "on_success",
               "untracked": false, "fallback_keys": []})
    };
    let look = "ls deps 2>/dev/null || echo cold";
    let fill = "mkdir -p deps && echo v1 > deps/f && chmod 711 deps/f && ln -s f deps/link";
    let first = case.run(job(&[look, fill]).cache(cache("k1", "pull-push"))).await;
    first.assert_success();
    first.assert_lines(&["cold"]);
    let script = ["cat deps/link", "stat -c %a deps/f", "echo v2 > deps/f"];
    let second = case.run(job(&script).cache(cache("k1", "pull"))).await;
    second.assert_success();
    second.assert_lines(&["v1", "711"]);
    let third = case.run(job(&["cat deps/f"]).cache(cache("k1", "pull"))).await;
    third.assert_lines(&["v1"]);
    let other = case.run(job(&[look]).cache(cache("k2", "pull-push"))).await;
    other.assert_success();
    other.assert_lines(&["cold"]);
    let pushed = case.run(job(&[look]).cache(cache("k1", "push"))).await;
    pushed.assert_success();
    pushed.assert_lines(&["cold"]);
}

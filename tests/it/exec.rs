//! `longshore exec`: pipelines without a server, from the examples that the README names.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use crate::engine::engine;

/// Exit code and all that was said.
async fn exec(file: &Path, state: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .arg("exec")
        .arg("--file")
        .arg(file)
        .arg("--state-dir")
        .arg(state)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("DOCKER_HOST", &engine().host)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Runs an example, which must succeed and say each of `wanted`.
async fn example(name: &str, state: &Path, wanted: &[&str]) {
    let file = Path::new("tests/examples").join(name).join(".gitlab-ci.yml");
    let (code, said) = exec(&file, state).await;
    assert_eq!(code, Some(0), "{said}");
    for text in wanted {
        assert!(said.contains(text), "no `{text}` in:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hello_example_runs() {
    let state = tempfile::tempdir().unwrap();
    example("hello", state.path(), &["hello from hello"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_example_reaches_its_service() {
    let state = tempfile::tempdir().unwrap();
    example("services", state.path(), &["served"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_artifacts_example_hands_a_file_from_job_to_job() {
    let state = tempfile::tempdir().unwrap();
    example("artifacts", state.path(), &["cat out/built-at", "UTC"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_example_is_warm_the_second_time() {
    let state = tempfile::tempdir().unwrap();
    example("cache", state.path(), &["cold"]).await;
    example("cache", state.path(), &["warm, filled at"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_whose_job_fails_exits_with_1_and_a_wrong_one_with_2() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(".gitlab-ci.yml");
    for (text, expected) in [
        ("j: {image: 'busybox:latest', script: ['echo in-j', 'exit 3']}", 1),
        ("j: {image: 'busybox:latest', script: {not: 'a list'}}", 2),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, said) = exec(&file, directory.path()).await;
        assert_eq!(code, Some(expected), "{text}: {said}");
    }
}

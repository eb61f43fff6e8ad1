//! `longshore exec`: pipelines without a server, from the examples that the README names.

use std::{path::Path, process::Stdio};

use tempfile::TempDir;
use tokio::process::Command;

use crate::engine::engine;

const FILE: &str = ".gitlab-ci.yml";

/// Runs the pipeline `file` of the project in `project`: exit code and all that was said.
async fn exec(project: &Path, file: &str, state: &Path, options: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["exec", "--file", file, "--state-dir"])
        .arg(state)
        .args(options)
        .current_dir(project)
        .env("DOCKER_HOST", &engine().host)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// An example in a project of its own.
struct Example {
    project: TempDir,
    state: TempDir,
}

impl Example {
    fn new(name: &str) -> Self {
        Self::with(&std::fs::read_to_string(path(name)).unwrap())
    }

    fn with(pipeline: &str) -> Self {
        let (project, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(project.path().join(FILE), pipeline).unwrap();
        Self { project, state }
    }

    /// Runs it to `code`; it must say each of `wanted`.
    async fn run(&self, code: i32, wanted: &[&str]) {
        self.run_with(&[], code, wanted).await;
    }

    async fn run_with(&self, options: &[&str], code: i32, wanted: &[&str]) {
        let (found, said) = exec(self.project.path(), FILE, self.state.path(), options).await;
        assert_eq!(found, Some(code), "{said}");
        for text in wanted {
            assert!(said.contains(text), "no `{text}` in:\n{said}");
        }
    }
}

fn path(example: &str) -> String {
    format!("{}/tests/examples/{example}/{FILE}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hello_example_runs_as_the_readme_has_it() {
    let state = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (code, said) = exec(root, "tests/examples/hello/.gitlab-ci.yml", state.path(), &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("hello from hello"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_example_reaches_its_service() {
    Example::new("services").run(0, &["served"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dind_example_builds_an_image_on_a_daemon_of_its_own() {
    engine().needs_dind();
    Example::new("dind").run(0, &["a daemon of its own (docker:dind)", "inner"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dood_example_uses_the_guarded_socket_of_the_host() {
    engine().needs_dind();
    let socket = ["--volume", "/var/run/docker.sock:/var/run/docker.sock"];
    let wanted = ["docker.sock, guarded", "Dockerfile", "mine is all that runs here"];
    Example::new("dood").run_with(&socket, 0, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_artifacts_example_hands_a_file_from_job_to_job() {
    Example::new("artifacts").run(0, &["cat out/built-at", "UTC"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_example_is_warm_the_second_time() {
    let example = Example::new("cache");
    example.run(0, &["cold"]).await;
    example.run(0, &["warm, filled at"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_whose_job_fails_exits_with_1_and_a_wrong_one_with_2() {
    let failing = "j: {image: 'busybox:latest', script: ['echo in-j', 'exit 3']}";
    Example::with(failing).run(1, &["in-j"]).await;
    Example::with("j: {image: 'busybox:latest', script: {not: 'a list'}}").run(2, &["j"]).await;
}

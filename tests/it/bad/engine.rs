//! Engines that are not there, go away, say nothing, or are too old.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

use crate::{
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
};

/// A socket in front of the engine that can be taken away and put back.
struct Door {
    directory: TempDir,
    server: JoinSet<()>,
}

impl Door {
    /// One that is not there yet.
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), server: JoinSet::new() }
    }

    fn open() -> Self {
        let mut door = Self::new();
        door.put_back();
        door
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    fn options(&self) -> Options {
        let engine = Some(format!("unix://{}", self.socket().display()));
        Options { engine, ..Options::default() }
    }

    /// Every connection breaks, and no new one can be made.
    async fn take_away(&mut self) {
        self.server.shutdown().await;
        std::fs::remove_file(self.socket()).unwrap();
    }

    fn put_back(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        self.server.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let mut upstream = UnixStream::connect(engine().socket()).await.unwrap();
                    // Either side may go away; there is nobody to tell.
                    drop(copy_bidirectional(&mut client, &mut upstream).await);
                });
            }
        });
    }

    /// Connections are taken, and nothing is ever answered.
    fn go_silent(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        self.server.spawn(async move {
            let mut held = Vec::new();
            loop {
                held.push(listener.accept().await.unwrap());
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_18_without_an_engine_a_job_fails_after_three_tries_and_the_next_one_works_with_it()
{
    let mut door = Door::new();
    let case = Case::with(door.options()).await;
    let begun = Instant::now();
    let ended = case.run(job(&["echo never"])).await;
    ended.assert_failed("runner_system_failure", None);
    assert_eq!(ended.plain().matches("Preparation failed: ").count(), 2, "{}", ended.story());
    assert_eq!(ended.plain().matches("Will be retried in 3s").count(), 2, "{}", ended.story());
    assert!(begun.elapsed() >= Duration::from_secs(6), "the tries are not 3 s apart");
    ended.assert_contains("no Docker engine answers at");
    ended.assert_contains("hint: is the Docker engine running");
    ended.assert_no_line("never");
    door.put_back();
    let ended = case.run(job(&["echo works"])).await;
    ended.assert_success();
    ended.assert_lines(&["works"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_comes_between_two_tries_is_enough() {
    let mut door = Door::new();
    let case = Case::with(door.options()).await;
    let id = case.gitlab.submit(job(&["echo works"]));
    case.gitlab.until_output(id, "Will be retried").await;
    door.put_back();
    case.gitlab.ended(id).await.assert_success();
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_194_a_job_whose_engine_goes_away_fails_soon_and_nothing_of_it_stays() {
    let mut door = Door::open();
    let case = Case::with(door.options()).await;
    let id = case.gitlab.submit(job(&["echo started; while sleep 1; do echo tick; done"]));
    case.gitlab.until_output(id, "tick\n").await;
    door.take_away().await;
    let cut = Instant::now();
    let ended = case.gitlab.ended(id).await;
    assert!(cut.elapsed() < Duration::from_secs(20), "it took {:?}", cut.elapsed());
    ended.assert_failed("runner_system_failure", None);
    ended.assert_lines(&["started"]);
    ended.assert_contains("hint: is the Docker engine running");
    assert!(!engine().running_containers(id).is_empty(), "the cut came too late");
    door.put_back();
    // Without a restart, and without another job.
    engine().nothing_left_of(id).await;
    let next = case.run(job(&["echo works"])).await;
    next.assert_success();
    engine().nothing_left_of(next.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_that_went_away_keeps_is_removed_by_the_next_start() {
    let mut door = Door::open();
    let mut case = Case::with(door.options()).await;
    let id = case.gitlab.submit(job(&["echo started; while sleep 1; do echo tick; done"]));
    case.gitlab.until_output(id, "tick\n").await;
    door.take_away().await;
    case.gitlab.ended(id).await.assert_failed("runner_system_failure", None);
    case.signal(rustix::process::Signal::TERM);
    case.exit().await;
    assert!(!engine().running_containers(id).is_empty(), "the cut came too late");
    door.put_back();
    case.gitlab.allow_jump(id);
    case.restart();
    engine().nothing_left_of(id).await;
    case.run(job(&["true"])).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_says_nothing_costs_a_job_no_more_than_its_time() {
    let mut door = Door::new();
    door.go_silent();
    let case = Case::with(door.options()).await;
    let ended = case.run(job(&["echo never"]).timeout(4)).await;
    ended.assert_failed("job_execution_timeout", None);
    door.take_away().await;
    door.put_back();
    let next = case.run(job(&["echo works"])).await;
    next.assert_success();
    engine().nothing_left_of(next.id).await;
}

/// Answers every request on the socket with `body`.
fn answering(path: &Path, body: &'static str) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let exchange = async {
                let _ = client.read(&mut request).await?;
                client.write_all(answer.as_bytes()).await?;
                client.shutdown().await
            };
            if let Err(error) = exchange.await {
                assert_ne!(error.kind(), ErrorKind::Other, "{error}");
            }
        }
    });
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_19_an_engine_that_is_too_old_is_named_at_once() {
    let door = Door::new();
    let body = r#"{"Version": "1.8.0", "ApiVersion": "1.20", "Os": "linux", "Arch": "amd64"}"#;
    let _server = answering(&door.socket(), body);
    let case = Case::with(door.options()).await;
    let ended = case.run(job(&["echo never"])).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("speaks API 1.20, the oldest supported is 1.30");
    assert!(!ended.plain().contains("Will be retried"), "{}", ended.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_23_an_engine_for_other_containers_is_named_at_once() {
    let door = Door::new();
    let body = r#"{"Version": "27.0.0", "ApiVersion": "1.46", "Os": "windows", "Arch": "amd64"}"#;
    let _server = answering(&door.socket(), body);
    let case = Case::with(door.options()).await;
    let ended = case.run(job(&["echo never"])).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("runs windows containers, only linux is supported");
    assert!(!ended.plain().contains("Will be retried"), "{}", ended.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn something_that_is_no_engine_is_told_from_one() {
    let door = Door::new();
    let _server = answering(&door.socket(), "<html>hello</html>");
    let case = Case::with(door.options()).await;
    let ended = case.run(job(&["echo never"])).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("no Docker engine answers at");
}

//! A build host whose disk is full.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    engine::{UNTIL_GO, engine},
    gitlab::job,
    longshore::{Case, Options},
};

/// A small disk of its own.
struct Disk {
    directory: TempDir,
}

impl Disk {
    /// `None` for anyone but root, who alone may mount.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(directory.path())
            .status();
        assert!(mount.unwrap().success(), "cannot mount");
        Some(Self { directory })
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn ballast(&self) -> PathBuf {
        self.directory.path().join("ballast")
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            let piece = vec![b'x'; size];
            loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    async fn case(&self) -> Case {
        Case::with(Options { state: Some(self.state()), ..Options::default() }).await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: longshore may hold a file for a moment more.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.directory.path()).status();
        if !std::thread::panicking() {
            assert!(unmounted.unwrap().success(), "cannot unmount");
        }
    }
}

fn jobs(state: &Path) -> usize {
    fs::read_dir(state.join("jobs")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_finds_the_disk_full_fails_with_that_reason() {
    let Some(disk) = Disk::new() else { return };
    let case = disk.case().await;
    // Its notes, too, are gone: they would leave room later.
    case.run_over(job(&["echo works"])).await.assert_success();
    disk.fill();
    let ended = case.run(job(&["echo never"])).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("No space left on device");
    ended.assert_contains("disk may be full");
    ended.assert_no_line("never");
    disk.empty();
    let next = case.run(job(&["echo works"])).await;
    next.assert_success();
    engine().nothing_left_of(next.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_the_middle_of_a_trace_does_not_end_the_job() {
    let Some(disk) = Disk::new() else { return };
    let case = disk.case().await;
    let script = [UNTIL_GO, "seq 1 100000", "exit 7"];
    let id = case.gitlab.submit(job(&script));
    case.gitlab.until_output(id, "started").await;
    disk.fill();
    engine().go(id);
    let ended = case.gitlab.ended(id).await;
    ended.assert_failed("script_failure", Some(7));
    ended.assert_contains("No space left on device");
    // The last word is the runner's.
    ended.assert_contains("Job failed: exit code 7");
    engine().nothing_left_of(id).await;
    disk.empty();
    let next = case.run(job(&["echo works"])).await;
    next.assert_success();
    next.assert_lines(&["works"]);
    engine().nothing_left_of(next.id).await;
    assert!(jobs(&disk.state()) <= 1, "jobs stay in the state directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_finds_no_room_fails_its_job_with_that_reason() {
    let Some(disk) = Disk::new() else { return };
    let case = disk.case().await;
    let artifact = serde_json::json!({"name": "big", "paths": ["big"], "when": "on_success",
        "artifact_type": "archive", "artifact_format": "zip"});
    let script = ["dd if=/dev/urandom of=big bs=1M count=4"];
    let ended = case.run(job(&script).artifact(artifact)).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("No space left on device");
    engine().nothing_left_of(ended.id).await;
    let next = case.run(job(&["echo works"])).await;
    next.assert_success();
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_made_is_named() {
    let Some(disk) = Disk::new() else { return };
    disk.fill();
    let state = disk.state();
    let config = tempfile::tempdir().unwrap();
    let said = crate::commands::longshore(&["run", "--state-dir", state.to_str().unwrap()])
        .args(["--config", config.path().join("none").to_str().unwrap()])
        .run()
        .await;
    assert_eq!(said.code, Some(1), "{}", said.all());
    for text in [state.to_str().unwrap(), "No space left on device"] {
        assert!(said.all().contains(text), "no `{text}` in {}", said.all());
    }
}

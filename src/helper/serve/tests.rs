use std::fs;
use std::path::Path;

use tokio::io::{AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::helper::protocol::{Archive, ArchiveTo, CHUNK, Receive};
use crate::helper::testing::{Host, TOKEN};
use crate::workload::transfer::{CleanUp, Format, Level, Strategy};

/// Longshore's end of a helper.
struct Longshore(DuplexStream);

impl Longshore {
    async fn send(&mut self, frame: Frame) {
        protocol::write(&mut self.0, &frame).await.unwrap();
    }

    async fn send_file(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK) {
            self.send(Frame::Data(piece.to_vec().into())).await;
        }
        self.send(Frame::End).await;
    }

    async fn task(&mut self, task: &Task) {
        self.send(Frame::Task(serde_json::to_vec(task).unwrap().into())).await;
    }

    /// What a task gives, with its trace and its file.
    async fn end(&mut self) -> (Done, String, Option<Vec<u8>>) {
        let (mut trace, mut pieces, mut whole) = (Vec::new(), Vec::new(), false);
        loop {
            match protocol::read(&mut self.0).await.unwrap().unwrap() {
                Frame::Output(text) | Frame::ErrorOutput(text) => trace.extend_from_slice(&text),
                Frame::Data(piece) => pieces.extend_from_slice(&piece),
                Frame::End => whole = true,
                Frame::Task(_) => panic!("tasks go the other way"),
                Frame::Done(done) => {
                    let done = serde_json::from_slice(&done).unwrap();
                    let trace = String::from_utf8(trace).unwrap();
                    return (done, trace, whole.then_some(pieces));
                }
            }
        }
    }

    async fn run(&mut self, task: Task) -> (Done, String, Option<Vec<u8>>) {
        self.task(&task).await;
        self.end().await
    }

    async fn succeed(&mut self, task: Task) -> Done {
        let (done, trace, _) = self.run(task).await;
        assert_eq!((done.exit_code, done.error.as_deref()), (0, None), "{trace}");
        done
    }
}

/// Runs a helper until what longshore does with it has ended, and then to the end of its input.
async fn with_helper<T>(work: impl AsyncFnOnce(&mut Longshore) -> T) -> T {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (input, output) = tokio::io::split(far);
    let longshore = async {
        let mut longshore = Longshore(near);
        let end = work(&mut longshore).await;
        longshore.0.shutdown().await.unwrap();
        end
    };
    let (served, end) = tokio::join!(serve(input, output), longshore);
    served.unwrap();
    end
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn archive(project: &Path, to: ArchiveTo) -> Archive {
    Archive {
        project_dir: text(project),
        paths: vec!["out".into()],
        exclude: Vec::new(),
        untracked: false,
        format: Format::Zip,
        level: Level::Default,
        env: Vec::new(),
        env_file: None,
        name: "artifacts".into(),
        metadata: None,
        to,
    }
}

#[tokio::test]
async fn a_job_from_sources_to_clean_up_is_one_conversation() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let sources = host.task(&repository, &sha);
    let project = host.path("builds/app");
    let temp = host.path("builds/app.tmp");
    // Three frames and a bit, and not all of one letter.
    let large: Vec<u8> = (0..=255).cycle().take(3 * CHUNK + 5).collect();

    with_helper(async |longshore| {
        let open = Task::OpenDirectories(vec![text(&host.path("builds"))]);
        longshore.succeed(open).await;
        let (done, trace, _) = longshore.run(Task::Sources(Box::new(sources.clone()))).await;
        assert_eq!(done, Done::default(), "{trace}");
        assert!(trace.contains("Created fresh repository."), "{trace}");

        let path = text(&temp.join("KEY"));
        longshore.task(&Task::Receive(Receive { path, modified: Some(1_000) })).await;
        longshore.send_file(TOKEN.as_bytes()).await;
        assert_eq!(longshore.end().await.0, Done::default());
        let stat = Task::Stat { path: text(&temp.join("KEY")) };
        let file = longshore.succeed(stat).await.file.unwrap();
        assert_eq!((file.size, file.modified), (TOKEN.len() as u64, 1_000));

        fs::create_dir(project.join("out")).unwrap();
        fs::write(project.join("out/large"), &large).unwrap();
        let task = archive(&project, ArchiveTo::Longshore);
        let (done, trace, packed) = longshore.run(Task::Archive(Box::new(task))).await;
        assert_eq!(done.name.as_deref(), Some("artifacts"), "{trace} {done:?}");
        assert!(trace.contains("found 2 matching"), "{trace}");

        let path = text(&temp.join("download.zip"));
        longshore.task(&Task::Receive(Receive { path: path.clone(), modified: None })).await;
        longshore.send_file(&packed.unwrap()).await;
        longshore.end().await;
        fs::remove_dir_all(project.join("out")).unwrap();
        let extract = Extract { archive: path.clone(), into: text(&project), remove: true };
        longshore.succeed(Task::Extract(extract)).await;
        assert_eq!(fs::read(project.join("out/large")).unwrap(), large);
        assert_eq!(longshore.succeed(Task::Stat { path }).await.file, None);

        let task = Task::Send { path: text(&project.join("out/large")) };
        let (done, _, sent) = longshore.run(task).await;
        assert_eq!(done.file.map(|file| file.size), Some(large.len() as u64));
        assert_eq!(sent.unwrap(), large);

        let clean_up = CleanUp {
            project_dir: text(&project),
            temp_dir: text(&temp),
            file_variables: vec!["KEY".into(), "../app/a".into()],
            worktree: Some((Strategy::Fetch, vec!["-ffdx".into()])),
            clean_config: true,
            submodules: false,
        };
        longshore.succeed(Task::CleanUp(Box::new(clean_up.clone()))).await;
        assert_eq!(host.leaks(&["builds", "home"]), Vec::<std::path::PathBuf>::new());
        assert!(!project.join("out").exists() && project.join("a").exists());
        let worktree = Some((Strategy::Clone, Vec::new()));
        longshore.succeed(Task::CleanUp(Box::new(CleanUp { worktree, ..clean_up }))).await;
        assert!(!project.exists());
    })
    .await;
}

#[tokio::test]
async fn docker_145_a_cleared_work_tree_can_be_fetched_again() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let task = host.task(&repository, &sha);
    let project = host.path("builds/app");
    with_helper(async |longshore| {
        let clear = || Task::ClearWorktree { project_dir: task.project_dir.clone() };
        longshore.succeed(clear()).await;
        longshore.succeed(Task::Sources(Box::new(task.clone()))).await;
        fs::write(project.join("untracked"), "x").unwrap();
        longshore.succeed(clear()).await;
        assert_eq!(fs::read_dir(&project).unwrap().count(), 1, "only .git");
        longshore.succeed(Task::Sources(Box::new(task.clone()))).await;
        assert!(project.join("a").exists());
    })
    .await;
}

#[tokio::test]
async fn docker_145_a_broken_repository_is_cleared_away_and_none_further_up_is_touched() {
    let host = Host::start();
    let repository = host.repository("app");
    let sha = host.commit(&repository, &[("a", "1")]);
    let task = host.task(&repository, &sha);
    let outer = host.path("builds");
    fs::create_dir(&outer).unwrap();
    assert!(host.git(&outer, &["init", "-q"]).0);
    fs::write(outer.join("untracked"), "x").unwrap();
    with_helper(async |longshore| {
        longshore.succeed(Task::Sources(Box::new(task.clone()))).await;
        fs::write(host.path("builds/app/.git/HEAD"), "").unwrap();
        let clear = Task::ClearWorktree { project_dir: task.project_dir.clone() };
        longshore.succeed(clear).await;
        longshore.succeed(Task::Sources(Box::new(task.clone()))).await;
    })
    .await;
    assert!(host.path("builds/app/a").exists());
    assert!(outer.join("untracked").exists());
}

#[tokio::test]
async fn a_task_that_fails_says_why_and_the_next_one_runs() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "x").unwrap();
    with_helper(async |longshore| {
        // A file where a directory should be: its pieces are read all the same.
        let path = text(&file.join("below"));
        longshore.task(&Task::Receive(Receive { path, modified: None })).await;
        longshore.send_file(&vec![7; CHUNK + 1]).await;
        let (done, _, _) = longshore.end().await;
        assert_eq!(done.exit_code, 1);
        assert!(done.error.unwrap().starts_with("cannot make directory `"));

        longshore.send(Frame::Task("{\"unknown\": 1}".into())).await;
        longshore.send_file(b"for a task that this helper does not know").await;
        let (done, _, _) = longshore.end().await;
        assert!(done.error.unwrap().starts_with("task was not understood"));

        let (done, _, sent) = longshore.run(Task::Send { path: text(&file.join("x")) }).await;
        assert!(done.error.unwrap().starts_with("cannot open `"));
        assert_eq!(sent, None);

        let (done, _, sent) = longshore.run(Task::Send { path: text(&file) }).await;
        assert_eq!((done.exit_code, sent.as_deref()), (0, Some(&b"x"[..])));
    })
    .await;
}

#[tokio::test]
async fn a_received_file_appears_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("new/file");
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let (input, output) = tokio::io::split(far);
    let task = Task::Receive(Receive { path: text(&path), modified: None });
    for frame in
        [Frame::Task(serde_json::to_vec(&task).unwrap().into()), Frame::Data("half of it".into())]
    {
        protocol::write(&mut near, &frame).await.unwrap();
    }
    near.shutdown().await.unwrap();
    let error = serve(input, output).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn a_helper_can_be_served_on_any_thread() {
    fn sent<T: Send>(_: T) {}
    sent(serve(tokio::io::empty(), tokio::io::sink()));
}

use std::os::unix::fs::symlink;

use tokio::sync::mpsc;

use super::*;
use crate::archive::fingerprint::Metadata;
use crate::workload::transfer::{Format, Level};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("project")).unwrap();
        fs::write(place.path("project/a"), "one").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn task(&self, to: ArchiveTo) -> Archive {
        Archive {
            project_dir: self.path("project").to_str().unwrap().to_owned(),
            paths: vec!["a".into()],
            exclude: Vec::new(),
            untracked: false,
            format: Format::Zip,
            level: Level::Default,
            env: Vec::new(),
            env_file: None,
            name: "cache-$KEY".into(),
            metadata: None,
            to,
        }
    }

    fn cache(&self) -> (PathBuf, ArchiveTo) {
        let path = self.path("cache/key/cache.zip");
        (path.clone(), ArchiveTo::File(path.to_str().unwrap().to_owned()))
    }
}

/// Makes the archive; its frames are counted and thrown away.
async fn make(task: Archive) -> (Result<Done, Error>, Vec<u8>, String) {
    let (frames, mut sent) = mpsc::channel(2);
    let work = async move { archive(task, &FrameSender::new(frames)).await };
    let collect = async {
        let (mut file, mut text) = (Vec::new(), String::new());
        while let Some(frame) = sent.recv().await {
            match frame {
                Frame::Data(piece) => file.extend_from_slice(&piece),
                Frame::Output(line) => text.push_str(&String::from_utf8_lossy(&line)),
                _ => {}
            }
        }
        (file, text)
    };
    let (end, (file, text)) = tokio::join!(work, collect);
    (end, file, text)
}

#[tokio::test]
async fn docker_63_lines_of_the_jobs_environment_file_are_taken_as_they_are() {
    let place = Place::new();
    let lines = "IGNORED\nKEY=$(x) = y\nDIR=a\n";
    fs::write(place.path("gitlab_runner_env"), lines).unwrap();
    let mut task = place.task(ArchiveTo::Longshore);
    task.env = vec![("KEY".into(), "before".into()), ("DIR".into(), "none".into())];
    task.paths = vec!["$DIR".into()];
    let done = make(task.clone()).await.0.unwrap();
    assert!(done.empty, "{done:?}");
    assert_eq!(done.name.as_deref(), Some("cache-before"));
    task.env_file = place.path("gitlab_runner_env").to_str().map(str::to_owned);
    let done = make(task).await.0.unwrap();
    assert!(!done.empty);
    assert_eq!(done.name.as_deref(), Some("cache-$(x) = y"));
}

#[test]
fn an_artifact_has_the_last_element_of_its_name() {
    for (name, expected) in [
        ("a/b", "b"),
        ("a/b/", "b"),
        ("b", "b"),
        ("", "default"),
        (".", "default"),
        ("a/.", "default"),
        ("..", "default"),
        ("/", "default"),
    ] {
        assert_eq!(artifact::stem(name), expected, "{name}");
    }
}

#[tokio::test]
async fn a_cache_is_made_again_only_when_its_files_changed() {
    let place = Place::new();
    let (path, to) = place.cache();
    let mut task = place.task(to);
    task.env = vec![("KEY".into(), "main/x".into())];
    let done = make(task.clone()).await.0.unwrap();
    assert!(!done.unchanged);
    assert_eq!(done.name.as_deref(), Some("cache-main/x"), "a key may have slashes");
    let first = fs::read(&path).unwrap();
    assert_eq!(done.file.unwrap().size, first.len() as u64);
    assert_eq!(Metadata::read(&path).unwrap().cachekey, "cache-main/x");

    let done = make(task.clone()).await.0.unwrap();
    assert!(done.unchanged);
    assert_eq!(done.file.unwrap().size, first.len() as u64);

    // Another file, and then one less.
    fs::write(place.path("project/b"), "two").unwrap();
    task.paths.push("b".into());
    assert!(!make(task.clone()).await.0.unwrap().unchanged);
    task.paths.pop();
    assert!(!make(task.clone()).await.0.unwrap().unchanged);
    assert!(make(task.clone()).await.0.unwrap().unchanged);
}

#[tokio::test]
async fn provenance_has_a_digest_of_each_file() {
    let place = Place::new();
    symlink("a", place.path("project/link")).unwrap();
    let mut task = place.task(ArchiveTo::Longshore);
    task.paths.push("link".into());
    task.name = "out".into();
    task.metadata = Some("{\"_type\":\"x\",\"subject\":[]}".into());
    let (done, file, _) = make(task).await;
    done.unwrap();
    let archive = place.path("archive");
    fs::write(&archive, file).unwrap();
    let into = place.path("into");
    extract(archive, into.clone()).await.unwrap();
    let statement: serde_json::Value =
        serde_json::from_slice(&fs::read(into.join("out-metadata.json")).unwrap()).unwrap();
    // printf one | sha256sum
    let digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    let subject = serde_json::json!([{ "name": "a", "digest": { "sha256": digest } }]);
    assert_eq!(statement, serde_json::json!({ "_type": "x", "subject": subject }));
}

#[tokio::test]
async fn an_archive_that_nobody_reads_ends() {
    let place = Place::new();
    fs::write(place.path("project/a"), vec![7; 4 << 20]).unwrap();
    let mut task = place.task(ArchiveTo::Longshore);
    task.format = Format::Raw;
    let (frames, sent) = mpsc::channel(1);
    drop(sent);
    let end = archive(task, &FrameSender::new(frames)).await;
    assert!(end.is_err());
}

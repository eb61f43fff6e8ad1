//! Real repositories, and a real git server over HTTP that asks for the job's token.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use base64::Engine as _;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::error::Error;
use super::frames::FrameSender;
use crate::base::secret::Secret;
use crate::{
    base::error_chain,
    helper::protocol::Frame,
    workload::transfer::{ObjectFormat, Sources, Strategy, Submodules},
};

/// The job's token; no other text has it.
pub(super) const TOKEN: &str = "glcbt-64_s3cr3t";

/// A task with the default settings.
pub(super) fn task(project: &str, url: &str, sha: &str) -> Sources {
    Sources {
        project_dir: project.to_owned(),
        temp_dir: format!("{project}.tmp"),
        strategy: Strategy::Fetch,
        url: url.to_owned(),
        server: None,
        token: Secret::new(TOKEN),
        reference: "main".to_owned(),
        sha: sha.to_owned(),
        object_format: ObjectFormat::Sha1,
        refspecs: vec!["+refs/heads/*:refs/remotes/origin/*".to_owned()],
        depth: 0,
        checkout: true,
        clean_flags: Some(vec!["-ffdx".to_owned()]),
        fetch_flags: vec!["--prune".to_owned(), "--quiet".to_owned()],
        clone_flags: Vec::new(),
        native_clone: false,
        submodules: Submodules::default(),
        skip_lfs: false,
        safe_directory: true,
        clean_config: true,
        tokens_in_environment_only: false,
        proactive_auth: false,
        user_agent: "longshore test".to_owned(),
        correlation_id: None,
        bundle_uri: false,
        ca: None,
        client_certificate: None,
        pre_script: None,
        post_script: None,
        env: Vec::new(),
        retry: false,
    }
}

/// A build host: a directory with repositories on a server, and builds that are made from them.
pub(super) struct Host {
    pub(super) root: tempfile::TempDir,
    address: SocketAddr,
    state: Arc<Mutex<Seen>>,
    /// Apart from the test's own, which blocks while git runs.
    server: Option<Runtime>,
}

#[derive(Default)]
struct Seen {
    /// Path, and user when the token was right.
    requests: Vec<(String, Option<String>)>,
    /// How many of the next requests for a path that are let in end with an error.
    failures: HashMap<String, usize>,
}

impl Host {
    pub(super) fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("home")).unwrap();
        fs::create_dir(root.path().join("server")).unwrap();
        fs::write(
            root.path().join("server/gitconfig"),
            "[safe]\n\tdirectory = *\n[uploadpack]\n\tallowAnySHA1InWant = true\n",
        )
        .unwrap();
        let state = Arc::new(Mutex::new(Seen::default()));
        let shared = (root.path().join("server"), Arc::clone(&state));
        let router = Router::new().fallback(answer).with_state(shared);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut tasks = JoinSet::new();
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        };
        tasks.spawn_on(serve, server.handle());
        tasks.detach_all();
        Self { root, address, state, server: Some(server) }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(super) fn server(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn url(&self, name: &str) -> String {
        format!("{}/{name}.git", self.server())
    }

    /// A task that builds this repository's commit in `builds/<name>`.
    pub(super) fn task(&self, repository: &Repository, sha: &str) -> Sources {
        let project = self.path(&format!("builds/{}", repository.name));
        let mut task = task(project.to_str().unwrap(), &self.url(&repository.name), sha);
        task.server = Some(self.server());
        task.env = self
            .environment()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Secret::new(value)))
            .collect();
        task
    }

    /// Nothing of the user who runs the tests.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        vec![
            ("HOME", text(self.path("home"))),
            ("GIT_CONFIG_GLOBAL", text(self.path("home/.gitconfig"))),
            ("GIT_CONFIG_NOSYSTEM", "1".to_owned()),
        ]
    }

    /// Git as a job of its own would run it: without what the helper knows.
    pub(super) fn git(&self, directory: &Path, arguments: &[&str]) -> (bool, String) {
        self.git_with(directory, arguments, &[])
    }

    pub(super) fn git_with(
        &self,
        directory: &Path,
        arguments: &[&str],
        more: &[(&str, &str)],
    ) -> (bool, String) {
        let output = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@example", "-c", "safe.directory=*"])
            .args(arguments)
            .current_dir(directory)
            .envs(self.environment())
            .envs(more.iter().copied())
            .env("GIT_TERMINAL_PROMPT", "0")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// A repository on the server, with a work tree beside it to commit in.
    pub(super) fn repository(&self, name: &str) -> Repository {
        let (work, bare) = (self.path(&format!("work/{name}")), format!("server/{name}.git"));
        fs::create_dir_all(&work).unwrap();
        let bare = self.path(&bare);
        let template = ["--template=", "-q", "-b", "main"];
        let run = |arguments: &[&str]| {
            let (success, text) = self.git(&work, arguments);
            assert!(success, "{arguments:?}: {text}");
        };
        run(&[&["init"], &template[..]].concat());
        run(&[&["init", "--bare"], &template[..], &[bare.to_str().unwrap()]].concat());
        run(&["remote", "add", "origin", bare.to_str().unwrap()]);
        Repository { name: name.to_owned(), work }
    }

    /// Commits these files, publishes the branch and gives the commit.
    pub(super) fn commit(&self, repository: &Repository, files: &[(&str, &str)]) -> String {
        for (path, text) in files {
            let path = repository.work.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        for arguments in [
            &["add", "-A"][..],
            &["commit", "-q", "--allow-empty", "-m", "change"],
            &["push", "-q", "-f", "origin", "HEAD"],
        ] {
            let (success, text) = self.git(&repository.work, arguments);
            assert!(success, "{arguments:?}: {text}");
        }
        self.git(&repository.work, &["rev-parse", "HEAD"]).1
    }

    /// Registers a submodule by a URL that need not be usable.
    pub(super) fn submodule(&self, repository: &Repository, path: &str, url: &str, sha: &str) {
        let file = repository.work.join(".gitmodules");
        let before = fs::read_to_string(&file).unwrap_or_default();
        let section = format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n");
        if !before.contains(&section) {
            fs::write(file, before + &section).unwrap();
        }
        let entry = format!("160000,{sha},{path}");
        let arguments = ["update-index", "--add", "--cacheinfo", &entry];
        let (success, text) = self.git(&repository.work, &arguments);
        assert!(success, "{text}");
        // An empty directory, so that `add -A` does not take it out again.
        fs::create_dir_all(repository.work.join(path)).unwrap();
    }

    /// Lets the next requests for a repository fail once they are let in.
    pub(super) fn fail(&self, name: &str, times: usize) {
        self.state.lock().failures.insert(format!("/{name}.git"), times);
    }

    /// Users of all requests for a repository so far; `None` for one without credentials.
    pub(super) fn users(&self, name: &str) -> Vec<Option<String>> {
        let prefix = format!("/{name}.git/");
        let state = self.state.lock();
        let asked = state.requests.iter().filter(|(path, _)| path.starts_with(&prefix));
        asked.map(|(_, user)| user.clone()).collect()
    }

    /// Files below the directories whose text has the token.
    pub(super) fn leaks(&self, directories: &[&str]) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in directories {
            for entry in walkdir::WalkDir::new(self.path(directory)).into_iter().flatten() {
                let has = |bytes: Vec<u8>| {
                    bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes())
                };
                if entry.file_type().is_file() && fs::read(entry.path()).is_ok_and(has) {
                    found.push(entry.into_path());
                }
            }
        }
        found
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

/// A repository on the server.
pub(super) struct Repository {
    pub(super) name: String,
    pub(super) work: PathBuf,
}

/// Runs the stage; gives its end and all of its trace.
pub(super) async fn run(task: &Sources) -> (Result<(), Error>, String) {
    let (frames, mut sent) = mpsc::channel(4);
    let stage = async move { super::sources::sources(task, &FrameSender::new(frames)).await };
    let collect = async {
        let mut text = Vec::new();
        while let Some(frame) = sent.recv().await {
            match frame {
                Frame::Output(piece) | Frame::ErrorOutput(piece) => text.extend_from_slice(&piece),
                other => panic!("{other:?}"),
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    tokio::join!(stage, collect)
}

/// Runs the stage, which must succeed; gives its trace.
pub(super) async fn succeed(task: &Sources) -> String {
    let (end, trace) = run(task).await;
    if let Err(error) = end {
        panic!("{}\n{trace}", error_chain(&error));
    }
    trace
}

type Shared = (PathBuf, Arc<Mutex<Seen>>);

async fn answer(State((root, state)): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let text = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let path = parts.uri.path().to_owned();
    let user = user(&text("authorization"));
    let failed = {
        let mut state = state.lock();
        state.requests.push((path.clone(), user.clone()));
        let failing = state.failures.iter_mut().find(|(prefix, left)| {
            user.is_some() && path.starts_with(prefix.as_str()) && **left > 0
        });
        failing.map(|(_, left)| *left -= 1).is_some()
    };
    let refusal = |status| {
        Response::builder()
            .status(status)
            .header(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")
            .body(Body::empty())
            .unwrap()
    };
    let Some(user) = user else { return refusal(StatusCode::UNAUTHORIZED) };
    if failed {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR);
    }

    let body = to_bytes(body, usize::MAX).await.unwrap();
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", root.join("gitconfig"))
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("PATH_INFO", &path)
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", text("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .env("REMOTE_USER", user)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async move {
        let _ = stdin.write_all(&body).await;
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.unwrap().stdout;
    let split = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value[..3].parse::<u16>().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(Body::from(output[split + 4..].to_vec())).unwrap()
}

/// Who asks, when the password is the job's token.
fn user(authorization: &str) -> Option<String> {
    let encoded = authorization.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    (password == TOKEN).then(|| user.to_owned())
}

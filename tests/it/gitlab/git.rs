//! Repositories for jobs, served by git itself.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, Response, StatusCode, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::io::AsyncWriteExt;

/// Bare repositories under one directory.
pub(super) struct Repositories {
    directory: PathBuf,
}

impl Repositories {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Commits `files` to the branch `main` of `path`, which is made when it is new; the commit.
    pub(super) fn commit(&self, path: &str, files: &[(&str, &str)]) -> String {
        let work = self.directory.join("work").join(path);
        let bare = self.directory.join("served").join(format!("{path}.git"));
        if !work.exists() {
            std::fs::create_dir_all(&work).unwrap();
            git(&work, &["init", "-q", "-b", "main"]);
            std::fs::create_dir_all(&bare).unwrap();
            git(&bare, &["init", "-q", "--bare", "-b", "main"]);
            git(&bare, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
        }
        for (name, content) in files {
            let file = work.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        git(&work, &["add", "-A"]);
        git(&work, &["commit", "-q", "--allow-empty", "-m", "a commit"]);
        git(&work, &["push", "-q", bare.to_str().unwrap(), "main"]);
        git(&work, &["rev-parse", "HEAD"])
    }

    /// Notes a submodule for the next commit to `path`, where there must have been one.
    pub(super) fn add_submodule(&self, path: &str, module: &str, url: &str, wanted: &str) {
        let work = self.directory.join("work").join(path);
        let section = format!("[submodule \"{module}\"]\n\tpath = {module}\n\turl = {url}\n");
        let modules = work.join(".gitmodules");
        let before = std::fs::read_to_string(&modules).unwrap_or_default();
        std::fs::write(modules, before + &section).unwrap();
        // Without a directory, git would take it for removed.
        std::fs::create_dir_all(work.join(module)).unwrap();
        let entry = format!("160000,{wanted},{module}");
        git(&work, &["update-index", "--add", "--cacheinfo", &entry]);
    }

    /// Answers one request of git's smart protocol (git-http-backend(1)).
    pub(super) async fn serve(&self, head: &Parts, body: Bytes) -> Response<Body> {
        let header = |name: &str| text(&head.headers, name);
        let mut backend = tokio::process::Command::new("git")
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", self.directory.join("served"))
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", head.uri.path())
            .env("QUERY_STRING", head.uri.query().unwrap_or_default())
            .env("REQUEST_METHOD", head.method.as_str())
            .env("REMOTE_USER", "gitlab-ci-token")
            .env("CONTENT_TYPE", header("content-type"))
            .env("CONTENT_LENGTH", body.len().to_string())
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("GIT_PROTOCOL", header("git-protocol"))
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut input = backend.stdin.take().unwrap();
        let feed = async move {
            // A backend that needs no more closes its input early; its answer tells.
            drop(input.write_all(&body).await);
        };
        let (output, ()) = tokio::join!(backend.wait_with_output(), feed);
        let output = output.unwrap().stdout;
        let split = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let mut response = Response::builder();
        for line in String::from_utf8_lossy(&output[..split]).split("\r\n") {
            let (name, value) = line.split_once(": ").unwrap();
            response = if name == "Status" {
                response.status(value[..3].parse::<u16>().unwrap())
            } else {
                response.header(name, value)
            };
        }
        response.body(Body::from(output[split + 4..].to_vec())).unwrap()
    }
}

/// The password of a request's basic authentication.
pub(super) fn password(headers: &HeaderMap) -> Option<String> {
    let header = text(headers, "authorization");
    let decoded = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    Some(String::from_utf8(decoded).ok()?.split_once(':')?.1.to_owned())
}

/// Asks for a password, as GitLab does.
pub(super) fn ask_for_password() -> Response<Body> {
    Response::builder()
        .status(StatusCode::UNAUTHORIZED)
        .header("WWW-Authenticate", "Basic realm=\"GitLab\"")
        .body(Body::empty())
        .unwrap()
}

/// A header's text; empty when it is not there.
pub(super) fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .current_dir(directory)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "t"), ("GIT_AUTHOR_EMAIL", "t@example.com")])
        .envs([("GIT_COMMITTER_NAME", "t"), ("GIT_COMMITTER_EMAIL", "t@example.com")])
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

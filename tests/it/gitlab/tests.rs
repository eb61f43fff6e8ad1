//! The fake GitLab itself: it must note what it is there to note.

use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::{Endpoint, Fault, Gitlab, RUNNER_TOKEN, http::FEATURES, job};

/// A runner that does what it is told.
struct Runner<'a> {
    gitlab: &'a Gitlab,
    client: Client,
    token: String,
    id: i64,
}

impl<'a> Runner<'a> {
    async fn with_job(gitlab: &'a Gitlab) -> Self {
        let client = Client::builder().user_agent("test").build().unwrap();
        let mut runner = Self { gitlab, client, token: RUNNER_TOKEN.to_owned(), id: 0 };
        let body = json!({"token": RUNNER_TOKEN, "info": info(), "last_update": "cursor-0"});
        let answer =
            runner.send("POST", "jobs/request", "RUNNER-TOKEN", &[], body.to_string()).await;
        assert_eq!(answer.status(), 201);
        let job: Value = answer.json().await.unwrap();
        job["token"].as_str().unwrap().clone_into(&mut runner.token);
        runner.id = job["id"].as_i64().unwrap();
        runner
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        token_header: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Response {
        let mut request = self
            .client
            .request(method.parse().unwrap(), format!("{}/api/v4/{path}", self.gitlab.url))
            .header(token_header, &self.token)
            .header("X-Request-Id", "0123456789abcdef0123456789abcdef")
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn put(&self, state: &str, output: Value) -> u16 {
        let body = json!({"token": self.token, "info": info(), "state": state, "output": output});
        let (token_header, path) = ("JOB-TOKEN", format!("jobs/{}", self.id));
        // reqwest adds an Accept header where there is none; its notice is of no interest here.
        let answer = self.send("PUT", &path, token_header, &[], body.to_string()).await;
        self.gitlab.with(|state| state.violations.retain(|v| !v.contains("Accept")));
        answer.status().as_u16()
    }

    async fn patch(&self, start: usize, text: &str) -> Response {
        let range = format!("{start}-{}", start + text.len() - 1);
        let headers = [("Content-Range", range.as_str()), ("Content-Type", "text/plain")];
        let path = format!("jobs/{}/trace?debug_trace=false", self.id);
        self.send("PATCH", &path, "JOB-TOKEN", &headers, text.to_owned()).await
    }
}

fn info() -> Value {
    json!({"features": FEATURES.iter().map(|key| (*key, true)).collect::<std::collections::BTreeMap<_, _>>()})
}

fn noted(gitlab: &Gitlab) -> Vec<String> {
    gitlab.with(|state| std::mem::take(&mut state.violations))
}

#[tokio::test]
async fn a_runner_that_behaves_is_not_noted() {
    let gitlab = Gitlab::start("127.0.0.1").await;
    let id = gitlab.submit(job(&["true"]));
    let runner = Runner::with_job(&gitlab).await;
    assert_eq!(runner.put("running", json!({})).await, 200);
    assert_eq!(runner.patch(0, "1234").await.status(), 202);
    gitlab.fault(Endpoint::Trace, Fault::status(500).but_takes_effect());
    assert_eq!(runner.patch(4, "56789").await.status(), 500);
    let again = runner.patch(4, "56789").await;
    assert_eq!(
        (again.status().as_u16(), &again.headers()["range"]),
        (416, &"0-9".parse().unwrap())
    );
    let output = json!({"checksum": "crc32:cbf43926", "bytesize": 9});
    gitlab.fault(Endpoint::Final, Fault::status(202));
    assert_eq!(runner.put("success", output.clone()).await, 202);
    assert_eq!(runner.put("success", output).await, 200);
    let ended = gitlab.ended(id).await;
    ended.assert_success();
    assert_eq!(ended.text(), "123456789");
    assert_eq!(noted(&gitlab), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_runner_must_not_do_is_noted() {
    let gitlab = Gitlab::start("127.0.0.1").await;
    gitlab.submit(job(&["true"]).masked("SECRET", "s3cr3t-value"));
    let runner = Runner::with_job(&gitlab).await;
    assert_eq!(runner.put("success", json!({})).await, 400, "before the acknowledgement");
    runner.put("running", json!({})).await;
    assert_eq!(runner.patch(3, "a gap").await.status(), 416);
    assert!(noted(&gitlab)[0].contains("patch from 3, 0 stored"));
    runner.patch(0, "s3cr3t").await;
    assert!(noted(&gitlab).is_empty());
    runner.patch(6, "-value").await;
    assert!(noted(&gitlab)[0].contains("masked"));
    runner.put("failed", json!({"checksum": "crc32:00000000", "bytesize": 12})).await;
    assert!(noted(&gitlab)[0].contains("final update"));
    assert_eq!(runner.put("running", json!({})).await, 403);
    assert!(noted(&gitlab)[0].contains("running after a final state"));
}

#[tokio::test]
async fn an_aborted_job_is_refused_and_more_than_the_allowed_is_noted() {
    let gitlab = Gitlab::start("127.0.0.1").await;
    let id = gitlab.submit(job(&["true"]));
    let runner = Runner::with_job(&gitlab).await;
    runner.put("running", json!({})).await;
    gitlab.set_status(id, "canceled");
    let answer = runner.patch(0, "x").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["job-status"]),
        (403, &"canceled".parse().unwrap())
    );
    runner.patch(0, "x").await;
    runner.put("failed", json!({})).await;
    assert!(noted(&gitlab).is_empty());
    runner.patch(0, "x").await;
    assert!(noted(&gitlab)[0].contains("after the abort"));
}

#[tokio::test]
async fn artifacts_come_back_and_repositories_ask_for_the_jobs_token() {
    let gitlab = Gitlab::start("127.0.0.1").await;
    let sha = gitlab.commit("group/a", &[("dir/f", "content\n")]);
    let id = gitlab.submit(job(&["true"]));
    let runner = Runner::with_job(&gitlab).await;
    runner.put("running", json!({})).await;
    let body = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.zip\"\r\n\r\nPK\r\n--b--\r\n";
    let headers = [("Content-Type", "multipart/form-data; boundary=b")];
    let path = format!("jobs/{id}/artifacts?artifact_type=archive");
    let stored = runner.send("POST", &path, "JOB-TOKEN", &headers, body.to_owned()).await;
    assert_eq!(stored.status(), 201);
    let path = format!("jobs/{id}/artifacts?");
    let back = runner.send("GET", &path, "JOB-TOKEN", &[], String::new()).await;
    assert_eq!(back.text().await.unwrap(), "PK");

    let directory = tempfile::tempdir().unwrap();
    for (token, works) in [(runner.token.as_str(), true), ("wrong", false)] {
        let host = gitlab.url.trim_start_matches("http://");
        let cloned = tokio::process::Command::new("git")
            .args(["clone", "-q", &format!("http://gitlab-ci-token:{token}@{host}/group/a.git")])
            .arg(directory.path().join(token))
            .env("GIT_TERMINAL_PROMPT", "0")
            .output()
            .await
            .unwrap();
        assert_eq!(cloned.status.success(), works, "{cloned:?}");
    }
    let head =
        std::fs::read_to_string(directory.path().join(&runner.token).join(".git/refs/heads/main"));
    assert_eq!(head.unwrap().trim(), sha);
}

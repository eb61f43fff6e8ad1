use std::io::Write;

use reqwest::multipart::{Form, Part};
use tokio::{sync::mpsc, task::JoinSet};

use super::*;
use crate::{
    base::secret::Secret,
    gitlab::api::wire::JobPayload,
    local::{coordinator::Event, payload::tests::plan, pipeline},
};

const TOKEN: &str = "glrt-test";

/// A server on a real listener, and a client.
struct Fixture {
    client: reqwest::Client,
    url: String,
    server: Arc<Coordinator>,
    events: mpsc::Receiver<Event>,
    stop: CancellationToken,
    tasks: JoinSet<std::io::Result<()>>,
    artifacts: tempfile::TempDir,
}

impl Fixture {
    async fn new(yaml: &str) -> Self {
        let artifacts = tempfile::tempdir().unwrap();
        let (sender, events) = mpsc::channel(1000);
        let server =
            Coordinator::new(plan(yaml, &[]), Secret::new(TOKEN), artifacts.path(), sender);
        let server = Arc::new(server);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/api/v4", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&server), stop.clone()));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { client, url, server, events, stop, tasks, artifacts }
    }

    async fn ask(&self, token: &str) -> reqwest::Response {
        let body = serde_json::json!({ "token": token, "info": { "features": {} } });
        self.client.post(format!("{}/jobs/request", self.url)).json(&body).send().await.unwrap()
    }

    async fn take(&self) -> JobPayload {
        let response = self.ask(TOKEN).await;
        assert_eq!(response.status(), 201);
        response.json().await.unwrap()
    }

    async fn patch(&self, job: &JobPayload, range: &str, body: &str) -> reqwest::Response {
        let mut request = self
            .client
            .patch(format!("{}/jobs/{}/trace?debug_trace=false", self.url, job.id))
            .header("JOB-TOKEN", job.token.expose())
            .body(body.to_owned());
        if !range.is_empty() {
            request = request.header("Content-Range", range);
        }
        request.send().await.unwrap()
    }

    async fn put(&self, job: &JobPayload, body: serde_json::Value) -> reqwest::Response {
        let mut body = body;
        body["token"] = job.token.expose().into();
        let url = format!("{}/jobs/{}", self.url, job.id);
        self.client.put(url).json(&body).send().await.unwrap()
    }

    async fn end(&self, job: &JobPayload, state: &str) {
        let response = self.put(job, serde_json::json!({ "state": state, "output": {} })).await;
        assert_eq!(response.status(), 200);
    }

    async fn upload(
        &self,
        job: &JobPayload,
        query: &str,
        name: &str,
        content: Vec<u8>,
    ) -> reqwest::Response {
        let part = Part::bytes(content).file_name(name.to_owned());
        self.client
            .post(format!("{}/jobs/{}/artifacts?{query}", self.url, job.id))
            .header("JOB-TOKEN", job.token.expose())
            .multipart(Form::new().part("file", part))
            .send()
            .await
            .unwrap()
    }

    async fn download(&self, id: JobId, token: &str) -> reqwest::Response {
        self.client
            .get(format!("{}/jobs/{id}/artifacts?direct_download=true", self.url))
            .header("JOB-TOKEN", token)
            .send()
            .await
            .unwrap()
    }
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

const TWO: &str = "build: {stage: build, script: x}\ntest: {stage: test, script: x}\n";

#[tokio::test]
async fn a_job_is_handed_out_when_those_before_it_have_ended() {
    let fixture = Fixture::new(TWO).await;
    let build = fixture.take().await;
    assert_eq!(build.job_info.name, "build");
    let (test, ()) = tokio::join!(fixture.take(), async {
        fixture.end(&build, "success").await;
    });
    assert_eq!(test.job_info.name, "test");
    assert!(!fixture.server.done().is_cancelled());
    let (last, ()) = tokio::join!(fixture.ask(TOKEN), async {
        fixture.end(&test, "success").await;
    });
    assert_eq!(last.status(), 204, "a held request ends with the pipeline");
    assert!(fixture.server.done().is_cancelled());
}

#[tokio::test]
async fn only_the_runner_gets_jobs() {
    let fixture = Fixture::new(TWO).await;
    let refused = fixture.ask("glrt-other").await;
    assert_eq!(refused.status(), 403);
    assert_eq!(refused.text().await.unwrap(), r#"{"message":"403 Forbidden"}"#);
    let verify = |token: &'static str| {
        let url = format!("{}/runners/verify", fixture.url);
        fixture.client.post(url).json(&serde_json::json!({ "token": token })).send()
    };
    assert_eq!(verify(TOKEN).await.unwrap().status(), 200);
    assert_eq!(verify("x").await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_trace_grows_only_at_its_end() {
    let mut fixture = Fixture::new(TWO).await;
    let job = fixture.take().await;
    let first = fixture.patch(&job, "0-4", "hello").await;
    assert_eq!(first.status(), 202);
    assert_eq!(header(&first, "range"), Some("0-5"));
    assert_eq!(header(&first, "job-status"), Some("running"));
    assert_eq!(header(&first, "x-gitlab-trace-update-interval"), Some("1"));
    for range in ["0-4", "6-9"] {
        let wrong = fixture.patch(&job, range, "again").await;
        assert_eq!((wrong.status().as_u16(), header(&wrong, "range")), (416, Some("0-5")));
    }
    assert_eq!(fixture.patch(&job, "", "x").await.status(), 400);
    let second = fixture.patch(&job, "5-6", " you").await;
    assert_eq!(header(&second, "range"), Some("0-9"), "the end comes from the body");
    let mut seen = Vec::new();
    while let Ok(event) = fixture.events.try_recv() {
        if let Event::Trace { bytes, .. } = event {
            seen.extend_from_slice(&bytes);
        }
    }
    assert_eq!(seen, b"hello you");
}

#[tokio::test]
async fn tokens_are_checked_and_an_ended_job_says_its_status() {
    let fixture = Fixture::new(TWO).await;
    let job = fixture.take().await;
    let stranger = JobPayload { token: Secret::new("glcbt-x"), ..job.clone() };
    let unknown = JobPayload { id: JobId(1), ..job.clone() };
    for wrong in [&stranger, &unknown] {
        let answer = fixture.patch(wrong, "0-0", "x").await;
        assert_eq!((answer.status().as_u16(), header(&answer, "job-status")), (403, None));
        let answer = fixture.put(wrong, serde_json::json!({ "state": "success" })).await;
        assert_eq!(answer.status(), 403);
        assert_eq!(fixture.upload(wrong, "", "a.zip", vec![1]).await.status(), 403);
    }
    let answer = fixture.put(&job, serde_json::json!({ "state": "running", "output": {} })).await;
    assert_eq!((answer.status().as_u16(), header(&answer, "job-status")), (200, Some("running")));
    assert_eq!(answer.text().await.unwrap(), "200");
    assert_eq!(fixture.put(&job, serde_json::json!({ "state": "odd" })).await.status(), 400);
    fixture.end(&job, "success").await;
    let late = fixture.patch(&job, "0-0", "x").await;
    assert_eq!((late.status().as_u16(), header(&late, "job-status")), (403, Some("success")));
}

#[tokio::test]
async fn a_failure_is_allowed_by_its_exit_code() {
    let yaml = "a: {script: x, allow_failure: {exit_codes: 7}}\nb: {script: x}\n";
    let fixture = Fixture::new(yaml).await;
    for code in [7, 7] {
        let job = fixture.take().await;
        let body = serde_json::json!({
            "state": "failed", "failure_reason": "script_failure", "exit_code": code, "output": {}
        });
        assert_eq!(fixture.put(&job, body).await.status(), 200);
    }
    let expected = [true, false].map(|allowed| pipeline::State::Failed { allowed });
    assert_eq!(fixture.server.states(), expected);
    assert!(fixture.server.failed());
}

#[tokio::test]
async fn artifacts_go_to_those_that_depend_on_them() {
    let yaml = "a: {stage: build, script: x}\nb: {stage: build, script: x}\n\
                c: {script: x, needs: [a]}\nd: {script: x, needs: [b]}\n";
    let mut fixture = Fixture::new(yaml).await;
    let (a, b) = (fixture.take().await, fixture.take().await);
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let query = "artifact_format=zip&artifact_type=archive&expire_in=1+day";
    let stored = fixture.upload(&a, query, "artifacts.zip", content.clone()).await;
    assert_eq!(stored.status(), 201);
    assert_eq!(stored.text().await.unwrap(), "201");
    assert_eq!(
        std::fs::read(fixture.artifacts.path().join("a/artifacts.zip")).unwrap(),
        content,
        "the file is where the user looks for it, as it came"
    );
    let again = fixture.upload(&a, "", "artifacts.zip", content.clone()).await;
    assert_eq!(again.status(), 201, "the same once more is fine; the type's default is archive");
    let other = fixture.upload(&a, "", "artifacts.zip", vec![1]).await;
    assert_eq!(other.status(), 400);
    fixture.end(&a, "success").await;
    fixture.end(&b, "success").await;

    let (c, d) = (fixture.take().await, fixture.take().await);
    assert_eq!(c.dependencies[0].id, a.id);
    assert_eq!(c.dependencies[0].artifacts_file.filename, "artifacts.zip");
    assert!(d.dependencies.is_empty(), "b left nothing");
    let token = c.dependencies[0].token.expose();
    let got = fixture.download(a.id, token).await;
    assert_eq!((got.status().as_u16(), got.content_length()), (200, Some(content.len() as u64)));
    assert_eq!(got.bytes().await.unwrap(), content);
    assert_eq!(fixture.download(a.id, "glcbt-x").await.status(), 401);
    assert_eq!(fixture.download(a.id, a.token.expose()).await.status(), 401, "a has ended");
    assert_eq!(fixture.download(a.id, d.token.expose()).await.status(), 403);
    assert_eq!(fixture.download(b.id, d.token.expose()).await.status(), 404);
    let mut kinds = Vec::new();
    while let Ok(event) = fixture.events.try_recv() {
        if let Event::Artifact { stored, .. } = event {
            kinds.push((stored.kind, stored.size));
        }
    }
    assert_eq!(kinds, [("archive".to_owned(), 1_200_000)]);
}

#[tokio::test]
async fn a_dotenv_report_gives_variables_to_later_jobs() {
    let yaml = "a: {stage: build, script: x}\nb: {script: x, variables: {V: own, A: a-$V}}\n\
                c: {script: x, dependencies: []}\n";
    let fixture = Fixture::new(yaml).await;
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let a = fixture.take().await;
    let query = "artifact_format=gzip&artifact_type=dotenv";
    let wrong = fixture.upload(&a, query, ".env.gz", gzip("no variable\n")).await;
    assert_eq!(wrong.status(), 400);
    assert!(wrong.text().await.unwrap().contains("there is no `=`"));
    let stored = fixture.upload(&a, query, ".env.gz", gzip("V=1.2.3\n")).await;
    assert_eq!(stored.status(), 201);
    fixture.end(&a, "success").await;
    let value = |job: &JobPayload, key: &str| {
        job.variables.iter().rev().find(|v| v.key == key).map(|v| v.value.clone())
    };
    let b = fixture.take().await;
    assert_eq!(value(&b, "V").as_deref(), Some("1.2.3"), "over the job's own");
    assert_eq!(value(&b, "A").as_deref(), Some("a-1.2.3"));
    let c = fixture.take().await;
    assert_eq!(value(&c, "V"), None, "no dependency, no variables");
}

#[tokio::test]
async fn cancelling_asks_running_jobs_to_stop_and_starts_no_more() {
    let fixture = Fixture::new(TWO).await;
    let job = fixture.take().await;
    fixture.server.cancel();
    let answer = fixture.patch(&job, "0-0", "x").await;
    assert_eq!((answer.status().as_u16(), header(&answer, "job-status")), (202, Some("canceling")));
    fixture.end(&job, "failed").await;
    let canceled = pipeline::State::Canceled;
    assert_eq!(fixture.server.states(), [canceled, canceled]);
    assert_eq!(fixture.ask(TOKEN).await.status(), 204);
}

#[tokio::test]
async fn requests_keep_their_ids_and_unknown_ones_get_404() {
    let mut fixture = Fixture::new(TWO).await;
    let url = format!("{}/runners/router/discovery", fixture.url);
    let answer = fixture.client.get(url).header("X-Request-Id", "abc").send().await.unwrap();
    assert_eq!((answer.status().as_u16(), header(&answer, "x-request-id")), (404, Some("abc")));
    fixture.stop.cancel();
    drop(fixture.client);
    fixture.tasks.join_next().await.unwrap().unwrap().unwrap();
}

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::*;
use crate::{
    base::backoff::Backoff,
    gitlab::{
        api::{
            PatchOutcome, RemoteState, UpdateOutcome, info, retry,
            testing::{client, client_of, quick, settings},
            wire::{JobState, TraceOutput},
        },
        test_server::{Reply, Server},
    },
};

fn runner_info() -> Info {
    info("docker", "bash", "", &BTreeMap::new())
}

fn token() -> Secret {
    Secret::new("glcbt-secret")
}

async fn update(client: &Client, state: JobState) -> UpdateReply {
    let (info, token) = (runner_info(), token());
    let update = JobUpdate {
        info: &info,
        token: &token,
        state,
        failure_reason: None,
        checksum: None,
        output: TraceOutput::default(),
        exit_code: None,
    };
    client.update_job(JobId(7), &update).await
}

async fn patch(client: &Client, start: u64, chunk: &'static str) -> PatchReply {
    client.patch_trace(JobId(7), &token(), false, start, Bytes::from_static(chunk.as_bytes())).await
}

#[tokio::test]
async fn api_1_3_4_a_job_request_goes_to_the_base_with_its_headers() {
    let server = Server::start(|_, _| Reply::status(204)).await;
    let client = client(settings(&format!("{}/x/ci/", server.url())));
    for _ in 0..2 {
        let reply = client.request_job(&runner_info(), "s_0123456789ab").await;
        assert!(reply.healthy && !reply.retried && matches!(reply.job, Received::Nothing));
    }
    let seen = server.seen();
    assert_eq!(
        (seen[0].method.as_str(), seen[0].target.as_str()),
        ("POST", "/x/api/v4/jobs/request")
    );
    assert!(seen[0].header("user-agent").unwrap().starts_with("longshore "));
    assert_eq!(seen[0].header("accept"), Some("application/json"));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    assert_eq!(seen[0].header("content-length"), Some(&*seen[0].body.len().to_string()));
    assert_eq!(seen[0].header("runner-token"), seen[0].json()["token"].as_str());
    let ids: Vec<_> = seen.iter().map(|seen| seen.header("x-request-id").unwrap()).collect();
    assert_ne!(ids[0], ids[1]);
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    assert!(ids.iter().all(|id| id.len() == 32 && id.chars().all(is_hex)), "{ids:?}");
    assert_eq!(server.connections(), 1, "the connection is used again");
}

#[tokio::test]
async fn api_2_a_scheme_other_than_http_makes_no_client() {
    let error = Client::new(settings("ftp://gitlab.example.com")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ftp://gitlab.example.com") && text.contains("`url"), "{text}");
}

#[tokio::test]
async fn api_5_an_update_carries_the_jobs_token_and_asks_for_no_json() {
    let server = Server::start(|_, _| Reply::status(200).body("200")).await;
    let reply = update(&client_of(&server), JobState::Running).await;
    assert_eq!((reply.outcome, reply.status), (UpdateOutcome::Success, Some(200)));
    let seen = &server.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/api/v4/jobs/7"));
    assert_eq!(seen.header("job-token"), Some("glcbt-secret"));
    assert_eq!(seen.json()["token"], "glcbt-secret");
    assert_eq!(seen.json()["output"], serde_json::json!({}));
    assert!(seen.header("runner-token").is_none());
    // reqwest cannot leave the header out; `*/*` says the same as its absence.
    assert_eq!(seen.header("accept"), Some("*/*"));
}

#[tokio::test]
async fn api_6_four_503_and_a_200_are_a_200_after_five_equal_requests() {
    let server = Server::start(|n, _| Reply::status(if n < 4 { 503 } else { 200 })).await;
    let reply = update(&client_of(&server), JobState::Success).await;
    assert_eq!(reply.outcome, UpdateOutcome::Success);
    let seen = server.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|one| one.body == seen[0].body && one.method == "PUT"));
}

#[tokio::test]
async fn api_7_five_500_are_the_callers() {
    let server =
        Server::start(|_, _| Reply::json(500, r#"{"message":"500 Internal Server Error"}"#)).await;
    let reply = update(&client_of(&server), JobState::Success).await;
    assert_eq!((reply.outcome, reply.status), (UpdateOutcome::Failed, Some(500)));
    assert!(reply.problem.unwrap().ends_with("/api/v4/jobs/7: 500 Internal Server Error"));
    assert_eq!(server.seen().len(), 5);
}

#[tokio::test]
async fn api_8_9_501_is_not_tried_again_but_520_is() {
    for (status, requests) in [(501, 1), (505, 1), (520, 5)] {
        let server = Server::start(move |_, _| Reply::status(status)).await;
        assert_eq!(update(&client_of(&server), JobState::Success).await.status, Some(status));
        assert_eq!(server.seen().len(), requests, "{status}");
    }
}

#[tokio::test]
async fn api_10_a_wait_that_the_server_asks_for_is_kept() {
    let server = Server::start(|_, _| Reply::status(429).header("Retry-After", "3600")).await;
    let client = client_of(&server);
    let call = update(&client, JobState::Success);
    assert!(tokio::time::timeout(Duration::from_millis(500), call).await.is_err());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn api_15_a_refused_connection_is_reported_at_once() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = client(settings(&format!("http://{address}")));
    let reply = client.request_job(&runner_info(), "s").await;
    assert!(reply.healthy && !reply.retried && reply.status.is_none());
    let problem = reply.problem.unwrap();
    assert!(problem.contains(&address.to_string()) && problem.contains("refused"), "{problem}");
    let reply = patch(&client, 0, "x").await;
    assert_eq!((reply.outcome, reply.status), (PatchOutcome::Failed, None));
}

#[tokio::test]
async fn api_16_61_a_page_instead_of_json_is_no_job_and_healthy() {
    let page = "<html><body>Sign in</body></html>";
    let server = Server::start(move |_, _| {
        Reply::status(201).header("Content-Type", "text/html").body(page)
    })
    .await;
    let reply = client_of(&server).request_job(&runner_info(), "s").await;
    assert!(reply.healthy);
    let Received::Undecodable { id: None, token: None, error } = reply.job else {
        panic!("{reply:?}");
    };
    assert!(error.contains("text/html") && error.contains("is `url` GitLab's"), "{error}");
}

#[tokio::test]
async fn api_17_parameters_of_the_media_type_do_not_matter() {
    let server = Server::start(|_, _| {
        let reply = Reply::status(201).header("Content-Type", "application/json; charset=utf-8");
        reply.body(r#"{"id": 7, "token": "glcbt-secret"}"#)
    })
    .await;
    let reply = client_of(&server).request_job(&runner_info(), "s").await;
    let Received::Job(job) = reply.job else { panic!("{reply:?}") };
    assert_eq!(job.id, JobId(7));
}

#[tokio::test]
async fn api_18_307_and_308_repeat_method_and_body() {
    for status in [307, 308] {
        let server = Server::start(move |n, _| match n {
            0 => Reply::status(status).header("Location", "/elsewhere?x=1"),
            _ => Reply::status(202),
        })
        .await;
        assert_eq!(patch(&client_of(&server), 0, "hello").await.outcome, PatchOutcome::Accepted);
        let seen = server.seen();
        assert_eq!(seen[1].target, "/elsewhere?x=1");
        assert_eq!((seen[1].method.as_str(), seen[1].body.as_slice()), ("PATCH", &b"hello"[..]));
        assert_eq!(seen[1].header("content-range"), Some("0-4"));
        assert_eq!(seen[1].header("job-token"), Some("glcbt-secret"));
    }
}

#[tokio::test]
async fn redirects_of_the_old_kind_become_a_get_without_a_body() {
    for status in [301, 302, 303] {
        let server = Server::start(move |n, _| match n {
            0 => Reply::status(status).header("Location", "/login"),
            _ => Reply::status(200).body("<html>"),
        })
        .await;
        assert_eq!(patch(&client_of(&server), 0, "hello").await.outcome, PatchOutcome::Failed);
        let seen = &server.seen()[1];
        assert_eq!((seen.method.as_str(), seen.body.len()), ("GET", 0));
        assert!(seen.header("content-type").is_none());
    }
}

#[tokio::test]
async fn a_redirect_to_another_host_does_not_carry_the_token() {
    let storage = Server::start(|_, _| Reply::status(202)).await;
    let target = format!("http://localhost:{}/here", storage.address.port());
    let server = Server::start(move |_, _| Reply::status(307).header("Location", &target)).await;
    assert_eq!(patch(&client_of(&server), 0, "hello").await.outcome, PatchOutcome::Accepted);
    let seen = &storage.seen()[0];
    assert!(seen.header("job-token").is_none());
    assert_eq!(seen.body, b"hello");
    assert_eq!(seen.header("x-request-id"), server.seen()[0].header("x-request-id"));
}

#[tokio::test]
async fn a_redirect_loop_ends_with_its_address() {
    let server =
        Server::start(|_, _| Reply::status(307).header("Location", "/again?secret=1")).await;
    let reply = update(&client_of(&server), JobState::Running).await;
    assert_eq!((reply.outcome, reply.status), (UpdateOutcome::Failed, None));
    let problem = reply.problem.unwrap();
    assert!(problem.contains("more than 10 redirects") && !problem.contains("secret"), "{problem}");
    assert_eq!(server.seen().len(), 11);
}

#[tokio::test]
async fn a_redirect_to_nowhere_is_a_clear_error() {
    let server = Server::start(|_, _| Reply::status(302).header("Location", "ftp://h/")).await;
    let problem = update(&client_of(&server), JobState::Running).await.problem.unwrap();
    assert!(problem.contains("redirects to something that is no http address"), "{problem}");
    let server = Server::start(|_, _| Reply::status(307)).await;
    let reply = update(&client_of(&server), JobState::Running).await;
    assert_eq!((reply.outcome, reply.status), (UpdateOutcome::Failed, Some(307)));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_at_the_deadline() {
    let server = Server::start(|_, _| Reply::Hang).await;
    let timing = Timing { answer: Duration::from_millis(500), ..quick() };
    let client = Client::with(settings(server.url()), None, timing).unwrap();
    let reply = patch(&client, 0, "x").await;
    assert_eq!((reply.outcome, reply.status), (PatchOutcome::Failed, None));
    let problem = reply.problem.unwrap();
    assert!(problem.contains("no answer") && problem.contains("within 0.5 s"), "{problem}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_closed_connection_or_no_http_is_a_clear_error() {
    for reply in [Reply::Close, Reply::Raw("SSH-2.0-OpenSSH\r\n")] {
        let server = Server::start(move |_, _| reply.clone()).await;
        let reply = update(&client_of(&server), JobState::Running).await;
        assert_eq!((reply.outcome, reply.status), (UpdateOutcome::Failed, None));
        assert!(reply.problem.unwrap().contains("cannot reach http://127.0.0.1"));
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn api_45_46_47_the_queue_cursor_comes_from_any_json_call_and_stays() {
    let server = Server::start(|n, _| match n {
        0 => Reply::status(204).header("X-GitLab-Last-Update", "A"),
        1 => Reply::status(204),
        2 => Reply::status(200).header("X-GitLab-Last-Update", "B"),
        3 => Reply::status(202).header("X-GitLab-Last-Update", "from a trace"),
        4 => Reply::status(201).header("X-GitLab-Last-Update", "lost").body("no json"),
        _ => Reply::status(204).header("X-GitLab-Last-Update", ""),
    })
    .await;
    let client = client_of(&server);
    let poll = async || client.request_job(&runner_info(), "s").await;
    poll().await;
    poll().await;
    update(&client, JobState::Running).await;
    patch(&client, 0, "x").await;
    poll().await;
    poll().await;
    poll().await;
    let cursors: Vec<_> = server
        .seen()
        .iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| seen.json().get("last_update").map(|c| c.as_str().unwrap().to_owned()))
        .collect();
    let some = |cursor: &str| Some(cursor.to_owned());
    assert_eq!(cursors, [None, some("A"), some("B"), some("B"), some("B")]);
}

#[tokio::test]
async fn api_44_48_a_held_request_is_no_error_and_sends_no_session() {
    let told = Arc::new(tokio::sync::Notify::new());
    let (asked, mut ask) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start({
        let told = told.clone();
        move |_, _| {
            asked.send(()).unwrap();
            Reply::Held(told.clone())
        }
    })
    .await;
    let (client, info) = (client_of(&server), runner_info());
    let release = async {
        ask.recv().await.unwrap();
        told.notify_one();
    };
    let (reply, ()) = tokio::join!(client.request_job(&info, ""), release);
    assert!(reply.healthy && reply.problem.is_none());
    assert_eq!(server.seen().len(), 1);
    let body = server.seen()[0].json();
    assert_eq!(body["info"]["features"].as_object().unwrap().len(), 31);
    assert!(body["info"]["config"].is_object());
    assert!(body.get("session").is_none() && body.get("system_id").is_none());
}

#[tokio::test]
async fn api_49_51_53_54_only_403_is_unhealthy() {
    for (status, healthy, retried) in [
        (403, false, false),
        (409, true, false),
        (429, true, true),
        (400, true, false),
        (404, true, false),
        (422, true, false),
        (500, true, true),
        (503, true, true),
        (200, true, false),
    ] {
        let server = Server::start(move |_, _| Reply::status(status)).await;
        let reply = client_of(&server).request_job(&runner_info(), "s").await;
        assert!(matches!(reply.job, Received::Nothing), "{status}");
        assert_eq!((reply.healthy, reply.retried), (healthy, retried), "{status}");
        assert_eq!(reply.status, Some(status));
        assert!(reply.problem.unwrap().contains(&status.to_string()));
    }
}

#[tokio::test]
async fn an_answer_is_known_by_the_servers_request_id_or_else_by_ours() {
    let server = Server::start(|n, _| match n {
        0 => Reply::status(204).header("X-Request-Id", "theirs"),
        _ => Reply::status(204),
    })
    .await;
    let client = client_of(&server);
    let first = client.request_job(&runner_info(), "s").await;
    assert_eq!(first.request_id.as_deref(), Some("theirs"));
    let second = client.request_job(&runner_info(), "s").await;
    let ours = server.seen()[1].header("x-request-id").map(str::to_owned);
    assert!(ours.is_some() && second.request_id == ours, "{second:?}");
}

#[tokio::test]
async fn a_job_after_a_503_is_a_job_and_is_marked() {
    let server = Server::start(|n, _| match n {
        0 => Reply::status(503),
        _ => Reply::json(201, r#"{"id": 7, "token": "t"}"#),
    })
    .await;
    let reply = client_of(&server).request_job(&runner_info(), "s").await;
    assert!(reply.retried && reply.healthy && matches!(reply.job, Received::Job(_)));
}

#[tokio::test]
async fn a_payload_that_does_not_fit_gives_the_job_and_its_token() {
    for (body, id, token) in [
        (r#"{"id": 7, "token": "glcbt-1", "steps": "hunter2"}"#, true, true),
        (r#"{"steps": [{"id": 9}], "token": "glcbt-1", "job_info": 5, "id": 7}"#, true, true),
        (r#"{"id": 7, "token": "glcbt-1", "variables": [{"id": 3, "#, true, true),
        (r#"{"id": 7, "variables": [{"token": "other"}], "tok"#, true, false),
        (r#"{"variables": [{"id": 3, "token": "other"}"#, false, false),
        (r#"{"id": "hunter2", "token": 5}"#, false, false),
        (r"[1, 2]", false, false),
        ("hunter2", false, false),
        ("", false, false),
    ] {
        let server = Server::start(move |_, _| Reply::json(201, body)).await;
        let reply = client_of(&server).request_job(&runner_info(), "s").await;
        assert!(reply.healthy);
        let Received::Undecodable { id: found, token: secret, error } = reply.job else {
            panic!("{body}");
        };
        assert_eq!(found, id.then_some(JobId(7)), "{body}");
        assert_eq!(secret, token.then(|| Secret::new("glcbt-1")), "{body}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains("line 1"), "{error}");
    }
}

#[tokio::test]
async fn a_payload_that_breaks_off_gives_the_job_and_its_token() {
    let server = Server::start(|_, _| {
        Reply::Raw(
            "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n\
             {\"id\": 7, \"token\": \"glcbt-1\", \"variables\": [{\"key\"",
        )
    })
    .await;
    let reply = client_of(&server).request_job(&runner_info(), "s").await;
    let Received::Undecodable { id, token, .. } = reply.job else { panic!("{reply:?}") };
    assert_eq!((id, token), (Some(JobId(7)), Some(Secret::new("glcbt-1"))));
}

#[tokio::test]
async fn api_96_97_pieces_of_trace_say_where_they_belong() {
    let server = Server::start(|_, _| Reply::status(202)).await;
    let client = client_of(&server);
    patch(&client, 0, "1234").await;
    patch(&client, 4, "5").await;
    let debug = client.patch_trace(JobId(7), &token(), true, 5, Bytes::from_static(b"6789")).await;
    assert_eq!(debug.outcome, PatchOutcome::Accepted);
    patch(&client, 9, "").await;
    let seen = server.seen();
    let ranges: Vec<_> = seen.iter().map(|seen| seen.header("content-range").unwrap()).collect();
    assert_eq!(ranges, ["0-3", "4-4", "5-8"]);
    assert_eq!(seen[0].target, "/api/v4/jobs/7/trace?debug_trace=false");
    assert_eq!(seen[2].target, "/api/v4/jobs/7/trace?debug_trace=true");
    for seen in &seen {
        assert_eq!(seen.method, "PATCH");
        assert_eq!(seen.header("content-type"), Some("text/plain"));
        assert_eq!(seen.header("job-token"), Some("glcbt-secret"));
        assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()));
    }
}

#[tokio::test]
async fn api_99_105_107_108_the_answer_to_a_piece_is_understood() {
    let server = Server::start(|n, _| match n {
        0 => {
            Reply::status(416).header("Range", "0-10").header("X-GitLab-Trace-Update-Interval", "7")
        }
        1 => Reply::status(403).header("Job-Status", "failed"),
        _ => Reply::status(202).header("Job-Status", "canceling"),
    })
    .await;
    let client = client_of(&server);
    let reply = patch(&client, 20, "x").await;
    assert_eq!(reply.outcome, PatchOutcome::Mismatch { next: 10 });
    assert_eq!(reply.interval, Some(Duration::from_secs(7)));
    assert_eq!(patch(&client, 10, "x").await.outcome, PatchOutcome::Abort);
    let reply = patch(&client, 10, "x").await;
    assert_eq!(
        (reply.outcome, reply.remote),
        (PatchOutcome::Accepted, Some(RemoteState::Canceling))
    );
}

#[tokio::test]
async fn api_129_an_update_that_is_refused_is_not_repeated() {
    for status in [403, 404] {
        let server = Server::start(move |_, _| Reply::status(status)).await;
        let reply = update(&client_of(&server), JobState::Success).await;
        assert_eq!(reply.outcome, UpdateOutcome::Abort);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn idle_connections_end_with_their_age() {
    let server = Server::start(|_, _| Reply::status(204)).await;
    let settings =
        ClientSettings { connection_max_age: Duration::from_nanos(1), ..settings(server.url()) };
    let client = client(settings);
    for _ in 0..3 {
        client.request_job(&runner_info(), "s").await;
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn a_dropped_call_stops_waiting() {
    let server = Server::start(|_, _| Reply::status(503)).await;
    let retry = Backoff { first: Duration::from_hours(1), ..retry::JOB_API };
    let timing = Timing { retry, ..quick() };
    let client = Client::with(settings(server.url()), None, timing).unwrap();
    let info = runner_info();
    let call = client.request_job(&info, "s");
    assert!(tokio::time::timeout(Duration::from_millis(500), call).await.is_err());
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_token_with_a_line_break_is_sent_without_it_or_not_at_all() {
    let server = Server::start(|_, _| Reply::status(403)).await;
    for token in ["glrt-abc\n", "glrt-a\nbc", ""] {
        let settings = ClientSettings { token: Secret::new(token), ..settings(server.url()) };
        assert!(!client(settings).request_job(&runner_info(), "s").await.healthy);
    }
    let seen = server.seen();
    let sent: Vec<_> = seen.iter().map(|seen| seen.header("runner-token")).collect();
    assert_eq!(sent, [Some("glrt-abc"), None, None]);
}

#[test]
fn calls_can_be_made_in_tasks() {
    fn is_send<T: Send>(_: T) {}
    let client = Client::new(settings("http://h")).unwrap();
    let (info, token) = (runner_info(), token());
    is_send(client.request_job(&info, "s"));
    is_send(client.patch_trace(JobId(7), &token, false, 0, Bytes::new()));
    is_send(client.verify(&info, "s"));
    is_send(client.download_artifact(JobId(7), &token, true));
}

#[tokio::test]
async fn a_client_shows_no_secret() {
    let settings = settings("http://user:hunter2@h/");
    let text = format!("{settings:?} {:?}", Client::new(settings.clone()).unwrap());
    assert!(text.contains("http://h/api/v4/") && !text.contains("hunter2"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_client_can_speak_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gitlab.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await.unwrap();
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    });
    let client = Client::over_unix_socket(path, settings("http://gitlab.invalid")).unwrap();
    assert_eq!(client.request_job(&runner_info(), "s").await.status, Some(403));
}

#[test]
fn api_34_messages_by_field_are_shown() {
    let text = |body: &str| error_text(body.as_bytes());
    assert_eq!(text(r#"{"message":"no"}"#).unwrap(), "no");
    assert_eq!(
        text(r#"{"message":{"description":["too long","odd"],"tags":["bad"]}}"#).unwrap(),
        "description: too long; odd, tags: bad"
    );
    assert_eq!(text(r#"{"message":["a"]}"#), None);
    assert_eq!(text(r#"{"error":"a"}"#), None);
    assert_eq!(text("<html>"), None);
}

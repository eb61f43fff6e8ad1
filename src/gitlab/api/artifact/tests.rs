use std::cell::Cell;

use futures_util::TryStreamExt;

use super::*;
use crate::gitlab::{
    api::testing::{client, client_of, settings},
    test_server::{Reply, Server},
};

fn token() -> Secret {
    Secret::new("glcbt-secret")
}

fn archive(format: &str, expire_in: &str) -> ArtifactUpload {
    ArtifactUpload {
        file_name: "build \"x\".zip".to_owned(),
        format: format.to_owned(),
        kind: if format.is_empty() { String::new() } else { "archive".to_owned() },
        expire_in: expire_in.to_owned(),
        upload_timeout: Duration::from_hours(1),
        response_header_timeout: Duration::from_mins(10),
    }
}

/// Content in two pieces, of a length that nobody knows.
#[expect(clippy::unnecessary_wraps, reason = "as an upload asks for it")]
fn content() -> Option<Body> {
    let pieces: [Result<_, std::io::Error>; 2] = [Ok("PK\r\n"), Ok("--content")];
    Some(Body::wrap_stream(futures_util::stream::iter(pieces)))
}

async fn upload(client: &Client) -> UploadReply {
    client.upload_artifact(JobId(7), &token(), &archive("zip", ""), content).await
}

async fn bytes(download: Download) -> Result<Vec<u8>, TransportError> {
    let chunks: Vec<Bytes> = download.into_stream().try_collect().await?;
    Ok(chunks.concat())
}

#[tokio::test]
async fn api_136_an_upload_is_one_part_named_file_with_its_options_in_order() {
    let server = Server::start(|_, _| Reply::status(201).body("201")).await;
    let upload = archive("zip", "1 week");
    let reply = client_of(&server).upload_artifact(JobId(7), &token(), &upload, content).await;
    assert_eq!((reply.outcome, reply.status), (UploadOutcome::Stored, Some(201)));
    let seen = &server.seen()[0];
    assert_eq!(seen.method, "POST");
    assert_eq!(
        seen.target,
        "/api/v4/jobs/7/artifacts?artifact_format=zip&artifact_type=archive&expire_in=1+week"
    );
    assert_eq!(seen.header("job-token"), Some("glcbt-secret"));
    assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
    assert!(seen.header("content-length").is_none());
    let kind = seen.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    let body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; \
         filename=\"build \\\"x\\\".zip\"\r\nContent-Type: application/octet-stream\r\n\r\n\
         PK\r\n--content\r\n--{boundary}--\r\n"
    );
    assert_eq!(String::from_utf8_lossy(&seen.body), body);
}

#[tokio::test]
async fn api_137_without_options_the_url_ends_in_a_question_mark() {
    let server = Server::start(|_, _| Reply::status(201)).await;
    let reply =
        client_of(&server).upload_artifact(JobId(7), &token(), &archive("", ""), content).await;
    assert_eq!(reply.outcome, UploadOutcome::Stored);
    assert_eq!(server.seen()[0].target, "/api/v4/jobs/7/artifacts?");
}

#[tokio::test]
async fn each_refusal_is_told_from_the_others() {
    for (status, requests, outcome) in [
        (403, 1, UploadOutcome::Forbidden),
        (413, 1, UploadOutcome::TooLarge),
        (400, 1, UploadOutcome::Failed),
        (200, 1, UploadOutcome::Failed),
        (500, 5, UploadOutcome::Failed),
        (503, 5, UploadOutcome::Unavailable),
    ] {
        let server = Server::start(move |_, _| Reply::status(status)).await;
        let reply = upload(&client_of(&server)).await;
        assert_eq!(reply.outcome, outcome, "{status}");
        assert!(reply.problem.unwrap().contains(&status.to_string()));
        let seen = server.seen();
        assert_eq!(seen.len(), requests, "{status}");
        assert!(seen.iter().all(|one| one.body == seen[0].body), "the boundary stays");
    }
}

#[tokio::test]
async fn docker_171_api_142_a_redirected_upload_is_replayed_there() {
    let storage = Server::start(|_, _| Reply::status(201)).await;
    let target = format!("{}/store?sig=1", storage.url());
    let server = Server::start(move |_, _| Reply::status(307).header("Location", &target)).await;
    let reply = upload(&client_of(&server)).await;
    assert_eq!(reply.outcome, UploadOutcome::Stored);
    let (first, second) = (server.seen(), storage.seen());
    assert_eq!((second[0].method.as_str(), second[0].target.as_str()), ("POST", "/store?sig=1"));
    assert_eq!(first[0].body, second[0].body);
}

#[tokio::test]
async fn content_that_cannot_be_sent_again_ends_the_attempts() {
    let once = || {
        let left = Cell::new(true);
        move || left.replace(false).then(content).flatten()
    };
    let server = Server::start(|n, _| match n {
        0 => Reply::status(503),
        1 => Reply::status(307).header("Location", "http://h.example:81/x?y=1"),
        _ => Reply::status(307),
    })
    .await;
    let client = client_of(&server);
    let (id, token, archive) = (JobId(7), token(), archive("zip", ""));
    let reply = client.upload_artifact(id, &token, &archive, once()).await;
    assert_eq!(reply.outcome, UploadOutcome::Unavailable);
    let reply = client.upload_artifact(id, &token, &archive, once()).await;
    assert_eq!(reply.outcome, UploadOutcome::Redirected { url: "http://h.example:81".to_owned() });
    let reply = client.upload_artifact(id, &token, &archive, once()).await;
    assert_eq!(reply.outcome, UploadOutcome::Failed);
    assert_eq!(server.seen().len(), 3);
    let reply = client.upload_artifact(id, &token, &archive, || None).await;
    assert_eq!((reply.outcome, reply.status), (UploadOutcome::Failed, None));
    assert!(reply.problem.unwrap().contains("nothing to send"));
}

#[tokio::test]
async fn the_deadline_of_an_answer_begins_when_the_content_is_out() {
    let server = Server::start(|n, _| if n == 0 { Reply::status(201) } else { Reply::Hang }).await;
    let client = client_of(&server);
    let archive = ArtifactUpload {
        response_header_timeout: Duration::from_millis(400),
        ..archive("zip", "")
    };
    // Time is what this is about, so time has to pass.
    let slow = || {
        let wait = async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            Ok::<_, std::io::Error>("late")
        };
        Some(Body::wrap_stream(futures_util::stream::once(wait)))
    };
    let reply = client.upload_artifact(JobId(7), &token(), &archive, slow).await;
    assert_eq!(reply.outcome, UploadOutcome::Stored);
    let reply = client.upload_artifact(JobId(7), &token(), &archive, content).await;
    assert_eq!((reply.outcome, reply.status), (UploadOutcome::Failed, None));
    assert!(reply.problem.unwrap().contains("within 0.4 s"));
}

#[tokio::test]
async fn content_that_breaks_off_is_a_failure() {
    let server = Server::start(|_, _| Reply::status(201)).await;
    let broken = || {
        let pieces = [Ok("a"), Err(std::io::Error::other("disk on fire"))];
        Some(Body::wrap_stream(futures_util::stream::iter(pieces)))
    };
    let reply =
        client_of(&server).upload_artifact(JobId(7), &token(), &archive("zip", ""), broken).await;
    assert_eq!((reply.outcome, reply.status), (UploadOutcome::Failed, None));
    assert!(reply.problem.unwrap().contains("disk on fire"));
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn api_146_a_direct_download_asks_twice_and_then_goes_to_storage() {
    let storage = Server::start(|_, _| Reply::status(200).body("archive")).await;
    let target = format!("http://localhost:{}/o?sig=1", storage.address.port());
    let server = Server::start(move |_, _| Reply::status(302).header("Location", &target)).await;
    let client = client_of(&server);
    let download = client.download_artifact(JobId(7), &token(), true).await.unwrap();
    assert_eq!(download.length, Some(7));
    assert_eq!(bytes(download).await.unwrap(), b"archive");
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    for seen in &seen {
        assert_eq!(seen.method, "GET");
        assert_eq!(seen.target, "/api/v4/jobs/7/artifacts?direct_download=true");
        assert_eq!(seen.header("job-token"), Some("glcbt-secret"));
    }
    assert!(seen[0].header("user-agent").is_none());
    assert!(seen[1].header("user-agent").is_some());
    assert_eq!(storage.seen().len(), 1);
    assert!(storage.seen()[0].header("job-token").is_none());
}

#[tokio::test]
async fn a_direct_download_may_be_answered_at_once() {
    let server = Server::start(|_, _| Reply::status(200).body("archive")).await;
    let download = client_of(&server).download_artifact(JobId(7), &token(), true).await.unwrap();
    assert_eq!(bytes(download).await.unwrap(), b"archive");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn api_147_a_failed_probe_is_not_repeated_and_a_plain_attempt_has_no_parameter() {
    let server = Server::start(|n, _| match n {
        0 => Reply::status(500),
        _ => Reply::status(200).body("archive"),
    })
    .await;
    let client = client_of(&server);
    let error = client.download_artifact(JobId(7), &token(), true).await.unwrap_err();
    assert!(matches!(error, DownloadError::Failed { .. }));
    assert_eq!(server.seen().len(), 1);
    let download = client.download_artifact(JobId(7), &token(), false).await.unwrap();
    assert_eq!(bytes(download).await.unwrap(), b"archive");
    assert_eq!(server.seen()[1].target, "/api/v4/jobs/7/artifacts?");
}

#[tokio::test]
async fn api_148_refusals_of_a_download_are_final() {
    for status in [401, 403, 404] {
        for direct in [true, false] {
            let server = Server::start(move |_, _| Reply::status(status)).await;
            let client = client_of(&server);
            let error = client.download_artifact(JobId(7), &token(), direct).await.unwrap_err();
            let is_final =
                matches!(error, DownloadError::Forbidden { .. } | DownloadError::NotFound { .. });
            assert!(is_final, "{error:?}");
            assert_eq!(server.seen().len(), 1);
        }
    }
}

#[tokio::test]
async fn a_store_that_refuses_is_quoted() {
    let server = Server::start(|_, _| {
        Reply::status(403).header("Content-Type", "application/xml").body(
            "<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code>\
             <Message>Request has expired</Message></Error>",
        )
    })
    .await;
    let error = client_of(&server).download_artifact(JobId(7), &token(), false).await.unwrap_err();
    assert!(error.to_string().ends_with("403 Forbidden (AccessDenied: Request has expired)"));
}

#[tokio::test]
async fn a_download_that_breaks_off_is_an_error() {
    let server =
        Server::start(|_, _| Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"))
            .await;
    let download = client_of(&server).download_artifact(JobId(7), &token(), false).await.unwrap();
    assert_eq!(download.length, Some(100));
    assert!(bytes(download).await.is_err());
}

#[tokio::test]
async fn api_139_an_answer_before_the_content_is_read_is_heard() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    // As nginx does: it answers at the headers, and reads nothing more.
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 512];
        let _ = stream.read(&mut head).await.unwrap();
        let answer = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        std::future::pending::<()>().await;
    });
    let endless = || {
        let zeros = || Ok::<_, std::io::Error>(Bytes::from_static(&ZEROS));
        Some(Body::wrap_stream(futures_util::stream::repeat_with(zeros)))
    };
    let client = client(settings(&url));
    let reply = client.upload_artifact(JobId(7), &token(), &archive("zip", ""), endless).await;
    assert_eq!((reply.outcome, reply.status), (UploadOutcome::TooLarge, Some(413)));
}

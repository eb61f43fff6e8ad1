use std::collections::BTreeMap;

use super::*;
use crate::gitlab::{
    api::{
        error::TransportError,
        info,
        testing::{client, client_of, settings},
    },
    test_server::{Reply, Server},
};

fn runner_info() -> Info {
    info("docker", "bash", "", &BTreeMap::new())
}

#[tokio::test]
async fn api_4_33_a_registration_sends_its_token_and_every_flag() {
    let server = Server::start(|_, _| {
        Reply::json(201, r#"{"id": 12, "token": "glrt-new", "token_expires_at": null}"#)
    })
    .await;
    let registration = Registration {
        token: Secret::new("GR1348941x"),
        run_untagged: true,
        locked: true,
        ..Registration::default()
    };
    let details = client_of(&server).register(&registration).await.unwrap();
    assert_eq!((details.id, details.token), (12, Secret::new("glrt-new")));
    assert_eq!(details.token_expires_at, None);
    let seen = &server.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/api/v4/runners"));
    assert_eq!(seen.header("runner-token"), Some("GR1348941x"));
    assert_eq!(seen.header("accept"), Some("application/json"));
    let mut body = seen.json();
    let info = body.as_object_mut().unwrap().remove("info").unwrap();
    assert_eq!(info["features"].as_object().unwrap().len(), 31);
    assert!(info.get("executor").is_none());
    let expected = serde_json::json!({
        "token": "GR1348941x", "run_untagged": true, "locked": true, "paused": false
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn api_33_34_a_refused_registration_lists_what_is_wrong() {
    let server = Server::start(|n, _| match n {
        0 => Reply::json(400, r#"{"message":{"tags":["are too many","are odd"]}}"#),
        1 => Reply::json(403, r#"{"message":"403 Forbidden"}"#),
        _ => Reply::status(410),
    })
    .await;
    let client = client_of(&server);
    let registration = Registration { token: Secret::new("hunter2"), ..Registration::default() };
    let error = client.register(&registration).await.unwrap_err();
    assert!(matches!(error, RequestError::Refused { status: 400, .. }));
    let text = error.to_string();
    assert!(text.contains("POST http://127.0.0.1") && text.contains("400 Bad Request"), "{text}");
    assert!(text.contains("tags: are too many; are odd"), "{text}");
    let error = client.register(&registration).await.unwrap_err();
    assert!(matches!(error, RequestError::Forbidden { .. }));
    let text = error.to_string();
    assert!(text.ends_with(": 403 Forbidden") && !text.contains("hunter2"), "{text}");
    let error = client.register(&registration).await.unwrap_err();
    assert!(error.to_string().ends_with("410 Gone"));
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn api_29_verify_sends_the_whole_info_and_the_machine() {
    let server = Server::start(|_, _| {
        Reply::json(
            200,
            r#"{"id": 5, "token": "glrt-x", "token_expires_at": "2027-01-01T00:00:00Z"}"#,
        )
    })
    .await;
    let verified = client_of(&server).verify(&runner_info(), "s_0123456789ab").await;
    let Verification::Valid(details) = verified else { panic!("{verified:?}") };
    assert_eq!(details.id, 5);
    assert_eq!(details.token_expires_at.as_deref(), Some("2027-01-01T00:00:00Z"));
    let seen = &server.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/api/v4/runners/verify"));
    assert_eq!(seen.header("runner-token"), Some("glrt-secret"));
    let body = seen.json();
    assert_eq!(
        (&body["token"], &body["system_id"]),
        (&"glrt-secret".into(), &"s_0123456789ab".into())
    );
    assert_eq!(body["info"]["executor"], "docker");
}

#[tokio::test]
async fn api_30_an_answer_without_json_is_asked_for_a_second_time() {
    let server =
        Server::start(|_, _| Reply::status(200).header("Content-Type", "text/plain").body("200"))
            .await;
    let verified = client_of(&server).verify(&runner_info(), "s").await;
    let Verification::Valid(details) = verified else { panic!("{verified:?}") };
    assert_eq!(details.id, 0);
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].header("accept"), Some("application/json"));
    assert_eq!(seen[1].header("accept"), Some("*/*"));
}

#[tokio::test]
async fn api_31_32_only_403_makes_a_token_invalid() {
    for (status, requests) in [(403, 1), (404, 1), (500, 5)] {
        let server = Server::start(move |_, _| Reply::status(status)).await;
        let verified = client_of(&server).verify(&runner_info(), "s").await;
        match status {
            403 => assert!(matches!(verified, Verification::Invalid(_)), "{verified:?}"),
            _ => assert!(matches!(verified, Verification::Unclear(_)), "{verified:?}"),
        }
        assert_eq!(server.seen().len(), requests);
    }
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let verified = client(settings(&format!("http://{address}"))).verify(&runner_info(), "s").await;
    assert!(matches!(
        verified,
        Verification::Unclear(RequestError::Transport(TransportError::Http { .. }))
    ));
}

#[tokio::test]
async fn api_37_38_39_unregistering_names_the_machine_or_only_the_token() {
    let server = Server::start(|n, _| Reply::status(if n < 2 { 204 } else { 404 })).await;
    let client = client_of(&server);
    client.unregister_manager("").await.unwrap();
    client.unregister_runner().await.unwrap();
    let error = client.unregister_manager("s_0123456789ab").await.unwrap_err();
    assert!(matches!(error, RequestError::Refused { status: 404, .. }));
    let seen = server.seen();
    assert_eq!(
        (seen[0].method.as_str(), seen[0].target.as_str()),
        ("DELETE", "/api/v4/runners/managers")
    );
    assert_eq!(seen[0].json(), serde_json::json!({"token": "glrt-secret", "system_id": ""}));
    assert_eq!((seen[1].method.as_str(), seen[1].target.as_str()), ("DELETE", "/api/v4/runners"));
    assert_eq!(seen[1].json(), serde_json::json!({"token": "glrt-secret"}));
    assert!(seen.iter().all(|seen| seen.header("runner-token") == Some("glrt-secret")));
}

#[tokio::test]
async fn api_40_41_a_token_is_reset_by_itself_or_by_a_personal_one() {
    let server = Server::start(|n, _| match n {
        0 | 1 => Reply::json(201, r#"{"token": "glrt-new", "token_expires_at": null}"#),
        _ => Reply::json(403, r#"{"message":"403 Forbidden"}"#),
    })
    .await;
    let client = client_of(&server);
    assert_eq!(client.reset_token().await.unwrap().token, Secret::new("glrt-new"));
    let pat = Secret::new("glpat-hunter2");
    assert_eq!(client.reset_token_with_pat(12, &pat).await.unwrap().token_expires_at, None);
    let error = client.reset_token_with_pat(12, &pat).await.unwrap_err();
    assert!(matches!(error, RequestError::Forbidden { .. }));
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    let seen = server.seen();
    assert_eq!(seen[0].target, "/api/v4/runners/reset_authentication_token");
    assert_eq!(seen[0].json(), serde_json::json!({"token": "glrt-secret"}));
    assert_eq!(seen[1].target, "/api/v4/runners/12/reset_authentication_token");
    assert_eq!(seen[1].body, b"null");
    assert_eq!(seen[1].header("private-token"), Some("glpat-hunter2"));
    assert!(seen.iter().all(|seen| seen.header("runner-token").is_none()));
}

#[tokio::test]
async fn an_answer_that_does_not_fit_shows_no_token() {
    let server =
        Server::start(|_, _| Reply::json(201, r#"{"token": ["hunter2"], "id": "hunter2"}"#)).await;
    let error = client_of(&server).reset_token().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cannot understand") && !text.contains("hunter2"), "{text}");
}

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use crate::base::error_chain;

use super::{
    super::{
        auth::AuthSources,
        testing::{self, FakeEngine, Recorded, refused, stream},
    },
    *,
};

const QUICK: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_millis(1);

fn request(name: &str, policies: &[PullPolicy]) -> ImageRequest {
    ImageRequest {
        name: name.into(),
        policies: policies.to_vec(),
        platform: None,
        auths: Arc::default(),
    }
}

fn version() -> Response {
    testing::version("1.41", "1.12", "linux", "amd64")
}

fn inspection() -> Response {
    axum::Json(json!({"Id": "sha256:1", "RepoDigests": ["x@sha256:2"], "Config": {
        "ExposedPorts": {"2376/tcp": {}, "53/udp": {}, "2375": {}}, "Volumes": {"/b": {}, "/a": {}},
    }}))
    .into_response()
}

fn pulled() -> Response {
    stream(&[json!({"status": "Pulling from library/x", "id": "latest"})])
}

async fn get(engine: &Engine, request: &ImageRequest) -> (Result<Image, PullError>, Vec<PullNote>) {
    let mut notes = Vec::new();
    let got = ensure_paced(engine, request, &mut |note| notes.push(note), QUICK).await;
    (got, notes)
}

#[tokio::test]
async fn docker_122_the_next_policy_is_tried_after_a_warning() {
    let fake = FakeEngine::start(|r: Recorded| async move {
        match r.line.as_str() {
            "GET /version" => version(),
            line if line.starts_with("POST") => refused(404, "manifest unknown"),
            _ => inspection(),
        }
    });
    let engine = fake.connect().await;
    let wanted = request("x", &[PullPolicy::Always, PullPolicy::IfNotPresent]);
    fake.take();
    let (got, notes) = get(&engine, &wanted).await;
    assert_eq!(got.unwrap().reference(), "x@sha256:2");
    assert_eq!(
        fake.lines(),
        ["POST /images/create?fromImage=x%3Alatest&platform=", "GET /images/x/json"]
    );
    let text: Vec<_> = notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        [
            "Using effective pull policy of [always, if-not-present] for container x",
            "Pulling docker image x ...",
            "Failed to pull image with policy \"always\": cannot pull the image `x`: \
             Docker responded with status code 404: manifest unknown\n\
             Attempt #2: Trying \"if-not-present\" pull policy",
            "Using locally found image version due to \"if-not-present\" pull policy",
            "Using docker image sha256:1 for x with digest x@sha256:2 ...",
        ]
    );
    let warnings: Vec<_> = notes.iter().map(PullNote::is_warning).collect();
    assert_eq!(warnings, [false, false, true, false, false]);
}

#[tokio::test]
async fn docker_124_a_present_image_costs_one_inspection_and_no_pull() {
    let fake = FakeEngine::start(|r: Recorded| async move {
        if r.line == "GET /version" { version() } else { inspection() }
    });
    let engine = fake.connect().await;
    fake.take();
    let image = get(&engine, &request("x", &[PullPolicy::IfNotPresent])).await.0.unwrap();
    assert_eq!(fake.lines(), ["GET /images/x/json"]);
    assert_eq!(
        (image.digest.as_deref(), image.exposed_tcp_ports),
        (Some("x@sha256:2"), vec![2375, 2376])
    );
    assert_eq!(image.volumes, ["/a", "/b"]);
    // An id cannot be asked for at a registry, whatever the policy.
    let id = format!("sha256:{}", "a".repeat(64));
    get(&engine, &request(&id, &[PullPolicy::Always])).await.0.unwrap();
    assert_eq!(fake.lines(), [format!("GET /images/{id}/json")]);
}

#[tokio::test]
async fn docker_124_on_a_real_engine_a_present_image_is_found() {
    let engine = testing::engine().await;
    let (got, _) = get(&engine, &request("busybox", &[PullPolicy::IfNotPresent])).await;
    let image = got.unwrap();
    assert_eq!((image.os.as_str(), image.cmd), ("linux", vec!["sh".to_owned()]));
    let (debian, _) = get(&engine, &request("debian:stable", &[PullPolicy::Never])).await;
    assert_eq!(debian.unwrap().os, "linux");
}

#[tokio::test]
async fn docker_125_never_and_missing_fails() {
    let engine = testing::engine().await;
    let (got, _) = get(&engine, &request("longshore-test/missing:1", &[PullPolicy::Never])).await;
    let error = got.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::NeverMissing);
    assert_eq!(
        error_chain(&error),
        "image `longshore-test/missing:1` cannot be used with pull policy `never`: \
         the engine does not have it"
    );
}

#[tokio::test]
async fn docker_126_jobs_that_want_one_image_at_once_wait_for_one_pull() {
    let fake = FakeEngine::start({
        let arrived = Arc::new(tokio::sync::Barrier::new(2));
        move |r: Recorded| {
            let arrived = Arc::clone(&arrived);
            async move {
                match r.line.as_str() {
                    "GET /version" => version(),
                    line if line.starts_with("POST") => {
                        arrived.wait().await;
                        pulled()
                    }
                    "GET /gate" => {
                        arrived.wait().await;
                        version()
                    }
                    _ => inspection(),
                }
            }
        }
    });
    let engine = fake.connect().await;
    fake.take();
    let wanted = request("x:1", &[PullPolicy::Always]);
    let (one, two, three) = (get(&engine, &wanted), get(&engine, &wanted), get(&engine, &wanted));
    // The pull can end only after the gate was opened, by when all three have asked.
    let gate = async {
        while fake.requests_so_far() == 0 {
            tokio::task::yield_now().await;
        }
        engine.transport().get("/gate").await.unwrap();
    };
    let (one, two, three, ()) = tokio::join!(one, two, three, gate);
    for (got, _) in [one, two, three] {
        got.unwrap();
    }
    let lines = fake.lines();
    assert_eq!(lines.iter().filter(|l| l.starts_with("POST")).count(), 1, "{lines:?}");
    assert!(engine.pulls().under_way.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_network_is_tried_three_times_and_nothing_else_is() {
    for (message, posts, kind) in [
        ("dial tcp: lookup r.example: no such host", 3, PullErrorKind::ExternalDependency),
        ("manifest unknown", 1, PullErrorKind::Configuration),
        ("no space left on device", 1, PullErrorKind::ImagePull),
    ] {
        let fake = FakeEngine::start(move |r: Recorded| async move {
            if r.line == "GET /version" {
                return version();
            }
            stream(&[json!({"errorDetail": {"message": message}, "error": message})])
        });
        let engine = fake.connect().await;
        fake.take();
        let (got, notes) = get(&engine, &request("x:1", &[PullPolicy::Always])).await;
        assert_eq!(got.unwrap_err().kind(), kind, "{message}");
        assert_eq!(fake.take().len(), posts, "{message}");
        let retries = notes.iter().filter(|n| matches!(n, PullNote::Retry { .. })).count();
        assert_eq!(retries, posts - 1);
    }
}

#[tokio::test]
async fn a_pull_that_works_on_the_second_try_is_a_success() {
    let tries = Arc::new(AtomicUsize::new(0));
    let fake = FakeEngine::start(move |r: Recorded| {
        let tries = Arc::clone(&tries);
        async move {
            match r.line.as_str() {
                "GET /version" => version(),
                line if line.starts_with("GET") => inspection(),
                _ if tries.fetch_add(1, Ordering::SeqCst) == 0 => {
                    refused(500, "net/http: TLS handshake timeout")
                }
                _ => pulled(),
            }
        }
    });
    let engine = fake.connect().await;
    get(&engine, &request("x:1", &[PullPolicy::Always])).await.0.unwrap();
}

#[tokio::test]
async fn credentials_reach_the_engine_in_the_alphabet_it_decodes() {
    // `~~~` and `???` are the texts whose base64 has `+` and `/`.
    let config = json!({"auths": {"r.example": {"username": "u", "password": "~~~???>>>"}}});
    let config = config.to_string();
    let sources = AuthSources { variable: Some(&config), ..AuthSources::default() };
    let (auths, _) = Auths::load(&sources).await.unwrap();
    let fake = FakeEngine::start(|r: Recorded| async move {
        match r.line.as_str() {
            "GET /version" => version(),
            line if line.starts_with("POST") => pulled(),
            _ => inspection(),
        }
    });
    let engine = fake.connect().await;
    fake.take();
    let wanted = ImageRequest {
        platform: Some("arm64".into()),
        auths: Arc::new(auths),
        ..request("r.example/x:1", &[PullPolicy::Always])
    };
    let (got, notes) = get(&engine, &wanted).await;
    got.unwrap();
    assert!(notes.contains(&PullNote::Authenticating { origin: "$DOCKER_AUTH_CONFIG".into() }));
    let post = fake.take().remove(0);
    assert_eq!(post.line, "POST /images/create?fromImage=r.example%2Fx%3A1&platform=linux%2Farm64");
    let header = post.headers["x-registry-auth"].to_str().unwrap();
    let json = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE, header).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["password"], "~~~???>>>");
    assert_eq!(json["serveraddress"], "r.example");
}

#[tokio::test]
async fn a_platform_is_part_of_the_inspection_where_the_engine_knows_that() {
    let fake = FakeEngine::start(|r: Recorded| async move {
        if r.line == "GET /version" {
            testing::version("1.51", "1.24", "linux", "amd64")
        } else {
            inspection()
        }
    });
    let engine = fake.connect().await;
    fake.take();
    let wanted = ImageRequest {
        platform: Some("linux/arm/v7".into()),
        ..request("x", &[PullPolicy::IfNotPresent])
    };
    get(&engine, &wanted).await.0.unwrap();
    let line = fake.lines().remove(0);
    let (path, query) = line.split_once('?').unwrap();
    assert_eq!(path, "GET /images/x/json");
    let (_, platform) = url::form_urlencoded::parse(query.as_bytes()).next().unwrap();
    let platform: serde_json::Value = serde_json::from_str(&platform).unwrap();
    assert_eq!(platform, json!({"os": "linux", "architecture": "arm", "variant": "v7"}));

    let odd = ImageRequest { platform: Some("a/b/c/d".into()), ..wanted };
    assert_eq!(get(&engine, &odd).await.0.unwrap_err().kind(), PullErrorKind::Configuration);
}

#[tokio::test]
async fn a_name_that_is_none_is_asked_of_nobody() {
    let fake = FakeEngine::start(|_| async { version() });
    let engine = fake.connect().await;
    fake.take();
    for name in ["../containers/json", "$IMAGE:1"] {
        let (got, _) = get(&engine, &request(name, &[PullPolicy::IfNotPresent])).await;
        assert_eq!(got.unwrap_err().kind(), PullErrorKind::Configuration);
    }
    assert_eq!(fake.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn an_engine_that_goes_away_is_no_fault_of_the_registry() {
    let fake = FakeEngine::start(|_| async { version() });
    let engine = fake.connect().await;
    drop(fake);
    let (got, _) = get(&engine, &request("x:1", &[PullPolicy::Always])).await;
    assert_eq!(got.unwrap_err().kind(), PullErrorKind::Engine);
}

#[tokio::test]
async fn docker_182_a_registry_that_is_not_there_is_an_external_failure() {
    let engine = testing::engine().await;
    // Engines speak plain HTTP to registries on their own host; nobody listens on this port.
    let wanted = request("127.0.0.1:1/longshore-test/x:1", &[PullPolicy::Always]);
    let (got, notes) = get(&engine, &wanted).await;
    let error = got.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::ExternalDependency, "{}", error_chain(&error));
    assert!(error_chain(&error).starts_with(
        "image `127.0.0.1:1/longshore-test/x:1` cannot be used with pull policy `always`: "
    ));
    assert_eq!(notes.iter().filter(|n| n.is_warning()).count(), 2);
}

#[test]
fn docker_182_texts_of_failed_pulls_give_the_kind() {
    use PullErrorKind::{Configuration, ExternalDependency, ImagePull};
    for (text, kind) in [
        ("Get https://r/v2/: dial tcp 10.0.0.1:443: connect: no route", ExternalDependency),
        ("connect: Connection Refused", ExternalDependency),
        ("lookup r on 8.8.8.8:53: no such host", ExternalDependency),
        ("read tcp 1.2.3.4: i/o timeout", ExternalDependency),
        ("net/http: TLS handshake timeout", ExternalDependency),
        ("(Client.Timeout exceeded while awaiting headers)", ExternalDependency),
        ("net/http: request canceled while waiting", ExternalDependency),
        ("read: connection reset by peer", ExternalDependency),
        ("manifest for x:1 not found", Configuration),
        ("manifest unknown: manifest unknown", Configuration),
        ("pull access denied for x", Configuration),
        ("unauthorized: incorrect username or password", Configuration),
        ("authentication required", Configuration),
        ("no basic auth credentials", Configuration),
        ("not found: dial tcp", ExternalDependency),
        ("write /var/lib/docker/tmp: no space left on device", ImagePull),
        ("toomanyrequests: You have reached your pull rate limit", ImagePull),
    ] {
        assert_eq!(PullErrorKind::of_text(text), kind, "{text}");
    }
}

#[test]
fn progress_sums_what_the_layers_say() {
    let progress =
        Progress { layers_done: 1, layers: 3, bytes: 12_000_000, bytes_total: 30_000_000 };
    let note = PullNote::Progress { image: "x".into(), progress };
    assert_eq!(note.to_string(), "Still pulling x: 1 of 3 layers, 12 of 30 MB");
}

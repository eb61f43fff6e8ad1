//! Two jobs that use the same tags at once (G-49, G-61).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, Response, StatusCode, Uri},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinSet};

use super::{Case, write};
use crate::engine::engine;

/// What a registry has: blobs and manifests by path.
type Stored = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// As much of a registry as a push needs (distribution specification, "Pushing"), without TLS on a
/// loopback address, where engines take it so.
async fn registry() -> (String, Stored, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (stored, mut server) = (Stored::default(), JoinSet::new());
    serve(listener, &stored, &mut server);
    (host, stored, server)
}

fn serve(listener: TcpListener, stored: &Stored, server: &mut JoinSet<()>) {
    let app = Router::new().fallback(stored_at).with_state(Arc::clone(stored));
    server.spawn(async { axum::serve(listener, app).await.unwrap() });
}

async fn stored_at(
    State(stored): State<Stored>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response<Body> {
    let mut stored = stored.lock().unwrap();
    let path = uri.path().to_owned();
    let answer = Response::builder();
    let answer = match method {
        Method::GET | Method::HEAD if path == "/v2/" => answer.status(StatusCode::OK),
        Method::GET | Method::HEAD => match stored.get(&path) {
            None => answer.status(StatusCode::NOT_FOUND),
            Some(found) => {
                let answer = answer.header("docker-content-digest", digest(found));
                return answer
                    .header("content-length", found.len())
                    .body(if method == Method::GET { found.clone().into() } else { Body::empty() })
                    .unwrap();
            }
        },
        Method::POST => {
            let upload = format!("{path}{}", stored.len());
            stored.insert(upload.clone(), Bytes::new());
            answer.status(StatusCode::ACCEPTED).header("location", upload)
        }
        Method::PATCH => {
            let range = format!("0-{}", body.len().saturating_sub(1));
            stored.insert(path.clone(), body);
            answer.status(StatusCode::ACCEPTED).header("location", path).header("range", range)
        }
        Method::PUT => {
            let manifest = path.contains("/manifests/");
            let body = if manifest { body } else { stored.remove(&path).unwrap_or_default() };
            let digest = digest(&body);
            if let Some((repository, _)) = path.split_once("/blobs/uploads/") {
                stored.insert(format!("{repository}/blobs/{digest}"), body);
            } else {
                stored.insert(path, body);
            }
            answer.status(StatusCode::CREATED).header("docker-content-digest", digest)
        }
        _ => answer.status(StatusCode::METHOD_NOT_ALLOWED),
    };
    answer.body(Body::empty()).unwrap()
}

fn digest(body: &[u8]) -> String {
    format!("sha256:{}", longshore::base::ids::hex(&Sha256::digest(body)))
}

/// A Dockerfile that puts `text` into an image, and the directory it is in.
fn context(case: &Case, base: &str, text: &str) -> String {
    let directory = case.workspace();
    let lines = format!("FROM {base}\nRUN echo {text} >> /made\nCMD [\"cat\", \"/made\"]\n");
    write(&directory, "Dockerfile", &lines);
    directory.to_str().unwrap().to_owned()
}

/// The tag is another image's on the engine.
async fn taken(tag: &str) {
    let tag = tag.to_owned();
    let tagged = move || engine().docker(&["tag", "debian:stable", &tag]);
    tokio::task::spawn_blocking(tagged).await.unwrap();
}

async fn on_the_engine(arguments: &'static [&str]) -> String {
    tokio::task::spawn_blocking(|| engine().docker(arguments)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn g_61_two_jobs_build_one_tag_at_once_and_each_has_its_own() {
    let jobs = [Case::start().await, Case::start().await];
    let tag = format!("app-{}:1", &jobs[0].identity[..8]);
    let derived = format!("{}-derived", &tag[..tag.len() - 2]);
    let contexts = [context(&jobs[0], "busybox", "first"), context(&jobs[1], "busybox", "second")];
    let build = async |number: usize, tag: &str| {
        let case: &Case = &jobs[number];
        let said = case.docker(&["build", "-t", tag, &contexts[number]]).await;
        assert!(said.ends_with(&format!("Successfully tagged {tag}")), "{said}");
        case.docker(&["run", "--rm", tag]).await
    };
    let built = tokio::join!(build(0, &tag), build(1, &tag));
    assert_eq!(built, ("first".to_owned(), "second".to_owned()));
    // As a base, too, each finds its own.
    for case in &jobs {
        context(case, &tag, "more");
    }
    let latest = format!("{derived}:latest");
    let built = tokio::join!(build(0, &latest), build(1, &latest));
    assert_eq!(built, ("first\nmore".to_owned(), "second\nmore".to_owned()));
    for case in &jobs {
        let listed = case.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}", &tag]).await;
        assert_eq!(listed, tag);
        let id = case.docker(&["inspect", "-f", "{{.Id}}", &tag]).await;
        let tags = case.docker(&["inspect", "-f", "{{.RepoTags}}", &id[7..19]]).await;
        assert_eq!(tags, format!("[{tag}]"));
        // What is in use stays, and the engine says so in the job's words.
        let container = case.docker(&["create", &tag]).await;
        let said = case.fails(&["rmi", &tag]).await;
        assert!(said.contains(&tag) && !said.contains(".invalid"), "{said}");
        case.docker(&["rm", &container]).await;
        case.docker(&["tag", &tag, &format!("{derived}:other")]).await;
        let said = case.docker(&["rmi", &format!("{derived}:other")]).await;
        assert_eq!(said, format!("Untagged: {derived}:other"));
        let container = case.docker(&["create", &tag]).await;
        let moved = case.docker(&["commit", &container, &tag]).await;
        assert_eq!(case.docker(&["inspect", "-f", "{{.Id}}", &tag]).await, moved);
        case.docker(&["rm", &container]).await;
        assert!(case.docker(&["rmi", &moved]).await.starts_with(&format!("Untagged: {tag}")));
    }
    // An archive has the name, and is loaded by both at once.
    let saved = jobs[0].output(&["save", &latest]).await.stdout;
    let load = async |case: &Case| {
        let loaded = case.fed(&["load"], &saved).await;
        let said = String::from_utf8_lossy(&loaded.stdout).trim().to_owned();
        assert_eq!(said, format!("Loaded image: {latest}"), "{loaded:?}");
        case.docker(&["run", "--rm", &latest]).await
    };
    let loaded = tokio::join!(load(&jobs[0]), load(&jobs[1]));
    assert_eq!(loaded, ("first\nmore".to_owned(), "first\nmore".to_owned()));
    for case in jobs {
        case.stop().await;
    }
    let left = on_the_engine(&["images", "-a", "--format", "{{.Repository}}"]).await;
    assert!(!left.contains(&derived[..12]), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g_61_what_others_have_under_a_tag_stays_under_it() {
    let case = Case::start().await;
    let tag = format!("taken-{}:1", &case.identity[..8]);
    let shared = ["busybox:latest", "docker.io/library/busybox"];
    for tag in shared {
        let said = case.fails(&["tag", "busybox", tag]).await;
        assert!(said.contains("G-61"), "{said}");
    }
    taken(&tag).await;
    let path = context(&case, "busybox", "mine");
    case.docker(&["build", "-t", &tag, &path]).await;
    assert_eq!(case.docker(&["run", "--rm", &tag]).await, "mine");
    // The engine would find the other's image by it.
    let said = case.fails(&["save", "-o", &format!("{path}/saved"), &tag]).await;
    assert!(said.contains("G-61"), "{said}");
    context(&case, &tag, "more");
    let said = case.fails(&["build", &path]).await;
    assert!(said.contains("G-61"), "{said}");
    case.stop().await;
    let kept = tokio::task::spawn_blocking(move || {
        let format = ["inspect", "-f", "{{.Id}}"];
        let kept = engine().docker(&[&format[..], &[&tag, "debian:stable"]].concat());
        engine().docker(&["rmi", &tag]);
        kept
    });
    let kept = kept.await.unwrap();
    let ids: Vec<&str> = kept.lines().collect();
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g_61_two_jobs_push_one_tag_and_each_pushes_its_own() {
    let (host, stored, _server) = registry().await;
    let registries = |settings: &mut longshore::guard::GuardSettings| {
        settings.images.registries.push(host.clone());
    };
    let jobs = [Case::with(registries).await, Case::with(registries).await];
    let tag = format!("{host}/group/app:1");
    let push = async |case: &Case, text: &str| {
        let path = context(case, "busybox", text);
        case.docker(&["build", "-t", &tag, &path]).await;
        let said = case.docker(&["push", &tag]).await;
        let digest = said.split_once("digest: ").unwrap().1.split(' ').next().unwrap().to_owned();
        // Later steps ask for it.
        let known = case.docker(&["inspect", "-f", "{{index .RepoDigests 0}}", &tag]).await;
        assert_eq!(known, format!("{host}/group/app@{digest}"));
        let id = case.docker(&["inspect", "-f", "{{.Id}}", &tag]).await;
        (digest, id)
    };
    let (first, second) = tokio::join!(push(&jobs[0], "first"), push(&jobs[1], "second"));
    assert_ne!(first.0, second.0);
    let of = |(digest, id): &(String, String)| {
        let stored = stored.lock().unwrap();
        // The last push has the tag, and the other's manifest was the other's image.
        let last = stored.get("/v2/group/app/manifests/1").unwrap();
        let manifest: Value = serde_json::from_slice(last).unwrap();
        let is_last = manifest["config"]["digest"] == **id;
        assert_eq!(is_last, *digest == super::tags::digest(last));
        assert!(stored.contains_key(&format!("/v2/group/app/blobs/{id}")), "{id}");
        is_last
    };
    assert!(of(&first) != of(&second));
    for case in jobs {
        case.stop().await;
    }
    let left = on_the_engine(&["images", "-a", "--format", "{{.Repository}}"]).await;
    assert!(!left.contains(&host) && !left.contains(&host.replace(':', "__")), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g_61_a_tag_that_the_host_has_pulled_can_be_pushed_and_stays_what_it_was() {
    let case_at = |host: &str| {
        let host = host.to_owned();
        Case::with(move |settings| settings.images.registries.push(host))
    };
    // A registry at the usual ports, of an address that is this test's alone.
    let (stored, mut server) = (Stored::default(), JoinSet::new());
    let process = std::process::id();
    let host = format!("127.{}.{}.61", 1 + process / 250 % 250, 1 + process % 250);
    for port in [80, 443] {
        let listener = TcpListener::bind((&*host, port)).await.unwrap();
        serve(listener, &stored, &mut server);
    }
    let case = case_at(&host).await;
    let tag = format!("{host}/group/app:1");
    taken(&tag).await;
    let path = context(&case, "busybox", "mine");
    case.docker(&["build", "-t", &tag, &path]).await;
    let said = case.docker(&["push", &tag]).await;
    let id = case.docker(&["inspect", "-f", "{{.Id}}", &tag]).await;
    let digest = case.docker(&["inspect", "-f", "{{index .RepoDigests 0}}", &tag]).await;
    let (name, digest) = digest.split_once('@').unwrap();
    assert_eq!(name, format!("{host}/group/app"));
    assert!(said.contains(digest), "{said}");
    let pushed = stored.lock().unwrap().get("/v2/group/app/manifests/1").cloned().unwrap();
    let manifest: Value = serde_json::from_slice(&pushed).unwrap();
    assert_eq!(manifest["config"]["digest"], *id);
    case.stop().await;
    let kept = tokio::task::spawn_blocking(move || {
        let kept = engine().docker(&["inspect", "-f", "{{.Id}}", &tag, "debian:stable"]);
        engine().docker(&["rmi", &tag]);
        let left = engine().docker(&["images", "-a", "--format", "{{.Repository}}"]);
        assert!(!left.contains(&format!("{host}:443")), "{left}");
        kept
    });
    let kept = kept.await.unwrap();
    let ids: Vec<&str> = kept.lines().collect();
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g_73_a_build_whose_base_was_moved_meanwhile_fails() {
    let case = Case::start().await;
    let tag = format!("moved-{}:1", &case.identity[..8]);
    let path = context(&case, "busybox", "mine");
    case.docker(&["build", "-t", &tag, &path]).await;
    // A step that lasts until the test closes its connection.
    let listener = TcpListener::bind((case.guard.network().1, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let wait = format!("FROM {tag}\nRUN nc {} {} || true\n", address.ip(), address.port());
    write(&case.workspace(), "Dockerfile", &wait);
    let build = ["build", "-t", "derived", &path];
    let (said, ()) = tokio::join!(case.fails(&build), async {
        let (connection, _) = listener.accept().await.unwrap();
        taken(&tag).await;
        drop(connection);
    });
    assert!(said.contains(&format!("{tag} was pulled by another job meanwhile")), "{said}");
    let said = case.fails(&["run", "--rm", "derived"]).await;
    assert!(said.contains("derived"), "{said}");
    case.stop().await;
    tokio::task::spawn_blocking(move || engine().docker(&["rmi", &tag])).await.unwrap();
}

//! What each fuzz target does with its bytes. Beside that nothing panics, what is let through is
//! held against the list of `tests/it/guard/allowed.rs`.
//!
//! `tests/fuzz/run NAME SECONDS` builds and runs one with libFuzzer.

#[path = "../it/guard/allowed.rs"]
#[allow(dead_code)]
mod allowed;

use std::collections::BTreeMap;

use longshore::guard::{
    image::Reference,
    parse::{
        archive as archives, dockerfile as dockerfiles, head::Lexer, json as strict,
        target as targets,
    },
    policy::{self, Call, SentBody, Verdict},
};
use serde_json::{Map, Value};

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];

/// A request line's target, judged with every method: the first byte says which, the first line is
/// the target, the rest a body.
pub fn target(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let Ok(text) = std::str::from_utf8(parts.next().unwrap_or_default()) else { return };
    let Ok(target) = targets::parse(text) else { return };
    for segment in &target.segments {
        assert!(segment.split('/').all(|part| !matches!(part, "" | "." | "..")), "{segment}");
    }
    let body = parts.next().and_then(|body| strict::object(body).ok()).unwrap_or_default();
    judged(METHODS[usize::from(*first) % METHODS.len()], &target, &body);
}

/// Judges a request, and checks what would be sent.
fn judged(method: &str, target: &targets::Target, body: &Map<String, Value>) {
    let context = allowed::context();
    let method = longshore_method(method);
    let call = Call { method: &method, target, body, auth: None, registries: None };
    let Verdict::Forward(forward) = policy::judge(&call, &context) else { return };
    let plain = |b: u8| b.is_ascii_graphic() && !b"?#\\".contains(&b);
    // Names of images are put in later; they are checked where they are read.
    assert!(forward.path.bytes().all(plain) && !forward.path.contains("/../"), "{}", forward.path);
    let route = forward.path.split('/').nth(1).unwrap_or_default();
    let known = [
        "version",
        "info",
        "system",
        "events",
        "auth",
        "distribution",
        "commit",
        "build",
        "containers",
        "exec",
        "images",
        "volumes",
        "networks",
    ];
    assert!(known.contains(&route), "{}", forward.path);
    let SentBody::Json(sent) = &forward.body else {
        if forward.path == "/build" {
            allowed::build(&forward.query, &context);
        }
        return;
    };
    match &*forward.path {
        "/containers/create" => allowed::container(sent, &forward.needs, &context),
        "/networks/create" => allowed::network(sent, &forward.needs),
        "/volumes/create" => allowed::volume(sent, &context),
        "/commit" => allowed::commit(sent),
        path if path.ends_with("/update") => allowed::update(sent, &context),
        path if path.ends_with("/connect") => allowed::connect(sent),
        path if path.starts_with("/containers/") => allowed::exec(sent),
        path if path.starts_with("/exec/") => allowed::exec_start(sent),
        "/auth" | "/build" => {}
        path => assert!(path.ends_with("/disconnect"), "{path}"),
    }
}

fn longshore_method(name: &str) -> http::Method {
    name.parse().expect("a method")
}

/// Bytes of a connection: where they are split does not matter, and what passes is read the same
/// way by the server's parser.
pub fn head(data: &[u8]) {
    let mut whole = Lexer::default();
    let passed = whole.feed(data);
    let mut pieces = Lexer::default();
    let mut outcome = Ok(());
    for byte in data {
        outcome = outcome.and_then(|()| pieces.feed(std::slice::from_ref(byte)));
    }
    assert_eq!(passed, outcome);
    if passed.is_err() {
        return;
    }
    let Some(end) = data.windows(4).position(|four| four == b"\r\n\r\n") else { return };
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut headers);
    // The server may be stricter; it must not see another end.
    if let Ok(status) = request.parse(data) {
        assert_eq!(status, httparse::Status::Complete(end + 4));
        assert!(request.headers.iter().all(|header| !header.name.is_empty()));
    }
}

/// JSON that passes is what any parser reads.
pub fn json(data: &[u8]) {
    if let Ok(value) = strict::value(data) {
        assert_eq!(serde_json::from_slice::<Value>(data).expect("JSON"), value);
    }
}

fn object(data: &[u8]) -> Option<Map<String, Value>> {
    strict::object(data).ok()
}

/// `POST /containers/create`, `/update` and `/commit`.
pub fn container(data: &[u8]) {
    let Some(map) = object(data) else { return };
    let context = allowed::context();
    if let Ok(judged) = policy::container_create(&map, &context) {
        allowed::container(&judged.body, &judged.needs, &context);
    }
    if let Ok(sent) = policy::container_update(&map, &context) {
        allowed::update(&sent, &context);
    }
    if let Ok(sent) = policy::commit(&map, &context) {
        allowed::commit(&sent);
    }
}

/// Both bodies of exec.
pub fn exec(data: &[u8]) {
    let Some(map) = object(data) else { return };
    let context = allowed::context();
    if let Ok(sent) = policy::exec_create(&map, &context) {
        allowed::exec(&sent);
    }
    if let Ok(sent) = policy::exec_start(&map, &context) {
        allowed::exec_start(&sent);
    }
}

/// Networks: create, connect, disconnect.
pub fn network(data: &[u8]) {
    let Some(map) = object(data) else { return };
    let context = allowed::context();
    if let Ok(judged) = policy::network_create(&map, &context) {
        allowed::network(&judged.body, &judged.needs);
    }
    if let Ok(sent) = policy::network_connect(&map, &context) {
        allowed::connect(&sent);
    }
    let _ = policy::network_disconnect(&map, &context);
}

/// `POST /volumes/create`.
pub fn volume(data: &[u8]) {
    let Some(map) = object(data) else { return };
    let context = allowed::context();
    if let Ok(sent) = policy::volume_create(&map, &context) {
        allowed::volume(&sent, &context);
    }
}

/// The parameters of `POST /build`.
pub fn build_query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(target) = targets::parse(&format!("/build?{text}")) {
        judged("POST", &target, &Map::new());
    }
}

/// A Dockerfile, after a first line with an argument's value.
pub fn dockerfile(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let value = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let source = parts.next().unwrap_or_default();
    let arguments = BTreeMap::from([("A".to_owned(), value.clone())]);
    if let Ok(images) = dockerfiles::images(source, &arguments) {
        // What is no name of an image is refused when it is looked for.
        for reference in images.iter().filter_map(|name| Reference::parse(name)) {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-:/@".contains(&b);
            assert!(reference.canonical().bytes().all(plain), "{reference:?}");
        }
    }
    let lines: Vec<String> = String::from_utf8_lossy(source).lines().map(str::to_owned).collect();
    let _ = dockerfiles::triggers(&lines);
    for line in &lines {
        let _ = dockerfiles::change(line, &allowed::context().settings);
    }
}

/// An archive, read as a build's context and as one of images.
pub fn archive(data: &[u8]) {
    const MOST: u64 = 1 << 24;
    if let Ok(found) = archives::dockerfile(data, "", MOST) {
        assert!(found.len() <= 1 << 20);
    }
    if let Ok(tags) = archives::images(data, MOST) {
        assert!(tags.iter().all(|tag| tag.0.digest.is_none()));
    }
}

use std::{path::Path, sync::Arc};

use proptest::prelude::*;

use hyper::Method;
use serde_json::Map;

use crate::guard::{
    ownership::{Owned, OwnedContainer},
    parse::target,
    settings::GuardSettings,
};

use super::{
    context::{EngineFacts, PolicyContext},
    decide::judge,
    forward::{Call, Forward, Verdict},
};

fn context() -> PolicyContext {
    let identity = ("longshore.guard".to_owned(), "1".to_owned());
    let settings = GuardSettings::new("1", identity, "net", Path::new("/private"));
    let mut owned = Owned::default();
    owned.containers.add("a".repeat(64), OwnedContainer::new("own"));
    let facts =
        EngineFacts { version: (1, 41), network_id: "c".repeat(64), ..EngineFacts::default() };
    PolicyContext { settings: Arc::new(settings), facts: Arc::new(facts), owned: Arc::new(owned) }
}

fn judged(method: &str, path: &str) -> Verdict {
    let target = match target::parse(path) {
        Ok(target) => target,
        Err(refusal) => return Verdict::Refuse(refusal),
    };
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let call =
        Call { method: &method, target: &target, body: &Map::new(), auth: None, registries: None };
    judge(&call, &context())
}

fn sent(method: &str, path: &str) -> Forward {
    match judged(method, path) {
        Verdict::Forward(forward) => *forward,
        verdict => panic!("{method} {path}: {verdict:?}"),
    }
}

#[test]
fn g_5_references_are_sent_as_full_ids() {
    let id = "a".repeat(64);
    for reference in ["own", "%2Fown", "aaaa", &id] {
        // A slash before a name is the engine's own habit, but not in a path.
        if reference.starts_with("%2F") {
            assert!(matches!(
                judged("GET", &format!("/containers/{reference}/json")),
                Verdict::Refuse(_)
            ));
            continue;
        }
        let forward = sent("GET", &format!("/v1.30/containers/{reference}/json?size=1"));
        assert_eq!(forward.path, format!("/containers/{id}/json"));
        assert_eq!(forward.query, [("size".to_owned(), "1".to_owned())]);
    }
}

#[test]
fn lists_carry_the_jobs_label_beside_the_clients() {
    for filters in [
        "",
        "?filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%7D",
        "?filters=%7B%22label%22%3A%7B%22a%3Db%22%3Atrue%7D%7D",
    ] {
        let forward = sent("GET", &format!("/containers/json{filters}"));
        let sent = &forward.query.iter().find(|(name, _)| name == "filters").unwrap().1;
        let own = "\"longshore.guard=1\"";
        let expected = if filters.is_empty() {
            format!("{{\"label\":[{own}]}}")
        } else {
            format!("{{\"label\":[\"a=b\",{own}]}}")
        };
        assert_eq!(*sent, expected);
    }
}

#[test]
fn g_71_a_build_gets_its_network_labels_and_limits() {
    let forward = sent(
        "POST",
        "/build?t=x:1&networkmode=default&rm=0&nocache=0&labels=%7B%22a%22%3A%22b%22%7D&memory=0",
    );
    let all = |name: &str| -> Vec<&str> {
        forward.query.iter().filter(|(known, _)| known == name).map(|(_, value)| &**value).collect()
    };
    assert!(all("t").is_empty());
    assert_eq!(all("networkmode"), [&*"c".repeat(64)]);
    assert_eq!(all("nocache"), ["1"]);
    assert_eq!((all("rm"), all("forcerm")), (vec!["1"], vec!["1"]));
    assert_eq!(all("labels"), [r#"{"a":"b","longshore.guard":"1"}"#]);
    assert_eq!((all("memory"), all("memswap")), (vec!["2147483648"], vec!["2147483648"]));
    assert_eq!(forward.new_tags[0].canonical(), "docker.io/library/x:1");
}

#[test]
fn g_65_a_pull_always_names_one_tag() {
    let forward = sent("POST", "/images/create?fromImage=debian");
    assert_eq!(forward.query[0].1, "docker.io/library/debian");
    assert_eq!(forward.query[1], ("tag".to_owned(), "latest".to_owned()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_request_line_reaches_more_than_the_templates(
        method in "GET|HEAD|POST|PUT|DELETE|OPTIONS|[A-Z]{1,8}",
        path in "/(v1\\.[0-9]{2}/)?(containers|images|networks|volumes|exec|build|info|[a-z%0-9A-F./]{1,9})\
            (/(own|a{64}|json|create|[a-z%0-9A-F.]{1,9})){0,3}(\\?[a-z=&%0-9A-F;+]{0,20})?",
    ) {
        if let Verdict::Forward(forward) = judged(&method, &path) {
            let mine = "a".repeat(64);
            let parts: Vec<&str> = forward.path[1..].split('/').collect();
            prop_assert!(!forward.path.contains("..") && !forward.path.contains("//") && !forward.path.contains('%'));
            if parts[0] == "containers" && parts.len() > 2 {
                prop_assert_eq!(parts[1], &mine);
            }
            let known = ["containers", "images", "networks", "volumes", "build", "info", "version", "events",
                "system", "commit", "auth", "distribution"];
            prop_assert!(known.contains(&parts[0]), "{}", forward.path);
        }
    }
}

#[test]
fn g_11_2_what_buildx_asks_for_is_refused_with_the_way_out() {
    for (method, path) in [
        ("POST", "/v1.41/session"),
        ("POST", "/v1.41/grpc"),
        ("POST", "/v1.41/build?version=2&session=x"),
        // Before it pulls an image for a builder's container, buildx looks for that.
        ("GET", "/v1.41/containers/buildx_buildkit_default/json"),
        ("POST", "/v1.41/containers/buildx_buildkit_c0/exec"),
        ("POST", "/v1.41/containers/create?name=buildx_buildkit_c0"),
    ] {
        match judged(method, path) {
            Verdict::Refuse(refusal) => {
                assert!(refusal.message.contains("DOCKER_BUILDKIT=0"), "{path}: {refusal}");
            }
            verdict => panic!("{method} {path}: {verdict:?}"),
        }
    }
}

#[test]
fn g_61_what_longshore_runs_itself_no_job_can_make() {
    for path in [
        "/images/own/tag?repo=longshore-helper&tag=0d17",
        "/images/own/tag?repo=docker.io/library/longshore-portable&tag=0d17",
        "/commit?container=own&repo=longshore-helper&tag=0d17",
        "/build?t=longshore-helper:0d17",
        "/images/create?fromSrc=-&repo=longshore-helper&tag=0d17",
    ] {
        let Verdict::Refuse(refusal) = judged("POST", path) else { panic!("{path}") };
        assert_eq!(refusal.rule, "G-61", "{path}: {refusal}");
    }
    let forward = sent("POST", "/build?t=longshore-helpers:1");
    assert_eq!(forward.new_tags.len(), 1);
}

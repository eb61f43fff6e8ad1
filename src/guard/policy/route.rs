//! The routes of the API: which body belongs to a request, and what the audit log calls it. Pure.

use hyper::Method;

use crate::guard::parse::target::Target;

/// What kind of body a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyKind {
    Ignored,
    /// JSON, or nothing.
    Json,
    Archive,
}

/// Which body belongs to a request.
#[must_use]
pub(crate) fn body_kind(method: &Method, target: &Target) -> BodyKind {
    let segments: Vec<&str> = target.segments.iter().map(String::as_str).collect();
    match (method, &segments[..]) {
        (&Method::POST, ["build"] | ["images", "load" | "create"])
        | (&Method::PUT, ["containers", _, "archive"]) => BodyKind::Archive,
        (&Method::POST, _) => BodyKind::Json,
        _ => BodyKind::Ignored,
    }
}

/// The route's template, for the audit log.
#[must_use]
pub(crate) fn route(target: &Target) -> String {
    let segments: Vec<&str> = target.segments.iter().map(String::as_str).collect();
    match &segments[..] {
        [
            kind @ ("containers" | "networks" | "volumes" | "images"),
            word @ ("json" | "create" | "prune" | "load" | "get" | "search"),
        ] => {
            format!("/{kind}/{word}")
        }
        [kind @ ("containers" | "exec" | "networks" | "volumes" | "images"), _, .., last]
            if last.len() < 20 && last.bytes().all(|b| b.is_ascii_lowercase()) =>
        {
            format!("/{kind}/{{id}}/{last}")
        }
        [kind @ ("containers" | "exec" | "networks" | "volumes" | "images"), _, ..] => {
            format!("/{kind}/{{id}}")
        }
        [first, ..] => {
            let known = [
                "_ping",
                "version",
                "info",
                "events",
                "system",
                "auth",
                "build",
                "commit",
                "session",
                "grpc",
                "containers",
                "networks",
                "volumes",
                "images",
                "plugins",
                "swarm",
            ];
            if known.contains(first) { format!("/{first}") } else { "-".to_owned() }
        }
        [] => "-".to_owned(),
    }
}

//! The decision about a request: the first question of each is what it is about. Pure.

use hyper::Method;

use crate::guard::refusal::Refusal;

use super::{
    containers,
    context::PolicyContext,
    forward::{Call, Verdict},
    images,
    judge::{Judge, Judgement},
    networks, system, volumes,
};

/// Decides about a request.
#[must_use]
pub fn judge(call: &Call<'_>, context: &PolicyContext) -> Verdict {
    let judge = Judge { call, context };
    match decide(&judge) {
        Ok(verdict) => verdict,
        Err(refusal) => Verdict::Refuse(refusal),
    }
}

fn decide(judge: &Judge<'_>) -> Judgement {
    version(judge)?;
    let method = judge.call.method;
    if ![Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE].contains(method) {
        return Err(Refusal {
            status: 405,
            message: "guard: method not allowed (G-20)".to_owned(),
            rule: "G-20",
        });
    }
    let segments: Vec<&str> = judge.call.target.segments.iter().map(String::as_str).collect();
    let names_an_image = matches!(segments[..], ["images" | "distribution", ..]);
    if !names_an_image && segments.iter().any(|segment| segment.contains('/')) {
        return Err(Refusal::malformed("the path is not plain", "G-24"));
    }
    match segments[0] {
        "containers" => containers::decide(judge, &segments[1..]),
        "exec" => containers::exec(judge, &segments[1..]),
        "images" => images::decide(judge, &segments[1..]),
        "volumes" => volumes::decide(judge, &segments[1..]),
        "networks" => networks::decide(judge, &segments[1..]),
        _ => system::decide(judge, &segments),
    }
}

/// Versions of the API that the tables of this folder do not describe are refused (G-41).
fn version(judge: &Judge<'_>) -> Result<(), Refusal> {
    let Some(version) = judge.call.target.version else { return Ok(()) };
    let (major, minor) = version;
    let highest = judge.context.facts.version;
    if version < (1, 24) {
        return Err(Refusal {
            status: 400,
            message: format!(
                "client version {major}.{minor} is too old. Minimum supported API version is \
                 1.24, please upgrade your client to a newer version"
            ),
            rule: "G-41",
        });
    }
    if version > highest {
        return Err(Refusal {
            status: 400,
            message: format!(
                "client version {major}.{minor} is too new. Maximum supported API version is {}.{}",
                highest.0, highest.1
            ),
            rule: "G-41",
        });
    }
    Ok(())
}

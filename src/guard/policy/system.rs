//! The engine itself: version, information, events, logins. Pure.

use hyper::Method;
use serde_json::{Value, json};

use crate::guard::{image::Reference, refusal::Refusal};

use super::{
    body::fields,
    build, buildkit,
    credentials::{credentials, registry_host},
    forward::{AnswerFilter, FollowUp, Forward, Reply, SentBody, Verdict},
    images,
    judge::{Judge, Judgement, send},
    query::{
        self,
        Param::{Drop as Ignored, Many, Word},
    },
    tags::bad_reference,
};

pub(super) fn decide(judge: &Judge<'_>, segments: &[&str]) -> Judgement {
    let filtered = |path: &str, filter, query| {
        let forward = Forward {
            follow_up: FollowUp::Filter(filter),
            ..judge.forward(path.to_owned(), query)
        };
        Ok(send(forward))
    };
    match (judge.call.method, segments) {
        (&Method::GET | &Method::HEAD, ["_ping"]) => Ok(Verdict::Answer(Reply::Ping)),
        (&Method::GET, ["version"]) => filtered("/version", AnswerFilter::Version, Vec::new()),
        (&Method::GET, ["info"]) => filtered("/info", AnswerFilter::Info, Vec::new()),
        (&Method::GET, ["system", "df"]) => {
            judge.query(&[("type", Many), ("verbose", Ignored)])?;
            filtered("/system/df", AnswerFilter::Usage, Vec::new())
        }
        // `docker inspect` asks for a plugin last, when the name is nothing else.
        (&Method::GET, ["plugins", name, "json"]) => {
            let name = fields::join("", name);
            Err(Refusal::missing(format!("plugin \"{name}\" not found")))
        }
        (&Method::GET, ["plugins"]) => Ok(Verdict::Answer(Reply::Json(json!([])))),
        (&Method::GET, ["events"]) => events(judge),
        (&Method::POST, ["auth"]) => auth(judge),
        (&Method::GET, ["distribution", name @ .., "json"]) if !name.is_empty() => {
            let name = name.join("/");
            let reference = Reference::parse(&name).ok_or_else(|| bad_reference(&name))?;
            judge.context.settings.images.may_ask(&reference.registry)?;
            let mut forward = judge.forward(
                format!("/distribution/{}/json", reference.canonical()),
                judge.query(&[])?,
            );
            forward.auth.clone_from(&judge.call.auth);
            Ok(send(forward))
        }
        (&Method::POST, ["commit"]) => images::commit(judge),
        (&Method::POST, ["build"]) => build::build(judge),
        (&Method::POST, ["build", "prune"]) => {
            Ok(Verdict::Answer(Reply::Json(json!({ "CachesDeleted": [], "SpaceReclaimed": 0 }))))
        }
        (_, ["session" | "grpc"]) => Err(buildkit::in_the_engine(judge.context.settings.build)),
        _ => Err(judge.unknown()),
    }
}

fn events(judge: &Judge<'_>) -> Judgement {
    let known = ["container", "event", "image", "label", "network", "type", "volume", "scope"];
    let mut query = judge.query(&[("since", Word), ("until", Word), ("filters", Word)])?;
    query.retain(|(name, _)| name != "filters");
    let filters = query::filters(judge.raw("filters"), &known)?;
    if !filters.is_empty() {
        query.push(("filters".to_owned(), Value::Object(filters).to_string()));
    }
    let forward =
        Forward { follow_up: FollowUp::Events, ..judge.forward("/events".to_owned(), query) };
    Ok(send(forward))
}

fn auth(judge: &Judge<'_>) -> Judgement {
    let judged = credentials(judge.call.body)?;
    let server = judged.get("serveraddress").and_then(Value::as_str).unwrap_or_default();
    let host = registry_host(server);
    judge.context.settings.images.may_ask(host)?;
    let mut body = judged.clone();
    let address = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    body.insert("serveraddress".to_owned(), json!(address));
    judge.query(&[])?;
    let forward = judge.forward("/auth".to_owned(), Vec::new());
    Ok(send(Forward { body: SentBody::Json(body), ..forward }))
}

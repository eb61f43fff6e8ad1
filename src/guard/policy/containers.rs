//! Containers and what runs in them. Pure.

use hyper::Method;
use serde_json::{Value, json};

use crate::guard::refusal::Refusal;

use super::{
    body::{
        container::{container_create, exec_create, exec_start},
        host::table::container_update,
    },
    buildkit,
    forward::{AnswerFilter, FollowUp, Forward, ImageUse, SentBody},
    judge::{Judge, Judgement, names_of, send},
    query::{
        self,
        Param::{self, Drop as Ignored, Flag, Number, Word},
    },
};

pub(super) fn decide(judge: &Judge<'_>, segments: &[&str]) -> Judgement {
    let owned = &judge.context.owned;
    match (judge.call.method, segments) {
        (&Method::GET, ["json"]) => list(judge),
        (&Method::POST, ["create"]) => create(judge),
        (&Method::POST, ["prune"]) => judge.prune("containers", "ContainersDeleted"),
        // `docker inspect REGISTRY/IMAGE` asks for a container of that name first.
        (&Method::GET, [name @ .., "json"]) if name.len() > 1 => {
            Err(Refusal::missing(format!("No such container: {}", name.join("/"))))
        }
        (_, [reference, ..]) if buildkit::is_builder(reference) => {
            Err(buildkit::builder(judge.context.settings.build))
        }
        (&Method::DELETE, [reference]) => {
            let (id, _) = owned.containers.find_own(reference)?;
            let query = judge.query(&[("v", Flag), ("force", Flag), ("link", Ignored)])?;
            if query::is_true(judge.raw("link")) {
                return Err(Refusal::denied("removing links", "G-1"));
            }
            let follow_up = FollowUp::Removed(id.to_owned());
            Ok(send(Forward { follow_up, ..judge.forward(format!("/containers/{id}"), query) }))
        }
        (method, [reference, action]) => {
            // What the job's own container may be asked, too (G-51).
            let see = match (method, *action) {
                (&Method::GET, "json") => Some(&[("size", Flag)][..]),
                (&Method::GET, "logs") => Some(
                    &[
                        ("follow", Flag),
                        ("stdout", Flag),
                        ("stderr", Flag),
                        ("since", Word),
                        ("until", Word),
                        ("timestamps", Flag),
                        ("tail", Word),
                        ("details", Flag),
                    ][..],
                ),
                (&Method::GET, "top") => Some(&[("ps_args", Word)][..]),
                (&Method::GET, "stats") => Some(&[("stream", Flag), ("one-shot", Flag)][..]),
                (&Method::POST, "wait") => Some(&[("condition", Word)][..]),
                _ => None,
            };
            let Some(allowed) = see else { return act(judge, reference, action) };
            let (id, _) = owned.containers.find(reference)?;
            let query = judge.query(allowed)?;
            match *action {
                "top" => ps_arguments(judge.raw("ps_args"))?,
                "wait"
                    if !["", "not-running", "next-exit", "removed"]
                        .contains(&judge.raw("condition")) =>
                {
                    return Err(Refusal::malformed("an unknown condition", "G-38"));
                }
                _ => {}
            }
            let follow_up = match *action {
                "json" => FollowUp::Filter(AnswerFilter::Container),
                "stats" => FollowUp::Stats,
                _ => FollowUp::Pass,
            };
            Ok(send(Forward {
                follow_up,
                ..judge.forward(format!("/containers/{id}/{action}"), query)
            }))
        }
        _ => Err(judge.unknown()),
    }
}

/// What is done to a container of the job's making.
fn act(judge: &Judge<'_>, reference: &str, action: &str) -> Judgement {
    let is_archive = action == "archive";
    let allowed: &[(&str, Param)] = match (judge.call.method, action) {
        (&Method::GET, "changes" | "export")
        | (&Method::POST, "pause" | "unpause" | "update" | "exec") => &[],
        (&Method::GET | &Method::HEAD, "archive") => &[("path", Word)],
        (&Method::PUT, "archive") => {
            &[("path", Word), ("noOverwriteDirNonDir", Flag), ("copyUIDGID", Flag)]
        }
        (&Method::POST, "start") => &[("detachKeys", Ignored)],
        (&Method::POST, "stop" | "restart") => &[("t", Number), ("signal", Word)],
        (&Method::POST, "kill") => &[("signal", Word)],
        (&Method::POST, "resize") => &[("h", Number), ("w", Number)],
        (&Method::POST, "rename") => &[("name", Word)],
        (&Method::POST, "attach") => &[
            ("stream", Flag),
            ("stdin", Flag),
            ("stdout", Flag),
            ("stderr", Flag),
            ("logs", Flag),
            ("detachKeys", Word),
        ],
        _ => return Err(judge.unknown()),
    };
    let (id, _) = judge.context.owned.containers.find_own(reference)?;
    let query = judge.query(allowed)?;
    let mut forward = judge.forward(format!("/containers/{id}/{action}"), query);
    if is_archive && judge.raw("path").is_empty() {
        return Err(Refusal::malformed("the path is missing", "G-25"));
    }
    match (judge.call.method, action) {
        (&Method::PUT, _) => forward.body = SentBody::Archive,
        (_, "start") if !judge.call.body.is_empty() => {
            return Err(Refusal::denied("a host configuration at start", "G-41"));
        }
        (_, "rename") => {
            let name = judge.raw("name").trim_start_matches('/');
            judge.context.settings.may_name(name)?;
            forward.query = vec![("name".to_owned(), name.to_owned())];
            forward.follow_up = FollowUp::Renamed(id.to_owned(), name.to_owned());
        }
        (_, "update") => {
            forward.body = SentBody::Json(container_update(judge.call.body, judge.context)?);
        }
        (_, "attach") => forward.follow_up = FollowUp::Hijack,
        (_, "exec") => {
            forward.body = SentBody::Json(exec_create(judge.call.body, judge.context)?);
            forward.follow_up = FollowUp::Exec(id.to_owned());
        }
        _ => {}
    }
    Ok(send(forward))
}

fn list(judge: &Judge<'_>) -> Judgement {
    let mut query = judge.query(&[
        ("all", Flag),
        ("limit", Number),
        ("size", Flag),
        ("filters", Word),
        ("since", Ignored),
        ("before", Ignored),
        ("trunc_cmd", Ignored),
    ])?;
    query.retain(|(name, value)| name != "filters" && !(name == "limit" && value.starts_with('-')));
    let known = [
        "id",
        "name",
        "label",
        "status",
        "ancestor",
        "since",
        "before",
        "exited",
        "network",
        "volume",
        "health",
        "publish",
        "expose",
        "is-task",
        "isolation",
    ];
    let mut filters = query::filters(judge.raw("filters"), &known)?;
    for name in ["since", "before"] {
        if let Some(Value::Array(references)) = filters.get_mut(name) {
            for reference in references {
                let (id, _) =
                    judge.context.owned.containers.find(reference.as_str().unwrap_or_default())?;
                *reference = json!(id);
            }
        }
    }
    if let Some(Value::Array(references)) = filters.get_mut("network") {
        for reference in references {
            let name = reference.as_str().unwrap_or_default();
            let id = if ["bridge", "default"].contains(&name) {
                judge.context.facts.network_id.clone()
            } else {
                judge.context.owned.networks.find(name).map_or("-", |(id, _)| id).to_owned()
            };
            *reference = json!(id);
        }
    }
    let mut names = names_of(&mut filters);
    if !names.patterns.is_empty() {
        // The engine would count entries that do not match, so the guard applies the limit.
        names.limit = judge.raw("limit").parse().ok().filter(|limit| *limit > 0);
        query.retain(|(name, _)| name != "limit");
    }
    query.push(("filters".to_owned(), judge.own_only(filters)));
    let forward = judge.forward("/containers/json".to_owned(), query);
    Ok(send(Forward { names, follow_up: FollowUp::Filter(AnswerFilter::Containers), ..forward }))
}

fn create(judge: &Judge<'_>) -> Judgement {
    let mut query = judge.query(&[("name", Word), ("platform", Word)])?;
    let name = judge.raw("name").trim_start_matches('/').to_owned();
    query.retain(|(known, _)| known != "name");
    if buildkit::is_builder(&name) {
        return Err(buildkit::builder(judge.context.settings.build));
    }
    if !name.is_empty() {
        judge.context.settings.may_name(&name)?;
        query.push(("name".to_owned(), name));
    }
    let judged = container_create(judge.call.body, judge.context)?;
    let image = judged.body.get("Image").and_then(Value::as_str).unwrap_or_default().to_owned();
    if image.is_empty() {
        return Err(Refusal::malformed("no image is named", "G-60"));
    }
    let forward = judge.forward("/containers/create".to_owned(), query);
    Ok(send(Forward {
        body: SentBody::Json(judged.body),
        image: Some((image.clone(), ImageUse::Container)),
        needs: judged.needs,
        follow_up: FollowUp::Created { image },
        ..forward
    }))
}

pub(super) fn exec(judge: &Judge<'_>, segments: &[&str]) -> Judgement {
    let [id, action] = segments else { return Err(judge.unknown()) };
    let allowed: &[(&str, Param)] = match (judge.call.method, *action) {
        (&Method::GET, "json") | (&Method::POST, "start") => &[],
        (&Method::POST, "resize") => &[("h", Number), ("w", Number)],
        _ => return Err(judge.unknown()),
    };
    let id = judge.context.owned.containers.exec(id)?;
    let mut forward = judge.forward(format!("/exec/{id}/{action}"), judge.query(allowed)?);
    if *action == "start" {
        let judged = exec_start(judge.call.body, judge.context)?;
        if judged.get("Detach") != Some(&Value::Bool(true)) {
            forward.follow_up = FollowUp::Hijack;
        }
        forward.body = SentBody::Json(judged);
    }
    Ok(send(forward))
}

/// The engine runs the host's `ps` with these words.
fn ps_arguments(words: &str) -> Result<(), Refusal> {
    const COLUMNS: [&str; 16] = [
        "pid", "ppid", "user", "uid", "gid", "group", "comm", "args", "cmd", "time", "etime",
        "stime", "stat", "rss", "vsz", "pcpu",
    ];
    let plain = ["", "-ef", "aux", "-aux", "-eo", "ax", "-e", "-f"].contains(&words);
    let columns = words
        .strip_prefix("-o ")
        .or_else(|| words.strip_prefix("-eo "))
        .is_some_and(|list| list.split(',').all(|column| COLUMNS.contains(&column.trim())));
    if plain || columns { Ok(()) } else { Err(Refusal::denied("these arguments of ps", "G-1")) }
}

//! Images, and what makes them but for builds: pulls, loads, commits and imports. Pure.

use hyper::Method;
use serde_json::{Value, json};

use crate::guard::{image::Reference, parse::dockerfile, refusal::Refusal};

use super::{
    body::container::commit as body_of_commit,
    forward::{AnswerFilter, FollowUp, Forward, ImageUse, Reply, SentBody, Verdict},
    judge::{Judge, Judgement, names_of, send},
    query::{
        self,
        Param::{Drop as Ignored, Flag, Many, Word},
    },
    tags::{bad_reference, new_tag, tag_query},
};

pub(super) fn decide(judge: &Judge<'_>, segments: &[&str]) -> Judgement {
    match (judge.call.method, segments) {
        (&Method::GET, ["json"]) => list(judge),
        (&Method::GET, ["get"]) => {
            let names = judge.query(&[("names", Many), ("platform", Ignored)])?;
            // Several are not resolved at once; the CLI names one or many.
            let [(_, name)] = &names[..] else {
                return Err(Refusal::denied("saving several images in one request", "G-60"));
            };
            let mut forward = judge.forward("/images/{image}/get".to_owned(), Vec::new());
            forward.image = Some((name.clone(), ImageUse::Name));
            Ok(send(forward))
        }
        (&Method::POST, ["create"]) => create(judge),
        (&Method::POST, ["load"]) => {
            let query = judge.query(&[("quiet", Flag), ("platform", Word)])?;
            let forward = judge.forward("/images/load".to_owned(), query);
            Ok(send(Forward { body: SentBody::Images, follow_up: FollowUp::Loaded, ..forward }))
        }
        (&Method::POST, ["prune"]) => {
            Ok(Verdict::Answer(Reply::Json(json!({ "ImagesDeleted": null, "SpaceReclaimed": 0 }))))
        }
        (&Method::GET, [name @ .., action @ ("json" | "history" | "get")]) if !name.is_empty() => {
            let query = judge.query(&[("platform", Word), ("manifests", Flag)])?;
            let mut forward = judge.forward(format!("/images/{{image}}/{action}"), query);
            let how = if *action == "get" { ImageUse::Name } else { ImageUse::Id };
            forward.image = Some((name.join("/"), how));
            forward.follow_up = match *action {
                "json" => FollowUp::Filter(AnswerFilter::Image),
                "history" => FollowUp::Filter(AnswerFilter::History),
                _ => FollowUp::Pass,
            };
            Ok(send(forward))
        }
        (&Method::POST, [name @ .., "tag"]) if !name.is_empty() => {
            judge.query(&[("repo", Word), ("tag", Word), ("force", Ignored)])?;
            let reference = named_tag(judge)?.ok_or_else(|| bad_reference(""))?;
            let mut forward =
                judge.forward("/images/{image}/tag".to_owned(), tag_query(&reference));
            forward.image = Some((name.join("/"), ImageUse::Id));
            forward.new_tags = vec![reference.clone()];
            forward.follow_up = FollowUp::Tagged(reference);
            Ok(send(forward))
        }
        (&Method::POST, [name @ .., "push"]) if !name.is_empty() => push(judge, &name.join("/")),
        (&Method::DELETE, name) if !name.is_empty() => {
            // `noprune`, which compose sets, would leave layers without a name and a label, which no
            // clean-up could find.
            let query = judge.query(&[("force", Flag), ("noprune", Ignored)])?;
            let mut forward = judge.forward("/images/{image}".to_owned(), query);
            forward.image = Some((name.join("/"), ImageUse::Remove));
            Ok(send(forward))
        }
        _ => Err(judge.unknown()),
    }
}

/// The tag in `repo` and `tag`, when one is named and may be made.
fn named_tag(judge: &Judge<'_>) -> Result<Option<Reference>, Refusal> {
    let (repository, tag) = (judge.raw("repo"), judge.raw("tag"));
    if repository.is_empty() {
        return if tag.is_empty() { Ok(None) } else { Err(bad_reference(tag)) };
    }
    let reference =
        Reference::of_parts(repository, tag).ok_or_else(|| bad_reference(repository))?;
    new_tag(&reference, &judge.context.settings)?;
    Ok(Some(reference))
}

fn list(judge: &Judge<'_>) -> Judgement {
    let mut query = judge.query(&[
        ("all", Flag),
        ("filters", Word),
        ("filter", Ignored),
        ("digests", Flag),
        ("shared-size", Ignored),
        ("manifests", Flag),
    ])?;
    query.retain(|(name, _)| name != "filters");
    let mut filters =
        query::filters(judge.raw("filters"), &["dangling", "label", "reference", "until"])?;
    let names = names_of(&mut filters);
    if !filters.is_empty() {
        query.push(("filters".to_owned(), Value::Object(filters).to_string()));
    }
    let forward = judge.forward("/images/json".to_owned(), query);
    Ok(send(Forward { names, follow_up: FollowUp::Filter(AnswerFilter::Images), ..forward }))
}

fn create(judge: &Judge<'_>) -> Judgement {
    let most = judge.context.settings.limits.images;
    if judge.context.owned.images.count() >= most {
        return Err(Refusal::limit("images", most));
    }
    let (image, source) = (judge.raw("fromImage"), judge.raw("fromSrc"));
    if !image.is_empty() && source.is_empty() {
        judge.query(&[
            ("fromImage", Word),
            ("tag", Word),
            ("platform", Word),
            ("repo", Ignored),
            ("fromSrc", Ignored),
            ("message", Ignored),
        ])?;
        let reference =
            Reference::of_parts(image, judge.raw("tag")).ok_or_else(|| bad_reference(image))?;
        judge.context.settings.images.may_ask(&reference.registry)?;
        let tag = reference.digest.clone().or_else(|| reference.tag.clone()).unwrap_or_default();
        let mut query =
            vec![("fromImage".to_owned(), reference.repository()), ("tag".to_owned(), tag)];
        if !judge.raw("platform").is_empty() {
            query.push(("platform".to_owned(), judge.raw("platform").to_owned()));
        }
        let forward = judge.forward("/images/create".to_owned(), query);
        let auth = judge.call.auth.clone();
        return Ok(send(Forward { auth, follow_up: FollowUp::Pulled(reference), ..forward }));
    }
    if source != "-" || !image.is_empty() {
        return Err(Refusal::denied("an import from an address", "G-1"));
    }
    let mut query = judge.query(&[
        ("fromSrc", Word),
        ("repo", Ignored),
        ("tag", Ignored),
        ("message", Word),
        ("changes", Many),
        ("platform", Word),
    ])?;
    let reference = named_tag(judge)?;
    changes(judge, &mut query)?;
    query.extend(reference.iter().flat_map(tag_query));
    let forward = judge.forward("/images/create".to_owned(), query);
    Ok(send(Forward {
        body: SentBody::Archive,
        new_tags: reference.iter().cloned().collect(),
        follow_up: FollowUp::Made(reference),
        ..forward
    }))
}

/// Judges `changes`, and adds the job's labels (G-63).
fn changes(judge: &Judge<'_>, query: &mut Vec<(String, String)>) -> Result<(), Refusal> {
    for (_, change) in query.iter().filter(|(name, _)| name == "changes") {
        dockerfile::change(change, &judge.context.settings)?;
    }
    for (key, value) in judge.context.settings.image_labels() {
        let line = format!("LABEL {}={}", Value::from(key), Value::from(value));
        query.push(("changes".to_owned(), line));
    }
    Ok(())
}

fn push(judge: &Judge<'_>, name: &str) -> Judgement {
    judge.query(&[("tag", Word), ("platform", Word)])?;
    let reference =
        Reference::of_parts(name, judge.raw("tag")).ok_or_else(|| bad_reference(name))?;
    let missing =
        || Refusal::missing(format!("An image does not exist locally with the tag: {name}"));
    if !judge.context.owned.images.tag(&reference.canonical()).ok_or_else(missing)?.made {
        return Err(Refusal::because("only tags that this job made can be pushed", "G-65"));
    }
    judge.context.settings.images.may_ask(&reference.registry)?;
    let query = vec![("tag".to_owned(), reference.tag.clone().unwrap_or_default())];
    let forward = judge.forward(format!("/images/{}/push", reference.repository()), query);
    let auth = judge.call.auth.clone();
    Ok(send(Forward { auth, follow_up: FollowUp::Pushed(reference), ..forward }))
}

pub(super) fn commit(judge: &Judge<'_>) -> Judgement {
    let mut query = judge.query(&[
        ("container", Word),
        ("repo", Ignored),
        ("tag", Ignored),
        ("comment", Word),
        ("author", Word),
        ("pause", Flag),
        ("changes", Many),
    ])?;
    let (id, _) = judge.context.owned.containers.find_own(judge.raw("container"))?;
    query.retain(|(name, _)| name != "container");
    query.push(("container".to_owned(), id.to_owned()));
    let reference = named_tag(judge)?;
    changes(judge, &mut query)?;
    query.extend(reference.iter().flat_map(tag_query));
    let forward = judge.forward("/commit".to_owned(), query);
    Ok(send(Forward {
        body: SentBody::Json(body_of_commit(judge.call.body, judge.context)?),
        new_tags: reference.iter().cloned().collect(),
        follow_up: FollowUp::Made(reference),
        ..forward
    }))
}

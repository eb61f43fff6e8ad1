//! Volumes. Pure.

use hyper::Method;
use serde_json::Value;

use super::{
    body::volume::volume_create,
    forward::{AnswerFilter, FollowUp, Forward, SentBody},
    judge::{Judge, Judgement, names_of, send},
    query::{
        self,
        Param::{Flag, Word},
    },
};

pub(super) fn decide(judge: &Judge<'_>, segments: &[&str]) -> Judgement {
    let owned = &judge.context.owned;
    match (judge.call.method, segments) {
        (&Method::GET, []) => {
            judge.query(&[("filters", Word)])?;
            let mut filters =
                query::filters(judge.raw("filters"), &["dangling", "label", "name", "driver"])?;
            let names = names_of(&mut filters);
            let query = vec![("filters".to_owned(), Value::Object(filters).to_string())];
            let forward = judge.forward("/volumes".to_owned(), query);
            Ok(send(Forward {
                names,
                follow_up: FollowUp::Filter(AnswerFilter::Volumes),
                ..forward
            }))
        }
        (&Method::POST, ["create"]) => {
            judge.query(&[])?;
            let body = volume_create(judge.call.body, judge.context)?;
            let name = body.get("Name").and_then(Value::as_str).filter(|name| !name.is_empty());
            let mut forward = judge.forward("/volumes/create".to_owned(), Vec::new());
            if let Some(name) = name {
                // The guard must know whether it exists: the engine answers for a foreign one as if it were created.
                forward.needs.volumes.push(name.to_owned());
            }
            Ok(send(Forward { body: SentBody::Json(body), follow_up: FollowUp::Volume, ..forward }))
        }
        (&Method::POST, ["prune"]) => {
            judge.query(&[("filters", Word)])?;
            let filters = query::filters(judge.raw("filters"), &["label", "label!", "all"])?;
            let query = vec![("filters".to_owned(), judge.own_only(filters))];
            let forward = judge.forward("/volumes/prune".to_owned(), query);
            Ok(send(Forward { follow_up: FollowUp::Pruned("VolumesDeleted"), ..forward }))
        }
        (&Method::GET, [name]) => {
            owned.volumes.find(name)?;
            let forward = judge.forward(format!("/volumes/{name}"), judge.query(&[])?);
            Ok(send(Forward { follow_up: FollowUp::Filter(AnswerFilter::Volume), ..forward }))
        }
        (&Method::DELETE, [name]) => {
            owned.volumes.find(name)?;
            let forward =
                judge.forward(format!("/volumes/{name}"), judge.query(&[("force", Flag)])?);
            Ok(send(Forward { follow_up: FollowUp::VolumeRemoved((*name).to_owned()), ..forward }))
        }
        _ => Err(judge.unknown()),
    }
}

//! Networks. Pure.

use hyper::Method;
use serde_json::Value;

use super::{
    body::network::{network_connect, network_create, network_disconnect},
    forward::{AnswerFilter, FollowUp, Forward, SentBody},
    judge::{Judge, Judgement, names_of, send},
    query::{
        self,
        Param::{Drop as Ignored, Word},
    },
};

pub(super) fn decide(judge: &Judge<'_>, segments: &[&str]) -> Judgement {
    let (owned, facts) = (&judge.context.owned, &judge.context.facts);
    match (judge.call.method, segments) {
        (&Method::GET, []) => {
            judge.query(&[("filters", Word)])?;
            let known = ["driver", "id", "label", "name", "scope", "type", "dangling"];
            let mut filters = query::filters(judge.raw("filters"), &known)?;
            let names = names_of(&mut filters);
            let query = vec![("filters".to_owned(), Value::Object(filters).to_string())];
            let forward = judge.forward("/networks".to_owned(), query);
            Ok(send(Forward {
                names,
                follow_up: FollowUp::Filter(AnswerFilter::Networks),
                ..forward
            }))
        }
        (&Method::POST, ["create"]) => {
            judge.query(&[])?;
            let judged = network_create(judge.call.body, judge.context)?;
            let name = judged.body["Name"].as_str().unwrap_or_default().to_owned();
            let forward = judge.forward("/networks/create".to_owned(), Vec::new());
            Ok(send(Forward {
                body: SentBody::Json(judged.body),
                needs: judged.needs,
                follow_up: FollowUp::Network(name),
                ..forward
            }))
        }
        (&Method::POST, ["prune"]) => judge.prune("networks", "NetworksDeleted"),
        (&Method::GET, [reference]) => {
            let id = match *reference {
                "bridge" => &facts.network_id,
                "none" => "none",
                name if name == facts.network_id => name,
                name => owned.networks.find(name)?.0,
            };
            judge.query(&[("verbose", Ignored), ("scope", Ignored)])?;
            let forward = judge.forward(format!("/networks/{id}"), Vec::new());
            Ok(send(Forward { follow_up: FollowUp::Filter(AnswerFilter::Network), ..forward }))
        }
        (&Method::DELETE, [reference]) => {
            let (id, _) = owned.networks.find(reference)?;
            let forward = judge.forward(format!("/networks/{id}"), judge.query(&[])?);
            Ok(send(Forward { follow_up: FollowUp::NetworkRemoved(id.to_owned()), ..forward }))
        }
        (&Method::POST, [reference, action @ ("connect" | "disconnect")]) => {
            let id = match *reference {
                "bridge" => &facts.network_id,
                name => owned.networks.find(name)?.0,
            };
            let body = if *action == "connect" {
                network_connect(judge.call.body, judge.context)?
            } else {
                network_disconnect(judge.call.body, judge.context)?
            };
            let container = body.get("Container").and_then(Value::as_str).unwrap_or_default();
            if *id == facts.network_id {
                // The job's own container stays where the runner put it.
                owned.containers.find_own(container)?;
            }
            let forward = judge.forward(format!("/networks/{id}/{action}"), judge.query(&[])?);
            Ok(send(Forward { body: SentBody::Json(body), ..forward }))
        }
        _ => Err(judge.unknown()),
    }
}

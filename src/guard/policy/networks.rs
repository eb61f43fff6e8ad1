//! Networks and volumes (5.5, 5.6).

use hyper::Method;
use serde_json::Value;

use super::{
    Decision, Filter, Forward, Judge, Sent, Then, names_of,
    query::{
        self,
        Param::{Drop as Ignored, Flag, Word},
    },
    send,
};
use crate::guard::body;

impl Judge<'_> {
    pub(super) fn volumes(&self, segments: &[&str]) -> Decision {
        let owned = &self.world.owned;
        match (self.call.method, segments) {
            (&Method::GET, []) => {
                self.query(&[("filters", Word)])?;
                let mut filters =
                    query::filters(self.raw("filters"), &["dangling", "label", "name", "driver"])?;
                let names = names_of(&mut filters);
                let query = vec![("filters".to_owned(), Value::Object(filters).to_string())];
                let forward = self.forward("/volumes".to_owned(), query);
                Ok(send(Forward { names, then: Then::Filter(Filter::Volumes), ..forward }))
            }
            (&Method::POST, ["create"]) => {
                self.query(&[])?;
                let body = body::volume_create(self.call.body, self.world)?;
                let name = body.get("Name").and_then(Value::as_str).filter(|name| !name.is_empty());
                let mut forward = self.forward("/volumes/create".to_owned(), Vec::new());
                if let Some(name) = name {
                    // Whether it exists must be known: the engine gives a foreign one as if created.
                    forward.needs.volumes.push(name.to_owned());
                }
                Ok(send(Forward { body: Sent::Json(body), then: Then::Volume, ..forward }))
            }
            (&Method::POST, ["prune"]) => {
                self.query(&[("filters", Word)])?;
                let filters = query::filters(self.raw("filters"), &["label", "label!", "all"])?;
                let query = vec![("filters".to_owned(), self.own_only(filters))];
                let forward = self.forward("/volumes/prune".to_owned(), query);
                Ok(send(Forward { then: Then::Pruned("VolumesDeleted"), ..forward }))
            }
            (&Method::GET, [name]) => {
                owned.volume(name)?;
                let forward = self.forward(format!("/volumes/{name}"), self.query(&[])?);
                Ok(send(Forward { then: Then::Filter(Filter::Volume), ..forward }))
            }
            (&Method::DELETE, [name]) => {
                owned.volume(name)?;
                let forward =
                    self.forward(format!("/volumes/{name}"), self.query(&[("force", Flag)])?);
                Ok(send(Forward { then: Then::VolumeRemoved((*name).to_owned()), ..forward }))
            }
            _ => Err(self.unknown()),
        }
    }

    pub(super) fn networks(&self, segments: &[&str]) -> Decision {
        let (owned, ground) = (&self.world.owned, &self.world.ground);
        match (self.call.method, segments) {
            (&Method::GET, []) => {
                self.query(&[("filters", Word)])?;
                let known = ["driver", "id", "label", "name", "scope", "type", "dangling"];
                let mut filters = query::filters(self.raw("filters"), &known)?;
                let names = names_of(&mut filters);
                let query = vec![("filters".to_owned(), Value::Object(filters).to_string())];
                let forward = self.forward("/networks".to_owned(), query);
                Ok(send(Forward { names, then: Then::Filter(Filter::Networks), ..forward }))
            }
            (&Method::POST, ["create"]) => {
                self.query(&[])?;
                let judged = body::network_create(self.call.body, self.world)?;
                let name = judged.body["Name"].as_str().unwrap_or_default().to_owned();
                let forward = self.forward("/networks/create".to_owned(), Vec::new());
                Ok(send(Forward {
                    body: Sent::Json(judged.body),
                    needs: judged.needs,
                    then: Then::Network(name),
                    ..forward
                }))
            }
            (&Method::POST, ["prune"]) => self.prune("networks", "NetworksDeleted"),
            (&Method::GET, [reference]) => {
                let id = match *reference {
                    "bridge" => &ground.network_id,
                    "none" => "none",
                    name if name == ground.network_id => name,
                    name => owned.network(name)?.0,
                };
                self.query(&[("verbose", Ignored), ("scope", Ignored)])?;
                let forward = self.forward(format!("/networks/{id}"), Vec::new());
                Ok(send(Forward { then: Then::Filter(Filter::Network), ..forward }))
            }
            (&Method::DELETE, [reference]) => {
                let (id, _) = owned.network(reference)?;
                let forward = self.forward(format!("/networks/{id}"), self.query(&[])?);
                Ok(send(Forward { then: Then::NetworkRemoved(id.to_owned()), ..forward }))
            }
            (&Method::POST, [reference, action @ ("connect" | "disconnect")]) => {
                let id = match *reference {
                    "bridge" => &ground.network_id,
                    name => owned.network(name)?.0,
                };
                let body = if *action == "connect" {
                    body::network_connect(self.call.body, self.world)?
                } else {
                    body::network_disconnect(self.call.body, self.world)?
                };
                let container = body.get("Container").and_then(Value::as_str).unwrap_or_default();
                if *id == ground.network_id {
                    // The job's own container stays where the runner put it.
                    owned.own_container(container)?;
                }
                let forward = self.forward(format!("/networks/{id}/{action}"), self.query(&[])?);
                Ok(send(Forward { body: Sent::Json(body), ..forward }))
            }
            _ => Err(self.unknown()),
        }
    }
}

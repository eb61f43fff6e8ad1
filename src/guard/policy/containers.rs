//! Containers and what runs in them (5.2, 5.3).

use hyper::Method;
use serde_json::{Value, json};

use super::{
    Decision, Filter, Forward, ImageUse, Judge, Sent, Then, names_of,
    query::{
        self,
        Param::{self, Drop as Ignored, Flag, Number, Word},
    },
    send,
};
use crate::guard::{Refusal, body, buildkit};

impl Judge<'_> {
    pub(super) fn containers(&self, segments: &[&str]) -> Decision {
        let owned = &self.world.owned;
        match (self.call.method, segments) {
            (&Method::GET, ["json"]) => self.container_list(),
            (&Method::POST, ["create"]) => self.container_create(),
            (&Method::POST, ["prune"]) => self.prune("containers", "ContainersDeleted"),
            // `docker inspect REGISTRY/IMAGE` asks for a container of that name first.
            (&Method::GET, [name @ .., "json"]) if name.len() > 1 => {
                Err(Refusal::missing(format!("No such container: {}", name.join("/"))))
            }
            (_, [reference, ..]) if buildkit::is_builder(reference) => {
                Err(buildkit::builder(self.world.settings.build))
            }
            (&Method::DELETE, [reference]) => {
                let (id, _) = owned.own_container(reference)?;
                let query = self.query(&[("v", Flag), ("force", Flag), ("link", Ignored)])?;
                if query::is_true(self.raw("link")) {
                    return Err(Refusal::denied("removing links", "G-1"));
                }
                let then = Then::Removed(id.to_owned());
                Ok(send(Forward { then, ..self.forward(format!("/containers/{id}"), query) }))
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
                let Some(allowed) = see else { return self.container_action(reference, action) };
                let (id, _) = owned.container(reference)?;
                let query = self.query(allowed)?;
                match *action {
                    "top" => ps_arguments(self.raw("ps_args"))?,
                    "wait"
                        if !["", "not-running", "next-exit", "removed"]
                            .contains(&self.raw("condition")) =>
                    {
                        return Err(Refusal::malformed("an unknown condition", "G-38"));
                    }
                    _ => {}
                }
                let then = match *action {
                    "json" => Then::Filter(Filter::Container),
                    "stats" => Then::Stats,
                    _ => Then::Pass,
                };
                Ok(send(Forward {
                    then,
                    ..self.forward(format!("/containers/{id}/{action}"), query)
                }))
            }
            _ => Err(self.unknown()),
        }
    }

    /// What is done to a container of the job's making.
    fn container_action(&self, reference: &str, action: &str) -> Decision {
        let is_archive = action == "archive";
        let allowed: &[(&str, Param)] = match (self.call.method, action) {
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
            _ => return Err(self.unknown()),
        };
        let (id, _) = self.world.owned.own_container(reference)?;
        let query = self.query(allowed)?;
        let mut forward = self.forward(format!("/containers/{id}/{action}"), query);
        if is_archive && self.raw("path").is_empty() {
            return Err(Refusal::malformed("the path is missing", "G-25"));
        }
        match (self.call.method, action) {
            (&Method::PUT, _) => forward.body = Sent::Archive,
            (_, "start") if !self.call.body.is_empty() => {
                return Err(Refusal::denied("a host configuration at start", "G-41"));
            }
            (_, "rename") => {
                let name = self.raw("name").trim_start_matches('/');
                body::name(name, &self.world.settings)?;
                forward.query = vec![("name".to_owned(), name.to_owned())];
                forward.then = Then::Renamed(id.to_owned(), name.to_owned());
            }
            (_, "update") => {
                forward.body = Sent::Json(body::container_update(self.call.body, self.world)?);
            }
            (_, "attach") => forward.then = Then::Hijack,
            (_, "exec") => {
                forward.body = Sent::Json(body::exec_create(self.call.body, self.world)?);
                forward.then = Then::Exec(id.to_owned());
            }
            _ => {}
        }
        Ok(send(forward))
    }

    fn container_list(&self) -> Decision {
        let mut query = self.query(&[
            ("all", Flag),
            ("limit", Number),
            ("size", Flag),
            ("filters", Word),
            ("since", Ignored),
            ("before", Ignored),
            ("trunc_cmd", Ignored),
        ])?;
        query.retain(|(name, value)| {
            name != "filters" && !(name == "limit" && value.starts_with('-'))
        });
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
        let mut filters = query::filters(self.raw("filters"), &known)?;
        for name in ["since", "before"] {
            if let Some(Value::Array(references)) = filters.get_mut(name) {
                for reference in references {
                    let (id, _) =
                        self.world.owned.container(reference.as_str().unwrap_or_default())?;
                    *reference = json!(id);
                }
            }
        }
        if let Some(Value::Array(references)) = filters.get_mut("network") {
            for reference in references {
                let name = reference.as_str().unwrap_or_default();
                let id = if ["bridge", "default"].contains(&name) {
                    self.world.ground.network_id.clone()
                } else {
                    self.world.owned.network(name).map_or("-", |(id, _)| id).to_owned()
                };
                *reference = json!(id);
            }
        }
        let mut names = names_of(&mut filters);
        if !names.patterns.is_empty() {
            // The engine would count those that do not match.
            names.limit = self.raw("limit").parse().ok().filter(|limit| *limit > 0);
            query.retain(|(name, _)| name != "limit");
        }
        query.push(("filters".to_owned(), self.own_only(filters)));
        let forward = self.forward("/containers/json".to_owned(), query);
        Ok(send(Forward { names, then: Then::Filter(Filter::Containers), ..forward }))
    }

    fn container_create(&self) -> Decision {
        let mut query = self.query(&[("name", Word), ("platform", Word)])?;
        let name = self.raw("name").trim_start_matches('/').to_owned();
        query.retain(|(known, _)| known != "name");
        if buildkit::is_builder(&name) {
            return Err(buildkit::builder(self.world.settings.build));
        }
        if !name.is_empty() {
            body::name(&name, &self.world.settings)?;
            query.push(("name".to_owned(), name));
        }
        let judged = body::container_create(self.call.body, self.world)?;
        let image = judged.body.get("Image").and_then(Value::as_str).unwrap_or_default().to_owned();
        if image.is_empty() {
            return Err(Refusal::malformed("no image is named", "G-60"));
        }
        let forward = self.forward("/containers/create".to_owned(), query);
        Ok(send(Forward {
            body: Sent::Json(judged.body),
            image: Some((image.clone(), ImageUse::Container)),
            needs: judged.needs,
            then: Then::Created { image },
            ..forward
        }))
    }

    pub(super) fn exec(&self, segments: &[&str]) -> Decision {
        let [id, action] = segments else { return Err(self.unknown()) };
        let allowed: &[(&str, Param)] = match (self.call.method, *action) {
            (&Method::GET, "json") | (&Method::POST, "start") => &[],
            (&Method::POST, "resize") => &[("h", Number), ("w", Number)],
            _ => return Err(self.unknown()),
        };
        let id = self.world.owned.exec(id)?;
        let mut forward = self.forward(format!("/exec/{id}/{action}"), self.query(allowed)?);
        if *action == "start" {
            let judged = body::exec_start(self.call.body, self.world)?;
            if judged.get("Detach") != Some(&Value::Bool(true)) {
                forward.then = Then::Hijack;
            }
            forward.body = Sent::Json(judged);
        }
        Ok(send(forward))
    }
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

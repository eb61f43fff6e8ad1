//! What becomes of a request: sent on rebuilt, refused, or answered (sections 3 and 5 of the
//! contract). Pure: a decision over the request, the settings and what the job owns. What is not
//! in these tables is refused.

mod query;
#[cfg(test)]
mod tests;

use hyper::Method;
use serde_json::{Map, Value, json};

use self::query::Param::{self, Drop as Ignored, Flag, Many, Number, Word};
use super::{
    Refusal,
    body::{self, Needs, World},
    image::{self, Reference},
    settings::ImagePolicy,
    target::Target,
};

/// A request as far as it is judged.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a Target,
    /// The body, where it is JSON.
    pub body: &'a Map<String, Value>,
    /// `X-Registry-Auth`, decoded and judged.
    pub auth: Option<String>,
    /// `X-Registry-Config`, decoded and judged.
    pub registries: Option<String>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// This is sent, and its answer handled so.
    Forward(Box<Forward>),
    /// Nothing is sent.
    Refuse(Refusal),
    /// Nothing is sent, and all is well.
    Answer(Reply),
}

/// The guard's own answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// `OK`, to a ping.
    Ping,
    /// A JSON value.
    Json(Value),
}

/// A request of the guard's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// The method.
    pub method: Method,
    /// The path without a version. `{image}` stands for what `image` is resolved to.
    pub path: String,
    /// The parameters.
    pub query: Vec<(String, String)>,
    /// The body.
    pub body: Sent,
    /// Credentials for one registry.
    pub auth: Option<String>,
    /// Credentials for several.
    pub registries: Option<String>,
    /// An image that must be resolved first.
    pub image: Option<(String, ImageUse)>,
    /// Tags that must not exist yet, unless the job made them.
    pub free_tags: Vec<Reference>,
    /// What must be done first.
    pub needs: Needs,
    /// What names in the answer must match.
    pub names: NameFilter,
    /// What is done with the answer.
    pub then: Then,
}

/// The filter `name` of a list, which is the guard's to apply: the engine has other names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameFilter {
    /// Of these patterns one must match, where there are any.
    pub patterns: Vec<String>,
    /// How many entries there may be then.
    pub limit: Option<usize>,
}

/// The body of a request of the guard's own.
#[derive(Debug, Clone, PartialEq)]
pub enum Sent {
    /// None.
    Nothing,
    /// JSON.
    Json(Map<String, Value>),
    /// The client's archive, as it comes.
    Archive,
    /// The client's archive, once it was read to its end and judged.
    Context,
    /// The same, of images.
    Images,
}

/// What an image is resolved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageUse {
    /// By id.
    Id,
    /// By name where it was named.
    Name,
    /// To remove it, or its tag.
    Remove,
    /// To create a container; the id goes into the body.
    Container,
}

/// What is done with the engine's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Then {
    /// It is passed on as it comes.
    Pass,
    /// The connection becomes a stream.
    Hijack,
    /// It is cut down.
    Filter(Filter),
    /// Each event is judged.
    Events,
    /// Each piece of statistics loses its names.
    Stats,
    /// A container was created.
    Created {
        /// The image as the client spelled it.
        image: String,
    },
    /// A container was removed.
    Removed(String),
    /// A container has a new name.
    Renamed(String, String),
    /// An exec was created in this container.
    Exec(String),
    /// A volume was created.
    Volume,
    /// A volume was removed.
    VolumeRemoved(String),
    /// A network of this name was created.
    Network(String),
    /// A network was removed.
    NetworkRemoved(String),
    /// An image was pulled.
    Pulled(Reference),
    /// An image got a tag.
    Tagged(Reference),
    /// An image was made by commit or import.
    Made(Option<Reference>),
    /// An image was built.
    Built(Vec<Reference>),
    /// Images were loaded.
    Loaded,
    /// Something was pruned; the answer's list of it.
    Pruned(&'static str),
}

/// How an answer is cut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// `GET /version`.
    Version,
    /// `GET /info`.
    Info,
    /// `GET /system/df`.
    Usage,
    /// One container.
    Container,
    /// Containers.
    Containers,
    /// One image.
    Image,
    /// Images.
    Images,
    /// An image's history.
    History,
    /// One network.
    Network,
    /// Networks.
    Networks,
    /// One volume.
    Volume,
    /// Volumes.
    Volumes,
}

/// What kind of body a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// None that counts.
    Ignored,
    /// JSON, or nothing.
    Json,
    /// An archive.
    Archive,
}

/// Which body belongs to a request.
#[must_use]
pub fn body_kind(method: &Method, target: &Target) -> BodyKind {
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
pub fn route(target: &Target) -> String {
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

/// Decides about a request.
#[must_use]
pub fn judge(call: &Call<'_>, world: &World) -> Verdict {
    let judge = Judge { call, world };
    match judge.decide() {
        Ok(verdict) => verdict,
        Err(refusal) => Verdict::Refuse(refusal),
    }
}

/// Whether a job may make this tag (G-61); what remains is whether it exists.
///
/// # Errors
/// When it may not, whether it exists or not.
pub fn new_tag(reference: &Reference, policy: &ImagePolicy) -> Result<(), Refusal> {
    if reference.digest.is_some() {
        return Err(Refusal::malformed("a tag cannot have a digest", "G-61"));
    }
    if reference.is_shared(policy) {
        return Err(Refusal::because(
            &format!("the tag {} is shared by jobs and cannot be changed", reference.short()),
            "G-61",
        ));
    }
    Ok(())
}

struct Judge<'a> {
    call: &'a Call<'a>,
    world: &'a World,
}

type Decision = Result<Verdict, Refusal>;

impl Judge<'_> {
    fn decide(&self) -> Decision {
        self.version()?;
        let method = self.call.method;
        if ![Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE].contains(method)
        {
            return Err(Refusal {
                status: 405,
                message: "guard: method not allowed (G-20)".to_owned(),
                rule: "G-20",
            });
        }
        let segments: Vec<&str> = self.call.target.segments.iter().map(String::as_str).collect();
        let names_an_image = matches!(segments[..], ["images" | "distribution", ..]);
        if !names_an_image && segments.iter().any(|segment| segment.contains('/')) {
            return Err(Refusal::malformed("the path is not plain", "G-24"));
        }
        match segments[0] {
            "containers" => self.containers(&segments[1..]),
            "exec" => self.exec(&segments[1..]),
            "images" => self.images(&segments[1..]),
            "volumes" => self.volumes(&segments[1..]),
            "networks" => self.networks(&segments[1..]),
            _ => self.system(&segments),
        }
    }

    /// G-41.
    fn version(&self) -> Result<(), Refusal> {
        let Some(version) = self.call.target.version else { return Ok(()) };
        let (major, minor) = version;
        let highest = self.world.ground.version;
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

    fn query(&self, allowed: &[(&str, Param)]) -> Result<Vec<(String, String)>, Refusal> {
        query::judge(&self.call.target.query, allowed)
    }

    fn raw(&self, name: &str) -> &str {
        let found = self.call.target.query.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// Builds one that has no body, and whose answer is passed on.
    fn forward(&self, path: String, query: Vec<(String, String)>) -> Forward {
        Forward {
            method: self.call.method.clone(),
            path,
            query,
            body: Sent::Nothing,
            auth: None,
            registries: None,
            image: None,
            free_tags: Vec::new(),
            needs: Needs::default(),
            names: NameFilter::default(),
            then: Then::Pass,
        }
    }

    fn unknown(&self) -> Refusal {
        let method = self.call.method;
        Refusal::denied(&format!("{method} {}", route(self.call.target)), "G-1")
    }

    fn system(&self, segments: &[&str]) -> Decision {
        let filtered = |path: &str, filter, query| {
            let forward =
                Forward { then: Then::Filter(filter), ..self.forward(path.to_owned(), query) };
            Ok(send(forward))
        };
        match (self.call.method, segments) {
            (&Method::GET | &Method::HEAD, ["_ping"]) => Ok(Verdict::Answer(Reply::Ping)),
            (&Method::GET, ["version"]) => filtered("/version", Filter::Version, Vec::new()),
            (&Method::GET, ["info"]) => filtered("/info", Filter::Info, Vec::new()),
            (&Method::GET, ["system", "df"]) => {
                self.query(&[("type", Many), ("verbose", Ignored)])?;
                filtered("/system/df", Filter::Usage, Vec::new())
            }
            // Where the CLI looks last for a name that is nothing else.
            (&Method::GET, ["plugins", name, "json"]) => {
                let name = super::fields::join("", name);
                Err(Refusal::missing(format!("plugin \"{name}\" not found")))
            }
            (&Method::GET, ["plugins"]) => Ok(Verdict::Answer(Reply::Json(json!([])))),
            (&Method::GET, ["events"]) => self.events(),
            (&Method::POST, ["auth"]) => self.auth(),
            (&Method::GET, ["distribution", name @ .., "json"]) if !name.is_empty() => {
                let name = name.join("/");
                let reference = Reference::parse(&name).ok_or_else(|| bad_reference(&name))?;
                reference.may_ask(&self.world.settings.images)?;
                let mut forward = self.forward(
                    format!("/distribution/{}/json", reference.canonical()),
                    self.query(&[])?,
                );
                forward.auth.clone_from(&self.call.auth);
                Ok(send(forward))
            }
            (&Method::POST, ["commit"]) => self.commit(),
            (&Method::POST, ["build"]) => self.build(),
            (&Method::POST, ["build", "prune"]) => Ok(Verdict::Answer(Reply::Json(
                json!({ "CachesDeleted": [], "SpaceReclaimed": 0 }),
            ))),
            (_, ["session" | "grpc"]) => Err(no_buildkit()),
            _ => Err(self.unknown()),
        }
    }

    fn events(&self) -> Decision {
        let known = ["container", "event", "image", "label", "network", "type", "volume", "scope"];
        let mut query = self.query(&[("since", Word), ("until", Word), ("filters", Word)])?;
        query.retain(|(name, _)| name != "filters");
        let filters = query::filters(self.raw("filters"), &known)?;
        if !filters.is_empty() {
            query.push(("filters".to_owned(), Value::Object(filters).to_string()));
        }
        let forward = Forward { then: Then::Events, ..self.forward("/events".to_owned(), query) };
        Ok(send(forward))
    }

    fn auth(&self) -> Decision {
        let judged = credentials(self.call.body)?;
        let server = judged.get("serveraddress").and_then(Value::as_str).unwrap_or_default();
        let host = registry_host(server);
        image::may_ask(host, &self.world.settings.images)?;
        let mut body = judged.clone();
        let address = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
        body.insert("serveraddress".to_owned(), json!(address));
        self.query(&[])?;
        let forward = self.forward("/auth".to_owned(), Vec::new());
        Ok(send(Forward { body: Sent::Json(body), ..forward }))
    }

    fn containers(&self, segments: &[&str]) -> Decision {
        let owned = &self.world.owned;
        match (self.call.method, segments) {
            (&Method::GET, ["json"]) => self.container_list(),
            (&Method::POST, ["create"]) => self.container_create(),
            (&Method::POST, ["prune"]) => self.prune("containers", "ContainersDeleted"),
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

    /// Filters with the job's label added.
    fn own_only(&self, mut filters: Map<String, Value>) -> String {
        let (key, value) = &self.world.settings.identity;
        let labels = filters.entry("label").or_insert_with(|| json!([]));
        if let Value::Array(labels) = labels {
            labels.push(json!(format!("{key}={value}")));
        }
        Value::Object(filters).to_string()
    }

    fn container_create(&self) -> Decision {
        let mut query = self.query(&[("name", Word), ("platform", Word)])?;
        let name = self.raw("name").trim_start_matches('/').to_owned();
        query.retain(|(known, _)| known != "name");
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

    fn prune(&self, kind: &str, list: &'static str) -> Decision {
        self.query(&[("filters", Word)])?;
        let filters = query::filters(self.raw("filters"), &["until", "label", "label!"])?;
        let query = vec![("filters".to_owned(), self.own_only(filters))];
        let forward = self.forward(format!("/{kind}/prune"), query);
        Ok(send(Forward { then: Then::Pruned(list), ..forward }))
    }

    fn exec(&self, segments: &[&str]) -> Decision {
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

    fn images(&self, segments: &[&str]) -> Decision {
        match (self.call.method, segments) {
            (&Method::GET, ["json"]) => self.image_list(),
            (&Method::GET, ["get"]) => {
                let names = self.query(&[("names", Many), ("platform", Ignored)])?;
                // Several are not resolved at once; the CLI names one or many.
                let [(_, name)] = &names[..] else {
                    return Err(Refusal::denied("saving several images in one request", "G-60"));
                };
                let mut forward = self.forward("/images/{image}/get".to_owned(), Vec::new());
                forward.image = Some((name.clone(), ImageUse::Name));
                Ok(send(forward))
            }
            (&Method::POST, ["create"]) => self.image_create(),
            (&Method::POST, ["load"]) => {
                let query = self.query(&[("quiet", Flag), ("platform", Word)])?;
                let forward = self.forward("/images/load".to_owned(), query);
                Ok(send(Forward { body: Sent::Images, then: Then::Loaded, ..forward }))
            }
            (&Method::POST, ["prune"]) => Ok(Verdict::Answer(Reply::Json(
                json!({ "ImagesDeleted": null, "SpaceReclaimed": 0 }),
            ))),
            (&Method::GET, [name @ .., action @ ("json" | "history" | "get")])
                if !name.is_empty() =>
            {
                let query = self.query(&[("platform", Word), ("manifests", Flag)])?;
                let mut forward = self.forward(format!("/images/{{image}}/{action}"), query);
                let how = if *action == "get" { ImageUse::Name } else { ImageUse::Id };
                forward.image = Some((name.join("/"), how));
                forward.then = match *action {
                    "json" => Then::Filter(Filter::Image),
                    "history" => Then::Filter(Filter::History),
                    _ => Then::Pass,
                };
                Ok(send(forward))
            }
            (&Method::POST, [name @ .., "tag"]) if !name.is_empty() => {
                self.query(&[("repo", Word), ("tag", Word), ("force", Ignored)])?;
                let reference = self.named_tag()?.ok_or_else(|| bad_reference(""))?;
                let mut forward =
                    self.forward("/images/{image}/tag".to_owned(), tag_query(&reference));
                forward.image = Some((name.join("/"), ImageUse::Id));
                forward.free_tags = vec![reference.clone()];
                forward.then = Then::Tagged(reference);
                Ok(send(forward))
            }
            (&Method::POST, [name @ .., "push"]) if !name.is_empty() => self.push(&name.join("/")),
            (&Method::DELETE, name) if !name.is_empty() => {
                let query = self.query(&[("force", Flag), ("noprune", Flag)])?;
                let mut forward = self.forward("/images/{image}".to_owned(), query);
                forward.image = Some((name.join("/"), ImageUse::Remove));
                Ok(send(forward))
            }
            _ => Err(self.unknown()),
        }
    }

    /// The tag in `repo` and `tag`, when one is named and may be made.
    fn named_tag(&self) -> Result<Option<Reference>, Refusal> {
        let (repository, tag) = (self.raw("repo"), self.raw("tag"));
        if repository.is_empty() {
            return if tag.is_empty() { Ok(None) } else { Err(bad_reference(tag)) };
        }
        let reference =
            Reference::of_parts(repository, tag).ok_or_else(|| bad_reference(repository))?;
        new_tag(&reference, &self.world.settings.images)?;
        Ok(Some(reference))
    }

    fn image_list(&self) -> Decision {
        let mut query = self.query(&[
            ("all", Flag),
            ("filters", Word),
            ("filter", Ignored),
            ("digests", Flag),
            ("shared-size", Ignored),
            ("manifests", Flag),
        ])?;
        query.retain(|(name, _)| name != "filters");
        let filters =
            query::filters(self.raw("filters"), &["dangling", "label", "reference", "until"])?;
        if !filters.is_empty() {
            query.push(("filters".to_owned(), Value::Object(filters).to_string()));
        }
        let forward = self.forward("/images/json".to_owned(), query);
        Ok(send(Forward { then: Then::Filter(Filter::Images), ..forward }))
    }

    fn image_create(&self) -> Decision {
        let most = self.world.settings.limits.images;
        if self.world.owned.image_count() >= most {
            return Err(body::limit("images", most));
        }
        let (image, source) = (self.raw("fromImage"), self.raw("fromSrc"));
        if !image.is_empty() && source.is_empty() {
            self.query(&[
                ("fromImage", Word),
                ("tag", Word),
                ("platform", Word),
                ("repo", Ignored),
                ("fromSrc", Ignored),
                ("message", Ignored),
            ])?;
            let reference =
                Reference::of_parts(image, self.raw("tag")).ok_or_else(|| bad_reference(image))?;
            reference.may_ask(&self.world.settings.images)?;
            let tag =
                reference.digest.clone().or_else(|| reference.tag.clone()).unwrap_or_default();
            let mut query =
                vec![("fromImage".to_owned(), reference.repository()), ("tag".to_owned(), tag)];
            if !self.raw("platform").is_empty() {
                query.push(("platform".to_owned(), self.raw("platform").to_owned()));
            }
            let forward = self.forward("/images/create".to_owned(), query);
            let auth = self.call.auth.clone();
            return Ok(send(Forward { auth, then: Then::Pulled(reference), ..forward }));
        }
        if source != "-" || !image.is_empty() {
            return Err(Refusal::denied("an import from an address", "G-1"));
        }
        let mut query = self.query(&[
            ("fromSrc", Word),
            ("repo", Ignored),
            ("tag", Ignored),
            ("message", Word),
            ("changes", Many),
            ("platform", Word),
        ])?;
        let reference = self.named_tag()?;
        self.changes(&mut query)?;
        query.extend(reference.iter().flat_map(tag_query));
        let forward = self.forward("/images/create".to_owned(), query);
        Ok(send(Forward {
            body: Sent::Archive,
            free_tags: reference.iter().cloned().collect(),
            then: Then::Made(reference),
            ..forward
        }))
    }

    /// Judges `changes`, and adds the job's labels (G-63).
    fn changes(&self, query: &mut Vec<(String, String)>) -> Result<(), Refusal> {
        for (_, change) in query.iter().filter(|(name, _)| name == "changes") {
            super::dockerfile::change(change, &self.world.settings)?;
        }
        for (key, value) in self.world.settings.image_labels() {
            let line = format!("LABEL {}={}", Value::from(key), Value::from(value));
            query.push(("changes".to_owned(), line));
        }
        Ok(())
    }

    fn push(&self, name: &str) -> Decision {
        self.query(&[("tag", Word), ("platform", Word)])?;
        let reference =
            Reference::of_parts(name, self.raw("tag")).ok_or_else(|| bad_reference(name))?;
        let missing =
            || Refusal::missing(format!("An image does not exist locally with the tag: {name}"));
        if !self.world.owned.tag(&reference.canonical()).ok_or_else(missing)?.made {
            return Err(Refusal::because("only tags that this job made can be pushed", "G-65"));
        }
        reference.may_ask(&self.world.settings.images)?;
        let query = vec![("tag".to_owned(), reference.tag.clone().unwrap_or_default())];
        let forward = self.forward(format!("/images/{}/push", reference.repository()), query);
        Ok(send(Forward { auth: self.call.auth.clone(), ..forward }))
    }

    fn commit(&self) -> Decision {
        let mut query = self.query(&[
            ("container", Word),
            ("repo", Ignored),
            ("tag", Ignored),
            ("comment", Word),
            ("author", Word),
            ("pause", Flag),
            ("changes", Many),
        ])?;
        let (id, _) = self.world.owned.own_container(self.raw("container"))?;
        query.retain(|(name, _)| name != "container");
        query.push(("container".to_owned(), id.to_owned()));
        let reference = self.named_tag()?;
        self.changes(&mut query)?;
        query.extend(reference.iter().flat_map(tag_query));
        let forward = self.forward("/commit".to_owned(), query);
        Ok(send(Forward {
            body: Sent::Json(body::commit(self.call.body, self.world)?),
            free_tags: reference.iter().cloned().collect(),
            then: Then::Made(reference),
            ..forward
        }))
    }

    fn volumes(&self, segments: &[&str]) -> Decision {
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

    fn networks(&self, segments: &[&str]) -> Decision {
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

    fn build(&self) -> Decision {
        if !self.world.settings.build {
            return Err(Refusal::denied("building images", "G-70"));
        }
        if !["", "1"].contains(&self.raw("version")) || !self.raw("session").is_empty() {
            return Err(no_buildkit());
        }
        let mut query = self.query(&[
            ("t", Many),
            ("dockerfile", Word),
            ("buildargs", Word),
            ("labels", Word),
            ("target", Word),
            ("q", Flag),
            ("nocache", Flag),
            ("pull", Flag),
            ("platform", Word),
            ("memory", Number),
            ("memswap", Number),
            ("cpuquota", Number),
            ("cpuperiod", Number),
            ("cpushares", Number),
            ("extrahosts", Many),
            ("networkmode", Word),
            ("cachefrom", Word),
            ("rm", Ignored),
            ("forcerm", Ignored),
            ("version", Ignored),
            ("shmsize", Ignored),
            ("ulimits", Ignored),
            ("buildid", Ignored),
            ("remote", Param::Empty),
            ("session", Param::Empty),
            ("outputs", Param::Empty),
            ("cgroupparent", Param::Empty),
            ("squash", Param::Empty),
            ("isolation", Param::Empty),
            ("securityopt", Param::Empty),
            ("cpusetcpus", Param::Empty),
            ("cpusetmems", Param::Empty),
        ])?;
        let mut tags = Vec::new();
        for (_, tag) in query.iter_mut().filter(|(name, _)| name == "t") {
            let reference = Reference::parse(tag).ok_or_else(|| bad_reference(tag))?;
            new_tag(&reference, &self.world.settings.images)?;
            *tag = reference.canonical();
            tags.push(reference);
        }
        query::build(&mut query, self.world, |name| self.raw(name))?;
        let forward = self.forward("/build".to_owned(), query);
        Ok(send(Forward {
            body: Sent::Context,
            registries: self.call.registries.clone(),
            free_tags: tags.clone(),
            then: Then::Built(tags),
            ..forward
        }))
    }
}

fn send(forward: Forward) -> Verdict {
    Verdict::Forward(Box::new(forward))
}

/// Takes the filter `name` out.
fn names_of(filters: &mut Map<String, Value>) -> NameFilter {
    let patterns = match filters.remove("name") {
        Some(Value::Array(values)) => {
            values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    NameFilter { patterns, limit: None }
}

fn bad_reference(text: &str) -> Refusal {
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    Refusal { status: 400, message: format!("invalid reference format: {text}"), rule: "G-61" }
}

fn no_buildkit() -> Refusal {
    Refusal::because(
        "BuildKit is not available on this socket; set DOCKER_BUILDKIT=0 to build with the classic \
         builder, or use the job's own daemon (docker:dind)",
        "G-1",
    )
}

fn tag_query(reference: &Reference) -> Vec<(String, String)> {
    vec![
        ("repo".to_owned(), reference.repository()),
        ("tag".to_owned(), reference.tag.clone().unwrap_or_default()),
    ]
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

/// Credentials with known fields only.
///
/// # Errors
/// When there are others, or they are no strings.
pub fn credentials(map: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
    const KNOWN: &[(&str, super::fields::Rule<()>)] = {
        use super::fields::Rule::{Drop, Text};
        &[
            ("username", Text),
            ("password", Text),
            ("auth", Text),
            ("email", Drop),
            ("serveraddress", Text),
            ("identitytoken", Text),
            ("registrytoken", Text),
        ]
    };
    super::fields::apply(KNOWN, map, "", &mut ())
}

/// The registry that a server's address means.
#[must_use]
pub fn registry_host(address: &str) -> &str {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    let host = rest.unwrap_or(address).split('/').next().unwrap_or_default();
    match host {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

//! What becomes of a request: sent on rebuilt, refused, or answered (sections 3 and 5 of the
//! contract). Pure: a decision over the request, the settings and what the job owns. What is not
//! in these tables is refused.

mod containers;
mod images;
mod networks;
mod query;
#[cfg(test)]
mod tests;

use hyper::Method;
use serde_json::{Map, Value, json};

use self::query::Param::{self, Drop as Ignored, Many, Word};
use super::{HELPER_REPOSITORY, PORTABLE_REPOSITORY};
use super::{
    Refusal,
    body::{Needs, World},
    buildkit,
    image::{self, Reference},
    settings::GuardSettings,
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
    /// Tags that the job is about to make.
    pub new_tags: Vec<Reference>,
    /// Tags of the job's by which the engine must find an image.
    pub held: Vec<Reference>,
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
    /// Of these patterns one must match a tag of an image, where there are any.
    pub references: Vec<String>,
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
    /// A tag was pushed.
    Pushed(Reference),
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
pub fn new_tag(reference: &Reference, settings: &GuardSettings) -> Result<(), Refusal> {
    if reference.digest.is_some() {
        return Err(Refusal::malformed("a tag cannot have a digest", "G-61"));
    }
    // What longshore finds under these names it runs, with more rights than any job's.
    let short = reference.short();
    let own = [HELPER_REPOSITORY, PORTABLE_REPOSITORY];
    if own.iter().any(|own| short.strip_prefix(own).is_some_and(|rest| rest.starts_with(':'))) {
        return Err(Refusal::because(&format!("the tag {short} is the runner's own"), "G-61"));
    }
    if settings.names.are_in(&reference.registry) {
        return Err(Refusal::because("this registry is the guard's own", "G-61"));
    }
    if reference.is_shared(&settings.images) {
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
            new_tags: Vec::new(),
            held: Vec::new(),
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
            (_, ["session" | "grpc"]) => Err(buildkit::in_the_engine(self.world.settings.build)),
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

    /// Filters with the job's label added.
    fn own_only(&self, mut filters: Map<String, Value>) -> String {
        // All of them: a container that somebody else made of this job's image has the identity.
        let own = self.world.settings.all_labels();
        let labels = filters.entry("label").or_insert_with(|| json!([]));
        if let Value::Array(labels) = labels {
            labels.extend(own.iter().map(|(key, value)| json!(format!("{key}={value}"))));
        }
        Value::Object(filters).to_string()
    }

    fn prune(&self, kind: &str, list: &'static str) -> Decision {
        self.query(&[("filters", Word)])?;
        let filters = query::filters(self.raw("filters"), &["until", "label", "label!"])?;
        let query = vec![("filters".to_owned(), self.own_only(filters))];
        let forward = self.forward(format!("/{kind}/prune"), query);
        Ok(send(Forward { then: Then::Pruned(list), ..forward }))
    }
}

fn send(forward: Forward) -> Verdict {
    Verdict::Forward(Box::new(forward))
}

/// Takes the filters out that are about names.
fn names_of(filters: &mut Map<String, Value>) -> NameFilter {
    let mut taken = |name: &str| match filters.remove(name) {
        Some(Value::Array(values)) => {
            values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    NameFilter { patterns: taken("name"), references: taken("reference"), limit: None }
}

fn bad_reference(text: &str) -> Refusal {
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    Refusal { status: 400, message: format!("invalid reference format: {text}"), rule: "G-61" }
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

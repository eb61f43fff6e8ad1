//! What becomes of a request, as data.

use hyper::Method;
use serde_json::{Map, Value};

use crate::guard::{image::Reference, parse::target::Target, refusal::Refusal};

use super::body::needs::Needs;

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
    pub body: SentBody,
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
    pub follow_up: FollowUp,
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
pub enum SentBody {
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
pub enum FollowUp {
    /// It is passed on as it comes.
    Pass,
    /// The connection becomes a stream.
    Hijack,
    /// It is cut down.
    AnswerFilter(AnswerFilter),
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
pub enum AnswerFilter {
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

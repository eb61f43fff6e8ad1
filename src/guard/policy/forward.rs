//! What becomes of a request, as data.

use hyper::Method;
use serde_json::{Map, Value};

use crate::guard::{image::Reference, parse::target::Target, refusal::Refusal};

use super::body::needs::Needs;

/// A request as far as it is judged.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// `GET`, `POST` and so on, as the client wrote it.
    pub method: &'a Method,
    /// Path and query, decoded.
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
    /// A request that the guard built is sent to the engine.
    Forward(Box<Forward>),
    /// Nothing is sent; the client reads the refusal.
    Refuse(Refusal),
    /// Nothing is sent: the guard knows the answer.
    Answer(Reply),
}

/// An answer of the guard's own.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// `OK`, to a ping.
    Ping,
    /// With the status 200.
    Json(Value),
}

/// A request that the guard built, and what comes before and after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    pub(crate) method: Method,
    /// The path without a version. `{image}` stands for what `image` is resolved to.
    pub path: String,
    /// The parameters, not encoded.
    pub query: Vec<(String, String)>,
    /// What follows the head.
    pub body: SentBody,
    /// Credentials for one registry, as the header `X-Registry-Auth` has them.
    pub(crate) auth: Option<String>,
    /// Credentials for several, as `X-Registry-Config` has them.
    pub(crate) registries: Option<String>,
    /// An image that must be resolved first.
    pub(crate) image: Option<(String, ImageUse)>,
    /// Tags that the job is about to make.
    pub(crate) new_tags: Vec<Reference>,
    /// Tags of the job's by which the engine must find an image.
    pub(crate) held: Vec<Reference>,
    /// What must be done first.
    pub needs: Needs,
    /// What names in the answer must match.
    pub(crate) names: NameFilter,
    /// What is done with the answer.
    pub(crate) follow_up: FollowUp,
}

/// The filter `name` of a list, which is the guard's to apply: the engine has other names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NameFilter {
    /// Of these patterns one must match, where there are any.
    pub(crate) patterns: Vec<String>,
    /// Of these patterns one must match a tag of an image, where there are any.
    pub(crate) references: Vec<String>,
    /// How many entries there may be then.
    pub(crate) limit: Option<usize>,
}

/// The body of a request that the guard built.
#[derive(Debug, Clone, PartialEq)]
pub enum SentBody {
    /// The request has no body.
    Nothing,
    /// A document of the guard's own writing.
    Json(Map<String, Value>),
    /// The client's archive, as it comes.
    Archive,
    /// The client's archive, a build's context, once it was read to its end and judged.
    Context,
    /// The client's archive of images, once it was read to its end and judged.
    Images,
}

/// What an image is resolved for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageUse {
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
pub(crate) enum FollowUp {
    /// It is passed on as it comes.
    Pass,
    /// The connection becomes a stream.
    Hijack,
    /// It is cut down to what is the job's.
    Filter(AnswerFilter),
    /// Each event is judged.
    Events,
    /// Each piece of statistics loses its names.
    Stats,
    /// A container was created.
    Created {
        /// The image as the client spelled it.
        image: String,
    },
    Removed(String),
    /// A container has a new name.
    Renamed(String, String),
    /// An exec was created in this container.
    Exec(String),
    /// A volume was created.
    Volume,
    VolumeRemoved(String),
    /// A network of this name was created.
    Network(String),
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
    Loaded,
    /// Something was pruned; the answer's list of it.
    Pruned(&'static str),
}

/// How an answer is cut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerFilter {
    Version,
    Info,
    /// The answer to `GET /system/df`.
    Usage,
    Container,
    Containers,
    Image,
    Images,
    History,
    Network,
    Networks,
    Volume,
    Volumes,
}

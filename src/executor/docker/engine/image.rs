//! Getting an image onto the engine, as the pull policies say.
//!
//! That an image is resolved once a job is the caller's to see to; that several jobs that want
//! the same image at once wait for one pull is seen to here.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

pub use super::pulls::Progress;
use crate::{
    base::{error_chain, image_ref, random},
    workload::policy,
};

use super::{
    ApiVersion, Engine, Error,
    auth::{Auths, Found},
    pulls::Platform,
};
use crate::config::PullPolicy;

/// Tries of one pull under one policy, when the network fails (docs/compatibility.md, "Retries").
const TRIES: u32 = 3;
/// Pause between them.
const PAUSE: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(10);
/// How often a pull that takes long says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(15);
/// From here on an inspection can ask for a platform.
const PLATFORM_INSPECT: ApiVersion = ApiVersion { major: 1, minor: 49 };

/// An image that a job wants.
#[derive(Debug, Clone)]
pub struct ImageRequest {
    /// Name, tag and digest as written, or an image id.
    pub name: String,
    /// To try in order; see [`crate::workload::policy::effective`].
    pub policies: Vec<PullPolicy>,
    /// `os/architecture[/variant]` or an architecture; `None` for the engine's.
    pub platform: Option<String>,
    /// Credentials of the job.
    pub auths: Arc<Auths>,
}

/// An image that is on the engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// `sha256:…`
    pub id: String,
    /// The first `name@sha256:…` it is known by at a registry.
    pub digest: Option<String>,
    /// User of its processes; empty for root.
    pub user: String,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// Exposed TCP ports, lowest first.
    pub exposed_tcp_ports: Vec<u16>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Mount points of anonymous volumes.
    pub volumes: Vec<String>,
    /// Operating system.
    pub os: String,
    /// Architecture in Go's words.
    pub architecture: String,
}

impl Image {
    /// What a container is created from: the digest, which is the same on every engine, or the id.
    #[must_use]
    pub fn reference(&self) -> &str {
        self.digest.as_deref().unwrap_or(&self.id)
    }
}

impl From<bollard::models::ImageInspect> for Image {
    fn from(inspected: bollard::models::ImageInspect) -> Self {
        let config = inspected.config.unwrap_or_default();
        let mut ports: Vec<u16> = config
            .exposed_ports
            .unwrap_or_default()
            .iter()
            .filter_map(|port| match port.split_once('/') {
                Some((number, "tcp")) => number.parse().ok(),
                Some(_) => None,
                None => port.parse().ok(),
            })
            .collect();
        ports.sort_unstable();
        let mut volumes = config.volumes.unwrap_or_default();
        volumes.sort_unstable();
        Self {
            id: inspected.id.unwrap_or_default(),
            digest: inspected.repo_digests.and_then(|all| all.into_iter().next()),
            user: config.user.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            exposed_tcp_ports: ports,
            env: config.env.unwrap_or_default(),
            volumes,
            os: inspected.os.unwrap_or_default(),
            architecture: inspected.architecture.unwrap_or_default(),
        }
    }
}

/// Something the job's author should read while an image is got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullNote {
    /// Which policies are tried.
    Policies {
        /// The image.
        image: String,
        /// In order.
        policies: Vec<PullPolicy>,
    },
    /// A policy failed, the next one is tried.
    Fallback {
        /// The one that failed.
        failed: PullPolicy,
        /// Why.
        reason: String,
        /// The one that comes.
        next: PullPolicy,
        /// Its number, from 1.
        attempt: usize,
    },
    /// The image was there.
    Present,
    /// Credentials were found.
    Authenticating {
        /// Where.
        origin: String,
    },
    /// A pull starts.
    Pulling {
        /// The image.
        image: String,
    },
    /// The network failed; the pull is tried again.
    Retry {
        /// Why.
        reason: String,
        /// After this time.
        pause: Duration,
    },
    /// How far the pull is.
    Progress {
        /// The image.
        image: String,
        /// Where it stands.
        progress: Progress,
    },
    /// The image is on the engine.
    Using {
        /// The image as asked for.
        image: String,
        /// `sha256:…`
        id: String,
        /// Its digest.
        digest: Option<String>,
    },
}

impl PullNote {
    /// Whether it is to be shown as a warning.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Fallback { .. } | Self::Retry { .. })
    }
}

impl fmt::Display for PullNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policies { image, policies } => {
                let policies = policy::list(policies);
                write!(f, "Using effective pull policy of [{policies}] for container {image}")
            }
            Self::Fallback { failed, reason, next, attempt } => write!(
                f,
                "Failed to pull image with policy \"{}\": {reason}\n\
                 Attempt #{attempt}: Trying \"{}\" pull policy",
                failed.as_str(),
                next.as_str()
            ),
            Self::Present => f.write_str(
                "Using locally found image version due to \"if-not-present\" pull policy",
            ),
            Self::Authenticating { origin } => {
                write!(f, "Authenticating with credentials from {origin}")
            }
            Self::Pulling { image } => write!(f, "Pulling docker image {image} ..."),
            Self::Retry { reason, pause } => {
                write!(f, "Pulling failed, trying again in {} s: {reason}", pause.as_secs())
            }
            Self::Progress { image, progress } => write!(f, "Still pulling {image}: {progress}"),
            Self::Using { image, id, digest: Some(digest) } => {
                write!(f, "Using docker image {id} for {image} with digest {digest} ...")
            }
            Self::Using { image, id, digest: None } => {
                write!(f, "Using docker image {id} for {image} ...")
            }
        }
    }
}

/// The kind of a pull's failure, which decides the failure reason that GitLab sees
/// (docs/compatibility.md, "Failure reasons").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullErrorKind {
    /// The network: `runner_external_dependency_failure`.
    ExternalDependency,
    /// Name, platform or credentials: `runner_configuration_error`.
    Configuration,
    /// Another failure of the pull: `image_pull_failure`.
    ImagePull,
    /// Policy `never`, and it is not there: `runner_system_failure`.
    NeverMissing,
    /// The engine failed, not the pull: `runner_system_failure`.
    Engine,
}

impl PullErrorKind {
    /// Judges an error text of an engine or a registry (docs/compatibility.md, "Failure reasons").
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        const NETWORK: [&str; 8] = [
            "dial tcp",
            "connection refused",
            "no such host",
            "i/o timeout",
            "tls handshake",
            "client.timeout exceeded",
            "request canceled",
            "connection reset",
        ];
        const CONFIGURATION: [&str; 6] = [
            "not found",
            "manifest unknown",
            "denied",
            "unauthorized",
            "authentication required",
            "no basic auth",
        ];
        let text = text.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&NETWORK) {
            Self::ExternalDependency
        } else if says(&CONFIGURATION) {
            Self::Configuration
        } else {
            Self::ImagePull
        }
    }
}

/// Why an image is not on the engine, under the last policy that was tried.
#[derive(Debug, Clone, thiserror::Error)]
#[error("image `{image}` cannot be used with pull policy `{policy}`", policy = policy.as_str())]
pub struct PullError {
    image: String,
    policy: PullPolicy,
    source: Failure,
}

impl PullError {
    /// The image as it was asked for.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The policy that failed last.
    #[must_use]
    pub fn policy(&self) -> PullPolicy {
        self.policy
    }

    /// What kind of failure it was.
    #[must_use]
    pub fn kind(&self) -> PullErrorKind {
        self.source.kind()
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self.kind() {
            PullErrorKind::NeverMissing => {
                Some("pull or build the image on the engine's host, or allow `if-not-present`")
            }
            PullErrorKind::Configuration => {
                Some("check the image's name and tag, and the credentials for its registry")
            }
            PullErrorKind::ExternalDependency => {
                Some("check that the engine's host reaches the registry")
            }
            PullErrorKind::ImagePull | PullErrorKind::Engine => None,
        }
    }
}

/// Shared between those who waited for the same pull.
#[derive(Debug, Clone, thiserror::Error)]
enum Failure {
    #[error("the engine does not have it")]
    Missing,
    #[error("this is not the name of an image")]
    Name,
    #[error("`{platform}` is not a platform such as linux/arm64")]
    Platform { platform: String },
    #[error(transparent)]
    Pull(Arc<Error>),
    #[error(transparent)]
    Engine(Arc<Error>),
}

impl Failure {
    fn kind(&self) -> PullErrorKind {
        match self {
            Self::Missing => PullErrorKind::NeverMissing,
            Self::Name | Self::Platform { .. } => PullErrorKind::Configuration,
            Self::Engine(_) => PullErrorKind::Engine,
            Self::Pull(error) if error.is_gone() => PullErrorKind::Engine,
            Self::Pull(error) => PullErrorKind::of_text(&error_chain(&**error)),
        }
    }
}

/// Gets an image onto the engine, under the first of the request's policies that works.
///
/// Cancel-safe: a pull that nobody waits for any more ends.
///
/// # Errors
/// The failure of the last policy.
pub async fn ensure(
    engine: &Engine,
    request: &ImageRequest,
    say: &mut (dyn FnMut(PullNote) + Send),
) -> Result<Image, PullError> {
    ensure_paced(engine, request, say, PAUSE).await
}

/// An image, if the engine has it.
pub async fn present(engine: &Engine, name: &str, platform: Option<&str>) -> Option<Image> {
    let platform = match platform {
        Some(text) => Some(Platform::parse(text)?),
        None => None,
    };
    inspect(engine, name, platform.as_ref()).await.ok().flatten()
}

async fn ensure_paced(
    engine: &Engine,
    request: &ImageRequest,
    say: &mut (dyn FnMut(PullNote) + Send),
    pause: RangeInclusive<Duration>,
) -> Result<Image, PullError> {
    let policies = match &request.policies[..] {
        [] => &[PullPolicy::Always],
        some => some,
    };
    say(PullNote::Policies { image: request.name.clone(), policies: policies.to_vec() });
    let mut attempt = 0;
    loop {
        let policy = policies[attempt];
        let source = match under(engine, request, policy, say, &pause).await {
            Ok(image) => {
                if !image_ref::is_image_id(&request.name) {
                    say(PullNote::Using {
                        image: request.name.clone(),
                        id: image.id.clone(),
                        digest: image.digest.clone(),
                    });
                }
                return Ok(image);
            }
            Err(source) => source,
        };
        attempt += 1;
        let Some(&next) = policies.get(attempt) else {
            return Err(PullError { image: request.name.clone(), policy, source });
        };
        let (reason, attempt) = (error_chain(&source), attempt + 1);
        say(PullNote::Fallback { failed: policy, reason, next, attempt });
    }
}

async fn under(
    engine: &Engine,
    request: &ImageRequest,
    policy: PullPolicy,
    say: &mut (dyn FnMut(PullNote) + Send),
    pause: &RangeInclusive<Duration>,
) -> Result<Image, Failure> {
    // Names become part of addresses.
    if !image_ref::is_reference(&request.name) {
        return Err(Failure::Name);
    }
    let platform = request.platform.as_deref().filter(|p| !p.is_empty());
    let read = |text: &str| {
        let wrong = || Failure::Platform { platform: text.to_owned() };
        Platform::parse(text).ok_or_else(wrong)
    };
    let platform = platform.map(read).transpose()?;
    // `always` needs a look beforehand only for an id: no registry can be asked for one.
    if policy != PullPolicy::Always || image_ref::is_image_id(&request.name) {
        let present = inspect(engine, &request.name, platform.as_ref()).await?;
        match (present, policy) {
            (Some(image), PullPolicy::IfNotPresent) => {
                say(PullNote::Present);
                return Ok(image);
            }
            (Some(image), _) => return Ok(image),
            (None, PullPolicy::Never) => return Err(Failure::Missing),
            (None, _) => {}
        }
    }
    pull(engine, request, platform.as_ref(), say, pause).await?;
    let missing = || Failure::Engine(Arc::new(gone_again(&request.name)));
    inspect(engine, &request.name, platform.as_ref()).await?.ok_or_else(missing)
}

fn gone_again(image: &str) -> Error {
    Error::of("find the image after it was pulled", image)(
        bollard::errors::Error::DockerResponseServerError {
            status_code: 404,
            message: "it was removed meanwhile, or has another platform".into(),
        },
    )
}

/// The image's inspection, `None` when it is not on the engine.
async fn inspect(
    engine: &Engine,
    name: &str,
    platform: Option<&Platform>,
) -> Result<Option<Image>, Failure> {
    let failed = Error::of("inspect the image", name);
    let inspected = match platform.filter(|_| engine.api_version() >= PLATFORM_INSPECT) {
        None => engine.client().inspect_image(name).await,
        Some(platform) => {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("platform", &platform.as_json())
                .finish();
            let answer = engine.transport().get(&format!("/images/{name}/json?{query}")).await;
            answer.and_then(|body| Ok(serde_json::from_slice(&body)?))
        }
    };
    match inspected.map_err(failed) {
        Ok(inspected) => Ok(Some(inspected.into())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(Failure::Engine(Arc::new(error))),
    }
}

/// Pulls, again after a pause when the network fails.
async fn pull(
    engine: &Engine,
    request: &ImageRequest,
    platform: Option<&Platform>,
    say: &mut (dyn FnMut(PullNote) + Send),
    pause: &RangeInclusive<Duration>,
) -> Result<(), Failure> {
    let found = request.auths.for_image(&request.name);
    if let Some(found) = &found {
        say(PullNote::Authenticating { origin: found.origin.to_string() });
    }
    say(PullNote::Pulling { image: request.name.clone() });
    let mut tries = 1;
    loop {
        let error = match once(engine, request, platform, found.as_ref(), say).await {
            Ok(()) => return Ok(()),
            Err(error) => Failure::Pull(error),
        };
        if tries == TRIES || error.kind() != PullErrorKind::ExternalDependency {
            return Err(error);
        }
        tries += 1;
        let pause = random::duration(pause.clone());
        say(PullNote::Retry { reason: error_chain(&error), pause });
        tokio::time::sleep(pause).await;
    }
}

/// One pull, or one that another job has already under way.
async fn once(
    engine: &Engine,
    request: &ImageRequest,
    platform: Option<&Platform>,
    found: Option<&Found>,
    say: &mut (dyn FnMut(PullNote) + Send),
) -> Result<(), Arc<Error>> {
    let mut pull = engine.pulls().join(engine.client(), &request.name, platform, found);
    let mut told = Progress::default();
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    tick.reset();
    loop {
        tokio::select! {
            ended = &mut pull.ended => return ended,
            _ = tick.tick() => {
                let progress = *pull.progress.borrow();
                if progress != told && progress.layers > 0 {
                    told = progress;
                    say(PullNote::Progress { image: request.name.clone(), progress });
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;

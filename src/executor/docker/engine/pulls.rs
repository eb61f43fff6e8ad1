//! The pulls under way on an engine: one for all who want the same image with the same
//! credentials at the same time. What follows from a pull that fails is `image`'s business.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bollard::query_parameters::CreateImageOptions;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{Error, auth::Found};
use crate::base::image_ref::ImageRef;

/// Where a pull stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Layers that are on the engine.
    pub layers_done: usize,
    /// Layers that the engine has named so far.
    pub layers: usize,
    /// Bytes that arrived, of the layers that are being downloaded or were.
    pub bytes: u64,
    /// Bytes of these layers.
    pub bytes_total: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} layers, {} of {} MB",
            self.layers_done,
            self.layers,
            self.bytes / 1_000_000,
            self.bytes_total / 1_000_000
        )
    }
}

/// `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// Reads it; an architecture alone is one of linux.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let own = |s: &&str| (*s).to_owned();
        let platform = match &parts[..] {
            [architecture] => Some(("linux".to_owned(), own(architecture), None)),
            [os, architecture] => Some((own(os), own(architecture), None)),
            [os, architecture, variant] => Some((own(os), own(architecture), Some(own(variant)))),
            _ => None,
        };
        let plain = |s: &&str| {
            !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let (os, architecture, variant) = platform.filter(|_| parts.iter().all(plain))?;
        Some(Self { os, architecture, variant })
    }

    /// As `GET /images/{name}/json` takes it.
    pub(super) fn as_json(&self) -> String {
        let mut json = serde_json::json!({ "os": self.os, "architecture": self.architecture });
        if let Some(variant) = &self.variant {
            json["variant"] = variant.as_str().into();
        }
        json.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

type Outcome = Result<(), Arc<Error>>;
type PullFuture = Shared<BoxFuture<'static, Outcome>>;

/// The pulls under way. Pulls of the same image with the same credentials are one.
#[derive(Default)]
pub(super) struct Pulls {
    pub(super) under_way: Arc<Mutex<HashMap<[u8; 32], UnderWay>>>,
}

pub(super) struct UnderWay {
    ended: WeakShared<BoxFuture<'static, Outcome>>,
    progress: watch::Receiver<Progress>,
}

/// A pull to wait for.
pub(super) struct Pull {
    /// Its end.
    pub(super) ended: PullFuture,
    /// Where it stands.
    pub(super) progress: watch::Receiver<Progress>,
}

impl Pulls {
    /// Starts a pull when it is waited for, or joins the one that is under way.
    pub(super) fn join(
        &self,
        client: &bollard::Docker,
        name: &str,
        platform: Option<&Platform>,
        found: Option<&Found>,
    ) -> Pull {
        let options = CreateImageOptions {
            from_image: Some(ImageRef::of(name).with_tag()),
            platform: platform.map(ToString::to_string).unwrap_or_default(),
            ..CreateImageOptions::default()
        };
        let credentials = found.map(Found::for_engine);
        // A digest, so that the map holds no secrets.
        let key: [u8; 32] = Sha256::new()
            .chain_update(serde_json::to_vec(&(&options, &credentials)).unwrap_or_default())
            .finalize()
            .into();
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody waited for to the end could not remove themselves.
        under_way.retain(|_, pull| pull.ended.upgrade().is_some());
        if let Some(pull) = under_way.get(&key)
            && let Some(ended) = pull.ended.upgrade()
        {
            return Pull { ended, progress: pull.progress.clone() };
        }
        let (report, progress) = watch::channel(Progress::default());
        let client = client.clone();
        let failed = Error::of("pull the image", name);
        let registry = Arc::clone(&self.under_way);
        let ended = async move {
            let outcome = run(&client, options, credentials, &report).await;
            registry.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            outcome.map_err(|e| Arc::new(failed(e)))
        }
        .boxed()
        .shared();
        if let Some(weak) = ended.downgrade() {
            under_way.insert(key, UnderWay { ended: weak, progress: progress.clone() });
        }
        Pull { ended, progress }
    }
}

/// Asks the engine to pull and reads its report to the end.
async fn run(
    client: &bollard::Docker,
    options: CreateImageOptions,
    credentials: Option<bollard::auth::DockerCredentials>,
    report: &watch::Sender<Progress>,
) -> Result<(), bollard::errors::Error> {
    let mut layers = HashMap::<String, (u64, u64, bool)>::new();
    let mut messages = client.create_image(Some(options), None, credentials);
    while let Some(message) = messages.next().await {
        let message = message?;
        let Some(layer) = message.id else { continue };
        let status = message.status.as_deref().unwrap_or_default();
        // `Pulling from …` names the tag, not a layer.
        if status.starts_with("Pulling from") {
            continue;
        }
        let (bytes, total, done) = layers.entry(layer).or_default();
        match status {
            "Downloading" => {
                let detail = message.progress_detail.unwrap_or_default();
                let number = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
                *bytes = number(detail.current).unwrap_or(*bytes);
                *total = number(detail.total).unwrap_or(*total).max(*bytes);
            }
            "Download complete" => *bytes = *total,
            "Pull complete" | "Already exists" => {
                (*bytes, *done) = (*total, true);
            }
            _ => {}
        }
        let progress =
            layers.values().fold(Progress::default(), |sum, (bytes, total, done)| Progress {
                layers_done: sum.layers_done + usize::from(*done),
                layers: sum.layers + 1,
                bytes: sum.bytes + bytes,
                bytes_total: sum.bytes_total + total,
            });
        report.send_replace(progress);
    }
    Ok(())
}

//! The helper image, composed from this host's own packages and imported into the engine under a
//! name that is the hash of what is in it; and the portable helper, which is put into a container
//! of another image.
//!
//! Which of them a job uses, and what runs in it, is decided by the executor.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::query_parameters::{CreateImageOptions, ListImagesOptions, RemoveImageOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use crate::{base::error_chain, guard::PORTABLE_REPOSITORY};

pub use super::helper::{EXECUTABLE, HelperImage, HelperImageError, PATH, PORTABLE};
use super::{
    Engine, Error,
    compose::{Host, compose, ourselves, portable},
    transport::Body,
    tree::Sealed,
};

/// `true` on helper images.
pub const HELPER_LABEL: &str = "longshore.helper";

/// A helper image is not removed while it is younger: another longshore on the same engine may be
/// about to use it.
const GRACE: Duration = Duration::from_hours(1);

/// The helper image, imported if it is not there. After the first call for an engine this costs
/// no request; see [`forget`]. Calls at the same time wait for the same import.
///
/// # Errors
/// When the host has no git, the engine another architecture, or the engine refuses the image.
pub async fn ensure(engine: &Engine) -> Result<HelperImage, HelperImageError> {
    ensure_from(engine, Host::this()).await
}

/// Makes the next [`ensure`] look whether the image is still there: for when the engine says
/// that it is not.
pub fn forget(engine: &Engine) {
    *engine.helper().image.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
}

async fn ensure_from(engine: &Engine, host: Host) -> Result<HelperImage, HelperImageError> {
    let cell = Arc::clone(&engine.helper().image.lock().unwrap_or_else(PoisonError::into_inner));
    cell.get_or_try_init(async || {
        fits(engine.architecture())?;
        let hashes = Arc::clone(&engine.helper().hashes);
        let repository = host.repository.clone();
        let (sealed, warnings) = blocking(move || {
            let (tree, warnings) = compose(&host)?;
            let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
            Ok((tree.seal(&mut hashes)?, warnings))
        })
        .await?;
        let reference = format!("{repository}:{}", sealed.name());
        let id = match present(engine, &reference).await? {
            Some(id) => id,
            None => import(engine, Arc::new(sealed), &reference).await?,
        };
        remove_others(engine, &reference, GRACE).await;
        Ok(HelperImage { reference, id, warnings })
    })
    .await
    .cloned()
}

/// Runs composing, which reads and hashes many files, where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HelperImageError> + Send + 'static,
) -> Result<T, HelperImageError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panicked| Err(HelperImageError::Compose(Arc::new(panicked))))
}

fn fits(engine: &str) -> Result<(), HelperImageError> {
    // Go's names for Rust's.
    let host = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    };
    if engine == host {
        return Ok(());
    }
    Err(HelperImageError::Architecture { engine: engine.to_owned(), host: host.to_owned() })
}

async fn present(engine: &Engine, reference: &str) -> Result<Option<String>, Error> {
    let inspected = engine.client().inspect_image(reference).await;
    match inspected.map_err(Error::of("inspect the helper image", reference)) {
        Ok(image) => Ok(Some(image.id.unwrap_or_default())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends the tree as the only layer of a new image (Docker Engine API, `POST /images/create`
/// with `fromSrc=-`).
async fn import(
    engine: &Engine,
    sealed: Arc<Sealed>,
    reference: &str,
) -> Result<String, HelperImageError> {
    let failed = || Error::of("import the helper image", reference);
    let repository = reference.rsplit_once(':').map_or(reference, |(repository, _)| repository);
    let options = CreateImageOptions {
        from_src: Some("-".into()),
        repo: Some(repository.to_owned()),
        tag: Some(sealed.name().to_owned()),
        message: Some("composed by longshore from its host's packages".into()),
        changes: vec![format!("ENV PATH={PATH}"), format!("LABEL {}=true", HELPER_LABEL)],
        ..CreateImageOptions::default()
    };
    let mut answers = engine.client().create_image(Some(options), Some(body(sealed)), None);
    while let Some(answer) = answers.next().await {
        answer.map_err(failed())?;
    }
    present(engine, reference).await?.ok_or_else(|| {
        let message = "the engine took it, but does not have it".to_owned();
        let gone = bollard::errors::Error::DockerStreamError { error: message };
        HelperImageError::from(failed()(gone))
    })
}

/// A tar as it is written. The writer ends when nobody reads any more.
fn body(sealed: Arc<Sealed>) -> Body {
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let writer = tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(256 << 10, Pieces(sender.clone()));
        if let Err(error) = sealed.write(&mut to).and_then(|()| io::Write::flush(&mut to)) {
            // Without a reader there is nobody to tell.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    // The body owns its writer, and ends after it.
    let end = futures_util::stream::once(async move {
        writer.await.map(|()| Bytes::new()).map_err(io::Error::other)
    });
    bollard::body_try_stream(pieces.chain(end))
}

struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Pieces {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(piece))).map_err(gone)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes helper images of `current`'s repository that are older than `grace` and not it. Those
/// that containers use stay: the engine refuses to remove them. Nothing that fails here is worth
/// more than a line in the log.
async fn remove_others(engine: &Engine, current: &str, grace: Duration) {
    let label = format!("{HELPER_LABEL}=true");
    let options = ListImagesOptions {
        filters: Some(HashMap::from([("label".to_owned(), vec![label])])),
        ..ListImagesOptions::default()
    };
    let images = match engine.client().list_images(Some(options)).await {
        Ok(images) => images,
        Err(error) => {
            tracing::warn!(error = %error, "cannot look for old helper images");
            return;
        }
    };
    let (repository, _) = current.rsplit_once(':').unwrap_or((current, ""));
    let ours = format!("{repository}:");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let old = |created: i64| {
        let created = Duration::from_secs(u64::try_from(created).unwrap_or(0));
        now.saturating_sub(created) >= grace
    };
    let others = images
        .into_iter()
        .filter(|image| old(image.created))
        .flat_map(|image| image.repo_tags)
        .filter(|tag| tag.starts_with(&ours) && tag != current);
    for tag in others {
        let removed = engine.client().remove_image(&tag, None::<RemoveImageOptions>, None).await;
        match removed.map_err(Error::of("remove the old helper image", &tag)) {
            Ok(_) => tracing::info!(image = %tag, "removed an old helper image"),
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) => tracing::warn!(
                image = %tag, error = %error_chain(&error), "cannot remove an old helper image"
            ),
        }
    }
}

/// Our executable with its loader and libraries, to be unpacked at `/` of a container of any
/// image of this host's architecture.
#[derive(Debug, Clone)]
pub struct PortableHelper {
    sealed: Arc<Sealed>,
    command: Vec<String>,
}

impl PortableHelper {
    /// How to run the executable there; arguments follow. As the loader runs it,
    /// `/proc/self/exe` is the loader in that process.
    #[must_use]
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// Unpacks it in a container that is created.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn put_into(&self, engine: &Engine, container: &str) -> Result<(), Error> {
        let options = bollard::query_parameters::UploadToContainerOptions {
            path: "/".into(),
            ..Default::default()
        };
        engine
            .client()
            .upload_to_container(container, Some(options), body(Arc::clone(&self.sealed)))
            .await
            .map_err(Error::of("put the helper into the container", container))
    }
}

/// Composes the portable helper. Cheap after the first time: keep it, or ask again.
///
/// # Errors
/// When the executable or a library cannot be read, or the engine has another architecture.
pub async fn portable_helper(engine: &Engine) -> Result<PortableHelper, HelperImageError> {
    portable_from(engine, ourselves()).await
}

/// The id of an image of the portable helper and nothing else, imported if it is not there, and how
/// to run it: for a program with rights that no image of somebody else's may have.
///
/// # Errors
/// As [`portable_helper`], or when the engine refuses the image.
pub async fn portable_image(engine: &Engine) -> Result<(String, Vec<String>), HelperImageError> {
    let PortableHelper { sealed, command } = portable_helper(engine).await?;
    let reference = format!("{PORTABLE_REPOSITORY}:{}", sealed.name());
    let id = match present(engine, &reference).await? {
        Some(id) => id,
        None => {
            let id = import(engine, sealed, &reference).await?;
            remove_others(engine, &reference, GRACE).await;
            id
        }
    };
    Ok((id, command))
}

async fn portable_from(
    engine: &Engine,
    executable: PathBuf,
) -> Result<PortableHelper, HelperImageError> {
    fits(engine.architecture())?;
    let hashes = Arc::clone(&engine.helper().hashes);
    blocking(move || {
        let (tree, command) = portable(&executable)?;
        let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(PortableHelper { sealed: Arc::new(tree.seal(&mut hashes)?), command })
    })
    .await
}

#[cfg(test)]
#[path = "helper_image_tests.rs"]
mod tests;

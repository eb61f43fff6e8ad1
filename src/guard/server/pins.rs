//! Sources of binds, pinned for the containers that are created with them (G-52 … G-57).

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Map, Value, json};

use crate::{
    base::error_chain,
    guard::{
        ownership::Bind,
        pin::Pin,
        policy::{
            bind_source::BindSource,
            body::needs::BindNeed,
            forward::{Forward, SentBody},
        },
        refusal::Refusal,
        settings::GuardSettings,
    },
};

/// Where pins are made.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    /// Whether the engine sees what is mounted there.
    are_possible: bool,
    made: AtomicU64,
}

impl Pins {
    pub(super) fn new(directory: PathBuf, are_possible: bool) -> Self {
        Self { directory, are_possible, made: AtomicU64::new(0) }
    }

    /// Pins the sources of a request's binds, and puts the pins into its body.
    pub(super) async fn pin(
        &self,
        forward: &mut Forward,
        settings: &GuardSettings,
    ) -> Result<Vec<Bind>, Refusal> {
        let mut binds = Vec::new();
        for need in &forward.needs.binds {
            binds.push(self.pin_one(need, settings).await?);
        }
        if let SentBody::Json(body) = &mut forward.body {
            place_binds(body, &binds);
        }
        Ok(binds)
    }

    async fn pin_one(&self, need: &BindNeed, settings: &GuardSettings) -> Result<Bind, Refusal> {
        let (mapping, rest) = match &need.source {
            BindSource::Socket => {
                let source = settings.socket.display().to_string();
                return Ok(Bind { source, job: need.job.clone(), pin: None });
            }
            BindSource::Mapped { mapping, rest } => (*mapping, rest.clone()),
        };
        if !self.are_possible {
            return Err(Refusal::because("binds of the workspace are not possible here", "G-57"));
        }
        let root = settings.workspace[mapping].host.clone();
        let at = self.directory.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        let make = need.make;
        let pinned = tokio::task::spawn_blocking(move || Pin::new(&root, &rest, make, &at)).await;
        let pin = pinned.map_err(|_| Refusal::failed(500, "the bind cannot be made"))?.map_err(
            |error| {
                tracing::debug!(error = error_chain(&error), "bind refused");
                error.refusal(&need.job, need.is_mount)
            },
        )?;
        let source = pin.path().display().to_string();
        Ok(Bind { source, job: need.job.clone(), pin: Some(Arc::new(pin)) })
    }
}

/// Puts the pins where their tokens stand.
fn place_binds(body: &mut Map<String, Value>, binds: &[Bind]) {
    let of = |text: &str| -> Option<(&Bind, usize)> {
        let rest = text.strip_prefix("@bind-")?;
        let (number, _) = rest.split_once('@')?;
        Some((binds.get(number.parse::<usize>().ok()?)?, "@bind-@".len() + number.len()))
    };
    let Some(host) = body.get_mut("HostConfig") else { return };
    for bind in host.get_mut("Binds").and_then(Value::as_array_mut).into_iter().flatten() {
        let text = bind.as_str().unwrap_or_default();
        if let Some((found, length)) = of(text) {
            *bind = json!(format!("{}{}", found.source, &text[length..]));
        }
    }
    for mount in host.get_mut("Mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if mount["Type"] != "bind" {
            continue;
        }
        if let Some((found, _)) = of(mount["Source"].as_str().unwrap_or_default()) {
            mount["Source"] = json!(found.source);
        }
    }
}

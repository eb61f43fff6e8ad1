//! The engine's events: containers that go by themselves are gone for the guard, too (G-50).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::BodyStream;
use hyper::Method;
use serde_json::{Value, json};

use crate::guard::parse::lines::Lines;

use super::{backend::Backend, engine::Outgoing, response::full};

/// How long the watch waits before it asks again.
const AGAIN: Duration = Duration::from_secs(1);

/// Follows the events until the guard stops.
pub(super) async fn watch(backend: Arc<Backend>) {
    loop {
        tokio::select! {
            () = backend.stop.cancelled() => return,
            () = follow(&backend) => {}
        }
        // While the engine is away, its 404s tell later what it has removed.
        tokio::select! {
            () = backend.stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn follow(backend: &Backend) {
    let (key, value) = &backend.settings.identity;
    let filters = json!({
        "type": ["container"], "event": ["destroy"], "label": [format!("{key}={value}")],
    });
    let query = [("filters".to_owned(), filters.to_string())];
    let outgoing = Outgoing {
        method: &Method::GET,
        path: "/events",
        query: &query,
        content_type: None,
        headers: Vec::new(),
        body: full(Bytes::new()),
        upgrade: false,
    };
    let Ok(answer) = backend.engine.send(outgoing).await else { return };
    let mut body = BodyStream::new(answer.into_body());
    let mut lines = Lines::default();
    while let Some(Ok(frame)) = body.next().await {
        for line in frame.data_ref().map(|data| lines.feed(data)).unwrap_or_default() {
            let event: Value = serde_json::from_slice(&line).unwrap_or_default();
            if let Some(id) = event["Actor"]["ID"].as_str() {
                drop(backend.inventory.change(|owned| owned.containers.forget(id)));
            }
        }
    }
}

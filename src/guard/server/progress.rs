//! Progress streams: passed on as they come, and read for what the engine says was made
//! (G-67, G-74).

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyStream;
use hyper::{Response, body::Frame};
use serde_json::{Value, json};

use crate::guard::{
    ids::{is_id, is_id_like},
    image::Reference,
    parse::lines::Lines,
    policy::forward::FollowUp,
};

use super::{
    engine_body::EngineBody,
    prepare::Prepared,
    response::{BoxBody, streamed},
    tags::{HeldTag, Tags},
};

/// How long the ids of steps are (moby: `stringid.TruncateID`).
const STEP: usize = 12;

/// Passes a progress stream on, and reads in it which images were made (G-67, G-74).
pub(super) fn listened(
    tags: &Tags,
    follow_up: FollowUp,
    prepared: Prepared,
    answer: Response<EngineBody>,
) -> Response<BoxBody> {
    let quiet = prepared.forward.query.iter().any(|(name, value)| name == "q" && value == "1");
    let format = match follow_up {
        FollowUp::Built(_) if quiet => ProgressFormat::QuietBuild,
        FollowUp::Loaded => ProgressFormat::Load,
        FollowUp::Made(_) => ProgressFormat::Import,
        _ => ProgressFormat::Others,
    };
    let progress = Progress {
        body: BodyStream::new(answer.into_body()),
        lines: Lines::default(),
        events: ProgressEvents::default(),
        pushed: prepared
            .held
            .first()
            .filter(|_| matches!(follow_up, FollowUp::Pushed(_)))
            .map(|held| held.tag.clone()),
        held: prepared.held,
        is_quiet: quiet,
        done: false,
    };
    let tags = tags.clone();
    let pieces = stream::unfold(progress, move |mut progress| {
        let (tags, follow_up) = (tags.clone(), follow_up.clone());
        async move {
            if progress.done {
                return None;
            }
            match progress.body.next().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        for line in progress.lines.feed(data) {
                            progress.events.line(&line, format);
                        }
                        for step in progress.events.steps.drain(..) {
                            tags.made_by_step(step);
                        }
                        if progress.pushed.is_some() && progress.events.is_found {
                            progress.held.clear();
                        }
                    }
                    Some((Ok(frame), progress))
                }
                Some(Err(error)) => {
                    progress.done = true;
                    Some((Err(error), progress))
                }
                None => {
                    progress.done = true;
                    for line in progress.lines.rest() {
                        progress.events.line(&line, format);
                    }
                    // As a last piece, so that the client sees the end only after this.
                    let said = ended(&tags, follow_up, &mut progress).await;
                    progress.held.clear();
                    Some((Ok(Frame::data(Bytes::from(said))), progress))
                }
            }
        }
    });
    streamed(pieces)
}

/// Enters what a progress stream that came to its end has made. Returns what the guard adds to it.
async fn ended(tags: &Tags, follow_up: FollowUp, progress: &mut Progress) -> String {
    let Progress { events, held, is_quiet, .. } = progress;
    let mut said = String::new();
    if events.failed {
        return said;
    }
    match follow_up {
        FollowUp::Pulled(reference) => {
            if let Ok(Some(id)) = tags.meaning(&reference).await {
                tags.pulled(&reference, &id).await;
            }
        }
        FollowUp::Built(new_tags) => {
            for id in &events.ids {
                tags.made(id, None);
            }
            let Some(id) = events.ids.last() else { return said };
            for held in held.iter() {
                if !tags.is_unmoved(held).await {
                    let base = held.tag.short();
                    let moved = format!("guard: {base} was pulled by another job meanwhile");
                    let detail = json!({ "message": moved });
                    return format!("{}\r\n", json!({ "errorDetail": detail, "error": moved }));
                }
            }
            for tag in new_tags {
                let line = match tags.tag_image(&tag, id).await {
                    Ok(()) if *is_quiet => continue,
                    Ok(()) => {
                        json!({ "stream": format!("Successfully tagged {}\n", tag.short()) })
                    }
                    Err(refusal) => json!({
                        "errorDetail": { "message": refusal.message },
                        "error": refusal.message,
                    }),
                };
                said += &line.to_string();
                said.push_str("\r\n");
            }
        }
        FollowUp::Made(reference) => {
            if let Some(id) = events.ids.last() {
                tags.made(id, reference.as_ref());
            }
        }
        FollowUp::Loaded => {
            for id in &events.ids {
                tags.made(id, None);
            }
            for held in held {
                tags.keep_loaded(held).await;
            }
        }
        FollowUp::Pushed(tag) => {
            if let (Some(pushed), Some(digest)) = (&progress.pushed, events.digest.take()) {
                tags.keep_digest(&tag, pushed, digest).await;
            }
        }
        _ => {}
    }
    said
}

struct Progress {
    body: BodyStream<EngineBody>,
    lines: Lines,
    events: ProgressEvents,
    held: Vec<HeldTag>,
    /// The name that is pushed.
    pushed: Option<Reference>,
    is_quiet: bool,
    done: bool,
}

/// What the guard has read in a progress stream.
#[derive(Debug, Default)]
struct ProgressEvents {
    ids: Vec<String>,
    /// What a push gave the image.
    digest: Option<String>,
    /// Images of single steps of a build, by the beginnings of their ids.
    steps: Vec<String>,
    failed: bool,
    /// Whether a layer was named: the engine has found the image by then.
    is_found: bool,
}

/// The kind of a progress stream, which says in which fields the engine itself speaks. What steps of a
/// build print is in the same fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProgressFormat {
    QuietBuild,
    Load,
    Import,
    Others,
}

impl ProgressEvents {
    fn line(&mut self, line: &[u8], format: ProgressFormat) {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return };
        if value.get("error").is_some() || value.get("errorDetail").is_some() {
            self.failed = true;
        }
        let said = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().trim();
        self.is_found |= !said("id").is_empty();
        if let Some(id) = said("stream").strip_prefix("---> ")
            && id.len() == STEP
            && is_id_like(id)
        {
            self.steps.push(id.to_owned());
        }
        let digest = value["aux"]["Digest"].as_str().filter(|digest| is_id(digest));
        self.digest = digest.map(str::to_owned).or_else(|| self.digest.take());
        let id = match format {
            ProgressFormat::Load => {
                said("stream").strip_prefix("Loaded image ID: ").unwrap_or_default()
            }
            ProgressFormat::Import => said("status"),
            // A quiet build prints no output of steps.
            ProgressFormat::QuietBuild => said("stream"),
            ProgressFormat::Others => "",
        };
        for id in [id, value["aux"]["ID"].as_str().unwrap_or_default()] {
            if is_id(id) {
                self.ids.push(id.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(format: ProgressFormat, lines: &[Value]) -> ProgressEvents {
        let mut events = ProgressEvents::default();
        for line in lines {
            events.line(line.to_string().as_bytes(), format);
        }
        events
    }

    fn id(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    #[test]
    fn g_74_what_a_step_prints_is_no_image_that_was_made() {
        let printed = [
            json!({ "stream": id("a") }),
            json!({ "stream": format!("Loaded image ID: {}\n", id("b")) }),
            json!({ "status": id("c") }),
        ];
        assert_eq!(events(ProgressFormat::Others, &printed).ids, [""; 0]);
        let ended = [json!({ "stream": "ok\n" }), json!({ "aux": { "ID": id("d") } })];
        assert_eq!(events(ProgressFormat::Others, &ended).ids, [id("d")]);
    }

    #[test]
    fn g_67_a_load_says_what_it_loaded() {
        let said = [json!({ "stream": format!("Loaded image ID: {}\n", id("a")) })];
        assert_eq!(events(ProgressFormat::Load, &said).ids, [id("a")]);
        let failed = [json!({ "errorDetail": { "message": "no space" }, "error": "no space" })];
        assert!(events(ProgressFormat::Load, &failed).failed);
    }
}

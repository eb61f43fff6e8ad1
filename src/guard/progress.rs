//! Streams of progress: passed on as they come, and listened to for what the engine says was made
//! (G-67, G-74).

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyStream;
use hyper::{Response, body::Frame};
use serde_json::{Value, json};

use super::{
    answer::streamed,
    engine::Body,
    exchange::Ready,
    image::{Reference, is_id, is_id_like},
    journal::Entry,
    lines::Lines,
    policy::Then,
    serve::Shared,
    stream::Answer,
    tags::Held,
};

/// How long the ids of steps are (moby: `stringid.TruncateID`).
const STEP: usize = 12;

impl Shared {
    /// Passes a stream of progress on, and listens to it for images (G-67, G-74).
    pub(super) fn listened(
        self: &Arc<Self>,
        then: Then,
        ready: Ready,
        answer: Response<Answer>,
    ) -> Response<Body> {
        let quiet = ready.forward.query.iter().any(|(name, value)| name == "q" && value == "1");
        let words = match then {
            Then::Built(_) if quiet => Words::QuietBuild,
            Then::Loaded => Words::Load,
            Then::Made(_) => Words::Import,
            _ => Words::Others,
        };
        let progress = Progress {
            body: BodyStream::new(answer.into_body()),
            lines: Lines::default(),
            heard: Heard::default(),
            pushed: ready
                .held
                .first()
                .filter(|_| matches!(then, Then::Pushed(_)))
                .map(|held| held.tag.clone()),
            held: ready.held,
            is_quiet: quiet,
            done: false,
        };
        let shared = Arc::clone(self);
        let pieces = stream::unfold(progress, move |mut progress| {
            let (shared, then) = (Arc::clone(&shared), then.clone());
            async move {
                if progress.done {
                    return None;
                }
                match progress.body.next().await {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            for line in progress.lines.feed(data) {
                                progress.heard.line(&line, words);
                            }
                            for step in progress.heard.steps.drain(..) {
                                shared.noted(&Entry::Step(step.clone()));
                                shared.change(|owned| owned.add_step(step));
                            }
                            if progress.pushed.is_some() && progress.heard.is_found {
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
                            progress.heard.line(&line, words);
                        }
                        // A last piece, so that the end comes after this.
                        let said = shared.heard(then, &mut progress).await;
                        progress.held.clear();
                        Some((Ok(Frame::data(Bytes::from(said))), progress))
                    }
                }
            }
        });
        streamed(pieces)
    }

    /// A stream of progress came to its end; what the guard has to add to it.
    async fn heard(self: &Arc<Self>, then: Then, progress: &mut Progress) -> String {
        let Progress { heard, held, is_quiet, .. } = progress;
        let mut said = String::new();
        if heard.failed {
            return said;
        }
        match then {
            Then::Pulled(reference) => {
                if let Ok(Some(id)) = self.meaning(&reference).await {
                    self.pulled(&reference, &id).await;
                }
            }
            Then::Built(tags) => {
                for id in &heard.ids {
                    self.made(id, None);
                }
                let Some(id) = heard.ids.last() else { return said };
                for held in held.iter() {
                    if !self.is_unmoved(held).await {
                        let base = held.tag.short();
                        let moved = format!("guard: {base} was pulled by another job meanwhile");
                        let detail = json!({ "message": moved });
                        return format!("{}\r\n", json!({ "errorDetail": detail, "error": moved }));
                    }
                }
                for tag in tags {
                    let line = match self.tag_image(&tag, id).await {
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
            Then::Made(reference) => {
                if let Some(id) = heard.ids.last() {
                    self.made(id, reference.as_ref());
                }
            }
            Then::Loaded => {
                for id in &heard.ids {
                    self.made(id, None);
                }
                for held in held {
                    self.keep_loaded(held).await;
                }
            }
            Then::Pushed(tag) => {
                if let (Some(pushed), Some(digest)) = (&progress.pushed, heard.digest.take()) {
                    self.keep_digest(&tag, pushed, digest).await;
                }
            }
            _ => {}
        }
        said
    }

    /// A tag that was loaded becomes the job's.
    async fn keep_loaded(&self, held: &mut Held) {
        let Ok(Some(id)) = self.meaning(&held.tag).await else { return };
        if self.settings.scopes_tags() {
            self.noted(&Entry::Tag(held.tag.canonical(), id.clone()));
            held.id = Some(id.clone());
            if let Err(error) = self.tag_image(&held.tag, &id).await {
                tracing::warn!(%error, tag = held.tag.short(), "a loaded image has lost its tag");
            }
        } else {
            self.made(&id, Some(&held.tag));
        }
    }

    /// The digest that a push gave the image. The engine has it under the name that was pushed, or had
    /// it there until that was taken away.
    async fn keep_digest(&self, tag: &Reference, pushed: &Reference, digest: String) {
        let id = self.owned().tag(&tag.canonical()).map(|tag| tag.id.clone());
        let Some(id) = id.filter(|_| self.settings.scopes_tags()) else { return };
        let of = |name: &Reference| Reference {
            tag: None,
            digest: Some(digest.clone()),
            ..name.clone()
        };
        self.noted(&Entry::Tag(of(pushed).canonical(), id.clone()));
        self.take_away(&of(pushed), &id).await;
        self.change(|owned| owned.add_digest(of(tag), &id));
    }
}

struct Progress {
    body: BodyStream<Answer>,
    lines: Lines,
    heard: Heard,
    held: Vec<Held>,
    /// The name that is pushed.
    pushed: Option<Reference>,
    is_quiet: bool,
    done: bool,
}

/// What a stream of progress said.
#[derive(Debug, Default)]
struct Heard {
    ids: Vec<String>,
    /// What a push gave the image.
    digest: Option<String>,
    /// Images of single steps of a build, by the beginnings of their ids.
    steps: Vec<String>,
    failed: bool,
    /// Whether a layer was named: the engine has found the image by then.
    is_found: bool,
}

/// Which words of a stream are the engine's own. What steps of a build print is in the same
/// fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    QuietBuild,
    Load,
    Import,
    Others,
}

impl Heard {
    fn line(&mut self, line: &[u8], words: Words) {
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
        let id = match words {
            Words::Load => said("stream").strip_prefix("Loaded image ID: ").unwrap_or_default(),
            Words::Import => said("status"),
            // Steps are not heard there.
            Words::QuietBuild => said("stream"),
            Words::Others => "",
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

    fn heard(words: Words, lines: &[Value]) -> Heard {
        let mut heard = Heard::default();
        for line in lines {
            heard.line(line.to_string().as_bytes(), words);
        }
        heard
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
        assert_eq!(heard(Words::Others, &printed).ids, [""; 0]);
        let ended = [json!({ "stream": "ok\n" }), json!({ "aux": { "ID": id("d") } })];
        assert_eq!(heard(Words::Others, &ended).ids, [id("d")]);
    }

    #[test]
    fn g_67_a_load_says_what_it_loaded() {
        let said = [json!({ "stream": format!("Loaded image ID: {}\n", id("a")) })];
        assert_eq!(heard(Words::Load, &said).ids, [id("a")]);
        let failed = [json!({ "errorDetail": { "message": "no space" }, "error": "no space" })];
        assert!(heard(Words::Load, &failed).failed);
    }
}

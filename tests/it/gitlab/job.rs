//! What a job is handed out with, and what came back of it.

use regex::Regex;
use serde_json::{Value, json};

/// A job to submit: its payload, but for what the server adds (id, token, sources' address).
pub(crate) struct JobSpec {
    pub(super) payload: Value,
    pub(super) variables: Vec<Value>,
    pub(super) sources: Option<(String, String)>,
    pub(super) depth: u32,
    pub(super) protected: bool,
    /// A last change to the payload as it is sent.
    pub(super) bend: Option<fn(&mut Value)>,
}

/// A job with this script on `busybox:latest`, without sources.
pub(crate) fn job(script: &[&str]) -> JobSpec {
    JobSpec {
        payload: json!({
            "job_info": {"name": "job", "stage": "test"},
            "allow_git_fetch": true,
            "runner_info": {"timeout": 300},
            "steps": [{"name": "script", "script": script, "timeout": 300, "when": "on_success",
                       "allow_failure": false}],
            "image": {"name": "busybox:latest"},
            "services": [], "artifacts": [], "cache": [], "dependencies": [], "credentials": [],
            "features": {
                "trace_sections": true,
                "token_mask_prefixes": ["glpat-", "glcbt-", "glrt-"],
                "failure_reasons": [
                    "unknown_failure", "script_failure", "api_failure", "stuck_or_timeout_failure",
                    "runner_system_failure", "missing_dependency_failure", "runner_unsupported",
                    "job_execution_timeout", "image_pull_failure", "runner_interrupted",
                ],
            },
        }),
        variables: Vec::new(),
        sources: None,
        depth: 20,
        protected: true,
        bend: None,
    }
}

impl JobSpec {
    pub(crate) fn image(self, name: &str) -> Self {
        self.set("/image", json!({"name": name}))
    }

    pub(crate) fn after(mut self, script: &[&str]) -> Self {
        self.list("/steps").push(json!({"name": "after_script", "script": script, "timeout": 300,
            "when": "always", "allow_failure": true}));
        self
    }

    pub(crate) fn variable(self, key: &str, value: &str) -> Self {
        self.variable_as(json!({"key": key, "value": value, "public": true}))
    }

    pub(crate) fn masked(self, key: &str, value: &str) -> Self {
        self.variable_as(json!({"key": key, "value": value, "masked": true}))
    }

    /// A variable as the API sends it.
    pub(crate) fn variable_as(mut self, variable: Value) -> Self {
        self.variables.push(variable);
        self
    }

    pub(crate) fn service(mut self, service: Value) -> Self {
        self.list("/services").push(service);
        self
    }

    pub(crate) fn artifact(mut self, artifact: Value) -> Self {
        self.list("/artifacts").push(artifact);
        self
    }

    pub(crate) fn cache(mut self, cache: Value) -> Self {
        self.list("/cache").push(cache);
        self
    }

    /// The artifacts of `earlier` are wanted.
    pub(crate) fn depends_on(mut self, earlier: &Ended) -> Self {
        let file = earlier.uploads.last().map_or(
            Value::Null,
            |upload| json!({"filename": upload.filename, "size": upload.content.len()}),
        );
        let (id, token) = (earlier.id, &earlier.token);
        self.list("/dependencies")
            .push(json!({"id": id, "token": token, "name": "earlier", "artifacts_file": file}));
        self
    }

    /// The repository `path` at `sha`.
    pub(crate) fn sources(mut self, path: &str, sha: &str) -> Self {
        self.sources = Some((path.to_owned(), sha.to_owned()));
        self
    }

    /// How many commits are fetched; 0 for all.
    pub(crate) fn depth(mut self, depth: u32) -> Self {
        self.depth = depth;
        self
    }

    /// Of a ref that is not protected.
    pub(crate) fn unprotected(mut self) -> Self {
        self.protected = false;
        self
    }

    pub(crate) fn timeout(self, seconds: u64) -> Self {
        self.set("/runner_info", json!({"timeout": seconds}))
    }

    /// A field of the payload.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.payload[key] = value;
        self
    }

    /// Replaces what stands at `pointer` (JSON Pointer, RFC 6901).
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        *self.payload.pointer_mut(pointer).unwrap() = value;
        self
    }

    /// Changes the payload at the very last, into anything.
    pub(crate) fn bent(mut self, bend: fn(&mut Value)) -> Self {
        self.bend = Some(bend);
        self
    }

    fn list(&mut self, pointer: &str) -> &mut Vec<Value> {
        self.payload.pointer_mut(pointer).and_then(Value::as_array_mut).unwrap()
    }
}

/// An artifact as it arrived.
#[derive(Clone)]
pub(crate) struct Upload {
    pub(crate) filename: String,
    pub(crate) content: Vec<u8>,
    /// The request's query: `artifact_format`, `artifact_type`, `expire_in`.
    pub(crate) query: String,
}

/// A job that has a final state, or was aborted.
pub(crate) struct Ended {
    pub(crate) id: i64,
    pub(crate) token: String,
    pub(crate) trace: Vec<u8>,
    pub(crate) updates: Vec<Value>,
    pub(crate) uploads: Vec<Upload>,
}

impl Ended {
    fn last(&self, key: &str) -> &Value {
        self.updates.last().map_or(&Value::Null, |update| &update[key])
    }

    pub(crate) fn state(&self) -> &str {
        self.last("state").as_str().unwrap_or("none")
    }

    pub(crate) fn failure_reason(&self) -> Option<&str> {
        self.last("failure_reason").as_str()
    }

    pub(crate) fn exit_code(&self) -> Option<i64> {
        self.last("exit_code").as_i64()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.trace).into_owned()
    }

    /// The trace as a reader sees it.
    pub(crate) fn plain(&self) -> String {
        plain(&self.text())
    }

    #[track_caller]
    pub(crate) fn assert_success(&self) {
        assert_eq!(self.state(), "success", "{}", self.story());
    }

    #[track_caller]
    pub(crate) fn assert_failed(&self, reason: &str, exit_code: Option<i64>) {
        let found = (self.state(), self.failure_reason(), self.exit_code());
        assert_eq!(found, ("failed", Some(reason), exit_code), "{}", self.story());
    }

    /// Each of `lines` is a line of the trace.
    #[track_caller]
    pub(crate) fn assert_lines(&self, lines: &[&str]) {
        let plain = self.plain();
        for line in lines {
            assert!(plain.lines().any(|l| l == *line), "no line `{line}`\n{}", self.story());
        }
    }

    #[track_caller]
    pub(crate) fn assert_contains(&self, text: &str) {
        assert!(self.plain().contains(text), "no `{text}`\n{}", self.story());
    }

    /// `text` stands nowhere in the trace as it was sent.
    #[track_caller]
    pub(crate) fn assert_lacks(&self, text: &str) {
        assert!(!self.text().contains(text), "`{text}` is in the trace\n{}", self.story());
    }

    /// `line` is none of the trace's lines (it may be part of one: commands are shown).
    #[track_caller]
    pub(crate) fn assert_no_line(&self, line: &str) {
        assert!(!self.plain().lines().any(|l| l == line), "line `{line}`\n{}", self.story());
    }

    /// What to print when an assertion fails.
    pub(crate) fn story(&self) -> String {
        let plain = self.plain();
        let from = plain.char_indices().rev().nth(4000).map_or(0, |(i, _)| i);
        let mut last = self.updates.last().cloned().unwrap_or_default();
        last["info"].take();
        format!("--- job {}, last update {last}\n--- trace\n{}", self.id, &plain[from..])
    }
}

/// Removes timestamps, section markers and colours (docs/compatibility.md, "Sections" and
/// "Timestamps").
fn plain(text: &str) -> String {
    let stamp = Regex::new(r"^\d{4}-\d\d-\d\dT[\d:.]{15}Z ([0-9a-f]{2}[OE])([ +])").unwrap();
    let mut lines: Vec<String> = Vec::new();
    let mut last_of_stream: Vec<(String, usize)> = Vec::new();
    for line in text.split('\n') {
        let Some(found) = stamp.captures(line) else {
            lines.push(line.to_owned());
            continue;
        };
        let rest = &line[found[0].len()..];
        let known = last_of_stream.iter_mut().find(|(stream, _)| stream == &found[1]);
        match known {
            Some((_, index)) if &found[2] == "+" => lines[*index].push_str(rest),
            Some((_, index)) => {
                *index = lines.len();
                lines.push(rest.to_owned());
            }
            None => {
                last_of_stream.push((found[1].to_owned(), lines.len()));
                lines.push(rest.to_owned());
            }
        }
    }
    let markers = Regex::new(r"section_(start|end):\d+:[^\r\n]*\r|\x1b\[[0-9;]*[A-Za-z]").unwrap();
    markers.replace_all(&lines.join("\n"), "").replace("\r\n", "\n").replace('\r', "\n")
}

#[test]
fn a_stamped_trace_reads_as_its_text() {
    let text = "2024-01-02T03:04:05.123456Z 00O \x1b[0Ksection_start:1:a\r\x1b[0Khello\n\
                2024-01-02T03:04:05.123456Z 01E other\n\
                2024-01-02T03:04:05.123456Z 00O+ world\n";
    assert_eq!(plain(text), "hello world\nother\n");
}

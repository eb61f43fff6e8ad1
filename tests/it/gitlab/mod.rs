//! A GitLab that tests steer and inspect: the runner's side of its API and git over HTTP. It is
//! strict: a request that a real server would merely tolerate is recorded as a violation, and fails
//! the test at its end.

mod git;
mod http;
mod job;
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use aho_corasick::AhoCorasick;
use axum::http::HeaderMap;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

pub(crate) use job::{Ended, JobSpec, Upload, job};

/// The token of the one runner there is.
pub(crate) const RUNNER_TOKEN: &str = "glrt-integration0000000000";

/// A token that makes runners, as they were registered before GitLab 16.
pub(crate) const REGISTRATION_TOKEN: &str = "GR1348941integration00000000";

/// The token of the runner that is made with it.
pub(crate) const LEGACY_TOKEN: &str = "integrationLegacy000";

/// How long a test waits for anything before it fails.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where a fault can be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    /// `POST jobs/request`
    Request,
    /// `PUT jobs/:id` with the first `running`
    Acknowledge,
    /// `PUT jobs/:id` with a final state
    Final,
    /// `PATCH jobs/:id/trace`
    Trace,
    /// `POST jobs/:id/artifacts`
    Upload,
    /// `GET jobs/:id/artifacts`
    Download,
    /// Git over HTTP
    Git,
}

/// An answer given in place of the ordinary one, once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The request takes effect all the same: only its answer is lost.
    pub(crate) takes_effect: bool,
}

impl Fault {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn but_takes_effect(mut self) -> Self {
        self.takes_effect = true;
        self
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
}

/// A job as the server sees it.
pub(crate) struct JobState {
    pub(crate) token: String,
    /// `pending`, `waiting`, `running`, `canceling`, `success`, `failed` or `canceled`.
    pub(crate) status: String,
    pub(crate) trace: Vec<u8>,
    /// Bodies of accepted `PUT`s.
    pub(crate) updates: Vec<Value>,
    /// All `PUT`s with a final state: when they came, and how they were answered.
    pub(crate) finals: Vec<(Instant, u16)>,
    /// Accepted and refused patches: first byte, length, answer.
    pub(crate) patches: Vec<(usize, usize, u16)>,
    pub(crate) uploads: Vec<Upload>,
    payload: Value,
    secrets: AhoCorasick,
    /// An answer before this one was out of the ordinary, so the next may repeat or skip bytes.
    may_jump: bool,
    /// The server refused bytes for good, so the trace may stay short.
    may_stay_short: bool,
    /// Requests since the runner was told that the job is over for it.
    after_abort: Option<(usize, usize)>,
}

impl JobState {
    fn executing(&self) -> bool {
        matches!(self.status.as_str(), "running" | "canceling")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.trace).into_owned()
    }
}

/// All that changes; behind one lock.
pub(crate) struct State {
    pub(crate) jobs: BTreeMap<i64, JobState>,
    pub(crate) requests: Vec<Recorded>,
    /// Bodies of `POST jobs/request`.
    pub(crate) polls: Vec<Value>,
    /// Answers to hold a poll for; zero answers at once.
    pub(crate) long_poll: Duration,
    /// `X-GitLab-Trace-Update-Interval`, in seconds.
    pub(crate) trace_interval: u64,
    queue: VecDeque<i64>,
    faults: BTreeMap<Endpoint, VecDeque<Fault>>,
    violations: Vec<String>,
    /// How the runner ended, once it has.
    runner_end: Option<std::process::ExitStatus>,
    next_id: i64,
    submitted: usize,
}

struct Shared {
    state: Mutex<State>,
    /// Counts changes, for those who wait.
    changes: watch::Sender<u64>,
    repositories: git::Repositories,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// The server; it ends with this value, and then fails the test if it noted anything.
pub(crate) struct Gitlab {
    /// The address that containers reach too.
    pub(crate) url: String,
    /// The project of all jobs; random, so that tests do not share caches.
    pub(crate) project_id: i64,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
    _directory: TempDir,
}

/// An id that no other test has, nor a job of GitLab Runner's on the same engine.
fn random_id() -> i64 {
    let random = RandomState::new().hash_one(()) % 800_000_000;
    100_000_000 + i64::try_from(random).unwrap()
}

impl Gitlab {
    /// Starts one that is reached at `host`, an address of this machine.
    pub(crate) async fn start(host: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                jobs: BTreeMap::new(),
                requests: Vec::new(),
                polls: Vec::new(),
                long_poll: Duration::from_secs(5),
                trace_interval: 1,
                queue: VecDeque::new(),
                faults: BTreeMap::new(),
                violations: Vec::new(),
                runner_end: None,
                next_id: random_id(),
                submitted: 0,
            }),
            changes: watch::Sender::new(0),
            repositories: git::Repositories::new(directory.path()),
        });
        let mut server = JoinSet::new();
        let router = http::router(Arc::clone(&shared));
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url: format!("http://{host}:{port}"),
            project_id: random_id(),
            shared,
            _server: server,
            _directory: directory,
        }
    }

    /// Reads or changes the state; who waits looks again.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.shared.lock());
        self.shared.changed();
        result
    }

    /// Commits `files` to the branch `main` of the repository `path`; the commit.
    pub(crate) fn commit(&self, path: &str, files: &[(&str, &str)]) -> String {
        self.shared.repositories.commit(path, files)
    }

    /// As [`Gitlab::commit`], with the commit `wanted` of `url` as the submodule `path/module`.
    pub(crate) fn commit_submodule(
        &self,
        path: &str,
        module: &str,
        url: &str,
        wanted: &str,
    ) -> String {
        self.shared.repositories.add_submodule(path, module, url, wanted);
        self.commit(path, &[])
    }

    /// Answers the next request at `endpoint` with `fault`; several wait in line.
    pub(crate) fn fault(&self, endpoint: Endpoint, fault: Fault) {
        self.with(|state| state.faults.entry(endpoint).or_default().push_back(fault));
    }

    /// Queues a job; its id.
    pub(crate) fn submit(&self, spec: JobSpec) -> i64 {
        let JobSpec { mut payload, mut variables, sources, depth, protected, bend } = spec;
        let (path, sha) = sources.clone().unwrap_or(("group/none".into(), "0".repeat(40)));
        let host = self.url.trim_start_matches("http://");
        self.with(|state| {
            state.next_id += 1;
            let id = state.next_id;
            let token = format!("glcbt-{id}-abcdefghijklmnop");
            let mut all: Vec<Value> = [
                ("CI", "true"),
                ("GITLAB_CI", "true"),
                ("CI_SERVER_URL", &self.url),
                ("CI_JOB_ID", &id.to_string()),
                ("CI_PROJECT_ID", &self.project_id.to_string()),
                ("CI_PROJECT_PATH", &path),
                ("CI_PROJECT_NAME", path.rsplit('/').next().unwrap()),
                ("CI_COMMIT_SHA", &sha),
                ("CI_COMMIT_REF_NAME", "main"),
                ("GIT_STRATEGY", if sources.is_some() { "fetch" } else { "none" }),
            ]
            .iter()
            .map(|(key, value)| json!({"key": key, "value": value, "public": true}))
            .collect();
            all.push(json!({"key": "CI_JOB_TOKEN", "value": token, "masked": true}));
            all.append(&mut variables);
            let secrets = all
                .iter()
                .filter(|variable| variable["masked"] == true)
                .filter_map(|variable| variable["value"].as_str())
                .chain([RUNNER_TOKEN]);
            let secrets = AhoCorasick::new(secrets).unwrap();
            payload["id"] = json!(id);
            payload["token"] = json!(token);
            payload["variables"] = json!(all);
            payload["job_info"]["project_id"] = json!(self.project_id);
            payload["job_info"]["project_name"] = json!(path.rsplit('/').next());
            payload["job_info"]["project_full_path"] = json!(path);
            payload["git_info"] = json!({
                "repo_url": format!("http://gitlab-ci-token:{token}@{host}/{path}.git"),
                "ref": "main", "sha": sha, "before_sha": "0".repeat(40), "ref_type": "branch",
                "refspecs": ["+refs/heads/main:refs/remotes/origin/main"],
                "depth": depth, "repo_object_format": "sha1", "protected": protected,
            });
            if let Some(bend) = bend {
                bend(&mut payload);
            }
            let job = JobState {
                token,
                status: "pending".to_owned(),
                trace: Vec::new(),
                updates: Vec::new(),
                finals: Vec::new(),
                patches: Vec::new(),
                uploads: Vec::new(),
                payload,
                secrets,
                may_jump: false,
                may_stay_short: false,
                after_abort: None,
            };
            state.jobs.insert(id, job);
            state.queue.push_back(id);
            state.submitted += 1;
            id
        })
    }

    /// What a user does: `canceling` asks gracefully, `canceled` ends the job at once.
    pub(crate) fn set_status(&self, id: i64, status: &str) {
        self.with(|state| {
            let job = state.jobs.get_mut(&id).unwrap();
            if job.status != "success" && job.status != "failed" {
                status.clone_into(&mut job.status);
            }
        });
    }

    /// A runner starts; what is returned is to be told of its end.
    pub(crate) fn runner_starts(&self) -> impl FnOnce(std::process::ExitStatus) + Send + 'static {
        self.with(|state| state.runner_end = None);
        let shared = Arc::clone(&self.shared);
        move |status| {
            shared.lock().runner_end = Some(status);
            shared.changed();
        }
    }

    /// Takes back the faults that have not been met yet.
    pub(crate) fn clear_faults(&self, endpoint: Endpoint) {
        self.with(|state| state.faults.remove(&endpoint));
    }

    /// Waits until `look` finds what it looks for.
    ///
    /// # Panics
    /// After [`PATIENCE`], with `what` was waited for; at once when the runner has ended.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&State) -> Option<T>,
    ) -> T {
        let mut changes = self.shared.changes.subscribe();
        let waited = tokio::time::timeout(crate::engine::patient(PATIENCE), async {
            loop {
                changes.borrow_and_update();
                let end = {
                    let state = self.shared.lock();
                    if let Some(found) = look(&state) {
                        return found;
                    }
                    state.runner_end
                };
                if let Some(status) = end {
                    panic!("waited for {what}, but longshore has ended: {status}");
                }
                changes.changed().await.unwrap();
            }
        })
        .await;
        waited.unwrap_or_else(|_| {
            let state = self.shared.lock();
            let jobs: Vec<_> = state
                .jobs
                .iter()
                .map(|(id, job)| (id, &job.status, Self::result(*id, job).story()))
                .collect();
            panic!("waited in vain for {what}; {jobs:#?}")
        })
    }

    /// Waits until `text` stands in the job's trace.
    pub(crate) async fn until_output(&self, id: i64, text: &str) {
        let what = format!("`{text}` in the trace of job {id}");
        self.until(&what, |state| state.jobs[&id].text().contains(text).then_some(())).await;
    }

    /// Waits until the job's final state was accepted.
    pub(crate) async fn ended(&self, id: i64) -> Ended {
        self.until(&format!("the end of job {id}"), |state| {
            let job = &state.jobs[&id];
            let last = job.updates.last()?;
            (last["state"] != "running").then(|| Self::result(id, job))
        })
        .await
    }

    /// What there is of the job by now.
    pub(crate) fn result_so_far(&self, id: i64) -> Ended {
        Self::result(id, &self.shared.lock().jobs[&id])
    }

    fn result(id: i64, job: &JobState) -> Ended {
        Ended {
            id,
            token: job.token.clone(),
            trace: job.trace.clone(),
            updates: job.updates.clone(),
            uploads: job.uploads.clone(),
        }
    }

    /// A runner that was killed may not know how much of the trace has arrived.
    pub(crate) fn allow_jump(&self, id: i64) {
        self.with(|state| {
            let job = state.jobs.get_mut(&id).unwrap();
            (job.may_jump, job.may_stay_short) = (true, true);
        });
    }
}

impl Drop for Gitlab {
    fn drop(&mut self) {
        let violations = std::mem::take(&mut self.shared.lock().violations);
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "the server notes: {violations:#?}");
        }
    }
}

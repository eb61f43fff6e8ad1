//! What a monitoring system asks about: counted where things happen, shown as Prometheus' text
//! (docs/compatibility.md, "Metrics"). Handed down, never global; the socket is the command line's business.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::base::{
    duration,
    ids::{JobId, RunnerName, ShortToken},
};

/// A runner, as labels name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunnerLabels {
    /// `runner`.
    pub token: ShortToken,
    /// `runner_name`.
    pub name: RunnerName,
}

/// A configured runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// Whose.
    pub runner: RunnerLabels,
    /// Its `limit`.
    pub limit: usize,
    /// Its `request_concurrency`.
    pub request_concurrency: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    system_id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    configured: Vec<Configured>,
    concurrent: usize,
    loaded: u64,
    loading_errors: u64,
    jobs: BTreeMap<JobId, JobRow>,
    started: BTreeMap<RunnerLabels, u64>,
    failed: BTreeMap<(RunnerLabels, &'static str), u64>,
    /// By runner, endpoint, method and status.
    answers: BTreeMap<(ShortToken, &'static str, &'static str, u16), u64>,
}

#[derive(Debug)]
struct JobRow {
    runner: RunnerLabels,
    url: String,
    stage: String,
    executor_stage: String,
    since: Instant,
}

/// A job that runs, as long as this is kept.
#[derive(Debug)]
pub struct Running {
    metrics: Arc<Metrics>,
    id: JobId,
    runner: RunnerLabels,
}

impl Running {
    /// The stage that the job is in now, and that of its executor, such as `docker_run`.
    pub fn stage(&self, stage: &str, executor_stage: &str) {
        if let Some(row) = self.metrics.state().jobs.get_mut(&self.id) {
            stage.clone_into(&mut row.stage);
            executor_stage.clone_into(&mut row.executor_stage);
        }
    }

    /// The job failed, for this reason.
    pub fn failed(&self, reason: &'static str) {
        *self.metrics.state().failed.entry((self.runner.clone(), reason)).or_default() += 1;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.state().jobs.remove(&self.id);
    }
}

impl Metrics {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(system_id: String) -> Self {
        Self { system_id, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A configuration is in force.
    pub fn loaded(&self, concurrent: usize, configured: Vec<Configured>) {
        let mut state = self.state();
        state.loaded += 1;
        state.concurrent = concurrent;
        for entry in &configured {
            state.started.entry(entry.runner.clone()).or_default();
        }
        state.configured = configured;
    }

    /// A configuration was wrong.
    pub fn loading_failed(&self) {
        self.state().loading_errors += 1;
    }

    /// A job runs; `url` is its page.
    #[must_use]
    pub fn job(self: &Arc<Self>, id: JobId, runner: RunnerLabels, url: String) -> Running {
        let mut state = self.state();
        *state.started.entry(runner.clone()).or_default() += 1;
        let (stage, executor_stage) = ("prepare_executor".to_owned(), "created".to_owned());
        let since = Instant::now();
        let row = JobRow { runner: runner.clone(), url, stage, executor_stage, since };
        state.jobs.insert(id, row);
        Running { metrics: Arc::clone(self), id, runner }
    }

    /// A server answered.
    pub fn answered(
        &self,
        runner: &ShortToken,
        endpoint: &'static str,
        method: &'static str,
        status: Option<u16>,
    ) {
        let Some(status) = status else { return };
        let key = (runner.clone(), endpoint, method, status);
        *self.state().answers.entry(key).or_default() += 1;
    }

    /// One line a job, as `/debug/jobs/list` shows them.
    #[must_use]
    pub fn jobs(&self) -> String {
        let mut text = String::new();
        for row in self.state().jobs.values() {
            let _infallible = writeln!(
                text,
                "url={} state=running stage={} executor_stage={} duration={}",
                row.url,
                row.stage,
                row.executor_stage,
                duration::format_seconds(row.since.elapsed())
            );
        }
        text
    }

    /// All of it, in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let state = self.state();
        let mut page = Page(String::with_capacity(4096));
        let id = self.system_id.as_str();
        let of = |runner: &RunnerLabels| {
            [
                ("runner", runner.token.as_str().to_owned()),
                ("runner_name", runner.name.to_string()),
                ("system_id", id.to_owned()),
            ]
        };

        page.head("gitlab_runner_jobs", "gauge", "The current number of running builds");
        let mut rows: BTreeMap<(&RunnerLabels, &str, &str, &str), u64> = BTreeMap::new();
        for entry in &state.configured {
            rows.insert((&entry.runner, "", "", ""), 0);
        }
        for row in state.jobs.values() {
            *rows
                .entry((&row.runner, "running", row.stage.as_str(), row.executor_stage.as_str()))
                .or_default() += 1;
        }
        for ((runner, job_state, stage, executor_stage), count) in rows {
            let more = [("state", job_state), ("stage", stage), ("executor_stage", executor_stage)]
                .map(|(name, value)| (name, value.to_owned()));
            page.row("gitlab_runner_jobs", of(runner).into_iter().chain(more), count);
        }

        page.head("gitlab_runner_jobs_total", "counter", "Total number of handled jobs");
        for (runner, count) in &state.started {
            page.row("gitlab_runner_jobs_total", of(runner), *count);
        }

        page.head("gitlab_runner_failed_jobs_total", "counter", "Total number of failed jobs");
        for ((runner, reason), count) in &state.failed {
            let [token, name, _] = of(runner);
            let reason = ("failure_reason", (*reason).to_owned());
            let mode = ("mode", "traditional".to_owned());
            page.row("gitlab_runner_failed_jobs_total", [token, name, reason, mode], *count);
        }

        page.one("gitlab_runner_concurrent", "gauge", "The value of concurrent", state.concurrent);
        page.head("gitlab_runner_limit", "gauge", "The value of limit");
        for entry in &state.configured {
            page.row("gitlab_runner_limit", of(&entry.runner), entry.limit);
        }
        let name = "gitlab_runner_request_concurrency";
        page.head(name, "gauge", "The value of request_concurrency");
        for entry in &state.configured {
            let [token, _, system_id] = of(&entry.runner);
            page.row(name, [token, system_id], entry.request_concurrency);
        }

        let name = "gitlab_runner_configuration_loaded_total";
        page.one(name, "counter", "Configurations that came into force", state.loaded);
        let name = "gitlab_runner_configuration_loading_error_total";
        page.one(name, "counter", "Configurations that were wrong", state.loading_errors);

        let name = "gitlab_runner_api_request_statuses_total";
        page.head(name, "counter", "Answers of GitLab, by endpoint and status");
        for ((runner, endpoint, method, status), count) in &state.answers {
            let labels = [
                ("runner", runner.as_str().to_owned()),
                ("system_id", id.to_owned()),
                ("endpoint", (*endpoint).to_owned()),
                ("status", status.to_string()),
                ("method", (*method).to_owned()),
            ];
            page.row(name, labels, *count);
        }

        page.head("gitlab_runner_version_info", "gauge", "What this is; always 1");
        let labels = [
            ("name", env!("CARGO_PKG_NAME")),
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", crate::REVISION),
            ("branch", "main"),
            ("go_version", concat!("rust", env!("CARGO_PKG_RUST_VERSION"))),
            ("built_at", ""),
            ("os", std::env::consts::OS),
            ("architecture", std::env::consts::ARCH),
        ];
        let labels = labels.map(|(name, value)| (name, value.to_owned()));
        page.row("gitlab_runner_version_info", labels, 1_u64);
        page.0
    }
}

/// A page that grows.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _infallible = writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    }

    fn row(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'static str, String)>,
        value: impl std::fmt::Display,
    ) {
        self.0.push_str(name);
        for (n, (label, text)) in labels.into_iter().enumerate() {
            self.0.push(if n == 0 { '{' } else { ',' });
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _infallible = write!(self.0, "{label}=\"{text}\"");
        }
        let _infallible = writeln!(self.0, "}} {value}");
    }

    /// A metric without labels.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        let _infallible = writeln!(self.0, "{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_failures_and_answers_are_counted_by_runner() {
        let metrics = Arc::new(Metrics::new("s_1".to_owned()));
        let runner =
            RunnerLabels { token: ShortToken::of("glrt-abc"), name: RunnerName::new("a \"b\"") };
        let configured = Configured { runner: runner.clone(), limit: 3, request_concurrency: 2 };
        metrics.loaded(7, vec![configured]);
        let labels = "runner=\"abc\",runner_name=\"a \\\"b\\\"\",system_id=\"s_1\"";
        let has = |line: &str| {
            let text = metrics.text();
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        };
        has(&format!("gitlab_runner_jobs{{{labels},state=\"\",stage=\"\",executor_stage=\"\"}} 0"));
        has(&format!("gitlab_runner_jobs_total{{{labels}}} 0"));
        has("gitlab_runner_concurrent 7");
        has(&format!("gitlab_runner_limit{{{labels}}} 3"));
        has("gitlab_runner_configuration_loaded_total 1");

        let job = metrics.job(JobId(5), runner.clone(), "https://g/a/-/jobs/5".to_owned());
        job.stage("step_script", "docker_run");
        let at = "state=\"running\",stage=\"step_script\",executor_stage=\"docker_run\"";
        has(&format!("gitlab_runner_jobs{{{labels},{at}}} 1"));
        assert_eq!(
            metrics.jobs(),
            "url=https://g/a/-/jobs/5 state=running stage=step_script executor_stage=docker_run \
             duration=0s\n"
        );
        job.failed("script_failure");
        drop(job);
        assert_eq!(metrics.jobs(), "");
        has(&format!("gitlab_runner_jobs_total{{{labels}}} 1"));
        has("gitlab_runner_failed_jobs_total{runner=\"abc\",runner_name=\"a \\\"b\\\"\",\
             failure_reason=\"script_failure\",mode=\"traditional\"} 1");

        metrics.answered(&runner.token, "request_job", "post", Some(204));
        metrics.answered(&runner.token, "request_job", "post", None);
        has("gitlab_runner_api_request_statuses_total{runner=\"abc\",system_id=\"s_1\",\
             endpoint=\"request_job\",status=\"204\",method=\"post\"} 1");
    }

    #[test]
    fn every_line_is_one_of_prometheus_format() {
        let text = Metrics::new("s".to_owned()).text();
        let line =
            regex::Regex::new(r#"^(# (HELP|TYPE) \w+ .+|\w+(\{(\w+="([^"\\]|\\.)*",?)+\})? \d+)$"#);
        let line = line.unwrap();
        assert!(text.lines().all(|text| line.is_match(text)), "{text}");
    }
}

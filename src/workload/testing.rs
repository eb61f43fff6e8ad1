//! A job and its runner for tests, with the fewest words.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::{
    config::{RunnerConfig, check},
    gitlab::payload::{self, InvalidJob},
};

use super::{JobSpec, Leases, Placement, Workload, WorkloadError};

/// A job that can be planned, with the fewest words.
pub(crate) struct Case {
    payload: Value,
    runner: String,
    docker: String,
    pub(crate) placement: Placement,
}

impl Case {
    /// A job with a script and nothing else, on a runner with a default image and nothing else.
    pub(crate) fn new() -> Self {
        Self {
            payload: json!({
                "id": 88213,
                "token": "glcbt-64_job",
                "allow_git_fetch": true,
                "job_info": {
                    "name": "unit", "stage": "test", "pipeline_id": 5120, "project_id": 42,
                    "project_full_path": "acme/turbine",
                },
                "git_info": {
                    "repo_url": "https://gitlab-ci-token:glcbt-64_job@gitlab.example.net/acme/turbine.git",
                    "ref": "main", "sha": "3d1f0c5a9b7e4c62a1f5d8e0b4c7a9d2e6f31b08",
                    "before_sha": "a94c1e5d2f7b8036c4d9e1f2a3b4c5d6e7f80912",
                    "refspecs": ["+refs/heads/main:refs/remotes/origin/main"],
                },
                "runner_info": {"timeout": 3600},
                "variables": [],
                "steps": [{"name": "script", "script": ["true"]}],
                "features": {"trace_sections": true},
            }),
            runner: String::new(),
            docker: "image = \"debian:12\"".to_owned(),
            placement: Placement {
                system_id: "s_0123456789ab".to_owned(),
                instance: "here".to_owned(),
                slot: 3,
                project_slot: 1,
                random: "00112233445566aa".to_owned(),
                architecture: "amd64".to_owned(),
                server_ca: None,
                client_certificate: None,
                correlation_id: None,
                leases: Leases::default(),
            },
        }
    }

    /// Sets a key of the payload.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.payload[key] = value;
        self
    }

    /// Sets a key of `git_info`.
    pub(crate) fn git(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.payload["git_info"][key] = value.into();
        self
    }

    /// Adds a variable.
    pub(crate) fn variable(self, key: &str, value: &str) -> Self {
        self.variable_with(key, value, &json!({}))
    }

    /// Adds a variable with properties.
    pub(crate) fn variable_with(mut self, key: &str, value: &str, more: &Value) -> Self {
        let mut variable = json!({"key": key, "value": value});
        variable.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.payload["variables"].as_array_mut().unwrap().push(variable);
        self
    }

    /// The commands of the script.
    pub(crate) fn script(self, commands: &[&str]) -> Self {
        self.with("steps", json!([{"name": "script", "script": commands}]))
    }

    /// Adds lines to `[[runners]]`.
    pub(crate) fn runner(mut self, lines: &str) -> Self {
        self.runner.push_str(lines);
        self.runner.push('\n');
        self
    }

    /// Adds lines to `[runners.docker]`, and sub-tables at its end.
    pub(crate) fn docker(mut self, lines: &str) -> Self {
        self.docker.push('\n');
        self.docker.push_str(lines);
        self
    }

    /// Takes the runner's default image away.
    pub(crate) fn without_default_image(mut self) -> Self {
        self.docker = self.docker.replace("image = \"debian:12\"", "");
        self
    }

    /// The settings, as the file's check gives them.
    pub(crate) fn config(&self) -> RunnerConfig {
        let text = format!(
            "[[runners]]\nname = \"builder\"\nurl = \"https://gitlab.example.net/\"\nid = 7\n\
             token = \"glrt-t1_ABCDEFGHIJKL\"\nexecutor = \"docker\"\n{}\n[runners.docker]\n{}\n",
            self.runner, self.docker
        );
        let checked = check::check(&text, Path::new("config.toml"), &|_| None)
            .unwrap_or_else(|error| panic!("{error}"));
        RunnerConfig::clone(&checked.config.runners[0])
    }

    /// The job.
    pub(crate) fn job(&self) -> JobSpec {
        self.try_job().unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_job(&self) -> Result<JobSpec, InvalidJob> {
        let payload = serde_json::from_value(self.payload.clone()).unwrap();
        payload::job_spec(&payload, &BTreeMap::new())
    }

    /// Plans it.
    pub(crate) fn plan(&self) -> Workload {
        self.try_plan().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Plans it, or not.
    pub(crate) fn try_plan(&self) -> Result<Workload, WorkloadError> {
        Workload::plan(&self.job(), &self.config(), &self.placement)
    }

    /// Why it cannot be planned, with the reason the server is told.
    pub(crate) fn refusal(&self) -> (String, &'static str) {
        if let Err(error) = self.try_job() {
            return (error.to_string(), error.failure_reason().as_str());
        }
        let error = self.try_plan().expect_err("it cannot be planned");
        (error.to_string(), error.failure_reason().as_str())
    }

    /// A value of the environment.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        self.plan().variables.value(key).map(str::to_owned)
    }
}

//! The variables of a job, in the order in which later ones take precedence.

use crate::config::RunnerConfig;

use super::{
    directories::Directories,
    flags::Flags,
    network::NetworkPlan,
    outcome::JobStatus,
    placement::Placement,
    spec::JobSpec,
    variable::{Variable, Variables},
};

/// The value of a variable as it is written by the job, or else by the runner.
pub(super) fn written<'a>(
    job: &'a JobSpec,
    runner: &'a RunnerConfig,
    name: &str,
) -> Option<&'a str> {
    job.written(name).or_else(|| {
        let own = runner.environment.iter().rev().find(|(key, _)| key == name);
        own.map(|(_, value)| value.as_str())
    })
}

/// What the variables are made of.
pub(super) struct Environment<'a> {
    pub(super) job: &'a JobSpec,
    pub(super) runner: &'a RunnerConfig,
    pub(super) placement: &'a Placement,
    pub(super) flags: &'a Flags,
    pub(super) network: &'a NetworkPlan,
}

impl Environment<'_> {
    /// All variables (docs/compatibility.md, "Order of variables"). `image` is what the job asks for.
    pub(super) fn assemble(&self, image: &str, directories: &Directories) -> Variables {
        let mut all = Variables::default();
        self.add_before_job(&mut all, image, directories);
        self.add_credentials(&mut all);
        for variable in &self.job.variables {
            if !self.flags.knows(&variable.key) {
                all.push(variable.clone());
            }
        }
        self.add_after_job(&mut all, directories);
        all
    }

    fn add_before_job(&self, all: &mut Variables, image: &str, directories: &Directories) {
        let Self { job, runner, placement, flags, .. } = self;
        for (name, on) in flags.all() {
            all.push_own(name, if on { "true" } else { "false" });
        }
        if !image.is_empty() {
            all.push_own("CI_JOB_IMAGE", image);
        }
        all.push_own("CI_RUNNER_SHORT_TOKEN", runner.short_token().as_str());
        for (name, value) in runner.environment.iter().filter(|(name, _)| !flags.knows(name)) {
            all.push_own(name, value);
        }
        all.push_own("CI_BUILDS_DIR", &directories.builds);
        all.push_own("CI_PROJECT_DIR", &directories.project);
        all.push_own("CI_CONCURRENT_ID", placement.slot.to_string());
        all.push_own("CI_CONCURRENT_PROJECT_ID", placement.project_slot.to_string());
        all.push_own("CI_SERVER", "yes");
        all.push_own("CI_JOB_STATUS", JobStatus::Running.as_str());
        all.push_own("CI_JOB_TIMEOUT", job.timeout.as_secs().to_string());
    }

    /// What the job may need to reach its server.
    fn add_credentials(&self, all: &mut Variables) {
        if let Some(ca) = &self.placement.server_ca {
            all.push_own_file("CI_SERVER_TLS_CA_FILE", ca);
        }
        if let Some((certificate, key)) = &self.placement.client_certificate {
            all.push_own_file("CI_SERVER_TLS_CERT_FILE", certificate);
            all.push(Variable {
                key: "CI_SERVER_TLS_KEY_FILE".into(),
                value: key.expose().to_owned(),
                file: true,
                ..Variable::default()
            });
        }
    }

    /// What the job cannot change.
    fn add_after_job(&self, all: &mut Variables, directories: &Directories) {
        all.push_own("CI_DISPOSABLE_ENVIRONMENT", "true");
        all.push_own("CI_RUNNER_VERSION", env!("CARGO_PKG_VERSION"));
        all.push_own("CI_RUNNER_REVISION", crate::REVISION);
        all.push_own("CI_RUNNER_EXECUTABLE_ARCH", format!("linux/{}", self.placement.architecture));
        all.push_own("RUNNER_TEMP_PROJECT_DIR", &directories.temp);
        if let NetworkPlan::Own { name, .. } = self.network {
            all.push_own("CI_BUILD_NETWORK_NAME", name);
        }
    }
}

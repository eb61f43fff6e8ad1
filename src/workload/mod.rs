//! All that a job will do, said before any of it is done. A plan is pure data: made of the job, the
//! runner's settings and a few facts about the place, with no clock, randomness or disk.

pub mod access;
pub mod cache;
pub mod flags;
pub mod job;
pub mod layers;
pub mod mount;
pub mod names;
pub mod policy;
pub mod script;
pub mod service;
pub mod settings;
pub mod sources;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    base::secret::Secret,
    config::{DockerConfig, PullPolicy, RunnerConfig},
    gitlab::api::wire::{JobPayload, Variable},
    helper::protocol::{CleanUp, ENV_FILE, Sources, Strategy},
    workload::job::{
        Job, JobImage,
        outcome::{FailureReason, JobStatus, go_duration},
        variable::{Expanded, Variables, parse_bool},
    },
};

use self::{
    access::Access,
    cache::{ArtifactPlan, CachePlan},
    flags::Flags,
    mount::Mounts,
    names::Names,
    service::ServicePlan,
    settings::Settings,
};

/// Values that GitLab Runner's own tools want masked, below the temporary directory: a job may have
/// written it.
const MASKING_FILE: &str = "masking.db";

/// What a plan must know of the place where it will run.
#[derive(Debug, Clone)]
pub struct Place {
    /// The machine's id (`.runner_system_id`).
    pub system_id: String,
    /// Marks everything this longshore makes.
    pub instance: String,
    /// Number of the job among those of its runner, from 0.
    pub slot: usize,
    /// Number of the job among those of its runner and project, from 0.
    pub project_slot: usize,
    /// Sixteen random hex digits.
    pub random: String,
    /// The engine's architecture as Go names it, such as `amd64`.
    pub architecture: String,
    /// By which the server's logs know the request that brought the job.
    pub correlation_id: Option<String>,
    /// PEM of CAs for the server.
    pub server_ca: Option<String>,
    /// Client certificate and key towards the server, PEM.
    pub client_certificate: Option<(String, Secret)>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Names of what will be made.
    pub names: Names,
    /// Variables, replaced.
    pub variables: Expanded,
    /// Typed settings that variables made.
    pub settings: Settings,
    /// Feature flags, resolved.
    pub flags: Flags,
    /// Directories in the containers.
    pub directories: Directories,
    /// The job's image.
    pub image: ImagePlan,
    /// Network of the containers.
    pub network: NetworkPlan,
    /// What is mounted where.
    pub mounts: Mounts,
    /// Labels of everything the job makes, without `.type`.
    pub labels: BTreeMap<String, String>,
    /// Services, the runner's own first.
    pub services: Vec<ServicePlan>,
    /// What Docker the job gets.
    pub access: Access,
    /// The task that fetches the sources; `None` when nothing is fetched.
    pub sources: Option<Box<Sources>>,
    /// Caches.
    pub caches: Vec<CachePlan>,
    /// Jobs whose artifacts are fetched, by index into the payload's.
    pub dependencies: Vec<usize>,
    /// Scripts, as `(stage, body)`.
    pub steps: Vec<StepPlan>,
    /// Commands of `after_script`.
    pub after_script: Vec<String>,
    /// Artifacts.
    pub artifacts: Vec<ArtifactPlan>,
    /// The task at the end that removes credentials and file variables.
    pub clean_up: CleanUp,
    /// Something needs the helper container whatever the image's user is.
    pub needs_helper: bool,
    /// Values that are masked in the trace.
    pub masks: Vec<String>,
    /// Warnings for the job's author, one line each.
    pub warnings: Vec<String>,
}

/// Directories in the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// `CI_BUILDS_DIR`.
    pub builds: String,
    /// `CI_PROJECT_DIR`.
    pub project: String,
    /// `RUNNER_TEMP_PROJECT_DIR`.
    pub temp: String,
    /// Root of local caches.
    pub cache: String,
    /// Directory of the project's caches below it.
    pub project_cache: String,
}

/// The job's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlan {
    /// Reference.
    pub name: String,
    /// Policies, tried in order.
    pub policies: Vec<PullPolicy>,
    /// Platform, when the job asks for one.
    pub platform: Option<String>,
    /// User, when job or runner name one.
    pub user: Option<String>,
    /// Override of the entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Whether its container is privileged.
    pub privileged: bool,
}

/// Network of a job's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkPlan {
    /// The engine's default bridge; services are reached by entries in `/etc/hosts`.
    Default,
    /// One made for the job and removed with it.
    Own {
        /// Name.
        name: String,
        /// MTU; 0 for the engine's default.
        mtu: u32,
        /// IPv6.
        ipv6: bool,
    },
    /// What `network_mode` says, as it is.
    Given(String),
}

impl NetworkPlan {
    /// The engine's word for it.
    #[must_use]
    pub fn mode(&self) -> &str {
        match self {
            Self::Default => "default",
            Self::Own { name, .. } => name,
            Self::Given(mode) => mode,
        }
    }

    /// Whether containers in it can have aliases.
    #[must_use]
    pub fn has_aliases(&self) -> bool {
        match self {
            Self::Own { .. } => true,
            Self::Default => false,
            Self::Given(mode) => {
                !matches!(mode.as_str(), "host" | "none" | "bridge" | "default")
                    && !mode.starts_with("container:")
            }
        }
    }
}

/// A script of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// `step_<name>`.
    pub stage: String,
    /// Commands, for the shell.
    pub commands: Vec<String>,
}

/// Why a job cannot be planned. The job's author reads this.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Neither job nor runner name an image.
    #[error("the job names no image and the runner has no default ([runners.docker] image)")]
    NoImage,
    /// The image may not be used.
    #[error(transparent)]
    Refused(#[from] crate::workload::policy::Refusal),
    /// `GIT_CLONE_PATH` leads out, or may not be used.
    #[error("GIT_CLONE_PATH `{path}` {why}")]
    ClonePath {
        /// The path.
        path: String,
        /// Why not.
        why: String,
    },
    /// A setting's value is none it can have.
    #[error("{variable} is `{value}`; it must be {expected}")]
    Setting {
        /// The variable or keyword.
        variable: String,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A volume cannot be mounted.
    #[error(transparent)]
    Mount(#[from] mount::MountError),
    /// A service cannot be understood.
    #[error(transparent)]
    Service(#[from] service::ServiceError),
    /// The job cannot have the Docker that it asks for.
    #[error(transparent)]
    Access(#[from] access::AccessError),
}

impl PlanError {
    /// What the server is told.
    #[must_use]
    pub fn failure_reason(&self) -> FailureReason {
        match self {
            Self::Setting { .. } | Self::Service(service::ServiceError::TooMany { .. }) => {
                FailureReason::RunnerSystemFailure
            }
            Self::NoImage
            | Self::Refused(_)
            | Self::ClonePath { .. }
            | Self::Mount(_)
            | Self::Service(_)
            | Self::Access(_) => FailureReason::RunnerConfigurationError,
        }
    }
}

/// Plans a job.
///
/// # Errors
/// When the job asks for what cannot or may not be; see [`PlanError`].
pub fn plan(job: &Job, runner: &RunnerConfig, place: &Place) -> Result<Plan, PlanError> {
    let mut warnings = job.warnings.clone();
    let docker = &runner.docker;
    let value = |name: &str| written(&job.payload, runner, name).map(str::to_owned);
    let flags = Flags::resolve(&runner.feature_flags, &value, &mut warnings);
    let names = Names::new(job, runner, place);

    let network = match docker.network_mode.as_deref() {
        Some(mode) if !mode.is_empty() => NetworkPlan::Given(mode.to_owned()),
        _ if flags.on("FF_NETWORK_PER_BUILD") || docker.guards_sockets() => NetworkPlan::Own {
            name: names.network.clone(),
            mtu: docker.network_mtu,
            ipv6: docker.enable_ipv6,
        },
        _ => NetworkPlan::Default,
    };

    let shared_builds = mount::covers(&docker.volumes, &runner.builds_dir);
    let directories = sources::directories(job, runner, place, shared_builds);
    let (strategy, directories, mut variables) =
        place_project(job, runner, place, &flags, directories, &network)?;
    let settings = Settings::read(&variables, job, runner, &flags, &mut warnings);

    let image = plan_image(&job.image, runner, &variables, &mut warnings)?;
    let protected = is_protected(job);
    let labels = names::labels(job, runner, place, &variables);
    let mut services = service::plan(job, runner, &variables, &names, &mut warnings)?;
    let access = access::plan(docker, &network, &mut services, &mut variables, &mut warnings)?;
    access::note_unset(&access, &variables, &job.steps, &mut warnings);
    let caches = cache::caches(job, &variables)?;
    let artifacts = cache::artifacts(job)?;
    let dependencies = plan_dependencies(job);
    let mounts = mount::plan(&mount::Request {
        runner,
        place,
        names: &names,
        variables: &variables,
        directories: &directories,
        job: job.id,
        project_id: job.payload.job_info.project_id,
        keep_builds: strategy == Strategy::Fetch,
        protected: protected || caches.iter().any(CachePlan::is_protected),
        has_caches: !caches.is_empty(),
        access: &access,
        slot: access.sidecar().and_then(|sidecar| {
            layers::plan(&job.payload, runner, place, protected, sidecar, &services)
        }),
    })?;
    let sources = sources::task(
        job,
        runner,
        place,
        strategy,
        shared_builds,
        &directories,
        &variables,
        &settings,
        &flags,
    )?;
    let needs_helper = sources.is_some()
        || !caches.is_empty()
        || !artifacts.is_empty()
        || !dependencies.is_empty()
        // What the job leaves there outlives it, and the helper takes away what must not.
        || !mounts.is_fresh(&directories.project);

    let clean_up = CleanUp {
        project_dir: directories.project.clone(),
        temp_dir: directories.temp.clone(),
        file_variables: variables
            .iter()
            .filter(|v| v.file.is_some())
            .map(|v| v.key.clone())
            .chain([ENV_FILE, MASKING_FILE].map(str::to_owned))
            .collect(),
        worktree: flags
            .on("FF_ENABLE_JOB_CLEANUP")
            .then(|| (strategy, settings.clean_flags.clone().unwrap_or_default())),
        clean_config: runner.clean_git_config && strategy != Strategy::None,
        submodules: settings.submodules.recursive.is_some(),
    };
    Ok(Plan {
        names,
        settings,
        flags,
        directories,
        image,
        network,
        mounts,
        labels,
        services,
        access,
        sources,
        caches,
        dependencies,
        steps: plan_steps(job, &variables),
        after_script: job.after_script.clone(),
        artifacts,
        clean_up,
        needs_helper,
        masks: masks(&variables),
        warnings,
        variables,
    })
}

/// Puts the project where `GIT_STRATEGY` and `GIT_CLONE_PATH` say, and gives the variables that say
/// where it is. These two may use variables which depend on the directories: so they are made with
/// the usual ones first.
fn place_project(
    job: &Job,
    runner: &RunnerConfig,
    place: &Place,
    flags: &Flags,
    mut directories: Directories,
    network: &NetworkPlan,
) -> Result<(Strategy, Directories, Expanded), PlanError> {
    let first = assemble(job, runner, place, flags, &job.image.name, &directories, network)
        .expand(&directories.temp);
    let value = |name: &str| first.value(name).filter(|value| !value.is_empty());
    let strategy = sources::strategy(value("GIT_STRATEGY"), job.payload.allow_git_fetch)?;
    if let Some(path) = value("GIT_CLONE_PATH") {
        directories.project = sources::clone_path(path, runner, &directories)?;
    } else if strategy == Strategy::Empty {
        directories.project.push_str("-empty");
    }
    directories.temp = format!("{}.tmp", directories.project);
    let image = first.expand(&job.image.name);
    let variables = assemble(job, runner, place, flags, &image, &directories, network)
        .expand(&directories.temp);
    Ok((strategy, directories, variables))
}

impl Plan {
    /// The script of a step, whole.
    #[must_use]
    pub fn step_script(&self, step: &StepPlan, runner: &RunnerConfig, nonce: &str) -> String {
        // Where the helper has not begun the job, its first script does.
        let begins = self.sources.is_none() && self.steps.first() == Some(step);
        script::Script::new(self, nonce, begins)
            .pre_build(runner.scripts.pre_build.as_deref())
            .commands("script_step", &step.commands)
            .post_build(runner.scripts.post_build.as_deref())
            .finish()
    }

    /// The script of `after_script`, whole.
    #[must_use]
    pub fn after_script(&self, status: JobStatus, nonce: &str) -> String {
        script::Script::new(self, nonce, false)
            .variable("CI_JOB_STATUS", status.as_str())
            .notice("Running after script...")
            .commands("after_script_step", &self.after_script)
            .finish()
    }
}

/// Jobs that have artifacts, by index.
fn plan_dependencies(job: &Job) -> Vec<usize> {
    job.payload
        .dependencies
        .iter()
        .enumerate()
        .filter(|(_, d)| !d.artifacts_file.filename.is_empty())
        .map(|(index, _)| index)
        .collect()
}

fn plan_steps(job: &Job, variables: &Expanded) -> Vec<StepPlan> {
    job.steps
        .iter()
        .map(|step| StepPlan {
            stage: format!("step_{}", step.name.to_lowercase()),
            commands: if step.name == "release" {
                step.script.iter().map(|line| variables.expand(line)).collect()
            } else {
                step.script.clone()
            },
        })
        .collect()
}

fn masks(variables: &Expanded) -> Vec<String> {
    variables
        .iter()
        .filter(|v| v.masked)
        .map(|v| v.file.clone().unwrap_or_else(|| v.value.clone()))
        .collect()
}

/// The value of a variable as it is written by the job, or else by the runner.
fn written<'a>(payload: &'a JobPayload, runner: &'a RunnerConfig, name: &str) -> Option<&'a str> {
    let own = runner.environment.iter().rev().find(|(key, _)| key == name);
    payload
        .variables
        .iter()
        .rev()
        .find(|variable| variable.key == name)
        .map(|variable| variable.value.as_str())
        .or_else(|| own.map(|(_, value)| value.as_str()))
}

/// Whether the job's ref is protected (`git_info.protected`, else the first definition of
/// `CI_COMMIT_REF_PROTECTED`).
fn is_protected(job: &Job) -> bool {
    job.payload.git_info.protected.unwrap_or_else(|| {
        job.payload
            .variables
            .iter()
            .find(|v| v.key == "CI_COMMIT_REF_PROTECTED")
            .is_some_and(|v| parse_bool(&v.value) == Some(true))
    })
}

/// All variables in the order of docker-executor.md §5.1. `image` is what the job asks for.
fn assemble(
    job: &Job,
    runner: &RunnerConfig,
    place: &Place,
    flags: &Flags,
    image: &str,
    directories: &Directories,
    network: &NetworkPlan,
) -> Variables {
    let mut all = Variables::default();
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
    all.push_own("CI_CONCURRENT_ID", place.slot.to_string());
    all.push_own("CI_CONCURRENT_PROJECT_ID", place.project_slot.to_string());
    all.push_own("CI_SERVER", "yes");
    all.push_own("CI_JOB_STATUS", JobStatus::Running.as_str());
    all.push_own("CI_JOB_TIMEOUT", job.timeout.as_secs().to_string());
    if let Some(ca) = &place.server_ca {
        all.push_own_file("CI_SERVER_TLS_CA_FILE", ca);
    }
    if let Some((certificate, key)) = &place.client_certificate {
        all.push_own_file("CI_SERVER_TLS_CERT_FILE", certificate);
        all.push(Variable {
            key: "CI_SERVER_TLS_KEY_FILE".into(),
            value: key.expose().to_owned(),
            file: true,
            ..Variable::default()
        });
    }
    for variable in &job.payload.variables {
        if !flags.knows(&variable.key) {
            all.push(variable.clone());
        }
    }
    all.push_own("CI_DISPOSABLE_ENVIRONMENT", "true");
    all.push_own("CI_RUNNER_VERSION", env!("CARGO_PKG_VERSION"));
    all.push_own("CI_RUNNER_REVISION", crate::REVISION);
    all.push_own("CI_RUNNER_EXECUTABLE_ARCH", format!("linux/{}", place.architecture));
    all.push_own("RUNNER_TEMP_PROJECT_DIR", &directories.temp);
    if let NetworkPlan::Own { name, .. } = network {
        all.push_own("CI_BUILD_NETWORK_NAME", name);
    }
    all
}

fn plan_image(
    image: &JobImage,
    runner: &RunnerConfig,
    variables: &Expanded,
    warnings: &mut Vec<String>,
) -> Result<ImagePlan, PlanError> {
    let docker = &runner.docker;
    let asked = variables.expand(&image.name);
    let default = variables.expand(&docker.image);
    let name = if asked.is_empty() { default.clone() } else { asked.clone() };
    if name.is_empty() {
        return Err(PlanError::NoImage);
    }
    policy::check_image(&name, &default, docker)?;
    let user = docker
        .user
        .clone()
        .or_else(|| image.user.as_deref().map(|user| variables.expand(user)))
        .filter(|user| !user.is_empty());
    policy::check_user(user.as_deref().unwrap_or_default(), docker)?;
    Ok(ImagePlan {
        policies: policy::effective(&image.pull_policy, docker)?,
        platform: image.platform.as_deref().map(|p| variables.expand(p)).filter(|p| !p.is_empty()),
        user,
        entrypoint: entrypoint(image, docker, "image", warnings),
        privileged: docker.privileged
            && policy::is_privileged(&asked, &docker.allowed_privileged_images),
        name,
    })
}

/// The entrypoint that a job asks for, where it may; `what` is `image` or the service.
fn entrypoint(
    image: &JobImage,
    docker: &DockerConfig,
    what: &str,
    warnings: &mut Vec<String>,
) -> Option<Vec<String>> {
    let asked = image.entrypoint.clone().filter(|words| !words.is_empty())?;
    if docker.disable_entrypoint_overwrite {
        warnings.push(format!(
            "{what}: the entrypoint of the job is not used, as this runner sets \
             disable_entrypoint_overwrite"
        ));
        return None;
    }
    Some(asked)
}

/// The timeout as the labels write it.
fn timeout_label(timeout: Duration) -> String {
    go_duration(timeout)
}

//! The workload itself, and how it is planned.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    base::{
        ids::{JobId, ProjectId},
        secret::Secret,
    },
    config::RunnerConfig,
};

use super::{
    access::{self, Access},
    cache::{self, CachePlan},
    directories::Directories,
    environment::{Environment, written},
    error::WorkloadError,
    flags::Flags,
    image::{self, ImagePlan},
    layers,
    mount::{self, Mounts},
    names::{self, Names},
    network::NetworkPlan,
    outcome::JobStatus,
    placement::Placement,
    script::{Context, Script},
    service::{self, ServicePlan},
    settings::Settings,
    sources,
    spec::{ArtifactSpec, Dependency, JobSpec, RegistryCredentials},
    transfer::{CleanUp, ENV_FILE, Sources, Strategy},
    variable::Expanded,
};

/// Values that GitLab Runner's own tools want masked, below the temporary directory: a job may have
/// written it.
const MASKING_FILE: &str = "masking.db";

/// All that a job will do. Complete before anything of it happens, and never changed: what it makes
/// on an executor is a function of it.
#[derive(Debug, Clone)]
pub struct Workload {
    /// What must be known of the job while it runs.
    pub job: JobFacts,
    /// Names of what will be made.
    pub names: Names,
    /// Variables, expanded.
    pub variables: Expanded,
    /// What variables set, beside feature flags.
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
    /// Labels of all that the job makes, without `.type`.
    pub labels: BTreeMap<String, String>,
    /// Services, the runner's own first.
    pub services: Vec<ServicePlan>,
    /// What Docker the job gets.
    pub access: Access,
    /// What runs in the job's image.
    pub scripts: Scripts,
    /// What the helper does.
    pub transfers: Transfers,
    /// Values that are masked in the trace.
    pub masks: Vec<Secret>,
    /// Warnings for the job's author, one line each.
    pub warnings: Vec<String>,
}

/// What must be known of a job while its workload runs.
#[derive(Debug, Clone)]
pub struct JobFacts {
    /// The job's number at its server.
    pub id: JobId,
    /// The project that it belongs to.
    pub project: ProjectId,
    /// Deadline of the whole job, from its start.
    pub timeout: Duration,
    /// Credentials that its server has given it for registries.
    pub registries: Vec<RegistryCredentials>,
    /// Announcements for the job's author, one line each.
    pub notices: Vec<String>,
}

/// What runs in the job's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scripts {
    /// Commands of the runner's before those of each step (`pre_build_script`).
    pub pre_build: Option<String>,
    /// Commands of the runner's after those of each step (`post_build_script`).
    pub post_build: Option<String>,
    /// Steps in order, up to the first that fails.
    pub steps: Vec<StepPlan>,
    /// Commands of `after_script`; empty when there is none.
    pub after_script: Vec<String>,
}

/// A step of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// `step_<name>`.
    pub stage: String,
    /// Commands, for the shell.
    pub commands: Vec<String>,
}

/// What the helper does before and after the scripts.
#[derive(Debug, Clone)]
pub struct Transfers {
    /// How the sources are fetched; `None` when there is nothing to do for them.
    pub sources: Option<Box<Sources>>,
    /// The git bundle on this host that the sources are fetched from, where that is not a server.
    pub bundle: Option<PathBuf>,
    /// Caches that are restored or saved.
    pub caches: Vec<CachePlan>,
    /// Jobs whose artifacts are downloaded.
    pub dependencies: Vec<Dependency>,
    /// Artifacts to upload.
    pub artifacts: Vec<ArtifactSpec>,
    /// The removal of credentials and file variables at the job's end.
    pub clean_up: CleanUp,
    /// Whether the helper is needed at all, whatever the image's user is.
    pub needs_helper: bool,
}

/// Where the project is, and the variables that say so.
struct Place {
    strategy: Strategy,
    directories: Directories,
    variables: Expanded,
}

impl Workload {
    /// Plans a job.
    ///
    /// # Errors
    /// When the job asks for what cannot be or what the runner forbids; see [`WorkloadError`].
    pub fn plan(
        job: &JobSpec,
        runner: &RunnerConfig,
        placement: &Placement,
    ) -> Result<Self, WorkloadError> {
        let mut warnings = job.warnings.clone();
        let containers = &runner.containers;
        let value = |name: &str| written(job, runner, name).map(str::to_owned);
        let flags = Flags::resolve(&runner.feature_flags, &value, &mut warnings);
        let names = Names::new(job, runner, placement);
        let network = NetworkPlan::new(containers, &flags, &names);
        let shared_builds = mount::covers(&containers.volumes.entries, runner.builds_dir.as_str());
        let environment = Environment { job, runner, placement, flags: &flags, network: &network };
        let usual = Directories::new(job, runner, placement, shared_builds);
        let Place { strategy, directories, mut variables } = place(&environment, usual)?;
        let settings = Settings::read(&variables, job, runner, &flags, &mut warnings);
        let image = image::plan(&job.image, containers, &variables, &mut warnings)?;
        let image = image.ok_or(WorkloadError::NoImage)?;
        let labels = names::labels(job, runner, placement, &variables);
        let mut services = service::plan(job, containers, &variables, &names, &mut warnings)?;
        let warm = placement.leases.warm_daemon.as_ref();
        let request = access::Request { containers, network: &network, warm };
        let access = access::plan(&request, &mut services, &mut variables, &mut warnings)?;
        access::note_unset(&access, &variables, &job.scripts.steps, &mut warnings);
        let caches = cache::plan(job, &variables)?;
        let mounts = mount::plan(&mount::Request {
            runner,
            placement,
            names: &names,
            variables: &variables,
            directories: &directories,
            job,
            keep_builds: strategy == Strategy::Fetch,
            protected: job.source.protected || caches.iter().any(CachePlan::is_protected),
            has_caches: !caches.is_empty(),
            access: &access,
            layer_slot: access
                .dind()
                .and_then(|dind| layers::plan(job, runner, placement, dind, &services)),
        })?;
        let sources = sources::plan(&sources::Request {
            job,
            runner,
            placement,
            strategy,
            shared_builds,
            directories: &directories,
            variables: &variables,
            settings: &settings,
            flags: &flags,
        })?;
        let clean_up = clean_up(runner, strategy, &directories, &variables, &settings, &flags);
        let transfers = Transfers::new(job, sources, caches, clean_up, &mounts);
        Ok(Self {
            job: JobFacts {
                id: job.id,
                project: job.project.id,
                timeout: job.timeout,
                registries: job.registries.clone(),
                notices: job.notices.clone(),
            },
            scripts: Scripts::new(job, runner, &variables),
            masks: masks(&variables),
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
            transfers,
            warnings,
            variables,
        })
    }

    /// Directories that the helper opens to the job's user, whoever that is.
    #[must_use]
    pub fn shared_directories(&self) -> Vec<String> {
        let Directories { project, temp, .. } = &self.directories;
        let own = [project.clone(), temp.clone()];
        self.mounts.made().map(str::to_owned).chain(own).collect()
    }

    /// The script of a step, whole.
    #[must_use]
    pub fn step_script(&self, step: &StepPlan, nonce: &str) -> String {
        // Where the helper has not begun the job, its first script does.
        let begins = self.transfers.sources.is_none() && self.scripts.steps.first() == Some(step);
        Script::new(self.script_context(), nonce, begins)
            .pre_build(self.scripts.pre_build.as_deref())
            .commands("script_step", &step.commands)
            .post_build(self.scripts.post_build.as_deref())
            .finish()
    }

    /// The script of `after_script`, whole.
    #[must_use]
    pub fn after_script(&self, status: JobStatus, nonce: &str) -> String {
        Script::new(self.script_context(), nonce, false)
            .variable("CI_JOB_STATUS", status.as_str())
            .notice("Running after script...")
            .commands("after_script_step", &self.scripts.after_script)
            .finish()
    }

    fn script_context(&self) -> Context<'_> {
        Context {
            directories: &self.directories,
            mounts: &self.mounts,
            variables: &self.variables,
            flags: &self.flags,
            settings: &self.settings,
            access: &self.access,
        }
    }
}

/// Puts the project where `GIT_STRATEGY` and `GIT_CLONE_PATH` say, and gives the variables that say
/// where it is. These two may use variables which depend on the directories: so they are made with
/// the usual ones first.
fn place(environment: &Environment<'_>, usual: Directories) -> Result<Place, WorkloadError> {
    let Environment { job, runner, .. } = environment;
    let first = environment.assemble(&job.image.name, &usual).expand(&usual.temp);
    let value = |name: &str| first.value(name).filter(|value| !value.is_empty());
    let strategy = sources::strategy(value("GIT_STRATEGY"), job.source.allow_fetch)?;
    let directories = if let Some(path) = value("GIT_CLONE_PATH") {
        let project = usual.clone_path(path, runner)?;
        usual.with_project(project)
    } else if strategy == Strategy::Empty {
        let project = format!("{}-empty", usual.project);
        usual.with_project(project)
    } else {
        usual
    };
    let image = first.expand(&job.image.name);
    let variables = environment.assemble(&image, &directories).expand(&directories.temp);
    Ok(Place { strategy, directories, variables })
}

impl Scripts {
    fn new(job: &JobSpec, runner: &RunnerConfig, variables: &Expanded) -> Self {
        let steps = job.scripts.steps.iter().map(|step| StepPlan {
            stage: format!("step_{}", step.name.to_lowercase()),
            commands: if step.name == "release" {
                step.script.iter().map(|line| variables.expand(line)).collect()
            } else {
                step.script.clone()
            },
        });
        Self {
            pre_build: runner.scripts.pre_build.clone(),
            post_build: runner.scripts.post_build.clone(),
            steps: steps.collect(),
            after_script: job.scripts.after_script.clone(),
        }
    }
}

impl Transfers {
    fn new(
        job: &JobSpec,
        sources: Option<Box<Sources>>,
        caches: Vec<CachePlan>,
        clean_up: CleanUp,
        mounts: &Mounts,
    ) -> Self {
        let names_files =
            |a: &&ArtifactSpec| !a.paths.is_empty() || !a.exclude.is_empty() || a.untracked;
        let artifacts: Vec<_> = job.artifacts.iter().filter(names_files).cloned().collect();
        let needs_helper = sources.is_some()
            || !caches.is_empty()
            || !artifacts.is_empty()
            || !job.dependencies.is_empty()
            // What the job leaves there outlives it, and the helper removes what must not.
            || !mounts.is_fresh(&clean_up.project_dir);
        Self {
            sources,
            bundle: job.source.bundle.clone(),
            caches,
            dependencies: job.dependencies.clone(),
            artifacts,
            clean_up,
            needs_helper,
        }
    }
}

fn clean_up(
    runner: &RunnerConfig,
    strategy: Strategy,
    directories: &Directories,
    variables: &Expanded,
    settings: &Settings,
    flags: &Flags,
) -> CleanUp {
    CleanUp {
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
        clean_config: runner.sources.clean_git_config && strategy != Strategy::None,
        submodules: settings.submodules.recursive.is_some(),
    }
}

fn masks(variables: &Expanded) -> Vec<Secret> {
    let masked = variables.iter().filter(|variable| variable.masked);
    masked.map(|v| Secret::new(v.file.as_ref().unwrap_or(&v.value))).collect()
}

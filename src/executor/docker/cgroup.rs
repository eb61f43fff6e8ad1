//! The control group of what a job makes through its guarded socket (G-85): one for each job, in
//! which the operator's totals hold. What a container may have is the guard's to say, but two
//! containers have twice as much.
//!
//! Where this process can make groups for the engine, it makes the job's one before the first
//! container, sets the totals, and removes it with the job: engines make a parent that is not
//! there, but leave it. Where it cannot, jobs with totals fail, as nobody would keep to them; other
//! jobs get a group by their place among the runner's jobs, which the next one there uses again:
//! nobody removes it, so there must not be one for each job.
//!
//! The job's own containers stay where `cgroup_parent` puts them.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    config::SocketLimits,
    executor::docker::engine::{
        Engine, Error,
        cgroup::{self, Cgroups, Driver, Hierarchy, Obstacle, Version},
    },
    workload::names::Names,
};

/// Where jobs' groups are, unless `cgroup_parent` says otherwise.
const OWN: &str = "longshore";

/// The file in a guard's directory that names the job's group, written before that is made.
const NOTE: &str = "cgroup";

/// The period that the kernel counts a processor's time in, in microseconds, and the least quota.
const PERIOD: i64 = 100_000;
const LEAST_QUOTA: i64 = 1_000;

/// How often the removal of a group is tried, and the pause between two tries: the last process of
/// a container may be seen a moment longer than the container.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// A job whose group could not be made, or not limited.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The engine did not answer.
    #[error(transparent)]
    Engine(#[from] Error),
    /// Nobody would keep to the totals.
    #[error("{key} cannot be kept to")]
    Unreachable {
        /// The first key that is set.
        key: &'static str,
        /// Why.
        source: Obstacle,
    },
    /// Where a relative path begins, only the engine's runtime knows.
    #[error("{key} needs a cgroup_parent that is an absolute path, and `{parent}` is none")]
    Relative {
        /// The first key that is set.
        key: &'static str,
        /// The configured parent.
        parent: String,
    },
    /// A file of a group could not be made or written.
    #[error("cannot set {key}: {}", path.display())]
    Write {
        /// The first key that is set.
        key: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// systemd refused.
    #[error("cannot set {key}: systemctl says: {words}")]
    Systemd {
        /// The first key that is set.
        key: &'static str,
        /// Its words.
        words: String,
    },
    /// Its name could not be noted.
    #[error("cannot note the job's control group in {}", path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CgroupError {
    /// Whether the configuration asks for what cannot be had here.
    pub(super) fn is_configuration(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Relative { .. })
    }
}

/// What all containers of a job may have together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    /// Bytes, swap included.
    memory: Option<i64>,
    /// Billionths of a processor.
    nano_cpus: Option<i64>,
    pids: Option<i64>,
}

/// A job's group, in the form of the engine's driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Group {
    /// A path below the root of every hierarchy; relative ones begin where the engine's runtime is.
    Path(String, Version),
    /// A slice of systemd's.
    Slice(String),
}

/// A value to be written into a file of a group.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
    /// Kernels may be without the file.
    is_optional: bool,
}

/// The group that all of a job's containers and build steps go into, made where that is possible.
/// `directory` is the guard's, where it is noted before.
pub(super) async fn make(
    engine: &Engine,
    config: &SocketLimits,
    parent: Option<&str>,
    names: &Names,
    directory: &Path,
) -> Result<String, CgroupError> {
    let cgroups = engine.cgroups().await?;
    let totals = Totals::of(config);
    let group = plan(cgroups, totals, parent, names)?;
    let name = group.name().to_owned();
    if group.is_managed(cgroups) {
        let (directory, cgroups) = (directory.to_owned(), cgroups.clone());
        let making = move || {
            group.note(&directory)?;
            group.limit(&cgroups, totals)
        };
        // It cannot be cancelled, and does not panic.
        if let Ok(made) = tokio::task::spawn_blocking(making).await {
            made?;
        }
    }
    Ok(name)
}

/// Removes the group that is noted in a guard's directory, if there is one. Says what is left.
pub(super) async fn remove(directory: &Path) -> Option<String> {
    let note = directory.join(NOTE);
    let text = tokio::fs::read(&note).await.ok()?;
    let Ok(group) = serde_json::from_slice::<Group>(&text) else {
        // Cut short by a crash: then it was not made.
        drop(tokio::fs::remove_file(&note).await);
        return None;
    };
    let name = group.name().to_owned();
    match tokio::task::spawn_blocking(move || group.remove()).await {
        Ok(Ok(())) => {
            drop(tokio::fs::remove_file(&note).await);
            None
        }
        Ok(Err(error)) => Some(format!("the control group {name}: {error}")),
        Err(error) => Some(format!("the control group {name}: {error}")),
    }
}

/// The job's group; refused where there are totals that nobody could set.
fn plan(
    cgroups: &Cgroups,
    totals: Totals,
    parent: Option<&str>,
    names: &Names,
) -> Result<Group, CgroupError> {
    let group = |leaf| Group::new(cgroups, parent.filter(|parent| !parent.is_empty()), leaf);
    let own = group(&names.unique);
    if own.is_managed(cgroups) {
        return Ok(own);
    }
    let Some(key) = totals.key() else { return Ok(group(&names.host)) };
    Err(match cgroups.reach {
        Err(source) => CgroupError::Unreachable { key, source },
        Ok(_) => CgroupError::Relative { key, parent: parent.unwrap_or_default().to_owned() },
    })
}

impl Totals {
    fn of(config: &SocketLimits) -> Self {
        Self {
            memory: config.total_memory,
            nano_cpus: config.total_nano_cpus,
            pids: config.total_pids,
        }
    }

    /// The first that is set, as the configuration calls it.
    fn key(self) -> Option<&'static str> {
        let Self { memory, nano_cpus, pids } = self;
        memory
            .map(|_| "[runners.docker.socket.limits] total_memory")
            .or(nano_cpus.map(|_| "[runners.docker.socket.limits] total_cpus"))
            .or(pids.map(|_| "[runners.docker.socket.limits] total_pids"))
    }

    /// Microseconds of each period.
    fn quota(self) -> Option<i64> {
        let quota = |nano: i64| i128::from(nano) * i128::from(PERIOD) / 1_000_000_000;
        self.nano_cpus.map(|nano| i64::try_from(quota(nano)).unwrap_or(i64::MAX).max(LEAST_QUOTA))
    }

    /// What is written into the group's files, in this order.
    fn settings(self, version: Version) -> Vec<Setting> {
        let setting = |controller, file, value: String| Setting {
            controller,
            file,
            value,
            is_optional: false,
        };
        let optional = |controller, file, value| Setting {
            is_optional: true,
            ..setting(controller, file, value)
        };
        let mut all = Vec::new();
        match version {
            Version::V1 => {
                if let Some(memory) = self.memory {
                    // Before 5.11, a group's limit held for its children only so.
                    all.push(optional("memory", "memory.use_hierarchy", "1".to_owned()));
                    all.push(setting("memory", "memory.limit_in_bytes", memory.to_string()));
                    let file = "memory.memsw.limit_in_bytes";
                    all.push(optional("memory", file, memory.to_string()));
                }
                if let Some(quota) = self.quota() {
                    all.push(setting("cpu", "cpu.cfs_period_us", PERIOD.to_string()));
                    all.push(setting("cpu", "cpu.cfs_quota_us", quota.to_string()));
                }
            }
            Version::V2 => {
                if let Some(memory) = self.memory {
                    all.push(setting("memory", "memory.max", memory.to_string()));
                    all.push(optional("memory", "memory.swap.max", "0".to_owned()));
                }
                if let Some(quota) = self.quota() {
                    all.push(setting("cpu", "cpu.max", format!("{quota} {PERIOD}")));
                }
            }
        }
        if let Some(pids) = self.pids {
            all.push(setting("pids", "pids.max", pids.to_string()));
        }
        all
    }

    /// The same in systemd's words (systemd.resource-control(5)).
    fn properties(self, version: Version) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(memory) = self.memory {
            all.push(format!("MemoryMax={memory}"));
            if version == Version::V2 {
                all.push("MemorySwapMax=0".to_owned());
            }
        }
        all.extend(self.nano_cpus.map(|nano| format!("CPUQuota={}%", (nano / 10_000_000).max(1))));
        all.extend(self.pids.map(|pids| format!("TasksMax={pids}")));
        all
    }
}

impl Group {
    /// The group `leaf` below `parent`.
    fn new(cgroups: &Cgroups, parent: Option<&str>, leaf: &str) -> Self {
        match cgroups.driver {
            Driver::Systemd => {
                let stem = parent.unwrap_or("longshore.slice");
                let stem = stem.strip_suffix(".slice").unwrap_or(stem);
                // A dash is a step down; the root is called so.
                let leaf = leaf.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
                Self::Slice(match stem {
                    "-" => format!("{leaf}.slice"),
                    stem => format!("{stem}-{leaf}.slice"),
                })
            }
            Driver::Cgroupfs | Driver::None => {
                let parent = parent.map_or(format!("/{OWN}"), str::to_owned);
                Self::Path(format!("{}/{leaf}", parent.trim_end_matches('/')), cgroups.version)
            }
        }
    }

    /// As a container's `CgroupParent` has it.
    fn name(&self) -> &str {
        match self {
            Self::Path(name, _) | Self::Slice(name) => name,
        }
    }

    /// Whether it is made, limited and removed here.
    fn is_managed(&self, cgroups: &Cgroups) -> bool {
        let is_clear = |path: &str| path.starts_with('/') && !path.split('/').any(|p| p == "..");
        cgroups.reach.is_ok()
            && match self {
                Self::Path(path, _) => is_clear(path),
                Self::Slice(_) => true,
            }
    }

    /// Notes it, so that it is removed also after a crash.
    fn note(&self, directory: &Path) -> Result<(), CgroupError> {
        let path = directory.join(NOTE);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.and_then(|()| fs::write(&path, serde_json::to_vec(self)?))
            .map_err(|source| CgroupError::Note { path, source })
    }

    /// Makes it and sets the totals. Without any, the engine makes it with the first container.
    fn limit(&self, cgroups: &Cgroups, totals: Totals) -> Result<(), CgroupError> {
        let (Some(key), Ok(hierarchies)) = (totals.key(), &cgroups.reach) else { return Ok(()) };
        match self {
            Self::Path(path, version) => {
                let inner = path.trim_start_matches('/');
                for setting in totals.settings(*version) {
                    setting
                        .write(hierarchies, *version, inner)
                        .map_err(|(path, source)| CgroupError::Write { key, path, source })?;
                }
                Ok(())
            }
            Self::Slice(slice) => {
                let failed = |words| CgroupError::Systemd { key, words };
                // A property makes the group of a slice that is not started, which a stop leaves.
                systemctl(&["start", slice]).map_err(failed)?;
                let mut arguments = vec!["set-property", "--runtime", slice];
                let properties = totals.properties(cgroups.version);
                arguments.extend(properties.iter().map(String::as_str));
                systemctl(&arguments).map_err(failed)
            }
        }
    }

    fn remove(&self) -> io::Result<()> {
        match self {
            Self::Path(path, version) => {
                let inner = path.trim_start_matches('/');
                for hierarchy in cgroup::mounted(*version) {
                    remove_tree(&hierarchy.mount.join(inner))?;
                }
                Ok(())
            }
            Self::Slice(slice) => {
                systemctl(&["stop", slice]).map_err(io::Error::other)?;
                // What was set at run time; there is nothing of a slice without totals. A reload would
                // write all units' device rules anew, and take GPUs from containers that got them
                // behind systemd's back.
                drop(systemctl(&["revert", "--no-reload", slice]));
                Ok(())
            }
        }
    }
}

impl Setting {
    /// Writes it for the group `inner`, which is made first. An error comes with its file.
    fn write(
        &self,
        hierarchies: &[Hierarchy],
        version: Version,
        inner: &str,
    ) -> Result<(), (PathBuf, io::Error)> {
        let has = |hierarchy: &&Hierarchy| match version {
            Version::V1 => hierarchy.controllers.iter().any(|name| name == self.controller),
            Version::V2 => true,
        };
        let missing = || {
            let error = format!("the controller {} is not mounted, or read-only", self.controller);
            (PathBuf::from(self.controller), io::Error::other(error))
        };
        let mount = &hierarchies.iter().find(has).ok_or_else(missing)?.mount;
        let group = mount.join(inner);
        if version == Version::V2 {
            enable(mount, inner, self.controller)?;
        }
        fs::create_dir_all(&group).map_err(|error| (group.clone(), error))?;
        let path = group.join(self.file);
        if self.is_optional && !path.exists() {
            return Ok(());
        }
        fs::write(&path, &self.value).map_err(|error| (path, error))
    }
}

/// Gives a controller to all groups on the way from the root to `inner` (cgroups(7), version 2).
fn enable(mount: &Path, inner: &str, controller: &str) -> Result<(), (PathBuf, io::Error)> {
    let mut group = mount.to_owned();
    for name in inner.split('/').filter(|name| !name.is_empty()) {
        let path = group.join("cgroup.subtree_control");
        let known = fs::read_to_string(&path).map_err(|error| (path.clone(), error))?;
        if !known.split_whitespace().any(|word| word == controller) {
            fs::write(&path, format!("+{controller}")).map_err(|error| (path, error))?;
        }
        group.push(name);
        fs::create_dir_all(&group).map_err(|error| (group.clone(), error))?;
    }
    Ok(())
}

/// Removes a group and those in it, which have no processes any more.
fn remove_tree(group: &Path) -> io::Result<()> {
    let mut tries = 1;
    loop {
        match remove_once(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {
                tries += 1;
                thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

fn remove_once(group: &Path) -> io::Result<()> {
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(group) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_once(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Runs systemctl; an error is its own words.
fn systemctl(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("systemctl")
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run systemctl: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroups(driver: Driver, version: Version) -> Cgroups {
        Cgroups { driver, version, reach: Ok(Vec::new()) }
    }

    fn names() -> Names {
        let unique = "runner-abc-project-42-concurrent-1-0011".to_owned();
        Names {
            host: "runner-abc-project-42-concurrent-1".to_owned(),
            build: String::new(),
            helper: String::new(),
            buildkit: String::new(),
            network: String::new(),
            unique,
        }
    }

    const TOTALS: Totals =
        Totals { memory: Some(1 << 30), nano_cpus: Some(1_500_000_000), pids: Some(100) };

    fn planned(cgroups: &Cgroups, parent: Option<&str>) -> String {
        plan(cgroups, Totals::default(), parent, &names()).unwrap().name().to_owned()
    }

    #[test]
    fn g_85_each_job_has_a_group_of_its_own_below_the_configured_one() {
        let fs = cgroups(Driver::Cgroupfs, Version::V1);
        assert_eq!(planned(&fs, None), "/longshore/runner-abc-project-42-concurrent-1-0011");
        assert_eq!(planned(&fs, Some("")), planned(&fs, None));
        assert_eq!(planned(&fs, Some("/ci/")), "/ci/runner-abc-project-42-concurrent-1-0011");
        assert_eq!(planned(&fs, Some("/")), "/runner-abc-project-42-concurrent-1-0011");
    }

    #[test]
    fn g_85_a_slice_is_named_by_all_it_is_in() {
        let systemd = cgroups(Driver::Systemd, Version::V2);
        let leaf = "runner_abc_project_42_concurrent_1_0011.slice";
        assert_eq!(planned(&systemd, None), format!("longshore-{leaf}"));
        assert_eq!(planned(&systemd, Some("ci-builds.slice")), format!("ci-builds-{leaf}"));
        assert_eq!(planned(&systemd, Some("-.slice")), leaf);
    }

    #[test]
    fn g_85_groups_that_nobody_removes_are_used_again() {
        for obstacle in [Obstacle::NotRoot, Obstacle::Elsewhere] {
            let far = Cgroups { reach: Err(obstacle), ..cgroups(Driver::Cgroupfs, Version::V2) };
            assert_eq!(planned(&far, None), "/longshore/runner-abc-project-42-concurrent-1");
        }
        let fs = cgroups(Driver::Cgroupfs, Version::V2);
        for parent in ["ci", "/ci/../x"] {
            let wanted = format!("{parent}/runner-abc-project-42-concurrent-1");
            assert_eq!(planned(&fs, Some(parent)), wanted);
        }
    }

    #[test]
    fn g_7_totals_that_nobody_can_set_are_refused_by_key() {
        let far =
            Cgroups { reach: Err(Obstacle::NotRoot), ..cgroups(Driver::Cgroupfs, Version::V2) };
        let error = plan(&far, TOTALS, None, &names()).unwrap_err();
        assert!(error.is_configuration());
        assert_eq!(
            crate::base::error_chain(&error),
            "[runners.docker.socket.limits] total_memory cannot be kept to: longshore does not run \
             as root"
        );
        let only = |totals| plan(&far, totals, None, &names()).unwrap_err().to_string();
        let error = only(Totals { pids: Some(1), ..Totals::default() });
        assert!(error.contains("total_pids"), "{error}");
        let near = cgroups(Driver::Cgroupfs, Version::V1);
        let error = plan(&near, TOTALS, Some("ci"), &names()).unwrap_err();
        assert!(error.is_configuration() && error.to_string().contains("`ci`"), "{error}");
    }

    fn written(version: Version) -> Vec<String> {
        let line = |setting: Setting| format!("{}={}", setting.file, setting.value);
        TOTALS.settings(version).into_iter().map(line).collect()
    }

    #[test]
    fn g_85_totals_are_in_the_words_of_kernel_and_systemd() {
        assert_eq!(
            written(Version::V1),
            [
                "memory.use_hierarchy=1",
                "memory.limit_in_bytes=1073741824",
                "memory.memsw.limit_in_bytes=1073741824",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=150000",
                "pids.max=100",
            ]
        );
        assert_eq!(
            written(Version::V2),
            ["memory.max=1073741824", "memory.swap.max=0", "cpu.max=150000 100000", "pids.max=100"]
        );
        assert_eq!(
            TOTALS.properties(Version::V2),
            ["MemoryMax=1073741824", "MemorySwapMax=0", "CPUQuota=150%", "TasksMax=100"]
        );
        let little = Totals { nano_cpus: Some(1_000), ..Totals::default() };
        assert_eq!(little.quota(), Some(1_000));
        assert_eq!(little.properties(Version::V1), ["CPUQuota=1%"]);
        assert_eq!(Totals::default().settings(Version::V2), []);
    }

    #[test]
    fn version_2_is_given_its_controllers_on_the_way_down() {
        let root = tempfile::tempdir().unwrap();
        // Directories stand for groups; files the kernel would make are made here.
        for group in ["", "longshore", "longshore/job"] {
            fs::create_dir_all(root.path().join(group)).unwrap();
            let known = if group.is_empty() { "cpuset memory" } else { "" };
            fs::write(root.path().join(group).join("cgroup.subtree_control"), known).unwrap();
        }
        let reach = Ok(vec![Hierarchy { controllers: vec![], mount: root.path().to_owned() }]);
        let cgroups = Cgroups { reach, ..cgroups(Driver::Cgroupfs, Version::V2) };
        let group = Group::Path("/longshore/job".to_owned(), Version::V2);
        group.limit(&cgroups, Totals { nano_cpus: None, ..TOTALS }).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        // What is enabled already is not written; the kernel would add, a file is written over.
        assert_eq!(read("cgroup.subtree_control"), "+pids");
        assert_eq!(read("longshore/cgroup.subtree_control"), "+pids");
        assert_eq!(read("longshore/job/cgroup.subtree_control"), "");
        assert_eq!(read("longshore/job/memory.max"), "1073741824");
        assert_eq!(read("longshore/job/pids.max"), "100");
        assert!(!root.path().join("longshore/job/memory.swap.max").exists());
    }

    #[test]
    fn a_group_is_noted_before_it_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let guard = directory.path().join("guard");
        for group in [
            Group::Path("/longshore/job".to_owned(), Version::V1),
            Group::Slice("longshore-job.slice".to_owned()),
        ] {
            group.note(&guard).unwrap();
            let noted = fs::read(guard.join(NOTE)).unwrap();
            assert_eq!(serde_json::from_slice::<Group>(&noted).unwrap(), group);
        }
    }
}

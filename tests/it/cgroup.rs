//! The control group that all of a guarded job's containers share, with both drivers and both
//! versions. Where the engine's groups are not seen from here, the tests that look at them do not.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    engine::engine,
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
};

const ROOT: &str = "/sys/fs/cgroup";
const GUARDED: &str = "[runners.docker.socket]\nmode = \"guarded\"";

fn docker_job(script: &[&str]) -> JobSpec {
    engine().needs_dind();
    job(script).image("docker:cli")
}

/// How the engine makes its groups.
struct Driver {
    /// By systemd, as slices, rather than by the runtime, as directories.
    is_systemd: bool,
    /// The kernel's version 2.
    is_unified: bool,
}

impl Driver {
    /// The engine's, where its groups are seen here.
    fn seen() -> Option<Self> {
        let info = engine().docker(&["info", "--format", "{{.CgroupDriver}} {{.CgroupVersion}}"]);
        let (driver, version) = info.trim().split_once(' ').unwrap();
        if !matches!(driver, "cgroupfs" | "systemd") || !Path::new(ROOT).is_dir() {
            println!("NOT TESTED: the engine's control groups are not seen (driver {driver})");
            return None;
        }
        Some(Self { is_systemd: driver == "systemd", is_unified: version == "2" })
    }

    /// Where groups are by default and where these tests put them, as the configuration has it.
    fn parents(&self) -> [&'static str; 2] {
        if self.is_systemd { ["", "longshore-it.slice"] } else { ["", "/longshore-it"] }
    }

    /// Whether a group is that of one of the project's jobs, or below it.
    fn is_of(&self, path: &str, parent: &str, project: i64) -> bool {
        let above = match (self.is_systemd, parent) {
            (true, "") => "/longshore.slice/longshore-runner_",
            (true, _) => "/longshore.slice/longshore-it.slice/longshore-it-runner_",
            (false, "") => "/longshore/runner-",
            (false, _) => "/longshore-it/runner-",
        };
        let between = if self.is_systemd { '_' } else { '-' };
        path.strip_prefix(above).is_some_and(|rest| {
            rest.contains(&format!("{between}project{between}{project}{between}"))
        })
    }

    /// Removes a configured parent, which must be empty.
    fn remove(&self, parent: &str) {
        if self.is_systemd {
            let stopped = Command::new("systemctl").args(["stop", parent]).status().unwrap();
            assert!(stopped.success(), "{stopped}");
            return;
        }
        let inner = parent.trim_start_matches('/');
        let hierarchies = fs::read_dir(ROOT).unwrap().map(|entry| entry.unwrap().path());
        for left in hierarchies.chain([ROOT.into()]).map(|mount| mount.join(inner)) {
            assert!(!left.exists() || fs::remove_dir(&left).is_ok(), "{}", left.display());
        }
    }
}

/// Directories of the groups that a project's jobs have, in all hierarchies, and of what systemd
/// was told of them.
pub(crate) fn groups_of(project: i64) -> Vec<String> {
    let path = format!("*-project-{project}-*");
    let slice = format!("*_project_{project}_*");
    let found = Command::new("find")
        .args([ROOT, "/run/systemd/system.control", "-type", "d"])
        .args(["(", "-name", &path, "-o", "-name", &slice, ")"])
        .output()
        .unwrap();
    // Groups of others may go while it looks.
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The groups of a container's first process: controllers and paths.
fn groups_in(container: &Value) -> Vec<(String, String)> {
    let process = container["State"]["Pid"].as_i64().unwrap();
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
    let fields = text.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    fields.map(|fields| (fields[1].to_owned(), fields[2].to_owned())).collect()
}

/// A job's containers, but for its own.
fn guarded_containers(id: i64) -> Vec<Value> {
    let id = id.to_string();
    engine().inspect(|line| line.contains(&id) && line.contains(".type=guarded"))
}

#[tokio::test(flavor = "multi_thread")]
async fn g_85_what_a_job_makes_is_in_its_own_group_which_goes_with_it() {
    let Some(driver) = Driver::seen() else { return };
    for parent in driver.parents() {
        let configured = format!("cgroup_parent = \"{parent}\"\n{GUARDED}");
        let edit = Box::new(move |text: String| text.replace("#guarded", &configured));
        let docker = "#guarded";
        let case = Case::with(Options { docker, edit: Some(edit), ..Options::default() }).await;
        let project = case.gitlab.project_id;
        // A job that says something hears of its end.
        let hold =
            ["docker run --detach docker:cli sleep 1000", "while sleep 1; do echo made; done"];
        let id = case.gitlab.submit(docker_job(&hold));
        case.gitlab.until_output(id, "made\n").await;
        let containers = guarded_containers(id);
        let running = containers.iter().find(|thing| thing["State"]["Running"] == true).unwrap();
        let groups = groups_in(running);
        for (controllers, path) in &groups {
            // The runtime puts nothing into a hierarchy of version 2 beside those of version 1.
            assert!(
                driver.is_of(path, parent, project) || controllers.is_empty() && groups.len() > 1,
                "{groups:?}"
            );
        }
        assert!(!groups_of(project).is_empty());
        case.gitlab.set_status(id, "canceled");
        case.until_idle().await;
        assert_eq!(groups_of(project), [""; 0]);
        if !parent.is_empty() {
            driver.remove(parent);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g_85_containers_and_build_steps_have_no_more_than_the_total_together() {
    if Driver::seen().is_none() {
        return;
    }
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\n\
                  [runners.docker.socket.limits]\n\
                  total_pids = 40\ntotal_memory = \"64m\"\ntotal_cpus = \"1\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let script = [
        "docker info --format 'cpus {{.NCPU}} memory {{.MemTotal}}'",
        // As many processes as a container may have alone, but not beside as many.
        "many='for i in $(seq 25); do sleep 1000 & done; echo all of them; wait'",
        "docker run --detach --name one docker:cli sh -c \"$many\"",
        "until docker logs one | grep 'all of them'; do sleep 0.1; done",
        "docker run --rm docker:cli sh -c \"$many\" 2>&1 | grep -o 'Cannot fork' | uniq || true",
        "printf 'FROM docker:cli\\nRUN for i in $(seq 25); do sleep 1 & done; echo built\\n' > D",
        "docker build -f D . > log 2>&1 || grep -o 'Cannot fork' log | uniq | sed s/^/build:/",
        "docker rm --force one > /dev/null",
        "docker build --no-cache -f D . | grep '^built'",
        // The same of memory; the kernel chooses whose.
        "fill='head -c 40m /dev/zero > /dev/shm/x && echo filled'",
        "docker run --rm docker:cli sh -c \"$fill\"",
        "docker run --detach --name two docker:cli sh -c \"$fill && sleep 1000\"",
        "until docker logs two | grep filled; do sleep 0.1; done",
        "docker run --rm docker:cli sh -c \"$fill\" && docker top two && echo both || echo one",
    ];
    let ended = case.run(docker_job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&[
        "cpus 1 memory 67108864",
        "all of them",
        "Cannot fork",
        "build:Cannot fork",
        "built",
        "filled",
        "filled",
        "one",
    ]);
    case.until_idle().await;
    assert_eq!(groups_of(case.gitlab.project_id), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g_85_the_group_of_a_job_that_makes_nothing_goes_too() {
    if Driver::seen().is_none() {
        return;
    }
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\n\
                  [runners.docker.socket.limits]\ntotal_pids = 40\ntotal_memory = \"64m\"";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let project = case.gitlab.project_id;
    let id = case.gitlab.submit(docker_job(&["echo started", "while sleep 1; do echo on; done"]));
    case.gitlab.until_output(id, "started\n").await;
    assert!(!groups_of(project).is_empty());
    case.gitlab.set_status(id, "canceled");
    case.until_idle().await;
    assert_eq!(groups_of(project), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g_7_totals_that_cannot_be_kept_to_fail_the_job_by_their_key() {
    // A slice has one place: its name says it whole.
    if Driver::seen().is_some_and(|driver| driver.is_systemd) {
        return;
    }
    let docker = "cgroup_parent = \"relative\"\n[runners.docker.socket]\nmode = \"guarded\"\n\
                  [runners.docker.socket.limits]\ntotal_pids = 40";
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let ended = case.run(docker_job(&["echo never"])).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("[runners.docker.socket.limits] total_pids needs a cgroup_parent that");
    ended.assert_no_line("never");
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_85_after_kill_9_the_jobs_group_is_removed() {
    let Some(driver) = Driver::seen() else { return };
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\n\
                  [runners.docker.socket.limits]\n\
                  total_pids = 400\ntotal_memory = \"512m\"\ntotal_cpus = \"1.5\"";
    let mut case = Case::with(Options { docker, ..Options::default() }).await;
    let hold = ["docker run --detach docker:cli sleep 1000", "echo made", "sleep 1000"];
    let id = case.gitlab.submit(docker_job(&hold));
    case.gitlab.until_output(id, "made\n").await;
    case.kill().await;
    let groups = groups_of(case.gitlab.project_id);
    let limits = if driver.is_unified {
        [
            ("pids.max", "400"),
            ("memory.max", "536870912"),
            ("memory.swap.max", "0"),
            ("cpu.max", "150000 100000"),
        ]
    } else {
        [
            ("pids.max", "400"),
            ("memory.limit_in_bytes", "536870912"),
            ("cpu.cfs_quota_us", "150000"),
            ("cpu.cfs_period_us", "100000"),
        ]
    };
    for (file, value) in limits {
        let read = |group: &String| fs::read_to_string(format!("{group}/{file}")).ok();
        let limit = groups.iter().find_map(read);
        assert_eq!(limit.as_deref().map(str::trim), Some(value), "{file} in {groups:?}");
    }
    case.gitlab.allow_jump(id);
    case.restart();
    case.gitlab.ended(id).await.assert_failed("runner_system_failure", None);
    case.until_idle().await;
    assert_eq!(groups_of(case.gitlab.project_id), [""; 0]);
}

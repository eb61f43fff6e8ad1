//! The control group that all of a guarded job's containers share. Where the engine's groups are
//! not those of this process (another host, another driver), the tests that look at them do not.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    engine::engine,
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
};

const GUARDED: &str = "[runners.docker.socket]\nmode = \"guarded\"";

fn docker_job(script: &[&str]) -> JobSpec {
    engine().needs_dind();
    job(script).image("docker:cli")
}

/// Whether the engine's runtime makes groups as directories that are seen here.
fn are_seen() -> bool {
    let info = engine().docker(&["info", "--format", "{{.CgroupDriver}}"]);
    let seen = info.trim() == "cgroupfs" && Path::new("/sys/fs/cgroup").is_dir();
    if !seen {
        println!("the engine's control groups are not looked at: its driver is {}", info.trim());
    }
    seen
}

/// Directories of the groups that a project's jobs have, in all hierarchies.
pub(crate) fn groups_of(project: i64) -> Vec<String> {
    let marked = format!("-project-{project}-");
    let name = format!("*{marked}*");
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name", &name])
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

/// Whether a path of a process is below the group of one of the project's jobs.
fn is_below(path: &str, parent: &str, project: i64) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| {
        let leaf = rest.trim_start_matches('/');
        leaf.starts_with("runner-") && leaf.contains(&format!("-project-{project}-"))
    })
}

/// A job's containers, but for its own.
fn guarded_containers(id: i64) -> Vec<Value> {
    let id = id.to_string();
    engine().inspect(|line| line.contains(&id) && line.contains(".type=guarded"))
}

#[tokio::test(flavor = "multi_thread")]
async fn g_85_what_a_job_makes_is_in_its_own_group_which_goes_with_it() {
    if !are_seen() {
        return;
    }
    for parent in ["", "/longshore-it"] {
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
        let parent = if parent.is_empty() { "/longshore" } else { parent };
        for (controllers, path) in &groups {
            // The runtime puts nothing into a hierarchy of version 2 beside those of version 1.
            assert!(
                is_below(path, parent, project) || controllers.is_empty() && groups.len() > 1,
                "{groups:?}"
            );
        }
        assert!(!groups_of(project).is_empty());
        case.gitlab.set_status(id, "canceled");
        case.until_idle().await;
        assert_eq!(groups_of(project), [""; 0]);
        if parent != "/longshore" {
            for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
                let left = hierarchy.unwrap().path().join(parent.trim_start_matches('/'));
                assert!(!left.exists() || fs::remove_dir(&left).is_ok(), "{left:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g_85_containers_and_build_steps_have_no_more_than_the_total_together() {
    if !are_seen() {
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
async fn g_7_totals_that_cannot_be_kept_to_fail_the_job_by_their_key() {
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
    if !are_seen() {
        return;
    }
    let docker = "[runners.docker.socket]\nmode = \"guarded\"\n\
                  [runners.docker.socket.limits]\ntotal_pids = 400";
    let mut case = Case::with(Options { docker, ..Options::default() }).await;
    let hold = ["docker run --detach docker:cli sleep 1000", "echo made", "sleep 1000"];
    let id = case.gitlab.submit(docker_job(&hold));
    case.gitlab.until_output(id, "made\n").await;
    case.kill().await;
    let groups = groups_of(case.gitlab.project_id);
    let limited =
        groups.iter().find_map(|group| fs::read_to_string(format!("{group}/pids.max")).ok());
    assert_eq!(limited.as_deref(), Some("400\n"), "{groups:?}");
    case.gitlab.allow_jump(id);
    case.restart();
    case.gitlab.ended(id).await.assert_failed("runner_system_failure", None);
    case.until_idle().await;
    assert_eq!(groups_of(case.gitlab.project_id), [""; 0]);
}

//! The guarded socket before a real engine, with the real docker CLI and with raw requests.

mod allowed;
mod alone;
mod clients;
mod escapes;
mod names;
mod properties;
mod tags;

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use longshore::{
    base::ids::random_hex,
    guard::{
        Guard, GuardSettings, Mapping, Names, Summary,
        audit::{AuditEvent, Log},
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::Command,
    sync::mpsc::Sender,
};

use crate::engine::{engine, patient};

/// How long one command may take on a busy machine.
const COMMAND: Duration = Duration::from_mins(2);

/// A guard for one test, with a workspace.
struct Case {
    guard: Guard,
    directory: tempfile::TempDir,
    identity: String,
    _leftovers: Leftovers,
}

/// What a failed test leaves, removed by its label.
struct Leftovers(String);

impl Drop for Leftovers {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let label = |key: &str| format!("label=longshore.{key}={}", self.0);
        for (list, remove, label) in [
            (&["ps", "-aq"][..], &["rm", "-fv"][..], label("test")),
            (&["network", "ls", "-q"], &["network", "rm"], label("test")),
            (&["volume", "ls", "-q"], &["volume", "rm", "-f"], label("test")),
            // The newest first: those before are its layers.
            (&["images", "-q"], &["rmi", "-f"], label("guard")),
        ] {
            let found = engine().docker(&[list, &["--filter", &label]].concat());
            for name in found.lines() {
                engine().docker(&[remove, &[name]].concat());
            }
        }
    }
}

impl Case {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut GuardSettings)) -> Self {
        Self::audited(change, None).await
    }

    async fn audited(
        change: impl FnOnce(&mut GuardSettings),
        events: Option<Sender<AuditEvent>>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = random_hex::<16>();
        let workspace = directory.path().join("workspace");
        std::fs::create_dir(&workspace).unwrap();
        let mut settings = GuardSettings::new(
            "7",
            ("longshore.guard".to_owned(), identity.clone()),
            &format!("runner-test-{identity}"),
            directory.path(),
        );
        settings.labels.insert("longshore.test".to_owned(), identity.clone());
        settings.images.shared = vec!["busybox:*".to_owned()];
        settings.workspace =
            vec![Mapping { job: "/builds/g/p".to_owned(), host: workspace, read_only: false }];
        settings.limits.memory = 256 << 20;
        change(&mut settings);
        let host = tokio::task::spawn_blocking(|| engine().host.clone()).await.unwrap();
        let guard = Guard::start(&host, settings, events).await.unwrap();
        Self { guard, directory, _leftovers: Leftovers(identity.clone()), identity }
    }

    fn workspace(&self) -> PathBuf {
        self.directory.path().join("workspace")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", self.guard.socket().display()))
            .env("DOCKER_CONFIG", self.directory.path().join("config"))
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, arguments: &[&str]) -> Output {
        tokio::time::timeout(patient(COMMAND), self.command(arguments).output())
            .await
            .unwrap_or_else(|_| panic!("docker {arguments:?} takes too long"))
            .unwrap()
    }

    /// What `docker` with these arguments prints.
    async fn docker(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What `docker` says on its way out.
    async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert!(!output.status.success(), "docker {arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap().trim().to_owned()
    }

    /// `docker` with something to read.
    async fn fed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = async {
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        output.unwrap()
    }

    /// A request as bytes, and the answer's status and body.
    async fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.guard.socket()).await.unwrap();
        // The other side may close before all is written.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ =
            tokio::time::timeout(patient(COMMAND), stream.read_to_end(&mut answer)).await.unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (status, body)
    }

    /// A request in JSON.
    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.raw(request.as_bytes()).await
    }

    /// Stops the guard; nothing may be left.
    async fn stop(self) -> Summary {
        let summary = self.guard.stop().await;
        assert_eq!(summary.left, Vec::<String>::new());
        let label = format!("label=longshore.test={}", self.identity);
        tokio::task::spawn_blocking(move || {
            for list in [
                &["ps", "--all", "--quiet", "--filter"][..],
                &["network", "ls", "--quiet", "--filter"],
                &["volume", "ls", "--quiet", "--filter"],
            ] {
                let left = engine().docker(&[list, &[&*label]].concat());
                assert_eq!(left, "", "{list:?}");
            }
        })
        .await
        .unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let private = self.directory.path().display().to_string();
        assert!(!mounts.contains(&private), "{mounts}");
        summary
    }
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn g_12_containers_run_and_are_seen_by_their_job_only() {
    let case = Case::start().await;
    let other = Case::start().await;
    assert_eq!(case.docker(&["run", "--rm", "busybox", "echo", "hello"]).await, "hello");
    let id = case
        .docker(&["run", "-d", "--name", &case.identity[..11], "busybox", "sleep", "600"])
        .await;
    assert_eq!(
        case.docker(&["ps", "--format", "{{.Image}} {{.Names}}"]).await,
        format!("busybox {}", &case.identity[..11])
    );
    let inspected: Value = serde_json::from_str(&case.docker(&["inspect", &id]).await).unwrap();
    let host = &inspected[0]["HostConfig"];
    assert_eq!(host["Memory"], 256 << 20);
    assert_eq!(host["CapDrop"][0], "MKNOD");
    assert_eq!(host["NetworkMode"], "bridge");
    assert_eq!(inspected[0]["LogPath"], "");
    assert!(inspected[0]["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].is_string());
    // The neighbour sees nothing of it, by whatever name.
    assert_eq!(other.docker(&["ps", "-aq"]).await, "");
    for reference in [&id[..], &id[..12], &case.identity[..11]] {
        for command in [&["inspect"][..], &["rm", "-f"], &["stop"], &["exec"], &["logs"], &["kill"]]
        {
            let mut arguments = [command, &[reference]].concat();
            if command == ["exec"] {
                arguments.push("id");
            }
            let said = other.output(&arguments).await;
            let said = format!(
                "{}{}",
                String::from_utf8_lossy(&said.stdout),
                String::from_utf8_lossy(&said.stderr)
            );
            let lower = said.to_lowercase();
            assert!(lower.contains("no such"), "{arguments:?}: {said}");
        }
    }
    assert_eq!(case.docker(&["exec", &id, "hostname"]).await, &id[..12]);
    case.docker(&["pause", &id]).await;
    case.docker(&["unpause", &id]).await;
    case.docker(&["rename", &id, "another"]).await;
    case.docker(&["update", "--memory", "64m", "--memory-swap", "64m", "another"]).await;
    assert!(case.docker(&["top", "another"]).await.contains("sleep"));
    assert!(case.docker(&["stats", "--no-stream", "another"]).await.contains("another"));
    case.docker(&["restart", "-t", "0", "another"]).await;
    case.docker(&["stop", "-t", "0", "another"]).await;
    case.docker(&["start", "another"]).await;
    case.docker(&["kill", "another"]).await;
    assert_eq!(case.docker(&["wait", "another"]).await, "137");
    assert!(case.docker(&["container", "prune", "-f"]).await.contains(&id));
    case.docker(&["version"]).await;
    assert!(case.docker(&["info"]).await.contains("Containers: 0"));
    case.docker(&["system", "df"]).await;
    other.stop().await;
    case.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_28_streams_go_both_ways_with_half_close() {
    let case = Case::start().await;
    let output = case
        .fed(
            &["run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo end; echo oops >&2; exit 3"],
            b"in\n",
        )
        .await;
    assert_eq!(
        (&*output.stdout, &*output.stderr, output.status.code()),
        (&b"in\nend\n"[..], &b"oops\n"[..], Some(3))
    );
    let script = "read a; echo got $a; sleep 1";
    let id = case.docker(&["create", "-i", "busybox", "sh", "-c", script]).await;
    let output = case.fed(&["start", "-ai", &id], b"word\n").await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got word\n");
    assert_eq!(case.docker(&["logs", "-f", &id]).await, "got word");
    let id = case.docker(&["run", "-d", "busybox", "sh", "-c", "sleep 2; echo late"]).await;
    assert_eq!(case.docker(&["attach", "--no-stdin", &id]).await, "late");
    let id = case.docker(&["run", "-d", "busybox", "sleep", "600"]).await;
    // Two megabytes there and back.
    let much: Vec<u8> = (0..2_000_000_u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
    let output = case.fed(&["exec", "-i", &id, "cat"], &much).await;
    assert!(output.stdout == much, "{} bytes came back", output.stdout.len());
    let output = case.output(&["exec", &id, "sh", "-c", "exit 7"]).await;
    assert_eq!(output.status.code(), Some(7));
    case.docker(&["exec", "-d", &id, "true"]).await;
    // Files, both ways.
    write(&case.workspace(), "file", "content");
    let file = case.workspace().join("file");
    case.docker(&["cp", file.to_str().unwrap(), &format!("{id}:/tmp/there")]).await;
    assert_eq!(case.docker(&["exec", &id, "cat", "/tmp/there"]).await, "content");
    let back = case.workspace().join("back");
    case.docker(&["cp", &format!("{id}:/tmp/there"), back.to_str().unwrap()]).await;
    assert_eq!(std::fs::read_to_string(back).unwrap(), "content");
    assert!(case.docker(&["diff", &id]).await.contains("A /tmp/there"));
    case.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_7_binds_of_the_workspace_work_and_stay_what_was_checked() {
    let case = Case::start().await;
    let workspace = case.workspace();
    std::fs::create_dir(workspace.join("data")).unwrap();
    write(&workspace, "data/file", "mine");
    write(&workspace, "one", "single");
    let bind = |source: &str| format!("{source}:/x");
    let read = async |source: &str, path: &str| {
        case.docker(&["run", "--rm", "-v", &bind(source), "busybox", "cat", path]).await
    };
    assert_eq!(read("/builds/g/p/data", "/x/file").await, "mine");
    assert_eq!(read("/builds/g/p/y/../data", "/x/file").await, "mine");
    assert_eq!(read("/builds/g/p/one", "/x").await, "single");
    case.docker(&["run", "--rm", "-v", "/builds/g/p:/w", "busybox", "touch", "/w/made"]).await;
    assert!(workspace.join("made").exists());
    case.docker(&["run", "--rm", "-v", "/builds/g/p/new/dir:/w", "busybox", "touch", "/w/f"]).await;
    assert!(workspace.join("new/dir/f").exists());
    let mount = "type=bind,source=/builds/g/p/data,target=/x,readonly";
    let said = case.fails(&["run", "--rm", "--mount", mount, "busybox", "touch", "/x/no"]).await;
    assert!(said.contains("Read-only"), "{said}");
    // A link put in its place between create and start changes nothing.
    let id = case.docker(&["create", "-v", "/builds/g/p/data:/x", "busybox", "ls", "/x"]).await;
    std::fs::rename(workspace.join("data"), workspace.join("old")).unwrap();
    std::os::unix::fs::symlink("/", workspace.join("data")).unwrap();
    assert_eq!(case.docker(&["start", "-a", &id]).await, "file");
    let shown = case
        .docker(&["inspect", "-f", "{{(index .Mounts 0).Source}} {{.HostConfig.Binds}}", &id])
        .await;
    assert_eq!(shown, "/builds/g/p/data [/builds/g/p/data:/x:rw]");
    let said =
        case.fails(&["run", "--rm", "-v", "/builds/g/p/data:/x", "busybox", "ls", "/x"]).await;
    assert!(said.contains("symbolic link") && said.contains("G-53"), "{said}");
    // The socket is the guarded one.
    let socket = case
        .docker(&["run", "--rm", "-v", "/var/run/docker.sock:/s", "busybox", "ls", "-la", "/s"])
        .await;
    assert!(socket.starts_with('s'), "{socket}");
    case.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_8_volumes_and_networks_are_the_jobs() {
    let case = Case::with(|settings| settings.names = Names::Plain).await;
    let other = Case::with(|settings| settings.names = Names::Plain).await;
    let name = |kind: &str| format!("{kind}-{}", &case.identity[..8]);
    let (volume, network) = (name("vol"), name("net"));
    case.docker(&["volume", "create", &volume]).await;
    case.docker(&["run", "--rm", "-v", &format!("{volume}:/x"), "busybox", "touch", "/x/f"]).await;
    let implicit = name("implicit");
    case.docker(&["run", "--rm", "-v", &format!("{implicit}:/x"), "busybox", "true"]).await;
    let mut listed: Vec<String> =
        case.docker(&["volume", "ls", "-q"]).await.lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, [implicit.clone(), volume.clone()]);
    assert_eq!(other.docker(&["volume", "ls", "-q"]).await, "");
    assert!(
        other
            .fails(&["volume", "inspect", &volume])
            .await
            .to_lowercase()
            .contains("no such volume")
    );
    let said =
        other.fails(&["run", "--rm", "-v", &format!("{volume}:/x"), "busybox", "ls", "/x"]).await;
    assert!(said.contains("in use"), "{said}");
    assert!(other.fails(&["volume", "create", &volume]).await.contains("in use"));
    case.docker(&["volume", "rm", &implicit]).await;

    case.docker(&["network", "create", &network]).await;
    case.docker(&[
        "run",
        "-d",
        "--name",
        &name("srv"),
        "--network",
        &network,
        "--network-alias",
        "web",
        "busybox",
        "httpd",
        "-f",
        "-h",
        "/etc",
    ])
    .await;
    let said = case
        .docker(&[
            "run",
            "--rm",
            "--network",
            &network,
            "busybox",
            "sh",
            "-c",
            "for i in 1 2 3 4 5; do wget -qO- http://web/hostname && break; done",
        ])
        .await;
    assert!(!said.is_empty());
    assert!(other.fails(&["network", "inspect", &network]).await.contains("not found"));
    assert!(
        other.fails(&["network", "connect", &network, &name("srv")]).await.contains("not found")
    );
    let names = case.docker(&["network", "ls", "--format", "{{.Name}}"]).await;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["bridge", &network, "none"]);
    case.docker(&["network", "connect", "bridge", &name("srv")]).await;
    case.docker(&["network", "disconnect", &network, &name("srv")]).await;
    case.docker(&["network", "prune", "-f"]).await;
    case.docker(&["volume", "prune", "-f"]).await;
    other.stop().await;
    case.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_8_ports_are_published_at_the_jobs_gateway_alone() {
    let case = Case::start().await;
    let name = |kind: &str| format!("{kind}-{}", &case.identity[..8]);
    // Published ports are at the gateway of the job's network alone.
    case.docker(&[
        "run",
        "-d",
        "--name",
        &name("pub"),
        "-p",
        "0.0.0.0::80",
        "busybox",
        "httpd",
        "-f",
        "-h",
        "/etc",
    ])
    .await;
    let port = case.docker(&["port", &name("pub")]).await;
    assert!(port.contains(&format!("-> {}:", case.guard.network().1)), "{port}");
    case.docker(&[
        "run",
        "-d",
        "-P",
        "--expose",
        "81",
        "--name",
        &name("all"),
        "busybox",
        "sleep",
        "600",
    ])
    .await;
    let port = case.docker(&["port", &name("all")]).await;
    assert!(port.contains(case.guard.network().1), "{port}");
    case.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_11_the_classic_builder_builds_from_what_the_job_sees() {
    let case = Case::with(|settings| settings.names = Names::Plain).await;
    let other = Case::with(|settings| settings.names = Names::Plain).await;
    let context = case.workspace();
    write(
        &context,
        "Dockerfile",
        "ARG BASE=busybox\nFROM ${BASE} AS one\nRUN echo built > /made\n\
        FROM busybox\nCOPY --from=one /made /made\nCMD [\"cat\", \"/made\"]\n",
    );
    let path = context.to_str().unwrap();
    let tag = format!("app-{}", &case.identity[..8]);
    case.docker(&["build", "-t", &tag, path]).await;
    assert_eq!(case.docker(&["run", "--rm", &tag]).await, "built");
    let quiet = case.docker(&["build", "-q", path]).await;
    assert!(quiet.starts_with("sha256:"));
    assert!(case.docker(&["images", "--format", "{{.Repository}}"]).await.contains(&tag));
    assert!(!other.docker(&["images", "--format", "{{.Repository}}"]).await.contains(&tag));
    assert!(other.docker(&["images", "--format", "{{.Repository}}"]).await.contains("busybox"));
    // The neighbour has no way to it: by name, by id, or as a base.
    let id = case.docker(&["inspect", "-f", "{{.Id}}", &tag]).await;
    for reference in [&*tag, &id, &id[7..19]] {
        let said = other.fails(&["image", "inspect", reference]).await;
        assert!(said.to_lowercase().contains("no such image"), "{said}");
    }
    write(&other.workspace(), "Dockerfile", &format!("FROM {tag}\n"));
    other.fails(&["build", other.workspace().to_str().unwrap()]).await;
    write(
        &other.workspace(),
        "Dockerfile",
        &format!("FROM busybox\nCOPY --from={} /made /\n", &id[7..19]),
    );
    let said = other.fails(&["build", other.workspace().to_str().unwrap()]).await;
    assert!(said.contains("G-73"), "{said}");
    // Nor can it take the tag, or a shared one.
    for tag in [&*tag, "busybox:latest", "docker.io/library/busybox"] {
        let said = other.fails(&["tag", "busybox", tag]).await;
        assert!(said.contains("G-61"), "{said}");
    }
    case.docker(&["history", &tag]).await;
    let second = format!("{tag}:second");
    case.docker(&["tag", &tag, &second]).await;
    let saved = case.output(&["save", &second]).await.stdout;
    case.docker(&["rmi", &second]).await;
    let loaded = case.fed(&["load"], &saved).await;
    assert!(loaded.status.success(), "{loaded:?}");
    assert_eq!(case.docker(&["run", "--rm", &second]).await, "built");
    let refused = other.fed(&["load"], &saved).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("G-61"), "{refused:?}");
    let container = case.docker(&["create", &tag]).await;
    let exported = case.output(&["export", &container]).await.stdout;
    let imported = case.fed(&["import", "-", &format!("{tag}:imported")], &exported).await;
    assert!(imported.status.success(), "{imported:?}");
    case.docker(&["commit", "--change", "ENV A=b", &container, &format!("{tag}:third")]).await;
    assert!(
        case.docker(&["inspect", "-f", "{{.Config.Env}}", &format!("{tag}:third")])
            .await
            .contains("A=b")
    );
    other.stop().await;
    case.stop().await;
    let left =
        tokio::task::spawn_blocking(|| engine().docker(&["images", "--format", "{{.Repository}}"]))
            .await
            .unwrap();
    assert!(!left.contains(&tag), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g_74_the_steps_of_a_build_that_failed_go_with_the_job() {
    let case = Case::start().await;
    let run = |text: &str| format!("RUN echo {text}-{} > /made\n", case.identity);
    let failing = format!("FROM busybox\n{}{}RUN false\n", run("one"), run("two"));
    write(&case.workspace(), "Dockerfile", &failing);
    let path = case.workspace().display().to_string();
    for arguments in [&["build", &path][..], &["build", "--quiet", &path]] {
        let said = case.fails(arguments).await;
        assert!(said.contains("non-zero code"), "{said}");
    }
    let identity = case.identity.clone();
    case.stop().await;
    let left = tokio::task::spawn_blocking(move || {
        let ids = engine().docker(&["images", "--all", "--quiet", "--filter", "dangling=true"]);
        let history = |id: &&str| engine().docker(&["history", "--no-trunc", id]);
        ids.lines().filter(|id| history(id).contains(&identity)).count()
    });
    assert_eq!(left.await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn g_14_refusals_are_counted_and_audited() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("audit.jsonl");
    let (events, log) = Log::open(&file).await.unwrap();
    let case = Case::audited(|_| {}, Some(events)).await;
    let mut writer = tokio::task::JoinSet::new();
    writer.spawn(log.write());
    let said = case.fails(&["run", "--privileged", "busybox"]).await;
    assert!(said.contains("HostConfig.Privileged") && said.contains("G-1"), "{said}");
    let summary = case.stop().await;
    assert_eq!(summary.refused["G-1"], 1);
    writer.join_next().await.unwrap().unwrap().unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    let refused = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let refused: Vec<_> = refused.filter(|event| event["decision"] == "refused").collect();
    assert_eq!(refused.len(), 1, "{text}");
    assert_eq!(
        (&refused[0]["route"], &refused[0]["rule"]),
        (&"/containers/create".into(), &"G-1".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn g_15_whatever_state_things_are_in_they_go_with_the_job() {
    let case = Case::start().await;
    case.docker(&["run", "-d", "--restart", "always", "busybox", "sh", "-c", "sleep 1; exit 1"])
        .await;
    let paused = case.docker(&["run", "-d", "-v", "/anonymous", "busybox", "sleep", "600"]).await;
    case.docker(&["pause", &paused]).await;
    case.docker(&["create", "-v", "/builds/g/p:/x", "busybox"]).await;
    let network = format!("n-{}", &case.identity[..8]);
    case.docker(&["network", "create", &network]).await;
    case.docker(&["run", "-d", "--network", &network, "busybox", "sleep", "600"]).await;
    // A client that waits is cut off.
    let mut follower = case.command(&["logs", "-f", &paused]).spawn().unwrap();
    case.stop().await;
    tokio::time::timeout(patient(COMMAND), follower.wait()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn g_50_short_containers_in_a_row_meet_no_limit() {
    let case = Case::with(|settings| settings.limits.containers = 2).await;
    for _ in 0..4 {
        case.docker(&["run", "--rm", "-v", "/builds/g/p:/x", "busybox", "true"]).await;
    }
    case.docker(&["create", "busybox"]).await;
    case.docker(&["create", "busybox"]).await;
    let said = case.fails(&["create", "busybox"]).await;
    assert!(said.contains("2 containers") && said.contains("G-81"), "{said}");
    case.stop().await;
}

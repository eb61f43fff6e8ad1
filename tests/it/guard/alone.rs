//! `longshore guard`: the program alone before the engine, its end, and its beginning after a
//! sudden one.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use longshore::base::ids::random_hex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

use super::COMMAND;
use crate::{
    counter::Counter,
    crash::MOMENTS,
    engine::{engine, patient},
};

/// The running program, with the socket that it guards.
struct Alone {
    directory: tempfile::TempDir,
    namespace: String,
    /// Before the engine.
    counter: Counter,
    child: Option<(Child, Lines<BufReader<ChildStderr>>)>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (list, remove) in [
                (&["ps", "-aq"][..], &["rm", "-fv"][..]),
                (&["network", "ls", "-q"], &["network", "rm"]),
                (&["volume", "ls", "-q"], &["volume", "rm", "-f"]),
            ] {
                let label = format!("label={}.runner", self.namespace);
                let found = engine().docker(&[list, &["--filter", &label]].concat());
                for name in found.lines() {
                    engine().docker(&[remove, &[name]].concat());
                }
            }
        }
    }
}

impl Alone {
    /// The conformance profile, but for names that other tests do not have.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let namespace = format!("test{}", random_hex::<6>());
        std::fs::create_dir(directory.path().join("workspace")).unwrap();
        let policy = format!(
            r#"
            label_namespace = "{namespace}"
            reserved_name_prefixes = ["runner-"]
            path_map = [{{ job = "/builds/g/p", host = "{}" }}]
            socket_paths = ["/var/run/docker.sock", "/run/docker.sock"]
            shared_images = ["busybox:*"]
            registries = ["127.0.0.1:5000"]
            build = "classic"
            audit_log = "{}"
            [limits]
            memory = "1g"
            pids = 1024
            cpus = 2
            containers = 40
            networks = 10
            "#,
            directory.path().join("workspace").display(),
            directory.path().join("audit.jsonl").display(),
        );
        std::fs::write(directory.path().join("policy.toml"), policy).unwrap();
        let counter = Counter::start(engine().socket());
        Self { directory, namespace, counter, child: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, policy: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command
            .arg("guard")
            .args([Path::new("--policy"), policy])
            .args(["--engine", &self.counter.host()])
            .args([Path::new("--listen"), &self.path("docker.sock")])
            .env("CONFIG_FILE", self.path("config.toml"))
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn spawn(&mut self) {
        let mut child = self.command(&self.path("policy.toml")).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        self.child = Some((child, lines));
    }

    /// Starts it; it is ready when this returns.
    async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    async fn ready(&mut self) {
        let (_, lines) = self.child.as_mut().unwrap();
        let line =
            tokio::time::timeout(patient(COMMAND), lines.next_line()).await.unwrap().unwrap();
        let line = line.expect("the guard ended");
        assert!(line.starts_with("guarding unix://"), "{line}");
    }

    /// Ends it, and gives its code and last words.
    async fn end(&mut self, with: Signal) -> (Option<i32>, String) {
        let (mut child, mut lines) = self.child.take().unwrap();
        let id = i32::try_from(child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), with).unwrap();
        let mut said = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            said = said + &line + "\n";
        }
        let status = tokio::time::timeout(patient(COMMAND), child.wait()).await.unwrap().unwrap();
        (status.code(), said)
    }

    fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", self.path("docker.sock").display()))
            .env("DOCKER_CONFIG", self.path("config"))
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn said(&self, arguments: &[&str]) -> String {
        let output = self.docker(arguments).output().await.unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Whatever carries the namespace's labels or names.
    fn left(&self) -> Vec<String> {
        let label = format!("label={}.runner", self.namespace);
        let mut left = Vec::new();
        for list in [
            &["ps", "--all", "--quiet", "--filter", &label][..],
            &["network", "ls", "--quiet", "--filter", &label],
            &["volume", "ls", "--quiet", "--filter", &label],
            &["images", "--quiet", "--filter", &format!("label={}.job", self.namespace)],
            &["images", "--quiet", "--filter", &format!("reference={}*", self.namespace)],
            // As the guard calls them on the engine.
            &["images", "--quiet", "--filter", &format!("reference=*/*/*/{}*", self.namespace)],
        ] {
            left.extend(engine().docker(list).lines().map(str::to_owned));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = self.directory.path().display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&own)).map(str::to_owned));
        left
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g_16_the_guard_alone_serves_the_cli_and_cleans_up_on_sigterm() {
    let mut alone = Alone::new();
    alone.start().await;
    let said = alone.said(&["run", "--rm", "-v", "/builds/g/p:/x", "busybox", "ls", "-d", "/x"]);
    assert_eq!(said.await, "/x");
    let host = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}";
    let id = alone.said(&["run", "-d", "-v", "vol-x:/v", "busybox", "sleep", "600"]).await;
    assert_eq!(alone.said(&["inspect", "-f", host, &id]).await, "1073741824 2000000000");
    let label = format!("{{{{index .Config.Labels \"{}.runner\"}}}}", alone.namespace);
    let listen = alone.path("docker.sock").display().to_string();
    assert_eq!(alone.said(&["inspect", "-f", &label, &id]).await, listen);
    alone.said(&["network", "create", &format!("{}-n", alone.namespace)]).await;
    alone.said(&["tag", "busybox", &format!("{}-t", alone.namespace)]).await;
    let refused = alone.docker(&["run", "--privileged", "busybox"]).output().await.unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("G-1"), "{refused:?}");
    // A second one at the same socket is told that it is in use.
    let second = alone.command(&alone.path("policy.toml")).output().await.unwrap();
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && words.contains("another guard uses"), "{words}");
    let (code, said) = alone.end(Signal::TERM).await;
    assert!(code == Some(0) && said.contains("1 refused; nothing is left"), "{code:?} {said}");
    assert_eq!(alone.left(), Vec::<String>::new());
    assert!(!alone.path("docker.sock").exists() && !alone.path("docker.sock.private").exists());
    let audit = std::fs::read_to_string(alone.path("audit.jsonl")).unwrap();
    assert!(audit.contains("\"rule\":\"G-1\""), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g_16_a_policy_that_is_wrong_is_refused_with_its_key() {
    let alone = Alone::new();
    for (policy, said) in [
        ("allowed_device = []", "allowed_device"),
        ("attach_ws = true", "attach_ws is not implemented"),
        ("[limits]\nmemory = \"much\"", "limits.memory"),
        ("path_map = [{ job = \"/b\", host = \"DIRECTORY\" }]", "path_map"),
    ] {
        let path = alone.path("wrong.toml");
        let policy = policy.replace("DIRECTORY", alone.directory.path().to_str().unwrap());
        std::fs::write(&path, &policy).unwrap();
        let output = alone.command(&path).output().await.unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(78) && words.contains(said), "{policy}: {words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g_45_what_a_killed_guard_left_goes_when_the_next_one_starts() {
    let mut alone = Alone::new();
    let context = alone.path("workspace");
    std::fs::write(context.join("Dockerfile"), "FROM busybox\nRUN echo x > /x\n").unwrap();
    let tag = |name: &str| format!("{}-{name}", alone.namespace);
    let (built, loaded, tagged) = (tag("built"), tag("loaded"), tag("tagged"));
    alone.start().await;
    let anonymous = ["run", "-d", "-v", "/anon", "-v", "/builds/g/p:/x", "busybox", "sleep", "600"];
    let id = alone.said(&anonymous).await;
    let volume = alone
        .said(&["inspect", "-f", "{{(index .Mounts 0).Name}}{{(index .Mounts 1).Name}}", &id])
        .await;
    // Without its container an anonymous volume has nothing that tells whose it is.
    alone.said(&["rm", "-f", &id]).await;
    alone.said(&["run", "-d", "-v", "/builds/g/p:/x", "busybox", "sleep", "600"]).await;
    alone.said(&["build", "-q", "-t", &built, context.to_str().unwrap()]).await;
    alone.said(&["tag", "busybox", &tagged]).await;
    alone.said(&["tag", &built, &loaded]).await;
    let archive = alone.path("image.tar");
    alone.said(&["save", "-o", archive.to_str().unwrap(), &loaded]).await;
    alone.said(&["rmi", &loaded]).await;
    alone.said(&["load", "-i", archive.to_str().unwrap()]).await;
    assert!(!alone.left().is_empty());
    let (code, _) = alone.end(Signal::KILL).await;
    assert_eq!(code, None);
    assert!(!alone.left().is_empty());
    alone.start().await;
    assert!(
        engine().docker(&["volume", "ls", "-q"]).lines().all(|name| name != volume),
        "{volume}"
    );
    // What is left is the new one's: its network.
    assert_eq!(alone.left().len(), 1, "{:?}", alone.left());
    assert_eq!(alone.said(&["ps", "-aq"]).await, "");

    // Killed at whatever moment, by the requests that it has made to the engine: while it removes
    // what the one before has left, and at its work.
    let work = |alone: &Alone| -> Vec<Child> {
        [
            &["run", "-d", "-v", "/a", "-v", "/builds/g/p:/x", "busybox", "sleep", "600"][..],
            &["build", "-t", &built, context.to_str().unwrap()],
            &["load", "-i", archive.to_str().unwrap()],
            &["network", "create", &tagged],
        ]
        .map(|arguments| {
            alone.docker(arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
        })
        .into()
    };
    let end = async |clients: Vec<Child>| {
        for mut client in clients {
            tokio::time::timeout(patient(COMMAND), client.wait()).await.unwrap().unwrap();
        }
    };
    let before = alone.counter.count().requests.len();
    end(work(&alone)).await;
    let needed = alone.counter.count().requests.len() - before;
    alone.end(Signal::KILL).await;
    for moment in 0..MOMENTS {
        let reached = alone.counter.count().requests.len() + 2 * moment;
        alone.counter.hold_after(reached);
        alone.spawn();
        let mut count = alone.counter.watch();
        tokio::select! {
            count = count.wait_for(|count| count.requests.len() > reached) => drop(count.unwrap()),
            // It had less to do.
            () = alone.ready() => {}
        }
        alone.end(Signal::KILL).await;
        alone.counter.go_on();
        alone.start().await;
        let reached = alone.counter.count().requests.len() + needed * moment / MOMENTS;
        let clients = work(&alone);
        tokio::time::timeout(patient(COMMAND), alone.counter.until(reached)).await.unwrap();
        alone.end(Signal::KILL).await;
        end(clients).await;
    }
    alone.start().await;
    let (code, said) = alone.end(Signal::TERM).await;
    assert!(code == Some(0), "{code:?} {said}");
    assert_eq!(alone.left(), Vec::<String>::new());
}

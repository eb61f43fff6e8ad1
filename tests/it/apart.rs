//! An engine that a test has to itself, and may kill: one of its own network namespace, with the
//! images of the shared one.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::engine::{Engine, engine};

/// Where `tests/engine/up --apart` has it.
const DIRECTORY: &str = "/var/lib/longshore-test-engine-apart";
/// Images that stay from test to test, and those without a name.
const BASE: [&str; 4] = ["busybox:", "docker:", "longshore-helper:", "<none>:"];
/// How long a killed process may take until its parent has noticed.
const DEATH: Duration = Duration::from_secs(10);

/// A running engine. It is stopped with this value.
pub(crate) struct Apart {
    pub(crate) engine: Engine,
    /// One at a time on this machine.
    _lock: File,
}

impl Apart {
    /// Waits for the machine's one and starts it. `None` where that takes more rights than the tests
    /// have.
    pub(crate) fn start() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("no engine of a test's own: that takes root");
            return None;
        }
        fs::create_dir_all(DIRECTORY).unwrap();
        let lock = File::create(Path::new(DIRECTORY).join("test.lock")).unwrap();
        lock.lock().unwrap();
        let apart = Self { engine: Engine::at(&Self::up()), _lock: lock };
        // What an earlier test that failed has left.
        let containers = apart.engine.docker(&["ps", "--all", "--quiet"]);
        for container in containers.lines() {
            apart.engine.docker(&["rm", "--force", "--volumes", container]);
        }
        apart.engine.docker(&["network", "prune", "--force"]);
        for volume in apart.engine.docker(&["volume", "ls", "--quiet"]).lines() {
            apart.engine.docker(&["volume", "rm", volume]);
        }
        let images = ["images", "--format", "{{.Repository}}:{{.Tag}}"];
        let is_base = |name: &&str| BASE.iter().any(|base| name.starts_with(base));
        for image in apart.engine.docker(&images).lines().filter(|name| !is_base(name)) {
            apart.engine.docker(&["rmi", "--force", image]);
        }
        Some(apart)
    }

    /// Starts it, or starts it again; its address.
    pub(crate) fn up() -> String {
        let up = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/up");
        let start = || {
            let mut command = Command::new(&up);
            command.args(["--apart", "--dind"]).env("DOCKER_HOST", &engine().host);
            command.output().unwrap()
        };
        let mut output = start();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() && words.contains("initNetworkController") {
            // Docker 20.10, killed while it makes a network, panics over what it has noted of it at
            // every start (libnetwork: `reservePools`), until an operator takes that away.
            fs::remove_file(Path::new(DIRECTORY).join("data/network/files/local-kv.db")).unwrap();
            output = start();
        }
        assert!(output.status.success(), "tests/engine/up --apart failed: {words}");
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
    }

    /// Kills it; its containerd dies with it.
    pub(crate) async fn kill(&self, containers: Containers) {
        let number = |path: &str| -> i32 {
            let text = fs::read_to_string(Path::new(DIRECTORY).join(path)).unwrap();
            text.trim().parse().unwrap()
        };
        let (dockerd, containerd) = (number("pid"), number("exec/containerd/containerd.pid"));
        let containers = match containers {
            Containers::Live => Vec::new(),
            Containers::Die => self.processes(),
        };
        for process in std::iter::once(dockerd).chain(containers) {
            // A container may have ended meanwhile.
            if let Some(process) = Pid::from_raw(process) {
                kill_process(process, Signal::KILL).unwrap_or(());
            }
        }
        // A new one takes a dead process that nobody has waited for yet for a living one. Only
        // their parent is told of the end.
        let gone = async {
            let mut again = tokio::time::interval(Duration::from_millis(50));
            let process = |id: i32| PathBuf::from(format!("/proc/{id}"));
            while process(dockerd).exists() || process(containerd).exists() {
                again.tick().await;
            }
        };
        tokio::time::timeout(DEATH, gone).await.expect("a killed engine does not end");
    }

    /// The first processes of the running containers.
    fn processes(&self) -> Vec<i32> {
        let running = self.engine.docker(&["ps", "--quiet"]);
        let mut inspect = Command::new("docker");
        inspect.args(["inspect", "--format", "{{.State.Pid}}"]).args(running.lines());
        // Of those that have ended meanwhile it says nothing, and fails.
        let output = inspect.env("DOCKER_HOST", &self.engine.host).output().unwrap();
        let words = String::from_utf8(output.stdout).unwrap();
        words.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }
}

/// What becomes of an engine's containers when it is killed.
#[derive(Clone, Copy)]
pub(crate) enum Containers {
    /// They outlive it. When it is back it stops them, and waits ten seconds for those that do not
    /// care.
    Live,
    /// They are killed too, as a service manager may do.
    Die,
}

impl Drop for Apart {
    fn drop(&mut self) {
        let down = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/down");
        drop(Command::new(down).arg("--apart").stderr(Stdio::null()).status());
    }
}

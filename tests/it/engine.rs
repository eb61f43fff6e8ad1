//! The Docker engine that the tests share, and what is left on it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{LazyLock, Once, OnceLock},
    time::Duration,
};

use longshore::base::ids::random_hex;
use serde_json::Value;

/// How long what is being removed may take to be gone.
const REMOVAL: Duration = Duration::from_secs(30);

/// What `tests/engine/up` ends with where what an image is made of is not in reach (sysexits.h).
const UNAVAILABLE: i32 = 69;

/// The label of a volume that later jobs use too.
const KEPT: &str = "com.gitlab.gitlab-runner.reusable=true";

/// Networks that every engine has.
const DEFAULT_NETWORKS: [&str; 3] = ["network bridge", "network host", "network none"];

/// A line of a script that says `started`, and waits for [`Engine::go`].
pub(crate) const UNTIL_GO: &str = "echo started; until test -e /tmp/go; do sleep 0.2; done";

/// So long is waited on a machine where all takes `LONGSHORE_TEST_PATIENCE` times as long.
pub(crate) fn patient(limit: Duration) -> Duration {
    let times = std::env::var("LONGSHORE_TEST_PATIENCE");
    limit * times.map_or(1, |times| times.parse().expect("LONGSHORE_TEST_PATIENCE is a number"))
}

/// An image or network made for a test; removed with this value, which must outlive its users.
pub(crate) struct Made {
    kind: &'static str,
    pub(crate) name: String,
}

/// An engine that answers.
pub(crate) struct Engine {
    /// Its address, as in `DOCKER_HOST`.
    pub(crate) host: String,
    /// The address at which its containers reach this machine.
    pub(crate) gateway: String,
}

/// The engine of `tests/engine/up`, which takes the one of `DOCKER_HOST` where that is set.
///
/// # Panics
/// When there is none and none can be started; the script's own words are on stderr.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        let up = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/up");
        let output = Command::new(up).stderr(std::process::Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "tests/engine/up failed");
        let host = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned();
        let mut engine = Engine::at(&host);
        let bridge = engine.docker(&["network", "inspect", "bridge"]);
        let bridge: Value = serde_json::from_str(&bridge).unwrap();
        let range = &bridge[0]["IPAM"]["Config"][0];
        // Older engines leave the gateway out: it is the first address.
        engine.gateway = range["Gateway"].as_str().map_or_else(
            || {
                let (network, _) = range["Subnet"].as_str().unwrap().rsplit_once('.').unwrap();
                format!("{network}.1")
            },
            str::to_owned,
        );
        engine
    });
    &ENGINE
}

impl Engine {
    /// The engine at an address.
    pub(crate) fn at(host: &str) -> Self {
        Self { host: host.to_owned(), gateway: String::new() }
    }

    /// Makes sure that it has `docker:cli` and `docker:dind`.
    pub(crate) fn needs_dind(&self) {
        static MADE: Once = Once::new();
        MADE.call_once(|| {
            let up = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/up");
            let output = Command::new(up).arg("--dind").env("DOCKER_HOST", &self.host).output();
            let output = output.unwrap();
            assert!(output.status.success(), "tests/engine/up --dind: {output:?}");
        });
    }

    /// Makes sure that it has `docker:cli-buildx` and `registry:2`.
    pub(crate) fn needs_buildx(&self) {
        static MADE: Once = Once::new();
        MADE.call_once(|| self.make("--buildx"));
    }

    /// Makes sure that it has `moby/buildkit:rootless` as well. False where Go's module proxy, which
    /// has the only source of buildkitd, is not in reach.
    pub(crate) fn has_buildkit(&self) -> bool {
        static MADE: OnceLock<bool> = OnceLock::new();
        self.needs_buildx();
        *MADE.get_or_init(|| {
            let output = self.up("--buildkit");
            if output.status.code() == Some(UNAVAILABLE) {
                println!("NOT TESTED: {}", String::from_utf8_lossy(&output.stderr));
                return false;
            }
            assert!(output.status.success(), "tests/engine/up --buildkit: {output:?}");
            true
        })
    }

    fn make(&self, what: &str) {
        let output = self.up(what);
        assert!(output.status.success(), "tests/engine/up {what}: {output:?}");
    }

    fn up(&self, what: &str) -> Output {
        let up = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/up");
        Command::new(up).arg(what).env("DOCKER_HOST", &self.host).output().unwrap()
    }

    /// The engine's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        let path = self.host.strip_prefix("unix://");
        PathBuf::from(path.expect("the tests need an engine at a unix socket"))
    }

    /// What `docker` with these arguments prints.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let output =
            Command::new("docker").args(arguments).env("DOCKER_HOST", &self.host).output().unwrap();
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A network of a test's own.
    pub(crate) fn network(&self) -> Made {
        self.network_with(&[])
    }

    /// Images in whose name this is: what a job with a guarded socket makes has a longer one here.
    pub(crate) fn images_named(&self, part: &str) -> Vec<String> {
        let names = self.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        names.lines().filter(|name| name.contains(part)).map(str::to_owned).collect()
    }

    /// The same with flags such as `--opt=…`.
    pub(crate) fn network_with(&self, flags: &[&str]) -> Made {
        let made = Made::new("network");
        self.docker(&[&["network", "create"], flags, &[&made.name]].concat());
        made
    }

    /// `base` with changes such as `USER 1000` (docker commit: `--change`).
    pub(crate) fn image(&self, base: &str, changes: &[&str]) -> Made {
        let made = Made::new("image");
        let container = self.docker(&["create", base]);
        let mut arguments = vec!["commit"];
        for change in changes {
            arguments.extend(["--change", change]);
        }
        arguments.extend([container.trim(), &made.name]);
        self.docker(&arguments);
        self.docker(&["rm", container.trim()]);
        made
    }

    /// An image that has the file `path` of `base` in its root, and nothing else.
    pub(crate) fn image_of_one_file(&self, base: &str, path: &str) -> Made {
        let made = Made::new("image");
        let container = self.docker(&["create", base]);
        let from = format!("{}:{path}", container.trim());
        let client = || {
            let mut command = Command::new("docker");
            command.env("DOCKER_HOST", &self.host);
            command
        };
        let mut copy = client().args(["cp", &from, "-"]).stdout(Stdio::piped()).spawn().unwrap();
        let tar = copy.stdout.take().unwrap();
        let import = client().args(["import", "-", &made.name]).stdin(tar).output().unwrap();
        assert!(copy.wait().unwrap().success() && import.status.success(), "{import:?}");
        self.docker(&["rm", container.trim()]);
        made
    }

    /// What `docker inspect` says of the job's containers, networks and volumes that `wanted`
    /// picks by their name and labels.
    pub(crate) fn inspect(&self, wanted: impl Fn(&str) -> bool) -> Vec<Value> {
        let things = self.things(wanted);
        let names: Vec<_> =
            things.iter().map(|(_, line)| line.split(' ').next().unwrap()).collect();
        let inspected = self.docker(&[&["inspect"], names.as_slice()].concat());
        serde_json::from_str(&inspected).unwrap()
    }

    /// Containers, networks and volumes that `wanted` picks by their name and labels.
    fn things(&self, wanted: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for (kind, list) in [
            ("container", &["ps", "--all", "--format", "{{.Names}} {{.Labels}}"][..]),
            ("network", &["network", "ls", "--format", "{{.Name}} {{.Labels}}"]),
            ("volume", &["volume", "ls", "--format", "{{.Name}} {{.Labels}}"]),
        ] {
            for line in self.docker(list).lines().filter(|line| wanted(line)) {
                found.push((kind, line.to_owned()));
            }
        }
        found
    }

    /// Waits until nothing is left that names the job, but for volumes that are kept on purpose.
    ///
    /// The engine does not tell when a thing is gone, so it is asked until then.
    pub(crate) async fn nothing_left_of(&self, job: i64) {
        self.nothing_left_with(&job.to_string()).await;
    }

    /// The same for whatever has `text` in its name or labels.
    pub(crate) async fn nothing_left_with(&self, text: &str) {
        let mut again = tokio::time::interval(Duration::from_millis(200));
        let deadline = tokio::time::Instant::now() + patient(REMOVAL);
        loop {
            again.tick().await;
            let left = self.things(|line| line.contains(text) && !line.contains(KEPT));
            if left.is_empty() {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "left on the engine: {left:#?}");
        }
    }

    /// What is on it that is nobody's: containers, networks of a user's making and volumes, but for
    /// those that are kept on purpose. For an engine that a test has to itself.
    pub(crate) fn left(&self) -> Vec<String> {
        let things = self.things(|line| !line.contains(KEPT));
        let names = things.into_iter().map(|(kind, line)| format!("{kind} {}", line.trim()));
        names.filter(|name| !DEFAULT_NETWORKS.contains(&name.as_str())).collect()
    }

    /// Names of all volumes, but for those that are kept on purpose.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let things = self.things(|line| !line.contains(KEPT)).into_iter();
        let volumes = things.filter(|(kind, _)| *kind == "volume");
        volumes.filter_map(|(_, line)| Some(line.split(' ').next()?.to_owned())).collect()
    }

    /// Names of running containers that name the job.
    pub(crate) fn running_containers(&self, job: i64) -> Vec<String> {
        let id = job.to_string();
        let all = self.docker(&["ps", "--format", "{{.Names}} {{.Labels}}"]);
        all.lines().filter(|line| line.contains(&id)).map(str::to_owned).collect()
    }

    /// Lets a job go on from [`UNTIL_GO`].
    pub(crate) fn go(&self, job: i64) {
        let containers = self.running_containers(job);
        let mut names = containers.iter().filter_map(|line| line.split(' ').next());
        let build = names.find(|name| name.ends_with("-build")).unwrap();
        self.docker(&["exec", build, "touch", "/tmp/go"]);
    }

    /// Removes all that a test's project has left, caches too.
    pub(crate) fn clear(&self, project_id: i64) {
        self.clear_with(&project_id.to_string());
    }

    /// The same for whatever has `text` in its name or labels.
    pub(crate) fn clear_with(&self, text: &str) {
        for (kind, line) in self.things(|line| line.contains(text)) {
            let name = line.split(' ').next().unwrap();
            let arguments: &[&str] = match kind {
                "container" => &["rm", "--force", "--volumes", name],
                kind => &[kind, "rm", name],
            };
            // Something else may have removed it meanwhile.
            drop(Command::new("docker").args(arguments).env("DOCKER_HOST", &self.host).output());
        }
    }
}

impl Made {
    fn new(kind: &'static str) -> Self {
        Self { kind, name: format!("longshore-it-{}", random_hex::<8>()) }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let arguments: &[&str] = match self.kind {
            // A failed test may have left a container of it.
            "image" => &["image", "rm", "--force", &self.name],
            kind => &[kind, "rm", &self.name],
        };
        drop(Command::new("docker").args(arguments).env("DOCKER_HOST", &engine().host).output());
    }
}

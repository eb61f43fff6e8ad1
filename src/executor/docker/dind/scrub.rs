//! A job's daemon leaves its data root in order for a later job: nothing in it but images and build
//! cache. It is asked in its own container, by the image's own `docker`, which works wherever the
//! engine is. A daemon that will not do it, or does it wrong, only harms later jobs that are trusted
//! as far as its own.

use std::time::Duration;

use bollard::{
    container::LogOutput,
    exec::{StartExecOptions, StartExecResults},
    models::ExecConfig,
    query_parameters::{InspectContainerOptions, StopContainerOptionsBuilder},
};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::executor::docker::engine::{self, Engine};

/// How long it may take: removal of many containers, and a look at every file of the data root.
const LIMIT: Duration = Duration::from_mins(2);

/// Seconds that the daemon is given to end by itself.
const STOP_GRACE: i32 = 20;

/// Of a process that was killed (128 + SIGKILL).
const KILLED: i64 = 137;

/// Where the image's daemon listens, with root and without.
const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/user/1000/docker.sock"];

/// Prints the size of the data root `$1` in KiB when all is in order; the rest of its arguments are
/// sockets. Named volumes go too, as they carry data from one job to the next; a swarm and plugins
/// would come to life again.
///
/// The container's environment is the job's, and a socket in it may be another daemon's, such as the
/// host's own: before anything is removed, a new volume shows whose data root this is.
const SCRIPT: &str = r#"set -eu
unset DOCKER_HOST DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_CONTEXT DOCKER_CONFIG DOCKER_API_VERSION
root=$1
shift
for socket; do
  if [ -S "$socket" ]; then export DOCKER_HOST="unix://$socket"; fi
done
[ -n "${DOCKER_HOST:-}" ] || { echo 'the daemon has no socket'; exit 1; }
tries=0
until docker version > /dev/null 2>&1; do
  tries=$((tries + 1))
  [ "$tries" -lt 50 ] || { echo 'the daemon does not answer'; exit 1; }
  sleep 0.2
done
mark=longshore-$(cat /proc/sys/kernel/random/uuid)
docker volume create "$mark" > /dev/null
[ -d "$root/volumes/$mark" ] || {
  docker volume rm "$mark" > /dev/null
  echo 'the daemon has another data root'
  exit 1
}
swarm=$(docker info --format '{{.Swarm.LocalNodeState}}')
[ "$swarm" = inactive ] || { echo "it is in a swarm ($swarm)"; exit 1; }
plugins=$(docker plugin ls --quiet)
[ -z "$plugins" ] || { echo 'it has plugins'; exit 1; }
containers=$(docker ps --all --quiet)
[ -z "$containers" ] || docker rm --force --volumes $containers > /dev/null
docker network prune --force > /dev/null
volumes=$(docker volume ls --quiet)
[ -z "$volumes" ] || docker volume rm $volumes > /dev/null
[ -z "$(docker ps --all --quiet)$(docker volume ls --quiet)" ] || { echo 'something came back'; exit 1; }
size=$(du -sk "$root")
echo "size $size"
"#;

/// Why a data root cannot be used again.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// The engine refused or failed: most often, the daemon has ended already.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The daemon did not do it.
    #[error("the daemon did not clean up: {0}")]
    Unclean(String),
    /// It took too long.
    #[error("cleaning up took longer than {} s", LIMIT.as_secs())]
    Late,
    /// It did not end by itself.
    #[error("the daemon did not end in order (exit code {0})")]
    Killed(i64),
}

/// Has the daemon in `container` clean up its data root, and ends it. How many bytes are left.
///
/// # Errors
/// When anything did not go as it should: then the data root must not be used again.
pub async fn scrub(engine: &Engine, container: &str, data_root: &str) -> Result<u64, ScrubError> {
    timeout(LIMIT, async {
        let size = ask(engine, container, data_root).await?;
        stop(engine, container).await?;
        Ok(size)
    })
    .await
    .unwrap_or(Err(ScrubError::Late))
}

async fn ask(engine: &Engine, container: &str, data_root: &str) -> Result<u64, ScrubError> {
    let failed = || engine::Error::of("clean up in the container", container);
    let client = engine.client();
    let command = ["sh", "-c", SCRIPT, "sh", data_root].into_iter().chain(SOCKETS);
    let config = ExecConfig {
        cmd: Some(command.map(str::to_owned).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ExecConfig::default()
    };
    let exec = client.create_exec(container, config).await.map_err(failed())?;
    let started = client.start_exec(&exec.id, None::<StartExecOptions>).await.map_err(failed())?;
    let mut said = String::new();
    if let StartExecResults::Attached { mut output, .. } = started {
        while let Some(piece) = output.next().await {
            let piece: LogOutput = piece.map_err(failed())?;
            said.push_str(&piece.to_string());
        }
    }
    let ended = client.inspect_exec(&exec.id).await.map_err(failed())?;
    if ended.exit_code == Some(0)
        && let Some(size) = said.lines().rev().find_map(size)
    {
        return Ok(size);
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Err(ScrubError::Unclean(last.unwrap_or("it said nothing").to_owned()))
}

/// Of what the script prints when all is in order.
fn size(line: &str) -> Option<u64> {
    let kibibytes: u64 = line.strip_prefix("size ")?.split_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Ends the daemon as an operator would, so that nothing is left half written.
async fn stop(engine: &Engine, container: &str) -> Result<(), ScrubError> {
    let client = engine.client();
    let options = StopContainerOptionsBuilder::new().signal("SIGTERM").t(STOP_GRACE).build();
    client
        .stop_container(container, Some(options))
        .await
        .map_err(engine::Error::of("stop the container", container))?;
    let state = client
        .inspect_container(container, None::<InspectContainerOptions>)
        .await
        .map_err(engine::Error::of("inspect the container", container))?
        .state
        .unwrap_or_default();
    match state.exit_code {
        Some(KILLED) => Err(ScrubError::Killed(KILLED)),
        _ if state.oom_killed == Some(true) => Err(ScrubError::Killed(KILLED)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt, net::UnixListener},
        path::Path,
        process::Command,
    };

    use super::*;

    /// Runs the script with a `docker` that notes how it is called, and makes volumes in `root`.
    fn run(root: &str, directory: &Path, sockets: &[&Path]) -> (String, String) {
        let bin = directory.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let calls = directory.join("calls");
        let stub = format!(
            "#!/bin/sh\necho \"$DOCKER_HOST $*\" >> {calls}\ncase \"$1 $2\" in\n\
             'volume create') mkdir -p {real}/volumes/$3 ;;\n\
             'info --format') echo inactive ;;\n\
             'ps --all') [ -e {calls}.rm ] || echo c1 ;;\n\
             'rm --force') touch {calls}.rm ;;\nesac\n",
            calls = calls.display(),
            real = directory.join("root").display(),
        );
        fs::write(bin.join("docker"), stub).unwrap();
        fs::set_permissions(bin.join("docker"), fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new("sh")
            .args(["-c", SCRIPT, "sh", root])
            .args(sockets)
            .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
            .env("DOCKER_HOST", "tcp://elsewhere:2375")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.success(), said.contains("size "), "{said}");
        (said, fs::read_to_string(calls).unwrap_or_default())
    }

    #[test]
    fn no_other_daemon_than_the_jobs_own_is_cleaned_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let socket = path.join("docker.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let root = path.join("root");
        let root = root.to_str().unwrap();
        let (said, calls) = run(root, path, &[]);
        assert_eq!((said.trim(), calls.as_str()), ("the daemon has no socket", ""));
        let (said, calls) = run("/another", path, &[&socket]);
        assert_eq!(said.trim(), "the daemon has another data root");
        assert!(!calls.contains("rm --force") && !calls.contains("prune"), "{calls}");
        let (said, calls) = run(root, path, &[&socket]);
        assert!(said.starts_with("size "), "{said}");
        assert!(calls.contains("rm --force --volumes c1"), "{calls}");
        assert!(!calls.contains("elsewhere"), "{calls}");
    }

    #[test]
    fn the_size_is_read_in_bytes() {
        assert_eq!(size("size 12\t/var/lib/docker"), Some(12 << 10));
        assert_eq!(size("size x"), None);
        assert_eq!(size("12\t/var/lib/docker"), None);
    }
}

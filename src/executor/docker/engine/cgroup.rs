//! An engine's control groups: which driver makes them, of which version they are, and whether
//! this process can make, limit and remove some itself. What groups there are is not decided here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Error, transport::Transport};
use crate::guard::peer;

/// Where a system's systemd has it (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";

/// Who makes an engine's groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The runtime, by directories; a parent is a path.
    Cgroupfs,
    /// systemd; a parent is a slice.
    Systemd,
    /// Nobody: containers have no groups of their own.
    None,
}

/// The kernel's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// A hierarchy for each controller, or for several.
    V1,
    /// One hierarchy.
    V2,
}

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers; of version 2, and of one without any, empty.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// Why this process cannot make groups for an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The engine is on another host, or in containers or namespaces of its own.
    #[error("the engine is not on this host, or not in the same control groups as longshore")]
    Elsewhere,
    /// It runs without root's rights.
    #[error("the engine runs without root's rights")]
    Rootless,
    /// This process is not root.
    #[error("longshore does not run as root")]
    NotRoot,
    /// Nothing is mounted that can be written.
    #[error("control groups are not mounted here, or read-only")]
    NotMounted,
    /// systemd makes the engine's groups, and is not this system's.
    #[error("systemd makes the engine's control groups, and does not run where longshore does")]
    NoSystemd,
    /// The engine makes none either.
    #[error("the engine makes no control groups (its driver is none)")]
    NoDriver,
}

/// An engine's groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Who makes them.
    pub driver: Driver,
    /// The kernel's interface to them.
    pub version: Version,
    /// The hierarchies they are in, where this process may write there.
    pub reach: Result<Vec<Hierarchy>, Obstacle>,
}

/// The part of `GET /info` that tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct About {
    #[serde(default)]
    cgroup_driver: String,
    // Engines before 20.10 do not say it, and know version 1 alone.
    #[serde(default)]
    cgroup_version: String,
    #[serde(default)]
    security_options: Option<Vec<String>>,
}

/// Asks the engine at `host` what its groups are.
pub(super) async fn ask(transport: &Transport, host: &str) -> Result<Cgroups, Error> {
    let failed = || Error::of("ask for the control groups", "");
    let body = transport.get("/info").await.map_err(failed())?;
    let about: About = serde_json::from_slice(&body).map_err(|error| failed()(error.into()))?;
    let version = if about.cgroup_version == "2" { Version::V2 } else { Version::V1 };
    let reach = reach(host, &about, version, Path::new(SYSTEMD)).await;
    Ok(Cgroups { driver: about.driver(), version, reach })
}

impl About {
    fn driver(&self) -> Driver {
        match self.cgroup_driver.as_str() {
            "systemd" => Driver::Systemd,
            "none" => Driver::None,
            _ => Driver::Cgroupfs,
        }
    }

    fn is_rootless(&self) -> bool {
        self.security_options.iter().flatten().any(|option| option == "name=rootless")
    }
}

/// The groups that this process can make for the engine; `systemd` is there where systemd runs.
async fn reach(
    host: &str,
    about: &About,
    version: Version,
    systemd: &Path,
) -> Result<Vec<Hierarchy>, Obstacle> {
    if about.driver() == Driver::None {
        return Err(Obstacle::NoDriver);
    }
    if about.is_rootless() {
        return Err(Obstacle::Rootless);
    }
    let socket = host.strip_prefix("unix://").ok_or(Obstacle::Elsewhere)?;
    if about.driver() == Driver::Systemd && !systemd.is_dir() {
        return Err(Obstacle::NoSystemd);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Obstacle::NotRoot);
    }
    // Else the same names are those of other groups.
    if !peer::shares(Path::new(socket), "cgroup").await {
        return Err(Obstacle::Elsewhere);
    }
    let found = mounted(version);
    if found.is_empty() { Err(Obstacle::NotMounted) } else { Ok(found) }
}

/// The hierarchies that an engine's groups are in, and this process may write.
#[must_use]
pub fn mounted(version: Version) -> Vec<Hierarchy> {
    hierarchies(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), version)
}

/// The hierarchies that are mounted whole and can be written (proc(5), `mountinfo`).
fn hierarchies(mountinfo: &str, version: Version) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<&str>, Vec<&str>) =
            (left.split(' ').collect(), right.split(' ').collect());
        let (&[_, _, _, "/", mount, options, ..], &[kind, _, superblock, ..]) =
            (&left[..], &right[..])
        else {
            continue;
        };
        // With version 1, one of version 2 without controllers may stand beside.
        let counts = kind == "cgroup2" || kind == "cgroup" && version == Version::V1;
        if !counts || options.split(',').any(|option| option == "ro") {
            continue;
        }
        let is_controller = |word: &&str| {
            kind == "cgroup" && !word.contains('=') && !matches!(*word, "rw" | "ro" | "xattr")
        };
        found.push(Hierarchy {
            controllers: superblock.split(',').filter(is_controller).map(str::to_owned).collect(),
            mount: mount.into(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;
    use crate::executor::docker::engine::testing::{FakeEngine, Recorded, version};

    const V1: &str = "\
30 22 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory
35 30 0:31 / /sys/fs/cgroup/pids ro,nosuid shared:14 - cgroup cgroup rw,pids
36 30 0:32 /docker/1 /srv/blkio rw,nosuid shared:15 - cgroup cgroup rw,blkio
";

    #[test]
    fn hierarchies_are_found_by_their_mounts() {
        let hierarchy = |controllers: &[&str], mount: &str| Hierarchy {
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            mount: mount.into(),
        };
        let wanted = [
            hierarchy(&[], "/sys/fs/cgroup/unified"),
            hierarchy(&[], "/sys/fs/cgroup/systemd"),
            hierarchy(&["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct"),
            hierarchy(&["memory"], "/sys/fs/cgroup/memory"),
        ];
        assert_eq!(hierarchies(V1, Version::V1), wanted);
        let v2 = "25 20 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(hierarchies(v2, Version::V2), [hierarchy(&[], "/sys/fs/cgroup")]);
        // A container sees its own group as the root, or all of it read-only.
        let inside = "25 20 0:22 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
                      26 20 0:22 / /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(hierarchies(inside, Version::V2), []);
    }

    #[test]
    fn g_85_engines_say_their_driver_and_version_or_are_old() {
        let about = |text: &str| serde_json::from_str::<About>(text).unwrap();
        let old = about(r#"{"CgroupDriver": "cgroupfs", "SecurityOptions": null}"#);
        assert_eq!((old.driver(), &*old.cgroup_version), (Driver::Cgroupfs, ""));
        let new = about(
            r#"{"CgroupDriver": "systemd", "CgroupVersion": "2",
                "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]}"#,
        );
        assert_eq!((new.driver(), &*new.cgroup_version), (Driver::Systemd, "2"));
        assert!(new.is_rootless() && !old.is_rootless());
        assert_eq!(about(r#"{"CgroupDriver": "none"}"#).driver(), Driver::None);
    }

    #[tokio::test]
    async fn g_7_groups_that_systemd_makes_need_systemd_here() {
        let about = serde_json::from_str(r#"{"CgroupDriver": "systemd"}"#).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("systemd");
        let reached = |host: &'static str, systemd| reach(host, &about, Version::V2, systemd);
        assert_eq!(reached("unix:///engine", &nowhere).await, Err(Obstacle::NoSystemd));
        assert_ne!(reached("unix:///engine", directory.path()).await, Err(Obstacle::NoSystemd));
        assert_eq!(reached("tcp://engine:2375", &nowhere).await, Err(Obstacle::Elsewhere));
    }

    #[tokio::test]
    async fn an_engine_is_asked_once() {
        let fake = FakeEngine::start(|request: Recorded| async move {
            if request.line.contains("/version") {
                return version("1.41", "1.24", "linux", "amd64");
            }
            r#"{"CgroupDriver": "systemd", "CgroupVersion": "2",
                "SecurityOptions": ["name=rootless"]}"#
                .into_response()
        });
        let engine = fake.connect().await;
        for _ in 0..3 {
            let wanted = Cgroups {
                driver: Driver::Systemd,
                version: Version::V2,
                reach: Err(Obstacle::Rootless),
            };
            assert_eq!(engine.cgroups().await.unwrap(), &wanted);
        }
        assert_eq!(fake.lines(), ["GET /version", "GET /info"]);
    }
}

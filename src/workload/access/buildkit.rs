//! The BuildKit that a job with a guarded socket may have beside it: the engine's own is shared by all
//! jobs.

use std::fmt::Write as _;

use crate::config::SocketBuild;

use super::{
    inputs::{Inputs, is_rootless},
    shared_socket::{ROOTLESS, SOCKET_DIRECTORY, SOCKET_GROUP},
};

/// A BuildKit of the job's own. Its container is never privileged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildKit {
    /// Its image.
    pub image: String,
    /// Where it keeps what it has built and pulled, in its container.
    pub state: &'static str,
    /// Whether it runs without root, in user namespaces of its own: it needs the engine's filters
    /// off for that.
    pub unconfined: bool,
    /// User and group of the directory of its socket.
    pub owner: u32,
    /// Group that may use its socket. The job's processes are in it, whoever they are.
    pub group: u32,
}

impl BuildKit {
    /// The builder that buildx finds in the job.
    pub const NAME: &str = "longshore";

    fn new(image: &str) -> Self {
        let image = image.to_owned();
        // moby/buildkit: Dockerfile, targets `rootless` and `buildkit-linux`.
        if is_rootless(&image) {
            Self {
                image,
                state: "/home/user/.local/share/buildkit",
                unconfined: true,
                owner: ROOTLESS,
                group: ROOTLESS,
            }
        } else {
            // Where the runtime makes root harmless (sysbox-runc).
            Self {
                image,
                state: "/var/lib/buildkit",
                unconfined: false,
                owner: 0,
                group: SOCKET_GROUP,
            }
        }
    }

    /// Its address, in its container as in the job's.
    #[must_use]
    pub fn address() -> String {
        format!("unix://{SOCKET_DIRECTORY}/buildkitd.sock")
    }

    /// Arguments of `buildkitd`. It gets no entitlements: neither the network of the engine's host
    /// nor privileges in a build.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--addr".to_owned(), Self::address()];
        if self.owner == 0 {
            arguments.extend(["--group".to_owned(), self.group.to_string()]);
        }
        arguments
    }

    /// Where buildx in the job keeps its builders, beside the socket.
    #[must_use]
    pub fn builders() -> String {
        format!("{SOCKET_DIRECTORY}/buildx")
    }

    /// The file of the preset builder (buildx: `store.NodeGroup`).
    ///
    /// buildx 0.14 and later put what they build into Docker by themselves where `default-load` says
    /// so, as `docker build` always did; 0.13 fails on an option that it does not know, but builds
    /// with the next node then. Without it, one has to write `--load`.
    #[must_use]
    pub fn builder() -> String {
        let (name, address) = (Self::NAME, Self::address());
        let mut nodes = String::new();
        for (index, options) in [r#"{"default-load":"true"}"#, "{}"].iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _infallible = write!(
                nodes,
                r#"{comma}{{"Name":"{name}{index}","Endpoint":"{address}","Platforms":null,"Flags":null,"DriverOpts":{options},"Files":null}}"#
            );
        }
        format!(r#"{{"Name":"{name}","Driver":"remote","Nodes":[{nodes}],"Dynamic":false}}"#)
    }
}

impl Inputs<'_> {
    /// What the runner gives a job beside its guarded socket.
    pub(super) fn buildkit(&self) -> Option<BuildKit> {
        let socket = &self.containers.socket;
        (socket.build == SocketBuild::Sidecar).then(|| BuildKit::new(&socket.buildkit_image))
    }

    /// Variables by which containers, buildx, compose and buildctl find it. A job that has builders of
    /// its own keeps them.
    pub(super) fn buildkit_variables(&self) -> Vec<(&'static str, Option<String>)> {
        let mut variables = vec![("BUILDKIT_HOST", Some(BuildKit::address()))];
        if self.variable("BUILDX_CONFIG").is_none() {
            variables.push(("BUILDX_CONFIG", Some(BuildKit::builders())));
            variables.push(("BUILDX_BUILDER", Some(BuildKit::NAME.to_owned())));
        }
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preset_builder_is_what_buildx_reads() {
        let builder: serde_json::Value = serde_json::from_str(&BuildKit::builder()).unwrap();
        assert_eq!((&builder["Name"], &builder["Driver"]), (&"longshore".into(), &"remote".into()));
        let nodes = builder["Nodes"].as_array().unwrap();
        for node in nodes {
            assert_eq!(node["Endpoint"], "unix:///run/longshore/buildkitd.sock");
        }
        assert_eq!(nodes[0]["DriverOpts"]["default-load"], "true");
        assert_eq!(nodes[1]["DriverOpts"], serde_json::json!({}));
    }

    #[test]
    fn it_is_asked_for_no_entitlement_and_only_root_names_a_group() {
        let rootless = BuildKit::new("moby/buildkit:rootless");
        assert_eq!(rootless.arguments(), ["--addr", "unix:///run/longshore/buildkitd.sock"]);
        assert!(rootless.unconfined && rootless.owner == 1000);
        let other = BuildKit::new("moby/buildkit:latest");
        assert_eq!(other.arguments()[2..], ["--group", "2375"]);
        assert!(!other.unconfined && other.owner == 0);
    }
}

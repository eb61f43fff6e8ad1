//! BuildKit, which this socket does not offer: the engine's own is every job's, and a builder
//! that buildx makes is a privileged container. Refusals say what there is instead. Where a job has a
//! BuildKit beside the socket, it is not reached through here.

use crate::guard::{refusal::Refusal, settings::Build};

/// How the containers of buildx's docker-container driver are named (buildx: `driver.BuilderName`).
const BUILDER: &str = "buildx_buildkit_";

/// Whether buildx means a builder's container by this.
pub(super) fn is_builder(reference: &str) -> bool {
    reference.trim_start_matches('/').starts_with(BUILDER)
}

/// For `/session`, `/grpc` and `/build?version=2`.
pub(super) fn in_the_engine(build: Build) -> Refusal {
    refusal("the engine's BuildKit is not available on this socket", build)
}

/// For a builder's container. buildx looks for it before it pulls an image and makes it, so this is
/// what a build says that would end with the refusal of a privileged container.
pub(super) fn builder(build: Build) -> Refusal {
    refusal(
        "a builder of buildx's docker-container driver needs a privileged container, which is not \
         available on this runner",
        build,
    )
}

/// For the classic builder where it is off.
pub(super) fn off() -> Refusal {
    Refusal::because(
        "building images is turned off on this runner (build = \"off\"); a job with a daemon of \
         its own (docker:dind) builds with that",
        "G-70",
    )
}

fn refusal(what: &str, build: Build) -> Refusal {
    let instead = match build {
        Build::Off => return off(),
        Build::Classic => {
            "set DOCKER_BUILDKIT=0 to build with the classic builder, use a runner with build = \
             \"sidecar\", or the job's own daemon (docker:dind)"
        }
        Build::Sidecar => {
            "this job has a BuildKit of its own: build with --builder longshore, which is what \
             BUILDX_BUILDER says where the job does not change it"
        }
    };
    Refusal::because(&format!("{what}; {instead}"), "G-1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g_10_each_refusal_names_the_way_that_there_is() {
        for (build, way) in [
            (Build::Off, "build = \"off\""),
            (Build::Classic, "DOCKER_BUILDKIT=0"),
            (Build::Sidecar, "--builder longshore"),
        ] {
            for refusal in [in_the_engine(build), builder(build)] {
                assert_eq!(refusal.status, 403);
                assert!(refusal.message.contains(way), "{build:?}: {}", refusal.message);
            }
        }
    }

    #[test]
    fn a_builder_is_known_by_its_name() {
        assert!(is_builder("buildx_buildkit_default") && is_builder("/buildx_buildkit_x0"));
        assert!(!is_builder("buildx") && !is_builder("my_buildx_buildkit_x0"));
    }
}

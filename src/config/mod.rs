//! What the operator asks for: gitlab-runner's `config.toml`, read as written (`file`), checked as
//! a whole into [`Config`] (`check`), watched (`watch`) and edited in place (`edit`).

mod cache;
pub mod check;
mod containers;
pub mod diff;
mod dind;
pub mod edit;
mod executor;
mod file;
pub mod flags;
mod gitlab;
mod global;
mod local;
mod problem;
mod runner;
mod socket;
pub mod system_id;
pub mod values;
pub mod volume;
pub mod watch;

pub use self::{
    cache::{CacheConfig, S3Config},
    containers::{
        ContainerConfig, ImagePolicy, NetworkConfig, PrivilegePolicy, PullPolicy, ServiceConfig,
        ServicePolicy, UserPolicy, VolumeConfig,
    },
    dind::{DindConfig, DindMode, DindNetwork, DindStorage},
    executor::{
        ExecutorConfig,
        docker::{
            ContainerLimits, ContainerSecurity, Device, DeviceConfig, DockerConfig, EngineAddress,
            EngineVolumes, HostNames, KernelConfig, Ulimit,
        },
    },
    gitlab::{ArtifactConfig, GitLabConfig, TlsFiles},
    global::Config,
    local::LocalRunner,
    problem::{Problem, Problems, Warning},
    runner::{OperatorScripts, RunnerConfig, SourcesConfig, StageTimeouts},
    socket::{GuardPlace, SocketBuild, SocketConfig, SocketLimits, SocketMode},
};

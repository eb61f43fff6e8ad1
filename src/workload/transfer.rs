//! What the helper does for a job, as data: sources, archives, the end. `helper::protocol` sends it.

use serde::{Deserialize, Serialize};

use crate::base::secret::Secret;

/// Name of the file in the job's temporary directory that `GIT_CONFIG_GLOBAL` of its containers is
/// set to with `FF_GIT_URLS_WITHOUT_TOKENS`.
pub const GIT_SEED: &str = ".gitlab-runner.global.conf";

/// How files are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Zip, deflate.
    Zip,
    /// One gzip member for each file.
    Gzip,
    /// One file as it is.
    Raw,
    /// Zip with zstd members.
    ZipZstd,
    /// Tar in zstd.
    TarZstd,
}

impl Format {
    /// The keyword of `.gitlab-ci.yml` for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zip => "zip",
            Self::Gzip => "gzip",
            Self::Raw => "raw",
            Self::ZipZstd => "zipzstd",
            Self::TarZstd => "tarzstd",
        }
    }
}

/// How hard to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Store, or the fastest there is.
    Fastest,
    /// Faster than the default, and larger.
    Fast,
    /// What is not too slow for a build and not too large for a network.
    #[default]
    Default,
    /// Slower than the default, and smaller.
    Slow,
    /// As small as the format can be.
    Slowest,
}

/// How the helper fetches and checks out the sources.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct Sources {
    /// The project's directory.
    pub project_dir: String,
    /// `RUNNER_TEMP_PROJECT_DIR`.
    pub temp_dir: String,
    /// What the project's directory is before it is fetched into.
    pub strategy: Strategy,
    /// Remote without credentials; it may be a bundle's path.
    pub url: String,
    /// `scheme://host[:port]` of the server, for credentials and CA; `None` for a bundle.
    pub server: Option<String>,
    /// The job's token, for git over HTTP.
    pub token: Secret,
    /// Ref, for messages.
    pub reference: String,
    /// Commit.
    pub sha: String,
    /// Hash of the repository's objects.
    pub object_format: ObjectFormat,
    /// For `git fetch`.
    pub refspecs: Vec<String>,
    /// Commits to fetch; 0 for the full history.
    pub depth: i64,
    /// `GIT_CHECKOUT`.
    pub checkout: bool,
    /// `GIT_CLEAN_FLAGS`; `None` does not clean.
    pub clean_flags: Option<Vec<String>>,
    /// `GIT_FETCH_EXTRA_FLAGS`.
    pub fetch_flags: Vec<String>,
    /// `GIT_CLONE_EXTRA_FLAGS`, for a native clone.
    pub clone_flags: Vec<String>,
    /// `FF_USE_GIT_NATIVE_CLONE`.
    pub native_clone: bool,
    /// `GIT_SUBMODULE_*`.
    pub submodules: Submodules,
    /// The job itself set `GIT_LFS_SKIP_SMUDGE`.
    pub skip_lfs: bool,
    /// Adds `safe.directory`.
    pub safe_directory: bool,
    /// Removes git configuration and hooks an earlier job left.
    pub clean_config: bool,
    /// `FF_GIT_URLS_WITHOUT_TOKENS`: no token in any file, not even during the job.
    pub tokens_in_environment_only: bool,
    /// Git sends its credentials before it is asked to (`FF_USE_GIT_PROACTIVE_AUTH`).
    pub proactive_auth: bool,
    /// `http.userAgent`.
    pub user_agent: String,
    /// `X-Gitaly-Correlation-ID`, with the flag for it.
    pub correlation_id: Option<String>,
    /// `transfer.bundleURI`.
    pub bundle_uri: bool,
    /// PEM of CAs for the server.
    pub ca: Option<String>,
    /// Client certificate and key, PEM.
    pub client_certificate: Option<(String, Secret)>,
    /// Whole shell scripts before and after git, in the environment `env`.
    pub pre_script: Option<String>,
    /// See `pre_script`.
    pub post_script: Option<String>,
    /// The job's variables.
    pub env: Vec<(String, Secret)>,
    /// Second and later attempts.
    pub retry: bool,
}

/// Hash of a repository's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectFormat {
    /// The usual one.
    #[default]
    Sha1,
    /// `git init --object-format=sha256`.
    Sha256,
}

/// Name of the file in the job's temporary directory that `GITLAB_ENV` names: lines `NAME=VALUE`
/// for the job's later stages.
pub const ENV_FILE: &str = "gitlab_runner_env";

/// `GIT_STRATEGY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Uses the work tree of an earlier job again.
    Fetch,
    /// Begins with an empty directory.
    Clone,
    /// Leaves the directory as it is.
    None,
    /// An empty directory.
    Empty,
}

/// `GIT_SUBMODULE_*`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Submodules {
    /// `None` for none; `Some(true)` for recursive.
    pub recursive: Option<bool>,
    /// `GIT_SUBMODULE_PATHS`.
    pub paths: Vec<String>,
    /// `GIT_SUBMODULE_DEPTH`; 0 for all.
    pub depth: i64,
    /// `GIT_SUBMODULE_UPDATE_FLAGS`.
    pub update_flags: Vec<String>,
    /// `GIT_SUBMODULE_FORCE_HTTPS`.
    pub force_https: bool,
}

/// What the helper removes at the job's end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CleanUp {
    /// The project's directory.
    pub project_dir: String,
    /// `RUNNER_TEMP_PROJECT_DIR`: its files of credentials and variables go.
    pub temp_dir: String,
    /// Names of file variables under it.
    pub file_variables: Vec<String>,
    /// `FF_ENABLE_JOB_CLEANUP`, with the strategy and the flags of `git clean`.
    pub worktree: Option<(Strategy, Vec<String>)>,
    /// Removes git configuration and hooks the job left.
    pub clean_config: bool,
    /// Also in submodules.
    pub submodules: bool,
}

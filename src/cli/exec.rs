//! `exec`: its arguments. Runs jobs of a `.gitlab-ci.yml` on this machine, without a server.

use std::path::PathBuf;

/// Arguments of `exec`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ExecArgs {
    /// The job; none lists the jobs of the file
    pub job: Option<String>,
    /// The pipeline's file
    #[arg(short = 'f', long, default_value = ".gitlab-ci.yml", value_name = "FILE")]
    pub file: PathBuf,
    /// A variable of the job; may be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
    pub variables: Vec<String>,
}

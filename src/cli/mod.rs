//! The command line: one file per subcommand. Only here is anything printed, and only here are
//! errors of any type accepted.

mod completions;
mod console;
mod entries;
pub mod exec;
mod exit;
mod guard;
pub mod helper;
mod lint;
mod list;
pub mod log;
pub mod paths;
mod register;
mod reset_token;
mod rotate;
pub mod run;
pub mod run_single;
mod runner_options;
mod unregister;
mod verify;

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{ArgAction, CommandFactory, Parser, Subcommand};

use self::{
    completions::completions,
    entries::Setting,
    exec::ExecArgs,
    guard::{GuardArgs, guard},
    helper::HelperCommand,
    lint::lint,
    list::list,
    paths::User,
    register::{RegisterArgs, register},
    reset_token::{ResetTokenArgs, reset_token},
    run::{LogChoice, RunArgs},
    run_single::RunSingleArgs,
    unregister::{UnregisterArgs, unregister},
    verify::{VerifyArgs, verify},
};
pub use self::{
    console::Console,
    exit::{Exit, Failure, Outcome},
    runner_options::RunnerOptions,
};

/// A CI runner: GitLab jobs in containers, with Docker inside a job made safe and fast
#[derive(Debug, Parser)]
#[command(
    name = "longshore", version, disable_version_flag = true, max_term_width = 100,
    after_help = exit::CODES,
)]
pub struct Cli {
    /// Options of every subcommand.
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    command: Command,
    /// Prints the version
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// Options of every subcommand, before its name or after.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: /etc/longshore/config.toml, or gitlab-runner's]
    #[arg(short, long, global = true, env = "CONFIG_FILE", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State directory: running jobs and caches [default: /var/lib/longshore]
    #[arg(long, global = true, env = "LONGSHORE_STATE_DIR", value_name = "DIRECTORY")]
    pub state_dir: Option<PathBuf>,
    /// Log level: debug, info, warn, error, fatal or panic
    #[arg(short, long, global = true, env = "LOG_LEVEL", value_name = "LEVEL", value_parser = level)]
    pub log_level: Option<String>,
    /// Log format: runner, text or json
    #[arg(long, global = true, env = "LOG_FORMAT", value_name = "FORMAT", value_parser = format)]
    pub log_format: Option<String>,
    /// Same as `--log-level debug`, and takes precedence over it
    #[arg(long, global = true, env = "RUNNER_DEBUG")]
    pub debug: bool,
}

fn level(text: &str) -> Result<String, &'static str> {
    log::parse_level(text).map(|_| text.to_owned())
}

fn format(text: &str) -> Result<String, &'static str> {
    text.parse::<log::Format>().map(|_| text.to_owned())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Takes jobs until it is stopped
    Run(RunArgs),
    /// Takes jobs for one runner until its work is done
    RunSingle(Box<RunSingleArgs>),
    /// Registers a runner, and writes it into the configuration file
    Register(Box<RegisterArgs>),
    /// Asks the servers whether they know the runners
    Verify(VerifyArgs),
    /// Unregisters runners from their servers, and removes them from the configuration file
    Unregister(UnregisterArgs),
    /// Lists the runners of the configuration file, with their tokens
    List,
    /// Rotates authentication tokens
    ResetToken(ResetTokenArgs),
    /// Checks the configuration file strictly
    Lint,
    /// Runs jobs of a `.gitlab-ci.yml` on this machine
    Exec(ExecArgs),
    /// Serves a guarded Docker socket in front of an engine, without a runner
    Guard(GuardArgs),
    /// Writes a shell's completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(subcommand, hide = true)]
    Helper(HelperCommand),
}

/// Runs the program with the process's arguments, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let exit = if error.use_stderr() { Exit::Failure } else { Exit::Success };
            return exit.into();
        }
    };
    let mut console = Console::of_process();
    match execute(cli, &mut console) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let _ = failure.print(&mut console.err);
            failure.exit().into()
        }
    }
}

fn execute(cli: Cli, console: &mut Console) -> Outcome {
    let global = &cli.global;
    let quiet = matches!(cli.command, Command::Exec(_) | Command::Guard(_) | Command::Helper(_));
    let level = global.log_level.as_deref().or(quiet.then_some("warn"));
    let control =
        log::install(log::Settings::new(level, global.log_format.as_deref(), global.debug))?;
    let choice = LogChoice {
        level: global.log_level.clone(),
        format: global.log_format.clone(),
        debug: global.debug,
        control,
    };
    let state_dir = global.state_dir.as_deref();
    let user = User::current();
    let setting = Setting {
        config: global.config.clone().unwrap_or_else(|| user.config_path(&|path| path.exists())),
        env: |name| std::env::var(name).ok(),
    };
    match cli.command {
        Command::List => list(&setting, console),
        Command::Lint => lint(&setting, console),
        Command::Completions { shell } => completions(shell, Cli::command(), console),
        Command::Verify(args) => wait(verify(&setting, &args, console)),
        Command::Unregister(args) => wait(unregister(&setting, &args, console)),
        Command::ResetToken(args) => wait(reset_token(&setting, &args, console)),
        Command::Register(args) => wait(register(&setting, &args, console, interrupt())),
        Command::Run(args) => run::run(&args, &setting.config, state_dir, &choice),
        Command::RunSingle(args) => run_single::run(&args, &setting.config, state_dir, &choice),
        Command::Exec(args) => exec::exec(&args, state_dir),
        Command::Guard(args) => guard(&args, console),
        Command::Helper(HelperCommand::Serve) => helper::serve(),
        Command::Helper(HelperCommand::Guard) => helper::guard(),
    }
}

/// Runs a short command to its end. The thread that reads stdin cannot be stopped, so the runtime
/// does not wait for it.
fn wait(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}

async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler the system's own way of ending us holds.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

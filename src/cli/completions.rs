//! `completions`: a shell's completion script, from the same definition as the parser.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{
    Cli,
    console::Console,
    exit::{Exit, Outcome},
};

/// Writes the script to stdout.
pub(super) fn completions(shell: Shell, console: &mut Console) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "longshore", &mut script);
    console.out.write_all(&script)?;
    console.out.flush()?;
    Ok(Exit::Success)
}

//! `completions`: a shell's completion script, from the same definition as the parser.

use clap_complete::Shell;

use super::{
    console::Console,
    exit::{Exit, Outcome},
};

/// Writes the script of `parser` to stdout.
pub(super) fn completions(
    shell: Shell,
    mut parser: clap::Command,
    console: &mut Console,
) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut parser, "longshore", &mut script);
    console.out.write_all(&script)?;
    console.out.flush()?;
    Ok(Exit::Success)
}

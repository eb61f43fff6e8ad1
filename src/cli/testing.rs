//! Arguments for tests.

use clap::{CommandFactory, FromArgMatches, builder::Resettable};

/// Parses arguments, ignoring the environment that the tests happen to run in.
pub(super) fn parsed<T: CommandFactory + FromArgMatches>(
    arguments: &[&str],
) -> Result<T, clap::Error> {
    let deaf = |argument: clap::Arg| argument.env(Resettable::Reset);
    let command = T::command().mut_args(deaf).mut_subcommands(|command| command.mut_args(deaf));
    let all = std::iter::once("program").chain(arguments.iter().copied());
    T::from_arg_matches(&command.try_get_matches_from(all)?)
}

//! Arguments and a console for tests.

use std::{
    io::{self, Write},
    sync::Arc,
};

use clap::{CommandFactory, FromArgMatches, builder::Resettable};
use parking_lot::Mutex;

use super::console::Console;

/// Parses arguments, ignoring the environment that the tests happen to run in.
pub(super) fn parsed<T: CommandFactory + FromArgMatches>(
    arguments: &[&str],
) -> Result<T, clap::Error> {
    let deaf = |argument: clap::Arg| argument.env(Resettable::Reset);
    let command = T::command().mut_args(deaf).mut_subcommands(|command| command.mut_args(deaf));
    let all = std::iter::once("program").chain(arguments.iter().copied());
    T::from_arg_matches(&command.try_get_matches_from(all)?)
}

/// What was written to one of the two.
#[derive(Clone, Default)]
pub(super) struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A console that answers with `input`, and what is written to it: `(console, out, err)`.
pub(super) fn console(input: &'static str) -> (Console, Written, Written) {
    let (out, err) = (Written::default(), Written::default());
    let console = Console {
        out: Box::new(out.clone()),
        err: Box::new(err.clone()),
        input: Box::new(input.as_bytes()),
    };
    (console, out, err)
}

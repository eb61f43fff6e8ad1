//! The terminal, or what stands for it: data goes to `out`, words to `err`, answers come from
//! `input`. The only thing in the program that prints.

use std::io::{self, Write};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

/// What a command talks to.
pub struct Console {
    /// Data: what a script may read.
    pub out: Box<dyn Write + Send>,
    /// Words: for people.
    pub err: Box<dyn Write + Send>,
    /// Answers.
    pub input: Box<dyn AsyncBufRead + Send + Unpin>,
}

impl Console {
    /// The process's own.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            input: Box::new(BufReader::new(tokio::io::stdin())),
        }
    }

    /// A line of data.
    pub fn data(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// A line of words.
    pub fn say(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.err, "{line}")?;
        self.err.flush()
    }

    /// Asks; an empty answer takes `default`. `None` at the end of the input.
    pub async fn ask(&mut self, question: &str, default: &str) -> io::Result<Option<String>> {
        writeln!(self.err, "{question}")?;
        write!(self.err, "[{default}]: ")?;
        self.err.flush()?;
        let mut line = String::new();
        if self.input.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let answer = line.trim();
        Ok(Some(if answer.is_empty() { default.to_owned() } else { answer.to_owned() }))
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was written to one of the two.
    #[derive(Clone, Default)]
    pub(in crate::cli) struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        pub(in crate::cli) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A console that answers with `input`, and what is written to it: `(console, out, err)`.
    pub(in crate::cli) fn console(input: &'static str) -> (Console, Written, Written) {
        let (out, err) = (Written::default(), Written::default());
        let console = Console {
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
            input: Box::new(input.as_bytes()),
        };
        (console, out, err)
    }
}

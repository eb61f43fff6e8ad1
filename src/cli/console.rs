//! The terminal, or a substitute for it: data goes to `out`, messages to `err`, answers come from
//! `input`. Nothing else in the program prints.

use std::io::{self, Write};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

/// The streams of a command.
pub struct Console {
    /// stdout: data, which a script may read.
    pub out: Box<dyn Write + Send>,
    /// stderr: messages for people.
    pub err: Box<dyn Write + Send>,
    /// stdin: answers.
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

    /// Prints a line of data.
    pub fn data(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    /// Prints a message.
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

//! `CI_DEBUG_SERVICES`: what services say, followed into the job's trace while the job runs.

use std::time::Duration;

use bollard::{container::LogOutput, query_parameters::LogsOptionsBuilder};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    executor::docker::engine::Engine,
    trace::{Source, Stream, Trace, Writer},
    workload::service::ServicePlan,
};

const GREY: &[u8] = b"\x1b[0;90m";
const RESET: &[u8] = b"\x1b[0;m";

/// When the job is over, what a service said before is on its way at most so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Nothing more is on its way when nothing came for so long.
const QUIET: Duration = Duration::from_millis(100);

/// The services of a job that are followed.
pub(super) struct Followed {
    trace: Trace,
    over: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

impl Followed {
    /// None yet.
    pub(super) fn new(trace: Trace) -> Self {
        Self { trace, over: CancellationToken::new(), tasks: Mutex::default() }
    }

    /// Follows a service that has started, from its first word.
    pub(super) fn add(&self, engine: &Engine, service: &ServicePlan) {
        let client = engine.client().clone();
        let container = service.container.clone();
        let mut out = Lines::new(&self.trace, Stream::Out, &service.aliases);
        let mut err = Lines::new(&self.trace, Stream::Err, &service.aliases);
        let over = self.over.clone();
        let follow = async move {
            let options = LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true).build();
            let mut pieces = client.logs(&container, Some(options));
            let mut deadline = None;
            loop {
                let piece = match deadline {
                    None => match over.run_until_cancelled(pieces.next()).await {
                        Some(piece) => piece,
                        None => {
                            deadline = Some(Instant::now() + LAST_WORDS);
                            continue;
                        }
                    },
                    Some(deadline) => {
                        let next = timeout(QUIET, pieces.next());
                        timeout_at(deadline, next).await.ok().and_then(Result::ok).flatten()
                    }
                };
                match piece {
                    Some(Ok(LogOutput::StdOut { message } | LogOutput::Console { message })) => {
                        out.write(&message);
                    }
                    Some(Ok(LogOutput::StdErr { message })) => err.write(&message),
                    Some(Ok(LogOutput::StdIn { .. })) => {}
                    Some(Err(error)) => {
                        tracing::warn!(container, %error, "service cannot be followed any more");
                        break;
                    }
                    None => break,
                }
            }
            out.finish();
            err.finish();
        };
        self.tasks.lock().spawn(follow);
    }

    /// The job is over: waits until what services have said so far is in the trace.
    pub(super) async fn end(&self) {
        self.over.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task panicked; this is a bug in longshore");
            }
        }
    }
}

/// Lines of a service's stream, each marked with whose it is.
struct Lines {
    marked: Marked,
    writer: Writer,
}

impl Lines {
    fn new(trace: &Trace, stream: Stream, aliases: &[String]) -> Self {
        Self { marked: Marked::new(aliases), writer: trace.writer(Source::Service, stream) }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.writer.write(&self.marked.mark(bytes));
    }

    /// Ends a line that the service did not.
    fn finish(mut self) {
        if self.marked.inside {
            self.write(b"\n");
        }
        self.writer.close();
    }
}

/// Puts `[service:<aliases>] ` before each line, in grey.
struct Marked {
    prefix: Vec<u8>,
    /// In the middle of a line.
    inside: bool,
}

impl Marked {
    fn new(aliases: &[String]) -> Self {
        let name = format!("[service:{}] ", aliases.join("->"));
        Self { prefix: [GREY, name.as_bytes()].concat(), inside: false }
    }

    fn mark(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut marked = Vec::with_capacity(bytes.len() + 2 * self.prefix.len());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.inside {
                marked.extend_from_slice(&self.prefix);
            }
            match line.split_last() {
                Some((b'\n', text)) => {
                    marked.extend_from_slice(text);
                    marked.extend_from_slice(RESET);
                    marked.push(b'\n');
                    self.inside = false;
                }
                _ => {
                    marked.extend_from_slice(line);
                    self.inside = true;
                }
            }
        }
        marked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_93_each_line_of_a_service_says_whose_it_is() {
        let aliases = ["db".to_owned(), "ns-db".to_owned()];
        let mut marked = Marked::new(&aliases);
        let mut text = marked.mark(b"one\ntw");
        text.extend(marked.mark(b"o\n\n"));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "\x1b[0;90m[service:db->ns-db] one\x1b[0;m\n\
             \x1b[0;90m[service:db->ns-db] two\x1b[0;m\n\
             \x1b[0;90m[service:db->ns-db] \x1b[0;m\n"
        );
        assert!(!marked.inside);
        marked.mark(b"half");
        assert!(marked.inside);
    }
}

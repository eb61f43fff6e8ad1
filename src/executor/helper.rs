//! The helper, seen from outside: started once, asked for one task after another.

use std::{collections::VecDeque, io};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::{
    ExecutorError, ExecutorFailure, HelperStreams, Piece,
    buffered_log::{BufferedLog, LogEvent},
};
use crate::{
    helper::protocol::{CHUNK, Decoder, Done, Frame, Task},
    workload::outcome::FailureReason,
};

/// How much of what the helper program itself complained of is kept, in bytes.
const COMPLAINT_LIMIT: usize = 4096;

/// A running helper.
pub struct Helper {
    streams: HelperStreams,
    decoder: Decoder,
    /// What the program wrote to its stderr, the last of it.
    complaint: VecDeque<u8>,
}

/// Why the helper did not do its task, as against a task that failed.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// Its streams failed.
    #[error(transparent)]
    Streams(#[from] ExecutorError),
    /// It does not read.
    #[error("cannot write to the helper container")]
    Write {
        /// Why.
        source: io::Error,
    },
    /// It ended in the middle.
    #[error("the helper container ended before its task did{}", said(complaint))]
    Ended {
        /// What it last wrote.
        complaint: String,
    },
    /// What it wrote is not the protocol.
    #[error("the helper container does not speak as one{}", said(complaint))]
    Protocol {
        /// What it last wrote.
        complaint: String,
        /// Why.
        source: io::Error,
    },
    /// A file it was to be given could not be read.
    #[error("cannot read what the helper was to be given")]
    Source {
        /// Why.
        source: io::Error,
    },
}

fn said(complaint: &str) -> String {
    if complaint.is_empty() { String::new() } else { format!("; it said: {complaint}") }
}

impl From<HelperError> for ExecutorError {
    fn from(error: HelperError) -> Self {
        match error {
            HelperError::Streams(error) => error,
            // Whoever carried the stream went away.
            HelperError::Write { .. } => {
                ExecutorFailure::new(FailureReason::RunnerSystemFailure, error)
                    .retryable(true)
                    .into()
            }
            HelperError::Ended { .. }
            | HelperError::Protocol { .. }
            | HelperError::Source { .. } => {
                ExecutorFailure::new(FailureReason::RunnerSystemFailure, error).into()
            }
        }
    }
}

impl Helper {
    /// A helper that has started.
    #[must_use]
    pub fn new(streams: HelperStreams) -> Self {
        Self { streams, decoder: Decoder::default(), complaint: VecDeque::new() }
    }

    /// Runs a task that neither takes nor gives a file.
    ///
    /// # Errors
    /// When the helper or its executor fails; a task that failed is a [`Done`] with a code.
    pub async fn run(&mut self, task: &Task, log: &BufferedLog) -> Result<Done, HelperError> {
        self.ask(task).await?;
        self.answer(log, None).await
    }

    /// Runs a task that takes a file.
    ///
    /// # Errors
    /// As [`Helper::run`], or when `file` fails.
    pub async fn give(
        &mut self,
        task: &Task,
        file: impl Stream<Item = io::Result<Bytes>>,
        log: &BufferedLog,
    ) -> Result<Done, HelperError> {
        self.ask(task).await?;
        let mut file = std::pin::pin!(file);
        while let Some(piece) = file.next().await {
            let mut piece = piece.map_err(|source| HelperError::Source { source })?;
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(CHUNK));
                self.send(&Frame::Data(part)).await?;
            }
        }
        self.send(&Frame::End).await?;
        self.answer(log, None).await
    }

    /// Runs a task that gives a file; its pieces go to `file` as they come. When nobody wants them
    /// any more, the rest is thrown away.
    ///
    /// # Errors
    /// As [`Helper::run`].
    pub async fn take(
        &mut self,
        task: &Task,
        file: mpsc::Sender<io::Result<Bytes>>,
        log: &BufferedLog,
    ) -> Result<Done, HelperError> {
        self.ask(task).await?;
        self.answer(log, Some(file)).await
    }

    async fn ask(&mut self, task: &Task) -> Result<(), HelperError> {
        let json = serde_json::to_vec(task).map_err(|error| HelperError::Protocol {
            complaint: String::new(),
            source: error.into(),
        })?;
        self.send(&Frame::Task(json.into())).await
    }

    /// Sends a frame. Not cancel-safe.
    pub(in crate::executor) async fn send(&mut self, frame: &Frame) -> Result<(), HelperError> {
        let written = async {
            self.streams.input.write_all(&frame.encode()).await?;
            self.streams.input.flush().await
        };
        written.await.map_err(|source| HelperError::Write { source })
    }

    async fn answer(
        &mut self,
        log: &BufferedLog,
        mut file: Option<mpsc::Sender<io::Result<Bytes>>>,
    ) -> Result<Done, HelperError> {
        loop {
            match self.next_frame().await? {
                Frame::Output(text) => log.log(LogEvent::Out(text)),
                Frame::ErrorOutput(text) => log.log(LogEvent::Err(text)),
                Frame::Data(piece) => {
                    if let Some(wanted) = &file
                        && wanted.send(Ok(piece)).await.is_err()
                    {
                        file = None;
                    }
                }
                Frame::End => file = None,
                Frame::Done(json) => {
                    if let Some(wanted) = file.take() {
                        // The task failed before its file was whole: who reads it must know.
                        let cut =
                            io::Error::new(io::ErrorKind::UnexpectedEof, "the file is not whole");
                        if wanted.send(Err(cut)).await.is_err() {
                            tracing::debug!("nobody wanted the file any more");
                        }
                    }
                    return serde_json::from_slice(&json)
                        .map_err(|error| self.protocol_error(error.into()));
                }
                Frame::Task(_) => {
                    return Err(self.protocol_error(io::Error::other("it sent a task")));
                }
            }
        }
    }

    /// The next frame. Cancel-safe.
    pub(in crate::executor) async fn next_frame(&mut self) -> Result<Frame, HelperError> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(self.protocol_error(error)),
            }
            match self.streams.output.next().await.transpose()? {
                Some(Piece::Out(bytes)) => self.decoder.push(&bytes),
                Some(Piece::Err(bytes)) => {
                    self.complaint.extend(bytes.iter());
                    let excess = self.complaint.len().saturating_sub(COMPLAINT_LIMIT);
                    self.complaint.drain(..excess);
                }
                None => return Err(HelperError::Ended { complaint: self.complaint() }),
            }
        }
    }

    /// What its program complained of, the last of it.
    pub(in crate::executor) fn complaint(&self) -> String {
        let bytes: Vec<u8> = self.complaint.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    pub(in crate::executor) fn protocol_error(&self, source: io::Error) -> HelperError {
        HelperError::Protocol { complaint: self.complaint(), source }
    }
}

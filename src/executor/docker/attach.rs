//! A container's standard streams.

use std::pin::Pin;

use bollard::{
    Docker, container::LogOutput, errors::Error as EngineError,
    query_parameters::AttachContainerOptionsBuilder,
};
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{DockerError, engine};
use crate::executor::{ExecutorError, HelperStreams, Piece};

/// Streams of an attached container. They end with the container.
pub(super) struct Attached {
    container: String,
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, EngineError>> + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
}

impl Attached {
    /// Attaches to a container that has not started yet, so that nothing of its output is missed.
    pub(super) async fn new(engine: &Docker, container: &str) -> Result<Self, engine::Error> {
        let options = AttachContainerOptionsBuilder::new()
            .stream(true)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .build();
        let streams = engine
            .attach_container(container, Some(options))
            .await
            .map_err(engine::Error::of("attach to the container", container))?;
        Ok(Self { container: container.to_owned(), output: streams.output, input: streams.input })
    }

    /// The next piece of output; `None` when the container has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, engine::Error> {
        loop {
            let piece = match self.output.next().await {
                None => return Ok(None),
                Some(Err(source)) => {
                    return Err(engine::Error::of(
                        "read the output of the container",
                        &self.container,
                    )(source));
                }
                Some(Ok(piece)) => piece,
            };
            match piece {
                LogOutput::StdOut { message } | LogOutput::Console { message } => {
                    return Ok(Some(Piece::Out(message)));
                }
                LogOutput::StdErr { message } => return Ok(Some(Piece::Err(message))),
                LogOutput::StdIn { .. } => {}
            }
        }
    }

    /// The streams, for a helper.
    pub(super) fn into_helper(self) -> HelperStreams {
        let Self { container, output, input } = self;
        let attached = Self { container, output, input: Box::pin(tokio::io::sink()) };
        let output = futures_util::stream::unfold(attached, |mut attached| async move {
            let piece =
                attached.next().await.map_err(DockerError::from).map_err(ExecutorError::from);
            Some((piece.transpose()?, attached))
        });
        HelperStreams { output: output.boxed(), input }
    }

    /// Writes to the container's stdin and ends it, while reading what the container says.
    pub(super) fn split(self) -> (Output, Input) {
        let Self { container, output, input } = self;
        (
            Output(Self {
                container: container.clone(),
                output,
                input: Box::pin(tokio::io::sink()),
            }),
            Input { container, input },
        )
    }
}

/// The reading half.
pub(super) struct Output(Attached);

impl Output {
    /// See [`Attached::next`].
    pub(super) async fn next(&mut self) -> Result<Option<Piece>, engine::Error> {
        self.0.next().await
    }
}

/// The writing half.
pub(super) struct Input {
    container: String,
    input: Pin<Box<dyn AsyncWrite + Send>>,
}

impl Input {
    /// Writes all and ends the container's stdin.
    pub(super) async fn finish(mut self, bytes: &[u8]) -> Result<(), engine::Error> {
        let written = async {
            self.input.write_all(bytes).await?;
            self.input.shutdown().await
        };
        written.await.map_err(|err| {
            engine::Error::of("write to the container", &self.container)(EngineError::IOError {
                err,
            })
        })
    }
}

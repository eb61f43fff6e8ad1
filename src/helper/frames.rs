//! Sends the frames of a task to longshore.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::helper::protocol::{CHUNK, Frame};

const NOTICE: &str = "\x1b[32;1m";
const WARNING: &str = "\x1b[0;33m";
const ERROR: &str = "\x1b[31;1m";
const RESET: &str = "\x1b[0;m";

/// Sends frames; a clone sends to the same receiver. Once the receiver is gone, frames are dropped
/// silently: then `serve` is about to end and to drop the task.
#[derive(Debug, Clone)]
pub(super) struct FrameSender(mpsc::Sender<Frame>);

impl FrameSender {
    pub(super) fn new(frames: mpsc::Sender<Frame>) -> Self {
        Self(frames)
    }

    /// Sends a frame, when there is room.
    pub(super) async fn send(&self, frame: Frame) {
        let _ = self.0.send(frame).await;
    }

    /// A line of the runner's own, in bold green.
    pub(super) async fn notice(&self, text: &str) {
        self.send(Frame::Output(format!("{NOTICE}{text}{RESET}\n").into())).await;
    }

    /// A warning, in yellow.
    pub(super) async fn warning(&self, text: &str) {
        self.send(Frame::Output(format!("{WARNING}WARNING: {text}{RESET}\n").into())).await;
    }

    /// An error, in bold red.
    pub(super) async fn error(&self, text: &str) {
        self.send(Frame::Output(format!("{ERROR}ERROR: {text}{RESET}\n").into())).await;
    }

    /// A plain line.
    pub(super) async fn line(&self, text: &str) {
        self.send(Frame::Output(format!("{text}\n").into())).await;
    }

    /// A writer that sends a file as `Data` frames, for a thread that may block.
    pub(super) fn data(&self) -> DataWriter {
        DataWriter { frames: self.0.clone(), pending: BytesMut::with_capacity(CHUNK) }
    }
}

/// Cuts what is written into `Data` frames of [`CHUNK`] bytes; `flush` sends what is left.
#[derive(Debug)]
pub(super) struct DataWriter {
    frames: mpsc::Sender<Frame>,
    pending: BytesMut,
}

impl DataWriter {
    fn give(&self, piece: Bytes) -> io::Result<()> {
        self.frames
            .blocking_send(Frame::Data(piece))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the archive"))
    }
}

impl io::Write for DataWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == CHUNK {
            let piece = std::mem::replace(&mut self.pending, BytesMut::with_capacity(CHUNK));
            self.give(piece.freeze())?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let piece = self.pending.split().freeze();
        self.give(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_file_is_cut_into_frames_that_fit() {
        let (frames, mut sent) = mpsc::channel(16);
        let mut writer = FrameSender::new(frames).data();
        let text: Vec<u8> = (0..u8::MAX).cycle().take(2 * CHUNK + 7).collect();
        let expected = text.clone();
        tokio::task::spawn_blocking(move || {
            writer.write_all(&text).unwrap();
            writer.flush().unwrap();
            writer.flush().unwrap();
        })
        .await
        .unwrap();
        let mut sizes = Vec::new();
        let mut seen = Vec::new();
        while let Some(Frame::Data(piece)) = sent.recv().await {
            sizes.push(piece.len());
            seen.extend_from_slice(&piece);
        }
        assert_eq!(sizes, [CHUNK, CHUNK, 7]);
        assert_eq!(seen, expected);
    }
}

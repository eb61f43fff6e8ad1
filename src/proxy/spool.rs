//! An archive on its way from the client into a file that nobody can name, read by its judge as it
//! comes (G-64, G-72): what is judged is what was written, and the engine gets it when the judge has
//! read it to its end.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::{
    Refusal,
    engine::{Body, Broken},
    serve::Shared,
};

/// How long the next piece may take (G-86).
const PROGRESS: Duration = Duration::from_mins(1);
/// How many pieces wait for the judge at most.
const WAITING: usize = 16;
/// How much of the file is sent at once.
const PIECE: usize = 256 << 10;

/// What came so far, and comes: each byte is in the file before it is read.
pub(super) struct Spool {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    file: File,
}

impl Read for Spool {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some(piece) = self.pieces.blocking_recv() else { return Ok(0) };
            self.file.write_all(&piece)?;
            self.piece = piece;
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Shared {
    /// Takes the client's archive in while `judge` reads it; what it makes of it, and the file.
    pub(super) async fn spool<T: Send + 'static>(
        &self,
        body: Incoming,
        judge: impl FnOnce(&mut Spool) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<(T, File), Refusal> {
        let failed = |_| Refusal::failed(500, "the archive cannot be kept");
        let directory = self.settings.private.join("spool");
        let file = tempfile::tempfile_in(directory).map_err(failed)?;
        let (sender, pieces) = mpsc::channel(WAITING);
        let judged = tokio::task::spawn_blocking(move || {
            let mut spool = Spool { pieces, piece: Bytes::new(), file };
            let made = judge(&mut spool)?;
            spool.file.seek(SeekFrom::Start(0)).map_err(failed)?;
            Ok((made, spool.file))
        });
        let received = self.receive(body, sender).await;
        let judged =
            judged.await.unwrap_or_else(|_| Err(Refusal::failed(500, "the archive is unreadable")));
        // What broke off is not judged by what there is of it.
        received.and(judged)
    }

    /// Reads the body to its end, also when its judge has heard enough: a client that still writes
    /// would not read why.
    async fn receive(&self, mut body: Incoming, judge: mpsc::Sender<Bytes>) -> Result<(), Refusal> {
        let mut size = 0_u64;
        loop {
            let frame =
                tokio::time::timeout(PROGRESS, body.frame()).await.map_err(|_| Refusal {
                    status: 408,
                    message: "guard: the body took too long (G-86)".to_owned(),
                    rule: "G-86",
                })?;
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.map_err(|_| Refusal::malformed("the body broke off", "G-22"))?;
            let Ok(data) = frame.into_data() else { continue };
            size += data.len() as u64;
            if size > self.settings.limits.upload {
                return Err(Refusal {
                    status: 413,
                    message: "guard: the archive is too large (G-86)".to_owned(),
                    rule: "G-86",
                });
            }
            drop(judge.send(data).await);
        }
    }
}

/// The spooled file as a body.
pub(super) fn spooled(file: File) -> Body {
    let reader = ReaderStream::with_capacity(tokio::fs::File::from_std(file), PIECE);
    StreamBody::new(reader.map_ok(Frame::data).map_err(Broken::from)).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g_75_what_is_read_is_what_is_kept() {
        let (sender, pieces) = mpsc::channel(4);
        for piece in ["first ", "", "second"] {
            sender.blocking_send(Bytes::from_static(piece.as_bytes())).unwrap();
        }
        drop(sender);
        let file = tempfile::tempfile().unwrap();
        let mut spool = Spool { pieces, piece: Bytes::new(), file };
        let mut read = String::new();
        spool.read_to_string(&mut read).unwrap();
        let mut kept = String::new();
        spool.file.seek(SeekFrom::Start(0)).unwrap();
        spool.file.read_to_string(&mut kept).unwrap();
        assert_eq!((&*read, &*kept), ("first second", "first second"));
    }
}

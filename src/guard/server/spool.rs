//! An archive on its way from the client into a file without a name, read by its judge as it
//! comes (G-64, G-72): what is judged is what was written, and the engine gets it when the judge has
//! read it to its end.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    os::unix::fs::FileExt as _,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use rustix::fs::FallocateFlags;
use tokio::sync::mpsc;

use crate::guard::{refusal::Refusal, settings::GuardSettings};

use super::response::{BoxBody, BoxError};

/// How long the next piece may take (G-86).
const PROGRESS: Duration = Duration::from_mins(1);
/// How many pieces wait for the judge at most.
const WAITING: usize = 16;
/// How much of the file is sent at once.
const PIECE: usize = 256 << 10;
/// How much of the file is freed at once.
const FREED: u64 = 16 << 20;

/// The archive as it arrives: each byte is in the file before it is read.
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

/// Receives the client's archive while `judge` reads it. Returns the judgement and the file.
pub(super) async fn spool<T: Send + 'static>(
    body: Incoming,
    settings: &GuardSettings,
    judge: impl FnOnce(&mut Spool) -> Result<T, Refusal> + Send + 'static,
) -> Result<(T, File), Refusal> {
    let failed = |_| Refusal::failed(500, "the archive cannot be kept");
    let directory = settings.private.join("spool");
    let file = tempfile::tempfile_in(directory).map_err(failed)?;
    let (sender, pieces) = mpsc::channel(WAITING);
    let judged = tokio::task::spawn_blocking(move || {
        let mut spool = Spool { pieces, piece: Bytes::new(), file };
        let made = judge(&mut spool)?;
        Ok((made, spool.file))
    });
    let received = receive(body, settings.limits.upload, sender).await;
    let judged =
        judged.await.unwrap_or_else(|_| Err(Refusal::failed(500, "the archive is unreadable")));
    // Of an archive that broke off, the error of receiving it counts, not the judgement.
    received.and(judged)
}

/// Reads the body to its end, even after its judge has refused it: a client that still writes does
/// not read the refusal.
async fn receive(mut body: Incoming, most: u64, judge: mpsc::Sender<Bytes>) -> Result<(), Refusal> {
    let mut size = 0_u64;
    loop {
        let frame = tokio::time::timeout(PROGRESS, body.frame()).await;
        let frame = frame.map_err(|_| Refusal::too_slow())?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|_| Refusal::malformed("the body broke off", "G-22"))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len() as u64;
        if size > most {
            return Err(Refusal::too_large("the archive", "G-86"));
        }
        drop(judge.send(data).await);
    }
}

/// The spooled file as a body. What was sent is freed: written back to the disk, it would keep the
/// engine from writing its own.
pub(super) fn spooled(file: File) -> BoxBody {
    let pieces = stream::try_unfold((file, 0), |(file, start)| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let count = file.read_at(&mut piece, start)?;
            piece.truncate(count);
            let end = start + count as u64;
            if end / FREED > start / FREED {
                free(&file, end / FREED * FREED - FREED);
            }
            io::Result::Ok((piece, file, end))
        });
        let (piece, file, end) = read.await.map_err(BoxError::from)??;
        let next = (!piece.is_empty()).then(|| (Frame::data(Bytes::from(piece)), (file, end)));
        Ok::<_, BoxError>(next)
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Gives [`FREED`] bytes of the file back, where its file system can.
fn free(file: &File, start: u64) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = rustix::fs::fallocate(file, hole, start, FREED) {
        tracing::debug!(%error, "cannot free the part of an archive that was sent");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

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
        let mut kept = [0; 12];
        spool.file.read_exact_at(&mut kept, 0).unwrap();
        assert_eq!((&*read, &kept), ("first second", b"first second"));
    }

    #[tokio::test]
    async fn g_75_what_is_kept_is_sent_and_then_freed() {
        let mut file = tempfile::tempfile().unwrap();
        let kept: Vec<u8> = (0_u32..10 << 20).flat_map(u32::to_le_bytes).collect();
        file.write_all(&kept).unwrap();
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        let all = blocks(&file);
        let watched = file.try_clone().unwrap();
        let mut body = spooled(file);
        let mut sent = 0;
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece == kept[sent..sent + piece.len()]);
            sent += piece.len();
        }
        assert_eq!(sent, kept.len());
        // Two of its two and a half times of what is freed at once.
        assert!(blocks(&watched) < all / 2, "{} of {all}", blocks(&watched));
    }
}

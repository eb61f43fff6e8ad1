//! The body of an engine's answer, read by whoever passes it on.
//!
//! Its connection is driven in the same task: between two tasks, each of the many small pieces of a
//! log would be a switch from one to the other and back. Pieces that are there at once are passed
//! on as one: each would be two system calls, and another process woken.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming};

use super::response::BoxError;

/// How much is passed on at once.
const PIECE: usize = 64 << 10;

/// What drives a connection; it ends when the connection does.
pub(super) type ConnectionDriver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

pub(super) struct EngineBody {
    body: Incoming,
    connection: Option<ConnectionDriver>,
    /// What is passed on next.
    gathered: BytesMut,
    ended: bool,
    /// Why it ended early, which is said after the last of it.
    broken: Option<BoxError>,
}

impl EngineBody {
    pub(super) fn new(body: Incoming, connection: Option<ConnectionDriver>) -> Self {
        Self { body, connection, gathered: BytesMut::new(), ended: false, broken: None }
    }

    /// The next piece as it came, and the connection driven until there is one.
    fn piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if let Poll::Ready(piece) = Pin::new(&mut self.body).poll_frame(context) {
                return Poll::Ready(piece.map(|piece| piece.map_err(BoxError::from)));
            }
            let Some(connection) = &mut self.connection else { return Poll::Pending };
            if connection.as_mut().poll(context).is_ready() {
                // The body reports an error of the connection, too.
                self.connection = None;
                continue;
            }
            return Pin::new(&mut self.body)
                .poll_frame(context)
                .map(|piece| piece.map(|piece| piece.map_err(BoxError::from)));
        }
    }
}

impl Body for EngineBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(self.broken.take().map(Err));
        }
        loop {
            match self.piece(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers are dropped (G-22).
                    let Ok(data) = frame.into_data() else { continue };
                    if self.gathered.is_empty() && data.len() >= PIECE / 2 {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    self.gathered.extend_from_slice(&data);
                    if self.gathered.len() < PIECE {
                        continue;
                    }
                }
                Poll::Pending if self.gathered.is_empty() => return Poll::Pending,
                Poll::Pending => {}
                Poll::Ready(end) => {
                    self.ended = true;
                    self.broken = end.and_then(Result::err);
                    if self.gathered.is_empty() {
                        return Poll::Ready(self.broken.take().map(Err));
                    }
                }
            }
            let gathered = self.gathered.split().freeze();
            return Poll::Ready(Some(Ok(Frame::data(gathered))));
        }
    }
}

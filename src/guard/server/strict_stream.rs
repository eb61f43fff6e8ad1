//! A client's connection that ends, with a 400, where [`Lexer`] finds something that could be read in
//! two ways.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::guard::parse::head::Lexer;

/// A connection whose bytes a [`Lexer`] reads first.
#[derive(Debug)]
pub(super) struct StrictStream<T> {
    inner: T,
    lexer: Lexer,
    /// The rest of the answer that is sent before the connection ends.
    last_answer: Option<Vec<u8>>,
}

impl<T> StrictStream<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, lexer: Lexer::default(), last_answer: None }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for StrictStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.last_answer.is_none() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
            let Err(violation) = this.lexer.feed(&buffer.filled()[before..]) else {
                return Poll::Ready(Ok(()));
            };
            buffer.set_filled(before);
            let body = format!("{{\"message\":\"guard: {violation} (G-21)\"}}\n");
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            this.last_answer = Some(answer.into_bytes());
        }
        // Written from here, because the server has no request that it could answer.
        while let Some(words) = this.last_answer.as_mut().filter(|words| !words.is_empty()) {
            let written = ready!(Pin::new(&mut this.inner).poll_write(context, words))?;
            if written == 0 {
                break;
            }
            words.drain(..written);
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a request was malformed")))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StrictStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

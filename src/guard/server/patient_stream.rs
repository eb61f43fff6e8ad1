//! A connection to the engine that is not woken by each write of the engine.
//!
//! The engine writes a log line by line, and each write would wake this process, which costs both
//! sides more than the line itself. While such a flood lasts, nothing listens to the socket: a timer
//! says when to read again.

use std::{
    io::{self, IoSlice},
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::Shutdown,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

/// How long the socket is not read while a flood lasts. Lines of usual length fill the socket's buffer (about
/// 270 writes) in 1 ms, and tokio's own clock has no shorter time.
const PAUSE: Duration = Duration::from_micros(200);
/// How much is read at once; all of it is overwritten with zeros first.
const READ: usize = 64 << 10;
/// Data that arrives within this time after the last is part of a flood.
const FAST: Duration = Duration::from_millis(1);
/// How many fast arrivals in a row are a flood.
const FLOOD: u32 = 8;

pub(super) struct PatientStream {
    socket: Arc<OwnedFd>,
    /// Tells when the socket can be read or written; `None` while a flood lasts.
    listening: Option<AsyncFd<Arc<OwnedFd>>>,
    /// A write waits for `listening`.
    is_write_waiting: bool,
    timer: Option<AsyncFd<Arc<OwnedFd>>>,
    is_pausing: bool,
    /// When the socket was last found empty.
    drained: Instant,
    /// How many times in a row more came within [`FAST`].
    fast: u32,
}

impl PatientStream {
    /// The connected socket, which does not block.
    pub(super) fn new(socket: impl Into<OwnedFd>) -> Self {
        Self {
            socket: Arc::new(socket.into()),
            listening: None,
            is_write_waiting: false,
            timer: None,
            is_pausing: false,
            drained: Instant::now(),
            fast: 0,
        }
    }

    fn listen(&mut self) -> io::Result<()> {
        if self.listening.is_none() {
            self.listening = Some(registered(self.socket.clone())?);
        }
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => {
                let timer = rustix::time::timerfd_create(
                    TimerfdClockId::Monotonic,
                    TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
                )?;
                none.insert(registered(Arc::new(timer))?)
            }
        };
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() },
        };
        rustix::time::timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        self.listening = None;
        self.is_pausing = true;
        Ok(())
    }

    fn poll_pause(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (true, Some(timer)) = (self.is_pausing, &self.timer) else {
            return Poll::Ready(Ok(()));
        };
        loop {
            let mut rung = ready!(timer.poll_read_ready(context))?;
            match rustix::io::read(timer.get_ref(), &mut [0_u8; 8]) {
                Ok(_) => break,
                Err(Errno::AGAIN) => rung.clear_ready(),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        self.is_pausing = false;
        Poll::Ready(Ok(()))
    }

    /// The socket is empty: waits for more by the timer or by listening.
    fn rest(&mut self, has_paused: bool) -> io::Result<()> {
        let now = Instant::now();
        let is_fast = !has_paused && now.duration_since(self.drained) <= FAST;
        self.drained = now;
        self.fast = if is_fast { self.fast + 1 } else { 0 };
        if self.fast >= FLOOD && !self.is_write_waiting { self.pause() } else { self.listen() }
    }

    fn poll_write_by(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&OwnedFd) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let ready = match &self.listening {
                Some(listening) if self.is_write_waiting => {
                    Some(ready!(listening.poll_write_ready(context))?)
                }
                _ => None,
            };
            match write(&self.socket) {
                Err(Errno::AGAIN) => {
                    if let Some(mut ready) = ready {
                        ready.clear_ready();
                    }
                    // From here on no pause delays the write.
                    self.listen()?;
                    self.is_write_waiting = true;
                }
                Err(Errno::INTR) => {}
                written => {
                    self.is_write_waiting = false;
                    return Poll::Ready(written.map_err(Into::into));
                }
            }
        }
    }
}

/// Registers the descriptor with the runtime.
#[expect(
    deprecated,
    reason = "what stands for it is unsafe, as not every type keeps its descriptor open"
)]
fn registered(descriptor: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    AsyncFd::new(descriptor)
}

impl AsyncRead for PatientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let has_paused = self.is_pausing;
            ready!(self.poll_pause(context))?;
            let this = &mut *self;
            let heard = match &this.listening {
                Some(listening) => Some(ready!(listening.poll_read_ready(context))?),
                None => None,
            };
            let most = buffer.remaining().min(READ);
            match rustix::io::read(&this.socket, buffer.initialize_unfilled_to(most)) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => {
                    if let Some(mut heard) = heard {
                        heard.clear_ready();
                    }
                    this.rest(has_paused)?;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for PatientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(context, |socket| rustix::io::write(socket, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(context, |socket| rustix::io::writev(socket, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An engine that has closed first needs no end of ours.
        match rustix::net::shutdown(&self.socket, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixStream as Pair};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (Pair, PatientStream) {
        let (engine, here) = Pair::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        (engine, PatientStream::new(here))
    }

    #[tokio::test]
    async fn what_comes_in_many_small_writes_is_read_whole_and_in_few_reads() {
        let (mut engine, mut here) = pair();
        let lines = 50_000;
        let writer = std::thread::spawn(move || {
            for line in 0..lines {
                writeln!(engine, "{line:07}").unwrap();
            }
        });
        let mut all = Vec::new();
        let mut reads = 0;
        let mut has_paused = false;
        while here.read_buf(&mut all).await.unwrap() > 0 {
            reads += 1;
            has_paused |= here.timer.is_some();
            all.reserve(64 << 10);
        }
        writer.join().unwrap();
        let expected = (0..lines).flat_map(|line| format!("{line:07}\n").into_bytes());
        assert!(all.iter().copied().eq(expected));
        assert!(has_paused && reads < lines, "{reads}");
    }

    #[tokio::test]
    async fn a_question_and_its_answer_wait_for_no_timer() {
        let (engine, mut here) = pair();
        engine.set_nonblocking(true).unwrap();
        let mut engine = tokio::net::UnixStream::from_std(engine).unwrap();
        for _ in 0..4 {
            here.write_all(b"ask").await.unwrap();
            engine.read_exact(&mut [0; 3]).await.unwrap();
            engine.write_all(b"answer").await.unwrap();
            here.read_exact(&mut [0; 6]).await.unwrap();
        }
        assert!(here.timer.is_none());
        drop(engine);
        assert_eq!(here.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn both_ways_go_on_while_either_is_full() {
        let (engine, here) = pair();
        let size = 8 << 20;
        let mut reader = engine.try_clone().unwrap();
        let threads = [
            std::thread::spawn(move || {
                let mut engine = engine;
                for _ in 0..size / 64 {
                    engine.write_all(&[7; 64]).unwrap();
                }
                size
            }),
            std::thread::spawn(move || {
                usize::try_from(io::copy(&mut reader, &mut io::sink()).unwrap()).unwrap()
            }),
        ];
        let (mut from, mut to) = tokio::io::split(here);
        let mut taken = 0;
        let mut buffer = vec![0; 64 << 10];
        tokio::join!(
            async {
                to.write_all(&vec![1; size]).await.unwrap();
                to.shutdown().await.unwrap();
            },
            async {
                while taken < size {
                    taken += from.read(&mut buffer).await.unwrap();
                }
            }
        );
        assert_eq!(taken, size);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), size);
        }
    }
}

//! Reports a job to the user of this machine: its trace goes to the terminal while it runs, and the
//! user's wish to stop goes to the job.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::event::Event;
use crate::{
    runner::{Acceptance, Conclusion, NotDelivered, Reporter, StopRequest, StreamOptions},
    trace::Trace,
};

/// Bytes of a trace that one event has at most.
const PIECE: usize = 64 << 10;

/// Reports one job.
pub(crate) struct LocalReporter {
    /// Its index in the pipeline.
    job: usize,
    events: mpsc::Sender<Event>,
    /// Cancelled when the user wants the pipeline to stop.
    stop: CancellationToken,
    /// Bytes of the trace that were sent to the terminal.
    sent: AtomicU64,
    conclusion: OnceLock<Conclusion>,
}

impl LocalReporter {
    pub(crate) fn new(job: usize, events: mpsc::Sender<Event>, stop: CancellationToken) -> Self {
        Self { job, events, stop, sent: AtomicU64::new(0), conclusion: OnceLock::new() }
    }

    /// How the job ended; `None` while it runs.
    pub(crate) fn conclusion(&self) -> Option<Conclusion> {
        self.conclusion.get().cloned()
    }

    /// Sends what there is of the trace. Waits while the terminal is behind; without a terminal the
    /// trace is dropped. Cancel-safe: what was not sent is sent by the next call.
    async fn send(&self, trace: &Trace) -> io::Result<()> {
        loop {
            let sent = self.sent.load(Ordering::Relaxed);
            if sent >= trace.size() {
                return Ok(());
            }
            let bytes = trace.read_chunk(sent, PIECE).await?;
            let permit = self.events.reserve().await;
            self.sent.store(sent + bytes.len() as u64, Ordering::Relaxed);
            if let Ok(permit) = permit {
                permit.send(Event::Trace { job: self.job, bytes });
            }
        }
    }

    async fn follow(&self, trace: &Trace) {
        loop {
            trace.longer_than(self.sent.load(Ordering::Relaxed)).await;
            if let Err(error) = self.send(trace).await {
                tracing::warn!(%error, "cannot read the trace of the job");
                return;
            }
        }
    }
}

impl Reporter for LocalReporter {
    fn accept(&self) -> BoxFuture<'_, Acceptance> {
        std::future::ready(Acceptance::Run).boxed()
    }

    fn stream(
        &self,
        trace: Trace,
        _options: StreamOptions,
        requests: watch::Sender<StopRequest>,
        done: CancellationToken,
    ) -> BoxFuture<'_, ()> {
        async move {
            let request_stop = async {
                self.stop.cancelled().await;
                requests.send_replace(StopRequest::Cancel);
            };
            let both = async { tokio::join!(self.follow(&trace), request_stop) };
            done.run_until_cancelled(both).await;
        }
        .boxed()
    }

    fn finish<'a>(
        &'a self,
        trace: &'a Trace,
        conclusion: &'a Conclusion,
    ) -> BoxFuture<'a, Result<(), NotDelivered>> {
        async {
            trace.close();
            let sent = self.send(trace).await;
            // Each job is finished once.
            let _ = self.conclusion.set(conclusion.clone());
            sent.map_err(|error| NotDelivered(error.into()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Masks, Settings, Source, Stream};

    fn trace(directory: &tempfile::TempDir) -> Trace {
        let settings =
            Settings { limit: 0, timestamps: false, sections: false, masks: Masks::default() };
        Trace::create(&directory.path().join("trace"), settings).unwrap()
    }

    async fn next(events: &mut mpsc::Receiver<Event>) -> String {
        match events.recv().await {
            Some(Event::Trace { job: 3, bytes }) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_trace_is_shown_while_it_grows_and_its_rest_before_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let trace = trace(&directory);
        let (sender, mut events) = mpsc::channel(1);
        let reporter = LocalReporter::new(3, sender, CancellationToken::new());
        assert_eq!(reporter.accept().await, Acceptance::Run);
        let done = CancellationToken::new();
        let (requests, requested) = watch::channel(StopRequest::None);
        let options = StreamOptions::default();
        let streaming = reporter.stream(trace.clone(), options, requests, done.clone());
        let mut out = trace.writer(Source::Job, Stream::Out);
        tokio::join!(streaming, async {
            out.write(b"one\n");
            assert_eq!(next(&mut events).await, "one\n");
            out.write(b"two\n");
            assert_eq!(next(&mut events).await, "two\n");
            done.cancel();
        });
        assert_eq!((reporter.conclusion(), *requested.borrow()), (None, StopRequest::None));
        out.write(b"three\n");
        let (finished, last) =
            tokio::join!(reporter.finish(&trace, &Conclusion::Success), next(&mut events));
        assert!(finished.is_ok());
        assert_eq!((last.as_str(), reporter.conclusion()), ("three\n", Some(Conclusion::Success)));
    }

    #[tokio::test]
    async fn the_users_wish_to_stop_goes_to_the_job_even_when_the_terminal_is_behind() {
        let directory = tempfile::tempdir().unwrap();
        let trace = trace(&directory);
        let (sender, events) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let reporter = LocalReporter::new(3, sender, stop.clone());
        let done = CancellationToken::new();
        let (requests, mut requested) = watch::channel(StopRequest::None);
        trace.writer(Source::Job, Stream::Out).write(&vec![b'x'; 3 * PIECE]);
        let options = StreamOptions::default();
        tokio::join!(reporter.stream(trace.clone(), options, requests, done.clone()), async {
            stop.cancel();
            requested.wait_for(|request| *request == StopRequest::Cancel).await.unwrap();
            done.cancel();
        });
        // A terminal that is gone holds nobody up.
        drop(events);
        assert!(reporter.finish(&trace, &Conclusion::Success).await.is_ok());
    }
}

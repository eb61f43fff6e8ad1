//! Sends the trace while the job runs, keeps the job alive at the server while there is nothing to
//! send, and learns from its replies that the job is to stop.
//!
//! Unlike GitLab Runner's, it wakes when there is output, not when an interval has passed: the
//! first lines are at the server a moment after they were written, and a silent job costs nothing
//! but the request that keeps it alive.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    delivery::{CHUNK, Delivery, Interval},
    server::JobServer,
};
use crate::{
    gitlab::api::{PatchOutcome, RemoteState, UpdateOutcome, wire::JobState},
    runner::StopRequest,
    trace::Trace,
};

/// How long a job may go without a request.
const SILENCE: Duration = Duration::from_secs(30);
/// How long output is gathered before it is sent, if it could be sent at once.
const GATHER: Duration = Duration::from_millis(200);

/// Longest silence that [`KeepAlive::Dynamic`] allows.
const LONGEST_SILENCE: Duration = Duration::from_mins(30);

/// How long a job without output may go without a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Always 30 seconds.
    Fixed,
    /// Four of the server's intervals (`FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL`).
    Dynamic,
}

impl KeepAlive {
    fn silence(self, interval: Duration) -> Duration {
        match self {
            Self::Fixed => SILENCE,
            Self::Dynamic => (interval * 4).clamp(SILENCE, LONGEST_SILENCE),
        }
    }
}

/// Sends `trace` to `server` until `stop`, which is checked between requests, or until the server
/// refuses the job. `remote` is sent each request to stop once, and never a weaker one later.
///
/// Not safe to drop while it runs: what a request had sent would be sent again.
pub async fn pump(
    trace: Trace,
    server: &impl JobServer,
    delivery: Delivery,
    remote: watch::Sender<StopRequest>,
    keep_alive: KeepAlive,
    stop: CancellationToken,
) {
    let now = Instant::now();
    let interval = Interval::new();
    let mut pump = Pump {
        interval,
        keep_alive,
        sendable: now,
        silent_until: now + interval.get(),
        trace,
        server,
        delivery,
        remote,
    };
    while let Some(work) = stop.run_until_cancelled(pump.work()).await {
        let goes_on = match work {
            Work::Send => pump.send().await,
            Work::KeepAlive => pump.send_keep_alive().await,
        };
        if !goes_on {
            return;
        }
    }
}
enum Work {
    Send,
    KeepAlive,
}

struct Pump<'a, S> {
    trace: Trace,
    server: &'a S,
    delivery: Delivery,
    remote: watch::Sender<StopRequest>,
    interval: Interval,
    keep_alive: KeepAlive,
    /// No request before this.
    sendable: Instant,
    /// Without output, one then.
    silent_until: Instant,
}

impl<S: JobServer> Pump<'_, S> {
    /// Waits for something to do.
    async fn work(&self) -> Work {
        tokio::select! {
            biased;
            () = self.trace.longer_than(self.delivery.offset()) => {}
            () = sleep_until(self.silent_until.max(self.sendable)) => return Work::KeepAlive,
        }
        sleep_until(self.sendable.max(Instant::now() + GATHER)).await;
        Work::Send
    }

    /// Sends a chunk; whether to go on.
    async fn send(&mut self) -> bool {
        let start = self.delivery.offset();
        let chunk = match self.trace.read_chunk(start, CHUNK).await {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::warn!(%error, "cannot read the trace's file");
                self.delay(None);
                return true;
            }
        };
        let end = start + chunk.len() as u64;
        let reply = self.server.patch_trace(start, chunk).await;
        self.delay(reply.interval);
        let goes_on = self.pass_on(reply.remote, reply.outcome == PatchOutcome::Abort);
        match reply.outcome {
            PatchOutcome::Accepted => self.arrived(end),
            PatchOutcome::Mismatch { next } => self.arrived(next),
            PatchOutcome::NotFound | PatchOutcome::Abort | PatchOutcome::Failed => {}
        }
        goes_on
    }

    /// Tells the server that the job is alive; whether to go on.
    async fn send_keep_alive(&mut self) -> bool {
        let output = self.trace.digest().into();
        let reply = self.server.update(JobState::Running, None, None, output).await;
        self.delay(reply.interval);
        if reply.outcome == UpdateOutcome::Success {
            self.reset_silence();
        }
        self.pass_on(reply.remote, reply.outcome == UpdateOutcome::Abort)
    }

    fn delay(&mut self, asked: Option<Duration>) {
        self.interval.update(asked);
        self.sendable = Instant::now() + self.interval.get();
    }

    fn arrived(&mut self, offset: u64) {
        self.delivery.set(offset);
        self.reset_silence();
    }

    /// The server has just learned that the job is alive.
    fn reset_silence(&mut self) {
        self.silent_until = Instant::now() + self.keep_alive.silence(self.interval.get());
    }

    /// Passes on a request to stop; whether to go on.
    fn pass_on(&mut self, state: Option<RemoteState>, refused: bool) -> bool {
        let request = match state {
            Some(RemoteState::Canceled) => StopRequest::Abort,
            _ if refused => StopRequest::Abort,
            Some(RemoteState::Canceling) => StopRequest::Cancel,
            None => StopRequest::None,
        };
        self.remote.send_if_modified(|known| {
            let more = *known < request;
            *known = request.max(*known);
            more
        });
        request != StopRequest::Abort
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::{
        super::fake::{Asked, Fake, every, patch, patch_with, update},
        *,
    };
    use crate::{
        gitlab::api::{PatchReply, UpdateReply},
        trace::{Masks, Source, Stream, Writer, testing::plain},
    };

    /// A job: what it does, while the pump runs; then the pump is stopped.
    struct Job {
        server: Fake,
        trace: Trace,
        delivery: Delivery,
        remote: watch::Receiver<StopRequest>,
    }

    async fn job<F: Future<Output = ()>>(
        patches: impl IntoIterator<Item = PatchReply>,
        updates: impl IntoIterator<Item = UpdateReply>,
        life: impl FnOnce(Writer) -> F,
    ) -> Job {
        let (_dir, trace) = plain(Masks::default());
        let server = Fake::new(patches, updates);
        let (delivery, stop) = (Delivery::default(), CancellationToken::new());
        let (sender, remote) = watch::channel(StopRequest::None);
        let writer = trace.writer(Source::Job, Stream::Out);
        tokio::join!(
            pump(trace.clone(), &server, delivery.clone(), sender, KeepAlive::Fixed, stop.clone()),
            async {
                life(writer).await;
                stop.cancel();
            }
        );
        Job { server, trace, delivery, remote }
    }

    async fn seconds(tenths: u64) {
        sleep(Duration::from_millis(tenths * 100)).await;
    }

    fn at<'a>(list: impl IntoIterator<Item = (u128, &'a str)>) -> Vec<(u128, String)> {
        list.into_iter().map(|(at, what)| (at, what.to_owned())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn api_96_ranges_follow_each_other_and_the_first_is_sent_at_once() {
        let job = job([], [], |mut out| async move {
            out.write(b"1234");
            seconds(7).await;
            out.write(b"5");
            seconds(10).await;
            out.write(b"6789");
            seconds(20).await;
        })
        .await;
        assert_eq!(job.server.heard_at(), at([(2, "0-3"), (12, "4-4"), (22, "5-8")]));
        assert_eq!(job.delivery.offset(), 9);
        assert_eq!(*job.remote.borrow(), StopRequest::None);
    }

    #[test]
    fn the_silence_may_follow_the_servers_interval_within_bounds() {
        let dynamic = |seconds| KeepAlive::Dynamic.silence(Duration::from_secs(seconds)).as_secs();
        assert_eq!((dynamic(3), dynamic(60), dynamic(900)), (30, 240, 1800));
        assert_eq!(KeepAlive::Fixed.silence(Duration::from_mins(1)).as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn api_98_one_chunk_of_a_mebibyte_a_tick() {
        let job = job([], [], |mut out| async move {
            out.write(&vec![b'x'; 3 << 20]);
            seconds(15).await;
        })
        .await;
        assert_eq!(job.server.heard_at(), at([(2, "0-1048575"), (12, "1048576-2097151")]));
        assert_eq!(job.delivery.offset(), 2 << 20);
        assert_eq!(job.trace.size(), 3 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn api_99_api_100_after_a_mismatch_the_server_says_where_to_go_on() {
        let mismatch = |next| patch(PatchOutcome::Mismatch { next });
        let job = job([mismatch(10), mismatch(0)], [], |mut out| async move {
            out.write(b"0123456789abcdef");
            seconds(30).await;
        })
        .await;
        assert_eq!(job.server.heard(), ["0-15", "10-15", "0-15"]);
    }

    #[tokio::test(start_paused = true)]
    async fn api_101_api_106_api_112_what_was_not_taken_is_sent_again() {
        let failed = PatchReply { status: None, ..patch(PatchOutcome::Failed) };
        let answers = [patch(PatchOutcome::Failed), patch(PatchOutcome::NotFound), failed];
        let job = job(answers, [], |mut out| async move {
            out.write(b"1234");
            seconds(50).await;
        })
        .await;
        let all = [(2, "0-3"), (12, "0-3"), (22, "0-3"), (32, "0-3")];
        assert_eq!(job.server.heard_at(), at(all));
        assert_eq!(*job.remote.borrow(), StopRequest::None);
    }

    #[tokio::test(start_paused = true)]
    async fn api_102_api_105_the_server_sets_the_interval_even_with_a_mismatch() {
        let answers =
            [every(10, PatchOutcome::Accepted), every(5, PatchOutcome::Mismatch { next: 1 })];
        let job = job(answers, [], |mut out| async move {
            for _ in 0..200 {
                out.write(b"x");
                seconds(1).await;
            }
        })
        .await;
        let at: Vec<_> = job.server.heard_at().into_iter().map(|(at, _)| at).collect();
        assert_eq!(at, [2, 102, 152]);
    }

    #[tokio::test(start_paused = true)]
    async fn api_107_api_108_a_refusal_aborts_and_ends_the_pump() {
        for answer in [patch(PatchOutcome::Abort), patch_with(RemoteState::Canceled)] {
            let job = job([answer], [], |mut out| async move {
                out.write(b"1234");
                seconds(10).await;
                out.write(b"5");
                seconds(1000).await;
            })
            .await;
            assert_eq!(job.server.heard(), ["0-3"]);
            assert_eq!(*job.remote.borrow(), StopRequest::Abort);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_keep_alive_that_is_refused_aborts_too() {
        let job = job([], [update(UpdateOutcome::Abort)], |_out| seconds(1000)).await;
        assert_eq!(job.server.heard(), ["Running"]);
        assert_eq!(*job.remote.borrow(), StopRequest::Abort);
    }

    #[tokio::test(start_paused = true)]
    async fn api_110_a_silent_job_is_kept_alive() {
        let job = job([], [], |_out| seconds(700)).await;
        let all = [(10, "Running"), (310, "Running"), (610, "Running")];
        assert_eq!(job.server.heard_at(), at(all));
    }

    #[tokio::test(start_paused = true)]
    async fn api_110_a_keep_alive_that_failed_is_repeated_and_says_how_long_the_trace_is() {
        let job = job([], [update(UpdateOutcome::Failed)], |mut out| async move {
            out.write(b"123456789");
            seconds(330).await;
        })
        .await;
        let all = [(2, "0-8"), (302, "Running"), (312, "Running")];
        assert_eq!(job.server.heard_at(), at(all));
        let Asked::Update(_, None, None, output) = &job.server.asked()[2] else { panic!() };
        assert_eq!(output.checksum.as_deref(), Some("crc32:cbf43926"));
        assert_eq!(output.bytesize, Some(9));
    }

    #[tokio::test(start_paused = true)]
    async fn api_111_steady_output_needs_no_keep_alive() {
        let job = job([], [], |mut out| async move {
            for _ in 0..700 {
                out.write(b"x");
                seconds(1).await;
            }
        })
        .await;
        let heard = job.server.heard();
        assert!(heard.len() >= 69, "{}", heard.len());
        assert!(heard.iter().all(|what| what != "Running"));
    }

    #[tokio::test(start_paused = true)]
    async fn output_after_silence_is_sent_at_once() {
        let job = job([], [], |mut out| async move {
            seconds(155).await;
            out.write(b"x");
            seconds(10).await;
        })
        .await;
        assert_eq!(job.server.heard_at(), at([(10, "Running"), (157, "0-0")]));
    }

    #[tokio::test(start_paused = true)]
    async fn api_116_a_cancel_is_told_once_and_the_log_goes_on() {
        let answers = [RemoteState::Canceling; 3].map(patch_with);
        let (_dir, trace) = plain(Masks::default());
        let (server, stop) = (Fake::new(answers, []), CancellationToken::new());
        let (sender, mut remote) = watch::channel(StopRequest::None);
        let mut out = trace.writer(Source::Job, Stream::Out);
        tokio::join!(
            pump(trace, &server, Delivery::default(), sender, KeepAlive::Fixed, stop.clone()),
            async {
                out.write(b"x");
                remote.changed().await.unwrap();
                assert_eq!(*remote.borrow_and_update(), StopRequest::Cancel);
                for _ in 0..50 {
                    out.write(b"x");
                    seconds(1).await;
                }
                assert!(!remote.has_changed().unwrap());
                stop.cancel();
            }
        );
        assert!(server.heard().len() > 4);
    }

    #[tokio::test(start_paused = true)]
    async fn api_117_a_cancel_becomes_an_abort() {
        let answers = [patch_with(RemoteState::Canceling), patch_with(RemoteState::Canceled)];
        let job = job(answers, [], |mut out| async move {
            for _ in 0..50 {
                out.write(b"x");
                seconds(1).await;
            }
        })
        .await;
        assert_eq!(job.server.heard().len(), 2);
        assert_eq!(*job.remote.borrow(), StopRequest::Abort);
    }
}

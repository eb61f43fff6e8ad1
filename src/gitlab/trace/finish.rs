//! The end of a job at the server: the rest of its trace, then its final state. Both are retried for
//! as long as the limits allow; the final state is not sent before the trace has arrived
//! (docs/compatibility.md, "Job updates").

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    delivery::{CHUNK, Delivery, Interval},
    server::JobServer,
};
use crate::{
    base::backoff::Backoff,
    gitlab::api::{PatchOutcome, UpdateOutcome, wire::JobState},
    trace::Trace,
};

/// Passes when the setting is below 1 (GitLab Runner: `job_status_final_update_retry_limit`).
pub const DEFAULT_PASSES: u32 = 10;
/// Pause after the first pass that failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// How a job ended, as `PUT /jobs/:id` says it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Final {
    /// `Success` or `Failed`.
    pub state: JobState,
    /// Why it failed, already one that the server knows; left out of a success.
    pub reason: Option<String>,
    /// The script's; left out when 0.
    pub exit_code: Option<i32>,
}

/// How long to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Passes; 0 means [`DEFAULT_PASSES`].
    pub passes: u32,
    /// When to give up whatever the server replies, such as when the job's token expires.
    pub until: Option<Instant>,
}

/// What a pass failed at; the status is none if there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A piece of the trace was not taken.
    #[error("sending the trace failed ({})", Answer(*.0))]
    Trace(Option<u16>),
    /// The final state was not taken.
    #[error("the update failed ({})", Answer(*.0))]
    Update(Option<u16>),
}

/// A status in words.
struct Answer(Option<u16>);

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(status) => write!(f, "status {status}"),
            None => f.write_str("no answer"),
        }
    }
}

/// The server does not know how the job ended.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Every pass failed.
    #[error("final state not delivered in {passes} passes")]
    Exhausted {
        /// Passes that were made.
        passes: u32,
        /// What the last pass failed at.
        source: Failure,
    },
    /// The pauses that the server asked for would have ended too late.
    #[error("final state not taken before the time was up")]
    Expired,
}

/// Closes `trace`, sends what `delivery` says is missing, then `end`. A refusal by the server
/// (403, 404 or a job that has ended) counts as delivered: the server knows that the job is over.
///
/// The pump must have ended. Dropping this gives up.
pub async fn finish(
    trace: &Trace,
    server: &impl JobServer,
    delivery: &Delivery,
    end: &Final,
    limits: Limits,
) -> Result<(), FinishError> {
    trace.close();
    let passes = if limits.passes == 0 { DEFAULT_PASSES } else { limits.passes };
    let policy = Backoff { attempts: passes, first: FIRST_PAUSE, longest: LONGEST_PAUSE };
    let mut pauses = policy.pauses();
    loop {
        let mut delivering =
            Pass { trace, server, delivery, end, until: limits.until, interval: Interval::new() };
        match delivering.run().await {
            Ok(()) => return Ok(()),
            Err(PassError::Expired) => return Err(FinishError::Expired),
            Err(PassError::Failed(source)) => {
                let Some(pause) = pauses.next() else {
                    return Err(FinishError::Exhausted { passes, source });
                };
                tracing::debug!(error = %source, ?pause, "final state not delivered yet");
                wait(pause, limits.until).await?;
            }
        }
    }
}

/// How a pass ended without the server knowing the final state.
enum PassError {
    /// Another pass may succeed.
    Failed(Failure),
    /// There is no time for more.
    Expired,
}

impl From<Expired> for PassError {
    fn from(Expired: Expired) -> Self {
        Self::Expired
    }
}

impl From<Expired> for FinishError {
    fn from(Expired: Expired) -> Self {
        Self::Expired
    }
}

/// A pause would have ended after [`Limits::until`].
struct Expired;

/// Waits, unless that would be too long.
async fn wait(pause: Duration, until: Option<Instant>) -> Result<(), Expired> {
    if until.is_some_and(|until| Instant::now() + pause > until) {
        return Err(Expired);
    }
    sleep(pause).await;
    Ok(())
}

/// One attempt to deliver the rest of the trace and the final state.
struct Pass<'a, S> {
    trace: &'a Trace,
    server: &'a S,
    delivery: &'a Delivery,
    end: &'a Final,
    until: Option<Instant>,
    interval: Interval,
}

impl<S: JobServer> Pass<'_, S> {
    /// Until the server has the final state, or something fails.
    async fn run(&mut self) -> Result<(), PassError> {
        loop {
            self.send_trace().await?;
            let failed = self.end.state == JobState::Failed;
            let reason = self.end.reason.clone().filter(|reason| failed && !reason.is_empty());
            let exit_code = self.end.exit_code.filter(|&code| code != 0);
            let output = self.trace.digest().into();
            let reply = self.server.update(self.end.state, reason, exit_code, output).await;
            self.interval.update(reply.interval);
            match reply.outcome {
                UpdateOutcome::Success | UpdateOutcome::Abort => return Ok(()),
                UpdateOutcome::Accepted => self.wait().await?,
                UpdateOutcome::TraceInvalid => {
                    self.delivery.set(0);
                    self.wait().await?;
                }
                UpdateOutcome::Failed => {
                    self.wait().await?;
                    return Err(PassError::Failed(Failure::Update(reply.status)));
                }
            }
        }
    }

    /// Until the server has the trace, or will not have it. A server that claims to have more than
    /// there is has all of it: GitLab Runner would never say the final state then.
    async fn send_trace(&mut self) -> Result<(), PassError> {
        while self.delivery.offset() < self.trace.size() {
            let start = self.delivery.offset();
            let chunk = match self.trace.read_chunk(start, CHUNK).await {
                Ok(chunk) => chunk,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the trace's file: the rest is not sent");
                    break;
                }
            };
            let end = start + chunk.len() as u64;
            let reply = self.server.patch_trace(start, chunk).await;
            self.interval.update(reply.interval);
            match reply.outcome {
                PatchOutcome::Accepted => self.delivery.set(end),
                PatchOutcome::Mismatch { next } => {
                    self.delivery.set(next);
                    self.wait().await?;
                }
                PatchOutcome::NotFound | PatchOutcome::Abort => break,
                PatchOutcome::Failed => {
                    self.wait().await?;
                    return Err(PassError::Failed(Failure::Trace(reply.status)));
                }
            }
        }
        Ok(())
    }

    async fn wait(&self) -> Result<(), Expired> {
        wait(self.interval.get(), self.until).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::fake::{Asked, Fake, patch, update},
        *,
    };
    use crate::{
        gitlab::api::UpdateReply,
        trace::{Masks, Source, Stream, testing::plain},
    };

    const SUCCESS: Final = Final { state: JobState::Success, reason: None, exit_code: None };

    fn limits(passes: u32) -> Limits {
        Limits { passes, until: None }
    }

    async fn finished(
        text: &[u8],
        server: &Fake,
        sent: u64,
        end: &Final,
        limits: Limits,
    ) -> Result<(), FinishError> {
        let (_dir, trace) = plain(Masks::default());
        let mut out = trace.writer(Source::Job, Stream::Out);
        out.write(text);
        finish(&trace, server, &Delivery::starting_at(sent), end, limits).await
    }

    #[tokio::test(start_paused = true)]
    async fn api_98_the_rest_is_sent_back_to_back() {
        let server = Fake::new([], []);
        let text = vec![b'x'; (3 << 20) - 1];
        finished(&text, &server, 1 << 20, &SUCCESS, limits(0)).await.unwrap();
        let all = ["1048576-2097151", "2097152-3145726", "Success"];
        assert_eq!(server.heard_at(), all.map(|what| (0, what.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn api_124_api_126_a_success_has_the_whole_trace_its_sum_and_nothing_else() {
        let server = Fake::new([], []);
        let end = Final { reason: Some("x".into()), exit_code: Some(0), ..SUCCESS };
        finished(b"123456789", &server, 0, &end, limits(0)).await.unwrap();
        let output = crate::gitlab::api::wire::TraceOutput {
            checksum: Some("crc32:cbf43926".into()),
            bytesize: Some(9),
        };
        assert_eq!(
            server.asked(),
            [
                Asked::Patch("0-8".into(), "123456789".into()),
                Asked::Update(JobState::Success, None, None, output)
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn api_125_a_failure_has_reason_and_exit_code() {
        let server = Fake::new([], []);
        let end = Final {
            state: JobState::Failed,
            reason: Some("script_failure".into()),
            exit_code: Some(2),
        };
        finished(b"", &server, 0, &end, limits(0)).await.unwrap();
        let asked = server.asked();
        let [Asked::Update(JobState::Failed, Some(reason), Some(2), _)] = &asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!(reason, "script_failure");
    }

    #[tokio::test(start_paused = true)]
    async fn api_127_an_update_that_is_not_completed_is_repeated() {
        let later = UpdateReply {
            interval: Some(Duration::from_secs(1)),
            ..update(UpdateOutcome::Accepted)
        };
        let server = Fake::new([], vec![later; 3]);
        finished(b"1234", &server, 4, &SUCCESS, limits(0)).await.unwrap();
        assert_eq!(server.heard_at(), [0, 10, 20, 30].map(|at| (at, "Success".to_owned())));
        assert!(server.asked().windows(2).all(|two| two[0] == two[1]));
    }

    #[tokio::test(start_paused = true)]
    async fn api_128_a_trace_that_is_not_valid_is_sent_again() {
        let server = Fake::new([], [update(UpdateOutcome::TraceInvalid)]);
        finished(b"1234", &server, 4, &SUCCESS, limits(0)).await.unwrap();
        assert_eq!(server.heard(), ["Success", "0-3", "Success"]);
    }

    #[tokio::test(start_paused = true)]
    async fn api_118_api_129_a_refusal_is_an_end() {
        let server = Fake::new([patch(PatchOutcome::Abort)], [update(UpdateOutcome::Abort)]);
        finished(b"1234", &server, 0, &SUCCESS, limits(0)).await.unwrap();
        assert_eq!(server.heard(), ["0-3", "Success"]);
    }

    #[tokio::test(start_paused = true)]
    async fn api_130_failed_updates_are_repeated_ever_more_slowly_then_given_up() {
        let server = Fake::new([], vec![update(UpdateOutcome::Failed); 20]);
        let error = finished(b"", &server, 0, &SUCCESS, limits(0)).await.unwrap_err();
        let FinishError::Exhausted { passes: 10, source } = &error else { panic!("{error}") };
        assert_eq!(source.to_string(), "the update failed (status 500)");
        let at: Vec<_> = server.heard_at().into_iter().map(|(at, _)| at).collect();
        assert_eq!(at, [0, 20, 50, 100, 190, 360, 690, 1340, 2630, 5200]);
    }

    #[tokio::test(start_paused = true)]
    async fn api_131_without_the_trace_the_final_state_is_not_said() {
        let server = Fake::new([patch(PatchOutcome::Failed)], []);
        finished(b"1234", &server, 0, &SUCCESS, limits(2)).await.unwrap();
        assert_eq!(server.heard(), ["0-3", "0-3", "Success"]);
        let server = Fake::new(vec![patch(PatchOutcome::Failed); 2], []);
        let error = finished(b"1234", &server, 0, &SUCCESS, limits(2)).await.unwrap_err();
        assert!(matches!(
            error,
            FinishError::Exhausted { passes: 2, source: Failure::Trace(Some(400)) }
        ));
        assert_eq!(server.heard(), ["0-3", "0-3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn api_132_a_trace_that_the_server_does_not_know_is_left() {
        let server = Fake::new([patch(PatchOutcome::NotFound)], []);
        finished(b"1234", &server, 0, &SUCCESS, limits(0)).await.unwrap();
        assert_eq!(server.heard(), ["0-3", "Success"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_claims_more_than_there_is_gets_the_final_state() {
        let server = Fake::new([patch(PatchOutcome::Mismatch { next: 100 })], []);
        finished(b"1234", &server, 0, &SUCCESS, limits(1)).await.unwrap();
        assert_eq!(server.heard_at(), [(0, "0-3".to_owned()), (10, "Success".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_completed_ends_when_the_time_is_up() {
        let server = Fake::new([], vec![update(UpdateOutcome::Accepted); 1000]);
        let until = Some(Instant::now() + Duration::from_millis(5500));
        let error = finished(b"", &server, 0, &SUCCESS, Limits { passes: 0, until }).await;
        assert!(matches!(error, Err(FinishError::Expired)));
        assert_eq!(server.heard().len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn api_135_an_empty_trace_has_a_checksum_and_no_size() {
        let server = Fake::new([], []);
        finished(b"", &server, 0, &SUCCESS, limits(0)).await.unwrap();
        let asked = server.asked();
        let [Asked::Update(_, _, _, output)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(output.checksum.as_deref(), Some("crc32:00000000"));
        assert_eq!(output.bytesize, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever a server answers on the way, one that then takes everything has had every byte
        /// from the last offset it asked for, and then the final state.
        #[test]
        fn offsets_never_leave_a_gap(
            answers in proptest::collection::vec(prop_oneof![
                Just(PatchOutcome::Accepted),
                Just(PatchOutcome::Failed),
                (0u64..9).prop_map(|next| PatchOutcome::Mismatch { next }),
            ], 0..9),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let server = Fake::new(answers.iter().map(|&outcome| patch(outcome)), []);
                finished(b"12345678", &server, 0, &SUCCESS, limits(20)).await.unwrap();
                let heard = server.heard();
                let (last, patches) = heard.split_last().unwrap();
                assert_eq!(last, "Success");
                let mut next = 0;
                let taken = answers.iter().copied().chain(std::iter::repeat(PatchOutcome::Accepted));
                for (range, outcome) in patches.iter().zip(taken) {
                    assert_eq!(*range, format!("{next}-7"));
                    match outcome {
                        PatchOutcome::Accepted => next = 8,
                        PatchOutcome::Mismatch { next: said } => next = said,
                        _ => {}
                    }
                }
                assert!(next >= 8);
            });
        }
    }
}

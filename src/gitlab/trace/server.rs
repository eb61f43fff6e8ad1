//! The server's end of a job.

use std::future::Future;

use bytes::Bytes;

use crate::{
    gitlab::api::{
        PatchReply, UpdateReply,
        wire::{JobState, TraceOutput},
    },
    trace::Digest,
};

/// What a job says to its server. The implementor knows the job's number, its token and whether its
/// trace is one of debugging; it retries single requests, but decides nothing beyond one answer.
pub trait JobServer: Send + Sync {
    /// `PATCH /jobs/:id/trace`: `chunk`, which is not empty, stands at byte `start`.
    fn patch_trace(&self, start: u64, chunk: Bytes) -> impl Future<Output = PatchReply> + Send;

    /// `PUT /jobs/:id`.
    fn update(
        &self,
        state: JobState,
        reason: Option<String>,
        exit_code: Option<i32>,
        output: TraceOutput,
    ) -> impl Future<Output = UpdateReply> + Send;
}

impl From<Digest> for TraceOutput {
    fn from(digest: Digest) -> Self {
        Self {
            checksum: Some(format!("crc32:{:08x}", digest.crc32)),
            bytesize: (digest.size > 0).then_some(digest.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_has_eight_digits_and_an_empty_trace_no_size() {
        let output = |crc32, size| TraceOutput::from(Digest { crc32, size });
        assert_eq!(
            output(0x0d7c_f601, 51),
            TraceOutput { checksum: Some("crc32:0d7cf601".into()), bytesize: Some(51) }
        );
        assert_eq!(
            output(0, 0),
            TraceOutput { checksum: Some("crc32:00000000".into()), bytesize: None }
        );
    }
}

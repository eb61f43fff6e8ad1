//! GitLab's runner API: what is sent (`wire`) and how (`client`, on `transport`).

mod address;
mod artifact;
mod client;
mod error;
mod info;
mod reply;
mod retry;
mod runners;
mod settings;
#[cfg(test)]
mod testing;
mod tls;
mod transport;
pub mod wire;

pub use artifact::{ArtifactUpload, Download, DownloadError, UploadOutcome, UploadReply};
pub use client::{Client, JobReply, Received};
pub use error::{ClientError, RequestError, TransportError};
pub use info::info;
pub use reply::{PatchOutcome, PatchReply, RemoteState, UpdateOutcome, UpdateReply};
pub use runners::{Registration, RunnerDetails, TokenReply, Verification};
pub use settings::ClientSettings;

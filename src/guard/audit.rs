//! The audit log: one event per request, for whoever wants them. Never bodies, environment,
//! credentials or query strings.

use std::{borrow::Cow, io, path::Path};

use serde::{Deserialize, Serialize};
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt as _,
    sync::mpsc::{Receiver, Sender, channel},
};

/// What the audit log says about one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// The end of the request, in UTC.
    pub(crate) time: String,
    pub(crate) job: String,
    pub(crate) connection: u64,
    pub(crate) method: String,
    pub(crate) route: String,
    pub(crate) decision: Decision,
    /// The rule that refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<Cow<'static, str>>,
    /// The message of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    pub(crate) status: u16,
    /// The time until the head of the answer was sent.
    pub(crate) milliseconds: u64,
}

/// What was decided about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    Forwarded,
    Answered,
    Refused,
}

/// How many events may wait for the disk.
const WAITING: usize = 256;

/// A file of events, one a line.
#[derive(Debug)]
pub struct Log {
    file: File,
    events: Receiver<AuditEvent>,
}

impl Log {
    /// Opens the file, and returns the sender of events for it.
    ///
    /// # Errors
    /// When it cannot be opened for appending.
    pub async fn open(path: &Path) -> io::Result<(Sender<AuditEvent>, Self)> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).await?;
        let (sender, events) = channel(WAITING);
        Ok((sender, Self { file, events }))
    }

    /// Appends events until all senders are gone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn write(mut self) -> io::Result<()> {
        while let Some(event) = self.events.recv().await {
            let mut line = serde_json::to_vec(&event)?;
            line.push(b'\n');
            self.file.write_all(&line).await?;
            if self.events.is_empty() {
                self.file.flush().await?;
            }
        }
        self.file.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_lines_of_json_that_leave_out_what_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let (sender, log) = Log::open(&path).await.unwrap();
        let event = AuditEvent {
            time: "2026-01-01T00:00:00Z".into(),
            job: "7".into(),
            connection: 1,
            method: "GET".into(),
            route: "/info".into(),
            decision: Decision::Forwarded,
            rule: None,
            message: None,
            status: 200,
            milliseconds: 3,
        };
        sender.send(event).await.unwrap();
        drop(sender);
        log.write().await.unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            text,
            "{\"time\":\"2026-01-01T00:00:00Z\",\"job\":\"7\",\"connection\":1,\"method\":\"GET\",\
             \"route\":\"/info\",\"decision\":\"forwarded\",\"status\":200,\"milliseconds\":3}\n"
        );
    }
}

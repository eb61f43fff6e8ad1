//! What longshore and its helper container say to each other: framed messages on the container's
//! stdin and stdout.
//!
//! A frame is one byte of kind, four bytes of length (big endian), and that many bytes, at most
//! [`MAX_FRAME`]. Tasks run one after another; each ends with exactly one `Done`.
//!
//! ```text
//! to the helper:    Task, then Data* End if the task takes a file
//! from the helper:  Output*, Data* End if the task gives a file, Done
//! ```

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::workload::transfer::{CleanUp, Format, Level, Sources};

/// Largest payload of a frame, in bytes. Data is cut into pieces of at most [`CHUNK`].
pub const MAX_FRAME: usize = 4 << 20;

/// Largest piece of a file in one frame, in bytes: large enough to make the frame's own cost
/// vanish, small enough to bound memory.
pub const CHUNK: usize = 128 << 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Longshore asks for something: a [`Task`] as JSON.
    Task(Bytes),
    /// A piece of a file, in either direction.
    Data(Bytes),
    /// The file is complete.
    End,
    /// Text for the job's trace, as the helper's or git's stdout.
    Output(Bytes),
    /// Text for the job's trace, as stderr.
    ErrorOutput(Bytes),
    /// The task ended: a [`Done`] as JSON.
    Done(Bytes),
}

impl Frame {
    fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::Task(b) => (1, b),
            Self::Data(b) => (2, b),
            Self::End => (3, &[]),
            Self::Output(b) => (4, b),
            Self::ErrorOutput(b) => (5, b),
            Self::Done(b) => (6, b),
        }
    }

    fn of(kind: u8, payload: Bytes) -> io::Result<Self> {
        Ok(match kind {
            1 => Self::Task(payload),
            2 => Self::Data(payload),
            3 => Self::End,
            4 => Self::Output(payload),
            5 => Self::ErrorOutput(payload),
            6 => Self::Done(payload),
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("frame of unknown kind {other}: not a longshore helper"),
                ));
            }
        })
    }

    /// The bytes of the frame.
    ///
    /// # Panics
    /// When the payload is longer than [`MAX_FRAME`]; senders cut before.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, payload) = self.parts();
        assert!(payload.len() <= MAX_FRAME, "a frame is cut before it is sent");
        let mut bytes = Vec::with_capacity(5 + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }
}

/// Takes frames out of bytes that arrive in any pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: bytes::BytesMut,
}

impl Decoder {
    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// When the bytes are not frames; nothing can be read after that.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let Some(header) = self.pending.first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("frame of {length} bytes: not a longshore helper"),
            ));
        }
        if self.pending.len() < 5 + length {
            return Ok(None);
        }
        let kind = header[0];
        let mut frame = self.pending.split_to(5 + length);
        Frame::of(kind, frame.split_off(5).freeze()).map(Some)
    }
}

/// Reads one frame; `None` at the end of the stream. Not cancel-safe.
///
/// # Errors
/// When reading fails or the bytes are no frame.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut header = [0; 5];
    match from.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes: not a longshore helper"),
        ));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Frame::of(header[0], payload.into()).map(Some)
}

/// Writes one frame.
///
/// # Errors
/// When writing fails.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    to.write_all(&frame.encode()).await?;
    to.flush().await
}

/// What the helper is asked to do. Paths are paths in the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Makes the directories and opens them to every user (mode 0777).
    OpenDirectories(Vec<String>),
    /// Takes a file: `Data* End` follow.
    Receive(Receive),
    /// Fetches and checks out the sources.
    Sources(Box<Sources>),
    /// Removes tracked and untracked files before the sources are tried again.
    ClearWorktree {
        /// The project's directory.
        project_dir: String,
    },
    /// Extracts an archive; its format is told by its first bytes.
    Extract(Extract),
    /// Makes an archive and gives it, or leaves it as a file.
    Archive(Box<Archive>),
    /// Removes what the paths match, after a cache was extracted only in part.
    RemovePaths {
        /// What paths are relative to, and must not leave.
        project_dir: String,
        /// Globs.
        paths: Vec<String>,
    },
    /// Says size and time of a file; `Done.file` is `None` when there is none.
    Stat {
        /// The file.
        path: String,
    },
    /// Gives a file.
    Send {
        /// The file.
        path: String,
    },
    /// Removes what only the job needed: credentials, file variables, and with
    /// `FF_ENABLE_JOB_CLEANUP` the work tree's changes.
    CleanUp(Box<CleanUp>),
}

/// See [`Task::Receive`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Receive {
    /// Where the file goes; its directory is made. It appears whole or not at all.
    pub path: String,
    /// Modification time to set, seconds since 1970.
    pub modified: Option<i64>,
}

/// See [`Task::Extract`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Extract {
    /// The archive.
    pub archive: String,
    /// Where its entries go; none may leave it.
    pub into: String,
    /// Removes the archive afterwards, whatever happened.
    pub remove: bool,
}

/// See [`Task::Archive`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Archive {
    /// What paths are relative to, and must not leave.
    pub project_dir: String,
    /// Globs, before the expansion of variables.
    pub paths: Vec<String>,
    /// Globs taken out again.
    pub exclude: Vec<String>,
    /// Adds files git does not track.
    pub untracked: bool,
    /// Format.
    pub format: Format,
    /// Level.
    pub level: Level,
    /// Variables for the expansion, beside the lines of `env_file`; later ones win.
    pub env: Vec<(String, String)>,
    /// `GITLAB_ENV`: lines `NAME=VALUE` that the job's script wrote.
    pub env_file: Option<String>,
    /// Name of the archive, before the expansion of variables; `Done.name` has it after.
    pub name: String,
    /// Text of `<name>-metadata.json` to add, with `subject` filled in by the helper (SLSA).
    pub metadata: Option<String>,
    /// Where the archive goes.
    pub to: ArchiveTo,
}

/// Where an archive goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveTo {
    /// To longshore, as `Data* End`, as it is made.
    Longshore,
    /// To a file that is replaced whole, never half written, with two jobs at once too. Nothing is
    /// written when the file already holds the same list of files with the same times.
    File(String),
}

/// How a task ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// 0 for success; otherwise the code of what failed (git's, a hook's) or 1.
    pub exit_code: i32,
    /// Why it failed, a lower-case fragment for the trace.
    pub error: Option<String>,
    /// Of an archive: its name after expansion, without the format's ending.
    pub name: Option<String>,
    /// Of `Stat` and of an archive left as a file: the file.
    pub file: Option<FileInfo>,
    /// Of an archive: nothing matched, and none was made.
    pub empty: bool,
    /// Of an archive left as a file: it was up to date, and none was made.
    pub unchanged: bool,
}

/// Size and time of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let frames = [
            Frame::Task(Bytes::from_static(b"{}")),
            Frame::Data(Bytes::from_static(&[0; 300])),
            Frame::End,
            Frame::Output(Bytes::from_static(b"text")),
            Frame::Done(Bytes::from_static(b"{}")),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for size in [1, 2, 3, 7, 64, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames);
        }
    }

    #[test]
    fn bytes_that_are_no_frames_are_refused() {
        let mut decoder = Decoder::default();
        decoder.push(b"sh: longshore: not found\n");
        assert!(decoder.next_frame().is_err());
    }
}

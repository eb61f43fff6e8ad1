//! Reads tasks, runs them one after another, and answers.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::error::Error;
use super::frames::FrameSender;
use super::sources::off_thread;
use super::{cleanup, files, pack, sources};
use crate::helper::protocol::{self, Done, Extract, Frame, Task};

/// Frames that wait to be written: with pieces of at most 128 KiB, 2 MiB at most.
const WAITING: usize = 16;

/// Clears the umask, so that a job of any user can change what the helper makes. It is the
/// process's own: call it once where the helper is the main process of a container, before [`serve`].
pub fn open_umask() {
    rustix::process::umask(rustix::fs::Mode::empty());
}

/// Runs tasks until `input` ends, and writes their output and replies to `output`.
///
/// Dropping the future kills the programs that it runs. Git's configuration is the one of the
/// process's environment, with the variables of each task over it.
///
/// # Errors
/// When reading or writing fails, or the input violates the protocol. A task that fails is not an error: its
/// [`Done`] says so.
pub async fn serve(input: impl AsyncRead, output: impl AsyncWrite) -> io::Result<()> {
    let (mut input, mut output) = (pin!(input), pin!(output));
    let (frames, mut waiting) = mpsc::channel(WAITING);
    let answer = async move {
        let trace = FrameSender::new(frames);
        while let Some(frame) = protocol::read(&mut input).await? {
            // Pieces of a file whose task was not understood are passed over.
            if let Frame::Task(text) = frame {
                let done = match serde_json::from_slice(&text) {
                    Ok(task) => run(task, &mut input, &trace).await?,
                    Err(error) => Err(Error::Task(error)),
                };
                let done = done.unwrap_or_else(|error| error.done());
                let text = serde_json::to_vec(&done).map_err(io::Error::other)?;
                trace.send(Frame::Done(text.into())).await;
            }
        }
        Ok(())
    };
    let deliver = async {
        while let Some(frame) = waiting.recv().await {
            protocol::write(&mut output, &frame).await?;
        }
        Ok(())
    };
    tokio::try_join!(answer, deliver).map(|_: ((), ())| ())
}

/// Runs one task. The outer error is one of the stream, after which nothing can be read.
async fn run(
    task: Task,
    input: &mut (impl AsyncRead + Unpin),
    trace: &FrameSender,
) -> io::Result<Result<Done, Error>> {
    let nothing = |()| Done::default();
    Ok(match task {
        Task::OpenDirectories(paths) => files::open_directories(&paths).map(nothing),
        Task::Receive(task) => files::receive(&task, input).await?.map(nothing),
        Task::Sources(task) => sources::sources(&task, trace).await.map(nothing),
        Task::ClearWorktree { project_dir } => {
            cleanup::clear_worktree(Path::new(&project_dir), trace).await.map(nothing)
        }
        Task::Extract(task) => extract(task).await.map(nothing),
        Task::Archive(task) => pack::archive(*task, trace).await,
        Task::Stat { path } => {
            files::stat(Path::new(&path)).map(|file| Done { file, ..Done::default() })
        }
        Task::Send { path } => files::send(Path::new(&path), trace).await,
        Task::RemovePaths { project_dir, paths } => {
            pack::remove(PathBuf::from(project_dir), paths).await.map(nothing)
        }
        Task::CleanUp(task) => cleanup::clean_up(&task, trace).await.map(nothing),
    })
}

async fn extract(task: Extract) -> Result<(), Error> {
    let archive = PathBuf::from(&task.archive);
    let end = pack::extract(archive.clone(), PathBuf::from(&task.into)).await;
    if task.remove {
        let removed = off_thread(&archive, files::remove).await;
        return end.and(removed);
    }
    end
}

#[cfg(test)]
mod tests;

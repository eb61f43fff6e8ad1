//! Runs a program and passes its output on while it runs.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::watch;

use super::frames::FrameSender;
use crate::helper::protocol::{CHUNK, Frame};

/// How long the pipes of a program that has ended may be silent before they are given up: a process
/// that it left behind (an ssh agent) can hold them open forever.
const LINGER: Duration = Duration::from_millis(100);

/// Longest string that Linux takes in an environment (`MAX_ARG_STRLEN`), with its final NUL.
const LONGEST: usize = 128 << 10;

/// Sets variables; those that no program can be given (empty name, `=` or NUL in it, longer than
/// the kernel takes) are left out, as one of them would make the program impossible to start.
pub(super) fn set_environment<'a>(
    command: &mut Command,
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    for (name, value) in variables {
        let usable = !name.is_empty()
            && !name.contains(['=', '\0'])
            && !value.contains('\0')
            && name.len() + value.len() + 2 <= LONGEST;
        if usable {
            command.env(name, value);
        }
    }
}

/// Runs the program, with its output as frames; returns its exit code.
pub(super) async fn stream(command: &mut Command, trace: &FrameSender) -> io::Result<i32> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (tell, ended) = watch::channel(false);
    let stdout = pass(child.stdout.take(), Frame::Output, trace, ended.clone());
    let stderr = pass(child.stderr.take(), Frame::ErrorOutput, trace, ended);
    let wait = async {
        let status = child.wait().await;
        let _ = tell.send(true);
        status
    };
    let (status, (), ()) = tokio::join!(wait, stdout, stderr);
    Ok(code(status?))
}

/// Runs the program without showing its output; returns its exit code and what it wrote to stdout.
pub(super) async fn capture(command: &mut Command) -> io::Result<(i32, String)> {
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = command.output().await?;
    Ok((code(output.status), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// As a shell has it: 128 and the signal for a program that was killed.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

async fn pass(
    from: Option<impl AsyncRead + Unpin>,
    frame: fn(bytes::Bytes) -> Frame,
    trace: &FrameSender,
    mut ended: watch::Receiver<bool>,
) {
    let Some(mut from) = from else { return };
    let mut buffer = BytesMut::new();
    loop {
        // A quarter, as a pipe holds 64 KiB and seldom more than a part of it.
        buffer.reserve(CHUNK / 4);
        let over = *ended.borrow_and_update();
        let read = if over {
            match tokio::time::timeout(LINGER, from.read_buf(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => return,
            }
        } else {
            tokio::select! {
                read = from.read_buf(&mut buffer) => read,
                _ = ended.changed() => continue,
            }
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => trace.send(frame(buffer.split().freeze())).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    async fn run(script: &str) -> (i32, Vec<Frame>) {
        let (frames, mut sent) = mpsc::channel(1024);
        let trace = FrameSender::new(frames);
        let code = stream(Command::new("sh").args(["-c", script]), &trace).await.unwrap();
        drop(trace);
        let mut seen = Vec::new();
        while let Some(frame) = sent.recv().await {
            seen.push(frame);
        }
        (code, seen)
    }

    #[tokio::test]
    async fn both_outputs_and_the_code_arrive() {
        let (code, frames) = run("echo one; echo two >&2; exit 7").await;
        assert_eq!(code, 7);
        assert!(frames.contains(&Frame::Output("one\n".into())));
        assert!(frames.contains(&Frame::ErrorOutput("two\n".into())));
    }

    #[tokio::test]
    async fn output_is_passed_on_while_the_program_runs() {
        let root = tempfile::tempdir().unwrap();
        let fifo = root.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let (frames, mut sent) = mpsc::channel(1);
        let trace = FrameSender::new(frames);
        let script = format!("echo first; cat {}", fifo.display());
        let mut command = Command::new("sh");
        let program = stream(command.args(["-c", &script]), &trace);
        let reader = async {
            assert_eq!(sent.recv().await, Some(Frame::Output("first\n".into())));
            // The program waits for this, so it still runs.
            tokio::fs::write(&fifo, "second").await.unwrap();
            assert_eq!(sent.recv().await, Some(Frame::Output("second".into())));
        };
        let (code, ()) = tokio::join!(program, reader);
        assert_eq!(code.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_process_left_behind_does_not_hold_the_task() {
        let (code, frames) = run("sleep 10 & echo started").await;
        assert_eq!(code, 0);
        assert_eq!(frames, [Frame::Output("started\n".into())]);
    }

    #[tokio::test]
    async fn a_killed_program_has_the_code_of_its_signal() {
        assert_eq!(run("kill -9 $$").await.0, 137);
    }

    #[tokio::test]
    async fn variables_no_program_can_have_are_left_out() {
        let mut command = Command::new("sh");
        let long = "x".repeat(LONGEST);
        set_environment(
            &mut command,
            [("", "a"), ("A=B", "a"), ("NUL", "a\0b"), ("LONG", &long), ("GOOD", "yes")],
        );
        let (code, output) = capture(command.args(["-c", "echo $GOOD${LONG+long}"])).await.unwrap();
        assert_eq!((code, output.as_str()), (0, "yes\n"));
    }
}

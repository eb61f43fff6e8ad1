//! What the user sees: the jobs' lines with their names before them, how each job ended, and how
//! the pipeline did.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    event::{Event, KeptArtifact},
    lines::Lines,
    pipeline::{Pipeline, State},
};
use crate::workload::outcome::FailureReason;

/// Longer names are cut before lines.
const MAX_NAME: usize = 32;
/// Colours of names: cyan, yellow, blue, magenta, and their bright ones.
const NAME_COLOURS: [u8; 8] = [36, 33, 34, 35, 96, 93, 94, 95];
const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const GREY: u8 = 90;

/// Writes to a terminal or a file.
pub(crate) struct Terminal {
    out: Box<dyn Write + Send>,
    colour: bool,
    names: Vec<String>,
    /// Paths are shown relative to it.
    base: PathBuf,
    width: usize,
    lines: Vec<Lines>,
    ends: Vec<Option<(State, Option<Duration>)>>,
}

impl Terminal {
    /// For the jobs with these names.
    pub(crate) fn new(
        out: Box<dyn Write + Send>,
        colour: bool,
        names: Vec<String>,
        base: PathBuf,
    ) -> Self {
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let lines = names.iter().map(|_| Lines::new(colour)).collect();
        let ends = vec![None; names.len()];
        Self { out, colour, width: width.min(MAX_NAME), names, base, lines, ends }
    }

    /// Shows events until nobody is left who sends any, then the summary.
    pub(crate) async fn show(mut self, mut events: mpsc::Receiver<Event>) -> io::Result<()> {
        while let Some(event) = events.recv().await {
            self.event(event)?;
            if events.is_empty() {
                self.out.flush()?;
            }
        }
        self.summary()?;
        self.out.flush()
    }

    fn event(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Started { job } => {
                let text = self.paint(GREY, "started");
                self.line(job, &text)
            }
            Event::Trace { job, bytes } => {
                let lines = self.lines[job].push(&bytes);
                self.lines_of(job, &lines)
            }
            Event::Artifact { job, artifact } => {
                let text = self.paint(GREY, &self.artifact(&artifact));
                self.line(job, &text)
            }
            Event::Ended { job, state, reason, took } => {
                let lines = self.lines[job].finish();
                self.lines_of(job, &lines)?;
                self.ends[job] = Some((state, Some(took)));
                let mut text = format!("{}  {}", self.state(state), duration(took));
                if let Some(reason) = reason.filter(|r| *r != FailureReason::ScriptFailure) {
                    text = format!("{text}  ({})", reason.as_str().replace('_', " "));
                }
                self.line(job, &text)
            }
            Event::NotRun { job, state } => {
                self.ends[job] = Some((state, None));
                let text = self.state(state);
                self.line(job, &text)
            }
        }
    }

    fn lines_of(&mut self, job: usize, lines: &[String]) -> io::Result<()> {
        lines.iter().try_for_each(|line| self.line(job, line))
    }

    fn line(&mut self, job: usize, text: &str) -> io::Result<()> {
        let mut name: String = self.names[job].chars().take(self.width).collect();
        if name.len() < self.names[job].len() {
            name.pop();
            name.push('…');
        }
        let prefix = format!("{name:width$} |", width = self.width);
        let prefix = self.paint(NAME_COLOURS[job % NAME_COLOURS.len()], &prefix);
        let reset = if self.colour && text.contains('\x1b') { "\x1b[0m" } else { "" };
        writeln!(self.out, "{prefix} {text}{reset}")
    }

    fn summary(&mut self) -> io::Result<()> {
        let ends: Vec<_> =
            (0..self.names.len()).filter_map(|job| Some((job, self.ends[job]?))).collect();
        if ends.len() < 2 {
            return Ok(());
        }
        let width = self.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        writeln!(self.out)?;
        for (job, (state, took)) in ends {
            let took = took.map(duration).unwrap_or_default();
            let padding = " ".repeat(16usize.saturating_sub(word(state).len()));
            let line = format!("{:width$}  {}{padding} {took}", self.names[job], self.state(state));
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn artifact(&self, artifact: &KeptArtifact) -> String {
        let path = artifact.path.strip_prefix(&self.base).unwrap_or(&artifact.path);
        format!("{}: {} ({})", artifact.kind, path.display(), size(artifact.size))
    }

    fn state(&self, state: State) -> String {
        let colour = match state {
            State::Success => GREEN,
            State::Failed { allowed: false } | State::Canceled => RED,
            State::Failed { allowed: true } => YELLOW,
            _ => GREY,
        };
        self.paint(colour, word(state))
    }

    fn paint(&self, colour: u8, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::LeftOut => "left out",
        State::Waiting => "waiting",
        State::Running => "running",
        State::Success => "success",
        State::Failed { allowed: false } => "failed",
        State::Failed { allowed: true } => "failed (allowed)",
        State::Canceled => "canceled",
        State::Skipped => "skipped",
        State::Manual { .. } => "manual",
    }
}

/// `812 B`, `1.2 KiB`, …
fn size(bytes: u64) -> String {
    let mut unit = 1u64;
    for name in ["B", "KiB", "MiB"] {
        if bytes < unit * 1024 {
            return scaled(bytes, unit, name);
        }
        unit *= 1024;
    }
    scaled(bytes, unit, "GiB")
}

fn scaled(bytes: u64, unit: u64, name: &str) -> String {
    if unit == 1 {
        return format!("{bytes} {name}");
    }
    format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit)
}

/// `1.2s`, `3m 04s`, `1h 02m`.
fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{}.{}s", seconds, duration.subsec_millis() / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The stages and jobs of a pipeline, as a table.
pub(crate) fn list(out: &mut dyn Write, pipeline: &Pipeline) -> io::Result<()> {
    let mut rows = vec![["NAME", "STAGE", "WHEN", "NEEDS"].map(str::to_owned)];
    for job in &pipeline.jobs {
        let needs = match &job.needs {
            None => String::new(),
            Some(needs) if needs.is_empty() => "[]".to_owned(),
            Some(needs) => {
                let names = needs.iter().map(|need| pipeline.jobs[need.job].name.as_str());
                names.collect::<Vec<_>>().join(", ")
            }
        };
        let stage = pipeline.stages[job.stage].clone();
        rows.push([job.name.clone(), stage, job.when.as_str().to_owned(), needs]);
    }
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let (name, stage, when) = (width(0), width(1), width(2));
    for row in &rows {
        let line = format!("{:name$}  {:stage$}  {:when$}  {}", row[0], row[1], row[2], row[3]);
        writeln!(out, "{}", line.trim_end())?;
    }
    for left_out in &pipeline.left_out {
        writeln!(out, "{left_out:name$}  (left out by its rules)")?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::local::pipeline::testing;

    /// A writer that can be read while it is written.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Screen {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn events() -> Vec<Event> {
        let trace = |job, text: &'static str| Event::Trace { job, bytes: text.as_bytes().into() };
        let ended = |job, state, seconds| Event::Ended {
            job,
            state,
            reason: (state != State::Success).then_some(FailureReason::ScriptFailure),
            took: Duration::from_millis(seconds),
        };
        let artifact = KeptArtifact {
            kind: "archive".into(),
            path: "/p/.longshore/artifacts/build/artifacts.zip".into(),
            size: 1300,
        };
        vec![
            Event::NotRun { job: 2, state: State::Manual { blocks: true } },
            Event::Started { job: 0 },
            trace(0, "\x1b[32;1m$ ma"),
            Event::Started { job: 1 },
            trace(1, "half"),
            trace(0, "ke\x1b[0;m\n"),
            Event::Artifact { job: 0, artifact },
            ended(0, State::Success, 1250),
            ended(1, State::Failed { allowed: true }, 125_000),
        ]
    }

    async fn shown(colour: bool) -> String {
        let screen = Screen::default();
        let names = ["build", "test: [a]", "deploy"].map(str::to_owned).to_vec();
        let terminal = Terminal::new(Box::new(screen.clone()), colour, names, "/p".into());
        let (sender, receiver) = mpsc::channel(100);
        for event in events() {
            sender.send(event).await.unwrap();
        }
        drop(sender);
        terminal.show(receiver).await.unwrap();
        screen.text()
    }

    #[tokio::test]
    async fn lines_carry_the_names_of_their_jobs_and_a_summary_follows() {
        let expected = "\
deploy    | manual
build     | started
test: [a] | started
build     | $ make
build     | archive: .longshore/artifacts/build/artifacts.zip (1.2 KiB)
build     | success  1.2s
test: [a] | half
test: [a] | failed (allowed)  2m 05s

build      success          1.2s
test: [a]  failed (allowed) 2m 05s
deploy     manual
";
        assert_eq!(shown(false).await, expected);
    }

    #[tokio::test]
    async fn on_a_terminal_names_and_states_have_colours() {
        let text = shown(true).await;
        assert!(text.contains("\x1b[36mbuild     |\x1b[0m \x1b[32;1m$ make\x1b[0;m\x1b[0m\n"));
        assert!(text.contains("\x1b[32msuccess\x1b[0m"));
    }

    #[test]
    fn the_list_shows_stages_when_and_needs() {
        let pipeline = testing::read(
            "b: {stage: build, script: x}\nt: {script: x, needs: [b]}\nm: {script: x, needs: [], when: manual}\n\
             out: {script: x, rules: [{when: never}]}\n",
            &[],
        )
        .unwrap();
        let mut out = Vec::new();
        list(&mut out, &pipeline).unwrap();
        let expected = "\
NAME  STAGE  WHEN        NEEDS
b     build  on_success
t     test   on_success  b
m     test   manual      []
out   (left out by its rules)
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!([size(812), size(1024 * 1024), size(5 << 30)], ["812 B", "1.0 MiB", "5.0 GiB"]);
        assert_eq!(duration(Duration::from_secs(3725)), "1h 02m");
    }
}

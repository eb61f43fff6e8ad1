//! The lines that the runner itself writes, and its section markers, byte for byte as GitLab
//! Runner's: users' log parsers and GitLab's own viewer read them.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::stream::OpenStream;
use crate::base::ids::ShortToken;

/// What every line ends with.
const END: &str = "\x1b[0;m\n";
/// What a plain line begins with, and what ends a section marker.
const CLEAR: &str = "\x1b[0K";
const BOLD_GREEN: &str = "\x1b[32;1m";
const BOLD_CYAN: &str = "\x1b[36;1m";
const BOLD_RED: &str = "\x1b[31;1m";
const YELLOW: &str = "\x1b[0;33m";
const RESET: &str = "\x1b[0;m";

/// Writes the runner's lines; clones write to the same stream.
#[derive(Clone)]
pub struct JobLog {
    stream: Arc<OpenStream>,
    sections: bool,
}

/// The content of the first lines of a trace.
#[derive(Debug, Clone, Copy)]
pub struct Greeting<'a> {
    /// Name of the program.
    pub name: &'a str,
    /// Version of the program.
    pub version: &'a str,
    /// Commit that the program was built from.
    pub revision: &'a str,
    /// The runner's description.
    pub runner: &'a str,
    /// The part of its token that may be shown.
    pub token: &'a ShortToken,
    /// Id of the machine (`s_…` or `r_…`).
    pub system_id: &'a str,
    /// Feature flags that differ from their defaults.
    pub flags: &'a [(&'a str, bool)],
}

impl JobLog {
    /// `sections`: whether section markers are written.
    pub(super) fn new(stream: Arc<OpenStream>, sections: bool) -> Self {
        Self { stream, sections }
    }

    /// Writes all parts at once, so that no other stream comes between.
    fn write(&self, parts: &[&str]) {
        self.stream.write(parts.concat().as_bytes());
    }

    /// A line without colour.
    pub fn plain(&self, text: &str) {
        self.write(&[CLEAR, text, END]);
    }

    /// A line in bold green.
    pub fn info(&self, text: &str) {
        self.write(&[BOLD_GREEN, text, END]);
    }

    /// A yellow line that begins with `WARNING: `.
    pub fn warning(&self, text: &str) {
        self.write(&[YELLOW, "WARNING: ", text, END]);
    }

    /// A red line that begins with `ERROR: `.
    pub fn error(&self, text: &str) {
        self.write(&[BOLD_RED, "ERROR: ", text, END]);
    }

    /// The heading of a stage, in cyan.
    pub fn title(&self, text: &str) {
        self.write(&[CLEAR, BOLD_CYAN, text, RESET, END]);
    }

    /// Marks that the section `name` begins; nothing if the server does not know sections.
    pub fn section_start(&self, name: &str) {
        self.mark("section_start", name);
    }

    /// Marks that it ends.
    pub fn section_end(&self, name: &str) {
        self.mark("section_end", name);
    }

    fn mark(&self, marker: &str, name: &str) {
        if self.sections {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            self.write(&[marker, ":", &now.to_string(), ":", name, "\r", CLEAR]);
        }
    }

    /// The first lines of a trace.
    pub fn greet(&self, greeting: &Greeting<'_>) {
        let Greeting { name, version, revision, runner, token, system_id, flags } = greeting;
        self.plain(&format!("Running with {name} {version} ({revision})"));
        self.plain(&format!("  on {runner} {token}, system ID: {system_id}"));
        if !flags.is_empty() {
            let mut line = String::from("  feature flags: ");
            for (n, (flag, on)) in flags.iter().enumerate() {
                let comma = if n == 0 { "" } else { ", " };
                let _ = write!(line, "{comma}{flag}:{on}");
            }
            self.plain(&line);
        }
    }

    /// The last line of a job that succeeded.
    pub fn succeeded(&self) {
        self.info("Job succeeded");
    }

    /// The last line of a job that failed; `system` if it was not the job's fault.
    pub fn failed(&self, reason: &str, system: bool) {
        let whose = if system { " (system failure)" } else { "" };
        self.error(&format!("Job failed{whose}: {reason}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{
        Masks, Settings, Trace,
        testing::{plain, text},
    };

    fn written(write: impl FnOnce(&JobLog)) -> String {
        let (_dir, trace) = plain(Masks::default());
        write(&trace.job_log());
        text(&trace)
    }

    fn greeting<'a>(token: &'a ShortToken, flags: &'a [(&'a str, bool)]) -> Greeting<'a> {
        Greeting {
            name: "longshore",
            version: "0.1.0",
            revision: "1a2b3c4d",
            runner: "builder-7",
            token,
            system_id: "s_9f86d081884c",
            flags,
        }
    }

    #[test]
    fn lines_have_the_colours_of_gitlab_runner() {
        assert_eq!(written(|log| log.plain("a")), "\x1b[0Ka\x1b[0;m\n");
        assert_eq!(written(|log| log.info("a")), "\x1b[32;1ma\x1b[0;m\n");
        assert_eq!(written(|log| log.warning("a")), "\x1b[0;33mWARNING: a\x1b[0;m\n");
        assert_eq!(written(|log| log.error("a")), "\x1b[31;1mERROR: a\x1b[0;m\n");
        assert_eq!(written(|log| log.title("a")), "\x1b[0K\x1b[36;1ma\x1b[0;m\x1b[0;m\n");
    }

    #[test]
    fn api_74_the_first_lines_name_program_and_runner() {
        let token = ShortToken::of("ABCDEFGHIJKL");
        assert_eq!(
            written(|log| log.greet(&greeting(&token, &[]))),
            "\x1b[0KRunning with longshore 0.1.0 (1a2b3c4d)\x1b[0;m\n\
             \x1b[0K  on builder-7 ABCDEFGHI, system ID: s_9f86d081884c\x1b[0;m\n"
        );
    }

    #[test]
    fn docker_192_the_first_lines_list_the_flags_that_were_changed() {
        let token = ShortToken::of("t");
        let flags = [("FF_A", true), ("FF_B", false)];
        let written = written(|log| log.greet(&greeting(&token, &flags)));
        assert_eq!(
            written.lines().nth(2),
            Some("\x1b[0K  feature flags: FF_A:true, FF_B:false\x1b[0;m")
        );
    }

    #[test]
    fn api_95_docker_193_the_last_line_has_the_result() {
        assert_eq!(written(JobLog::succeeded), "\x1b[32;1mJob succeeded\x1b[0;m\n");
        assert_eq!(
            written(|log| log.failed("exit code 2", false)),
            "\x1b[31;1mERROR: Job failed: exit code 2\x1b[0;m\n"
        );
        assert_eq!(
            written(|log| log.failed("no disk", true)),
            "\x1b[31;1mERROR: Job failed (system failure): no disk\x1b[0;m\n"
        );
    }

    fn with(timestamps: bool, sections: bool) -> (tempfile::TempDir, Trace) {
        let settings = Settings { limit: 0, timestamps, sections, masks: Masks::default() };
        let dir = tempfile::tempdir().unwrap();
        let trace = Trace::create(&dir.path().join("trace"), settings).unwrap();
        (dir, trace)
    }

    fn section(log: &JobLog) {
        log.section_start("prepare_executor");
        log.title("Preparing");
        log.section_end("prepare_executor");
    }

    #[test]
    fn api_75_docker_191_without_sections_there_are_no_markers() {
        let (_dir, trace) = with(false, false);
        section(&trace.job_log());
        assert_eq!(text(&trace), "\x1b[0K\x1b[36;1mPreparing\x1b[0;m\x1b[0;m\n");
    }

    #[test]
    fn api_76_docker_191_a_section_has_a_start_and_an_end_in_order() {
        let text = written(section);
        let marks: Vec<_> = text.split('\r').collect();
        let [start, end, rest] = marks[..] else { panic!("{text:?}") };
        assert_eq!(rest, "\x1b[0K");
        let (before, end) = end.split_once("section_end:").unwrap();
        assert_eq!(before, "\x1b[0K\x1b[0K\x1b[36;1mPreparing\x1b[0;m\x1b[0;m\n");
        let start = start.strip_prefix("section_start:").unwrap();
        let (start, end) = (start.split_once(':').unwrap(), end.split_once(':').unwrap());
        assert_eq!((start.1, end.1), ("prepare_executor", "prepare_executor"));
        assert!(start.0.parse::<u64>().unwrap() <= end.0.parse().unwrap());
    }

    #[test]
    fn a_title_goes_on_where_its_marker_ended() {
        let (_dir, trace) = with(true, true);
        section(&trace.job_log());
        let text = text(&trace);
        let ends: Vec<_> = text.lines().map(|line| &line[28..32]).collect();
        assert_eq!(ends, ["00O ", "00O+", "00O "]);
        assert!(text.lines().all(|line| line[..26].parse::<jiff::civil::DateTime>().is_ok()));
    }
}

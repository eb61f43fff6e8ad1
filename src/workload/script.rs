//! The shell text of a stage in the job's image.
//!
//! It is given to the shell on its stdin. The stage's commands are one quoted word, evaluated in a
//! subshell: the shell has read all of the text before the first command runs, so nothing is lost
//! when the connection breaks, and commands that read stdin find its end.
//!
//! The shell's last act is to say with which code the commands ended ([`EndMark`]). The container's
//! own end takes the engine some 50 ms more, which nobody needs to wait for.

use std::fmt::Write as _;

use super::{
    access::{Access, SocketPlan},
    directories::Directories,
    flags::Flags,
    mount::Mounts,
    settings::Settings,
    transfer::{ENV_FILE, GIT_SEED},
    variable::Expanded,
};

/// What runs a script: the first shell there is, bash before sh
/// (docs/compatibility.md, "The shell of a job").
pub const SHELL_DETECTION: &str = "\
for shell in /usr/local/bin/bash /usr/bin/bash /bin/bash /usr/local/bin/sh /usr/bin/sh /bin/sh \
/busybox/sh; do if [ -x \"$shell\" ]; then exec \"$shell\"; fi; done; \
echo shell not found; exit 1";

const GREEN: &str = "\x1b[32;1m";
const RESET: &str = "\x1b[0;m";

/// Quotes a word for any POSIX shell, whatever bytes it holds (but for NUL, which no word can).
#[must_use]
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The mark with which a script says its exit code, once on stdout and once on stderr: what came
/// before it on a stream is all that the stage wrote there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndMark {
    start: Vec<u8>,
}

impl EndMark {
    /// The mark of a script made with this nonce.
    #[must_use]
    pub fn new(nonce: &str) -> Self {
        Self { start: format!("\0{nonce}:").into_bytes() }
    }

    /// Looks for the mark in output that arrives in pieces; see [`EndSeeker`].
    #[must_use]
    pub fn seeker(&self) -> EndSeeker {
        EndSeeker { mark: self.start.clone(), held: Vec::new(), code: None }
    }
}

/// Passes a stream on up to its [`EndMark`].
#[derive(Debug)]
pub struct EndSeeker {
    mark: Vec<u8>,
    /// Bytes that may be the beginning of a mark.
    held: Vec<u8>,
    code: Option<i32>,
}

impl EndSeeker {
    /// Takes a piece of the stream, gives what of it (and of pieces held before) is output.
    pub fn push(&mut self, piece: &[u8], mut output: impl FnMut(&[u8])) {
        if self.code.is_some() {
            return;
        }
        if self.held.is_empty() && !piece.contains(&0) {
            output(piece);
            return;
        }
        self.held.extend_from_slice(piece);
        loop {
            let Some(zero) = self.held.iter().position(|byte| *byte == 0) else {
                output(&self.held);
                self.held.clear();
                return;
            };
            output(&self.held[..zero]);
            self.held.drain(..zero);
            let common = self.mark.len().min(self.held.len());
            if self.held[..common] != self.mark[..common] {
                // Some other NUL: it is output like any byte.
                output(&self.held[..1]);
                self.held.drain(..1);
                continue;
            }
            let Some(end) = self.held.iter().skip(1).position(|byte| *byte == 0) else { return };
            self.code = self
                .held
                .get(self.mark.len()..=end)
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| digits.parse().ok());
            if self.code.is_some() {
                self.held.clear();
                return;
            }
            output(&self.held[..1]);
            self.held.drain(..1);
        }
    }

    /// What was held back when the stream ended without a mark.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The code, once the mark was seen.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.code
    }
}

/// What scripts depend on, beside their commands.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) directories: &'a Directories,
    pub(super) mounts: &'a Mounts,
    pub(super) variables: &'a Expanded,
    pub(super) flags: &'a Flags,
    pub(super) settings: &'a Settings,
    pub(super) access: &'a Access,
}

/// Builds the script of a stage.
pub(super) struct Script<'a> {
    context: Context<'a>,
    nonce: &'a str,
    body: String,
}

impl<'a> Script<'a> {
    /// `begins` when no stage of the job was before this one.
    pub(super) fn new(context: Context<'a>, nonce: &'a str, begins: bool) -> Self {
        let mut script = Self { context, nonce, body: String::new() };
        script.preamble(begins);
        script
    }

    /// Directories, file variables, and what earlier stages wrote to `GITLAB_ENV`.
    fn preamble(&mut self, begins: bool) {
        let Context { directories, mounts, variables, flags, settings, .. } = self.context;
        let temp = quote(&directories.temp);
        let project = quote(&directories.project);
        // A volume's root belongs to root, and other users' jobs follow. Where this shell may not
        // open it, the helper has.
        let roots: Vec<String> = mounts.made().map(quote).collect();
        if !roots.is_empty() {
            self.line(&format!("chmod 0777 {} 2>/dev/null || :", roots.join(" ")));
        }
        self.link_socket();
        self.line(&format!(
            "[ -d {temp} ] || mkdir -p {temp}; [ -d {project} ] || mkdir -p {project}"
        ));
        if begins {
            let env = quote(&format!("{}/{ENV_FILE}", directories.temp));
            self.line(&format!("rm -f {env} 2>/dev/null || : > {env}"));
        }
        self.body.push_str(&exports(&directories.temp, variables));
        if flags.on("FF_GIT_URLS_WITHOUT_TOKENS") {
            let seed = quote(&format!("{}/{GIT_SEED}", directories.temp));
            self.line(&format!("export GIT_CONFIG_GLOBAL={seed}"));
        }
        self.line(&format!("cd {project}"));
        if settings.debug_trace {
            self.line("set -o xtrace");
        }
    }

    /// Puts the daemon's socket where tools look for it. A shell that may not has had it put there
    /// before ([`SocketPlan::links`]).
    fn link_socket(&mut self) {
        let socket = self.context.access.dind().and_then(|dind| dind.socket.as_ref());
        let target = quote(&SocketPlan::path());
        for link in socket.iter().flat_map(|socket| &socket.links) {
            let parent = quote(link.rsplit_once('/').map_or("", |(parent, _)| parent));
            let link = quote(link);
            self.line(&format!(
                "[ -e {link} ] || [ -L {link} ] || \
                 {{ mkdir -p {parent}/ && ln -s {target} {link}; }} 2>/dev/null || :"
            ));
        }
    }

    fn line(&mut self, text: &str) {
        self.body.push_str(text);
        self.body.push('\n');
    }

    /// Sets a variable for this stage.
    pub(super) fn variable(mut self, name: &str, value: &str) -> Self {
        self.line(&format!("export {name}={}", quote(value)));
        self
    }

    /// Prints a line in green.
    pub(super) fn notice(mut self, text: &str) -> Self {
        self.line(&format!("printf '%s\\n' {}", quote(&format!("{GREEN}{text}{RESET}"))));
        self
    }

    pub(super) fn pre_build(mut self, text: Option<&str>) -> Self {
        if let Some(text) = text {
            self.command("pre_build_script", 0, text);
        }
        self
    }

    pub(super) fn post_build(mut self, text: Option<&str>) -> Self {
        if let Some(text) = text {
            self.command("post_build_script", 0, text);
        }
        self
    }

    /// Shows and runs each command.
    pub(super) fn commands(mut self, section: &str, commands: &[String]) -> Self {
        for (index, command) in commands.iter().enumerate() {
            self.command(section, index, command);
        }
        self
    }

    /// Shows a command and runs it (docs/compatibility.md, "How commands are shown").
    fn command(&mut self, section: &str, index: usize, command: &str) {
        let command = command.trim();
        if command.contains('\n') && self.context.settings.script_sections {
            let name = format!("section_{section}_{index}");
            let shown = quote(&format!("{GREEN}$ {command}{RESET}"));
            self.line(&format!(
                "printf 'section_start:%s:{name}[hide_duration=true,collapsed=true]\\r\\033[0K%s\\n' \
                 \"$(date +%s)\" {shown}"
            ));
            self.line(&format!("printf 'section_end:%s:{name}\\r\\033[0K' \"$(date +%s)\""));
        } else {
            self.line(&show(command));
        }
        if command.is_empty() {
            return;
        }
        self.line(command);
        if self.context.flags.on("FF_ENABLE_BASH_EXIT_CODE_CHECK") {
            self.line(
                "_runner_exit_code=$?; if [ $_runner_exit_code -ne 0 ]; then exit \
                 $_runner_exit_code; fi",
            );
        }
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        let mut text = wrap(&self.body);
        let mark = format!("printf '\\000%s:%s\\000' {} \"$longshore_status\"", quote(self.nonce));
        let _infallible = write!(text, "{mark}; {mark} >&2\nexit \"$longshore_status\"\n");
        text
    }
}

/// Options and traps around the body (docs/compatibility.md, "The wrapper around a script"), which
/// runs in a subshell with its exit code in `longshore_status`.
fn wrap(body: &str) -> String {
    format!(
        "trap 'exit 1' TERM\n\
         (set -o pipefail) 2>/dev/null && set -o pipefail\n\
         set +o noclobber\n\
         (trap 'exit 1' TERM; set -o errexit; eval {}) </dev/null\n\
         longshore_status=$?\n",
        quote(body)
    )
}

/// Shows a command as it is written, before it runs.
fn show(command: &str) -> String {
    let (first, mark) = match command.split_once('\n') {
        Some((first, _)) => (first.trim_end(), " # collapsed multi-line command"),
        None => (command, ""),
    };
    if first.is_empty() {
        return "echo".to_owned();
    }
    format!("printf '%s\\n' {}", quote(&format!("{GREEN}$ {first}{mark}{RESET}")))
}

/// Writes the file variables, and exports what earlier stages wrote to `GITLAB_ENV`: a line is text,
/// whatever it looks like, and one that is no assignment is nobody's.
pub(super) fn exports(temp: &str, variables: &Expanded) -> String {
    let mut body = String::new();
    let files: Vec<_> =
        variables.iter().filter_map(|v| Some((v.file.as_ref()?, quote(&v.value)))).collect();
    if !files.is_empty() {
        // Another user's file of this name cannot be written, but it can be replaced.
        let paths: Vec<_> = files.iter().map(|(_, path)| path.as_str()).collect();
        let _infallible = writeln!(body, "rm -f {} 2>/dev/null || :", paths.join(" "));
    }
    for (content, path) in files {
        let _infallible = writeln!(body, "printf '%s' {} > {path}", quote(content));
    }
    let env = quote(&format!("{temp}/{ENV_FILE}"));
    let _infallible = writeln!(
        body,
        "export GITLAB_ENV={env}\n\
         if [ -f \"$GITLAB_ENV\" ]; then while IFS= read -r longshore_line || \
         [ -n \"$longshore_line\" ]; do case $longshore_line in *=*) case ${{longshore_line%%=*}} in \
         ''|[0-9]*|*[!A-Za-z0-9_]*) ;; *) export \"$longshore_line\" || :;; esac;; esac; \
         done < \"$GITLAB_ENV\"; unset longshore_line; \
         else : > \"$GITLAB_ENV\"; chmod 0666 \"$GITLAB_ENV\" 2>/dev/null || :; fi"
    );
    body
}

/// A script of hooks for the helper: the commands shown and run in one shell.
pub(super) fn hook(exports: &str, commands: &[&str]) -> String {
    let mut body = exports.to_owned();
    for command in commands {
        let command = command.trim();
        let _infallible = writeln!(body, "{}\n{command}", show(command));
    }
    format!("{}exit \"$longshore_status\"\n", wrap(&body))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    fn shells() -> Vec<&'static str> {
        ["/bin/bash", "/bin/dash", "/bin/busybox"]
            .into_iter()
            .filter(|shell| std::path::Path::new(shell).exists())
            .collect()
    }

    fn run(shell: &str, text: &str) -> (i32, Vec<u8>) {
        let mut command = Command::new(shell);
        if shell.ends_with("busybox") {
            command.arg("sh");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code().unwrap(), output.stdout)
    }

    #[test]
    fn docker_62_quoting_round_trips_in_every_shell() {
        let word = "a'b\"c\\d$e`f`\n\tü\u{1b}[0m! *?~#&|;<>(){}[]\r%s\\n";
        for shell in shells() {
            let (code, out) = run(shell, &format!("printf '%s' {}", quote(word)));
            assert_eq!((code, String::from_utf8(out).unwrap().as_str()), (0, word), "{shell}");
        }
    }

    #[test]
    fn docker_51_53_54_the_first_failing_command_ends_the_script() {
        for shell in shells() {
            let of = |body: &str| run(shell, &format!("{}exit $longshore_status", wrap(body)));
            assert_eq!(of("echo a\n(exit 7)\necho b"), (7, b"a\n".to_vec()), "{shell}");
            assert_eq!(of("false || true\nif false; then :; fi\necho b"), (0, b"b\n".to_vec()));
            assert_eq!(of("echo a\nexit 0\necho b"), (0, b"a\n".to_vec()));
            assert_eq!(of("export A=1\necho $A").1, b"1\n");
        }
    }

    #[test]
    fn docker_50_commands_read_the_end_of_stdin() {
        for shell in shells() {
            let (code, out) =
                run(shell, &format!("{}exit $longshore_status", wrap("cat; echo end")));
            assert_eq!((code, out), (0, b"end\n".to_vec()), "{shell}");
        }
    }

    #[test]
    fn docker_52_a_pipe_fails_where_the_shell_has_pipefail() {
        let of = |shell| run(shell, &format!("{}exit $longshore_status", wrap("false | true"))).0;
        assert_eq!(of("/bin/bash"), 1);
        if std::path::Path::new("/bin/dash").exists() {
            assert_eq!(of("/bin/dash"), 0);
        }
    }

    #[test]
    fn the_end_mark_tells_the_code() {
        let mark = EndMark::new("n1");
        let mut seeker = mark.seeker();
        let mut out = Vec::new();
        seeker.push(b"text\0n2:3\0 and \0n1:42\0late", |b| out.extend_from_slice(b));
        assert_eq!(seeker.code(), Some(42));
        assert_eq!(out, b"text\0n2:3\0 and ");
    }

    proptest! {
        #[test]
        fn the_end_mark_is_found_at_any_split(
            before in proptest::collection::vec(prop_oneof![Just(0u8), Just(b'n'), Just(b':'), any::<u8>()], 0..40),
            cuts in proptest::collection::vec(1usize..5, 0..60),
        ) {
            let mark = EndMark::new("nonce");
            let mut whole = before.clone();
            whole.extend_from_slice(b"\0nonce:-1\0");
            let mut seeker = mark.seeker();
            let mut out = Vec::new();
            let mut at = 0;
            for cut in cuts.into_iter().chain(std::iter::repeat(3)) {
                if at >= whole.len() { break; }
                let end = (at + cut).min(whole.len());
                seeker.push(&whole[at..end], |b| out.extend_from_slice(b));
                at = end;
            }
            prop_assert_eq!(seeker.code(), Some(-1));
            prop_assert_eq!(out, before);
        }
    }
}

//! The text of scripts, and what real shells make of it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;

use crate::base::secret::Secret;
use crate::workload::{
    Workload,
    outcome::JobStatus,
    script::{EndMark, SHELL_DETECTION},
    testing::Case,
};

const SHELLS: [&[&str]; 3] = [&["/bin/bash"], &["/bin/dash"], &["/bin/busybox", "sh"]];

/// A job's container, but for the container: its directories below a temporary one.
struct Room {
    directory: tempfile::TempDir,
    shell: &'static [&'static str],
}

struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Room {
    fn new(shell: &'static [&'static str]) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), shell }
    }

    /// A room for each shell that this host has.
    fn each() -> impl Iterator<Item = Self> {
        SHELLS.into_iter().filter(|shell| Path::new(shell[0]).exists()).map(Self::new)
    }

    fn bash() -> Self {
        Self::new(SHELLS[0])
    }

    /// The case with its directories in this room.
    fn place(&self, case: Case) -> Case {
        case.runner(&format!("builds_dir = \"{}/builds\"", self.directory.path().display()))
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("builds/acme/turbine.tmp").join(name)
    }

    fn shell(&self, text: &str, plan: &Workload) -> Ended {
        let mut child = Command::new(self.shell[0])
            .args(&self.shell[1..])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(plan.variables.iter().map(|v| (&v.key, &v.value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let ended = child.wait_with_output().unwrap();
        let until_mark = |bytes: &[u8]| {
            let (mut seeker, mut text) = (EndMark::new("nonce").seeker(), Vec::new());
            seeker.push(bytes, |piece| text.extend_from_slice(piece));
            text.extend_from_slice(&seeker.rest());
            assert_eq!(seeker.code(), ended.status.code(), "the mark says the code");
            String::from_utf8(text).unwrap()
        };
        Ended {
            code: ended.status.code().unwrap(),
            out: until_mark(&ended.stdout),
            err: until_mark(&ended.stderr),
        }
    }

    /// Runs the first step.
    fn run(&self, case: Case) -> Ended {
        let case = self.place(case);
        let plan = case.plan();
        self.shell(&plan.step_script(&plan.scripts.steps[0], "nonce"), &plan)
    }

    fn run_after(&self, case: Case, status: JobStatus) -> Ended {
        let plan = self.place(case).plan();
        self.shell(&plan.after_script(status, "nonce"), &plan)
    }
}

fn shown(command: &str) -> String {
    format!("\x1b[32;1m$ {command}\x1b[0;m\n")
}

#[test]
fn docker_56_58_59_commands_are_shown_as_they_are_written() {
    for room in Room::each() {
        let ended = room.run(Case::new().variable("NAME", "value").script(&[
            "  echo \"$NAME\" 'a b'\n",
            "",
            "echo one\necho two",
            "\techo `echo \\\\`%s",
        ]));
        let expected = [
            &shown("echo \"$NAME\" 'a b'"),
            "value a b\n",
            "\n",
            &shown("echo one # collapsed multi-line command"),
            "one\ntwo\n",
            &shown("echo `echo \\\\`%s"),
        ];
        assert!(ended.out.starts_with(&expected.concat()), "{:?}: {:?}", room.shell, ended.out);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    }
}

#[test]
fn docker_57_commands_of_several_lines_are_sections_where_the_server_has_them() {
    for room in Room::each() {
        let case = || {
            Case::new().variable("FF_SCRIPT_SECTIONS", "true").script(&["echo a", "echo b\necho c"])
        };
        let out = room.run(case()).out;
        let digits = out
            .split(|c: char| !c.is_ascii_digit())
            .filter(|word| word.len() == 10)
            .collect::<Vec<_>>();
        assert_eq!(digits.len(), 2, "{out:?}");
        let out = out.replace(digits[0], "T").replace(digits[1], "T");
        let section = "section_script_step_1";
        let expected = [
            &shown("echo a"),
            "a\n",
            &format!("section_start:T:{section}[hide_duration=true,collapsed=true]\r\x1b[0K"),
            &shown("echo b\necho c"),
            &format!("section_end:T:{section}\r\x1b[0K"),
            "b\nc\n",
        ];
        assert_eq!(out, expected.concat(), "{:?}", room.shell);

        let old = case().with("features", json!({"trace_sections": false}));
        assert!(room.run(old).out.contains("# collapsed multi-line command"));
    }
}

#[test]
fn docker_60_a_masked_value_is_shown_in_the_bytes_that_are_masked() {
    let case = Case::new()
        .variable_with("S", "pa'ss\"wo$rd\\", &json!({"masked": true, "raw": true}))
        .script(&["true pa'ss\"wo$rd\\' # \""]);
    let plan = case.plan();
    assert_eq!(plan.masks, [Secret::new("pa'ss\"wo$rd\\")]);
    let out = Room::bash().run(case).out;
    assert!(out.contains(plan.masks[0].expose()), "the trace finds it: {out:?}");
}

#[test]
fn docker_61_debug_trace_shows_what_the_shell_does() {
    for room in Room::each() {
        let case = || {
            Case::new().variable("CI_DEBUG_TRACE", "true").variable("A", "b").script(&["echo $A"])
        };
        let ended = room.run(case());
        assert!(ended.err.contains("+ echo b"), "{:?}: {:?}", room.shell, ended.err);
        let ended = room.run(case().runner("debug_trace_disabled = true"));
        assert_eq!(ended.err, "", "{:?}", room.shell);
    }
}

#[test]
fn docker_55_failures_that_errexit_does_not_see_are_caught_with_the_flag() {
    for room in Room::each() {
        for hidden in ["false && true", "f() { return 3; }; ! true || f && true", "(exit 4) && :"] {
            let case = || Case::new().script(&[hidden, "echo went on"]);
            let ended = room.run(case());
            assert_eq!(ended.code, 0, "{:?} {hidden}", room.shell);
            assert!(ended.out.contains("went on"));
            let ended = room.run(case().variable("FF_ENABLE_BASH_EXIT_CODE_CHECK", "true"));
            assert_ne!(ended.code, 0, "{:?} {hidden}", room.shell);
            assert!(!ended.out.contains("went on\n"), "{:?} {hidden}", room.shell);
        }
        let fine = Case::new().variable("FF_ENABLE_BASH_EXIT_CODE_CHECK", "true").script(&[
            "false || true",
            "",
            "# nothing",
            "if false; then :; fi",
        ]);
        assert_eq!(room.run(fine).code, 0);
    }
}

#[test]
fn docker_3_4_a_step_is_one_shell_and_after_script_another() {
    for room in Room::each() {
        let case = || {
            Case::new().with(
                "steps",
                json!([
                    {"name": "script", "script": ["A=1", "cd /", "echo $A$PWD"]},
                    {"name": "after_script", "script": ["echo [$A]$PWD $CI_JOB_STATUS"]},
                ]),
            )
        };
        assert!(room.run(case()).out.ends_with("\n1/\n"), "{:?}", room.shell);
        let after = room.run_after(case(), JobStatus::Failed);
        let project = room.directory.path().join("builds/acme/turbine");
        let expected = format!(
            "\x1b[32;1mRunning after script...\x1b[0;m\n{}[]{} failed\n",
            shown("echo [$A]$PWD $CI_JOB_STATUS"),
            project.display()
        );
        assert_eq!(after.out, expected, "{:?}", room.shell);
    }
}

#[test]
fn docker_63_what_a_script_writes_to_gitlab_env_is_text_for_later_stages() {
    for room in Room::each() {
        let case = || {
            Case::new().with("steps", json!([
                {"name": "script", "script": [
                    "printf '%s\\n' 'A=1' 'B=$(id) `id` \"x\" $A' 'C=a=b ' 'no assignment' 'not this=1' \
                     '9=9' '=x' 'a.b=c' >> $GITLAB_ENV",
                    "printf 'LAST=no newline' >> $GITLAB_ENV",
                ]},
                {"name": "after_script", "script": [
                    "printf '[%s]\\n' \"$A\" \"$B\" \"$C\" \"$LAST\" \"$line\"",
                ]},
            ]))
        };
        let ended = room.run(case());
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{:?}", room.shell);
        let after = room.run_after(case(), JobStatus::Success);
        let expected = "[1]\n[$(id) `id` \"x\" $A]\n[a=b ]\n[no newline]\n[]\n";
        assert!(after.out.ends_with(expected), "{:?}: {:?}", room.shell, after.out);
        assert_eq!((after.code, after.err.as_str()), (0, ""), "{:?}", room.shell);
    }
}

#[test]
fn variables_of_any_short_name_are_the_jobs_own() {
    for room in Room::each() {
        let case = || {
            Case::new().variable("d", "1").variable("line", "2").variable("s", "3").with(
                "steps",
                json!([
                    {"name": "script", "script": ["echo A=1 >> $GITLAB_ENV; echo [$d$line$s]"]},
                    {"name": "after_script", "script": ["echo [$d$line$s]"]},
                ]),
            )
        };
        assert!(room.run(case()).out.ends_with("\n[123]\n"), "{:?}", room.shell);
        let after = room.run_after(case(), JobStatus::Success);
        assert!(after.out.ends_with("\n[123]\n"), "{:?}: {}", room.shell, after.out);
    }
}

#[test]
fn what_another_job_wrote_to_gitlab_env_is_not_read() {
    let room = Room::bash();
    fs::create_dir_all(room.file("")).unwrap();
    fs::write(room.file("gitlab_runner_env"), "LEFT=over\n").unwrap();
    let case = Case::new().variable("GIT_STRATEGY", "none").with(
        "steps",
        json!([
            {"name": "script", "script": ["echo [$LEFT]", "echo MINE=1 >> $GITLAB_ENV"]},
            {"name": "release", "script": ["echo [$$MINE]"]},
        ]),
    );
    let case = room.place(case);
    let plan = case.plan();
    let run = |index: usize| {
        room.shell(&plan.step_script(&plan.scripts.steps[index], "nonce"), &plan).out
    };
    assert!(run(0).contains("\n[]\n"));
    assert!(run(1).contains("\n[1]\n"), "steps of the job hear of each other");
}

#[test]
fn docker_73_file_variables_are_there_to_the_byte() {
    for room in Room::each() {
        let content = "line 'one' $$HOME\n\\ \"two\"\n\n";
        let case = || {
            Case::new()
                .variable_with("KEY", content, &json!({"file": true}))
                .script(&["cat \"$KEY\"; printf '[%s]' \"$KEY\""])
        };
        fs::create_dir_all(room.file("")).unwrap();
        // Another stage's file, perhaps another user's, or a link that leads elsewhere.
        let elsewhere = room.directory.path().join("elsewhere");
        fs::write(&elsewhere, "untouched").unwrap();
        std::os::unix::fs::symlink(&elsewhere, room.file("KEY")).unwrap();
        let ended = room.run(case());
        let path = room.file("KEY");
        let expected = content.replace("$$", "$");
        assert!(ended.out.ends_with(&format!("{expected}[{}]", path.display())), "{:?}", ended.out);
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "untouched");
    }
}

#[test]
fn docker_64_the_runners_scripts_run_in_the_jobs_shell() {
    for room in Room::each() {
        let case = |pre: &str, script: &str| {
            Case::new()
                .runner(&format!(
                    "pre_build_script = \"{pre}\"\npost_build_script = \"echo post $B\""
                ))
                .script(&[script])
        };
        let ended = room.run(case("A=from_pre", "B=$A; echo script"));
        let expected = [
            &shown("A=from_pre"),
            &shown("B=$A; echo script"),
            "script\n",
            &shown("echo post $B"),
            "post from_pre\n",
        ];
        assert_eq!(ended.out, expected.concat(), "{:?}", room.shell);
        let ended = room.run(case("(exit 9)", "echo script"));
        assert_eq!((ended.code, ended.out), (9, shown("(exit 9)")), "{:?}", room.shell);
        let ended = room.run(case("true", "false"));
        assert!(ended.code == 1 && !ended.out.contains("post"), "{:?}", room.shell);
    }
}

#[test]
fn docker_65_hooks_have_the_jobs_files_and_end_at_the_first_failure() {
    for room in Room::each() {
        let case = |commands: serde_json::Value| {
            room.place(Case::new())
                .variable_with("KEY", "content", &json!({"file": true}))
                .with("hooks", json!([{"name": "pre_get_sources_script", "script": commands}]))
        };
        fs::create_dir_all(room.file("")).unwrap();
        let run = |case: &Case| {
            let plan = case.plan();
            let script = plan.transfers.sources.as_ref().unwrap().pre_script.clone().unwrap();
            let output = Command::new(room.shell[0])
                .args(&room.shell[1..])
                .args(["-c", &script])
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .envs(plan.variables.iter().map(|v| (&v.key, &v.value)))
                .output()
                .unwrap();
            (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
        };
        let good = case(json!(["cat $KEY\n", "", "echo SAID=hook >> $GITLAB_ENV"]));
        let expected = [&shown("cat $KEY"), "content\n", &shown("echo SAID=hook >> $GITLAB_ENV")];
        assert_eq!(run(&good), (0, expected.concat()), "{:?}", room.shell);
        let mode = fs::metadata(room.file("gitlab_runner_env")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666, "the job's user may be another");
        let plan = good.script(&["echo [$SAID]"]);
        let text = plan.plan().step_script(&plan.plan().scripts.steps[0], "nonce");
        assert!(room.shell(&text, &plan.plan()).out.ends_with("\n[hook]\n"), "{:?}", room.shell);
        let bad = case(json!(["(exit 5)", "echo not reached"]));
        assert_eq!(run(&bad), (5, shown("(exit 5)")), "{:?}", room.shell);
    }
}

#[test]
fn docker_48_bash_is_preferred_and_sh_will_do() {
    let run = |shells: &str| {
        let detection = SHELL_DETECTION
            .replace("in /usr/local/bin/bash", &format!("in {shells} /usr/local/bin/bash"));
        let mut child = Command::new("sh")
            .args(["-c", &detection])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"echo ${BASH_VERSION:+bash}").unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(run("/nonexistent"), "bash\n");
    assert_eq!(run("/bin/dash"), "\n");
    let order = [
        "/usr/local/bin/bash",
        "/usr/bin/bash",
        "/bin/bash",
        "/usr/local/bin/sh",
        "/usr/bin/sh",
        "/bin/sh",
        "/busybox/sh",
    ];
    assert!(SHELL_DETECTION.contains(&order.join(" ")));
}

#[test]
fn the_text_of_a_step() {
    let case = Case::new()
        .runner("pre_build_script = \"echo pre\"\npost_build_script = \"echo post\"")
        .variable_with("KEY", "it's", &json!({"file": true}))
        .variable("FF_ENABLE_BASH_EXIT_CODE_CHECK", "true")
        .with(
            "steps",
            json!([
                {"name": "script", "script": ["echo 'a'", "", "first\nsecond"]},
                {"name": "after_script", "script": ["echo bye"]},
            ]),
        );
    let plan = case.plan();
    insta::assert_snapshot!("step_script", plan.step_script(&plan.scripts.steps[0], "nonce"));
    insta::assert_snapshot!("after_script", plan.after_script(JobStatus::Canceled, "nonce"));
}

use std::{fmt::Write, fs, path::Path};

use super::{
    exit::Exit,
    testing::{console, parsed},
    *,
};
use crate::{config::edit::entries, gitlab::test_server::Server};

fn setting(directory: &Path) -> Setting {
    Setting { config: directory.join("config.toml"), env: |_| None }
}

fn parse(arguments: &[&str]) -> Command {
    parsed::<Cli>(arguments).unwrap_or_else(|error| panic!("{error}")).command
}

fn verify_args(arguments: &[&str]) -> VerifyArgs {
    match parse(&[&["verify"], arguments].concat()) {
        Command::Verify(args) => args,
        other => panic!("{other:?}"),
    }
}

fn unregister_args(arguments: &[&str]) -> UnregisterArgs {
    match parse(&[&["unregister"], arguments].concat()) {
        Command::Unregister(args) => args,
        other => panic!("{other:?}"),
    }
}

fn reset_args(arguments: &[&str]) -> ResetTokenArgs {
    match parse(&[&["reset-token"], arguments].concat()) {
        Command::ResetToken(args) => args,
        other => panic!("{other:?}"),
    }
}

/// A file with two runners of this server, with a comment that must stay.
fn two_runners(setting: &Setting, url: &str) -> String {
    let mut text = "# ours\nconcurrent = 1\n".to_owned();
    for (name, token, id) in [("one", "glrt-one", 1), ("two", "legacy-two", 2)] {
        write!(
            text,
            "\n[[runners]]\nname = \"{name}\"\nurl = \"{url}\"\nid = {id}\ntoken = \"{token}\"\n\
             executor = \"docker\"\n[runners.docker]\n"
        )
        .unwrap();
    }
    fs::write(&setting.config, &text).unwrap();
    text
}

fn names(setting: &Setting) -> Vec<String> {
    let entries = entries(&setting.config, &|_| None).unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_are_taken_before_and_after_the_subcommand() {
    for arguments in
        [["-c", "/x", "--log-format", "json", "list"], ["list", "-c", "/x", "--log-format", "json"]]
    {
        let global = parsed::<Cli>(&arguments).unwrap().global;
        assert_eq!(global.config.as_deref(), Some(Path::new("/x")));
        assert_eq!(global.log_format.as_deref(), Some("json"));
    }
    assert!(parsed::<Cli>(&["--log-level", "loud", "list"]).is_err());
    let version = parsed::<Cli>(&["-v"]).unwrap_err();
    assert_eq!(version.kind(), clap::error::ErrorKind::DisplayVersion);
}

#[test]
fn the_daemons_commands_take_the_incumbents_options() {
    let Command::Run(run) = parse(&["run", "-d", "/", "-u", "x", "-n", "y", "--syslog"]) else {
        panic!("not run")
    };
    assert_eq!((run.user.as_deref(), run.syslog), (Some("x"), true));
    let arguments = ["run-single", "--max-builds", "1", "--wait-timeout", "5", "--url", "http://a"];
    let Command::RunSingle(single) = parse(&arguments) else { panic!("not run-single") };
    assert_eq!((single.max_builds, single.wait_timeout), (1, 5));
    assert_eq!(single.options.text("url"), "http://a");
    assert!(matches!(parse(&["helper", "serve"]), Command::Helper(HelperCommand::Serve)));
}

#[test]
fn list_prints_a_line_of_data_for_each_runner() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    two_runners(&setting, "https://a.example");
    let (mut console, out, _) = console("");
    assert_eq!(list(&setting, &mut console).unwrap(), Exit::Success);
    let text = out.text();
    assert_eq!(text.lines().count(), 2);
    assert!(text.starts_with("one  "), "{text}");
    assert!(text.contains("  Executor=docker Token=glrt-one URL=https://a.example\n"), "{text}");
}

#[test]
fn config_2_config_3_lint_fails_on_findings_and_on_a_missing_file() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let run = |text: Option<&str>| {
        if let Some(text) = text {
            fs::write(&setting.config, text).unwrap();
        }
        let (mut console, _, err) = console("");
        let exit = match lint(&setting, &mut console) {
            Ok(exit) => exit,
            Err(failure) => {
                failure.print(&mut console.err).unwrap();
                failure.exit()
            }
        };
        (exit, err.text())
    };
    let (exit, text) = run(None);
    assert_eq!(exit, Exit::Failure);
    assert!(text.contains("cannot read"), "{text}");
    let (exit, text) = run(Some("foo = 1\n"));
    assert_eq!(
        (exit, text.as_str()),
        (Exit::Failure, "warning: line 1: foo: unknown key, ignored\n")
    );
    let (exit, text) = run(Some("concurrent = 0\nfoo = 1\n"));
    assert!(text.contains("warning: line 2: foo: unknown key"), "{text}");
    assert_eq!(exit, Exit::Failure);
    assert!(text.contains("line 1: concurrent = 0: must be at least 1"), "{text}");
    assert_eq!(run(Some("concurrent = 1\n")).0, Exit::Success);
}

#[test]
fn completions_come_from_the_parser() {
    let (mut console, out, _) = console("");
    completions(clap_complete::Shell::Bash, Cli::command(), &mut console).unwrap();
    assert!(out.text().contains("--docker-volumes"));
    assert!(out.text().contains("reset-token"));
}

#[tokio::test]
async fn api_31_config_26_verify_reports_and_changes_nothing_unless_told_to_delete() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let answers =
        [(200, r#"{"id":1,"token":"glrt-one"}"#), (403, r#"{"message":"403 Forbidden"}"#)];
    let server = Server::scripted(&answers).await;
    let text = two_runners(&setting, server.url());
    let (mut console, _, err) = console("");
    let failure = verify(&setting, &verify_args(&[]), &mut console).await.unwrap_err();
    assert_eq!(failure.exit(), Exit::Failure);
    assert!(failure.to_string().contains("--delete"), "{failure}");
    assert!(err.text().contains("`one` (one) is valid"), "{}", err.text());
    assert!(err.text().contains("`two` (legacy-tw) is not valid"), "{}", err.text());
    assert_eq!(fs::read_to_string(&setting.config).unwrap(), text);
    let asked = server.seen();
    assert_eq!(asked[0].line(), "POST /api/v4/runners/verify");
    assert_eq!(asked[0].json()["token"], "glrt-one");
    assert_eq!(asked[0].json()["info"]["executor"], "docker");

    let server = Server::scripted(&answers).await;
    two_runners(&setting, server.url());
    let outcome = verify(&setting, &verify_args(&["--delete"]), &mut console).await;
    assert_eq!(outcome.unwrap(), Exit::Success);
    assert_eq!(names(&setting), ["one"]);
    assert!(fs::read_to_string(&setting.config).unwrap().starts_with("# ours\n"));
}

#[tokio::test]
async fn api_28_commands_send_one_system_id() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let server = Server::scripted(&[(403, ""), (403, "")]).await;
    two_runners(&setting, server.url());
    let (mut console, _, _) = console("");
    let _ = verify(&setting, &verify_args(&[]), &mut console).await;
    let asked = server.seen();
    let kept = fs::read_to_string(directory.path().join(".runner_system_id")).unwrap();
    assert_eq!(asked[0].json()["system_id"], kept.as_str());
    assert_eq!(asked[1].json()["system_id"], kept.as_str());
}

#[tokio::test]
async fn api_32_verify_keeps_a_runner_whose_server_does_not_say() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let server = Server::scripted(&[(400, "")]).await;
    let text = two_runners(&setting, server.url());
    let (mut console, _, err) = console("");
    let args = verify_args(&["--delete", "--name", "one"]);
    assert_eq!(verify(&setting, &args, &mut console).await.unwrap(), Exit::Success);
    assert_eq!(fs::read_to_string(&setting.config).unwrap(), text);
    assert!(err.text().contains("is kept"), "{}", err.text());
}

#[tokio::test]
async fn a_selection_that_fits_nothing_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    two_runners(&setting, "http://127.0.0.1:1");
    let (mut console, _, _) = console("");
    let args = verify_args(&["--name", "three"]);
    let failure = verify(&setting, &args, &mut console).await.unwrap_err();
    assert!(failure.to_string().contains("no runner with name `three`"), "{failure}");
    let args = unregister_args(&["--name", "three"]);
    assert!(unregister(&setting, &args, &mut console).await.is_err());
    assert!(unregister(&setting, &unregister_args(&[]), &mut console).await.is_err());
    assert!(reset_token(&setting, &reset_args(&["-n", "three"]), &mut console).await.is_err());
    assert!(reset_token(&setting, &reset_args(&[]), &mut console).await.is_err());
}

#[tokio::test]
async fn api_37_api_38_unregister_removes_a_manager_or_a_legacy_runner() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let server = Server::scripted(&[(204, ""), (204, "")]).await;
    two_runners(&setting, server.url());
    let (mut console, _, _) = console("");
    let args = unregister_args(&["--all-runners"]);
    assert_eq!(unregister(&setting, &args, &mut console).await.unwrap(), Exit::Success);
    let lines = ["DELETE /api/v4/runners/managers", "DELETE /api/v4/runners"];
    assert_eq!(server.lines(), lines);
    let (manager, runner) = (&server.seen()[0], &server.seen()[1]);
    assert_eq!(manager.json()["token"], "glrt-one");
    assert!(manager.json()["system_id"].as_str().is_some_and(|id| id.len() == 14));
    assert_eq!(runner.json(), serde_json::json!({ "token": "legacy-two" }));
    assert_eq!(names(&setting), [""; 0]);
}

#[tokio::test]
async fn api_39_config_27_entries_that_stay_at_their_server_stay_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let server = Server::scripted(&[(404, ""), (204, "")]).await;
    two_runners(&setting, server.url());
    let (mut console, _, _) = console("");
    let args = unregister_args(&["--all-runners"]);
    assert!(unregister(&setting, &args, &mut console).await.is_err());
    assert_eq!(names(&setting), ["one"]);
}

#[tokio::test]
async fn a_runner_of_no_file_is_unregistered_by_address_and_token() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let server = Server::scripted(&[(204, "")]).await;
    let (mut console, _, _) = console("");
    let args = unregister_args(&["--url", server.url(), "--token", "glrt-other"]);
    assert_eq!(unregister(&setting, &args, &mut console).await.unwrap(), Exit::Success);
    assert_eq!(server.lines(), ["DELETE /api/v4/runners/managers"]);
}

#[tokio::test]
async fn api_40_config_28_a_reset_token_and_its_expiry_are_stored() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let answer = r#"{"token":"glrt-new","token_expires_at":"2030-01-02T03:04:05Z"}"#;
    let server = Server::scripted(&[(201, answer)]).await;
    two_runners(&setting, server.url());
    let (mut console, out, err) = console("");
    let outcome = reset_token(&setting, &reset_args(&["--name", "one"]), &mut console).await;
    assert_eq!(outcome.unwrap(), Exit::Success);
    let asked = &server.seen()[0];
    assert_eq!(asked.line(), "POST /api/v4/runners/reset_authentication_token");
    assert_eq!(asked.json(), serde_json::json!({ "token": "glrt-one" }));
    assert!(asked.header("runner-token").is_none());
    let text = fs::read_to_string(&setting.config).unwrap();
    assert!(text.contains("token = \"glrt-new\""), "{text}");
    assert!(text.contains("token_expires_at = 2030-01-02T03:04:05Z"), "{text}");
    assert!(text.contains("token_obtained_at = 20"), "{text}");
    assert!(!out.text().contains("glrt-new") && !err.text().contains("glrt-new"));
}

#[tokio::test]
async fn api_41_a_token_is_reset_with_a_personal_one() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let server = Server::scripted(&[(201, r#"{"token":"new","token_expires_at":null}"#)]).await;
    two_runners(&setting, server.url());
    let (mut console, _, _) = console("");
    let args = reset_args(&["--url", server.url(), "--id", "2", "--pat", "glpat-x"]);
    assert_eq!(reset_token(&setting, &args, &mut console).await.unwrap(), Exit::Success);
    let asked = &server.seen()[0];
    assert_eq!(asked.line(), "POST /api/v4/runners/2/reset_authentication_token");
    assert_eq!(asked.header("private-token"), Some("glpat-x"));
    assert_eq!(asked.json(), serde_json::Value::Null);
    assert!(fs::read_to_string(&setting.config).unwrap().contains("token = \"new\""));
}

#[tokio::test]
async fn a_refused_reset_leaves_the_file_alone() {
    let directory = tempfile::tempdir().unwrap();
    let setting = setting(directory.path());
    let server = Server::scripted(&[(403, ""), (403, "")]).await;
    let text = two_runners(&setting, server.url());
    let (mut console, _, _) = console("");
    assert!(reset_token(&setting, &reset_args(&["--all-runners"]), &mut console).await.is_err());
    assert_eq!(fs::read_to_string(&setting.config).unwrap(), text);
    assert_eq!(server.lines().len(), 2);
}

use std::{fs, future};

use clap::Parser;

use super::*;
use crate::{
    cli::testing::{console, parsed},
    gitlab::test_server::Server,
};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: RegisterArgs,
}

/// What came of a registration: exit code, what was said, and the file.
struct Done {
    exit: Exit,
    said: String,
    file: String,
    _directory: tempfile::TempDir,
}

async fn run(arguments: &[&str], input: &'static str) -> Done {
    run_until(arguments, input, future::pending(), "").await
}

async fn run_until(
    arguments: &[&str],
    input: &'static str,
    interrupt: impl Future<Output = ()>,
    file: &str,
) -> Done {
    let directory = tempfile::tempdir().unwrap();
    let setting = Setting { config: directory.path().join("config.toml"), env: |_| None };
    if !file.is_empty() {
        fs::write(&setting.config, file).unwrap();
    }
    let args = parsed::<Program>(arguments).unwrap_or_else(|error| panic!("{error}")).args;
    let (mut console, _, err) = console(input);
    let outcome = register(&setting, &args, &mut console, interrupt).await;
    let (exit, failure) = match outcome {
        Ok(exit) => (exit, String::new()),
        Err(failure) => (failure.exit(), failure.to_string()),
    };
    let file = fs::read_to_string(&setting.config).unwrap_or_default();
    Done { exit, said: err.text() + &failure, file, _directory: directory }
}

const VALID: (u16, &str) =
    (200, r#"{"id":42,"token":"glrt-abc","token_expires_at":"2030-01-02T03:04:05.678Z"}"#);

/// Arguments of a registration without questions that succeeds.
fn unattended(url: &str) -> Vec<&str> {
    vec![
        "--non-interactive",
        "--url",
        url,
        "--token",
        "glrt-abc",
        "--name",
        "mine",
        "--executor",
        "docker",
        "--docker-image",
        "ruby:3.3",
    ]
}

#[tokio::test]
async fn api_29_a_created_runner_is_verified_and_stored_with_id_and_expiry() {
    let server = Server::scripted(&[VALID]).await;
    let done = run(&unattended(server.url()), "").await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    let asked = server.seen();
    assert_eq!(server.lines(), ["POST /api/v4/runners/verify"]);
    assert_eq!(asked[0].json()["token"], "glrt-abc");
    assert_eq!(asked[0].json()["info"]["executor"], "docker");
    assert!(asked[0].json()["info"]["features"].as_object().unwrap().len() > 20);
    assert!(asked[0].json()["system_id"].as_str().is_some_and(|id| id.len() == 14));
    let obtained = done.file.lines().find(|line| line.contains("obtained")).unwrap();
    let expected = format!(
        "concurrent = 1\ncheck_interval = 0\n\n[[runners]]\nname = \"mine\"\nurl = \"{}\"\n\
         id = 42\ntoken = \"glrt-abc\"\n{obtained}\n\
         token_expires_at = 2030-01-02T03:04:05.678Z\nexecutor = \"docker\"\n\n\
         [runners.docker]\nimage = \"ruby:3.3\"\nvolumes = [\"/cache\"]\n",
        server.url()
    );
    assert_eq!(done.file, expected);
    assert!(done.said.contains("`mine` (abc) is registered"), "{}", done.said);
    assert!(done.said.contains("config.toml"), "{}", done.said);
    assert!(!done.said.contains("glrt-abc"), "{}", done.said);
}

#[tokio::test]
async fn api_30_a_server_that_does_not_name_the_runner_fails_the_registration() {
    let server = Server::scripted(&[(200, "200"), (200, "200")]).await;
    let done = run(&unattended(server.url()), "").await;
    assert_eq!(done.exit, Exit::Failure);
    assert!(done.said.contains("did not say which runner"), "{}", done.said);
    assert_eq!(server.lines().len(), 2);
    assert_eq!(done.file, "");
}

#[tokio::test]
async fn api_31_an_unknown_token_fails_the_registration() {
    let server = Server::scripted(&[(403, "")]).await;
    let done = run(&unattended(server.url()), "").await;
    assert_eq!(done.exit, Exit::Failure);
    assert!(done.said.contains("does not know runner abc"), "{}", done.said);
    assert_eq!((server.lines().len(), done.file.as_str()), (1, ""));
}

/// Arguments of the deprecated flow.
fn legacy(url: &str) -> Vec<&str> {
    vec![
        "--non-interactive",
        "--url",
        url,
        "--registration-token",
        "GR1348941x",
        "--description",
        "mine",
        "--executor",
        "docker",
        "--docker-image",
        "a",
    ]
}

#[tokio::test]
async fn api_33_a_registration_token_makes_the_runner_and_its_token_is_stored() {
    let server = Server::scripted(&[(201, r#"{"id":7,"token":"new-token"}"#)]).await;
    let done = run(&legacy(server.url()), "").await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    let asked = &server.seen()[0];
    assert_eq!(asked.line(), "POST /api/v4/runners");
    assert_eq!(asked.json()["token"], "GR1348941x");
    assert_eq!(asked.json()["description"], "mine");
    assert_eq!(
        (&asked.json()["run_untagged"], &asked.json()["locked"]),
        (&true.into(), &true.into())
    );
    assert!(done.file.contains("token = \"new-token\""), "{}", done.file);
    assert!(!done.file.contains("GR1348941x"), "{}", done.file);

    let server = Server::scripted(&[(201, r#"{"id":7,"token":"new-token"}"#)]).await;
    let more =
        ["--tag-list", "a,b", "--locked=false", "--access-level", "ref_protected", "--paused"];
    let done = run(&[legacy(server.url()), more.to_vec()].concat(), "").await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    let body = server.seen()[0].json();
    assert_eq!((&body["run_untagged"], &body["locked"]), (&false.into(), &false.into()));
    assert_eq!((&body["tag_list"], &body["paused"]), (&"a,b".into(), &true.into()));
    assert_eq!(body["access_level"], "ref_protected");
}

#[tokio::test]
async fn api_34_the_servers_words_about_fields_are_shown() {
    let answer = (400, r#"{"message":{"tag_list":["is too long"]}}"#);
    let server = Server::scripted(&[answer]).await;
    let done = run(&legacy(server.url()), "").await;
    assert_eq!(done.exit, Exit::Failure);
    assert!(done.said.contains("tag_list: is too long"), "{}", done.said);
}

#[tokio::test]
async fn a_legacy_authentication_token_is_verified_and_never_removed() {
    let server = Server::scripted(&[(200, "200"), (200, "200")]).await;
    let url = server.url();
    let arguments = [
        "--non-interactive",
        "--url",
        url,
        "--token",
        "legacy-token",
        "--executor",
        "docker",
        "--docker-image",
        "a",
    ];
    let done = run(&arguments, "").await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    assert!(done.file.contains("token = \"legacy-token\""), "{}", done.file);
    assert!(!done.file.contains("id = "), "{}", done.file);

    let server = Server::scripted(&[(200, r#"{"id":1,"token":"legacy-token"}"#)]).await;
    let url = server.url();
    let arguments =
        ["--non-interactive", "--url", url, "--token", "legacy-token", "--executor", "shell"];
    let done = run(&arguments, "").await;
    assert_eq!((done.exit, server.lines().len()), (Exit::Failure, 1), "{}", done.said);
}

#[tokio::test]
async fn api_35_config_23_reserved_options_are_fatal_or_ignored() {
    for option in [
        "--tag-list=a",
        "--locked=false",
        "--run-untagged",
        "--access-level=not_protected",
        "--maximum-timeout=9",
        "--paused",
        "--maintenance-note=x",
    ] {
        let server = Server::scripted(&[VALID]).await;
        let done = run(&[unattended(server.url()), vec![option]].concat(), "").await;
        assert_eq!(done.exit, Exit::Failure, "{option}");
        let name = option.split('=').next().unwrap();
        assert!(done.said.contains(name), "{}", done.said);
        assert_eq!(server.lines(), [""; 0], "before any request");
    }
    let server = Server::scripted(&[VALID]).await;
    let arguments: Vec<&str> = unattended(server.url())
        .into_iter()
        .map(|a| if a == "--token" { "--registration-token" } else { a })
        .chain(["--tag-list", "a", "--locked=false"])
        .collect();
    let done = run(&arguments, "").await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    assert!(done.said.contains("ignored: --tag-list, --locked"), "{}", done.said);
    assert_eq!(server.lines(), ["POST /api/v4/runners/verify"]);
}

#[tokio::test]
async fn api_36_config_25_what_fails_later_is_undone_at_the_server_unless_left() {
    let bad = |url: &str| -> Vec<String> {
        let arguments = unattended(url).into_iter();
        arguments.map(|a| if a == "docker" { "dcoker" } else { a }.to_owned()).collect()
    };
    let server = Server::scripted(&[VALID, (204, "")]).await;
    let arguments = bad(server.url());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = run(&arguments, "").await;
    assert_eq!(done.exit, Exit::Failure);
    assert!(done.said.contains("`dcoker` is not supported"), "{}", done.said);
    let lines = ["POST /api/v4/runners/verify", "DELETE /api/v4/runners/managers"];
    assert_eq!(server.lines(), lines);
    assert_eq!(server.seen()[1].json()["system_id"], server.seen()[0].json()["system_id"]);
    assert_eq!(done.file, "");

    let server = Server::scripted(&[VALID, (204, "")]).await;
    let arguments = bad(server.url());
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.push("--leave-runner");
    let done = run(&arguments, "").await;
    assert_eq!(server.lines(), ["POST /api/v4/runners/verify"]);
    assert!(done.said.contains("--leave-runner"), "{}", done.said);

    // The deprecated flow undoes the runner that it made, with its new token.
    let server = Server::scripted(&[(201, r#"{"id":7,"token":"new"}"#), (204, "")]).await;
    let arguments: Vec<&str> =
        legacy(server.url()).into_iter().map(|a| if a == "docker" { "shell" } else { a }).collect();
    run(&arguments, "").await;
    assert_eq!(server.lines(), ["POST /api/v4/runners", "DELETE /api/v4/runners"]);
    assert_eq!(server.seen()[1].json()["token"], "new");
}

#[tokio::test]
async fn an_interrupt_undoes_the_registration() {
    let server = Server::scripted(&[VALID, (204, "")]).await;
    // Interrupted as soon as the server has been asked; then the name is being waited for.
    let asked = async {
        while server.lines().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let url = server.url();
    let directory = tempfile::tempdir().unwrap();
    let setting = Setting { config: directory.path().join("config.toml"), env: |_| None };
    let args = parsed::<Program>(&["--url", url, "--token", "glrt-abc"]);
    let (mut console, _, err) = console("");
    // The first answer is there, then the input stays silent.
    let (input, mut keyboard) = tokio::io::duplex(64);
    tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"\n").await.unwrap();
    console.input = Box::new(tokio::io::BufReader::new(input));
    let interrupt = async {
        asked.await;
        while !err.text().contains("Enter a name") {
            tokio::task::yield_now().await;
        }
    };
    let outcome = register(&setting, &args.unwrap().args, &mut console, interrupt).await;
    assert!(outcome.unwrap_err().to_string().contains("interrupted"));
    let lines = ["POST /api/v4/runners/verify", "DELETE /api/v4/runners/managers"];
    assert_eq!(server.lines(), lines);
    assert!(!setting.config.exists());
}

#[tokio::test]
async fn questions_are_asked_in_order_and_a_wrong_executor_again() {
    let server = Server::scripted(&[VALID]).await;
    let input = "\nglrt-abc\n\nshell\ndocker\n\nalpine:3\n";
    let done = run(&["--url", server.url(), "--limit", "5"], input).await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    let questions: Vec<&str> = done.said.lines().filter(|l| l.contains("Enter")).collect();
    let words = ["URL", "token", "name", "executor", "executor", "image", "image"];
    assert_eq!(questions.len(), words.len(), "{}", done.said);
    assert!(questions.iter().zip(words).all(|(question, word)| question.contains(word)));
    assert!(done.file.contains("image = \"alpine:3\""), "{}", done.file);
    assert!(done.said.contains("`limit` is 5, but `concurrent` is 1"), "{}", done.said);
    let done = run(&["--url", server.url()], "\n").await;
    assert!(done.said.contains("was not answered"), "{}", done.said);
}

#[tokio::test]
async fn what_is_missing_is_fatal_without_questions() {
    for (missing, says) in [("--url", "--url is missing"), ("--docker-image", "--docker-image")] {
        let server = Server::scripted(&[VALID, (204, "")]).await;
        let all = unattended(server.url());
        let at = all.iter().position(|argument| *argument == missing).unwrap();
        let arguments: Vec<&str> = [&all[..at], &all[at + 2..]].concat();
        let done = run(&arguments, "").await;
        assert_eq!(done.exit, Exit::Failure, "{missing}");
        assert!(done.said.contains(says), "{}", done.said);
    }
}

#[tokio::test]
async fn options_that_cannot_be_used_fail_before_any_request() {
    let server = Server::scripted(&[VALID]).await;
    let arguments = [unattended(server.url()), vec!["--docker-memory", "much"]].concat();
    let done = run(&arguments, "").await;
    assert!(done.said.contains("runners[0].docker.memory = \"much\""), "{}", done.said);
    assert_eq!(server.lines(), [""; 0]);
    let done = run_until(&unattended(server.url()), "", future::pending(), "not toml").await;
    assert_eq!((done.exit, done.file.as_str()), (Exit::BadConfiguration, "not toml"));
    assert_eq!(server.lines(), [""; 0]);
}

#[tokio::test]
async fn config_22_the_cache_volume_is_added_unless_there_or_disabled() {
    for (option, volumes) in [
        ("--docker-volumes=/a", "volumes = [\"/a\", \"/cache\"]"),
        ("--docker-volumes=/host:/cache/:rw", "volumes = [\"/host:/cache/:rw\"]"),
        ("--docker-volumes=/cache", "volumes = [\"/cache\"]"),
        ("--docker-disable-cache", "disable_cache = true\n"),
    ] {
        let server = Server::scripted(&[VALID]).await;
        let done = run(&[unattended(server.url()), vec![option]].concat(), "").await;
        assert_eq!(done.exit, Exit::Success, "{}", done.said);
        assert!(done.file.contains(volumes), "{}", done.file);
        let none = option == "--docker-disable-cache" && done.file.contains("volumes");
        assert!(!none, "{}", done.file);
    }
}

async fn with_template(template: &str, more: &[&str]) -> Done {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("template.toml");
    fs::write(&path, template).unwrap();
    let server = Server::scripted(&[VALID]).await;
    let path = path.to_str().unwrap();
    run(&[unattended(server.url()), vec!["--template-config", path], more.to_vec()].concat(), "")
        .await
}

#[tokio::test]
async fn a_template_fills_what_no_option_sets() {
    let template = "concurrent = 99\n[[runners]]\ntoken = \"dropped\"\nname = \"theirs\"\n\
                    limit = 7\n[runners.docker]\nprivileged = true\nimage = \"theirs\"\n\
                    volumes = [\"/theirs\"]\n[[runners.docker.services]]\nname = \"redis\"\n";
    let options = ["--docker-privileged=false", "--docker-volumes", "/ours"];
    let done = with_template(template, &options).await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    for expected in [
        "concurrent = 1\n",
        "name = \"mine\"",
        "token = \"glrt-abc\"",
        "limit = 7",
        "privileged = true",
        "image = \"ruby:3.3\"",
        "volumes = [\"/ours\", \"/cache\"]",
        "[[runners.docker.services]]\nname = \"redis\"",
    ] {
        assert!(done.file.contains(expected), "{expected} in {}", done.file);
    }
    assert!(!done.file.contains("theirs"), "{}", done.file);
}

#[tokio::test]
async fn tables_of_a_template_may_be_written_inline() {
    let template = "[[runners]]\ndocker = { privileged = true }\nfeature_flags = { FF_A = true }\n";
    let done = with_template(template, &["--feature-flags", "FF_B:false"]).await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    assert!(done.file.contains("privileged = true"), "{}", done.file);
    assert!(done.file.contains("FF_B = false, FF_A = true"), "{}", done.file);
}

#[tokio::test]
async fn config_24_a_template_has_one_runner() {
    for template in ["", "[[runners]]\n[[runners]]\n", "concurrent = 1\n"] {
        let done = with_template(template, &[]).await;
        assert_eq!(done.exit, Exit::Failure);
        assert!(done.said.contains("must have one"), "{}", done.said);
    }
    let done = with_template("token = \"secret", &[]).await;
    assert!(done.said.contains("not TOML") && !done.said.contains("secret"), "{}", done.said);
}

#[tokio::test]
async fn a_second_runner_is_added_to_a_file_as_it_is() {
    let server = Server::scripted(&[VALID]).await;
    let file =
        "# ours\nconcurrent = 9 # nine\n\n[[runners]]\nname = \"old\"\nexecutor = \"shell\"\n";
    let done = run_until(&unattended(server.url()), "", future::pending(), file).await;
    assert_eq!(done.exit, Exit::Success, "{}", done.said);
    assert!(done.file.starts_with(file), "{}", done.file);
    assert!(!done.said.contains("has this token"), "{}", done.said);

    let server = Server::scripted(&[VALID]).await;
    let again =
        format!("[[runners]]\nname = \"old\"\nurl = \"{}\"\ntoken = \"glrt-abc\"\n", server.url());
    let done = run_until(&unattended(server.url()), "", future::pending(), &again).await;
    assert!(done.said.contains("`old` has this token already"), "{}", done.said);
}

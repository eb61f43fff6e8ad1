//! Configuration files that are wrong.

use crate::{
    commands::{Said, longshore},
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
};

/// A value that must never be shown.
const TOKEN: &str = "glrt-neverShowThisToken00";

/// What is said of the configuration `text` by the command.
async fn said(command: &str, text: &str) -> Said {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    std::fs::write(&config, text).unwrap();
    let state = directory.path().join("state");
    let said = longshore(&[command])
        .args(["--config", config.to_str().unwrap()])
        .args(["--state-dir", state.to_str().unwrap()]);
    said.run().await
}

fn assert_names(said: &Said, wanted: &[&str]) {
    for text in wanted {
        assert!(said.all().contains(text), "no `{text}` in:\n{}", said.all());
    }
    assert!(!said.all().contains(TOKEN), "the token is shown:\n{}", said.all());
}

#[tokio::test]
async fn a_file_that_is_no_toml_is_named_with_its_line_and_nothing_of_its_text() {
    let text = format!("concurrent = 1\n[[runners]]\ntoken = \"{TOKEN}\" \"{TOKEN}\"\n");
    let said = said("run", &text).await;
    assert_eq!(said.code, Some(78), "{}", said.all());
    assert_names(&said, &["config.toml", "line 3", "not TOML"]);
}

#[tokio::test]
async fn config_4_all_that_is_wrong_is_named_at_once_with_key_value_and_reason() {
    let text = format!(
        r#"
        concurrent = 0
        check_interval = "often"
        [[runners]]
        name = "one"
        url = "https://gitlab.example.com"
        token = "{TOKEN}"
        executor = "shell"
        [[runners]]
        name = "two"
        token = 17
        executor = "docker"
        [runners.docker]
        image = "busybox"
        pull_policy = "sometimes"
        memory = "much"
        "#
    );
    let said = said("run", &text).await;
    assert_eq!(said.code, Some(78), "{}", said.all());
    assert_names(
        &said,
        &[
            "config.toml",
            "line 2: concurrent = 0: must be at least 1",
            "line 3: check_interval = \"often\": must be a whole number, found text",
            "line 8: runners[0].executor = \"shell\": runner `one` has an executor that is not",
            "runners[1].url",
            "runners[1].token",
            "runners[1].docker.pull_policy",
            "\"sometimes\"",
            "runners[1].docker.memory = \"much\"",
        ],
    );
}

#[tokio::test]
async fn a_token_of_a_wrong_type_is_not_shown() {
    let text = format!(
        "[[runners]]\nurl = \"https://x\"\ntoken = [\"{TOKEN}\"]\nexecutor = \"docker\"\n\
         [runners.docker]\nimage = \"x\"\n"
    );
    let said = said("run", &text).await;
    assert_eq!(said.code, Some(78), "{}", said.all());
    assert_names(&said, &["line 3: runners[0].token"]);
}

#[tokio::test]
async fn an_address_that_is_none_is_named_without_its_password() {
    let text = "[[runners]]\nurl = \"htps://user:s3cretPassword@x\"\ntoken = \"t\"\n\
                executor = \"docker\"\n[runners.docker]\nimage = \"x\"\n";
    let said = said("run", text).await;
    assert_eq!(said.code, Some(78), "{}", said.all());
    assert_names(&said, &["line 2: runners[0].url"]);
    assert!(!said.all().contains("s3cretPassword"), "{}", said.all());
}

#[tokio::test]
async fn config_2_lint_fails_with_unknown_keys_and_problems_by_name() {
    let text = format!(
        "concurrent = 2\nconcurent = 3\n[[runners]]\nname = \"r\"\nurl = \"https://x\"\n\
         token = \"{TOKEN}\"\nexecutor = \"docker\"\n[runners.docker]\nimage = \"x\"\n\
         priviledged = true\n"
    );
    let found = said("lint", &text).await;
    assert_eq!(found.code, Some(1), "{}", found.all());
    assert_names(&found, &["line 2: concurent", "line 10: runners[0].docker.priviledged"]);
    let wrong = said("lint", &text.replace("\"https://x\"", "7")).await;
    assert_eq!(wrong.code, Some(1), "{}", wrong.all());
    assert_names(&wrong, &["concurent", "priviledged", "runners[0].url"]);
    let good = text.replace("concurent = 3\n", "").replace("priviledged = true\n", "");
    let good = said("lint", &good).await;
    assert_eq!(good.code, Some(0), "{}", good.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn config_2_run_warns_of_unknown_keys_by_name_and_works() {
    let options = Options {
        edit: Some(Box::new(|text| format!("concurent = 3\n{text}"))),
        docker: "priviledged = true",
        ..Options::default()
    };
    let case = Case::with(options).await;
    let ended = case.run(job(&["echo works"])).await;
    ended.assert_success();
    for key in ["concurent", "runners[0].docker.priviledged"] {
        assert!(case.log().contains(key), "{key} is not warned of: {}", case.log());
    }
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let said = longshore(&["run", "--config", directory.path().to_str().unwrap()]).run().await;
    assert_eq!(said.code, Some(1), "{}", said.all());
    assert_names(&said, &["cannot read", directory.path().to_str().unwrap()]);
}

//! Scripts, variables, services, and what a job costs the engine.

use serde_json::{Value, json};

use crate::{
    counter::{Count, Counter},
    engine::engine,
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
};

/// A service that serves one page on port 8000, known as `web`.
pub(crate) fn web() -> Value {
    json!({
        "name": "busybox:latest",
        "alias": "web",
        "entrypoint": ["sh", "-c"],
        "command": ["mkdir -p /www && echo served > /www/index.html && exec httpd -f -p 8000 -h /www"],
        "variables": [{"key": "HEALTHCHECK_TCP_PORT", "value": "8000", "public": true}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn api_124_126_docker_56_193_194_a_script_runs_and_nothing_is_left_of_it() {
    let case = Case::start().await;
    let ended = case.run(job(&["echo hello $WHO"]).variable("WHO", "world")).await;
    ended.assert_success();
    ended.assert_lines(&["$ echo hello $WHO", "hello world", "Job succeeded"]);
    assert_eq!((ended.failure_reason(), ended.exit_code()), (None, None));
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_64_the_first_call_for_a_job_acknowledges_it() {
    let case = Case::start().await;
    let ended = case.run(job(&["true"])).await;
    ended.assert_success();
    assert_eq!(ended.updates[0]["state"], "running");
    let path = format!("/api/v4/jobs/{}", ended.id);
    let first = case.gitlab.with(|state| {
        let first = state.requests.iter().find(|request| request.path.starts_with(&path));
        first.map(|request| (request.method.clone(), request.path.clone()))
    });
    assert_eq!(first, Some(("PUT".to_owned(), path)));
}

#[tokio::test(flavor = "multi_thread")]
async fn api_76_docker_191_every_section_is_opened_and_closed() {
    let case = Case::start().await;
    let ended = case.run(job(&["true"]).after(&["true"])).await;
    ended.assert_success();
    let text = ended.text();
    let names = |kind: &str| -> Vec<String> {
        let marker = regex::Regex::new(&format!(r"section_{kind}:\d+:([a-z0-9_]+)")).unwrap();
        marker.captures_iter(&text).map(|found| found[1].to_owned()).collect()
    };
    let (mut opened, mut closed) = (names("start"), names("end"));
    assert!(opened.contains(&"step_script".to_owned()), "{opened:?}");
    opened.sort();
    closed.sort();
    assert_eq!(opened, closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_125_docker_51_194_the_first_failing_command_ends_the_script_with_its_code() {
    let case = Case::start().await;
    let ended = case.run(job(&["echo before", "sh -c 'exit 7'", "echo never"])).await;
    ended.assert_failed("script_failure", Some(7));
    ended.assert_lines(&["before", "ERROR: Job failed: exit code 7"]);
    ended.assert_no_line("never");
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_181_a_killed_command_is_reported_as_137() {
    let case = Case::start().await;
    let ended = case.run(job(&["sh -c 'kill -9 $$'"])).await;
    ended.assert_failed("script_failure", Some(137));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_3_53_54_one_shell_runs_all_commands_and_its_exit_0_succeeds() {
    let case = Case::start().await;
    let script = ["KEPT=1", "false || true", "echo kept=$KEPT", "exit 0", "echo never"];
    let ended = case.run(job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&["kept=1"]);
    ended.assert_no_line("never");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_4_5_6_7_after_script_runs_after_a_failure_in_a_shell_of_its_own() {
    let case = Case::start().await;
    let spec = job(&["echo in=$CI_JOB_STATUS", "export LEAK=1", "cd /", "false"]).after(&[
        "echo status=$CI_JOB_STATUS leak=[$LEAK]",
        "test \"$PWD\" != / && echo back",
        "exit 3",
    ]);
    let ended = case.run(spec).await;
    ended.assert_failed("script_failure", Some(1));
    ended.assert_lines(&["in=running", "status=failed leak=[]", "back"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_32_after_script_finds_what_the_script_wrote_outside_of_volumes() {
    let case = Case::start().await;
    let spec = job(&["echo carried > /opt-file"]).after(&["cat /opt-file"]);
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["carried"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_50_commands_read_the_end_of_their_input() {
    let case = Case::start().await;
    let ended = case.run(job(&["cat", "echo after"])).await;
    ended.assert_success();
    ended.assert_lines(&["after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_48_52_bash_is_used_where_it_is_and_a_pipe_fails_with_its_first_command() {
    let case = Case::start().await;
    let spec = job(&["echo shell=${BASH_VERSION:+bash}", "false | true", "echo never"]);
    let ended = case.run(spec.image("debian:stable")).await;
    ended.assert_failed("script_failure", Some(1));
    ended.assert_lines(&["shell=bash"]);
    ended.assert_no_line("never");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_63_lines_of_gitlab_env_reach_after_script_unexpanded() {
    let case = Case::start().await;
    let spec = job(&["echo 'KEY=$(echo run)' >> \"$GITLAB_ENV\""]).after(&["echo \"<$KEY>\""]);
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["<$(echo run)>"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_69_70_72_73_variables_are_expanded_once_raw_and_file_ones_not() {
    let case = Case::start().await;
    let spec = job(&["echo A=$A", "echo R=$R", "cat $F; echo .", "echo $Q", "echo D=$D"])
        .variable("BASE", "b")
        .variable("A", "x-$BASE-${BASE}-$NONE-$$")
        .variable("D", "$A")
        .variable_as(json!({"key": "R", "value": "x-$BASE", "raw": true, "public": true}))
        .variable_as(json!({"key": "F", "value": "line1\nline2", "file": true, "public": true}))
        .variable("Q", "quote's \"double\" `tick` \\ back");
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&[
        "A=x-b-b--$",
        "R=x-$BASE",
        "line1",
        "line2.",
        "quote's \"double\" `tick` \\ back",
        "D=x-$BASE-${BASE}-$NONE-$$",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_82_88_docker_60_185_186_secrets_never_reach_the_server() {
    let case = Case::start().await;
    // The fake GitLab notes any masked value that arrives.
    let spec = job(&[
        "echo the-$SECRET-end",
        "echo shown-s3cr3t-value-1",
        "echo $CI_JOB_TOKEN",
        "printf s3cr3t; sleep 2; printf '%s\\n' -value-1",
        "echo xglpat-abcdefghij0123456789",
    ])
    .masked("SECRET", "s3cr3t-value-1");
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["the-[MASKED]-end", "shown-[MASKED]", "[MASKED]", "xglpat-[MASKED]"]);
    ended.assert_lacks("abcdefghij0123456789");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_88_90_94_194_a_service_is_ready_under_its_alias_before_the_script() {
    let case = Case::start().await;
    let ended = case.run(job(&["wget -q -O - http://web:8000/index.html"]).service(web())).await;
    ended.assert_success();
    ended.assert_lines(&["served"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_91_a_service_that_dies_does_not_fail_the_job_but_is_told_of() {
    let case = Case::start().await;
    let service = json!({
        "name": "busybox:latest", "alias": "broken",
        "entrypoint": ["sh", "-c"], "command": ["echo cannot-go-on; exit 9"],
        "variables": [{"key": "HEALTHCHECK_TCP_PORT", "value": "8000", "public": true}],
    });
    let ended = case.run(job(&["echo ran"]).service(service)).await;
    ended.assert_success();
    ended.assert_lines(&["ran"]);
    ended.assert_contains("cannot-go-on");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_125_194_a_missing_image_that_is_never_pulled_fails_the_job_by_its_name() {
    let options = Options { pull_policy: Some("never"), ..Options::default() };
    let case = Case::with(options).await;
    let ended = case.run(job(&["true"]).image("no-such-image-here:1")).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("no-such-image-here:1");
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_fails_the_job_by_its_name() {
    let case = Case::start().await;
    let image = "registry.invalid/no-such-image-here:1";
    let ended = case.run(job(&["true"]).image(image)).await;
    let reason = ended.failure_reason().unwrap_or_default();
    let known = ["image_pull_failure", "runner_system_failure", "script_failure"];
    assert!(known.contains(&reason), "{}", ended.story());
    ended.assert_contains(image);
    engine().nothing_left_of(ended.id).await;
}

/// What a second job like `spec` costs: the first one has made what is made once a host.
async fn cost(spec: fn() -> JobSpec) -> Count {
    let counter = Counter::start(engine().socket());
    let options = Options { engine: Some(counter.host()), ..Options::default() };
    let case = Case::with(options).await;
    let first = case.run(spec()).await;
    first.assert_success();
    engine().nothing_left_of(first.id).await;
    let before = counter.count();
    let second = case.run(spec()).await;
    second.assert_success();
    engine().nothing_left_of(second.id).await;
    counter.count().since(&before)
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_197_199_a_minimal_job_takes_at_most_20_requests_and_2_starts() {
    let cost = cost(|| job(&["echo hello"])).await;
    assert!(cost.requests.len() <= 20 && cost.starts() <= 2, "{cost:#?}");
    assert!(cost.starts() >= 1, "the proxy counts nothing: {cost:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_199_a_job_with_a_service_takes_at_most_30_requests_and_3_starts() {
    let cost = cost(|| job(&["echo hello"]).service(web())).await;
    assert!(cost.requests.len() <= 30 && cost.starts() <= 3, "{cost:#?}");
}

//! Features that a job or a runner asks for by a variable, a flag or a field of the payload.

use serde_json::json;

use crate::{
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
};

/// The job's container is removed as somebody else would do it.
fn remove_build_container(id: i64) {
    let running = engine().running_containers(id);
    let build = running.iter().find(|line| line.contains(".type=build"));
    let name = build.expect("no build container runs").split(' ').next().unwrap();
    engine().docker(&["rm", "--force", name]);
}

fn talker() -> serde_json::Value {
    json!({
        "name": "busybox:latest",
        "alias": "talker",
        "entrypoint": ["sh", "-c"],
        "command": ["echo hello from it; echo a complaint >&2; echo the-$SECRET-end; exec sleep 300"],
        "variables": [{"key": "SECRET", "value": "s3cr3t-value-1"}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_93_the_words_of_services_are_in_the_trace_and_masked() {
    let case = Case::start().await;
    let spec = job(&["sleep 1"])
        .variable("CI_DEBUG_SERVICES", "true")
        .masked("SECRET", "s3cr3t-value-1")
        .service(talker());
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&[
        "[service:busybox->talker] hello from it",
        "[service:busybox->talker] a complaint",
        "[service:busybox->talker] the-[MASKED]-end",
    ]);
    assert!(ended.text().contains("Z 0fO \x1b[0;90m[service:busybox->talker] hello"));
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_61_93_a_runner_may_forbid_debugging() {
    let options = Options { runner: "debug_trace_disabled = true", ..Options::default() };
    let case = Case::with(options).await;
    let spec = job(&["sleep 1", "true"])
        .variable("CI_DEBUG_SERVICES", "true")
        .variable("CI_DEBUG_TRACE", "true")
        .service(talker());
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lacks("[service:");
    ended.assert_no_line("+ true");
    ended.assert_lines(&["WARNING: CI_DEBUG_TRACE is set, but this runner forbids it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_61_debug_trace_shows_every_command_and_says_so_to_the_server() {
    let case = Case::start().await;
    let ended = case.run(job(&["true"]).variable("CI_DEBUG_TRACE", "true")).await;
    ended.assert_success();
    ended.assert_lines(&["+ true"]);
    let queries = case.gitlab.with(|state| {
        let patches = state.requests.iter().filter(|request| request.method == "PATCH");
        patches.map(|request| request.query.clone()).collect::<Vec<_>>()
    });
    assert!(queries.iter().all(|query| query == "debug_trace=true"), "{queries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_148_no_file_has_a_token_where_urls_are_without() {
    let case = Case::start().await;
    let sha = case.gitlab.commit("group/no-token", &[("a.txt", "1\n")]);
    let script = [
        "cat a.txt",
        "test -s \"$GIT_CONFIG_GLOBAL\" && echo seeded",
        "grep -rF \"$CI_JOB_TOKEN\" \"$CI_BUILDS_DIR\" && echo found || echo none",
    ];
    let spec =
        job(&script).variable("FF_GIT_URLS_WITHOUT_TOKENS", "true").sources("group/no-token", &sha);
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["1", "seeded", "none"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_148_a_job_without_sources_has_gits_configuration_too() {
    let case = Case::start().await;
    let script = ["cat \"$GIT_CONFIG_GLOBAL\"", "test -s \"$GIT_CONFIG_GLOBAL\" && echo seeded"];
    let ended = case.run(job(&script).variable("FF_GIT_URLS_WITHOUT_TOKENS", "true")).await;
    ended.assert_success();
    ended.assert_lines(&["Skipping Git repository setup", "seeded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_46_a_container_that_vanished_fails_the_job() {
    let case = Case::start().await;
    let id = case.gitlab.submit(job(&["echo begun", "sleep 100"]));
    case.gitlab.until_output(id, "begun\n").await;
    remove_build_container(id);
    let ended = case.gitlab.ended(id).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("the job's container is gone");
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_46_a_container_that_vanished_is_made_again_where_attempts_are_left() {
    let case = Case::start().await;
    let script = [
        "if test -e \"/cache/$CI_JOB_ID\"; then echo second; exit 0; fi",
        "touch \"/cache/$CI_JOB_ID\"",
        "echo begun",
        "sleep 100",
    ];
    let spec = job(&script).variable("EXECUTOR_JOB_SECTION_ATTEMPTS", "2");
    let id = case.gitlab.submit(spec);
    case.gitlab.until_output(id, "begun\n").await;
    remove_build_container(id);
    let ended = case.gitlab.ended(id).await;
    ended.assert_success();
    ended.assert_contains("attempt 2 of 2 in a new one");
    ended.assert_lines(&["second"]);
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_secret_is_refused_before_anything_of_it_runs() {
    let case = Case::start().await;
    let secret = json!({"DB_PASSWORD": {"vault": {"path": "db", "field": "password"}}});
    let ended = case.run(job(&["echo ran"]).with("secrets", secret)).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains("`DB_PASSWORD` is a secret of the provider `vault`");
    ended.assert_no_line("ran");
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_152_a_secret_of_no_known_provider_is_warned_of_and_the_job_runs() {
    let case = Case::start().await;
    let ended = case.run(job(&["echo ran"]).with("secrets", json!({"A": {"other": {}}}))).await;
    ended.assert_success();
    ended.assert_lines(&["ran"]);
    ended.assert_contains("WARNING: Not resolved: ");
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_are_in_the_script_and_a_sensitive_one_fails_the_job() {
    let case = Case::start().await;
    let inputs = json!([
        {"key": "who", "value": {"type": "string", "content": "world"}},
        {"key": "hidden", "value": {"type": "string", "content": "hush-hush", "sensitive": true}},
    ]);
    let script = ["echo hello ${{ job.inputs.who }}"];
    let ended = case.run(job(&script).with("inputs", inputs.clone())).await;
    ended.assert_success();
    ended.assert_lines(&["$ echo hello world", "hello world"]);
    let off = job(&["echo '${{ job.inputs.who }}'"])
        .with("inputs", inputs.clone())
        .variable("FF_ENABLE_JOB_INPUTS_INTERPOLATION", "false");
    case.run(off).await.assert_lines(&["${{ job.inputs.who }}"]);
    let ended = case.run(job(&["echo ${{ job.inputs.hidden }}"]).with("inputs", inputs)).await;
    // Its server does not know `runner_configuration_error`.
    ended.assert_failed("script_failure", None);
    ended.assert_contains("the job input `hidden` is sensitive");
    ended.assert_lacks("hush-hush");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policys_job_says_so_and_the_log_knows_its_request() {
    let case = Case::start().await;
    let policy = json!({"execution_policy_job": true, "policy_name": "scan"});
    let sha = case.gitlab.commit("group/policy", &[("a.txt", "1\n")]);
    let spec = job(&[
        "grep -c X-Gitaly-Correlation-ID \"$RUNNER_TEMP_PROJECT_DIR\"/.gitlab-runner.ext.conf",
    ])
    .with("policy_options", policy)
    .sources("group/policy", &sha);
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["Job triggered by policy \"scan\".", "1"]);
    let plain = ended.plain();
    let id = plain.lines().find_map(|line| line.strip_prefix("Gitaly correlation ID: ")).unwrap();
    let asked = case.gitlab.with(|state| {
        let mut requests = state.requests.iter().filter(|r| r.path.ends_with("/jobs/request"));
        requests.any(|r| r.headers.get("x-request-id").is_some_and(|known| known == id))
    });
    assert!(asked, "no job request has the id {id}");
    assert!(case.log().contains(id), "{}", case.log());
}

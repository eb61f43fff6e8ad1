//! Jobs that are stopped: by a user, by time, by the operator. And a server that is not well.

use rustix::process::Signal;
use serde_json::json;

use crate::{
    engine::engine,
    gitlab::{Endpoint, Fault, job},
    longshore::Case,
};

/// Prints a line every second: a silent job asks the server for its state only every 30 s
/// (docs/compatibility.md, "Sending the trace").
const LONG: &str = "echo started; while sleep 1; do echo tick; done; echo never";

#[tokio::test(flavor = "multi_thread")]
async fn api_113_119_docker_5_179_194_a_canceled_script_is_killed_and_its_after_script_runs() {
    let case = Case::start().await;
    let wanted = json!({"name": "x", "paths": ["f"], "when": "always", "artifact_type": "archive",
        "artifact_format": "zip"});
    let spec = job(&["echo f > f", LONG]).after(&["echo status=$CI_JOB_STATUS"]).artifact(wanted);
    let id = case.gitlab.submit(spec);
    case.gitlab.until_output(id, "started").await;
    case.gitlab.set_status(id, "canceling");
    let ended = case.gitlab.ended(id).await;
    // `job_canceled` is none of the reasons that the server understands.
    ended.assert_failed("unknown_failure", None);
    ended.assert_lines(&["started", "status=canceled"]);
    ended.assert_no_line("never");
    assert_eq!(ended.uploads.len(), 1, "{}", ended.story());
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_115_a_cancel_during_after_script_leaves_the_scripts_result() {
    let case = Case::start().await;
    let spec = job(&["exit 4"]).after(&["echo after-1", "sleep 5", "echo after-2"]);
    let id = case.gitlab.submit(spec);
    case.gitlab.until_output(id, "after-1").await;
    case.gitlab.set_status(id, "canceling");
    case.gitlab.ended(id).await.assert_failed("script_failure", Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn api_117_118_docker_180_194_a_job_that_is_over_for_the_server_is_dropped_at_once() {
    let case = Case::start().await;
    // What is sent after the abort is counted by the fake GitLab.
    let id = case.gitlab.submit(job(&[LONG]).after(&["echo after"]));
    case.gitlab.until_output(id, "started").await;
    case.gitlab.set_status(id, "canceled");
    engine().nothing_left_of(id).await;
    case.gitlab.result_so_far(id).assert_no_line("after");
    case.run(job(&["true"])).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn api_65_a_job_whose_acknowledgement_is_refused_is_left_alone() {
    let case = Case::start().await;
    case.gitlab.fault(Endpoint::Acknowledge, Fault::status(403));
    let id = case.gitlab.submit(job(&["true"]));
    // The next job's must not be the one that is refused.
    case.until_log("job is not wanted any more", 0).await;
    case.run(job(&["true"])).await.assert_success();
    engine().nothing_left_of(id).await;
    let path = format!("/api/v4/jobs/{id}");
    let calls = case.gitlab.with(|state| {
        state.requests.iter().filter(|request| request.path.starts_with(&path)).count()
    });
    assert_eq!(calls, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_67_a_job_that_is_canceled_before_it_begins_runs_nothing() {
    let case = Case::start().await;
    let canceling = Fault::status(200).header("Job-Status", "canceling").but_takes_effect();
    case.gitlab.fault(Endpoint::Acknowledge, canceling);
    let ended = case.run(job(&["echo never"])).await;
    ended.assert_failed("job_canceled", None);
    ended.assert_no_line("never");
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_120_docker_176_194_a_job_past_its_time_fails_without_after_script() {
    let case = Case::start().await;
    let ended = case.run(job(&[LONG]).after(&["echo after"]).timeout(8)).await;
    ended.assert_failed("job_execution_timeout", None);
    ended.assert_lines(&["started"]);
    ended.assert_no_line("after");
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_121_docker_177_a_script_past_its_time_fails_and_after_script_runs() {
    let case = Case::start().await;
    let spec = job(&[LONG]).after(&["echo status=$CI_JOB_STATUS"]);
    let ended = case.run(spec.variable("RUNNER_SCRIPT_TIMEOUT", "3s")).await;
    ended.assert_failed("job_execution_timeout", None);
    ended.assert_lines(&["started", "status=timedout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_at_the_same_time() {
    let case = Case::start().await;
    let script = ["echo begun", LONG];
    let (one, two) = (case.gitlab.submit(job(&script)), case.gitlab.submit(job(&script)));
    case.gitlab.until_output(one, "begun").await;
    case.gitlab.until_output(two, "begun").await;
    for id in [one, two] {
        assert!(!engine().running_containers(id).is_empty(), "nothing of job {id} runs");
        case.gitlab.set_status(id, "canceled");
    }
    engine().nothing_left_of(one).await;
    engine().nothing_left_of(two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_job_queue_do_not_end_the_polling() {
    let case = Case::start().await;
    for status in [500, 502, 429, 409] {
        case.gitlab.fault(Endpoint::Request, Fault::status(status));
    }
    case.run(job(&["echo still-here"])).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn api_123_config_31_docker_184_sigquit_lets_the_job_finish_and_takes_no_other() {
    let mut case = Case::start().await;
    let id = case.gitlab.submit(job(&["echo started; sleep 5; echo finished"]));
    case.gitlab.until_output(id, "started").await;
    case.signal(Signal::QUIT);
    let ended = case.gitlab.ended(id).await;
    ended.assert_success();
    ended.assert_lines(&["finished"]);
    let status = case.exit().await;
    assert!(status.success(), "{status}: {}", case.log());
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_122_docker_184_sigterm_ends_the_job_as_interrupted_and_cleans_up() {
    let mut case = Case::start().await;
    let id = case.gitlab.submit(job(&[LONG]).after(&["echo after"]));
    case.gitlab.until_output(id, "started").await;
    case.signal(Signal::TERM);
    let ended = case.gitlab.ended(id).await;
    ended.assert_failed("runner_interrupted", None);
    let status = case.exit().await;
    assert!(status.success(), "{status}: {}", case.log());
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_60_an_idle_longshore_ends_at_once_though_a_poll_is_held() {
    let mut case = Case::start().await;
    case.gitlab.with(|state| state.long_poll = std::time::Duration::from_mins(5));
    case.gitlab.until("a held poll", |state| (state.polls.len() >= 2).then_some(())).await;
    case.signal(Signal::TERM);
    assert!(case.exit().await.success(), "{}", case.log());
}

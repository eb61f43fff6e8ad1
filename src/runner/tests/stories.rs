//! Jobs that go as they should, and scripts that fail.

use serde_json::json;

use super::fake::{FakeServer, Story, failed};
use crate::{
    executor::fake::{Play, Step},
    runner::Conclusion,
    workload::{outcome::FailureReason, testing::Case},
};

fn with_everything() -> Case {
    Case::new()
        .with(
            "steps",
            json!([
                {"name": "script", "script": ["true"]},
                {"name": "after_script", "script": ["true"]},
            ]),
        )
        .with("cache", json!([{"key": "k", "paths": ["target"], "policy": "pull-push"}]))
        .with("artifacts", json!([{"name": "a", "paths": ["out"], "when": "always"}]))
        .with(
            "dependencies",
            json!([{
                "id": 1, "name": "before", "token": "t", "artifacts_file": {"filename": "a.zip"},
            }]),
        )
}

fn failing(exit_code: i32) -> Play {
    Play { err: "no such thing\n".to_owned(), exit_code, ..Play::default() }
}

#[tokio::test(start_paused = true)]
async fn a_script_runs_and_its_server_hears_of_its_success() {
    let story = Story::new();
    let out = "hello\n".to_owned();
    story.host.play("step_script", Play { out, ..Play::default() });
    story.run().await;
    assert_eq!(story.server.conclusion(), Some(Conclusion::Success));
    let log = story.server.log();
    let order = [
        "Running with longshore",
        "Preparing the \"fake\" executor",
        "hello",
        "concluded",
        "Job succeeded",
    ];
    let places: Vec<_> = order.iter().map(|text| log.find(text)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{log}");
    story.assert_clean();
    assert_eq!(story.host.count(Step::StartHelper), 0);
}

#[tokio::test(start_paused = true)]
async fn sources_caches_and_artifacts_go_through_the_helper_in_their_order() {
    let story = Story::of(with_everything());
    story.run().await;
    assert_eq!(story.server.conclusion(), Some(Conclusion::Success));
    assert_eq!(story.host.stages(), ["step_script", "after_script"]);
    assert_eq!(story.host.count(Step::StartHelper), 1);
    assert_eq!(story.server.uploads().len(), 1);
    let log = story.server.log();
    let order = [
        "Getting source from Git repository",
        "Restoring cache",
        "got artifacts of before",
        "Executing \"step_script\"",
        "Running after_script",
        "Saving cache",
        "Uploading artifacts",
        "Cleaning up project directory",
    ];
    let places: Vec<_> = order.iter().map(|text| log.find(text)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{log}");
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_script_that_fails_is_explained_and_its_after_script_and_artifacts_follow() {
    let story = Story::of(with_everything());
    story.host.play("step_script", failing(3));
    story.run().await;
    let reason = FailureReason::ScriptFailure;
    let conclusion = Conclusion::Failed { reason, exit_code: Some(3) };
    assert_eq!(story.server.conclusion(), Some(conclusion));
    assert_eq!(story.host.stages(), ["step_script", "after_script"]);
    let log = story.server.log();
    assert!(log.contains("no such thing") && log.contains("explained"), "{log}");
    assert!(log.contains("Uploading artifacts for failed job"), "{log}");
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_is_the_last() {
    let story = Story::of(Case::new().variable("GIT_STRATEGY", "none").with(
        "steps",
        json!([{"name": "one", "script": ["a"]}, {"name": "two", "script": ["b"]}]),
    ));
    story.host.play("step_one", failing(1));
    story.run().await;
    assert_eq!(story.host.stages(), ["step_one"]);
}

#[tokio::test(start_paused = true)]
async fn an_after_script_that_fails_does_not_fail_the_job_unless_it_is_to() {
    for (ignored, success) in [("true", true), ("false", false)] {
        let case = with_everything().variable("AFTER_SCRIPT_IGNORE_ERRORS", ignored);
        let story = Story::of(case);
        story.host.play("after_script", failing(1));
        story.run().await;
        assert_eq!(story.server.conclusion() == Some(Conclusion::Success), success, "{ignored}");
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn sources_that_fail_end_the_job_before_its_script() {
    let story = Story::of(Case::new());
    story.host.task("sources", 128);
    story.run().await;
    let reason = FailureReason::ScriptFailure;
    let conclusion = Conclusion::Failed { reason, exit_code: Some(128) };
    assert_eq!(story.server.conclusion(), Some(conclusion));
    assert_eq!(story.host.stages(), [""; 0]);
    assert!(story.server.log().contains("sources failed"), "{}", story.server.log());
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn sources_are_tried_as_often_as_the_job_wants() {
    let story = Story::of(Case::new().variable("GET_SOURCES_ATTEMPTS", "3"));
    story.host.task("sources", 1);
    story.run().await;
    let log = story.server.log();
    assert_eq!(log.matches("Getting source from Git repository").count(), 3, "{log}");
    assert_eq!(log.matches("due to source fetch failure").count(), 2, "{log}");
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_artifact_that_is_not_taken_fails_a_job_that_succeeded() {
    let server = FakeServer { is_full: true, ..FakeServer::default() };
    let story = Story::of(with_everything()).with_server(server);
    story.run().await;
    let reason = FailureReason::ScriptFailure;
    let conclusion = Conclusion::Failed { reason, exit_code: Some(1) };
    assert_eq!(story.server.conclusion(), Some(conclusion));
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_not_wanted_any_more_is_not_run() {
    let server = FakeServer { is_unwanted: true, ..FakeServer::default() };
    let story = Story::new().with_server(server);
    story.run().await;
    assert_eq!(story.server.conclusion(), None);
    assert_eq!(story.host.count(Step::Prepare), 0);
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_planned_is_reported_with_the_reason() {
    let story = Story::of(Case::new().without_default_image());
    story.run().await;
    assert_eq!(story.server.conclusion(), Some(failed(FailureReason::RunnerConfigurationError)));
    assert!(story.server.log().contains("names no image"), "{}", story.server.log());
    story.assert_clean();
}

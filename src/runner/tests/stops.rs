//! Jobs that are stopped from outside, in each stage.

use std::time::Duration;

use serde_json::json;

use super::fake::{Story, failed};
use crate::{
    executor::fake::{Step, Trouble},
    runner::StopRequest,
    workload::{outcome::FailureReason, testing::Case},
};

/// A job with sources, a script and an `after_script`, that hangs in `step`.
fn hanging(step: Step) -> Story {
    let story = Story::of(Case::new().with(
        "steps",
        json!([
            {"name": "script", "script": ["true"]},
            {"name": "after_script", "script": ["true"]},
        ]),
    ));
    story.host.trouble(step, Trouble::Hangs);
    story
}

const STAGES: [Step; 3] = [Step::Prepare, Step::StartHelper, Step::RunScript];

#[tokio::test(start_paused = true)]
async fn an_abort_ends_the_job_in_each_stage_with_nothing_more() {
    for step in STAGES {
        let story = hanging(step);
        let job = story.start();
        story.host.reached(step, 1).await;
        story.server.wish.send_replace(StopRequest::Abort);
        story.end(job).await;
        assert_eq!(story.server.conclusion(), Some(failed(FailureReason::JobCanceled)), "{step:?}");
        assert!(!story.host.stages().contains(&"after_script".to_owned()), "{step:?}");
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_of_a_script_stops_it_and_its_after_script_follows() {
    let story = hanging(Step::RunScript);
    let job = story.start();
    story.host.reached(Step::RunScript, 1).await;
    story.server.wish.send_replace(StopRequest::Cancel);
    story.end(job).await;
    assert_eq!(story.server.conclusion(), Some(failed(FailureReason::JobCanceled)));
    assert_eq!(story.host.count(Step::StopScript), 1);
    assert_eq!(story.host.stages(), ["step_script", "after_script"]);
    assert!(story.server.log().contains("script canceled externally"));
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_the_script_ends_the_job() {
    for step in [Step::Prepare, Step::StartHelper] {
        let story = hanging(step);
        let job = story.start();
        story.host.reached(step, 1).await;
        story.server.wish.send_replace(StopRequest::Cancel);
        story.end(job).await;
        assert_eq!(story.server.conclusion(), Some(failed(FailureReason::JobCanceled)), "{step:?}");
        assert_eq!(story.host.stages(), [""; 0], "{step:?}");
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_becomes_an_abort_while_the_after_script_runs() {
    let story = hanging(Step::RunScript);
    story.host.trouble(Step::RunScript, Trouble::Hangs);
    let job = story.start();
    story.host.reached(Step::RunScript, 1).await;
    story.server.wish.send_replace(StopRequest::Cancel);
    story.host.reached(Step::RunScript, 2).await;
    story.server.wish.send_replace(StopRequest::Abort);
    story.end(job).await;
    assert_eq!(story.server.conclusion(), Some(failed(FailureReason::JobCanceled)));
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_signal_to_the_process_interrupts_the_job_in_each_stage() {
    for step in STAGES {
        let story = hanging(step);
        let job = story.start();
        story.host.reached(step, 1).await;
        story.interrupt.send("terminated");
        story.end(job).await;
        let expected = Some(failed(FailureReason::RunnerInterrupted));
        assert_eq!(story.server.conclusion(), expected, "{step:?}");
        assert!(story.server.log().contains("terminated"), "{step:?}");
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn the_jobs_time_ends_it_in_each_stage() {
    for step in STAGES {
        let story = hanging(step);
        story.run().await;
        let expected = Some(failed(FailureReason::JobExecutionTimeout));
        assert_eq!(story.server.conclusion(), expected, "{step:?}");
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_script_may_have_a_time_of_its_own_and_its_after_script_follows() {
    let case = Case::new().variable("RUNNER_SCRIPT_TIMEOUT", "10s").with(
        "steps",
        json!([
            {"name": "script", "script": ["true"]},
            {"name": "after_script", "script": ["true"]},
        ]),
    );
    let story = Story::of(case);
    story.host.trouble(Step::RunScript, Trouble::Hangs);
    let began = tokio::time::Instant::now();
    story.run().await;
    assert!(began.elapsed() < Duration::from_mins(1));
    assert_eq!(story.server.conclusion(), Some(failed(FailureReason::JobExecutionTimeout)));
    assert_eq!(story.host.stages(), ["step_script", "after_script"]);
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn an_after_script_has_a_deadline_and_is_stopped() {
    let story = hanging(Step::Renew);
    story.host.well(Step::RunScript).trouble(Step::RunScript, Trouble::Hangs);
    story.run().await;
    assert_eq!(story.host.count(Step::StopScript), 1);
    assert!(story.server.log().contains("after_script took longer than"));
    story.assert_clean();
}

//! Systems that fail, at every step.

use super::fake::{FakeServer, Story, failed};
use crate::{
    executor::fake::{Step, Trouble},
    runner::{Conclusion, SystemFailure},
    workload::{outcome::FailureReason, testing::Case},
};

fn system_failure() -> Conclusion {
    failed(FailureReason::RunnerSystemFailure)
}

/// A job that comes to every step of the contract.
fn story() -> Story {
    Story::of(Case::new())
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_each_step_is_a_system_failure_with_its_hint_and_leaves_nothing() {
    for step in [Step::Prepare, Step::StartHelper, Step::RunScript] {
        let story = story();
        story.host.trouble(step, Trouble::Fails);
        story.run().await;
        assert_eq!(story.server.conclusion(), Some(system_failure()), "{step:?}");
        let log = story.server.log();
        assert!(log.contains("hint: mend it"), "{step:?}: {log}");
        assert!(log.contains(&format!("{step:?}: it broke")), "{log}");
        assert_eq!(story.host.count(Step::Prepare), 1, "{step:?}");
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_preparation_that_may_go_better_is_tried_three_times_and_removed_between() {
    for (step, troubles, success) in [
        (Step::Prepare, 2, true),
        (Step::Prepare, 3, false),
        (Step::StartHelper, 2, true),
        (Step::StartHelper, 3, false),
    ] {
        let story = story();
        for _ in 0..troubles {
            story.host.trouble(step, Trouble::FailsForNow);
        }
        story.run().await;
        let expected = if success { Some(Conclusion::Success) } else { Some(system_failure()) };
        assert_eq!(story.server.conclusion(), expected, "{step:?} {troubles}");
        let retries = story.server.log().matches("Will be retried in 3s").count();
        assert_eq!(retries, troubles.min(2), "{step:?} {troubles}");
        // One after each try that failed but the last, and one at the end.
        assert_eq!(story.host.count(Step::Remove), retries + 1, "{step:?} {troubles}");
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_try_could_not_remove_is_removed_before_the_next() {
    let story = story();
    story.host.trouble(Step::Prepare, Trouble::FailsForNow);
    story.host.trouble(Step::Remove, Trouble::FailsForNow);
    story.run().await;
    assert_eq!(story.server.conclusion(), Some(Conclusion::Success));
    assert_eq!(story.host.count(Step::Remove), 3);
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_gone_is_made_anew_as_often_as_the_job_wants() {
    for (attempts, success) in [("1", false), ("3", true)] {
        let story = Story::of(Case::new().variable("EXECUTOR_JOB_SECTION_ATTEMPTS", attempts));
        story.host.trouble(Step::RunScript, Trouble::Gone);
        story.run().await;
        let expected = if success { Some(Conclusion::Success) } else { Some(system_failure()) };
        assert_eq!(story.server.conclusion(), expected, "{attempts}");
        assert_eq!(story.host.count(Step::Renew), usize::from(success));
        story.assert_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_be_made_anew_is_a_system_failure() {
    let story = Story::of(Case::new().variable("EXECUTOR_JOB_SECTION_ATTEMPTS", "2"));
    story.host.trouble(Step::RunScript, Trouble::Gone).trouble(Step::Renew, Trouble::Fails);
    story.run().await;
    assert_eq!(story.server.conclusion(), Some(system_failure()));
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_preparation_has_a_deadline() {
    let story = Story::of(Case::new().runner("prepare_timeout = \"5s\""));
    story.host.trouble(Step::Prepare, Trouble::Hangs);
    story.run().await;
    assert_eq!(story.server.conclusion(), Some(failed(FailureReason::JobExecutionTimeout)));
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_end_cannot_be_reported_stays_in_the_ledger_for_the_next_process() {
    let server = FakeServer { is_gone: true, ..FakeServer::default() };
    let story = story().with_server(server);
    story.run().await;
    assert_eq!(story.host.resources(), []);
    let (record, entry) = story.process.state.unfinished_jobs().unwrap().pop().unwrap();
    assert!(!record.is_reported() && entry.is_ok());
    assert_eq!(record.end::<Conclusion>(), Some(Conclusion::Success));
}

#[tokio::test(start_paused = true)]
async fn a_job_without_space_on_disk_is_reported_all_the_same() {
    let story = story();
    // Where the job's directory would be made, there is a file.
    let incoming = story.incoming();
    let jobs = story.directory().join("jobs");
    std::fs::remove_dir(&jobs).unwrap();
    std::fs::write(&jobs, "").unwrap();
    let job = story.start_job(incoming);
    story.end(job).await;
    assert_eq!(story.server.conclusion(), Some(system_failure()));
    assert_eq!(story.host.count(Step::Prepare), 0);
    assert_eq!(story.host.leases(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_without_a_trace_leaves_the_ledger_only_once_it_is_reported() {
    for is_gone in [false, true] {
        let story = story().with_server(FakeServer { is_gone, ..FakeServer::default() });
        // Where its trace would be made, there is a directory.
        let key = format!("{}-{}", story.case.config().short_token(), story.case.job().id);
        std::fs::create_dir_all(story.directory().join("jobs").join(key).join("trace")).unwrap();
        story.run().await;
        assert_eq!(story.unfinished(), usize::from(is_gone));
        assert_eq!((story.host.count(Step::Prepare), story.host.leases()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_cannot_be_understood_is_reported() {
    let story = story();
    let mut incoming = story.incoming();
    let reason = FailureReason::RunnerSystemFailure;
    incoming.refused = Some(SystemFailure::new(reason, "it makes no sense"));
    let job = story.start_job(incoming);
    story.end(job).await;
    assert_eq!(story.server.conclusion(), Some(system_failure()));
    assert!(story.server.log().contains("it makes no sense"));
    story.assert_clean();
}

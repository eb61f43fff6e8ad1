//! What comes after a job's end, and after a crash.

use std::sync::Arc;

use super::fake::Story;
use crate::{
    executor::{
        Executor, ScriptOutput, SessionRequest,
        fake::{FakeExecutor, Play, Step, Trouble},
    },
    ledger::SessionState,
    runner::Conclusion,
    trace::{Masks, Settings, Source, Stream, Trace},
    workload::testing::Case,
};

#[tokio::test(start_paused = true)]
async fn the_server_hears_of_the_end_while_the_removal_hangs() {
    let story = Story::new();
    story.host.trouble(Step::Remove, Trouble::Hangs);
    let job = story.start();
    job.await.unwrap();
    assert_eq!(story.server.conclusion(), Some(Conclusion::Success));
    assert_eq!(story.unfinished(), 1);
    // The next start goes on once the removal's own deadline has passed.
    story.process.removals.close();
    story.process.removals.wait().await;
    assert_eq!(story.unfinished(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_removal_waits_for_an_executor_that_went_away() {
    let story = Story::new();
    for _ in 0..5 {
        story.host.trouble(Step::Remove, Trouble::FailsForNow);
    }
    story.start().await.unwrap();
    story.host.reached(Step::Remove, 6).await;
    story.process.removals.close();
    story.process.removals.wait().await;
    story.assert_clean();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_stays_in_the_ledger_and_is_not_reported_again() {
    let story = Story::new();
    story.host.trouble(Step::Remove, Trouble::Fails);
    story.run().await;
    let (record, entry) = story.process.state.unfinished_jobs().unwrap().pop().unwrap();
    assert!(record.is_reported());
    let left = entry.unwrap();
    assert!(story.host.resources().iter().all(|resource| left.resources.contains(resource)));
    // The next process removes it by the ledger.
    let executor = FakeExecutor::new(&story.host);
    assert!(executor.remove_orphaned(&left, &record.directories()).await);
    assert_eq!(story.host.resources(), []);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_once_the_containers_are_gone() {
    let story = Story::new();
    story.host.trouble(Step::Remove, Trouble::Hangs);
    story.start().await.unwrap();
    story.host.reached(Step::Remove, 1).await;
    let (token, project) = (story.case.config().short_token(), story.case.job().project.id);
    let taken = story.process.slots.take(&token, project, false).await;
    assert_eq!(taken.project, 1, "the first job's slot is not free");
}

#[tokio::test(start_paused = true)]
async fn a_session_is_taken_up_again_after_a_crash_and_its_script_read_to_its_end() {
    let story = Story::new();
    let out = "one\ntwo\n".to_owned();
    story.host.play("step_script", Play { out, exit_code: 4, ..Play::default() });
    story.host.trouble(Step::RunScript, Trouble::Hangs);
    let job = story.start();
    story.host.reached(Step::RunScript, 1).await;
    // As when the process is killed: nothing is removed.
    job.abort();
    let (record, _) = story.process.state.unfinished_jobs().unwrap().pop().unwrap();
    let state = record.session().expect("the ledger knows the session");
    assert_eq!(state.script.as_ref().unwrap().stage, "step_script");

    let executor = FakeExecutor::new(&story.host);
    let settings =
        Settings { limit: 0, timestamps: false, sections: false, masks: Masks::default() };
    let trace = Trace::create(&story.directory().join("trace"), settings).unwrap();
    let request = || SessionRequest {
        workload: Arc::new(story.case.plan()),
        trace: trace.clone(),
        directories: record.directories(),
    };
    let session = executor.reattach(&state, request()).await.unwrap().expect("it is there");
    let mut output = ScriptOutput {
        out: trace.writer(Source::Job, Stream::Out),
        err: trace.writer(Source::Job, Stream::Err),
    };
    let nonce = state.script.unwrap().nonce;
    let end = session.resume_script(&nonce, &mut output).await.unwrap();
    assert_eq!(end.exit_code, 4);
    drop(output);
    assert_eq!(&trace.read_at(0, 100).unwrap()[..], b"one\ntwo\n");

    let gone = SessionState { container: Some("gone".to_owned()), script: None };
    assert!(executor.reattach(&gone, request()).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_ledger_names_all_that_a_job_makes_before_it_does() {
    let story = Story::of(Case::new());
    story.host.trouble(Step::Prepare, Trouble::Hangs);
    let job = story.start();
    story.host.reached(Step::Prepare, 1).await;
    let (_, entry) = story.process.state.unfinished_jobs().unwrap().pop().unwrap();
    let known = entry.unwrap().resources;
    assert!(story.host.resources().iter().all(|resource| known.contains(resource)));
    story.interrupt.send("stop");
    story.end(job).await;
}

//! The trace and the final state reach the server whatever it answers meanwhile. The fake GitLab
//! compares the final checksum and size with what it has stored.

use std::{collections::BTreeSet, time::Duration};

use axum::http::HeaderMap;

use crate::{
    gitlab::{Ended, Endpoint, Fault, job},
    longshore::{Case, Options},
};

/// Six lines over some seconds: several patches.
const LINES: &str = "for i in 1 2 3 4 5 6; do echo line-$i; sleep 1; done";

#[track_caller]
fn assert_six_lines(ended: &Ended) {
    ended.assert_success();
    let plain = ended.plain();
    let lines: Vec<_> = plain.lines().filter(|line| line.starts_with("line-")).collect();
    let expected = ["line-1", "line-2", "line-3", "line-4", "line-5", "line-6"];
    assert_eq!(lines, expected, "{}", ended.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_server_lose_nothing_of_the_trace() {
    let case = Case::start().await;
    for status in [502, 503, 500] {
        case.gitlab.fault(Endpoint::Trace, Fault::status(status));
    }
    assert_six_lines(&case.run(job(&[LINES])).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_99_bytes_whose_answer_was_lost_are_not_sent_twice() {
    let case = Case::start().await;
    case.gitlab.fault(Endpoint::Trace, Fault::status(500).but_takes_effect());
    let ended = case.run(job(&[LINES])).await;
    assert_six_lines(&ended);
    let refused = case.gitlab.with(|state| {
        state.jobs[&ended.id].patches.iter().filter(|(_, _, status)| *status == 416).count()
    });
    assert!(refused >= 1, "the same bytes were never sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_100_after_a_416_that_names_no_range_the_trace_is_sent_from_its_beginning() {
    let case = Case::start().await;
    let id = case.gitlab.submit(job(&[LINES]));
    case.gitlab.until_output(id, "line-1").await;
    case.gitlab.fault(Endpoint::Trace, Fault::status(416));
    let ended = case.gitlab.ended(id).await;
    assert_six_lines(&ended);
    let starts: Vec<usize> = case
        .gitlab
        .with(|state| state.jobs[&id].patches.iter().map(|(start, _, _)| *start).collect());
    assert!(starts.iter().filter(|start| **start == 0).count() >= 2, "{starts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_101_106_bytes_answered_with_200_or_404_are_sent_again_while_the_job_goes_on() {
    let case = Case::start().await;
    case.gitlab.fault(Endpoint::Trace, Fault::status(200));
    case.gitlab.fault(Endpoint::Trace, Fault::status(404));
    assert_six_lines(&case.run(job(&[LINES])).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn api_127_a_final_state_that_is_only_accepted_is_sent_until_it_is_taken() {
    let case = Case::start().await;
    for _ in 0..3 {
        let accepted = Fault::status(202).header("X-GitLab-Trace-Update-Interval", "1");
        case.gitlab.fault(Endpoint::Final, accepted);
    }
    let ended = case.run(job(&["echo done"])).await;
    ended.assert_success();
    let finals = case.gitlab.with(|state| state.jobs[&ended.id].finals.clone());
    let statuses: Vec<u16> = finals.iter().map(|(_, status)| *status).collect();
    assert_eq!(statuses, [202, 202, 202, 200]);
    for pair in finals.windows(2) {
        let pause = pair[1].0 - pair[0].0;
        assert!(pause >= Duration::from_millis(900), "{pause:?} between two final updates");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn api_128_a_412_makes_the_whole_trace_be_sent_again() {
    let case = Case::start().await;
    case.gitlab.fault(Endpoint::Final, Fault::status(412));
    let ended = case.run(job(&[LINES])).await;
    assert_six_lines(&ended);
    let patches = case.gitlab.with(|state| state.jobs[&ended.id].patches.clone());
    assert!(patches.iter().filter(|(start, ..)| *start == 0).count() >= 2, "{patches:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_state_is_sent_again_after_server_errors() {
    let case = Case::start().await;
    case.gitlab.fault(Endpoint::Final, Fault::status(500));
    case.gitlab.fault(Endpoint::Final, Fault::status(502));
    case.run(job(&["echo done"])).await.assert_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_of_output_arrive_whole_in_bounded_memory() {
    /// KiB.
    const BOUND: u64 = 64 * 1024;
    const LINES: usize = 1_048_576;
    let case = Case::with(Options { runner: "output_limit = 1000000", ..Options::default() }).await;
    // 100 bytes a line; nothing in the pipe ends early, which would fail it.
    let line = "x".repeat(99);
    let script = format!("head -c {} /dev/zero | tr '\\0' x | fold -w 99; echo", LINES * 99);
    let spec = job(&[&script]).variable("FF_TIMESTAMPS", "false");
    let ended = case.run(spec).await;
    assert_eq!(ended.state(), "success");
    let text = ended.text();
    let found = text.lines().filter(|l| l.trim_end_matches('\r') == line).count();
    assert_eq!(found, LINES, "of {} bytes", text.len());
    let peak = case.peak_memory();
    assert!(peak < BOUND, "{peak} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_3_97_requests_say_who_sends_them_and_patches_what_they_are() {
    let case = Case::start().await;
    let ended = case.run(job(&["echo hello"])).await;
    ended.assert_success();
    let requests = case.gitlab.with(|state| state.requests.clone());
    let text = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();
    let agent = regex::Regex::new(r"^\S+ \d+\.\d+\.\d+\S* \(.*; .*; .*/.*\)$").unwrap();
    let mut ids = BTreeSet::new();
    for request in requests.iter().filter(|request| request.path.starts_with("/api/")) {
        let found = text(&request.headers, "user-agent");
        assert!(agent.is_match(&found), "User-Agent: {found}");
        assert!(ids.insert(text(&request.headers, "x-request-id")), "an id was used twice");
    }
    let patches: Vec<_> = requests.iter().filter(|request| request.method == "PATCH").collect();
    assert!(!patches.is_empty());
    for patch in patches {
        assert_eq!(patch.query, "debug_trace=false");
        assert_eq!(text(&patch.headers, "content-type"), "text/plain");
        assert_eq!(text(&patch.headers, "job-token"), ended.token);
    }
}

//! Configuration that changes while longshore runs, how often servers are asked, and signals.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{
    engine::{UNTIL_GO, engine},
    gitlab::{Endpoint, Fault, Gitlab, RUNNER_TOKEN, job},
    longshore::{Case, Options},
};

/// Said after every change.
const IN_FORCE: &str = "configuration loaded";

/// A case whose configuration is changed by `edit` before it is read.
async fn case(edit: impl Fn(String) -> String + Send + 'static) -> Case {
    Case::with(Options { edit: Some(Box::new(edit)), ..Options::default() }).await
}

/// Changes the file and waits until the change counts.
async fn change(case: &Case, edit: impl FnOnce(String) -> String) {
    let before = case.log().matches(IN_FORCE).count();
    case.edit(edit);
    case.until_log(IN_FORCE, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_6_a_changed_file_is_noticed_within_three_seconds_and_sighup_reads_it_at_once() {
    let case = case(|text| text).await;
    case.until_log(IN_FORCE, 0).await;
    let begun = Instant::now();
    change(&case, |text| text.replace("concurrent = 4", "concurrent = 7")).await;
    // The file's reading and the log take time beside the three seconds.
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    assert!(case.log().contains("concurrent=7"), "{}", case.log());
    let before = case.log().matches(IN_FORCE).count();
    case.signal(Signal::HUP);
    case.until_log(IN_FORCE, before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_6_a_broken_file_changes_nothing_and_is_told() {
    let case = case(|text| text).await;
    case.until_log(IN_FORCE, 0).await;
    let good = std::fs::read_to_string(case.config()).unwrap();
    let wrong = [
        "this is no TOML".to_owned(),
        good.replace("\"docker\"", "\"shell\""),
        good.replace("concurrent = 4", "concurrent = \"many\""),
    ];
    for text in wrong {
        let said = "the one before stays in force";
        let before = case.log().matches(said).count();
        case.edit(|_| text);
        case.until_log(said, before).await;
        case.run(job(&["echo works"])).await.assert_success();
    }
    let log = case.log();
    for wanted in [
        "not TOML",
        "runners[0].executor",
        "concurrent = \"many\": must be a whole number, found text",
    ] {
        assert!(log.contains(wanted), "{wanted}: {log}");
    }
    assert!(!log.contains(RUNNER_TOKEN), "{log}");
    change(&case, |_| good.replace("concurrent = 4", "concurrent = 3")).await;
    assert!(case.log().contains("concurrent=3"), "{}", case.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_runner_takes_no_more_jobs_and_finishes_its_own() {
    let case = case(|text| text).await;
    // A request that is held when its runner is removed is broken off.
    case.gitlab.with(|state| state.long_poll = Duration::ZERO);
    let running = case.gitlab.submit(job(&[UNTIL_GO]).after(&["echo after"]));
    case.gitlab.until_output(running, "started").await;
    let good = std::fs::read_to_string(case.config()).unwrap();
    change(&case, |_| "concurrent = 4\ncheck_interval = 1\n".to_owned()).await;
    let waiting = case.gitlab.submit(job(&["echo works"]));
    let polls = case.gitlab.with(|state| state.polls.len());
    engine().go(running);
    let ended = case.gitlab.ended(running).await;
    ended.assert_success();
    ended.assert_lines(&["started", "after"]);
    case.gitlab.with(|state| {
        assert_eq!(state.jobs[&waiting].status, "pending");
        assert_eq!(state.polls.len(), polls, "the removed runner asks for jobs");
    });
    engine().nothing_left_of(running).await;
    change(&case, |_| good).await;
    case.gitlab.ended(waiting).await.assert_success();
    engine().nothing_left_of(waiting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_keeps_the_settings_that_it_began_with() {
    let with_environment = |value: &str, text: String| {
        text.replace("executor =", &format!("environment = [\"SETTING={value}\"]\nexecutor ="))
    };
    let case = case(move |text| with_environment("old", text)).await;
    let running = case.gitlab.submit(job(&[UNTIL_GO]).after(&["echo setting-$SETTING"]));
    case.gitlab.until_output(running, "started").await;
    change(&case, |text| text.replace("SETTING=old", "SETTING=new")).await;
    let next = case.run(job(&["echo setting-$SETTING"])).await;
    next.assert_success();
    next.assert_lines(&["setting-new"]);
    engine().go(running);
    let ended = case.gitlab.ended(running).await;
    ended.assert_success();
    ended.assert_lines(&["setting-old"]);
    engine().nothing_left_of(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_20_a_change_of_concurrent_takes_effect_at_once() {
    let case = case(|text| text.replace("concurrent = 4", "concurrent = 1")).await;
    let (one, two) = (case.gitlab.submit(job(&[UNTIL_GO])), case.gitlab.submit(job(&[UNTIL_GO])));
    case.gitlab.until_output(one, "started").await;
    case.gitlab.with(|state| assert_eq!(state.jobs[&two].status, "pending"));
    change(&case, |text| text.replace("concurrent = 1", "concurrent = 2")).await;
    case.gitlab.until_output(two, "started").await;
    assert_eq!(case.gitlab.result_so_far(one).state(), "running");
    change(&case, |text| text.replace("concurrent = 2", "concurrent = 1")).await;
    let three = case.gitlab.submit(job(&["echo works"]));
    engine().go(one);
    case.gitlab.ended(one).await.assert_success();
    engine().nothing_left_of(one).await;
    case.gitlab.with(|state| assert_eq!(state.jobs[&three].status, "pending"));
    engine().go(two);
    case.gitlab.ended(two).await.assert_success();
    case.gitlab.ended(three).await.assert_success();
    engine().nothing_left_of(three).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_57_config_20_a_runner_at_its_limit_does_not_ask() {
    let case = case(|text| text.replace("executor =", "limit = 1\nexecutor =")).await;
    let one = case.gitlab.submit(job(&["echo started; while sleep 1; do echo tick; done"]));
    case.gitlab.until_output(one, "started").await;
    let polls = case.gitlab.with(|state| state.polls.len());
    let two = case.gitlab.submit(job(&["echo works"]));
    // Three ticks are three intervals.
    case.gitlab
        .until("three ticks", |state| {
            (state.jobs[&one].text().matches("tick\n").count() > 3).then_some(())
        })
        .await;
    case.gitlab.with(|state| {
        assert_eq!(state.polls.len(), polls, "a runner at its limit asks");
        assert_eq!(state.jobs[&two].status, "pending");
    });
    change(&case, |text| text.replace("limit = 1", "limit = 2")).await;
    case.gitlab.ended(two).await.assert_success();
    case.gitlab.set_status(one, "canceled");
    engine().nothing_left_of(one).await;
    engine().nothing_left_of(two).await;
}

/// The configuration with a second runner, `second`, that is like the first but for its name,
/// label and address.
fn two_runners(text: &str, url: Option<&str>) -> String {
    let (globals, runner) = text.split_once("[[runners]]").unwrap();
    let labelled = |name: &str| {
        let runner = runner.replace("\"integration\"", &format!("\"{name}\""));
        let labels = format!("[runners.labels]\nwhich = \"{name}\"\n[runners.feature_flags]");
        format!("[[runners]]{}", runner.replace("[runners.feature_flags]", &labels))
    };
    let mut second = labelled("second");
    if let Some(url) = url {
        let (before, rest) = second.split_once("url = \"").unwrap();
        let (_, after) = rest.split_once('"').unwrap();
        second = format!("{before}url = \"{url}\"{after}");
    }
    format!("{globals}{}\n{second}", labelled("first"))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runners_share_the_places_of_the_process() {
    const JOBS: usize = 6;
    // The second begins half an interval later, and a job is short.
    const AHEAD: usize = 4;
    let other = Gitlab::start(&engine().gateway).await;
    other.with(|state| state.long_poll = Duration::ZERO);
    let url = other.url.clone();
    let case = case(move |text| {
        two_runners(&text, Some(&url)).replace("concurrent = 4", "concurrent = 1")
    })
    .await;
    case.gitlab.with(|state| state.long_poll = Duration::ZERO);
    let submit = |gitlab: &Gitlab| -> Vec<i64> {
        (0..JOBS).map(|_| gitlab.submit(job(&["echo works"]))).collect()
    };
    let (mine, others) = (submit(&case.gitlab), submit(&other));
    let done = |gitlab: &Gitlab| {
        gitlab.with(|state| state.jobs.values().filter(|job| job.status == "success").count())
    };
    // Whoever is first, the other must not be far behind.
    tokio::select! {
        _ = case.gitlab.ended(mine[JOBS - 1]) => assert!(done(&other) >= JOBS - AHEAD),
        _ = other.ended(others[JOBS - 1]) => assert!(done(&case.gitlab) >= JOBS - AHEAD),
    }
    for id in mine {
        case.gitlab.ended(id).await.assert_success();
    }
    for id in &others {
        other.ended(*id).await.assert_success();
    }
    engine().nothing_left_of(others[JOBS - 1]).await;
    engine().clear(other.project_id);
}

/// When each of two runners has asked, `count` times in all.
async fn asked(case: &Case, count: usize) -> Vec<(String, Instant)> {
    case.gitlab.with(|state| state.long_poll = Duration::ZERO);
    let mut asked = Vec::new();
    while asked.len() < count {
        let known = asked.len();
        let new = case
            .gitlab
            .until("another poll", |state| {
                let new: Vec<String> = state.polls[known..]
                    .iter()
                    .map(|poll| poll["info"]["labels"]["which"].as_str().unwrap().to_owned())
                    .collect();
                (!new.is_empty()).then_some(new)
            })
            .await;
        asked.extend(new.into_iter().map(|which| (which, Instant::now())));
    }
    asked
}

/// Two runners take turns, and each asks once an interval. The machine may be busy, so the upper
/// bounds are wide.
fn assert_paced(asked: &[(String, Instant)], interval: Duration) {
    for which in ["first", "second"] {
        let times: Vec<Instant> =
            asked.iter().filter(|(name, _)| name == which).map(|(_, at)| *at).collect();
        let (first, last) = (times[0], times[times.len() - 1]);
        let pauses = u32::try_from(times.len() - 1).unwrap();
        let mean = (last - first) / pauses;
        assert!(mean > interval * 8 / 10 && mean < interval * 15 / 10, "{which}: {mean:?}");
    }
    let turns = asked.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
    assert!(turns >= asked.len() - 2, "they do not take turns: {asked:?}");
    let apart: Vec<Duration> = asked.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    let mut sorted = apart.clone();
    sorted.sort();
    let median = sorted[sorted.len() / 2];
    assert!(median > interval / 4 && median < interval * 3 / 4, "{apart:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn api_55_two_runners_are_polled_once_an_interval_and_in_turn() {
    let case =
        case(|text| two_runners(&text, None).replace("check_interval = 1", "check_interval = 2"))
            .await;
    assert_paced(&asked(&case, 9).await, Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn config_5_an_interval_of_zero_is_three_seconds() {
    let case =
        case(|text| two_runners(&text, None).replace("check_interval = 1", "check_interval = 0"))
            .await;
    assert_paced(&asked(&case, 7).await, Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn api_49_52_config_21_three_refusals_pause_a_runner_until_a_reload() {
    let case = case(|text| text).await;
    for _ in 0..3 {
        case.gitlab.fault(Endpoint::Request, Fault::status(403));
    }
    case.until_log("the runner is paused", 0).await;
    let polls = case.gitlab.with(|state| state.polls.len());
    let id = case.gitlab.submit(job(&["echo works"]));
    case.signal(Signal::HUP);
    case.gitlab.ended(id).await.assert_success();
    assert!(case.gitlab.with(|state| state.polls.len()) > polls);
    engine().nothing_left_of(id).await;
}

const LONG: &str = "echo started; while sleep 1; do echo tick; done";

#[tokio::test(flavor = "multi_thread")]
async fn config_31_sigterm_after_sigquit_ends_the_jobs() {
    let mut case = case(|text| text).await;
    let id = case.gitlab.submit(job(&[LONG]));
    case.gitlab.until_output(id, "started").await;
    case.signal(Signal::QUIT);
    case.gitlab.until_output(id, "tick\n").await;
    case.signal(Signal::TERM);
    case.gitlab.ended(id).await.assert_failed("runner_interrupted", None);
    assert!(case.exit().await.success(), "{}", case.log());
    engine().nothing_left_of(id).await;
}

/// A running job whose end its server does not take; then SIGTERM.
async fn that_cannot_end(case: &Case) -> i64 {
    let id = case.gitlab.submit(job(&[LONG]));
    case.gitlab.until_output(id, "started").await;
    for _ in 0..200 {
        case.gitlab.fault(Endpoint::Final, Fault::status(500));
    }
    case.signal(Signal::TERM);
    case.gitlab
        .until("an attempt at the end", |state| (!state.jobs[&id].finals.is_empty()).then_some(()))
        .await;
    id
}

/// The next start tells the server.
async fn is_told_by_the_next_start(case: &mut Case, id: i64) {
    case.gitlab.clear_faults(Endpoint::Final);
    case.gitlab.allow_jump(id);
    case.restart();
    case.gitlab.ended(id).await.assert_failed("runner_interrupted", None);
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_31_the_second_sigterm_ends_the_process_with_1_at_once() {
    let mut case = case(|text| text).await;
    let id = that_cannot_end(&case).await;
    let begun = Instant::now();
    case.signal(Signal::TERM);
    assert_eq!(case.exit().await.code(), Some(1), "{}", case.log());
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    is_told_by_the_next_start(&mut case, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_32_the_jobs_have_shutdown_timeout_to_end() {
    let mut case = case(|text| text.replace("shutdown_timeout = 20", "shutdown_timeout = 3")).await;
    let begun = Instant::now();
    let id = that_cannot_end(&case).await;
    assert_eq!(case.exit().await.code(), Some(1), "{}", case.log());
    assert!(begun.elapsed() >= Duration::from_secs(3), "it took {:?}", begun.elapsed());
    assert!(case.log().contains("were not cleaned up in time"), "{}", case.log());
    is_told_by_the_next_start(&mut case, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn config_32_a_container_that_ignores_signals_ends_in_time_all_the_same() {
    let mut case = case(|text| text).await;
    let id = case.gitlab.submit(job(&[&format!("trap '' TERM INT QUIT HUP; {LONG}")]));
    case.gitlab.until_output(id, "started").await;
    case.signal(Signal::TERM);
    case.gitlab.ended(id).await.assert_failed("runner_interrupted", None);
    assert!(case.exit().await.success(), "{}", case.log());
    engine().nothing_left_of(id).await;
}

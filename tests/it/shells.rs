//! What scripts can do to their shell, their container and their streams, and how they are stopped.

use std::time::{Duration, Instant};

use crate::{
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
};

/// Says something every second: a silent job asks the server for its state every 30 s only.
const LONG: &str = "echo started; while sleep 1; do echo tick; done; echo never";

/// Both shells there are: that of busybox and bash.
const IMAGES: [&str; 2] = ["busybox:latest", "debian:stable"];

#[tokio::test(flavor = "multi_thread")]
async fn docker_177_what_a_script_that_took_too_long_has_written_is_there_in_after_script() {
    let case = Case::on_bridge().await;
    let spec = |image: &&str| {
        job(&["echo carried > /opt-file", LONG])
            .after(&["cat /opt-file", "echo status=$CI_JOB_STATUS"])
            .image(image)
            .variable("RUNNER_SCRIPT_TIMEOUT", "2s")
    };
    for ended in case.run_all(IMAGES.iter().map(spec)).await {
        ended.assert_failed("job_execution_timeout", None);
        ended.assert_lines(&["started", "carried", "status=timedout"]);
        ended.assert_no_line("never");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_179_what_a_canceled_script_has_written_is_there_in_after_script() {
    let case = Case::on_bridge().await;
    // Nothing of the script can be asked to end.
    let deaf = "trap '' TERM; echo carried > /opt-file; echo started; while :; do sleep 1; echo tick; done";
    let spec = job(&[deaf]).after(&["cat /opt-file", "echo status=$CI_JOB_STATUS"]);
    let id = case.gitlab.submit(spec);
    case.gitlab.until_output(id, "started").await;
    case.gitlab.set_status(id, "canceling");
    let ended = case.gitlab.ended(id).await;
    ended.assert_lines(&["carried", "status=canceled"]);
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_177_processes_of_other_users_and_sessions_end_with_a_script_that_is_stopped() {
    let case = Case::on_bridge().await;
    let spec = job(&["setsid sh -c 'while :; do sleep 1; done' & echo started", LONG])
        .after(&["ps -o args | grep -c '[w]hile :' || echo alone"]);
    let ended = case.run(spec.variable("RUNNER_SCRIPT_TIMEOUT", "2s")).await;
    ended.assert_failed("job_execution_timeout", None);
    ended.assert_lines(&["alone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn background_processes_do_not_hold_a_job() {
    let case = Case::on_bridge().await;
    // One has the script's streams, one writes to them, one is deaf to being asked.
    let script = [
        "sleep 300 &",
        "(while sleep 1; do echo late; done) &",
        "(trap '' TERM HUP; sleep 300; sleep 300) &",
        "echo last",
    ];
    let before = Instant::now();
    let spec = |image: &&str| job(&script).image(image).after(&["echo after"]);
    for ended in case.run_all(IMAGES.iter().map(spec)).await {
        ended.assert_success();
        ended.assert_lines(&["last", "after"]);
    }
    assert!(before.elapsed() < Duration::from_mins(1), "{:?}", before.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_54_scripts_cannot_lose_their_end() {
    let case = Case::on_bridge().await;
    let cases: [(&[&str], i64); 5] = [
        (&["echo said", "exec > /dev/null 2>&1", "echo hidden", "exit 3"], 3),
        (&["echo said", "exec >&- 2>&-; exit 4"], 4),
        (&["echo said", "exec sh -c 'exit 6'"], 6),
        (&["echo said", "sh -c 'kill -9 $PPID'; sleep 60"], 137),
        (&["echo said", "printf '\\000%s:0\\000' x", "set +e", "false", "exit 300"], 44),
    ];
    let all = IMAGES.iter().flat_map(|image| cases.iter().map(move |case| (image, case)));
    let specs =
        all.clone().map(|(image, (script, _))| job(script).image(image).after(&["echo after"]));
    for (ended, (_, (_, code))) in case.run_all(specs).await.iter().zip(all) {
        ended.assert_failed("script_failure", Some(*code));
        ended.assert_lines(&["said", "after"]);
        ended.assert_no_line("hidden");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_kills_all_there_is_fails_and_the_job_goes_on() {
    let case = Case::on_bridge().await;
    let spec = |image: &str, signal: &str| {
        let kill = format!("kill -{signal} -1; kill -{signal} 1; sleep 1; exit 2");
        job(&["echo said", &kill]).image(image).after(&["echo after"])
    };
    let specs = IMAGES.iter().flat_map(|image| [spec(image, "TERM"), spec(image, "KILL")]);
    for ended in case.run_all(specs).await {
        assert_eq!(ended.state(), "failed", "{}", ended.story());
        assert_eq!(ended.failure_reason(), Some("script_failure"), "{}", ended.story());
        ended.assert_lines(&["said", "after"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_62_large_scripts_long_lines_and_any_bytes_arrive_whole() {
    let case = Case::on_bridge().await;
    let large = format!(
        "cat > /tmp/large <<'EOT'\n{}EOT\nwc -c < /tmp/large",
        "0123456789abcde\n".repeat(20_000)
    );
    let line = "y".repeat(200_000);
    let script = [
        &large,
        "head -c 200000 /dev/zero | tr '\\0' y; echo",
        "printf 'a\\000b\\000\\377\\376c\\n'",
        "printf 'no end of line'",
    ];
    let spec = |image: &&str| job(&script).image(image).variable("FF_TIMESTAMPS", "false");
    for ended in case.run_all(IMAGES.iter().map(spec)).await {
        ended.assert_success();
        ended.assert_lines(&["320000", &line]);
        let text = ended.text();
        assert!(text.contains("a\0b\0\u{fffd}\u{fffd}c\n"), "{}", ended.story());
        ended.assert_contains("no end of line");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_46_194_a_container_that_others_remove_fails_the_job_at_once_and_says_so() {
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/gone", &[("a.txt", "1\n")]);
    for sources in [false, true] {
        let spec = job(&[LONG]).after(&["echo after"]);
        let spec = if sources { spec.sources("group/gone", &sha) } else { spec };
        let id = case.gitlab.submit(spec);
        case.gitlab.until_output(id, "started").await;
        let running = engine().running_containers(id);
        let build = running.iter().find(|line| line.contains("-build ")).unwrap();
        engine().docker(&["rm", "--force", build.split(' ').next().unwrap()]);
        let before = Instant::now();
        let ended = case.gitlab.ended(id).await;
        assert!(before.elapsed() < Duration::from_secs(30), "{:?}", before.elapsed());
        ended.assert_failed("runner_system_failure", None);
        ended.assert_contains("the job's container is gone");
        engine().nothing_left_of(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_46_a_removed_container_is_made_again_where_the_job_allows_attempts() {
    let case = Case::on_bridge().await;
    let script = "if [ -e /cache/once ]; then echo again; else touch /cache/once; echo started; \
                  while sleep 1; do echo tick; done; fi";
    let spec = job(&[script]).variable("EXECUTOR_JOB_SECTION_ATTEMPTS", "2");
    let id = case.gitlab.submit(spec.after(&["echo after"]));
    case.gitlab.until_output(id, "started").await;
    let running = engine().running_containers(id);
    engine().docker(&["rm", "--force", running[0].split(' ').next().unwrap()]);
    let ended = case.gitlab.ended(id).await;
    ended.assert_success();
    ended.assert_lines(&["started", "again", "after"]);
    engine().nothing_left_of(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_91_a_services_log_is_shown_when_its_port_stays_closed() {
    let options = Options { docker: "wait_for_services_timeout = 2", ..Options::on_bridge() };
    let case = Case::with(options).await;
    let image = engine().image("busybox:latest", &["EXPOSE 8000"]);
    let service = serde_json::json!({"name": image.name, "alias": "closed",
        "entrypoint": ["sh", "-c"], "command": ["echo out-of-service; echo err-of-service >&2; exec sleep 60"]});
    let ended = case.run_over(job(&["echo ran"]).service(service)).await;
    ended.assert_success();
    ended.assert_lines(&["ran"]);
    ended.assert_contains("probably didn't start properly");
    ended.assert_contains("out-of-service");
    ended.assert_contains("err-of-service");
    ended.assert_contains("8000");
}

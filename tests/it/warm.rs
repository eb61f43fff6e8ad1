//! Docker daemons that wait for jobs.

use std::fs;

use rustix::process::Signal;
use serde_json::json;

use crate::{
    counter::Counter,
    crash::killed_at,
    engine::engine,
    gitlab::{Ended, JobSpec, job},
    longshore::{Case, Options},
    relay::Relay,
};

/// What a job says that took one.
const TAKEN: &str = "Using a warm Docker daemon for service docker:dind";
/// Said of each that begins to wait.
const WAITS: &str = "Docker daemon waits for a job";
/// Its script runs until it is canceled.
const STAYS: &str = "docker info > /dev/null; echo has it; sleep 600";

const ONE: &str = "[runners.docker.dind]\nwarm = 1";
const TWO: &str = "[runners.docker.dind]\nwarm = 2";

fn docker_job(script: &[&str]) -> JobSpec {
    engine().needs_dind();
    job(script).image("docker:cli").service(json!({"name": "docker:dind"}))
}

/// A runner whose first job has shown what is to wait.
async fn warmed(docker: &'static str, count: usize) -> Case {
    let case = Case::with(Options { docker, ..Options::default() }).await;
    let first = case.run(docker_job(&["docker info"])).await;
    first.assert_success();
    assert!(!took_one(&first), "{}", first.story());
    case.until_log(WAITS, count - 1).await;
    engine().nothing_left_of(first.id).await;
    case
}

fn took_one(ended: &Ended) -> bool {
    ended.story().contains(TAKEN)
}

fn mark(case: &Case) -> String {
    let instance = fs::read_to_string(case.state().join("instance")).unwrap();
    format!("longshore.instance={}", instance.trim())
}

/// Names of the case's containers and volumes of daemons that wait or have waited.
fn things(case: &Case) -> Vec<String> {
    let label = format!("label={}", mark(case));
    let list = |arguments: &[&str]| {
        let all = engine().docker(&[arguments, &["--filter", &label]].concat());
        let names = all.lines().filter(|name| name.contains("-warm-"));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut names = list(&["ps", "--all", "--format", "{{.Names}}"]);
    names.extend(list(&["volume", "ls", "--format", "{{.Name}}"]));
    names.sort();
    names
}

/// Names of their containers.
fn daemons(case: &Case) -> Vec<String> {
    things(case).into_iter().filter(|name| name.ends_with("-docker")).collect()
}

/// Waits until nothing of the case's is left, but for volumes that are kept on purpose.
async fn nothing_left(case: &Case) {
    engine().nothing_left_with(&mark(case)).await;
}

/// An image with perl alone, in the job's daemon.
const PERL: &str = "libraries=$(ldd /usr/bin/perl | grep -o '/[^ ]*'); \
    tar -ch /usr/bin/perl /usr/lib/*/perl-base $libraries 2> /dev/null | docker import - inner:1";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_takes_a_daemon_that_waits_and_finds_in_it_all_that_it_has_in_its_own() {
    let case = warmed(TWO, 2).await;
    let before = daemons(&case);
    assert_eq!((before.len(), things(&case).len()), (2, 8), "{:?}", things(&case));
    let web = "mkdir w && echo outer > w/index.html && httpd -f -p 80 -h w";
    let script = [
        "echo of the workspace > seen; mkdir /cache/own; echo of the cache > /cache/own/seen",
        "echo $DOCKER_HOST $DOCKER_TLS_VERIFY $DOCKER_CERT_PATH",
        "docker info --format 'containers {{.Containers}}, images {{.Images}}'",
        PERL,
        "docker run --rm -v $CI_PROJECT_DIR:/x inner:1 perl -pe '' /x/seen",
        "docker run --rm -v /cache/own:/x inner:1 perl -pe '' /x/seen",
        "docker run --rm -v $PWD:/x inner:1 perl -e 'open F, q(>/x/made); print F qq(by it\\n)'",
        "cat made",
        // Inner containers reach other services by name, over the daemon's network.
        "docker run --rm --network host inner:1 perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 6); \
         connect(S, sockaddr_in(80, inet_aton(q(web)))) or die; syswrite S, qq(GET / HTTP/1.0\\n\\n); \
         print <S>'",
        "(unset DOCKER_HOST DOCKER_TLS_VERIFY; docker info > /dev/null && echo at the socket)",
        "docker run --detach --publish 8080:80 inner:1 perl -MSocket -e '
        socket(S, PF_INET, SOCK_STREAM, 6) && bind(S, sockaddr_in(80, INADDR_ANY)) && listen(S, 9) or die;
        while (accept(C, S)) { sysread(C, $_, 4096); print C \"HTTP/1.0 200 OK\\r\\n\\r\\ninner\\n\"; close C }'",
        "curl --silent --retry 50 --retry-delay 1 --retry-all-errors http://docker:8080/",
    ];
    let spec = docker_job(&script)
        .service(json!({"name": "busybox", "alias": "web", "command": ["sh", "-c", web]}));
    let ended = case.run(spec).await;
    ended.assert_success();
    assert!(took_one(&ended), "{}", ended.story());
    ended.assert_lines(&[
        "tcp://docker:2376 1 /certs/client",
        "containers 0, images 0",
        "of the workspace",
        "of the cache",
        "by it",
        "outer",
        "at the socket",
        "inner",
    ]);
    ended.assert_contains("Docker daemon docker:dind is ready after ");
    case.until_log(WAITS, 2).await;
    case.until_idle().await;
    engine().nothing_left_of(ended.id).await;
    let after = daemons(&case);
    let kept: Vec<_> = after.iter().filter(|name| before.contains(name)).collect();
    assert_eq!((after.len(), kept.len(), things(&case).len()), (2, 1, 8), "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_has_no_network_and_nothing_of_the_job_it_was_made_like() {
    let case = Case::with(Options { docker: ONE, ..Options::default() }).await;
    let spec = docker_job(&["docker info"])
        .variable("DEPLOY_KEY", "of-one-project")
        .variable("DOCKER_AUTH_CONFIG", "{\"auths\": {}}")
        .variable("DOCKER_DRIVER", "overlay2");
    let first = case.run(spec).await;
    first.assert_success();
    case.until_log(WAITS, 0).await;
    engine().nothing_left_of(first.id).await;
    let [name] = &daemons(&case)[..] else { panic!("{:?}", things(&case)) };
    let inspected = engine().docker(&["inspect", name]);
    for foreign in ["of-one-project", "DOCKER_AUTH_CONFIG", "CI_", "/builds", "/cache"] {
        assert!(!inspected.contains(foreign), "{foreign}: {inspected}");
    }
    assert!(inspected.contains("DOCKER_DRIVER=overlay2"), "{inspected}");
    let networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    assert_eq!(engine().docker(&["inspect", "--format", networks, name]).trim(), "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_at_once_share_none_and_those_above_the_number_get_one_started() {
    let case = warmed(TWO, 2).await;
    let unique = "docker info --format 'daemon={{.ID}}'; sleep 2";
    let all = case.run_all((0..3).map(|_| docker_job(&[unique]))).await;
    let mut ids = Vec::new();
    for ended in &all {
        ended.assert_success();
        let story = ended.plain();
        let mut said = story.lines().filter_map(|line| line.split_once("daemon="));
        ids.push(said.find(|(_, id)| !id.starts_with('{')).unwrap().1.to_owned());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert_eq!(all.iter().filter(|ended| took_one(ended)).count(), 2);
    case.until_log(WAITS, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_daemon_is_to_be_another_takes_none() {
    let case = warmed(ONE, 1).await;
    let before = daemons(&case);
    let service = |more: serde_json::Value| {
        let mut service = json!({"name": "docker:dind"});
        service.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        job(&["docker info"]).image("docker:cli").service(service)
    };
    // These are noted, so the last of them is what the next one that waits is like.
    let own = json!({"variables": [{"key": "MEANT_FOR_IT", "value": "1"}]});
    let unlike = [
        service(own),
        service(json!({"command": ["--mtu=1390"]})),
        docker_job(&["docker info"]).variable("DOCKER_TLS_CERTDIR", ""),
    ];
    for spec in unlike {
        let ended = case.run(spec).await;
        ended.assert_success();
        assert!(!took_one(&ended), "{}", ended.story());
    }
    assert!(case.log().contains("the service has variables of its own"), "{}", case.log());
    // One without TLS waits by now, in the place of the first.
    case.until_log(WAITS, 2).await;
    case.until_idle().await;
    assert!(!daemons(&case).iter().any(|name| before.contains(name)));
    let script = ["docker info > /dev/null && echo $DOCKER_HOST"];
    let plain = case.run(docker_job(&script).variable("DOCKER_TLS_CERTDIR", "")).await;
    plain.assert_success();
    plain.assert_lines(&["tcp://docker:2375"]);
    assert!(took_one(&plain), "{}", plain.story());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_killed_while_it_waited_is_no_jobs() {
    let case = warmed(ONE, 1).await;
    let [name] = &daemons(&case)[..] else { panic!("{:?}", things(&case)) };
    engine().docker(&["kill", name]);
    case.until_log("ended while it waited", 0).await;
    let ended = case.run(docker_job(&["docker info"])).await;
    ended.assert_success();
    assert!(!took_one(&ended), "{}", ended.story());
    assert!(!things(&case).iter().any(|left| left.contains(name.as_str())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_does_not_answer_any_more_is_replaced_by_one_for_the_job() {
    let case = warmed(ONE, 1).await;
    let [name] = &daemons(&case)[..] else { panic!("{:?}", things(&case)) };
    // Its container runs on, so that nothing but a question tells.
    engine().docker(&["exec", name, "sh", "-c", "kill -STOP $(pidof dockerd)"]);
    let script =
        [PERL, "echo here > seen", "docker run --rm -v $PWD:/x inner:1 perl -pe '' /x/seen"];
    let ended = case.run(docker_job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&["here"]);
    assert!(!took_one(&ended), "{}", ended.story());
    assert!(case.log().contains("does not answer"), "{}", case.log());
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_with_one_waiting_and_one_taken_nothing_is_left() {
    let mut case = warmed(ONE, 1).await;
    let id = case.gitlab.submit(docker_job(&[STAYS]));
    case.gitlab.until_output(id, "has it").await;
    case.until_log(WAITS, 1).await;
    assert_eq!(daemons(&case).len(), 2);
    case.kill().await;
    case.gitlab.allow_jump(id);
    case.restart();
    let ended = case.gitlab.ended(id).await;
    assert!(took_one(&ended), "{}", ended.story());
    case.until_idle().await;
    nothing_left(&case).await;
    assert_eq!(things(&case), [""; 0]);
}

/// At how many moments of a job that takes one `kill -9` is tried.
const MOMENTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_at_any_moment_of_taking_one_nothing_is_left() {
    let counter = Counter::start(engine().socket());
    let options = Options { engine: Some(counter.host()), docker: ONE, ..Options::default() };
    let mut case = Case::with(options).await;
    let spec = || docker_job(&["docker info"]);
    // A job shows what the next one that waits is like.
    let warm = async |case: &Case| {
        let before = case.log().matches(WAITS).count();
        case.run(spec()).await.assert_success();
        case.until_log(WAITS, before).await;
        case.until_idle().await;
    };
    warm(&case).await;
    let before = counter.count();
    assert!(took_one(&case.run(spec()).await));
    let needed = counter.count().since(&before).requests.len();
    for moment in 0..MOMENTS {
        warm(&case).await;
        let reached = counter.count().requests.len() + 1 + needed * moment / MOMENTS;
        killed_at(&mut case, &counter, spec(), reached).await;
        nothing_left(&case).await;
        assert_eq!(things(&case), [""; 0], "killed at moment {moment} of {needed} requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_a_job_did_not_come_to_use_goes_with_it_and_another_waits() {
    let options = Options { docker: ONE, pull_policy: Some("never"), ..Options::default() };
    let case = Case::with(options).await;
    case.run(docker_job(&["docker info"])).await.assert_success();
    case.until_log(WAITS, 0).await;
    let before = daemons(&case);
    let ended = case.run(docker_job(&["true"]).image("longshore-it-no-such-image:1")).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    case.until_log(WAITS, 1).await;
    case.until_idle().await;
    let after = daemons(&case);
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_engine_is_elsewhere_none_waits_and_that_is_said_once() {
    let relay = Relay::start(engine().socket()).await;
    let options = Options { engine: Some(relay.host()), docker: ONE, ..Options::default() };
    let case = Case::with(options).await;
    for _ in 0..2 {
        let ended = case.run_over(docker_job(&["docker info"])).await;
        ended.assert_success();
        assert!(!took_one(&ended), "{}", ended.story());
    }
    assert_eq!(things(&case), [""; 0]);
    let log = case.log();
    assert_eq!(log.matches("no Docker daemon can wait for jobs here").count(), 1, "{log}");
    assert!(log.contains("is not on this host"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn none_is_left_at_the_end_or_when_the_settings_change() {
    let mut case = warmed(TWO, 2).await;
    let id = case.gitlab.submit(docker_job(&[STAYS]));
    case.gitlab.until_output(id, "has it").await;
    case.until_log(WAITS, 2).await;
    case.edit(|text| text.replace("warm = 2", "warm = 0"));
    case.until_log("configuration loaded", 1).await;
    let gone = async {
        let mut again = tokio::time::interval(std::time::Duration::from_millis(100));
        while daemons(&case).len() > 1 {
            again.tick().await;
        }
    };
    // The engine does not tell, so it is asked until then.
    tokio::time::timeout(std::time::Duration::from_secs(30), gone).await.expect("they stay");
    // The one that is a job's is the job's until its end.
    case.gitlab.set_status(id, "canceling");
    assert!(took_one(&case.gitlab.ended(id).await));
    case.until_idle().await;
    assert_eq!(things(&case), [""; 0]);
    case.edit(|text| text.replace("warm = 0", "warm = 1"));
    case.until_log("configuration loaded", 2).await;
    case.run_over(docker_job(&["docker info"])).await.assert_success();
    case.until_log(WAITS, 3).await;
    case.signal(Signal::TERM);
    assert!(case.exit().await.success());
    nothing_left(&case).await;
    assert_eq!(things(&case), [""; 0]);
}

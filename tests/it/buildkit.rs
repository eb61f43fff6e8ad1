//! Jobs that build with a real buildx (Debian trixie's) and a real rootless BuildKit.

use serde_json::{Value, json};

use crate::{
    engine::engine,
    gitlab::{JobSpec, job},
    longshore::{Case, Options},
};

const SIDECAR: &str = "[runners.docker.socket]\nmode = \"guarded\"\nbuild = \"sidecar\"\n\
                       shared_images = [\"busybox:*\"]";

/// A context that only BuildKit can build (`--chmod`), from nothing, as no registry is there.
const CONTEXT: &str = "docker run --rm busybox:latest cat /bin/busybox > busybox && \
    printf '%s\\n' 'FROM scratch' 'COPY --chmod=755 busybox /bin/busybox' \
    'RUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox id -u > /who\"]' \
    'CMD [\"/bin/busybox\", \"cat\", \"/who\"]' > Dockerfile";

/// Runs a command that must fail. What is found in the trace is not in this text.
const REFUSED: &str = "refused() { if out=$(\"$@\" 2>&1); then echo \"allow\"\"ed: $*\"; \
    else echo \"refus\"\"ed: $out\"; fi; }";

async fn case(docker: &'static str) -> Case {
    Case::with(Options { docker, ..Options::default() }).await
}

fn buildx_job(script: &[&str]) -> JobSpec {
    engine().needs_buildx();
    job(script).image("docker:cli-buildx")
}

#[tokio::test(flavor = "multi_thread")]
async fn g_11_3_docker_buildx_and_compose_build_with_the_jobs_own_buildkit() {
    if !engine().has_buildkit() {
        return;
    }
    let case = case(SIDECAR).await;
    let script = [
        CONTEXT,
        "echo \"buildkit=$DOCKER_BUILDKIT.\"",
        "docker buildx build --quiet --load --tag one-$CI_JOB_ID . > /dev/null && docker run --rm one-$CI_JOB_ID",
        "docker build --quiet --load --tag two-$CI_JOB_ID . > /dev/null && docker run --rm two-$CI_JOB_ID",
        "docker image ls --format '{{.Repository}}' | sed 's/-[0-9]*$//' | sort | tr '\\n' ' ' && echo",
        "printf '%s\\n' 'services:' '  web:' '    build: .' > compose.yaml",
        // A name of the engine, which its jobs have in common.
        "export COMPOSE_PROJECT_NAME=compose-$CI_JOB_ID",
        "docker compose up --build 2>&1 | grep '| 0'",
        "docker compose down --rmi local",
        // The classic builder is there for whoever wants it.
        "printf 'FROM busybox\\nRUN echo classic > /who\\n' | \
         DOCKER_BUILDKIT=0 docker build --quiet --tag three-$CI_JOB_ID - > /dev/null",
        "docker run --rm three-$CI_JOB_ID cat /who",
    ];
    let ended = case.run(buildx_job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&[
        "buildkit=.",
        "0",
        "0",
        "busybox docker one two ",
        "web-1  | 0",
        "classic",
    ]);
    let story = ended.story();
    assert!(
        story.contains("BuildKit of its own at unix:///run/longshore/buildkitd.sock"),
        "{story}"
    );
    assert!(story.contains("BuildKit moby/buildkit:rootless is ready after"), "{story}");
    engine().nothing_left_of(ended.id).await;
    case.until_idle().await;
    let images = engine().docker(&["images", "--format", "{{.Repository}}"]);
    assert!(!images.contains(&ended.id.to_string()), "{images}");
}

#[tokio::test(flavor = "multi_thread")]
async fn g_11_3_a_push_leaves_from_the_jobs_network_and_any_user_may_build() {
    if !engine().has_buildkit() {
        return;
    }
    let case = case(SIDECAR).await;
    let script = [
        "id -u",
        CONTEXT,
        // The engine does not know this name.
        "docker buildx build --quiet . --output \
         type=image,name=registry:5000/pushed:1,push=true,registry.insecure=true > /dev/null",
        "curl --silent http://registry:5000/v2/pushed/tags/list",
    ];
    let spec = buildx_job(&script).service(json!({"name": "registry:2", "alias": "registry"})).set(
        "/image",
        json!({
            "name": "docker:cli-buildx", "executor_opts": {"docker": {"user": "65534"}},
        }),
    );
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["65534", r#"{"name":"pushed","tags":["1"]}"#]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_11_3_a_jobs_buildkit_cannot_be_touched_by_it_and_goes_with_it_after_a_kill() {
    if !engine().has_buildkit() {
        return;
    }
    let mut case = case(SIDECAR).await;
    let script = [
        CONTEXT,
        "echo it-'waits'",
        // The test puts it there: nothing that the job can ask says its name.
        "until [ -s /kit ]; do sleep 0.1; done; read -r kit id < /kit",
        REFUSED,
        "refused docker inspect $kit",
        "refused docker inspect $id",
        "refused docker exec $id true",
        "refused docker kill $kit",
        "refused docker stop $kit",
        // docker says nothing of what is not there.
        "docker rm --force --volumes $kit 2> /dev/null",
        "refused docker cp $kit:/etc/passwd .",
        "refused docker run --rm --network container:$kit busybox:latest true",
        "refused docker run --rm --pid container:$kit busybox:latest true",
        "refused docker run --rm --volumes-from $kit busybox:latest true",
        "refused docker run --rm --volume /run/longshore:/run/longshore busybox:latest true",
        "refused docker buildx create --driver docker-container --name other",
        "refused docker buildx build --allow security.insecure .",
        "refused docker buildx build --allow network.host --network host .",
        "docker network inspect bridge --format '{{len .Containers}} in the network'",
        "docker volume ls --quiet | wc -l",
        "docker buildx build --quiet --load --tag one-$CI_JOB_ID . > /dev/null && docker run --rm one-$CI_JOB_ID",
        "echo all-'tried'",
        "sleep 1000",
    ];
    let id = case.gitlab.submit(buildx_job(&script));
    case.gitlab.until_output(id, "it-waits").await;
    let running = engine().running_containers(id);
    let named = |end: &str| {
        let names = running.iter().filter_map(|line| line.split(' ').next());
        let mut names = names.filter(|name| name.ends_with(end));
        names.next().unwrap_or_else(|| panic!("no {end} in {running:?}")).to_owned()
    };
    let (name, own) = (named("-buildkit"), named("-build"));
    let inspected = engine().docker(&["inspect", &name]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let full = inspected[0]["Id"].as_str().unwrap();
    let put = format!("echo {name} {full} > /kit");
    engine().docker(&["exec", &own, "sh", "-c", &put]);
    case.gitlab.until_output(id, "all-tried").await;
    let said = case.gitlab.result_so_far(id);
    let text = said.plain();
    assert!(!text.contains("allowed: "), "{text}");
    assert_eq!(text.matches("refused: ").count(), 13, "{text}");
    assert!(
        text.contains("this job has a BuildKit of its own: build with --builder longshore"),
        "{text}"
    );
    said.assert_lines(&["1 in the network", "0", "0"]);

    // It has no privileges, and of the job its network and limits alone.
    let host = &inspected[0]["HostConfig"];
    assert_eq!(host["Privileged"], false);
    assert_eq!(
        (&host["CapAdd"], &host["Devices"], &host["Binds"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!((&host["Memory"], &host["PidsLimit"]), (&json!(2_i64 << 30), &json!(1024)));
    assert_eq!(inspected[0]["Config"]["User"], "1000:1000");
    let networks = inspected[0]["NetworkSettings"]["Networks"].as_object().unwrap();
    assert_eq!(networks.len(), 1, "{networks:?}");
    assert!(networks.keys().all(|name| name.ends_with(&id.to_string())), "{networks:?}");

    case.kill().await;
    case.gitlab.allow_jump(id);
    case.restart();
    case.gitlab.ended(id).await.assert_failed("runner_system_failure", None);
    engine().nothing_left_of(id).await;
    engine().nothing_left_with(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_11_2_without_it_buildx_is_refused_at_once_and_told_the_way_out() {
    let case =
        case("[runners.docker.socket]\nmode = \"guarded\"\nshared_images = [\"busybox:*\"]").await;
    let script = [
        "printf 'FROM busybox\\nRUN echo classic > /who\\n' > Dockerfile",
        "printf '%s\\n' 'services:' '  web:' '    build: .' '    command: cat /who' > compose.yaml",
        "export COMPOSE_PROJECT_NAME=compose-$CI_JOB_ID",
        REFUSED,
        "refused docker buildx build .",
        "DOCKER_BUILDKIT=1 refused docker build .",
        "refused docker buildx create --driver docker-container --name other",
        "refused docker buildx du",
        "DOCKER_BUILDKIT=1 refused docker compose build",
        "docker buildx ls 2>&1 | grep --only-matching 'set DOCKER_BUILDKIT=0'",
        "docker build --quiet --tag one-$CI_JOB_ID . > /dev/null && docker run --rm one-$CI_JOB_ID cat /who",
        "docker compose up --build 2>&1 | grep '| classic'",
        "docker compose down",
    ];
    let ended = case.run(buildx_job(&script)).await;
    ended.assert_success();
    let text = ended.plain();
    assert!(!text.contains("allowed: "), "{text}");
    assert_eq!(text.matches("refused: ").count(), 5, "{text}");
    let way = "set DOCKER_BUILDKIT=0 to build with the classic builder";
    assert!(text.matches(way).count() >= 5, "{text}");
    assert!(!text.contains("registry-1.docker.io"), "an image was pulled for a builder: {text}");
    ended.assert_lines(&["set DOCKER_BUILDKIT=0", "classic", "web-1  | classic"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn g_70_nothing_is_built_where_building_is_off() {
    let case = case(
        "[runners.docker.socket]\nmode = \"guarded\"\nbuild = \"off\"\n\
         shared_images = [\"busybox:*\"]",
    )
    .await;
    let script = [
        "echo 'FROM busybox' > Dockerfile",
        REFUSED,
        "refused docker build .",
        "refused docker buildx build .",
        "docker run --rm busybox:latest echo runs",
    ];
    let ended = case.run(buildx_job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&["runs"]);
    let text = ended.plain();
    assert!(!text.contains("allowed: "), "{text}");
    assert_eq!(text.matches("refused: ").count(), 2, "{text}");
    assert!(text.matches("building images is turned off on this runner").count() >= 2, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buildkit_that_does_not_start_fails_the_job_with_its_words() {
    let case = case(
        "[runners.docker.socket]\nmode = \"guarded\"\nbuild = \"sidecar\"\n\
         buildkit_image = \"docker:cli-buildx\"",
    )
    .await;
    let ended = case.run(buildx_job(&["echo never"])).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_lacks("never");
    ended.assert_contains("Run 'docker COMMAND --help'");
    ended.assert_contains("the job's BuildKit (docker:cli-buildx) ended with exit code");
    engine().nothing_left_of(ended.id).await;
}

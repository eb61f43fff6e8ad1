//! Docker Compose v2 (Debian trixie's) in jobs with a guarded socket.

use crate::{
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
};

const FILE: &str = "
services:
  web:
    image: busybox:latest
    init: true
    command: httpd -f -p 80 -h /www
    volumes: ['./www:/www:ro']
    ports: ['8080:80']
    restart: always
    healthcheck: {test: wget -q -O /dev/null localhost, interval: 1s, retries: 30}
  client:
    image: busybox:latest
    init: true
    command: sh -c 'wget -q -O /out/page web && cat /out/page && sleep 1000'
    volumes: ['./out:/out', 'data:/data']
    networks: [default, back]
    depends_on: {web: {condition: service_healthy}}
networks: {back: {}}
volumes: {data: {}}
";

#[tokio::test(flavor = "multi_thread")]
async fn g_12_2_two_jobs_run_the_same_compose_file_at_once() {
    let options = Options {
        docker: "[runners.docker.socket]\nmode = \"guarded\"\nshared_images = [\"busybox:*\"]",
        ..Options::default()
    };
    let case = Case::with(options).await;
    engine().needs_buildx();
    let script = [
        "mkdir www out && echo \"$PAYLOAD\" > www/index.html && echo \"$FILE\" > compose.yaml",
        "docker compose up --detach --quiet-pull",
        "docker compose ps --services --status running | sort | tr '\\n' ' ' && echo",
        "until docker compose logs --no-log-prefix client | grep \"$PAYLOAD\"; do sleep 0.1; done",
        "docker compose exec -T client sed 's/^/exec: /' /out/page",
        "docker compose run --rm --no-deps client wget -q -O - web | sed 's/^/run: /'",
        "docker compose cp client:/out/page copied && sed 's/^/cp: /' copied",
        "sed 's/^/bind: /' out/page",
        "curl --silent http://docker:8080/ | sed 's/^/port: /'",
        "docker compose port web 80 | sed 's/.*:/port /'",
        "docker compose ls --quiet",
        // Its init, and itself.
        "docker compose top web | grep -c httpd",
        "docker compose restart client && docker compose stop && docker compose start",
        "docker compose kill client && docker compose ps --services --status exited",
        "docker compose down --volumes",
        "docker ps --all --quiet | wc -l && docker volume ls --quiet | wc -l",
    ];
    let spec = |payload: &str| {
        job(&script).image("docker:cli-buildx").variable("PAYLOAD", payload).variable("FILE", FILE)
    };
    // Of the same project: its directory, and by that compose's names, are the same.
    let (one, other) = tokio::join!(case.run(spec("first")), case.run(spec("second")));
    for (ended, payload) in [(one, "first"), (other, "second")] {
        ended.assert_success();
        let marked = ["exec", "run", "cp", "bind", "port"].map(|mark| format!("{mark}: {payload}"));
        let mut lines = vec!["client web ", payload];
        lines.extend(marked.iter().map(String::as_str));
        lines.extend(["port 8080", "none", "2", "client", "0", "0"]);
        ended.assert_lines(&lines);
        engine().nothing_left_of(ended.id).await;
    }
}

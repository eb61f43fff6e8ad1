//! Images: entrypoints, users, shells, policies, and an image of the operator's for the helper.

use axum::{
    Json, Router,
    http::{StatusCode, Uri},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
};

/// `image` of a job with another entrypoint.
fn with_entrypoint(name: &str, entrypoint: &[&str]) -> Value {
    json!({"name": name, "entrypoint": entrypoint})
}

const SAYS_AND_RUNS: &str =
    r#"ENTRYPOINT ["sh", "-c", "echo entry=$FROM_JOB; exec \"$@\"", "entry"]"#;

#[tokio::test(flavor = "multi_thread")]
async fn docker_34_35_76_an_entrypoint_runs_before_the_script_unless_it_is_overridden() {
    let image = engine().image("busybox:latest", &[SAYS_AND_RUNS, r#"CMD ["false"]"#]);
    let case = Case::on_bridge().await;
    let spec = |image: Value| {
        job(&["echo script"]).after(&["echo after"]).set("/image", image).variable("FROM_JOB", "x")
    };
    let own = ["sh", "-c", "echo other; exec \"$@\"", "entry"];
    let all = [
        (json!({"name": image.name}), "entry=x"),
        (with_entrypoint(&image.name, &[""]), ""),
        (with_entrypoint(&image.name, &["env", "OTHER=1"]), ""),
        (with_entrypoint("busybox:latest", &own), "other"),
    ];
    let ended = case.run_all(all.iter().map(|(image, _)| spec(image.clone()))).await;
    for (ended, (_, said)) in ended.iter().zip(&all) {
        ended.assert_success();
        ended.assert_lines(&["script", "after"]);
        for line in ["entry=x", "other"] {
            if line == *said {
                ended.assert_lines(&[line]);
            } else {
                ended.assert_no_line(line);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_34_an_override_is_ignored_with_a_warning_where_it_is_forbidden() {
    let image = engine().image("busybox:latest", &[SAYS_AND_RUNS]);
    let options = Options { docker: "disable_entrypoint_overwrite = true", ..Options::on_bridge() };
    let case = Case::with(options).await;
    let spec = job(&["echo script"]).set("/image", with_entrypoint(&image.name, &[""]));
    let ended = case.run(spec.variable("FROM_JOB", "x")).await;
    ended.assert_success();
    ended.assert_lines(&["entry=x", "script"]);
    ended.assert_contains("WARNING");
    ended.assert_contains("entrypoint");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entrypoint_that_ignores_its_arguments_decides_how_the_job_ends() {
    let case = Case::on_bridge().await;
    for (command, code) in [("echo own-work; exit 5", 5), ("echo own-work", 0)] {
        let image = with_entrypoint("busybox:latest", &["sh", "-c", command]);
        // A script too long for the pipe: nobody ever reads it.
        let script = format!("echo never # {}", "x".repeat(300_000));
        let ended = case.run(job(&[&script]).set("/image", image)).await;
        match code {
            0 => ended.assert_success(),
            code => ended.assert_failed("script_failure", Some(code)),
        }
        ended.assert_lines(&["own-work"]);
        ended.assert_no_line("never");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entrypoint_finds_the_sources() {
    let image = with_entrypoint("busybox:latest", &["sh", "-c", "cat $CI_PROJECT_DIR/a.txt"]);
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/entry", &[("a.txt", "found\n")]);
    let ended = case.run(job(&["true"]).set("/image", image).sources("group/entry", &sha)).await;
    ended.assert_success();
    ended.assert_lines(&["found"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_49_194_an_image_without_a_shell_fails_the_job_and_says_what_it_lacks() {
    let image = engine().image_of_one_file("busybox:latest", "/bin/busybox");
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/bare", &[("a.txt", "1\n")]);
    for sources in [false, true] {
        let spec = job(&["true"]).image(&image.name);
        let spec = if sources { spec.sources("group/bare", &sha) } else { spec };
        let ended = case.run(spec).await;
        ended.assert_failed("runner_system_failure", None);
        ended.assert_contains("hint: the job's image needs a shell");
        engine().nothing_left_of(ended.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_36_109_an_images_own_user_and_the_settings_users_can_write() {
    let image = engine().image("busybox:latest", &["USER 4321", "WORKDIR /nowhere"]);
    let case = Case::on_bridge().await;
    let sha = case.gitlab.commit("group/own", &[("dir/a.txt", "1\n")]);
    let script = ["id -u", "echo x > dir/b && touch /cache/f /builds/f && cat dir/b && pwd"];
    let artifact = json!({"name": "x", "paths": ["dir/b"], "artifact_type": "archive",
        "artifact_format": "zip", "when": "always"});
    let cache = json!({"key": "k", "paths": ["dir"], "policy": "pull-push", "when": "always"});
    for _ in 0..2 {
        let spec = job(&script).image(&image.name).sources("group/own", &sha);
        let ended = case.run_over(spec.artifact(artifact.clone()).cache(cache.clone())).await;
        ended.assert_success();
        ended.assert_lines(&["4321", "x", "/builds/group/own"]);
        assert_eq!(ended.uploads.len(), 1);
    }
    let ended = case.run(job(&["id -u; touch f /cache/f; echo done"]).image(&image.name)).await;
    ended.assert_success();
    ended.assert_lines(&["4321", "done"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_36_37_38_the_runners_user_wins_and_no_other_is_allowed() {
    let as_user = |user: &str| {
        let options = json!({"docker": {"user": user}});
        let image = json!({"name": "busybox:latest", "executor_opts": options});
        job(&["echo uid=$(id -u)"]).set("/image", image)
    };
    let options = Options { docker: "user = \"1111\"", ..Options::on_bridge() };
    let case = Case::with(options).await;
    let ended = case.run(as_user("2222")).await;
    ended.assert_success();
    ended.assert_lines(&["uid=1111"]);
    let options = Options { docker: "allowed_users = [\"3333\"]", ..Options::on_bridge() };
    let case = Case::with(options).await;
    case.run(as_user("3333")).await.assert_lines(&["uid=3333"]);
    let ended = case.run(as_user("2222")).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("2222");
    ended.assert_contains("3333");
    engine().nothing_left_of(ended.id).await;
}

/// An image at a registry that does not have it, and the registry.
async fn missing_image() -> (String, JoinSet<()>) {
    // Engines take a registry on a loopback address without TLS.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/missing:1", listener.local_addr().unwrap());
    let unknown = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
    let answer = |uri: Uri| async move {
        let status = if uri.path() == "/v2/" { StatusCode::OK } else { StatusCode::NOT_FOUND };
        (status, Json(unknown))
    };
    let mut server = JoinSet::new();
    server.spawn(async { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    (name, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_122_123_124_125_pull_policies_are_tried_in_order_where_they_are_allowed() {
    let case = Case::with(Options {
        docker: r#"
            allowed_pull_policies = ["if-not-present", "never"]
            allowed_images = ["busybox:*", "127.0.0.1:*/missing:*"]
            "#,
        ..Options::on_bridge()
    })
    .await;
    let spec = |name: &str, policies: &[&str]| {
        job(&["echo ran"]).set("/image", json!({"name": name, "pull_policy": policies}))
    };
    // There is no registry for it here, so that whoever asks one fails.
    for policies in [&["if-not-present"][..], &["never"], &["always", "never"]] {
        let ended = case.run(spec("busybox:latest", policies)).await;
        ended.assert_success();
        ended.assert_lines(&["ran"]);
    }
    let (missing, _server) = missing_image().await;
    let ended = case.run(spec(&missing, &["never"])).await;
    ended.assert_failed("runner_system_failure", None);
    ended.assert_contains(&missing);
    let ended = case.run(spec(&missing, &["if-not-present", "never"])).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("WARNING");
    ended.assert_contains("manifest unknown");
    let ended = case.run(spec("busybox:latest", &["always"])).await;
    // `runner_configuration_error` is none of the reasons that the server understands.
    ended.assert_failed("script_failure", None);
    ended.assert_contains("pull_policy [always]");
    ended.assert_contains("allowed_pull_policies [if-not-present, never]");
    let ended = case.run(spec("debian:stable", &["never"])).await;
    assert_eq!(ended.state(), "failed", "{}", ended.story());
    ended.assert_contains("`debian:stable` is not allowed by allowed_images");
    ended.assert_no_line("ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_129_any_image_with_git_and_a_shell_can_be_the_helper() {
    let case = Case::with(Options {
        runner: "environment = [\"RELEASE=stable\"]",
        docker: "helper_image = \"debian:$RELEASE\"",
        ..Options::on_bridge()
    })
    .await;
    let sha = case.gitlab.commit("group/helped", &[("a.txt", "sources\n")]);
    let artifact = json!({"name": "x", "paths": ["a.txt"], "artifact_type": "archive",
        "artifact_format": "zip", "when": "on_success"});
    let cache = json!({"key": "k", "paths": ["deps"], "policy": "pull-push", "when": "on_success"});
    let spec = |script: &str| {
        job(&[script]).sources("group/helped", &sha).artifact(artifact.clone()).cache(cache.clone())
    };
    let id = case.gitlab.submit(spec("mkdir -p deps; echo cached > deps/f; echo started; sleep 3"));
    case.gitlab.until_output(id, "started").await;
    let helpers =
        engine().inspect(|line| line.contains(&id.to_string()) && line.contains("-predefined "));
    assert_eq!(helpers.len(), 1, "{helpers:#?}");
    let image = engine().docker(&["image", "inspect", "--format", "{{.Id}}", "debian:stable"]);
    assert_eq!(helpers[0]["Image"], image.trim());
    let first = case.gitlab.ended(id).await;
    first.assert_success();
    assert_eq!(first.uploads.len(), 1);
    let second = spec("cat a.txt deps/f").depends_on(&first);
    let ended = case.run(second).await;
    ended.assert_success();
    ended.assert_lines(&["sources", "cached"]);
}

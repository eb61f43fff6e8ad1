use serde_json::{Value, json};

use crate::workload::{Workload, testing::Case};

fn services(list: Value) -> Case {
    Case::new().with("services", list)
}

fn environment(plan: &Workload, index: usize) -> Vec<&str> {
    plan.services[index]
        .environment
        .iter()
        .map(String::as_str)
        .filter(|line| !line.starts_with("FF_") && !line.starts_with("CI_"))
        .collect()
}

#[test]
fn docker_77_services_see_public_and_internal_variables_and_their_own() {
    let plan = services(json!([
        {"name": "postgres", "variables": [{"key": "POSTGRES_DB", "value": "x"}]},
        {"name": "redis"},
    ]))
    .runner(r#"environment = ["OF_RUNNER=1"]"#)
    .variable_with("PUBLIC", "1", &json!({"public": true}))
    .variable_with("FILE", "content", &json!({"public": true, "file": true}))
    .variable("PRIVATE", "1")
    .variable_with("SECRET", "s", &json!({"masked": true}))
    .plan();
    let shared = [
        "OF_RUNNER=1",
        "PUBLIC=1",
        "FILE=/builds/acme/turbine.tmp/FILE",
        "RUNNER_TEMP_PROJECT_DIR=/builds/acme/turbine.tmp",
    ];
    assert_eq!(environment(&plan, 0), [&shared[..], &["POSTGRES_DB=x"]].concat());
    assert_eq!(environment(&plan, 1), shared);
    let all = &plan.services[0].environment;
    for line in ["CI_PROJECT_DIR=/builds/acme/turbine", "FF_TIMESTAMPS=true", "CI_SERVER=yes"] {
        assert!(all.iter().any(|l| l == line), "{line}");
    }
}

#[test]
fn docker_78_values_of_a_service_may_refer_to_all_variables_of_the_job() {
    let plan = services(json!([{"name": "postgres", "variables": [
        {"key": "POSTGRES_PASSWORD", "value": "$PASSWORD"},
        {"key": "URL", "value": "pg://${POSTGRES_PASSWORD}@$HOST_NAME"},
        {"key": "HOST_NAME", "value": "own"},
        {"key": "LITERAL", "value": "$PASSWORD", "raw": true},
        {"key": "PUBLIC", "value": "own"},
    ]}]))
    .variable_with("PASSWORD", "pa$$ss", &json!({"masked": true}))
    .variable_with("HOST_NAME", "private", &json!({}))
    .variable_with("PUBLIC", "job", &json!({"public": true}))
    .plan();
    let environment = environment(&plan, 0);
    assert!(environment.contains(&"POSTGRES_PASSWORD=pa$ss"), "{environment:?}");
    assert!(environment.contains(&"URL=pg://$PASSWORD@own"), "one pass: {environment:?}");
    assert!(environment.contains(&"LITERAL=$PASSWORD"));
    assert!(environment.contains(&"PUBLIC=own"));
    assert_eq!(environment.iter().filter(|line| line.starts_with("PUBLIC=")).count(), 1);
}

#[test]
fn a_file_variable_of_a_service_is_its_content() {
    let plan = services(json!([{"name": "nginx", "variables": [
        {"key": "CONF", "value": "server {}", "file": true},
    ]}]))
    .plan();
    assert!(environment(&plan, 0).contains(&"CONF=server {}"));
}

#[test]
fn docker_83_84_aliases_are_given_once_and_the_first_free_one_names_the_container() {
    let plan = services(json!([
        {"name": "redis:7", "alias": "redis, cache  cache"},
        {"name": "redis:6", "alias": "old"},
        {"name": "redis:5"},
        {"name": "reg:5000/ns/app:1", "alias": "$NAME"},
    ]))
    .variable("NAME", "a,b")
    .plan();
    let seen: Vec<_> =
        plan.services.iter().map(|s| (s.container.as_str(), s.aliases.join(" "))).collect();
    let unique = &plan.names.unique;
    assert_eq!(
        seen,
        [
            (format!("{unique}-redis-0").as_str(), "redis cache".to_owned()),
            (format!("{unique}-old-1").as_str(), "old".to_owned()),
            (format!("{unique}-reg__ns__app-3").as_str(), "reg__ns__app reg-ns-app a b".to_owned()),
        ]
    );
    assert_eq!(
        plan.warnings,
        [
            "service redis:6: the alias redis is taken by an earlier service",
            "service redis:5: the alias redis is taken by an earlier service",
            "service redis:5 is not started: all its names are taken by earlier services; give it \
             an alias",
        ]
    );
}

#[test]
fn docker_85_94_services_of_the_runner_come_first_and_need_no_permission() {
    let case = services(json!([
        {"name": "postgres:16", "command": ["-c", "x=y"], "entrypoint": ["/e"]},
        {"name": "mysql:8", "alias": "db"},
    ]))
    .variable("TAG", "8")
    .docker(
        "allowed_services = [\"postgres:*\"]\n\
         [[runners.docker.services]]\nname = \"mysql:$TAG\"\nalias = \"own\"\n\
         command = [\"--c\"]\nentrypoint = [\"/m\"]\nenvironment = [\"ROOT=$TAG\"]",
    );
    let plan = case.plan();
    let images: Vec<_> = plan.services.iter().map(|s| s.image.as_str()).collect();
    assert_eq!(images, ["mysql:8", "postgres:16", "mysql:8"]);
    assert_eq!(
        (&plan.services[0].command[..], &plan.services[0].entrypoint[..]),
        (&["--c".to_owned()][..], &["/m".to_owned()][..])
    );
    assert!(plan.services[0].environment.contains(&"ROOT=8".to_owned()));
    assert_eq!(plan.services[1].command, ["-c", "x=y"]);
    assert_eq!(plan.services[1].entrypoint, ["/e"]);
    let refusal = services(json!([{"name": "mysql:9"}]))
        .docker("allowed_services = [\"postgres:*\"]")
        .refusal();
    assert_eq!(refusal.0, "service `mysql:9` is not allowed by allowed_services: postgres:*");
    // The runner's own entrypoint is no override of the job's.
    let strict = case.docker("").runner("").with("services", json!([]));
    assert_eq!(strict.plan().services[0].entrypoint, ["/m"]);
}

#[test]
fn docker_86_more_services_than_allowed_are_refused_with_both_numbers() {
    let three = json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]);
    let (text, reason) = services(three.clone()).docker("services_limit = 2").refusal();
    assert!(text.contains('3') && text.contains('2'), "{text}");
    assert_eq!(reason, "runner_system_failure");
    for limit in [3, -1] {
        let case = services(three.clone()).docker(&format!("services_limit = {limit}"));
        assert_eq!(case.plan().services.len(), 3);
    }
}

#[test]
fn a_service_without_a_name_is_a_fault_of_the_configuration() {
    let refusal = services(json!([{"name": "$UNSET"}])).refusal();
    assert_eq!(refusal, ("service `` is no image reference".into(), "runner_configuration_error"));
}

#[test]
fn a_script_that_takes_half_of_its_dockers_address_away_is_told() {
    let warnings = |script: &[&str], docker: &str| {
        services(json!([{"name": "docker:dind"}])).script(script).docker(docker).plan().warnings
    };
    let shared = "[runners.docker.dind]\nnetwork = \"shared\"";
    let half = ["cd x && unset DOCKER_HOST", "docker info"];
    assert_eq!(
        warnings(&half, ""),
        ["the script unsets DOCKER_HOST but not DOCKER_TLS_VERIFY, with which docker asks \
          localhost: without both it finds the job's daemon at /var/run/docker.sock"]
    );
    // Localhost is the daemon's place.
    assert_eq!(warnings(&half, shared), [""; 0]);
    assert_eq!(warnings(&["unset DOCKER_HOST DOCKER_TLS_VERIFY"], ""), [""; 0]);
    assert_eq!(warnings(&["docker info"], ""), [""; 0]);
    let plain = services(json!([{"name": "docker:dind"}])).script(&half);
    let plain = plain.variable_with("DOCKER_TLS_CERTDIR", "", &json!({"public": true}));
    assert_eq!(plain.plan().warnings, [""; 0]);
}

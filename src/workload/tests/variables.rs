use serde_json::json;

use crate::{
    base::secret::Secret,
    config::flags::FLAGS,
    workload::{script, testing::Case},
};

fn with_tls(mut case: Case) -> Case {
    case.placement.server_ca = Some("ca pem".to_owned());
    case.placement.client_certificate = Some(("cert pem".to_owned(), Secret::new("key pem")));
    case
}

#[test]
fn docker_66_the_job_beats_the_runner_and_the_runners_facts_beat_the_job() {
    let mut case = Case::new().runner(r#"environment = ["A=runner", "B=runner", "CI_SERVER=no"]"#);
    for name in ["A", "CI_PROJECT_DIR", "CI_JOB_STATUS", "CI_SERVER_TLS_CA_FILE"] {
        case = case.variable(name, "job");
    }
    for name in [
        "CI_DISPOSABLE_ENVIRONMENT",
        "CI_RUNNER_VERSION",
        "CI_RUNNER_REVISION",
        "CI_RUNNER_EXECUTABLE_ARCH",
        "RUNNER_TEMP_PROJECT_DIR",
        "CI_BUILD_NETWORK_NAME",
    ] {
        case = case.variable(name, "job");
    }
    let plan = with_tls(case).variable("FF_NETWORK_PER_BUILD", "1").plan();
    let value = |name: &str| plan.variables.value(name).unwrap();
    assert_eq!((value("A"), value("B"), value("CI_SERVER")), ("job", "runner", "yes"));
    for name in ["CI_PROJECT_DIR", "CI_JOB_STATUS", "CI_SERVER_TLS_CA_FILE"] {
        assert_eq!(value(name), "job", "{name}");
    }
    assert_eq!(value("CI_DISPOSABLE_ENVIRONMENT"), "true");
    assert_eq!(value("CI_RUNNER_VERSION"), env!("CARGO_PKG_VERSION"));
    assert_eq!(value("CI_RUNNER_EXECUTABLE_ARCH"), "linux/amd64");
    assert_eq!(value("RUNNER_TEMP_PROJECT_DIR"), "/builds/acme/turbine.tmp");
    assert_eq!(value("CI_BUILD_NETWORK_NAME"), "runner-abcdefghi-42-1-88213");
}

#[test]
fn variables_are_assembled_in_the_order_of_the_contract() {
    let case = with_tls(Case::new())
        .runner(r#"environment = ["FROM_RUNNER=1"]"#)
        .with("image", json!({"name": "ruby:3.3"}))
        .variable("FROM_JOB", "1")
        .variable("FF_NETWORK_PER_BUILD", "true");
    let plan = case.plan();
    let names: Vec<_> = plan
        .variables
        .iter()
        .map(|v| v.key.as_str())
        .filter(|key| !key.starts_with("FF_"))
        .collect();
    assert_eq!(
        names,
        [
            "CI_JOB_IMAGE",
            "CI_RUNNER_SHORT_TOKEN",
            "FROM_RUNNER",
            "CI_BUILDS_DIR",
            "CI_PROJECT_DIR",
            "CI_CONCURRENT_ID",
            "CI_CONCURRENT_PROJECT_ID",
            "CI_SERVER",
            "CI_JOB_STATUS",
            "CI_JOB_TIMEOUT",
            "CI_SERVER_TLS_CA_FILE",
            "CI_SERVER_TLS_CERT_FILE",
            "CI_SERVER_TLS_KEY_FILE",
            "FROM_JOB",
            "CI_DISPOSABLE_ENVIRONMENT",
            "CI_RUNNER_VERSION",
            "CI_RUNNER_REVISION",
            "CI_RUNNER_EXECUTABLE_ARCH",
            "RUNNER_TEMP_PROJECT_DIR",
            "CI_BUILD_NETWORK_NAME",
        ]
    );
    let value = |name: &str| plan.variables.value(name).unwrap();
    assert_eq!(value("CI_RUNNER_SHORT_TOKEN"), "ABCDEFGHI");
    assert_eq!(value("CI_BUILDS_DIR"), "/builds");
    assert_eq!(value("CI_PROJECT_DIR"), "/builds/acme/turbine");
    assert_eq!((value("CI_CONCURRENT_ID"), value("CI_CONCURRENT_PROJECT_ID")), ("3", "1"));
    assert_eq!((value("CI_JOB_STATUS"), value("CI_JOB_TIMEOUT")), ("running", "3600"));
}

#[test]
fn docker_68_81_all_flags_are_exported_as_they_are_resolved() {
    let plan = Case::new()
        .runner("environment = [\"FF_SCRIPT_SECTIONS=1\", \"FF_USE_GIT_BUNDLE_URIS=0\"]")
        .runner("[runners.feature_flags]\nFF_TIMESTAMPS = false\nFF_USE_GIT_BUNDLE_URIS = true")
        .variable("FF_TIMESTAMPS", "true")
        .variable("FF_NETWORK_PER_BUILD", "T")
        .variable("FF_HASH_CACHE_KEYS", "maybe")
        .variable("FF_OF_MY_OWN", "maybe")
        .plan();
    for flag in FLAGS {
        let expected = match flag.name {
            "FF_TIMESTAMPS" => false,
            "FF_SCRIPT_SECTIONS" | "FF_NETWORK_PER_BUILD" => true,
            _ => flag.default,
        };
        assert_eq!(
            plan.variables.value(flag.name),
            Some(expected.to_string().as_str()),
            "{flag:?}"
        );
        assert_eq!(plan.flags.on(flag.name), expected, "{flag:?}");
    }
    assert_eq!(plan.variables.value("FF_OF_MY_OWN"), Some("maybe"));
    assert_eq!(
        plan.warnings,
        [r#"FF_HASH_CACHE_KEYS: expected true or false, got "maybe"; it counts as off"#]
    );
    assert_eq!(
        plan.flags.changed(),
        [("FF_NETWORK_PER_BUILD", true), ("FF_SCRIPT_SECTIONS", true), ("FF_TIMESTAMPS", false)]
    );
}

#[test]
fn the_image_of_the_job_is_told_as_it_is_used() {
    let case = Case::new()
        .with("image", json!({"name": "$REGISTRY/ruby:$VERSION"}))
        .variable("REGISTRY", "$HOST/mirror")
        .variable("HOST", "reg.example")
        .variable("VERSION", "3.3");
    let plan = case.plan();
    assert_eq!(plan.image.name, "reg.example/mirror/ruby:3.3");
    assert_eq!(plan.variables.value("CI_JOB_IMAGE"), Some("reg.example/mirror/ruby:3.3"));
    assert_eq!(Case::new().value("CI_JOB_IMAGE"), None);
}

#[test]
fn docker_73_74_75_file_variables_are_paths_with_contents() {
    let plan = Case::new()
        .variable_with("KUBECONFIG", "a: $B\n", &json!({"file": true}))
        .variable_with("DOCKER_AUTH_CONFIG", "{}", &json!({"file": true, "masked": true}))
        .variable("B", "b")
        .variable("REFERENCE", "$KUBECONFIG")
        .plan();
    let path = "/builds/acme/turbine.tmp/KUBECONFIG";
    assert_eq!(plan.variables.value("KUBECONFIG"), Some(path));
    assert_eq!(plan.variables.value("REFERENCE"), Some(path));
    assert_eq!(plan.variables.content("KUBECONFIG"), Some("a: b\n"));
    assert_eq!(plan.variables.content("DOCKER_AUTH_CONFIG"), Some("{}"));
    assert_eq!(plan.masks, [Secret::new("{}")]);
    let exports = script::exports("/t", &plan.variables);
    assert!(exports.contains(&format!("printf '%s' 'a: b\n' > '{path}'\n")), "{exports}");
    assert_eq!(
        plan.transfers.clean_up.file_variables,
        ["KUBECONFIG", "DOCKER_AUTH_CONFIG", "gitlab_runner_env", "masking.db"]
    );
}

#[test]
fn api_22_what_the_server_is_trusted_by_is_given_to_jobs() {
    let plan = with_tls(Case::new()).plan();
    for (name, content) in [
        ("CI_SERVER_TLS_CA_FILE", "ca pem"),
        ("CI_SERVER_TLS_CERT_FILE", "cert pem"),
        ("CI_SERVER_TLS_KEY_FILE", "key pem"),
    ] {
        let path = format!("/builds/acme/turbine.tmp/{name}");
        assert_eq!(plan.variables.value(name), Some(path.as_str()));
        assert_eq!(plan.variables.content(name), Some(content));
    }
    let for_services: Vec<_> = plan
        .variables
        .iter()
        .filter(|v| v.key.starts_with("CI_SERVER_TLS_") && v.for_services)
        .map(|v| v.key.as_str())
        .collect();
    assert_eq!(for_services, ["CI_SERVER_TLS_CA_FILE", "CI_SERVER_TLS_CERT_FILE"]);
    let sources = plan.transfers.sources.unwrap();
    assert_eq!(sources.ca.as_deref(), Some("ca pem"));
    assert!(sources.client_certificate.is_some());
}

#[test]
fn api_23_without_tls_there_is_nothing_to_trust() {
    let plan = Case::new().plan();
    assert!(plan.variables.iter().all(|v| !v.key.starts_with("CI_SERVER_TLS_")));
    assert_eq!(plan.transfers.sources.unwrap().ca, None);
}

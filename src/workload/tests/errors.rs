use serde_json::json;

use crate::workload::testing::Case;

#[test]
fn refusals_say_what_is_wrong_and_whose_fault_it_is() {
    let cases = [
        Case::new().with("image", json!({"name": "$UNSET"})).without_default_image(),
        Case::new()
            .with("image", json!({"name": "alpine"}))
            .docker(r#"allowed_images = ["ruby:*", "reg/**"]"#),
        Case::new()
            .with("services", json!([{"name": "mysql"}]))
            .docker(r#"allowed_services = ["redis"]"#),
        Case::new().with("image", json!({"name": "a", "pull_policy": ["never"]})),
        Case::new()
            .with("image", json!({"name": "a", "executor_opts": {"docker": {"user": "root"}}}))
            .docker(r#"allowed_users = ["ci"]"#),
        Case::new().variable("GIT_CLONE_PATH", "/tmp/x"),
        Case::new().variable("GIT_STRATEGY", "pull"),
        Case::new().variable("GIT_SUBMODULE_STRATEGY", "all"),
        Case::new().with("cache", json!([{"key": "k", "paths": ["a"], "policy": "p"}])),
        Case::new().with("cache", json!([{"key": "k", "paths": ["a"], "when": "never"}])),
        Case::new().with("artifacts", json!([{"paths": ["a"], "artifact_format": "rar"}])),
        Case::new().git("repo_url", "file:///etc"),
        Case::new().variable("A", "a").docker(r#"volumes = ["/a", "/$A"]"#),
        Case::new().docker(r#"volumes = ["/$UNSET"]"#),
        Case::new().with("services", json!([{"name": "not a name"}])),
        Case::new().with("services", json!([{"name": "a"}])).docker("services_limit = 0"),
    ];
    let texts: Vec<String> = cases
        .iter()
        .map(|case| {
            let (text, reason) = case.refusal();
            format!("{reason}: {text}")
        })
        .collect();
    insta::assert_snapshot!(texts.join("\n"));
}

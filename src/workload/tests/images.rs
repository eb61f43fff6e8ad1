use serde_json::{Value, json};

use crate::{
    config::PullPolicy,
    workload::{ImagePlan, testing::Case},
};

fn image(image: Value) -> Case {
    Case::new().with("image", image)
}

fn plan(case: &Case) -> ImagePlan {
    case.plan().image
}

#[test]
fn docker_120_121_the_default_image_is_always_allowed() {
    let allowed = r#"allowed_images = ["ruby:*"]"#;
    let default = Case::new().docker(allowed);
    assert_eq!(plan(&default).name, "debian:12");
    assert_eq!(plan(&image(json!({"name": "debian:12"})).docker(allowed)).name, "debian:12");
    assert_eq!(plan(&image(json!({"name": "ruby:3.3"})).docker(allowed)).name, "ruby:3.3");
    let refusal = image(json!({"name": "alpine"})).docker(allowed).refusal();
    assert_eq!(refusal.1, "runner_configuration_error");
    // Variables are replaced before the comparison, in both.
    let expanded = image(json!({"name": "$IMAGE"})).variable("IMAGE", "alpine").docker(allowed);
    assert_eq!(expanded.refusal().0, refusal.0);
}

#[test]
fn docker_34_the_job_may_override_the_entrypoint_unless_the_runner_forbids_it() {
    let of = |entrypoint: Value, docker: &str| {
        let case = image(json!({"name": "a", "entrypoint": entrypoint}))
            .with("services", json!([{"name": "redis", "entrypoint": entrypoint}]))
            .docker(docker);
        let plan = case.plan();
        (plan.image.entrypoint, plan.services[0].entrypoint.clone(), plan.warnings)
    };
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let asked = words(&["/bin/e", "-x"]);
    assert_eq!(of(json!(["/bin/e", "-x"]), ""), (Some(asked.clone()), asked, vec![]));
    assert_eq!(of(json!([""]), ""), (Some(words(&[""])), words(&[""]), vec![]));
    assert_eq!(of(json!([]), ""), (None, vec![], vec![]));
    assert_eq!(of(Value::Null, "disable_entrypoint_overwrite = true"), (None, vec![], vec![]));
    let (build, service, warnings) = of(json!(["/e"]), "disable_entrypoint_overwrite = true");
    assert_eq!((build, service), (None, vec![]));
    let text = "the entrypoint of the job is not used, as this runner sets \
                disable_entrypoint_overwrite";
    assert_eq!(warnings, [format!("image: {text}"), format!("service redis: {text}")]);
}

#[test]
fn docker_36_the_runners_user_beats_the_jobs_which_is_expanded() {
    let asks =
        |user: Value| image(json!({"name": "a", "executor_opts": {"docker": {"user": user}}}));
    let of = |case: Case| plan(&case.variable("WHO", "ci")).user;
    assert_eq!(of(asks(json!("$WHO:$WHO"))).as_deref(), Some("ci:ci"));
    assert_eq!(of(asks(json!(1000))).as_deref(), Some("1000"));
    assert_eq!(of(asks(json!("$NOBODY"))), None);
    assert_eq!(of(Case::new()), None);
    let both = asks(json!("$WHO")).docker("user = \"root\"\nallowed_users = [\"root\", \"ci\"]");
    assert_eq!(of(both).as_deref(), Some("root"));
}

#[test]
fn docker_37_38_a_user_that_is_not_allowed_is_named() {
    let asks =
        |user: &str| image(json!({"name": "a", "executor_opts": {"docker": {"user": user}}}));
    let refusal =
        asks("$WHO").variable("WHO", "root").docker(r#"allowed_users = ["ci"]"#).refusal();
    assert_eq!(refusal.0, "user `root` is not one of the allowed users: ci");
    // With a user of the runner's own the job's does not count, so it need not be allowed.
    assert_eq!(plan(&asks("root").docker("user = \"ci\"")).user.as_deref(), Some("ci"));
    assert_eq!(plan(&Case::new().docker(r#"allowed_users = ["ci"]"#)).user, None);
}

#[test]
fn docker_39_a_platform_is_expanded() {
    let of = |platform: &str| {
        let options = json!({"docker": {"platform": platform}});
        let case = image(json!({"name": "a", "executor_opts": options}))
            .with("services", json!([{"name": "redis", "executor_opts": options}]))
            .variable("ARCH", "arm64");
        let plan = case.plan();
        (plan.image.platform, plan.services[0].platform.clone())
    };
    let arm = Some("linux/arm64".to_owned());
    assert_eq!(of("linux/$ARCH"), (arm.clone(), arm));
    assert_eq!(of("$NOTHING"), (None, None));
}

#[test]
fn docker_97_98_99_privileges_of_build_and_services() {
    let of = |docker: &str, name: &str| {
        let case = image(json!({"name": name}))
            .with("services", json!([{"name": "redis"}]))
            .docker(docker);
        let plan = case.plan();
        (plan.image.privileged, plan.services[0].privileged)
    };
    assert_eq!(of("", "ruby"), (false, false));
    assert_eq!(of("privileged = true", "ruby"), (true, true));
    assert_eq!(of("privileged = true\nservices_privileged = false", "ruby"), (true, false));
    assert_eq!(of("services_privileged = true", "ruby"), (false, true));
    let lists = "privileged = true\nallowed_privileged_images = [\"docker:*\"]\n\
                 allowed_privileged_services = [\"other:*\"]";
    assert_eq!(of(lists, "ruby"), (false, false));
    assert_eq!(of(lists, "docker:28"), (true, false));
    assert_eq!(of(lists, ""), (false, false), "the default image has no name to match");
}

#[test]
fn docker_122_123_policies_are_the_jobs_within_what_the_runner_allows() {
    let docker = "pull_policy = [\"always\", \"if-not-present\"]";
    let of = |policies: Value| image(json!({"name": "a", "pull_policy": policies})).docker(docker);
    assert_eq!(plan(&of(json!([]))).policies, [PullPolicy::Always, PullPolicy::IfNotPresent]);
    assert_eq!(plan(&of(json!(["if-not-present"]))).policies, [PullPolicy::IfNotPresent]);
    let refusal = of(json!(["never"])).refusal();
    assert_eq!(refusal.1, "runner_configuration_error");
    let service = Case::new()
        .with("services", json!([{"name": "redis", "pull_policy": ["never"]}]))
        .docker(docker);
    assert_eq!(service.refusal(), refusal);
}

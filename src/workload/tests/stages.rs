use serde_json::{Value, json};

use crate::workload::{
    WorkloadError,
    spec::When,
    testing::Case,
    transfer::{Format, Strategy},
};

#[test]
fn docker_2_what_has_nothing_to_do_is_not_in_the_plan() {
    let plan = Case::new()
        .variable("GIT_STRATEGY", "none")
        .with("cache", json!([{"key": "k"}]))
        .with("artifacts", json!([{"name": "n"}]))
        .with("dependencies", json!([{"id": 1, "token": "t", "name": "a"}]))
        .with(
            "steps",
            json!([
                {"name": "script", "script": ["true"]},
                {"name": "after_script", "script": []},
            ]),
        )
        .plan();
    assert!(
        plan.transfers.sources.is_none()
            && plan.transfers.caches.is_empty()
            && plan.transfers.artifacts.is_empty()
    );
    assert!(plan.transfers.dependencies.is_empty() && plan.scripts.after_script.is_empty());
    assert!(!plan.transfers.needs_helper);
    assert_eq!(plan.scripts.steps.len(), 1);
    for one in [
        ("cache", json!([{"key": "k", "untracked": true}])),
        ("artifacts", json!([{"paths": ["a"]}])),
        ("dependencies", json!([{"id": 1, "token": "t", "artifacts_file": {"filename": "a.zip"}}])),
    ] {
        let case = Case::new().variable("GIT_STRATEGY", "none").with(one.0, one.1.clone());
        assert!(case.plan().transfers.needs_helper, "{one:?}");
    }
}

#[test]
fn docker_8_157_results_are_kept_after_the_end_they_name() {
    let entries = |when: Value| json!([{"key": "k", "paths": ["a"], "when": when}]);
    for (when, succeeded, failed) in [
        (json!("on_success"), true, false),
        (json!("on_failure"), false, true),
        (json!("always"), true, true),
        (json!(""), true, false),
        (Value::Null, true, false),
    ] {
        let plan = Case::new()
            .with("cache", entries(when.clone()))
            .with("artifacts", entries(when.clone()))
            .plan();
        for of in [plan.transfers.caches[0].when, plan.transfers.artifacts[0].when] {
            assert_eq!((of.matches(true), of.matches(false)), (succeeded, failed), "{when}");
        }
    }
    assert_eq!(When::Always, When::Always);
}

#[test]
fn docker_13_steps_are_named_and_a_release_is_expanded() {
    let plan = Case::new()
        .variable("TAG", "v1")
        .with(
            "steps",
            json!([
                {"name": "script", "script": ["echo $TAG"]},
                {"name": "release", "script": ["release-cli create --tag $TAG ${NOTES}$$"]},
                {"name": "After_Care", "script": ["echo $TAG"]},
                {"name": "after_script", "script": ["echo bye"]},
            ]),
        )
        .plan();
    let steps: Vec<_> =
        plan.scripts.steps.iter().map(|s| (s.stage.as_str(), s.commands[0].as_str())).collect();
    assert_eq!(
        steps,
        [
            ("step_script", "echo $TAG"),
            ("step_release", "release-cli create --tag v1 $"),
            ("step_after_care", "echo $TAG"),
        ]
    );
    assert_eq!(plan.scripts.after_script, ["echo bye"]);
}

#[test]
fn docker_151_154_keys_are_expanded_and_none_is_job_and_ref() {
    let plan = Case::new()
        .variable("X", "x")
        .with(
            "cache",
            json!([
                {"key": "$X-1", "paths": ["a"], "fallback_keys": ["$X-0", "$UNSET", "last"]},
                {"key": "", "paths": ["a"]},
                {"key": "$UNSET", "paths": ["$X"], "untracked": true},
            ]),
        )
        .plan();
    let keys: Vec<_> = plan.transfers.caches.iter().map(|c| c.key.as_str()).collect();
    assert_eq!(keys, ["x-1", "unit/main", "unit/main"]);
    assert_eq!(plan.transfers.caches[0].fallback_keys, ["x-0", "last"]);
    assert_eq!(plan.transfers.caches[2].paths, ["$X"], "the helper expands paths");
}

#[test]
fn docker_156_a_policy_says_which_way_a_cache_goes() {
    let of = |policy: &str| {
        Case::new()
            .variable("HOW", "push")
            .with("cache", json!([{"key": "k", "paths": ["a"], "policy": policy}]))
    };
    for (policy, pull, push) in [
        ("", true, true),
        ("pull-push", true, true),
        ("pull", true, false),
        ("push", false, true),
        ("$HOW", false, true),
    ] {
        let cache = &of(policy).plan().transfers.caches[0];
        assert_eq!((cache.pull, cache.push), (pull, push), "{policy}");
    }
    let refusal = of("pus").refusal();
    assert_eq!(refusal.0, "cache:policy is `pus`; it must be pull-push, pull or push");
    assert_eq!(refusal.1, "runner_system_failure");
    // An entry with nothing to save is no entry, whatever it says.
    Case::new().with("cache", json!([{"policy": "wrong"}])).plan();
}

#[test]
fn uploads_keep_the_format_they_were_asked_in() {
    let plan = Case::new()
        .with(
            "artifacts",
            json!([
                {"paths": ["a"], "artifact_type": "archive", "artifact_format": "zip"},
                {"paths": ["r.xml"], "artifact_type": "junit", "artifact_format": "gzip"},
                {"exclude": ["b"]},
            ]),
        )
        .plan();
    let artifacts = plan.transfers.artifacts.iter();
    let seen: Vec<_> = artifacts.map(|a| (a.format, a.kind.as_str())).collect();
    assert_eq!(seen, [(Some(Format::Zip), "archive"), (Some(Format::Gzip), "junit"), (None, "")]);
    let names = [Format::Zip, Format::Gzip, Format::Raw, Format::ZipZstd, Format::TarZstd];
    assert_eq!(names.map(Format::as_str), ["zip", "gzip", "raw", "zipzstd", "tarzstd"]);
}

#[test]
fn docker_65_hooks_stand_around_the_sources_the_runners_outside() {
    let case = || {
        Case::new()
            .runner("pre_get_sources_script = \"echo r1\"\npost_get_sources_script = \"echo r2\"")
            .with(
                "hooks",
                json!([
                    {"name": "pre_get_sources_script", "script": ["echo j1", "echo j2"]},
                    {"name": "post_get_sources_script", "script": ["echo j3"]},
                ]),
            )
    };
    let sources = case().plan().transfers.sources.unwrap();
    let order = |script: &str| {
        let mut found: Vec<_> = ["echo r1", "echo r2", "echo j1", "echo j2", "echo j3"]
            .into_iter()
            .filter_map(|command| Some((script.find(&format!("\n{command}\n"))?, command)))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, command)| command).collect::<Vec<_>>()
    };
    assert_eq!(order(&sources.pre_script.unwrap()), ["echo r1", "echo j1", "echo j2"]);
    assert_eq!(order(&sources.post_script.unwrap()), ["echo j3", "echo r2"]);
    for strategy in ["none", "empty"] {
        let plan = case().variable("GIT_STRATEGY", strategy).plan();
        assert!(
            plan.transfers
                .sources
                .is_none_or(|s| matches!(s.strategy, Strategy::None | Strategy::Empty)),
            "the helper runs no hooks for {strategy}"
        );
    }
    let without = Case::new().plan().transfers.sources.unwrap();
    assert_eq!((without.pre_script, without.post_script), (None, None));
}

#[test]
fn docker_146_a_clone_url_replaces_the_servers() {
    let of = |clone_url: &str| {
        let case = Case::new().variable("CI_PROJECT_PATH", "acme/turbine");
        let sources =
            case.runner(&format!("clone_url = \"{clone_url}\"")).plan().transfers.sources.unwrap();
        (sources.url, sources.server)
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        of("http://10.0.0.1:8080/git/"),
        ("http://10.0.0.1:8080/git/acme/turbine.git".into(), some("http://10.0.0.1:8080"))
    );
    assert_eq!(
        of("ssh://git.example:2222"),
        ("ssh://git@git.example:2222/acme/turbine.git".into(), None)
    );
    let plain = Case::new().plan().transfers.sources.unwrap();
    assert_eq!(plain.url, "https://gitlab.example.net/acme/turbine.git");
    assert_eq!(plain.server, some("https://gitlab.example.net"));
}

#[test]
fn sources_from_anywhere_but_a_server_are_refused() {
    for url in ["/etc", "file:///srv/repo", "ext::sh -c id", "gitlab.example.net/a/b"] {
        let error = Case::new().git("repo_url", url).try_plan().expect_err(url);
        assert!(matches!(error, WorkloadError::Setting { .. }), "{url}: {error}");
    }
}

#[test]
fn the_last_task_knows_what_the_job_must_not_leave() {
    let clean_up = Case::new().plan().transfers.clean_up;
    assert_eq!(clean_up.worktree, None);
    assert!(clean_up.clean_config && !clean_up.submodules);
    let of = |flags: &str, strategy: &str| {
        Case::new()
            .variable("FF_ENABLE_JOB_CLEANUP", "true")
            .variable("GIT_CLEAN_FLAGS", flags)
            .variable("GIT_STRATEGY", strategy)
            .variable("GIT_SUBMODULE_STRATEGY", "normal")
            .plan()
            .transfers
            .clean_up
    };
    let fetch = of("-ffd -e keep", "fetch");
    let flags = ["-ffd", "-e", "keep"].map(str::to_owned).to_vec();
    assert_eq!(fetch.worktree, Some((Strategy::Fetch, flags)));
    assert!(fetch.submodules);
    assert_eq!(of("none", "fetch").worktree, Some((Strategy::Fetch, vec![])));
    let none = of("", "none");
    assert_eq!(none.worktree.map(|(strategy, _)| strategy), Some(Strategy::None));
    assert!(!none.clean_config);
}

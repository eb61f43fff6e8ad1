use std::time::Duration;

use crate::{
    workload::testing::Case,
    workload::transfer::{Format, Level},
};

#[test]
fn docker_79_what_cannot_be_read_is_warned_of_once_and_the_default_stands() {
    let plan = Case::new()
        .variable("GIT_CHECKOUT", "nope")
        .variable("GIT_SUBMODULE_DEPTH", "deep")
        .variable("CACHE_REQUEST_TIMEOUT", "soon")
        .variable("CACHE_COMPRESSION_LEVEL", "11")
        .variable("RUNNER_SCRIPT_TIMEOUT", "-5m")
        .variable("RUNNER_AFTER_SCRIPT_TIMEOUT", "90")
        .variable("AFTER_SCRIPT_IGNORE_ERRORS", "perhaps")
        .git("depth", 20)
        .plan();
    insta::assert_snapshot!(plan.warnings.join("\n"));
    let settings = plan.settings;
    assert!(settings.checkout && settings.after_script_ignore_errors);
    assert_eq!(settings.submodules.depth, 20);
    assert_eq!(settings.cache_timeout, Duration::from_mins(10));
    assert_eq!(settings.cache_level, Level::Default);
    assert_eq!(settings.script_timeout, None);
    assert_eq!(settings.after_script_timeout, Duration::from_mins(5));
}

#[test]
fn docker_80_attempts_are_from_one_to_ten() {
    let names = [
        "GET_SOURCES_ATTEMPTS",
        "RESTORE_CACHE_ATTEMPTS",
        "ARTIFACT_DOWNLOAD_ATTEMPTS",
        "EXECUTOR_JOB_SECTION_ATTEMPTS",
    ];
    let of = |text: &str| {
        let case = names.iter().fold(Case::new(), |case, name| case.variable(name, text));
        let plan = case.plan();
        let attempts = plan.settings.attempts;
        let all = [attempts.sources, attempts.cache, attempts.artifacts, attempts.section];
        assert_eq!(all, [all[0]; 4]);
        (all[0], plan.warnings.len())
    };
    assert_eq!(of("3"), (3, 0));
    assert_eq!(of("10"), (10, 0));
    assert_eq!(of("11"), (10, 4));
    assert_eq!(of("0"), (1, 4));
    assert_eq!(of("-1"), (1, 4));
    assert_eq!(of("many"), (1, 4));
    assert_eq!(of(""), (1, 0));
}

#[test]
fn docker_177_178_scripts_have_deadlines_of_their_own() {
    let of = |script: &str, after: &str| {
        let plan = Case::new()
            .variable("RUNNER_SCRIPT_TIMEOUT", script)
            .variable("RUNNER_AFTER_SCRIPT_TIMEOUT", after)
            .plan();
        let settings = plan.settings;
        (
            settings.script_timeout.map(|t| t.as_secs()),
            settings.after_script_timeout.as_secs(),
            plan.warnings.len(),
        )
    };
    assert_eq!(of("", ""), (None, 300, 0));
    assert_eq!(of("90s", "1m30s"), (Some(90), 90, 0));
    assert_eq!(of("0", "0s"), (None, 300, 0));
    assert_eq!(of("2h", "2h"), (None, 300, 2), "longer than the job may take");
}

#[test]
fn docker_139_flags_of_git_replace_the_default_ones_or_none() {
    let of = |value: Option<&str>| {
        let case = value.into_iter().fold(Case::new(), |case, value| {
            case.variable("GIT_FETCH_EXTRA_FLAGS", value)
                .variable("GIT_CLEAN_FLAGS", value)
                .variable("GIT_CLONE_EXTRA_FLAGS", value)
        });
        let sources = case.plan().transfers.sources.unwrap();
        (sources.fetch_flags, sources.clean_flags, sources.clone_flags)
    };
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let default = (words(&["--prune", "--quiet"]), Some(words(&["-ffdx"])), words(&[]));
    assert_eq!(of(None), default);
    assert_eq!(of(Some("")), default);
    assert_eq!(of(Some("none")), (words(&[]), None, words(&[])));
    let two = words(&["--tags", "-e"]);
    assert_eq!(of(Some(" --tags  -e ")), (two.clone(), Some(two.clone()), two));
}

#[test]
fn docker_61_debug_settings_are_the_runners_to_forbid() {
    let case = || Case::new().variable("CI_DEBUG_TRACE", "true").variable("CI_DEBUG_SERVICES", "1");
    let plan = case().plan();
    assert!(plan.settings.debug_trace && plan.settings.debug_services);
    let plan = case().runner("debug_trace_disabled = true").plan();
    assert!(!plan.settings.debug_trace && !plan.settings.debug_services);
    assert_eq!(
        plan.warnings,
        [
            "CI_DEBUG_TRACE is set, but this runner forbids it",
            "CI_DEBUG_SERVICES is set, but this runner forbids it",
        ]
    );
}

#[test]
fn settings_of_archives_are_read_in_any_case_of_letters() {
    let plan = Case::new()
        .variable("CACHE_COMPRESSION_FORMAT", "TarZstd")
        .variable("CACHE_COMPRESSION_LEVEL", "FASTEST")
        .variable("ARTIFACT_COMPRESSION_LEVEL", "slow")
        .plan();
    assert_eq!(plan.settings.cache_format, Format::TarZstd);
    assert_eq!(plan.settings.cache_level, Level::Fastest);
    assert_eq!(plan.settings.artifact_level, Level::Slow);
    assert_eq!(plan.warnings, Vec::<String>::new());
}

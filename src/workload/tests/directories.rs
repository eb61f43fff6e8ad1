use serde_json::json;

use crate::workload::testing::Case;

fn volume(case: &Case, destination: &str) -> (String, bool) {
    let plan = case.plan();
    let found = plan.mounts.volumes.iter().find(|volume| volume.destination == destination);
    let found = found.unwrap_or_else(|| panic!("nothing at {destination}: {:?}", plan.mounts));
    (found.name.clone(), found.kept)
}

fn destinations(case: &Case) -> Vec<String> {
    case.plan().mounts.volumes.into_iter().map(|volume| volume.destination).collect()
}

fn with_cache(case: Case) -> Case {
    case.with("cache", json!([{"key": "k", "paths": ["vendor"]}]))
}

#[test]
fn docker_103_a_cache_volume_is_the_same_for_the_next_job_of_the_slot() {
    let case = || Case::new().docker(r#"volumes = ["/dst"]"#);
    let (name, kept) = volume(&case(), "/dst");
    assert!(kept);
    let (owner, digest) =
        name.strip_prefix("runner-").and_then(|rest| rest.split_once("-cache-")).unwrap();
    assert_eq!(owner.len(), 32);
    // The MD5 of `/dst`.
    assert_eq!(digest, "37dbef92ed772fc78efd6ea9e0f19daf");

    let mut next = case();
    next.placement.random = "ffffffffffffffff".to_owned();
    assert_eq!(volume(&next, "/dst").0, name);
    let mut other_slot = case();
    other_slot.placement.project_slot = 2;
    assert_ne!(volume(&other_slot, "/dst").0, name);
    let other_project = case().with("job_info", json!({"project_id": 43}));
    assert_ne!(volume(&other_project, "/dst").0, name);
    let mut other_machine = case();
    other_machine.placement.system_id = "s_other".to_owned();
    assert_ne!(volume(&other_machine, "/dst").0, name);
}

#[test]
fn docker_104_protected_refs_have_volumes_of_their_own() {
    let case = || Case::new().docker(r#"volumes = ["/dst"]"#);
    let plain = volume(&case().git("protected", false), "/dst").0;
    let protected = format!("{plain}-protected");
    assert_eq!(volume(&case().git("protected", true), "/dst").0, protected);
    // An older server says it with a variable, of which the job's own definitions do not count.
    let old = case()
        .variable("CI_COMMIT_REF_PROTECTED", "true")
        .variable("CI_COMMIT_REF_PROTECTED", "false");
    assert_eq!(volume(&old, "/dst").0, protected);
    let forged = case()
        .variable("CI_COMMIT_REF_PROTECTED", "false")
        .variable("CI_COMMIT_REF_PROTECTED", "true");
    assert_eq!(volume(&forged, "/dst").0, plain);
    let forged = case().git("protected", false).variable("CI_COMMIT_REF_PROTECTED", "true");
    assert_eq!(volume(&forged, "/dst").0, plain);
    let key = |key: &str| case().with("cache", json!([{"key": key, "paths": ["a"]}]));
    assert_eq!(volume(&key("main-protected"), "/dst").0, protected);
    assert_eq!(volume(&key("main-non_protected"), "/dst").0, plain);
    let temporary = key("main-protected").variable("GIT_STRATEGY", "clone");
    assert!(volume(&temporary, "/builds").0.ends_with("-protected"));
}

#[test]
fn docker_105_with_a_cache_dir_caches_are_directories_of_the_host() {
    let case = Case::new().docker("cache_dir = \"/srv/cache/\"\nvolumes = [\"/dst\"]");
    let plan = case.plan();
    assert_eq!(plan.mounts.volumes, []);
    let bind = &plan.mounts.binds[0];
    assert!(bind.starts_with("/srv/cache/runner-"), "{bind}");
    assert!(bind.ends_with("/37dbef92ed772fc78efd6ea9e0f19daf:/dst"), "{bind}");
    let protected = case.git("protected", true).plan();
    assert!(protected.mounts.binds[0].ends_with("-protected:/dst"));
}

#[test]
fn docker_106_with_disable_cache_all_volumes_go_with_the_job() {
    for cache_dir in ["", "\ncache_dir = \"/srv/cache\""] {
        let lines = format!("disable_cache = true\nvolumes = [\"/dst\"]{cache_dir}");
        let plan = with_cache(Case::new()).docker(&lines).plan();
        assert_eq!(plan.mounts.binds, Vec::<String>::new());
        assert_eq!(plan.mounts.temporary().count(), plan.mounts.volumes.len());
        let dst = plan.mounts.volumes.iter().find(|v| v.destination == "/dst").unwrap();
        assert_eq!(
            dst.name,
            format!("{}-cache-37dbef92ed772fc78efd6ea9e0f19daf", plan.names.unique)
        );
    }
}

#[test]
fn docker_107_host_paths_are_passed_on_and_destinations_expanded() {
    let plan = Case::new()
        .variable("WHERE", "deep/er")
        .docker(r#"volumes = ["/host/$WHERE:/dst/$WHERE:ro", "named:/n", "/keep/${WHERE}"]"#)
        .plan();
    assert_eq!(plan.mounts.binds, ["/host/$WHERE:/dst/deep/er:ro", "named:/n"]);
    assert_eq!(plan.mounts.volumes[0].destination, "/keep/deep/er");
}

#[test]
fn docker_108_no_place_is_mounted_twice_and_none_is_the_root() {
    let refusal = |entries: &str| {
        Case::new().variable("A", "x").docker(&format!("volumes = {entries}")).refusal()
    };
    let reason = "runner_configuration_error";
    for entries in [r#"["/x", "/$A"]"#, r#"["/host:/x:ro", "/${A}/"]"#] {
        let text = "[runners.docker] volumes mounts `/x` twice".to_owned();
        assert_eq!(refusal(entries), (text, reason), "{entries}");
    }
    let root = "[runners.docker] volumes has `/$UNSET`: the destination must not be `/`";
    assert_eq!(refusal(r#"["/$UNSET"]"#), (root.to_owned(), reason));
    // The builds directory is the operator's when the operator names it.
    let case = Case::new().docker(r#"volumes = ["/builds", "/cache"]"#);
    assert_eq!(destinations(&with_cache(case)), ["/builds", "/cache"]);
}

#[test]
fn docker_110_work_trees_survive_with_the_strategy_fetch_alone() {
    assert!(volume(&Case::new(), "/builds").1);
    for strategy in ["clone", "none", "empty"] {
        let case = Case::new().variable("GIT_STRATEGY", strategy);
        assert!(!volume(&case, "/builds").1, "{strategy}");
        // A volume of the operator's above it changes nothing.
        let nested = case.runner("builds_dir = \"/data/builds\"").docker("volumes = [\"/data\"]");
        assert!(!volume(&nested, "/data/builds").1, "{strategy}");
    }
    let default = Case::new().with("allow_git_fetch", json!(false));
    assert!(!volume(&default, "/builds").1);
    let operators = default.runner("environment = [\"GIT_STRATEGY=fetch\"]");
    assert!(volume(&operators, "/builds").1, "the runner's environment counts");
    let jobs = operators.variable("GIT_STRATEGY", "clone");
    assert!(!volume(&jobs, "/builds").1, "and the job's own beats it");
}

#[test]
fn docker_111_work_trees_on_a_host_path_are_kept_apart() {
    for (volumes, builds) in [
        ("/srv:/builds", "/builds"),
        ("/srv:/data:rw", "/data/builds"),
        ("named:/data/builds/", "/data/builds"),
    ] {
        let plan = Case::new()
            .runner(&format!("builds_dir = \"{builds}\""))
            .docker(&format!("volumes = [\"{volumes}\"]"))
            .plan();
        assert_eq!(plan.directories.project, format!("{builds}/ABCDEFGHI/1/acme/turbine"));
        assert_eq!(plan.directories.temp, format!("{}.tmp", plan.directories.project));
        assert_eq!(plan.mounts.volumes, [], "{volumes}");
        assert!(plan.transfers.needs_helper, "what the job leaves there is taken away");
    }
    let beside = Case::new().docker(r#"volumes = ["/srv:/builds-too", "/srv2:/builds/acme"]"#);
    assert_eq!(beside.plan().directories.project, "/builds/acme/turbine");
}

#[test]
fn docker_112_a_clone_path_leads_nowhere_out_of_the_builds_directory() {
    let project = |path: &str| {
        let plan = Case::new().variable("GIT_CLONE_PATH", path).try_plan();
        plan.map(|plan| (plan.directories.project, plan.directories.temp))
    };
    for path in ["$CI_BUILDS_DIR/go/src", "/builds/go/src/", "/builds//go/./x/../src"] {
        let expected = ("/builds/go/src".to_owned(), "/builds/go/src.tmp".to_owned());
        assert_eq!(project(path).unwrap(), expected, "{path}");
    }
    for path in
        ["/elsewhere", "/builds/../etc", "/buildsx/y", "builds/x", "/builds", "/builds/x/../"]
    {
        assert!(project(path).is_err(), "{path}");
    }
    let slot = Case::new().variable("GIT_CLONE_PATH", "$CI_BUILDS_DIR/$CI_CONCURRENT_ID/x");
    let plan = slot.plan();
    assert_eq!(plan.variables.value("CI_PROJECT_DIR"), Some("/builds/3/x"));
    assert_eq!(plan.variables.value("RUNNER_TEMP_PROJECT_DIR"), Some("/builds/3/x.tmp"));
    assert_eq!(plan.transfers.sources.unwrap().project_dir, "/builds/3/x");
    let unused = slot.variable("GIT_STRATEGY", "empty").plan();
    assert_eq!(unused.directories.project, "/builds/3/x");

    let out = Case::new().variable("GIT_CLONE_PATH", "/etc").refusal();
    let forbidden = Case::new()
        .variable("GIT_CLONE_PATH", "/builds/x")
        .runner("[runners.custom_build_dir]\nenabled = false")
        .refusal();
    assert_eq!(out.0, "GIT_CLONE_PATH `/etc` is not inside CI_BUILDS_DIR, /builds");
    let text = "GIT_CLONE_PATH `/builds/x` may not be used: the runner sets \
                [runners.custom_build_dir] enabled = false";
    assert_eq!(forbidden.0, text);
    assert_eq!((out.1, forbidden.1), ("runner_configuration_error", "runner_configuration_error"));
}

#[test]
fn docker_132_an_empty_tree_has_a_directory_of_its_own() {
    let plan = Case::new().variable("GIT_STRATEGY", "empty").plan();
    assert_eq!(plan.directories.project, "/builds/acme/turbine-empty");
    assert_eq!(plan.directories.temp, "/builds/acme/turbine-empty.tmp");
    assert_eq!(plan.variables.value("CI_PROJECT_DIR"), Some("/builds/acme/turbine-empty"));
    let indirect = Case::new().variable("HOW", "empty").variable("GIT_STRATEGY", "$HOW");
    assert_eq!(indirect.plan().directories.project, "/builds/acme/turbine-empty");
}

#[test]
fn a_builds_directory_that_outlives_the_job_is_cleaned_by_the_helper() {
    let without_sources = || Case::new().variable("GIT_STRATEGY", "none");
    assert!(!without_sources().plan().transfers.needs_helper, "the whole volume goes");
    let kept = without_sources().docker(r#"volumes = ["/builds"]"#);
    assert!(kept.plan().transfers.needs_helper);
    let below = without_sources().docker(r#"volumes = ["/srv:/builds/acme"]"#);
    assert!(below.plan().transfers.needs_helper);
    let beside = without_sources().docker(r#"volumes = ["/srv:/builds/other", "/certs"]"#);
    assert!(!beside.plan().transfers.needs_helper);
}

#[test]
fn local_caches_are_for_all_slots_and_work_trees_for_one() {
    let names = |case: fn(Case) -> Case, slot: usize| {
        let mut case = case(with_cache(Case::new()));
        case.placement.project_slot = slot;
        case.plan().mounts.volumes.into_iter().map(|v| (v.destination, v.name)).collect::<Vec<_>>()
    };
    let same = |case: fn(Case) -> Case, expected: &[(&str, bool)]| {
        let (one, two) = (names(case, 0), names(case, 1));
        let same: Vec<_> = one.iter().zip(&two).map(|(a, b)| (a.0.as_str(), a.1 == b.1)).collect();
        assert_eq!(same, expected);
    };
    same(|case| case, &[("/builds", false), ("/cache", true)]);
    same(|case| case.docker(r#"volumes = ["/cache"]"#), &[("/cache", true), ("/builds", false)]);
    // Inside the builds directory the cache has a volume all the same: the other may be temporary.
    let inside = |case: Case| case.runner("cache_dir = \"/builds/cache\"");
    same(inside, &[("/builds", false), ("/builds/cache", true)]);
    // One volume for both belongs to one slot.
    same(
        |case| {
            case.runner("builds_dir = \"/data/b\"\ncache_dir = \"/data/c\"")
                .docker(r#"volumes = ["/data"]"#)
        },
        &[("/data", false), ("/data/b", false)],
    );
    let host = with_cache(Case::new()).docker(r#"volumes = ["/srv:/cache"]"#);
    assert_eq!(destinations(&host), ["/builds"], "the operator's own place for caches");
    assert_eq!(destinations(&Case::new()), ["/builds"], "no cache, no volume");
}

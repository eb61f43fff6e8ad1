//! Feature flags (GitLab Runner 19.4: `helpers/featureflags/flags.go`): their names, defaults and
//! what longshore does with them; and which value is in force, as a pure function.

use std::collections::BTreeMap;

use super::values;

/// What longshore does with a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Both values work.
    Both,
    /// The behaviour is always that of the default; the other value is warned of.
    DefaultOnly,
    /// Nothing that longshore has is switched by it: other executors, other systems, a choice
    /// between two implementations of the same thing.
    NoEffect,
}

/// A flag of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// `FF_…`.
    pub name: &'static str,
    /// Its value when nobody sets it.
    pub default: bool,
    /// What longshore does with it.
    pub support: Support,
}

const fn flag(name: &'static str, default: bool, support: Support) -> Flag {
    Flag { name, default, support }
}

/// All flags, by name.
pub const FLAGS: &[Flag] = {
    use Support::{Both, DefaultOnly, NoEffect};
    &[
        flag("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", false, Both),
        flag("FF_CONCRETE", false, DefaultOnly),
        flag("FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", false, Both),
        flag("FF_DISABLE_POWERSHELL_STDIN", false, NoEffect),
        flag("FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR", false, DefaultOnly),
        flag("FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR", false, NoEffect),
        flag("FF_ENABLE_BASH_EXIT_CODE_CHECK", false, Both),
        flag("FF_ENABLE_JOB_CLEANUP", false, Both),
        flag("FF_ENABLE_JOB_INPUTS_INTERPOLATION", true, Both),
        flag("FF_EXPORT_HIGH_CARDINALITY_METRICS", false, DefaultOnly),
        flag("FF_GIT_URLS_WITHOUT_TOKENS", false, Both),
        flag("FF_HASH_CACHE_KEYS", false, Both),
        flag("FF_KUBERNETES_HONOR_ENTRYPOINT", false, NoEffect),
        flag("FF_LOG_IMAGES_CONFIGURED_FOR_JOB", false, Both),
        flag("FF_MASK_ALL_DEFAULT_TOKENS", true, Both),
        flag("FF_NETWORK_PER_BUILD", false, Both),
        flag("FF_POSIXLY_CORRECT_ESCAPES", false, NoEffect),
        flag("FF_PRINT_POD_EVENTS", false, NoEffect),
        flag("FF_RESOLVE_FULL_TLS_CHAIN", false, DefaultOnly),
        flag("FF_SCRIPT_SECTIONS", false, Both),
        flag("FF_SCRIPT_TO_STEP_MIGRATION", false, DefaultOnly),
        flag("FF_SECRET_RESOLVING_FAILS_IF_MISSING", true, DefaultOnly),
        flag("FF_SUSPENDABLE_ENVIRONMENTS", false, DefaultOnly),
        flag("FF_TEST_FEATURE", false, NoEffect),
        flag("FF_TIMESTAMPS", true, Both),
        flag("FF_USE_ADAPTIVE_REQUEST_CONCURRENCY", true, Both),
        flag("FF_USE_ADVANCED_POD_SPEC_CONFIGURATION", false, NoEffect),
        flag("FF_USE_DIRECT_DOWNLOAD", true, Both),
        flag("FF_USE_DOCKER_AUTOSCALER_DIAL_STDIO", true, NoEffect),
        flag("FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR", false, NoEffect),
        flag("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", false, Both),
        flag("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", true, Both),
        flag("FF_USE_FASTZIP", true, NoEffect),
        flag("FF_USE_FLEETING_ACQUIRE_HEARTBEATS", false, NoEffect),
        flag("FF_USE_GITALY_CORRELATION_ID", true, Both),
        flag("FF_USE_GIT_BUNDLE_URIS", true, Both),
        flag("FF_USE_GIT_NATIVE_CLONE", false, Both),
        flag("FF_USE_GIT_PROACTIVE_AUTH", false, Both),
        flag("FF_USE_INIT_WITH_DOCKER_EXECUTOR", false, Both),
        flag("FF_USE_JOB_ROUTER", false, DefaultOnly),
        flag("FF_USE_LEGACY_BASH_EVAL", false, DefaultOnly),
        flag("FF_USE_LEGACY_GCS_CACHE_ADAPTER", false, NoEffect),
        flag("FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY", false, NoEffect),
        flag("FF_USE_LEGACY_S3_CACHE_ADAPTER", false, NoEffect),
        flag("FF_USE_NATIVE_CONTAINER_STOP", false, NoEffect),
        flag("FF_USE_PARALLEL_ARTIFACT_TRANSFER", false, DefaultOnly),
        flag("FF_USE_PARALLEL_CACHE_TRANSFER", false, DefaultOnly),
        flag("FF_USE_POD_ACTIVE_DEADLINE_SECONDS", true, NoEffect),
        flag("FF_USE_POWERSHELL_PATH_RESOLVER", false, NoEffect),
        flag("FF_USE_WINDOWS_JOB_OBJECT", false, NoEffect),
        flag("FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", false, NoEffect),
        flag("FF_WAIT_FOR_POD_TO_BE_REACHABLE", false, NoEffect),
    ]
};

/// The flag of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.binary_search_by(|flag| flag.name.cmp(name)).ok().map(|at| &FLAGS[at])
}

/// A flag's value and whether a job's variable for it was unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// The value in force.
    pub on: bool,
    /// The job's variable was no boolean, and counts as off.
    pub malformed: bool,
}

/// The value in force: the file's overrides the job's variable, which overrides the default.
#[must_use]
pub fn resolve(flag: &Flag, file: &BTreeMap<String, bool>, variable: Option<&str>) -> Resolved {
    if let Some(&on) = file.get(flag.name) {
        return Resolved { on, malformed: false };
    }
    match variable {
        None | Some("") => Resolved { on: flag.default, malformed: false },
        Some(text) => match values::boolean(text) {
            Some(on) => Resolved { on, malformed: false },
            None => Resolved { on: false, malformed: true },
        },
    }
}

/// A warning for a flag of the file whose value has no effect.
#[must_use]
pub fn warning(name: &str, on: bool) -> Option<&'static str> {
    match find(name) {
        None => Some("unknown feature flag, ignored"),
        Some(flag) if on == flag.default => None,
        Some(flag) => match flag.support {
            Support::Both => None,
            Support::DefaultOnly => Some("this feature flag is not supported, its default stays"),
            Support::NoEffect => Some("this feature flag has no effect here"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_flag_is_found() {
        assert!(FLAGS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(FLAGS.iter().all(|flag| find(flag.name) == Some(flag)));
        assert_eq!(FLAGS.iter().filter(|flag| flag.default).count(), 12);
        assert_eq!(find("FF_NOPE"), None);
    }

    #[test]
    fn config_18_docker_68_the_file_beats_the_job_which_beats_the_default() {
        let flag = find("FF_TIMESTAMPS").unwrap();
        let none = BTreeMap::new();
        let off = BTreeMap::from([("FF_TIMESTAMPS".to_owned(), false)]);
        assert!(resolve(flag, &none, None).on);
        assert!(!resolve(flag, &none, Some("f")).on);
        assert!(!resolve(flag, &off, Some("true")).on);
        assert_eq!(resolve(flag, &none, Some("yes")), Resolved { on: false, malformed: true });
    }

    #[test]
    fn a_flag_whose_value_has_no_effect_is_warned_of() {
        assert_eq!(warning("FF_NETWORK_PER_BUILD", true), None);
        assert_eq!(warning("FF_CONCRETE", false), None);
        assert!(warning("FF_CONCRETE", true).unwrap().contains("not supported"));
        assert!(warning("FF_PRINT_POD_EVENTS", true).unwrap().contains("no effect"));
        assert!(warning("FF_WRONG", true).unwrap().contains("unknown"));
    }
}

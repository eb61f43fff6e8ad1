//! What longshore says of itself in its requests.

use std::collections::BTreeMap;

use super::wire::Info;

/// All 31 keys of `info.features` for jobs in containers. True is what longshore does; a server
/// drops jobs that need what is false (GitLab: `Ci::Build#supported_runner?`).
const FEATURES: [(&str, bool); 31] = [
    ("variables", true),
    ("image", true),
    ("services", true),
    ("artifacts", true),
    ("cache", true),
    ("fallback_cache_keys", true),
    ("shared", false),
    ("upload_multiple_artifacts", true),
    ("upload_raw_artifacts", true),
    ("session", false),
    ("terminal", false),
    ("refspecs", true),
    ("masking", true),
    ("proxy", false),
    ("raw_variables", true),
    ("artifacts_exclude", true),
    ("multi_build_steps", true),
    ("trace_reset", true),
    ("trace_checksum", true),
    ("trace_size", true),
    ("vault_secrets", false),
    ("cancelable", true),
    ("return_exit_code", true),
    ("service_variables", true),
    ("service_multiple_aliases", true),
    ("image_executor_opts", true),
    ("service_executor_opts", true),
    ("cancel_gracefully", true),
    ("native_steps_integration", false),
    ("two_phase_job_commit", true),
    ("job_inputs", true),
];

/// The features that do not depend on an executor: a registration announces these alone.
const NETWORK: [&str; 7] = [
    "trace_reset",
    "trace_checksum",
    "trace_size",
    "cancelable",
    "cancel_gracefully",
    "two_phase_job_commit",
    "job_inputs",
];

/// The whole `info` object of job requests and updates.
#[must_use]
pub fn info(executor: &str, shell: &str, gpus: &str, labels: &BTreeMap<String, String>) -> Info {
    Info {
        executor: executor.to_owned(),
        shell: shell.to_owned(),
        features: FEATURES.iter().map(|&(name, has)| (name.to_owned(), has)).collect(),
        config: BTreeMap::from([("gpus".to_owned(), gpus.trim().to_owned())]),
        labels: labels.clone(),
        ..product()
    }
}

/// The `info` object of a registration, which knows no executor yet.
pub(super) fn registration_info() -> Info {
    let features =
        FEATURES.iter().map(|&(name, has)| (name.to_owned(), has && NETWORK.contains(&name)));
    Info {
        features: features.collect(),
        config: BTreeMap::from([("gpus".to_owned(), String::new())]),
        ..product()
    }
}

fn product() -> Info {
    Info {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: option_env!("LONGSHORE_REVISION").unwrap_or_default().to_owned(),
        platform: platform().to_owned(),
        architecture: architecture().to_owned(),
        ..Info::default()
    }
}

/// `User-Agent`, in the shape GitLab's logs know: `name version (branch; toolchain; os/arch)`.
pub(super) fn user_agent() -> String {
    format!(
        "{} {} (main; rust{}; {}/{})",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_RUST_VERSION"),
        platform(),
        architecture()
    )
}

/// The operating system, as Go names it.
fn platform() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

/// The processor, as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_44_all_31_features_are_sent_and_config_is_there() {
        let info = info("docker", "bash", " all ", &BTreeMap::new());
        let json = serde_json::to_value(&info).unwrap();
        let features = json["features"].as_object().unwrap();
        assert_eq!(features.len(), 31);
        assert!(features.values().all(serde_json::Value::is_boolean));
        assert_eq!(features.values().filter(|has| **has == true).count(), 25);
        for needed in [
            "refspecs",
            "upload_multiple_artifacts",
            "artifacts_exclude",
            "multi_build_steps",
            "return_exit_code",
            "fallback_cache_keys",
            "cancelable",
            "cancel_gracefully",
            "two_phase_job_commit",
        ] {
            assert_eq!(features[needed], true, "{needed}");
        }
        assert_eq!(json["config"], serde_json::json!({"gpus": "all"}));
        assert_eq!(json["name"], "longshore");
        assert!(json.get("labels").is_none() && json.get("session").is_none());
    }

    #[test]
    fn a_registration_announces_neither_executor_nor_its_features() {
        let json = serde_json::to_value(registration_info()).unwrap();
        assert!(json.get("executor").is_none() && json.get("shell").is_none());
        let features = json["features"].as_object().unwrap();
        assert_eq!(features.len(), 31);
        assert_eq!(features.values().filter(|has| **has == true).count(), 7);
    }

    #[test]
    fn api_3_the_user_agent_has_the_known_shape() {
        let shape = regex::Regex::new(r"^longshore \S+ \([^;]+; [^;]+; [a-z0-9]+/[a-z0-9]+\)$");
        assert!(shape.unwrap().is_match(&user_agent()), "{}", user_agent());
    }
}

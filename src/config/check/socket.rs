//! `[runners.docker.socket]`.

use std::path::PathBuf;

use crate::config::{
    file::Section,
    socket::{GuardPlace, SocketBuild, SocketConfig, SocketLimits, SocketMode},
    values::{self, CPUS_HINT, SIZE_HINT},
};

use super::globs::globs;

const ENGINE_SOCKET_HINT: &str = "write the path on the engine's host, without unix://";

pub(super) fn socket(section: Section<'_>) -> SocketConfig {
    let default = SocketConfig::default();
    let socket = SocketConfig {
        mode: section
            .one_of(
                "mode",
                &[
                    ("off", SocketMode::Off),
                    ("guarded", SocketMode::Guarded),
                    ("raw", SocketMode::Raw),
                ],
            )
            .unwrap_or_default(),
        build: section
            .one_of(
                "build",
                &[
                    ("off", SocketBuild::Off),
                    ("classic", SocketBuild::Classic),
                    ("sidecar", SocketBuild::Sidecar),
                ],
            )
            .unwrap_or_default(),
        buildkit_image: section.text("buildkit_image").unwrap_or(default.buildkit_image),
        guard: section
            .one_of(
                "guard",
                &[
                    ("auto", GuardPlace::Auto),
                    ("here", GuardPlace::Here),
                    ("sidecar", GuardPlace::Sidecar),
                ],
            )
            .unwrap_or_default(),
        engine_socket: section.parsed("engine_socket", ENGINE_SOCKET_HINT, |text| {
            match PathBuf::from(text) {
                path if text.contains("://") || !path.is_absolute() => Err("not an absolute path"),
                path => Ok(path),
            }
        }),
        shared_images: globs(&section, "shared_images"),
        registries: if section.has("registries") {
            section.parsed_list("registries", "write docker.io, or HOST[:PORT]", registry)
        } else {
            default.registries
        },
        remove_images: section.boolean("remove_images").unwrap_or(default.remove_images),
        limits: limits(section.table("limits")),
        extra_capabilities: section.parsed_list("extra_capabilities", "", |text| {
            match text.to_ascii_uppercase() {
                text if text == "ALL" => Err("would make jobs root on this host; name them"),
                text => Ok(text.trim_start_matches("CAP_").to_owned()),
            }
        }),
        allowed_devices: section.list("allowed_devices"),
        allowed_runtimes: section.list("allowed_runtimes"),
        audit_log: section.parsed(
            "audit_log",
            "write an absolute path",
            |text| match PathBuf::from(text) {
                path if path.is_absolute() => Ok(path),
                _ => Err("not an absolute path"),
            },
        ),
    };
    section.finish();
    socket
}

/// An amount that is not nothing: there, 0 is no word for "no limit".
fn some_of(amount: Result<i64, values::ValueError>) -> Result<i64, String> {
    match amount {
        Ok(0) => Err("must be more than 0; without the key there is no limit".to_owned()),
        amount => amount.map_err(|error| error.to_string()),
    }
}

fn registry(text: &str) -> Result<String, &'static str> {
    let is_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if !text.is_empty() && text.chars().all(is_host) {
        Ok(text.to_owned())
    } else {
        Err("not the name of a registry")
    }
}

fn limits(section: Section<'_>) -> SocketLimits {
    let limits = SocketLimits {
        memory: section.parsed("memory", SIZE_HINT, values::memory_size),
        nano_cpus: section.parsed("cpus", CPUS_HINT, values::nano_cpus),
        pids: section.positive("pids"),
        total_memory: section
            .parsed("total_memory", SIZE_HINT, |text| some_of(values::memory_size(text))),
        total_nano_cpus: section
            .parsed("total_cpus", CPUS_HINT, |text| some_of(values::nano_cpus(text))),
        total_pids: section.positive("total_pids"),
        containers: section.positive("containers"),
        networks: section.positive("networks"),
        volumes: section.positive("volumes"),
    };
    section.finish();
    limits
}

//! `[runners.docker.dind]`.

use crate::config::{
    dind::{DindConfig, DindMode, DindNetwork, DindStorage},
    file::Section,
    values::{self, SIZE_HINT},
};

use super::globs::globs;

/// Most daemons that wait: a mistyped number should not start hundreds.
const WARM_LIMIT: usize = 50;

pub(super) fn dind(section: Section<'_>) -> DindConfig {
    let default = DindConfig::default();
    let mut dind = DindConfig {
        mode: section
            .one_of(
                "mode",
                &[
                    ("sidecar", DindMode::Sidecar),
                    ("socket", DindMode::Socket),
                    ("refuse", DindMode::Refuse),
                ],
            )
            .unwrap_or_default(),
        images: if section.has("images") { globs(&section, "images") } else { default.images },
        network: section
            .one_of("network", &[("own", DindNetwork::Own), ("shared", DindNetwork::Shared)])
            .unwrap_or_default(),
        insecure_registries: section.parsed_list(
            "insecure_registries",
            "write for example \"registry.example:5000\" or \"10.0.0.0/8\"",
            |text| {
                let is_plain = !text.is_empty() && !text.contains(char::is_whitespace);
                if is_plain && !text.contains("://") {
                    Ok(text.to_owned())
                } else {
                    Err("not a registry's name or a range of addresses")
                }
            },
        ),
        registry_mirrors: section.parsed_list(
            "registry_mirrors",
            "write for example \"https://mirror.example\"",
            |text| match text.split_once("://") {
                Some(("http" | "https", rest)) if !rest.is_empty() => Ok(text.to_owned()),
                _ => Err("not the address of a mirror"),
            },
        ),
        ready_timeout: section.positive_duration("ready_timeout").unwrap_or(default.ready_timeout),
        storage: section
            .one_of("storage", &[("fresh", DindStorage::Fresh), ("slot", DindStorage::Slot)])
            .unwrap_or_default(),
        slots: section.positive("slots").unwrap_or(default.slots),
        slot_size: section
            .parsed("slot_size", SIZE_HINT, values::memory_size)
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or(default.slot_size),
        warm: warm(&section).unwrap_or(default.warm),
    };
    if let Some(why) = never_warm(&dind) {
        section.warn("warm", format!("no daemon waits: {why}"));
        dind.warm = 0;
    }
    section.finish();
    dind
}

/// How many daemons wait.
fn warm(section: &Section<'_>) -> Option<usize> {
    let count = section.number::<usize>("warm")?;
    if count > WARM_LIMIT {
        let why = format!("is above {WARM_LIMIT}; each is a daemon that runs all the time");
        section.problem("warm", Some(&count.to_string()), why, "");
    }
    Some(count)
}

/// Why no job could take a daemon that waits.
fn never_warm(dind: &DindConfig) -> Option<&'static str> {
    match (dind.mode, dind.storage, dind.network) {
        _ if dind.warm == 0 => None,
        (DindMode::Socket | DindMode::Refuse, ..) => Some("jobs get none of their own (`mode`)"),
        (_, DindStorage::Slot, _) => Some("each begins with a slot's layers (`storage`)"),
        (.., DindNetwork::Shared) => Some("jobs are in their daemon's network (`network`)"),
        (DindMode::Sidecar, DindStorage::Fresh, DindNetwork::Own) => None,
    }
}

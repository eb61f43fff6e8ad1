//! Settings that a job makes with variables: typed, with a warning and the default for what cannot
//! be read.

use std::time::Duration;

use crate::{base::duration, config::RunnerConfig};

use super::{
    flags::Flags,
    spec::JobSpec,
    transfer::{Format, Level, Submodules},
    variable::{Expanded, parse_bool},
};

/// What a job's variables set, beside feature flags.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct Settings {
    /// `GIT_CHECKOUT`.
    pub checkout: bool,
    /// `GIT_CLEAN_FLAGS`; `None` for no cleaning.
    pub clean_flags: Option<Vec<String>>,
    /// `GIT_FETCH_EXTRA_FLAGS`.
    pub fetch_flags: Vec<String>,
    /// `GIT_CLONE_EXTRA_FLAGS`.
    pub clone_flags: Vec<String>,
    /// `GIT_SUBMODULE_*`.
    pub submodules: Submodules,
    /// `GIT_SUBMODULE_STRATEGY` when it is none there is.
    pub wrong_submodule_strategy: Option<String>,
    /// `GIT_LFS_SKIP_SMUDGE`.
    pub skip_lfs: bool,
    /// Tries of stages.
    pub attempts: Attempts,
    /// `AFTER_SCRIPT_IGNORE_ERRORS`.
    pub after_script_ignore_errors: bool,
    /// `RUNNER_SCRIPT_TIMEOUT`.
    pub script_timeout: Option<Duration>,
    /// `RUNNER_AFTER_SCRIPT_TIMEOUT`.
    pub after_script_timeout: Duration,
    /// `CACHE_REQUEST_TIMEOUT`.
    pub cache_timeout: Duration,
    /// `CACHE_COMPRESSION_FORMAT`.
    pub cache_format: Format,
    /// `CACHE_COMPRESSION_LEVEL`.
    pub cache_level: Level,
    /// `ARTIFACT_COMPRESSION_LEVEL`.
    pub artifact_level: Level,
    /// `FF_SCRIPT_SECTIONS`, where the server knows sections.
    pub script_sections: bool,
    /// `CI_DEBUG_TRACE`, where the runner allows it.
    pub debug_trace: bool,
    /// `CI_DEBUG_SERVICES`, where the runner allows it.
    pub debug_services: bool,
}

/// How often a stage is tried, 1 to 10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// `GET_SOURCES_ATTEMPTS`.
    pub sources: u32,
    /// `RESTORE_CACHE_ATTEMPTS`.
    pub cache: u32,
    /// `ARTIFACT_DOWNLOAD_ATTEMPTS`.
    pub artifacts: u32,
    /// `EXECUTOR_JOB_SECTION_ATTEMPTS`.
    pub section: u32,
}

/// A setting with a value that it cannot have, and for which no default will do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is `{value}`; it must be {expected}")]
pub struct SettingError {
    /// The variable or keyword.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// The values that it can have.
    pub expected: &'static str,
}

/// Timeout of `after_script` unless the job sets one (GitLab Runner: `AfterScriptTimeout`).
const AFTER_SCRIPT_TIMEOUT: Duration = Duration::from_mins(5);

struct Reader<'a> {
    variables: &'a Expanded,
    warnings: &'a mut Vec<String>,
}

impl<'a> Reader<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        self.variables.value(name).filter(|value| !value.is_empty())
    }

    fn warn(&mut self, name: &str, value: &str, expected: &str, used: &str) {
        self.warnings.push(format!("{name}: expected {expected}, got {value:?}; using {used}"));
    }

    fn boolean(&mut self, name: &str, default: bool) -> bool {
        let Some(text) = self.get(name) else { return default };
        parse_bool(text).unwrap_or_else(|| {
            self.warn(name, text, "true or false", if default { "true" } else { "false" });
            default
        })
    }

    fn number<T: std::str::FromStr + std::fmt::Display>(&mut self, name: &str, default: T) -> T {
        let Some(text) = self.get(name) else { return default };
        text.trim().parse().unwrap_or_else(|_| {
            self.warn(name, text, "a number", &default.to_string());
            default
        })
    }

    fn attempts(&mut self, name: &str) -> u32 {
        let asked: u32 = self.number(name, 1);
        let used = asked.clamp(1, 10);
        if asked != used {
            self.warn(name, &asked.to_string(), "a number from 1 to 10", &used.to_string());
        }
        used
    }

    fn words(&self, name: &str) -> Vec<String> {
        self.get(name)
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    }

    /// Words; `none` stands for no words at all.
    fn flags(&self, name: &str, default: &[&str]) -> Option<Vec<String>> {
        match self.get(name) {
            None => Some(default.iter().map(|f| (*f).to_owned()).collect()),
            Some("none") => None,
            Some(_) => Some(self.words(name)),
        }
    }

    fn duration(&mut self, name: &str, limit: Duration) -> Option<Duration> {
        let text = self.get(name)?;
        match duration::parse(text) {
            Ok((false, duration)) if duration.is_zero() => None,
            Ok((false, duration)) if duration <= limit => Some(duration),
            Ok((false, _)) => {
                self.warn(name, text, "less than the job's timeout", "the default");
                None
            }
            Ok((true, _)) | Err(_) => {
                self.warn(name, text, "a duration such as 1h30m", "the default");
                None
            }
        }
    }

    fn level(&mut self, name: &str) -> Level {
        let Some(text) = self.get(name) else { return Level::default() };
        match text.to_lowercase().as_str() {
            "fastest" => Level::Fastest,
            "fast" => Level::Fast,
            "default" => Level::Default,
            "slow" => Level::Slow,
            "slowest" => Level::Slowest,
            _ => {
                self.warn(name, text, "fastest, fast, default, slow or slowest", "default");
                Level::default()
            }
        }
    }
}

impl Reader<'_> {
    /// A setting that the runner may forbid, as it can show secrets.
    fn debug(&mut self, name: &str, runner: &RunnerConfig) -> bool {
        let on = self.boolean(name, false);
        if on && runner.debug_trace_disabled {
            self.warnings.push(format!("{name} is set, but this runner forbids it"));
        }
        on && !runner.debug_trace_disabled
    }

    /// Submodules; a strategy that does not exist is given back.
    fn submodules(&mut self, depth: i64) -> (Submodules, Option<String>) {
        let (recursive, wrong) = match self.get("GIT_SUBMODULE_STRATEGY") {
            None | Some("none") => (None, None),
            Some("normal") => (Some(false), None),
            Some("recursive") => (Some(true), None),
            Some(other) => (None, Some(other.to_owned())),
        };
        let submodules = Submodules {
            recursive,
            paths: self.words("GIT_SUBMODULE_PATHS"),
            depth: self.number("GIT_SUBMODULE_DEPTH", depth),
            update_flags: self.words("GIT_SUBMODULE_UPDATE_FLAGS"),
            force_https: self.boolean("GIT_SUBMODULE_FORCE_HTTPS", false),
        };
        (submodules, wrong)
    }

    fn cache_format(&self) -> Format {
        match self.get("CACHE_COMPRESSION_FORMAT").map(str::to_lowercase).as_deref() {
            Some("zipzstd") => Format::ZipZstd,
            Some("tarzstd") => Format::TarZstd,
            _ => Format::Zip,
        }
    }
}

impl Settings {
    pub(super) fn read(
        variables: &Expanded,
        job: &JobSpec,
        runner: &RunnerConfig,
        flags: &Flags,
        warnings: &mut Vec<String>,
    ) -> Self {
        let mut reader = Reader { variables, warnings };
        let debug_trace = reader.debug("CI_DEBUG_TRACE", runner);
        let debug_services = reader.debug("CI_DEBUG_SERVICES", runner);
        let checkout = reader.boolean("GIT_CHECKOUT", true);
        let (submodules, wrong_submodule_strategy) = reader.submodules(job.source.depth);
        Self {
            checkout,
            clean_flags: reader.flags("GIT_CLEAN_FLAGS", &["-ffdx"]),
            fetch_flags: reader
                .flags("GIT_FETCH_EXTRA_FLAGS", &["--prune", "--quiet"])
                .unwrap_or_default(),
            clone_flags: reader.flags("GIT_CLONE_EXTRA_FLAGS", &[]).unwrap_or_default(),
            submodules,
            wrong_submodule_strategy,
            skip_lfs: reader.boolean("GIT_LFS_SKIP_SMUDGE", false),
            attempts: Attempts {
                sources: reader.attempts("GET_SOURCES_ATTEMPTS"),
                cache: reader.attempts("RESTORE_CACHE_ATTEMPTS"),
                artifacts: reader.attempts("ARTIFACT_DOWNLOAD_ATTEMPTS"),
                section: reader.attempts("EXECUTOR_JOB_SECTION_ATTEMPTS"),
            },
            after_script_ignore_errors: reader.boolean("AFTER_SCRIPT_IGNORE_ERRORS", true),
            script_timeout: reader.duration("RUNNER_SCRIPT_TIMEOUT", job.timeout),
            after_script_timeout: reader
                .duration("RUNNER_AFTER_SCRIPT_TIMEOUT", job.timeout)
                .unwrap_or(AFTER_SCRIPT_TIMEOUT),
            cache_timeout: Duration::from_mins(reader.number("CACHE_REQUEST_TIMEOUT", 10)),
            cache_format: reader.cache_format(),
            cache_level: reader.level("CACHE_COMPRESSION_LEVEL"),
            artifact_level: reader.level("ARTIFACT_COMPRESSION_LEVEL"),
            debug_trace,
            debug_services,
            script_sections: flags.on("FF_SCRIPT_SECTIONS") && job.trace.sections,
        }
    }
}

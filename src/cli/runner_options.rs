//! The options of `register` and `run-single` that set keys of a `[[runners]]` entry. One table
//! makes the arguments, their help and the entry; names and variables are gitlab-runner's.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, parser::ValueSource};
use toml_edit::{Array, InlineTable, Item, Table, Value};

use crate::config::values;

/// How an option's text becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Switch,
    /// Repeated; separated by commas in a variable.
    List,
    /// `key=value`, repeated, or JSON.
    Map,
    /// `NAME:true`, repeated, or JSON.
    Switches,
    /// `key=value`, repeated, where values are separated by commas; or JSON.
    Lists,
}

/// An option, its variable and its key.
struct Definition {
    long: &'static str,
    /// Empty for none.
    variable: &'static str,
    key: &'static str,
    kind: Kind,
}

const fn of(
    long: &'static str,
    variable: &'static str,
    key: &'static str,
    kind: Kind,
) -> Definition {
    Definition { long, variable, key, kind }
}

use Kind::{List, Lists, Map, Number, Switch, Switches, Text};

/// All of them, in the order of an entry.
const DEFINITIONS: &[Definition] = &[
    of("name", "RUNNER_NAME", "name", Text),
    of("url", "CI_SERVER_URL", "url", Text),
    of("token", "CI_SERVER_TOKEN", "token", Text),
    of("tls-ca-file", "CI_SERVER_TLS_CA_FILE", "tls-ca-file", Text),
    of("tls-cert-file", "CI_SERVER_TLS_CERT_FILE", "tls-cert-file", Text),
    of("tls-key-file", "CI_SERVER_TLS_KEY_FILE", "tls-key-file", Text),
    of("limit", "RUNNER_LIMIT", "limit", Number),
    of("request-concurrency", "RUNNER_REQUEST_CONCURRENCY", "request_concurrency", Number),
    of("strict-check-interval", "RUNNER_STRICT_CHECK_INTERVAL", "strict_check_interval", Switch),
    of(
        "unhealthy-requests-limit",
        "RUNNER_UNHEALTHY_REQUESTS_LIMIT",
        "unhealthy_requests_limit",
        Number,
    ),
    of("unhealthy-interval", "", "unhealthy_interval", Text),
    of("output-limit", "RUNNER_OUTPUT_LIMIT", "output_limit", Number),
    of(
        "job-status-final-update-retry-limit",
        "RUNNER_job_status_final_update_retry_limit",
        "job_status_final_update_retry_limit",
        Number,
    ),
    of("executor", "RUNNER_EXECUTOR", "executor", Text),
    of("shell", "RUNNER_SHELL", "shell", Text),
    of("builds-dir", "RUNNER_BUILDS_DIR", "builds_dir", Text),
    of("cache-dir", "RUNNER_CACHE_DIR", "cache_dir", Text),
    of("clone-url", "CLONE_URL", "clone_url", Text),
    of("env", "RUNNER_ENV", "environment", List),
    of("pre-get-sources-script", "RUNNER_PRE_GET_SOURCES_SCRIPT", "pre_get_sources_script", Text),
    of(
        "post-get-sources-script",
        "RUNNER_POST_GET_SOURCES_SCRIPT",
        "post_get_sources_script",
        Text,
    ),
    of("pre-build-script", "RUNNER_PRE_BUILD_SCRIPT", "pre_build_script", Text),
    of("post-build-script", "RUNNER_POST_BUILD_SCRIPT", "post_build_script", Text),
    of("prepare-timeout", "RUNNER_PREPARE_TIMEOUT", "prepare_timeout", Text),
    of("get-sources-timeout", "RUNNER_GET_SOURCES_TIMEOUT", "get_sources_timeout", Text),
    of("debug-trace-disabled", "RUNNER_DEBUG_TRACE_DISABLED", "debug_trace_disabled", Switch),
    of(
        "safe-directory-checkout",
        "RUNNER_SAFE_DIRECTORY_CHECKOUT",
        "safe_directory_checkout",
        Switch,
    ),
    of("clean-git-config", "RUNNER_CLEAN_GIT_CONFIG", "clean_git_config", Switch),
    of("feature-flags", "FEATURE_FLAGS", "feature_flags", Switches),
    of("custom_build_dir-enabled", "CUSTOM_BUILD_DIR_ENABLED", "custom_build_dir.enabled", Switch),
    of("cache-type", "CACHE_TYPE", "cache.Type", Text),
    of("cache-path", "CACHE_PATH", "cache.Path", Text),
    of("cache-shared", "CACHE_SHARED", "cache.Shared", Switch),
    of(
        "cache-max_uploaded_archive_size",
        "CACHE_MAXIMUM_UPLOADED_ARCHIVE_SIZE",
        "cache.MaxUploadedArchiveSize",
        Number,
    ),
    of("cache-s3-server-address", "CACHE_S3_SERVER_ADDRESS", "cache.s3.ServerAddress", Text),
    of("cache-s3-access-key", "CACHE_S3_ACCESS_KEY", "cache.s3.AccessKey", Text),
    of("cache-s3-secret-key", "CACHE_S3_SECRET_KEY", "cache.s3.SecretKey", Text),
    of("cache-s3-session-token", "CACHE_S3_SESSION_TOKEN", "cache.s3.SessionToken", Text),
    of("cache-s3-bucket-name", "CACHE_S3_BUCKET_NAME", "cache.s3.BucketName", Text),
    of("cache-s3-bucket-location", "CACHE_S3_BUCKET_LOCATION", "cache.s3.BucketLocation", Text),
    of("cache-s3-insecure", "CACHE_S3_INSECURE", "cache.s3.Insecure", Switch),
    of(
        "cache-s3-authentication_type",
        "CACHE_S3_AUTHENTICATION_TYPE",
        "cache.s3.AuthenticationType",
        Text,
    ),
    of("cache-s3-path-style", "CACHE_S3_PATH_STYLE", "cache.s3.PathStyle", Switch),
    of("docker-host", "DOCKER_HOST", "docker.host", Text),
    of("docker-cert-path", "DOCKER_CERT_PATH", "docker.tls_cert_path", Text),
    of("docker-tlsverify", "DOCKER_TLS_VERIFY", "docker.tls_verify", Switch),
    of("docker-image", "DOCKER_IMAGE", "docker.image", Text),
    of("docker-helper-image", "DOCKER_HELPER_IMAGE", "docker.helper_image", Text),
    of("docker-pull-policy", "DOCKER_PULL_POLICY", "docker.pull_policy", List),
    of(
        "docker-allowed-pull-policies",
        "DOCKER_ALLOWED_PULL_POLICIES",
        "docker.allowed_pull_policies",
        List,
    ),
    of("docker-allowed-images", "DOCKER_ALLOWED_IMAGES", "docker.allowed_images", List),
    of("docker-allowed-services", "DOCKER_ALLOWED_SERVICES", "docker.allowed_services", List),
    of(
        "docker-allowed-privileged-images",
        "DOCKER_ALLOWED_PRIVILEGED_IMAGES",
        "docker.allowed_privileged_images",
        List,
    ),
    of(
        "docker-allowed-privileged-services",
        "DOCKER_ALLOWED_PRIVILEGED_SERVICES",
        "docker.allowed_privileged_services",
        List,
    ),
    of("docker-user", "DOCKER_USER", "docker.user", Text),
    of("docker-allowed_users", "DOCKER_ALLOWED_USERS", "docker.allowed_users", List),
    of("docker-group-add", "DOCKER_GROUP_ADD", "docker.group_add", List),
    of(
        "docker-disable-entrypoint-overwrite",
        "DOCKER_DISABLE_ENTRYPOINT_OVERWRITE",
        "docker.disable_entrypoint_overwrite",
        Switch,
    ),
    of("docker-privileged", "DOCKER_PRIVILEGED", "docker.privileged", Switch),
    of(
        "docker-services_privileged",
        "DOCKER_SERVICES_PRIVILEGED",
        "docker.services_privileged",
        Switch,
    ),
    of("docker-cap-add", "DOCKER_CAP_ADD", "docker.cap_add", List),
    of("docker-cap-drop", "DOCKER_CAP_DROP", "docker.cap_drop", List),
    of("docker-security-opt", "DOCKER_SECURITY_OPT", "docker.security_opt", List),
    of(
        "docker-services-security-opt",
        "DOCKER_SERVICES_SECURITY_OPT",
        "docker.services_security_opt",
        List,
    ),
    of("docker-userns", "DOCKER_USERNS_MODE", "docker.userns_mode", Text),
    of("docker-isolation", "DOCKER_ISOLATION", "docker.isolation", Text),
    of("docker-sysctls", "DOCKER_SYSCTLS", "docker.sysctls", Map),
    of("docker-ulimit", "DOCKER_ULIMIT", "docker.ulimit", Map),
    of("docker-devices", "DOCKER_DEVICES", "docker.devices", List),
    of(
        "docker-device-cgroup-rules",
        "DOCKER_DEVICE_CGROUP_RULES",
        "docker.device_cgroup_rules",
        List,
    ),
    of("docker-services_devices", "DOCKER_SERVICES_DEVICES", "docker.services_devices", Lists),
    of("docker-gpus", "DOCKER_GPUS", "docker.gpus", Text),
    of("docker-service_gpus", "DOCKER_SERVICE_GPUS", "docker.service_gpus", Text),
    of("docker-memory", "DOCKER_MEMORY", "docker.memory", Text),
    of("docker-memory-swap", "DOCKER_MEMORY_SWAP", "docker.memory_swap", Text),
    of("docker-memory-reservation", "DOCKER_MEMORY_RESERVATION", "docker.memory_reservation", Text),
    of("docker-cpus", "DOCKER_CPUS", "docker.cpus", Text),
    of("docker-cpuset-cpus", "DOCKER_CPUSET_CPUS", "docker.cpuset_cpus", Text),
    of("docker-cpuset-mems", "DOCKER_CPUSET_MEMS", "docker.cpuset_mems", Text),
    of("docker-cpu-shares", "DOCKER_CPU_SHARES", "docker.cpu_shares", Number),
    of("docker-cgroup-parent", "DOCKER_CGROUP_PARENT", "docker.cgroup_parent", Text),
    of("docker-oom-kill-disable", "DOCKER_OOM_KILL_DISABLE", "docker.oom_kill_disable", Switch),
    of("docker-oom-score-adjust", "DOCKER_OOM_SCORE_ADJUST", "docker.oom_score_adjust", Number),
    of("docker-shm-size", "DOCKER_SHM_SIZE", "docker.shm_size", Number),
    of("docker-service-memory", "DOCKER_SERVICE_MEMORY", "docker.service_memory", Text),
    of(
        "docker-service-memory-swap",
        "DOCKER_SERVICE_MEMORY_SWAP",
        "docker.service_memory_swap",
        Text,
    ),
    of(
        "docker-service-memory-reservation",
        "DOCKER_SERVICE_MEMORY_RESERVATION",
        "docker.service_memory_reservation",
        Text,
    ),
    of("docker-service-cpus", "DOCKER_SERVICE_CPUS", "docker.service_cpus", Text),
    of(
        "docker-service-cpuset-cpus",
        "DOCKER_SERVICE_CPUSET_CPUS",
        "docker.service_cpuset_cpus",
        Text,
    ),
    of(
        "docker-service-cpu-shares",
        "DOCKER_SERVICE_CPU_SHARES",
        "docker.service_cpu_shares",
        Number,
    ),
    of(
        "docker-service-cgroup-parent",
        "DOCKER_SERVICE_CGROUP_PARENT",
        "docker.service_cgroup_parent",
        Text,
    ),
    of("docker-runtime", "DOCKER_RUNTIME", "docker.runtime", Text),
    of("docker-volumes", "DOCKER_VOLUMES", "docker.volumes", List),
    of("docker-disable-cache", "DOCKER_DISABLE_CACHE", "docker.disable_cache", Switch),
    of("docker-cache-dir", "DOCKER_CACHE_DIR", "docker.cache_dir", Text),
    of("docker-volume-driver", "DOCKER_VOLUME_DRIVER", "docker.volume_driver", Text),
    of("docker-volume-driver-ops", "DOCKER_VOLUME_DRIVER_OPS", "docker.volume_driver_ops", Map),
    of("docker-volume-keep", "DOCKER_VOLUME_KEEP", "docker.volume_keep", Switch),
    of("docker-volumes-from", "DOCKER_VOLUMES_FROM", "docker.volumes_from", List),
    of("docker-tmpfs", "DOCKER_TMPFS", "docker.tmpfs", Map),
    of("docker-services-tmpfs", "DOCKER_SERVICES_TMPFS", "docker.services_tmpfs", Map),
    of("docker-network-mode", "DOCKER_NETWORK_MODE", "docker.network_mode", Text),
    of("docker-network-mtu", "", "docker.network_mtu", Number),
    of("docker-enable-ipv6", "", "docker.enable_ipv6", Switch),
    of("docker-dns", "DOCKER_DNS", "docker.dns", List),
    of("docker-dns-search", "DOCKER_DNS_SEARCH", "docker.dns_search", List),
    of("docker-extra-hosts", "DOCKER_EXTRA_HOSTS", "docker.extra_hosts", List),
    of("docker-links", "DOCKER_LINKS", "docker.links", List),
    of("docker-hostname", "DOCKER_HOSTNAME", "docker.hostname", Text),
    of("docker-mac-address", "DOCKER_MAC_ADDRESS", "docker.mac_address", Text),
    of("docker-pid-mode", "DOCKER_PID_MODE", "docker.pid_mode", Text),
    of("docker-ipcmode", "DOCKER_IPC_MODE", "docker.ipcmode", Text),
    of("docker-services-limit", "DOCKER_SERVICES_LIMIT", "docker.services_limit", Number),
    of(
        "docker-wait-for-services-timeout",
        "DOCKER_WAIT_FOR_SERVICES_TIMEOUT",
        "docker.wait_for_services_timeout",
        Number,
    ),
    of("docker-container-labels", "", "docker.container_labels", Map),
    of("docker-log-options", "DOCKER_LOG_OPTIONS", "docker.log_options", Map),
    // Known and without effect: they go into the entry, and its check says so.
    of(
        "docker-helper-image-flavor",
        "DOCKER_HELPER_IMAGE_FLAVOR",
        "docker.helper_image_flavor",
        Text,
    ),
    of("use-slot-cgroups", "RUNNER_USE_SLOT_CGROUPS", "use_slot_cgroups", Switch),
    of("slot-cgroup-template", "RUNNER_SLOT_CGROUP_TEMPLATE", "slot_cgroup_template", Text),
    of(
        "docker-service-slot-cgroup-template",
        "DOCKER_SERVICE_SLOT_CGROUP_TEMPLATE",
        "docker.service_slot_cgroup_template",
        Text,
    ),
    of("proxy-exec", "RUNNER_PROXY_EXEC", "proxy_exec", Switch),
    of("step-runner-image", "STEP_RUNNER_IMAGE", "step_runner_image", Text),
];

/// A `[[runners]]` entry made of options; keys that nobody gave are absent.
#[derive(Debug, Clone, Default)]
pub struct RunnerOptions {
    /// The entry.
    pub entry: Table,
}

impl RunnerOptions {
    /// A text of the entry, empty when it is not there.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        let mut parts = key.split('.');
        let first = parts.next().and_then(|part| self.entry.get(part));
        let item = parts.fold(first, |item, part| item.and_then(|item| item.get(part)));
        item.and_then(Item::as_str).unwrap_or_default()
    }
}

impl Args for RunnerOptions {
    fn augment_args(command: Command) -> Command {
        DEFINITIONS.iter().fold(command, |command, definition| command.arg(definition.argument()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RunnerOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut entry = Table::new();
        for definition in DEFINITIONS {
            if let Some(value) = definition.value(matches)? {
                set(&mut entry, definition.key, value);
            }
        }
        Ok(Self { entry })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A boolean as gitlab-runner's command line takes it.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    values::boolean(text).ok_or_else(|| "wanted true or false".to_owned())
}

/// An empty text, as variables may be, is no value.
fn maybe<T: Clone>(
    parse: impl Fn(&str) -> Result<T, String> + Clone + Send + Sync,
) -> impl Fn(&str) -> Result<Option<T>, String> + Clone + Send + Sync {
    move |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

/// A list as a variable has it.
fn split_variable(text: &str) -> impl Iterator<Item = String> + use<'_> {
    text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty())
}

impl Definition {
    fn argument(&self) -> Arg {
        let mut argument = Arg::new(self.key).long(self.long).help_heading("Keys of the runner");
        argument = match self.key {
            "url" => argument.short('u').help("GitLab's address"),
            "token" => argument.short('t').help("The runner's authentication token"),
            "name" => argument.visible_alias("description").help("Shown in the job's trace"),
            key => argument.help(format!("Sets `{key}`")),
        };
        if !self.variable.is_empty() {
            let secret = matches!(self.key, "token")
                || matches!(self.key.rsplit('.').next(), Some("SecretKey" | "SessionToken"));
            argument = argument.env(self.variable).hide_env_values(secret);
        }
        match self.kind {
            Text => argument.value_name("TEXT"),
            Number => argument
                .value_name("NUMBER")
                .value_parser(maybe(|text| text.parse::<i64>().map_err(|e| e.to_string())))
                .allow_negative_numbers(true),
            Switch => argument
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(maybe(boolean)),
            List => argument.value_name("TEXT").action(ArgAction::Append),
            Map | Lists => argument.value_name("KEY=VALUE").action(ArgAction::Append),
            Switches => argument.value_name("NAME:BOOL").action(ArgAction::Append),
        }
    }

    /// The value that was given, in a variable or as an option; an empty variable gives none.
    fn value(&self, matches: &ArgMatches) -> Result<Option<Item>, clap::Error> {
        let from_variable = matches.value_source(self.key) == Some(ValueSource::EnvVariable);
        let texts = || -> Vec<String> {
            let given = matches.get_many::<String>(self.key).into_iter().flatten();
            if from_variable && !given.clone().any(|text| text.trim_start().starts_with('{')) {
                given.flat_map(|text| split_variable(text)).collect()
            } else {
                given.cloned().collect()
            }
        };
        let value = match self.kind {
            Text => matches
                .get_one::<String>(self.key)
                .filter(|text| !text.is_empty())
                .map(|text| toml_edit::value(text.as_str())),
            Number => {
                matches.get_one::<Option<i64>>(self.key).copied().flatten().map(toml_edit::value)
            }
            Switch => {
                matches.get_one::<Option<bool>>(self.key).copied().flatten().map(toml_edit::value)
            }
            List => {
                let array: Array = texts().into_iter().collect();
                (!array.is_empty()).then(|| toml_edit::value(array))
            }
            Map | Switches | Lists => {
                let mut table = InlineTable::new();
                for text in texts() {
                    self.pairs(&text, &mut table).map_err(|why| {
                        let message = format!("--{}: {why}\n", self.long);
                        clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
                    })?;
                }
                (!table.is_empty()).then(|| toml_edit::value(table))
            }
        };
        Ok(value)
    }

    /// Adds what a text of `key=value` or JSON says.
    fn pairs(&self, text: &str, table: &mut InlineTable) -> Result<(), String> {
        if text.trim_start().starts_with('{') {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
            for (key, value) in object {
                table.insert(key, self.json_value(&value)?);
            }
            return Ok(());
        }
        let separator = if text.contains('=') { '=' } else { ':' };
        let (key, value) = text.split_once(separator).ok_or("wanted `key=value` or JSON")?;
        let value = match self.kind {
            Switches => boolean(value)?.into(),
            Lists => Value::Array(value.split(',').collect()),
            _ => value.into(),
        };
        table.insert(key.trim(), value);
        Ok(())
    }

    fn json_value(&self, value: &serde_json::Value) -> Result<Value, String> {
        use serde_json::Value as Json;
        match (self.kind, value) {
            (Switches, Json::Bool(on)) => Ok((*on).into()),
            (Switches, Json::String(text)) => Ok(boolean(text)?.into()),
            (Map, Json::String(text)) => Ok(text.as_str().into()),
            (Map, Json::Number(number)) => Ok(number.to_string().into()),
            (Lists, Json::Array(texts)) => {
                let texts: Option<Array> = texts.iter().map(Json::as_str).collect();
                texts.map(Value::Array).ok_or_else(|| "wanted lists of texts".to_owned())
            }
            _ => Err(format!("`{value}` is not what this option takes")),
        }
    }
}

/// Sets `a.b.c` in a table, making the tables on the way.
pub(super) fn set(table: &mut Table, path: &str, value: Item) {
    match path.split_once('.') {
        None => {
            table.insert(path, value);
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert(Item::Table(Table::new()));
            if let Some(inner) = inner.as_table_mut() {
                set(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use clap::Parser;

    use super::*;
    use crate::{cli::testing::parsed, config::check::check};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        runner: RunnerOptions,
    }

    fn parse(arguments: &[&str]) -> Result<String, String> {
        let program = parsed::<Program>(arguments).map_err(|error| error.to_string())?;
        Ok(toml_edit::DocumentMut::from(program.runner.entry).to_string())
    }

    #[test]
    fn options_become_keys() {
        let text = parse(&[
            "-u",
            "https://a.example",
            "--description",
            "mine",
            "--limit",
            "3",
            "--docker-privileged",
            "--docker-services_privileged=false",
            "--docker-volumes",
            "/a",
            "--docker-volumes",
            "/b:/c:ro,z",
            "--docker-sysctls",
            "a.b=1",
            "--feature-flags",
            "FF_NETWORK_PER_BUILD:true",
            "--feature-flags",
            r#"{"FF_X":false}"#,
            "--docker-services-limit",
            "-1",
            "--cache-s3-path-style",
            "--docker-services_devices",
            r#"{"d*":["/dev/fuse"]}"#,
        ])
        .unwrap();
        for line in [
            "name = \"mine\"",
            "url = \"https://a.example\"",
            "limit = 3",
            "feature_flags = { FF_NETWORK_PER_BUILD = true, FF_X = false }",
            "PathStyle = true",
            "privileged = true",
            "services_privileged = false",
            "volumes = [\"/a\", \"/b:/c:ro,z\"]",
            "sysctls = { \"a.b\" = \"1\" }",
            "services_devices = { \"d*\" = [\"/dev/fuse\"] }",
            "services_limit = -1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }

    #[test]
    fn empty_values_set_nothing_and_lists_in_variables_have_commas() {
        let text = parse(&["--limit", "", "--docker-privileged=", "--docker-image", ""]).unwrap();
        assert_eq!(text, "");
        assert_eq!(split_variable("a, b,,c").collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn wrong_values_are_refused_by_the_option() {
        assert!(parse(&["--limit", "two"]).unwrap_err().contains("--limit"));
        assert!(parse(&["--docker-privileged=maybe"]).unwrap_err().contains("true or false"));
        assert!(parse(&["--docker-sysctls", "abc"]).unwrap_err().contains("--docker-sysctls"));
        assert!(parse(&["--feature-flags", "FF_X=maybe"]).is_err());
        assert!(parse(&["--kubernetes-image", "a"]).unwrap_err().contains("--kubernetes-image"));
    }

    #[test]
    fn options_variables_and_keys_are_each_there_once_and_known_to_the_check() {
        let mut seen = BTreeSet::new();
        for definition in DEFINITIONS {
            assert!(seen.insert(definition.long), "{}", definition.long);
            assert!(seen.insert(definition.key) || definition.key == definition.long);
            assert!(definition.variable.is_empty() || seen.insert(definition.variable));
        }
        let mut entry = Table::new();
        for definition in DEFINITIONS {
            let value = match (definition.key, definition.kind) {
                (_, Number) => toml_edit::value(1),
                (_, Switch) => toml_edit::value(false),
                (_, List) => toml_edit::value(Array::new()),
                (_, Map | Switches | Lists) => toml_edit::value(InlineTable::new()),
                ("url", _) => toml_edit::value("https://a.example"),
                ("executor", _) => toml_edit::value("docker"),
                (_, Text) => toml_edit::value(""),
            };
            set(&mut entry, definition.key, value);
        }
        let mut document = toml_edit::DocumentMut::new();
        let mut runners = toml_edit::ArrayOfTables::new();
        runners.push(entry);
        document["runners"] = Item::ArrayOfTables(runners);
        let checked = check(&document.to_string(), Path::new("c"), &|_| None).unwrap();
        let unknown = checked.warnings.iter().filter(|w| w.message.contains("unknown"));
        assert_eq!(unknown.count(), 0, "{:?}", checked.warnings);
    }
}

use std::{collections::BTreeMap, fs};

use super::*;
use crate::config::{
    DindConfig, DindMode, DindNetwork, DindStorage, GuardPlace, PullPolicy, RunnerConfig,
    SocketBuild, SocketConfig, SocketLimits, SocketMode,
};

fn no_env(_: &str) -> Option<String> {
    None
}

fn checked(text: &str) -> Checked {
    check(text, Path::new("config.toml"), &no_env).unwrap_or_else(|error| panic!("{error}"))
}

fn problems(text: &str) -> String {
    check(text, Path::new("config.toml"), &no_env).expect_err("there are problems").to_string()
}

/// A file with one good runner, with keys of the runner and of its docker table added.
fn with(runner: &str, docker: &str) -> String {
    format!(
        "[[runners]]\nname = 'r'\nurl = 'https://a.example'\ntoken = 'glrt-x'\n\
         executor = 'docker'\n{runner}\n[runners.docker]\n{docker}\n"
    )
}

fn one(runner: &str, docker: &str) -> RunnerConfig {
    let checked = checked(&with(runner, docker));
    assert_eq!(checked.warnings, []);
    checked.config.runners[0].as_ref().clone()
}

fn warnings(text: &str) -> Vec<String> {
    checked(text).warnings.iter().map(ToString::to_string).collect()
}

/// What `gitlab-runner register` writes.
const REGISTERED: &str = r#"concurrent = 1
check_interval = 0
connection_max_age = "15m0s"
shutdown_timeout = 0

[session_server]
  session_timeout = 1800

[[runners]]
  name = "build-host"
  url = "https://gitlab.example.com/"
  id = 42
  token = "glrt-t3_secret"
  token_obtained_at = 2026-01-02T03:04:05Z
  token_expires_at = 0001-01-01T00:00:00Z
  executor = "docker"
  [runners.custom_build_dir]
  [runners.cache]
    MaxUploadedArchiveSize = 0
    [runners.cache.s3]
    [runners.cache.gcs]
    [runners.cache.azure]
  [runners.docker]
    tls_verify = false
    image = "ruby:3.3"
    privileged = false
    disable_entrypoint_overwrite = false
    oom_kill_disable = false
    disable_cache = false
    volumes = ["/cache"]
    shm_size = 0
    network_mtu = 0
"#;

#[test]
fn config_1_a_file_of_gitlab_runner_is_accepted_without_warnings() {
    let checked = checked(REGISTERED);
    assert_eq!(checked.warnings, []);
    let runner = &checked.config.runners[0];
    assert_eq!((runner.gitlab.id, runner.containers.images.default.as_str()), (42, "ruby:3.3"));
    assert_eq!(runner.gitlab.token_obtained_at.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert_eq!(runner.gitlab.token_expires_at, None);
    assert_eq!(checked.config.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(checked.config.connection_max_age, Duration::from_mins(15));
}

#[test]
fn config_2_unknown_and_unsupported_keys_are_warned_of_by_path() {
    let text = with("use_slot_cgroups = true\nlimt = 3", "foo = 1\nhelper_image_flavor = 'ubuntu'")
        + "[runners.docker.dind]\nstorage = 'slot'\nwarm = 2\nimage = 'x'\n\
           [runners.docker.socket]\nmode = 'raw'\n[runners.machine]\nIdleCount = 1\n";
    insta::assert_snapshot!(warnings(&text).join("\n"));
}

#[test]
fn every_problem_of_a_file_is_named_at_once_with_its_line() {
    let text = "concurrent = 0\nlog_level = 'loud'\nlisten_address = 'http://a:1'\n\
                [[runners]]\nname = 'a'\ntoken = 'glrt-secret'\nexecutor = 'shell'\n\
                [[runners]]\nname = 'b'\nurl = 'ftp://a.example'\nexecutor = 'dcoker'\n\
                builds_dir = 'builds'\nenvironment = ['SECRET']\nlimit = 'two'\n\
                [runners.docker]\nmemory = '4 parsecs'\ncpus = 'all'\ndevices = ['a:b:c:d']\n\
                volumes = ['relative', '/']\npull_policy = ['sometimes']\nulimit = { nofile = 'x' }\n\
                log_options = { tag = 'x' }\nallowed_images = ['a[']\nhost = 'ssh://a'\n\
                security_opt = ['seccomp=/no/such/profile']\nwait_for_services_timeout = '30s'\n\
                [[runners.docker.services]]\nalias = 'a'\n";
    let text = problems(text);
    assert!(!text.contains("glrt-secret"));
    insta::assert_snapshot!(text);
}

#[test]
fn a_syntax_error_names_its_line_and_shows_nothing_of_it() {
    let text = problems("concurrent = 1\ntoken = \"glrt-secret\n");
    assert!(text.contains("line 2: not TOML"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn config_3_a_missing_file_is_an_empty_one_and_an_unreadable_one_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let loaded = load(&directory.path().join("config.toml"), &no_env).unwrap();
    assert_eq!(loaded.config.runners.len(), 0);
    let error = load(directory.path(), &no_env).unwrap_err();
    assert!(matches!(error, LoadError::Read { .. }));
}

#[test]
fn config_4_concurrent_is_one_when_absent_and_zero_is_an_error() {
    assert_eq!(checked("").config.concurrent, 1);
    assert_eq!(checked("concurrent = 7").config.concurrent, 7);
    assert!(problems("concurrent = 0").contains("concurrent = 0: must be at least 1"));
    assert!(problems("concurrent = -3").contains("at least 1"));
}

#[test]
fn config_5_an_interval_of_zero_or_less_is_three_seconds() {
    for (text, seconds) in
        [("", 3), ("check_interval = 0", 3), ("check_interval = -1", 3), ("check_interval = 9", 9)]
    {
        assert_eq!(checked(text).config.check_interval, Duration::from_secs(seconds), "{text}");
    }
}

#[test]
fn config_7_url_and_token_take_the_environment() {
    let text = with("", "")
        .replace("'https://a.example'", "'https://$HOST/x'")
        .replace("'glrt-x'", "'${T}'");
    let env = |name: &str| match name {
        "HOST" => Some("b.example".to_owned()),
        "T" => Some("glrt-t".to_owned()),
        _ => None,
    };
    let checked = check(&text, Path::new("c"), &env).unwrap();
    assert_eq!(checked.config.runners[0].gitlab.url, "https://b.example/x");
    assert_eq!(checked.config.runners[0].gitlab.token.expose(), "glrt-t");
    assert!(problems(&text).contains("`HOST` is not set"));
    let text = text.replace("https://$HOST", "https://u:hush@$HOST");
    assert!(!problems(&text).contains("hush"));
}

#[test]
fn a_runner_without_a_token_is_warned_of() {
    let text = with("", "").replace("glrt-x", " ");
    assert_eq!(
        warnings(&text),
        ["line 4: runners[0].token: is missing, so this runner asks for no jobs"]
    );
}

#[test]
fn config_8_labels_are_limited_and_those_of_a_runner_win() {
    let text =
        "labels = { team = 'a', zone = 'x' }\n".to_owned() + &with("labels = { team = 'b' }", "");
    let labels = &checked(&text).config.runners[0].labels;
    let pairs: Vec<_> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(pairs, [("team", "b"), ("zone", "x")]);
    for bad in ["ab = 'x'", "'-abc' = 'x'", "abc = ''", "abc = 'a b'", "'a/bc' = 'x'"] {
        assert!(problems(&format!("labels = {{ {bad} }}")).contains("the label's"), "{bad}");
    }
    let many: Vec<String> = (0..20).map(|n| format!("'l{n:02}' = 'x'")).collect();
    let other: Vec<String> = (0..20).map(|n| format!("'m{n:02}' = 'x'")).collect();
    let text = format!("labels = {{ {} }}\n", many.join(","))
        + &with(&format!("labels = {{ {} }}", other.join(",")), "");
    assert!(problems(&text).contains("there are 40 labels"));
}

#[test]
fn config_9_a_pull_policy_is_a_text_or_a_list() {
    use PullPolicy::{Always, IfNotPresent, Never};
    let policies = |docker: &str| one("", docker).containers.images.pull_policies;
    assert_eq!(policies(""), [Always]);
    assert_eq!(policies("pull_policy = 'never'"), [Never]);
    assert_eq!(policies("pull_policy = ['always', 'if-not-present']"), [Always, IfNotPresent]);
    assert_eq!(policies("pull_policy = []"), [Always]);
    assert_eq!(one("", "").containers.images.allowed_pull_policies, None);
    let some = one("", "allowed_pull_policies = ['never']").containers.images.allowed_pull_policies;
    assert_eq!(some, Some(vec![Never]));
}

#[test]
fn config_10_an_empty_host_is_none() {
    assert_eq!(one("", "host = ''").docker().engine.host, None);
    let tcp = "tcp://127.0.0.1:2376";
    assert_eq!(one("", &format!("host = '{tcp}'")).docker().engine.host.as_deref(), Some(tcp));
}

#[test]
fn config_11_privileged_services_have_three_states() {
    let state = |docker: &str| one("", docker).containers.privileges.services;
    assert_eq!(state(""), None);
    assert_eq!(state("services_privileged = true"), Some(true));
    assert_eq!(state("services_privileged = false"), Some(false));
}

#[test]
fn config_12_docker_92_services_are_waited_for_thirty_seconds_or_not_at_all() {
    let wait =
        |docker: &str| one("", docker).containers.services.ready_timeout.map(|d| d.as_secs());
    assert_eq!(wait(""), Some(30));
    assert_eq!(wait("wait_for_services_timeout = 0"), Some(30));
    assert_eq!(wait("wait_for_services_timeout = 5"), Some(5));
    assert_eq!(wait("wait_for_services_timeout = -1"), None);
}

#[test]
fn config_13_config_14_odd_spellings_are_taken_as_they_are() {
    let runner = one("tls-ca-file = '/dev/null'", "ipcmode = 'host'\npid_mode = 'host'");
    assert_eq!(runner.docker().kernel.ipc_mode.as_deref(), Some("host"));
    assert_eq!(runner.docker().kernel.pid_mode.as_deref(), Some("host"));
    assert_eq!(runner.gitlab.tls.ca.as_deref(), Some(Path::new("/dev/null")));
    assert_eq!(warnings(&with("", "ipc_mode = 'host'")).len(), 1);
}

const S3: &str =
    "ServerAddress = 's3.example:9000'\nAccessKey = 'a'\nSecretKey = 'hush'\nBucketName = 'b'\n";

fn cache(s3: &str) -> (CacheOf, Vec<String>) {
    let text = with("", "") + "[runners.cache]\nType = 's3'\n[runners.cache.s3]\n" + s3;
    let checked = checked(&text);
    let warnings = checked.warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(!warnings.join("\n").contains("hush"));
    (checked.config.runners[0].cache.s3.clone(), warnings)
}

type CacheOf = Option<crate::config::S3Config>;

#[test]
fn config_15_keys_of_the_cache_are_read_in_any_letter_case() {
    let text = with("", "")
        + "[runners.cache]\ntype = 's3'\npath = 'p'\nSHARED = true\n[runners.cache.S3]\n"
        + &S3.to_lowercase();
    let checked = checked(&text);
    assert_eq!(checked.warnings, []);
    let cache = &checked.config.runners[0].cache;
    assert_eq!((cache.path.as_str(), cache.shared), ("p", true));
    assert_eq!(cache.s3.as_ref().unwrap().bucket, "b");
}

#[test]
fn config_16_credentials_decide_how_to_log_in() {
    let (s3, warnings) = cache(S3);
    assert_eq!(warnings, [""; 0]);
    let s3 = s3.unwrap();
    assert_eq!(s3.endpoint.as_str(), "https://s3.example:9000/");
    assert_eq!((s3.region.as_str(), s3.secret_key.expose()), ("us-east-1", "hush"));
    // Without one of the three the machine's role would be asked; named, the keys alone do.
    let amazon = S3.replace("ServerAddress = 's3.example:9000'\n", "");
    assert!(cache(&amazon).0.is_none());
    let named = amazon.clone() + "AuthenticationType = 'Access-Key'\nBucketLocation = 'eu-west-1'";
    assert_eq!(cache(&named).0.unwrap().endpoint.as_str(), "https://s3.eu-west-1.amazonaws.com/");
    for (more, says) in [
        ("AuthenticationType = 'iam'", "`iam` is not supported"),
        ("AuthenticationType = 'magic'", "must be access-key or iam"),
        ("RoleARN = 'arn:aws:iam::1:role/x'", "roles are not supported"),
        ("UploadRoleARN = 'arn:aws:iam::1:role/x'", "roles are not supported"),
    ] {
        let (s3, warnings) = cache(&format!("{S3}{more}"));
        assert!(s3.is_none() && warnings.len() == 1 && warnings[0].contains(says), "{warnings:?}");
    }
    let (s3, warnings) = cache(&S3.replace("BucketName = 'b'\n", ""));
    assert!(s3.is_none() && warnings[0].contains("BucketName"), "{warnings:?}");
}

#[test]
fn config_17_the_bucket_is_in_the_path_but_at_amazon_and_google() {
    let path_style = |address: &str, more: &str| {
        let text = S3.replace("s3.example:9000", address) + more;
        cache(&text).0.unwrap().path_style
    };
    assert!(path_style("s3.example:9000", ""));
    assert!(!path_style("s3.eu-west-1.amazonaws.com", ""));
    assert!(!path_style("storage.googleapis.com", ""));
    assert!(path_style("s3.amazonaws.com.evil.example", ""));
    assert!(path_style("s3.amazonaws.com", "PathStyle = true"));
    assert!(!path_style("s3.example", "PathStyle = false"));
    let (s3, _) = cache(&format!("{S3}Insecure = true").replace(":9000", ":80"));
    assert_eq!(s3.unwrap().endpoint.as_str(), "http://s3.example/");
}

#[test]
fn other_stores_mean_local_caches_and_are_warned_of() {
    for kind in ["gcs", "azure", "floppy"] {
        let text = with("", "") + &format!("[runners.cache]\nType = '{kind}'\n");
        let checked = checked(&text);
        assert_eq!(checked.config.runners[0].cache.s3, None);
        assert!(checked.warnings[0].message.contains("no remote cache"));
    }
}

#[test]
fn flags_without_effect_are_warned_of_and_kept() {
    let text = with("", "")
        + "[runners.feature_flags]\nFF_NETWORK_PER_BUILD = true\nFF_CONCRETE = true\nFF_X = false\n";
    let checked = checked(&text);
    assert_eq!(checked.config.runners[0].feature_flags.len(), 3);
    insta::assert_snapshot!(
        checked.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn config_20_a_limit_of_zero_or_less_is_none() {
    assert_eq!(one("", "").limit, 0);
    assert_eq!(one("limit = -1", "").limit, 0);
    assert_eq!(one("limit = 4", "").limit, 4);
}

#[test]
fn docker_40_limits_land_in_their_fields() {
    let docker = one(
        "",
        "memory = '512m'\nmemory_swap = '-1'\nmemory_reservation = '256m'\ncpus = '1/2'\n\
         cpuset_cpus = '0-1'\ncpuset_mems = '0'\ncpu_shares = 512\nshm_size = 1024\n\
         service_memory = '1g'\nservice_cpus = '2'\ngpus = 'all'\nservice_gpus = '1'\n\
         sysctls = { 'net.core.somaxconn' = '1024' }\nulimit = { nofile = '1:2' }\n\
         services_devices = { 'docker*' = ['/dev/fuse'] }",
    );
    let docker = docker.docker();
    assert_eq!(docker.limits.memory, Some(512 << 20));
    assert_eq!(docker.limits.memory_swap, Some(-1));
    assert_eq!(docker.limits.nano_cpus, Some(500_000_000));
    assert_eq!(docker.limits.cpuset_mems.as_deref(), Some("0"));
    assert_eq!(docker.limits.cpu_shares, Some(512));
    assert_eq!(docker.service_limits.memory, Some(1 << 30));
    assert_eq!(docker.service_limits.nano_cpus, Some(2_000_000_000));
    assert_eq!(docker.kernel.shm_size, 1024);
    assert_eq!((docker.devices.gpus.as_str(), docker.devices.service_gpus.as_str()), ("all", "1"));
    assert_eq!((docker.kernel.ulimits[0].soft, docker.kernel.ulimits[0].hard), (1, 2));
    assert_eq!(docker.devices.services[0].1[0].container.as_str(), "/dev/fuse");
}

#[test]
fn docker_17_a_runner_needs_its_docker_table() {
    let text = with("", "").replace("[runners.docker]", "");
    assert!(problems(&text).contains("runners[0].docker: the docker executor needs this table"));
}

#[test]
fn docker_38_user_and_allowed_users_are_kept_apart() {
    let users = one("", "user = 'ci'").containers.users;
    assert_eq!((users.user.as_deref(), users.allowed.len()), (Some("ci"), 0));
}

#[test]
fn docker_44_a_seccomp_profile_is_read_and_inlined() {
    let directory = tempfile::tempdir().unwrap();
    let profile = directory.path().join("profile.json");
    fs::write(&profile, "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n").unwrap();
    let docker = format!(
        "security_opt = ['seccomp={}', 'seccomp=unconfined', 'no-new-privileges']",
        profile.display()
    );
    let options = one("", &docker).docker().security.options.clone();
    let inlined = "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}";
    assert_eq!(options, [inlined, "seccomp=unconfined", "no-new-privileges"]);
    fs::write(&profile, "not json").unwrap();
    assert!(problems(&with("", &docker)).contains("is not JSON"));
}

#[test]
fn docker_45_only_two_log_options_are_allowed() {
    assert_eq!(one("", "log_options = { env = 'A', labels = 'b' }").docker().log_options.len(), 2);
    let text = problems(&with("", "log_options = { 'max-size' = '1m' }"));
    assert!(text.contains("runners[0].docker.log_options.max-size: only `env` and `labels`"));
}

#[test]
fn docker_99_empty_lists_of_what_is_allowed_mean_all() {
    let images = one("", "allowed_images = []").containers.images;
    assert!(images.allowed.is_empty() && images.allowed_services.is_empty());
}

#[test]
fn what_a_daemon_of_a_job_is_like_is_read_and_defaults_to_a_sidecar() {
    let default = one("", "").containers;
    assert_eq!((default.dind.mode, default.socket.mode), (DindMode::Sidecar, SocketMode::Off));
    assert_eq!(default.dind.ready_timeout, Duration::from_mins(1));
    assert_eq!((default.dind.storage, default.dind.slots), (DindStorage::Fresh, 10));
    let slot = one("", "[runners.docker.dind]\nstorage = 'slot'").containers.dind;
    assert_eq!((slot.storage, slot.slot_size), (DindStorage::Slot, 20 << 30));
    let dind = one(
        "",
        "[runners.docker.dind]\nmode = 'refuse'\nimages = ['x:*']\nstorage = 'fresh'\n\
         network = 'shared'\nwarm = 0\nregistry_mirrors = ['http://m:5000']\n\
         insecure_registries = ['r:5000', '10.0.0.0/8']\nready_timeout = '90s'\n\
         slots = 3\nslot_size = '2g'",
    )
    .containers
    .dind;
    let warm = one("", "[runners.docker.dind]\nwarm = 2").containers.dind;
    assert_eq!((default.dind.warm, warm.warm), (0, 2));
    let wanted = DindConfig {
        mode: DindMode::Refuse,
        images: vec!["x:*".to_owned()],
        network: DindNetwork::Shared,
        registry_mirrors: vec!["http://m:5000".to_owned()],
        insecure_registries: ["r:5000", "10.0.0.0/8"].map(str::to_owned).to_vec(),
        ready_timeout: Duration::from_secs(90),
        storage: DindStorage::Fresh,
        slots: 3,
        slot_size: 2 << 30,
        warm: 0,
    };
    assert_eq!(dind, wanted);
}

#[test]
fn daemons_that_wait_have_a_limit_and_are_none_where_no_job_takes_them() {
    let warm = |keys: &str| with("", &format!("[runners.docker.dind]\n{keys}"));
    assert!(problems(&warm("warm = 51")).contains("is above 50"));
    assert!(problems(&warm("warm = -1")).contains("out of range"));
    for never in ["mode = 'socket'", "network = 'shared'", "storage = 'slot'"] {
        let text = format!("warm = 2\n{never}");
        assert_eq!(checked(&warm(&text)).config.runners[0].containers.dind.warm, 0);
        let said = warnings(&warm(&text)).join("\n");
        assert!(said.contains("no daemon waits"), "{never}: {said}");
    }
}

#[test]
fn ways_to_docker_that_do_not_exist_are_refused_by_name() {
    let text = problems(&with(
        "",
        "[runners.docker.dind]\nmode = 'sock'\nnetwork = 'host'\nstorage = 'old'\n\
         registry_mirrors = ['m:5000']\ninsecure_registries = ['http://r']\n\
         [runners.docker.socket]\nmode = 'open'\nbuild = 'kit'\n\
         registries = ['http://r/x']\nextra_capabilities = ['ALL']\naudit_log = 'audit'\n\
         [runners.docker.socket.limits]\nmemory = 'much'\npids = 0\n\
         total_memory = '0'\ntotal_cpus = 'all'\ntotal_pids = 0",
    ));
    insta::assert_snapshot!(text);
}

#[test]
fn what_jobs_get_of_the_engines_socket_is_read_and_said() {
    let text = with(
        "",
        "[runners.docker.socket]\nmode = 'guarded'\nshared_images = ['debian:*']\n\
         build = 'sidecar'\nbuildkit_image = 'r:5000/kit:rootless'\n\
         registries = ['r:5000']\nremove_images = false\nextra_capabilities = ['cap_sys_ptrace']\n\
         allowed_devices = ['/dev/kvm']\naudit_log = '/var/log/a'\n\
         [runners.docker.socket.limits]\nmemory = '1g'\ncpus = '1.5'\npids = 100\ncontainers = 3\n\
         total_memory = '4g'\ntotal_cpus = '2.5'\ntotal_pids = 300",
    );
    let checked = checked(&text);
    assert_eq!(checked.warnings, []);
    let wanted = SocketConfig {
        mode: SocketMode::Guarded,
        build: SocketBuild::Sidecar,
        buildkit_image: "r:5000/kit:rootless".to_owned(),
        shared_images: vec!["debian:*".to_owned()],
        registries: vec!["r:5000".to_owned()],
        remove_images: false,
        limits: SocketLimits {
            memory: Some(1 << 30),
            nano_cpus: Some(1_500_000_000),
            pids: Some(100),
            total_memory: Some(4 << 30),
            total_nano_cpus: Some(2_500_000_000),
            total_pids: Some(300),
            containers: Some(3),
            networks: None,
            volumes: None,
        },
        extra_capabilities: vec!["SYS_PTRACE".to_owned()],
        allowed_devices: vec!["/dev/kvm".to_owned()],
        allowed_runtimes: Vec::new(),
        audit_log: Some("/var/log/a".into()),
        ..SocketConfig::default()
    };
    assert_eq!(checked.config.runners[0].containers.socket, wanted);

    let mounted = "volumes = ['/cache', '/var/run/docker.sock:/var/run/docker.sock']";
    let guarded = warnings(&with("", mounted)).join("\n");
    assert!(guarded.contains("jobs get a guarded socket in place"), "{guarded}");
    let raw = format!("{mounted}\n[runners.docker.socket]\nmode = 'raw'");
    assert!(!warnings(&with("", &raw)).join("\n").contains("build"));
    let raw = warnings(&with("", &format!("{raw}\nbuild = 'off'"))).join("\n");
    assert!(raw.contains("are root on its host"), "{raw}");
    assert!(raw.contains("socket.build: has no effect where mode is raw"), "{raw}");
}

#[test]
fn where_a_guard_runs_is_read_and_defaults_to_where_it_can() {
    let default = one("", "").containers.socket;
    assert_eq!((default.guard, default.engine_socket), (GuardPlace::Auto, None));
    let text = "[runners.docker.socket]\nguard = 'sidecar'\nengine_socket = '/run/d.sock'";
    let socket = one("", text).containers.socket;
    assert_eq!(
        (socket.guard, socket.engine_socket),
        (GuardPlace::Sidecar, Some("/run/d.sock".into()))
    );
    let here = "[runners.docker.socket]\nguard = 'here'";
    assert_eq!(one("", here).containers.socket.guard, GuardPlace::Here);
    insta::assert_snapshot!(problems(&with(
        "",
        &format!("host = 'tcp://engine:2376'\n{here}\nengine_socket = 'unix:///run/d.sock'"),
    )));
    insta::assert_snapshot!(problems(&with(
        "",
        "[runners.docker.socket]\nguard = 'container'\nengine_socket = 'd.sock'",
    )));
}

#[test]
fn docker_107_108_volumes_are_checked_and_kept_as_written() {
    let volumes = |list: &str| with("", &format!("volumes = {list}"));
    let kept = checked(&volumes("['/cache', '/host:/dst:ro', '/b/$X:rw']"));
    assert_eq!(
        kept.config.runners[0].containers.volumes.entries,
        ["/cache", "/host:/dst:ro", "/b/$X:rw"]
    );
    assert!(problems(&volumes("['/a', '/b:/a/']")).contains("its destination is there twice"));
    assert!(problems(&volumes("['/']")).contains("must not be `/`"));
}

#[test]
fn stage_timeouts_of_zero_are_ignored_with_a_warning() {
    assert_eq!(one("prepare_timeout = '10m'", "").timeouts.prepare, Some(Duration::from_mins(10)));
    let text = with("get_sources_timeout = '0s'", "");
    assert_eq!(checked(&text).config.runners[0].timeouts.get_sources, None);
    assert_eq!(warnings(&text).len(), 1);
}

#[test]
fn an_address_gets_the_port_of_the_metrics() {
    for (text, address) in
        [("a", "a:9252"), (":1", ":1"), ("[::1]", "[::1]:9252"), ("[::1]:80", "[::1]:80")]
    {
        assert_eq!(parse_listen_address(text).as_deref(), Ok(address));
    }
    assert!(parse_listen_address("https://a").is_err());
    assert!(parse_listen_address("a:http").is_err());
}

/// The example with its defaults taken out of their comments, and those keys alone.
fn example(examples_too: bool) -> String {
    let text = include_str!("../../../config.example.toml");
    let mut out = String::new();
    for line in text.lines() {
        let line = match (line.strip_prefix("#? "), line.strip_prefix('#')) {
            (Some(example), _) if examples_too => example,
            (None, Some(default)) if !default.starts_with(' ') => default,
            (None, None) => line,
            _ => "",
        };
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[test]
fn the_example_is_the_defaults_in_code() {
    let minimal = "[[runners]]\nurl = 'https://gitlab.example.com/'\ntoken = 'glrt-…'\n\
                   executor = 'docker'\n[runners.docker]\n";
    let example = checked(&example(false));
    assert_eq!(example.warnings, []);
    assert_eq!(example.config, checked(minimal).config);
}

#[test]
fn the_example_has_every_key_that_is_known_and_no_other() {
    let path = Path::new("config.example.toml");
    let text = example(true);
    let (checked, asked) = check_and_list_keys(&text, path, &no_env).unwrap();
    assert_eq!(checked.warnings, []);
    let document = toml_edit::Document::parse(text.as_str()).unwrap();
    let mut present = BTreeSet::new();
    collect(document.as_item(), "", &mut present);
    let missing: Vec<_> = asked
        .iter()
        .filter(|key| !present.contains(*key))
        .filter(|key| !is_without_effect(key))
        .collect();
    assert_eq!(missing, [""; 0], "keys that the example does not name");
}

/// Keys of gitlab-runner that are known and do nothing, with all below them.
const WITHOUT_EFFECT: &[&str] = &[
    "session_server",
    "user",
    "sentry_dsn",
    "machine",
    "experimental",
    "runners.use_slot_cgroups",
    "runners.slot_cgroup_template",
    "runners.proxy_exec",
    "runners.step_runner_image",
    "runners.monitoring",
    "runners.referees",
    "runners.experimental",
    "runners.kubernetes",
    "runners.custom",
    "runners.ssh",
    "runners.parallels",
    "runners.virtualbox",
    "runners.machine",
    "runners.instance",
    "runners.autoscaler",
    "runners.docker.helper_image_flavor",
    "runners.docker.service_slot_cgroup_template",
    "runners.docker.services.suspend_data_path",
    "runners.cache.gcs",
    "runners.cache.azure",
    "runners.cache.s3.ServerSideEncryption",
    "runners.cache.s3.ServerSideEncryptionKeyID",
    "runners.cache.s3.DualStack",
    "runners.cache.s3.Accelerate",
    "runners.cache.s3.RoleARN",
    "runners.cache.s3.UploadRoleARN",
    "runners.cache.s3.AssumeRoleMaxConcurrency",
    "runners.cache.s3.DisableAssumeRoleCredentialsCaching",
];

fn is_without_effect(key: &str) -> bool {
    let below = |table: &&str| {
        key.strip_prefix(*table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    WITHOUT_EFFECT.iter().any(below)
}

const REFERENCE: &str = include_str!("../../../docs/configuration.md");

/// The keys of the reference's tables with their defaults, as written; headings name the tables.
fn reference() -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut path = String::new();
    for line in REFERENCE.lines() {
        if line.starts_with('#') {
            path = match line.split_once('`') {
                Some((_, table)) => table.trim_matches(['[', ']', '`']).to_owned() + ".",
                None => String::new(),
            };
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.split(" | ").collect();
            let key = cells[0].trim_end_matches('`');
            assert_eq!(cells.len(), 4, "{line}");
            let old = keys.insert(format!("{path}{key}"), cells[2].trim_matches('`').to_owned());
            assert_eq!(old, None, "{line}");
        }
    }
    keys
}

/// The keys of the example with their defaults; without one for those that have none.
fn defaults_of_the_example() -> BTreeMap<String, String> {
    let mut defaults = BTreeMap::new();
    let mut path = String::new();
    for line in include_str!("../../../config.example.toml").lines() {
        let has_default = line.starts_with('#') && !line.starts_with("#?");
        let line = line.strip_prefix("#? ").or(line.strip_prefix('#')).unwrap_or(line);
        if let Some(table) = line.strip_prefix('[') {
            path = table.trim_matches(['[', ']']).to_owned() + ".";
        } else if let Some((key, value)) = line.split_once(" = ")
            && !line.starts_with(' ')
        {
            let value = if has_default { value } else { "–" };
            defaults.insert(format!("{path}{key}"), value.to_owned());
        }
    }
    defaults
}

#[test]
fn the_reference_has_every_key_that_is_known_and_no_other() {
    let path = Path::new("config.example.toml");
    let (_, asked) = check_and_list_keys(&example(true), path, &no_env).unwrap();
    let reference = reference();
    let is_table = |key: &str| asked.iter().any(|other| other.starts_with(&format!("{key}.")));
    // Its keys are names of flags, which are listed elsewhere.
    let is_open = |key: &str| key == "runners.feature_flags";
    let missing: Vec<_> = asked
        .iter()
        .filter(|key| !reference.contains_key(*key))
        .filter(|key| !is_table(key) && !is_open(key) && !is_without_effect(key))
        .collect();
    assert_eq!(missing, [""; 0], "keys that docs/configuration.md does not name");
    let unknown: Vec<_> = reference
        .keys()
        .filter(|key| !asked.contains(*key) && !key.starts_with("runners.feature_flags."))
        .collect();
    assert_eq!(unknown, [""; 0], "keys of docs/configuration.md that do not exist");
    let unnamed: Vec<_> =
        WITHOUT_EFFECT.iter().filter(|key| !REFERENCE.contains(&format!("`{key}`"))).collect();
    assert_eq!(unnamed, [&""; 0], "keys without effect that docs/configuration.md does not name");
}

#[test]
fn the_reference_names_the_defaults_of_the_example() {
    let mut defaults = defaults_of_the_example();
    defaults.retain(|key, _| !key.starts_with("runners.feature_flags."));
    let mut reference = reference();
    reference.retain(|key, _| !key.starts_with("runners.feature_flags."));
    assert_eq!(reference, defaults);
}

fn collect(item: &toml_edit::Item, path: &str, keys: &mut BTreeSet<String>) {
    if !path.is_empty() {
        keys.insert(path.to_owned());
    }
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    if let Some(array) = item.as_array_of_tables() {
        for (key, item) in array.iter().flat_map(|table| table.iter()) {
            collect(item, &join(key), keys);
        }
    } else if let Some(table) = item.as_table() {
        for (key, item) in table {
            collect(item, &join(key), keys);
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_check_panic(text in "(\\PC|\n){0,200}", key in "[a-z_]{1,12}", value in "\\PC{0,20}") {
        let _ = check(&text, Path::new("c"), &no_env);
        let _ = check(&with(&format!("{key} = {value:?}"), &format!("{key} = {value:?}")), Path::new("c"), &no_env);
    }
}

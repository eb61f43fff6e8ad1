use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::guard::{
    ownership::{Owned, OwnedContainer},
    policy::context::{EngineFacts, PolicyContext},
    refusal::Refusal,
    settings::{GuardSettings, Mapping},
};

use super::{
    container::{commit, container_create, exec_create, exec_start},
    host::table::container_update,
    needs::Judged,
    network::{network_connect, network_create},
    volume::volume_create,
};

fn context() -> PolicyContext {
    let identity = ("longshore.guard".to_owned(), "1".to_owned());
    let mut settings = GuardSettings::new("1", identity, "net", std::path::Path::new("/private"));
    settings.workspace =
        vec![Mapping { job: "/builds/p".into(), host: "/host".into(), read_only: false }];
    let mut owned = Owned::default();
    let name = OwnedContainer::new("own");
    owned.containers.add("a".repeat(64), name);
    owned.networks.add("b".repeat(64), "mine");
    owned.volumes.add("data");
    let facts = EngineFacts {
        version: (1, 41),
        network_id: "c".repeat(64),
        network: "net".to_owned(),
        gateway: "172.18.0.1".to_owned(),
        nano_cpus: 8_000_000_000,
        runtime: "runc".to_owned(),
    };
    PolicyContext { settings: Arc::new(settings), facts: Arc::new(facts), owned: Arc::new(owned) }
}

#[expect(clippy::needless_pass_by_value, reason = "bodies are written in place")]
fn create(body: Value) -> Result<Judged, Refusal> {
    container_create(body.as_object().unwrap(), &context())
}

#[test]
fn g_2_a_body_is_built_from_nothing() {
    let judged = create(json!({
        "Image": "x", "Cmd": ["a"], "Env": ["A=b"], "Labels": {"a": "b"},
        "HostConfig": {
            "Binds": ["/builds/p/x:/x:ro", "data:/d", "new:/n", "/anonymous"],
            "NetworkMode": "mine",
            "PortBindings": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]},
            "RestartPolicy": {"Name": "always"},
            "VolumesFrom": ["own:ro"], "Links": ["own:db"],
            "ExtraHosts": ["host.docker.internal:host-gateway"],
            "MaskedPaths": [], "ReadonlyPaths": null, "Privileged": false, "Isolation": "default",
        },
        "NetworkingConfig": {"EndpointsConfig": {"mine": {"Aliases": ["y"], "IPAddress": "1.2.3.4"}}},
    }))
    .unwrap();
    insta::assert_json_snapshot!(judged.body);
    assert_eq!(judged.needs.volumes, ["new"]);
    assert_eq!(judged.needs.binds[0].job, "/builds/p/x");
    assert_eq!(judged.needs.volumes_from, ["a".repeat(64)]);
}

#[test]
fn g_37_zero_fields_of_clients_are_dropped() {
    let judged = create(json!({
        "Image": "x", "Volumes": {}, "OnBuild": null, "MacAddress": "", "Tomorrow": "",
        "HostConfig": {"Devices": [], "CpuCount": 0, "ConsoleSize": [0, 0], "UTSMode": "",
            "BlkioDeviceReadBps": null, "Tomorrow": false, "MemorySwappiness": -1},
        "NetworkingConfig": {"EndpointsConfig": {}},
    }))
    .unwrap();
    let host = judged.body["HostConfig"].as_object().unwrap();
    for field in
        ["Devices", "CpuCount", "UTSMode", "Tomorrow", "BlkioDeviceReadBps", "MemorySwappiness"]
    {
        assert!(!host.contains_key(field), "{field}");
    }
    assert!(!judged.body.contains_key("Tomorrow"));
}

#[test]
fn g_80_limits_are_forced_and_cannot_be_stretched() {
    let judged = create(json!({"Image": "x"})).unwrap();
    let host = &judged.body["HostConfig"];
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&json!(2_i64 << 30), &json!(2_i64 << 30)));
    assert_eq!((&host["PidsLimit"], &host["NanoCpus"]), (&json!(1024), &json!(2_000_000_000)));
    for field in [
        json!({"CpuPeriod": 1000, "CpuQuota": 1_000_000}),
        json!({"NanoCpus": 2_000_000_001_i64}),
        json!({"CpuPeriod": 1_000_000, "NanoCpus": 1}),
        json!({"Memory": 1 << 20, "MemorySwap": 1_i64 << 40}),
        json!({"ShmSize": 1_i64 << 40}),
    ] {
        let refusal = create(json!({"Image": "x", "HostConfig": field})).unwrap_err();
        assert_eq!(refusal.rule, "G-80", "{field}");
    }
    let judged = create(json!({"Image": "x", "HostConfig": {"CpuPeriod": 50_000}})).unwrap();
    assert_eq!(judged.body["HostConfig"]["CpuQuota"], 100_000);
}

#[test]
fn g_48_names_are_not_ids_or_the_runners() {
    let settings = &context().settings;
    for good in ["web", "project-web-1", "a.b_c"] {
        assert!(settings.may_name(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "a",
        "-x",
        "a/b",
        "deadbeefcafe",
        "DEADBEEFCAFE",
        "bridge",
        "host",
        "net",
        "longshore-x",
        "runner-x",
    ] {
        assert!(settings.may_name(bad).is_err(), "{bad}");
    }
}

/// All names of fields in a body that are somebody's keys and not data.
fn fields_of(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    // Their keys are names, paths and options, each judged as such.
    const MAPS: [&str; 10] = [
        "Labels",
        "Volumes",
        "ExposedPorts",
        "Tmpfs",
        "Sysctls",
        "PortBindings",
        "EndpointsConfig",
        "Annotations",
        "Config",
        "Options",
    ];
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let is_data = path.rsplit('.').next().is_some_and(|last| MAPS.contains(&last));
                let inner = if is_data { format!("{path}[]") } else { format!("{path}.{key}") };
                if !is_data {
                    out.insert(inner.clone());
                }
                fields_of(value, &inner, out);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields_of(item, path, out)),
        _ => {}
    }
}

/// Every field that any body of a container may have when it is sent on.
const JUDGED: &str = "Cmd Entrypoint Env User WorkingDir Hostname Domainname Tty OpenStdin StdinOnce \
    AttachStdin AttachStdout AttachStderr ExposedPorts Healthcheck StopSignal StopTimeout Shell ArgsEscaped \
    NetworkDisabled Volumes Labels MacAddress Image HostConfig NetworkingConfig EndpointsConfig Test Interval \
    Timeout StartPeriod StartInterval Retries Binds Mounts Tmpfs VolumesFrom NetworkMode PortBindings Dns \
    DnsOptions DnsSearch ExtraHosts GroupAdd PidMode IpcMode CgroupnsMode CapAdd CapDrop SecurityOpt Sysctls \
    Ulimits Runtime LogConfig RestartPolicy AutoRemove Init ReadonlyRootfs ConsoleSize OomScoreAdj Memory \
    MemorySwap MemoryReservation NanoCpus CpuQuota CpuPeriod CpuShares PidsLimit ShmSize BlkioWeight Type Source \
    Target ReadOnly BindOptions VolumeOptions TmpfsOptions NoCopy Subpath SizeBytes Mode Options \
    ReadOnlyNonRecursive HostIp HostPort Name Soft Hard MaximumRetryCount Config Aliases Links IPAMConfig \
    GwPriority IPv4Address IPv6Address LinkLocalIPs";

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..5000).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "host",
            "private",
            "container:own",
            "bridge",
            "mine",
            "/:/x",
            "/builds/p:/x",
            "data:/d",
            "bind",
            "volume",
            "ALL",
            "CHOWN",
            "unconfined",
            "/builds/p",
            "always",
            "80/tcp",
            "json-file",
            "own",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((names(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Names that the engine knows, judged or not, and some in other spellings.
fn names() -> impl Strategy<Value = String> {
    let engine = "Privileged Devices DeviceCgroupRules DeviceRequests UTSMode UsernsMode Cgroup CgroupParent \
        MaskedPaths ReadonlyPaths StorageOpt VolumeDriver PublishAllPorts OomKillDisable Propagation DriverConfig \
        DriverOpts privileged hostconfig binds Tomorrow NetworkID ContainerIDFile";
    let all: Vec<String> =
        JUDGED.split_whitespace().chain(engine.split_whitespace()).map(str::to_owned).collect();
    prop::sample::select(all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn g_1_what_is_sent_on_has_only_fields_that_were_judged(
        top in prop::collection::btree_map(names(), values(), 0..3),
        host in prop::collection::btree_map(names(), values(), 0..2),
    ) {
        let mut body: Map<String, Value> = top.into_iter().collect();
        body.insert("HostConfig".to_owned(), json!(host));
        if let Ok(judged) = container_create(&body, &context()) {
            let mut found = BTreeSet::new();
            fields_of(&Value::Object(judged.body.clone()), "", &mut found);
            for path in found {
                let last = path.rsplit('.').next().unwrap();
                prop_assert!(JUDGED.split_whitespace().any(|known| known == last), "{path}");
            }
            let sent = judged.body["HostConfig"].clone();
            prop_assert!(sent["Memory"].as_i64().is_some_and(|n| (1..=2 << 30).contains(&n)));
            prop_assert!(sent["PidsLimit"].as_i64().is_some_and(|n| (1..=1024).contains(&n)));
            for mode in ["NetworkMode", "PidMode", "IpcMode", "CgroupnsMode"] {
                prop_assert_ne!(&sent[mode], "host");
            }
            for bind in sent["Binds"].as_array().into_iter().flatten() {
                let text = bind.as_str().unwrap();
                let is_anonymous = text.starts_with('/') && !text.contains(':');
                prop_assert!(is_anonymous || !text.starts_with('/'), "{text}");
            }
            for mount in sent["Mounts"].as_array().into_iter().flatten() {
                prop_assert!(!mount["Source"].as_str().unwrap_or_default().starts_with('/'));
            }
            prop_assert_eq!(&judged.body["Labels"]["longshore.guard"], "1");
        }
    }

    #[test]
    fn no_other_body_panics_or_lets_a_field_through(
        body in prop::collection::btree_map(names(), values(), 0..6),
    ) {
        let (body, context) = (body.into_iter().collect(), context());
        for judged in [
            exec_create(&body, &context), exec_start(&body, &context), container_update(&body, &context),
            commit(&body, &context), network_connect(&body, &context), volume_create(&body, &context),
            network_create(&body, &context).map(|judged| judged.body),
        ].into_iter().flatten() {
            for field in ["Privileged", "Devices", "Tomorrow", "Binds", "HostConfig", "privileged"] {
                prop_assert!(!judged.contains_key(field));
            }
        }
    }
}

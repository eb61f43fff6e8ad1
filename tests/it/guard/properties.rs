//! What is sent on never has a field that was not judged: bodies made of known and unknown keys in
//! odd spellings, nested and of wrong types, against the list in `allowed`.

use longshore::guard::{
    Refusal,
    parse::target,
    policy::{self, Call, Verdict},
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};

use super::allowed;

/// How many bodies each property sees.
const CASES: u32 = 20_000;

/// Fields of bodies, with values that are all right in most cases.
fn known() -> Vec<(&'static str, Value)> {
    [
        ("Image", json!(["busybox"])),
        ("Cmd", json!([["a"], "a", null, []])),
        ("Entrypoint", json!([["a", "b"], "x"])),
        ("Env", json!([["A=b"], []])),
        ("User", json!(["0", ""])),
        ("Tty", json!([true, false])),
        ("ExposedPorts", json!([{"80/tcp": {}}, {"1-9/udp": {"a": 1}}])),
        ("Volumes", json!([{"/x": {}}, {"/y": {"a": "b"}}, {"/:/x": {}}])),
        ("Labels", json!([{"a": "b"}, {}, {"longshore.job": "2"}, {" Longshore.x": "y"}])),
        ("MacAddress", json!(["", "02:42:ac:11:00:02", "zz"])),
        ("Healthcheck", json!([{"Test": ["CMD", "x"], "Interval": 5}, {"Evil": true}])),
        ("StopTimeout", json!([5, -1])),
        ("OnBuild", json!([[], ["RUN x"]])),
        ("Binds", json!([
            ["/builds/p/x:/x"], ["data:/x:ro,nocopy", "new:/y"], ["/x"], ["/cache:/c:rw"],
            ["/var/run/docker.sock:/s"], ["/etc:/x"], ["@bind-0@:/x"], ["longshore-x:/x"],
            ["/builds/p:/x", "/cache/../builds/p/y:/y"],
        ])),
        ("Mounts", json!([
            [{"Type": "bind", "Source": "/builds/p", "Target": "/x"}],
            [{"Type": "bind", "Source": "/cache/x", "Target": "/x", "BindOptions": {"Propagation": "rprivate"}}],
            [{"Type": "bind", "Source": "/cache", "Target": "/x", "BindOptions": {"Propagation": "shared"}}],
            [{"Type": "volume", "Source": "data", "Target": "/x", "VolumeOptions": {"Subpath": "a/b"}}],
            [{"Type": "volume", "Target": "/x", "VolumeOptions": {"DriverConfig": {"Name": "local"}}}],
            [{"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"SizeBytes": 1024, "Options": [["noexec"]]}}],
            [{"Type": "tmpfs", "Target": "/x"}],
            [{"Type": "cluster", "Target": "/x"}],
        ])),
        ("Tmpfs", json!([{"/x": "size=1m,mode=1777"}, {"/x": ""}, {"/x": "bind"}])),
        ("VolumesFrom", json!([["own:ro"], ["own"], ["self"], ["own:z"]])),
        ("VolumeDriver", json!(["", "local", "evil"])),
        ("NetworkMode", json!(["", "default", "bridge", "mine", "none", "host", "container:own",
            "container:self", "net", "other"])),
        ("PortBindings", json!([
            {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}, {"80/tcp": []},
            {"80/tcp": [{"HostPort": "80"}]}, {"80": [{"HostPort": "2000-3000"}]},
        ])),
        ("PublishAllPorts", json!([true, false])),
        ("Links", json!([["own:db"], ["own"], ["other:x"]])),
        ("ExtraHosts", json!([["a:host-gateway"], ["b:1.2.3.4"]])),
        ("PidMode", json!(["", "container:own", "host"])),
        ("IpcMode", json!(["", "private", "shareable", "container:own", "host"])),
        ("UTSMode", json!(["", "host"])),
        ("UsernsMode", json!(["", "host"])),
        ("CgroupnsMode", json!(["", "private", "host"])),
        ("CgroupParent", json!(["", "/"])),
        ("Privileged", json!([false, true, 1])),
        ("CapAdd", json!([["chown"], ["CAP_MKNOD"], ["ALL"], ["SYS_ADMIN"], []])),
        ("CapDrop", json!([["ALL"], ["CAP_KILL"], null])),
        ("SecurityOpt", json!([["no-new-privileges"], [], ["seccomp=unconfined"]])),
        ("MaskedPaths", json!([[], null, ["/x"]])),
        ("Devices", json!([[], [{"PathOnHost": "/dev/kvm"}]])),
        ("Sysctls", json!([{"net.core.somaxconn": "1"}, {"kernel.sem": "1"}, {"kernel.x": "1"}])),
        ("Ulimits", json!([[{"Name": "nofile", "Soft": 1, "Hard": 2}], [{"Name": "core", "Soft": -1}]])),
        ("Runtime", json!(["", "runc", "evil"])),
        ("LogConfig", json!([{}, {"Type": "local"}, {"Type": "json-file", "Config": {"max-size": "1m"}},
            {"Type": "syslog"}])),
        ("RestartPolicy", json!([{}, {"Name": "always"}, {"Name": "no"},
            {"Name": "on-failure", "MaximumRetryCount": 3}])),
        ("AutoRemove", json!([true, false])),
        ("ConsoleSize", json!([[0, 0], [10, 20], []])),
        ("OomScoreAdj", json!([0, 500, -500])),
        ("Memory", json!([0, 1 << 20, -1, 1_i64 << 40])),
        ("MemorySwap", json!([0, 1_i64 << 31, -1])),
        ("NanoCpus", json!([0, 1_000_000_000, 9_000_000_000_i64])),
        ("CpuQuota", json!([0, 50_000, -1, 1_000_000])),
        ("CpuPeriod", json!([0, 100_000, 1000])),
        ("PidsLimit", json!([0, 10, -1])),
        ("ShmSize", json!([0, 1024, 1_i64 << 40])),
        ("MemorySwappiness", json!([-1, 60])),
        ("Privileged", json!([false])),
        ("EndpointsConfig", json!([
            {}, {"mine": {"Aliases": ["x"], "IPAddress": "1.2.3.4"}}, {"bridge": null},
            {"mine": {"Links": ["own:x"]}, "default": {}}, {"host": {}},
            {"mine": {"DriverOpts": {"a": "b"}}},
        ])),
        ("Name", json!(["new", "data", "longshore-x", "bridge", "0123456789abcdef"])),
        ("Driver", json!(["", "bridge", "local", "macvlan"])),
        ("Options", json!([{}, {"com.docker.network.driver.mtu": "1400"},
            {"com.docker.network.bridge.name": "x"}])),
        ("IPAM", json!([null, {"Driver": "default", "Config": []},
            {"Config": [{"Subnet": "172.20.0.0/24", "Gateway": "172.20.0.1"}]},
            {"Config": [{"Subnet": "10.0.0.0/8"}]}])),
        ("Internal", json!([true, false])),
        ("ConfigOnly", json!([false, true])),
        ("DriverOpts", json!([null, {}, {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"},
            {"type": "none", "o": "bind", "device": "/"}])),
        ("Container", json!(["own", "self", "other"])),
        ("EndpointConfig", json!([{}, {"Aliases": ["x"]}, {"DriverOpts": {"a": "b"}}])),
        ("DetachKeys", json!(["ctrl-p"])),
        ("Detach", json!([true, false])),
    ]
    .into()
}

/// Any JSON, of words that mean something to the engine.
fn anything() -> impl Strategy<Value = Value> {
    let word = select(vec![
        "",
        "host",
        "container:own",
        "/",
        "/builds/p",
        "@bind-0@",
        "ALL",
        "longshore.job",
        "mine",
        "unconfined",
        "rshared",
        "own",
        "true",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..4).prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}

/// A key as it is, or in a spelling that only looks like it.
fn odd(key: &str, how: u8) -> String {
    match how {
        0 => key.to_lowercase(),
        1 => key.to_uppercase(),
        2 => key.replacen('s', "\u{17f}", 1),
        3 => key.replacen('k', "\u{212a}", 1),
        4 => format!("{key} "),
        5 => format!("X-{key}"),
        _ => key.to_owned(),
    }
}

/// A body: some fields, most of them with good values, few odd.
fn fields() -> impl Strategy<Value = Map<String, Value>> {
    let field = (select(known()), any::<prop::sample::Index>(), 0..60_u8, 0..40_u8, anything());
    let field = field.prop_map(|((key, good), index, spelling, wrong, junk)| {
        let good = good.as_array().unwrap();
        let value = if wrong == 0 { junk } else { good[index.index(good.len())].clone() };
        (odd(key, spelling), value)
    });
    prop::collection::vec(field, 0..6).prop_map(|fields| fields.into_iter().collect())
}

/// Runs a judge over bodies; `check` panics at what it should not have let through. What is
/// refused shows nothing, so enough must pass.
fn holds<T>(
    bodies: impl Strategy<Value = Map<String, Value>>,
    judge: impl Fn(&Map<String, Value>) -> Result<T, Refusal>,
    check: impl Fn(&T),
) {
    let passed = std::cell::Cell::new(0);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&bodies, |body| {
            if let Ok(sent) = judge(&body) {
                passed.set(passed.get() + 1);
                check(&sent);
            }
            Ok(())
        })
        .unwrap();
    assert!(passed.get() > CASES / 100, "only {} of {CASES} bodies pass", passed.get());
}

/// Fields that belong where `wanted` says, of those that were made.
fn of(fields: &Map<String, Value>, wanted: &[&str]) -> Map<String, Value> {
    // Those that are known elsewhere would be refused at once.
    let elsewhere = |key: &String| known().iter().any(|(known, _)| known == key);
    let here = fields.iter().filter(|(key, _)| wanted.contains(&key.as_str()) || !elsewhere(key));
    here.map(|(key, value)| (key.clone(), value.clone())).collect()
}

const TOP: &[&str] = &[
    "Image",
    "Cmd",
    "Entrypoint",
    "Env",
    "User",
    "Tty",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "MacAddress",
    "Healthcheck",
    "StopTimeout",
    "OnBuild",
];

/// What belongs into `HostConfig`: whatever else there is.
fn host_part(fields: &Map<String, Value>) -> Map<String, Value> {
    const OTHERS: &[&str] = &[
        "EndpointsConfig",
        "Name",
        "Driver",
        "Options",
        "IPAM",
        "Internal",
        "ConfigOnly",
        "DriverOpts",
        "Container",
        "EndpointConfig",
        "DetachKeys",
        "Detach",
    ];
    let keep = |key: &String| !TOP.contains(&key.as_str()) && !OTHERS.contains(&key.as_str());
    fields.iter().filter(|(key, _)| keep(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[test]
fn g_2_nothing_is_in_a_new_container_that_was_not_judged() {
    let bodies = (fields(), fields(), fields(), 0..30_u8).prop_map(|(top, host, network, raw)| {
        let mut body = of(&top, TOP);
        body.insert("Image".to_owned(), json!("busybox"));
        body.insert("HostConfig".to_owned(), Value::Object(host_part(&host)));
        let networking = of(&network, &["EndpointsConfig"]);
        if !networking.is_empty() {
            body.insert("NetworkingConfig".to_owned(), Value::Object(networking));
        }
        if raw == 0 {
            // A field of the host's at the top, and the other way round.
            body.extend(host_part(&host));
        }
        body
    });
    let context = allowed::context();
    holds(
        bodies,
        |body| policy::container_create(body, &context),
        |sent| allowed::container(&sent.body, &sent.needs, &context),
    );
}

#[test]
fn g_2_nothing_is_in_an_update_that_was_not_judged() {
    const UPDATE: &[&str] = &[
        "Memory",
        "MemorySwap",
        "NanoCpus",
        "CpuQuota",
        "CpuPeriod",
        "PidsLimit",
        "RestartPolicy",
    ];
    let context = allowed::context();
    let bodies = fields().prop_map(|fields| of(&fields, UPDATE));
    holds(
        bodies,
        |body| policy::container_update(body, &context),
        |sent| allowed::update(sent, &context),
    );
}

#[test]
fn g_2_nothing_is_in_an_exec_that_was_not_judged() {
    const EXEC: &[&str] =
        &["Cmd", "Env", "User", "Tty", "DetachKeys", "ConsoleSize", "Detach", "Privileged"];
    let context = allowed::context();
    let bodies = || fields().prop_map(|fields| of(&fields, EXEC));
    holds(bodies(), |body| policy::exec_create(body, &context), allowed::exec);
    holds(bodies(), |body| policy::exec_start(body, &context), allowed::exec_start);
}

#[test]
fn g_2_nothing_is_in_a_network_that_was_not_judged() {
    const NETWORK: &[&str] =
        &["Name", "Driver", "Options", "IPAM", "Internal", "ConfigOnly", "Labels"];
    let context = allowed::context();
    let bodies = (fields(), fields()).prop_map(|(one, other)| {
        let mut body = of(&one, NETWORK);
        body.extend(of(&other, NETWORK));
        body.entry("Name").or_insert(json!("n-x"));
        body
    });
    holds(
        bodies,
        |body| policy::network_create(body, &context),
        |sent| allowed::network(&sent.body, &sent.needs),
    );
    let bodies = fields().prop_map(|fields| {
        let mut body = of(&fields, &["Container", "EndpointConfig"]);
        body.entry("Container").or_insert(json!("own"));
        body
    });
    holds(bodies, |body| policy::network_connect(body, &context), allowed::connect);
}

#[test]
fn g_2_nothing_is_in_a_volume_or_commit_that_was_not_judged() {
    let context = allowed::context();
    let bodies =
        fields().prop_map(|fields| of(&fields, &["Name", "Driver", "DriverOpts", "Labels"]));
    holds(
        bodies,
        |body| policy::volume_create(body, &context),
        |sent| allowed::volume(sent, &context),
    );
    let bodies = fields().prop_map(|fields| of(&fields, TOP));
    holds(bodies, |body| policy::commit(body, &context), allowed::commit);
}

#[test]
fn g_70_a_build_has_only_parameters_that_were_judged_or_set() {
    let parameters = vec![
        ("t", "x:1"),
        ("t", "busybox"),
        ("t", "docker.io/library/busybox:2"),
        ("dockerfile", "a"),
        ("buildargs", "{\"A\":\"b\"}"),
        ("labels", "{\"a\":\"b\"}"),
        ("labels", "{\"longshore.job\":\"2\"}"),
        ("networkmode", "host"),
        ("networkmode", "mine"),
        ("networkmode", "bridge"),
        ("memory", "0"),
        ("memory", "-1"),
        ("memory", "1048576"),
        ("memswap", "-1"),
        ("cpuquota", "50000"),
        ("cpuperiod", "100000"),
        ("cpuquota", "99999999"),
        ("cachefrom", "[\"x\"]"),
        ("remote", ""),
        ("remote", "http://x/"),
        ("session", "x"),
        ("version", "1"),
        ("version", "2"),
        ("cgroupparent", "/"),
        ("securityopt", "[\"x\"]"),
        ("rm", "0"),
        ("pull", "1"),
        ("nocache", "0"),
        ("target", "x"),
        ("evil", "1"),
        ("T", "x"),
        ("ulimits", "[]"),
        ("extrahosts", "a:1.2.3.4"),
        ("squash", "1"),
        ("outputs", "[]"),
    ];
    let context = allowed::context();
    let bodies = prop::collection::vec(select(parameters), 0..4).prop_map(|parameters| {
        let query = parameters.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        Map::from_iter([(
            "query".to_owned(),
            json!(target::encode_query(&query.collect::<Vec<_>>())),
        )])
    });
    let judge = |body: &Map<String, Value>| {
        let target = target::parse(&format!("/build{}", body["query"].as_str().unwrap()))?;
        let method = hyper::Method::POST;
        let nothing = Map::new();
        let call =
            Call { method: &method, target: &target, body: &nothing, auth: None, registries: None };
        match policy::judge(&call, &context) {
            Verdict::Forward(forward) => Ok(forward.query),
            Verdict::Refuse(refusal) => Err(refusal),
            Verdict::Answer(reply) => panic!("{reply:?}"),
        }
    };
    holds(bodies, judge, |query| allowed::build(query, &context));
}

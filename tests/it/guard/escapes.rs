//! Ways out of the guard (`docs/guard.md`), tried against a real engine: all are refused.

use serde_json::{Value, json};

use super::Case;

/// Bodies of `POST /containers/create`, beside an image that the job may use.
#[expect(clippy::too_many_lines, reason = "a table")]
fn creations() -> Vec<(&'static str, Value)> {
    let host =
        |field: &'static str, value: Value| (field, json!({ "HostConfig": { field: value } }));
    let mut all = vec![
        host("Privileged", json!(true)),
        host("Binds", json!(["/:/host"])),
        host("Binds", json!(["/etc:/x:ro"])),
        host("Binds", json!(["/builds/g/p/../../..:/x"])),
        host("Binds", json!(["/builds/g/p-other:/x"])),
        host("Binds", json!(["/builds/g:/x"])),
        host("Binds", json!(["/builds/g/p/link:/x"])),
        host("Binds", json!(["/builds/g/p/link/etc:/x"])),
        host("Binds", json!(["/builds/g/p:/x:rshared"])),
        host("Binds", json!(["/builds/g/p:/x:Z"])),
        host("Binds", json!(["/proc/self/root:/x"])),
        host("Binds", json!(["/var/lib/docker:/x"])),
        host("Binds", json!(["/run:/x"])),
        host("Binds", json!(["/var/run/docker.sock/..:/x"])),
        host("Binds", json!(["../../etc:/x"])),
        host("Binds", json!(["@bind-0@:/x"])),
        host("Mounts", json!([{ "Type": "bind", "Source": "/", "Target": "/x" }])),
        host(
            "Mounts",
            json!([{ "Type": "bind", "Source": "/builds/g/p", "Target": "/x",
            "BindOptions": { "Propagation": "rshared" } }]),
        ),
        host("Mounts", json!([{ "Type": "bind", "Source": "/builds/g/p/link", "Target": "/x" }])),
        host(
            "Mounts",
            json!([{ "Type": "volume", "Source": "v-escape", "Target": "/x", "VolumeOptions":
            { "DriverConfig": { "Name": "local", "Options": { "type": "none", "o": "bind", "device": "/" } } } }]),
        ),
        host(
            "Mounts",
            json!([{ "Type": "volume", "Target": "/x", "VolumeOptions":
            { "DriverConfig": { "Name": "rexray" } } }]),
        ),
        host("Mounts", json!([{ "Type": "npipe", "Source": "x", "Target": "/x" }])),
        host("Mounts", json!([{ "Type": "BIND", "Source": "/", "Target": "/x" }])),
        host("Mounts", json!([{ "Source": "/", "Target": "/x" }])),
        host(
            "Mounts",
            json!([{ "Type": "tmpfs", "Target": "/x", "BindOptions": { "Propagation": "shared" } }]),
        ),
        host("Tmpfs", json!({ "/x": "bind" })),
        host("Tmpfs", json!({ "/x": "size=100g" })),
        host("VolumesFrom", json!(["no-such-container"])),
        host("VolumeDriver", json!("evil")),
        host("NetworkMode", json!("host")),
        host("NetworkMode", json!("container:no-such")),
        host("NetworkMode", json!("no-such-network")),
        host("PidMode", json!("host")),
        host("PidMode", json!("container:no-such")),
        host("IpcMode", json!("host")),
        host("IpcMode", json!("Host")),
        host("UTSMode", json!("host")),
        host("UsernsMode", json!("host")),
        host("CgroupnsMode", json!("host")),
        host("Cgroup", json!("container:x")),
        host("CgroupParent", json!("/")),
        host("CapAdd", json!(["SYS_ADMIN"])),
        host("CapAdd", json!(["cap_sys_ptrace"])),
        host("CapAdd", json!(["ALL"])),
        host("SecurityOpt", json!(["seccomp=unconfined"])),
        host("SecurityOpt", json!(["seccomp:unconfined"])),
        host("SecurityOpt", json!(["apparmor=unconfined"])),
        host("SecurityOpt", json!(["label=disable"])),
        host("SecurityOpt", json!(["systempaths=unconfined"])),
        host("SecurityOpt", json!(["no-new-privileges:false"])),
        host("MaskedPaths", json!(["/nothing"])),
        host("ReadonlyPaths", json!(["/nothing"])),
        host(
            "Devices",
            json!([{ "PathOnHost": "/dev/sda", "PathInContainer": "/x", "CgroupPermissions": "rwm" }]),
        ),
        host("DeviceCgroupRules", json!(["a *:* rwm"])),
        host("DeviceRequests", json!([{ "Count": -1, "Capabilities": [["gpu"]] }])),
        host("Sysctls", json!({ "kernel.core_pattern": "|/x" })),
        host("Sysctls", json!({ "net/../kernel.core_pattern": "x" })),
        host("Ulimits", json!([{ "Name": "nofile", "Soft": -1, "Hard": -1 }])),
        host("Runtime", json!("io.containerd.runc.v2")),
        host("Annotations", json!({ "a": "b" })),
        host("StorageOpt", json!({ "size": "1g" })),
        host(
            "LogConfig",
            json!({ "Type": "syslog", "Config": { "syslog-address": "unixgram:///dev/log" } }),
        ),
        host("LogConfig", json!({ "Type": "json-file", "Config": { "max-size": "100g" } })),
        host("RestartPolicy", json!({ "Name": "on-failure", "MaximumRetryCount": 1000 })),
        host("OomScoreAdj", json!(-1000)),
        host("OomKillDisable", json!(true)),
        host("Memory", json!(-1)),
        host("Memory", json!(1_i64 << 40)),
        host("MemorySwap", json!(-1)),
        host("PidsLimit", json!(-1)),
        host("NanoCpus", json!(1_000_000_000_000_i64)),
        host("CpuQuota", json!(-1)),
        host("CpusetCpus", json!("0")),
        host("BlkioDeviceReadBps", json!([{ "Path": "/dev/sda", "Rate": 1 }])),
        host("PortBindings", json!({ "80/tcp": [{ "HostPort": "80" }] })),
        host("Links", json!(["no-such:x"])),
        host("ContainerIDFile", json!("/x")),
        host("AFieldOfTomorrow", json!("x")),
        ("top", json!({ "AFieldOfTomorrow": "x" })),
        ("case", json!({ "hostconfig": { "Privileged": true } })),
        ("case", json!({ "HostConfig": { "privileged": true } })),
        ("case", json!({ "Ho\u{17f}tConfig": { "Privileged": true } })),
        ("labels", json!({ "Labels": { "longshore.guard": "x" } })),
        ("labels", json!({ "Labels": { "com.gitlab.gitlab-runner.job.id": "1" } })),
        ("onbuild", json!({ "OnBuild": ["RUN x"] })),
        ("volumes", json!({ "Volumes": { "/:/x": {} } })),
        ("network", json!({ "NetworkingConfig": { "EndpointsConfig": { "host": {} } } })),
        (
            "network",
            json!({ "NetworkingConfig": { "EndpointsConfig": { "no-such-network": {} } } }),
        ),
        (
            "network",
            json!({ "NetworkingConfig": { "EndpointsConfig": { "bridge": { "DriverOpts":
            { "com.docker.network.endpoint.sysctls": "x" } } } } }),
        ),
    ];
    for (_, body) in &mut all {
        body["Image"] = json!("busybox");
        body["Cmd"] = json!(["sleep", "600"]);
    }
    all
}

/// Other requests: method, path and body.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("POST", "/build?version=2&remote=", ""),
    ("POST", "/build?remote=http://169.254.169.254/", ""),
    ("POST", "/build?networkmode=host", ""),
    ("POST", "/build?cgroupparent=/", ""),
    ("POST", "/build?t=busybox:latest", ""),
    ("POST", "/session", ""),
    ("POST", "/grpc", ""),
    ("POST", "/build/cancel?id=x", ""),
    ("GET", "/images/search?term=x", ""),
    ("POST", "/images/create?fromSrc=http://127.0.0.1/x&repo=x", ""),
    ("POST", "/images/create?fromImage=127.0.0.1:5000/x&tag=1", ""),
    ("POST", "/images/create?fromImage=169.254.169.254/x&tag=1", ""),
    ("GET", "/distribution/127.0.0.1:5000/x/json", ""),
    ("POST", "/auth", r#"{"serveraddress":"http://169.254.169.254/"}"#),
    ("POST", "/images/docker/tag?repo=mine&tag=1", ""),
    ("GET", "/images/docker:dind/json", ""),
    ("GET", "/images/docker:dind/get", ""),
    ("DELETE", "/images/busybox?force=1", ""),
    ("POST", "/images/busybox/push?tag=latest", ""),
    (
        "POST",
        "/volumes/create",
        r#"{"Name":"v-x","DriverOpts":{"type":"none","o":"bind","device":"/"}}"#,
    ),
    (
        "POST",
        "/volumes/create",
        r#"{"Name":"v-x","DriverOpts":{"type":"overlay","device":"overlay","o":"lowerdir=/"}}"#,
    ),
    ("POST", "/volumes/create", r#"{"Name":"v-x","DriverOpts":{"type":"proc","device":"proc"}}"#),
    (
        "POST",
        "/volumes/create",
        r#"{"Name":"v-x","DriverOpts":{"type":"tmpfs","device":"tmpfs","o":"bind"}}"#,
    ),
    ("POST", "/volumes/create", r#"{"Name":"v-x","Driver":"evil"}"#),
    ("POST", "/volumes/create", r#"{"Name":"longshore-cache-x"}"#),
    ("POST", "/volumes/create", r#"{"Name":"../x"}"#),
    ("PUT", "/volumes/x", "{}"),
    (
        "POST",
        "/networks/create",
        r#"{"Name":"n-x","Driver":"macvlan","Options":{"parent":"eth0"}}"#,
    ),
    ("POST", "/networks/create", r#"{"Name":"n-x","Driver":"host"}"#),
    ("POST", "/networks/create", r#"{"Name":"bridge"}"#),
    (
        "POST",
        "/networks/create",
        r#"{"Name":"n-x","Options":{"com.docker.network.bridge.name":"docker0"}}"#,
    ),
    (
        "POST",
        "/networks/create",
        r#"{"Name":"n-x","Options":{"com.docker.network.bridge.host_binding_ipv4":"0.0.0.0"}}"#,
    ),
    ("POST", "/networks/create", r#"{"Name":"n-x","IPAM":{"Config":[{"Subnet":"10.0.0.0/8"}]}}"#),
    (
        "POST",
        "/networks/create",
        r#"{"Name":"n-x","IPAM":{"Config":[{"Subnet":"172.16.0.0/12"}]}}"#,
    ),
    ("POST", "/networks/create", r#"{"Name":"n-x","IPAM":{"Driver":"evil"}}"#),
    ("POST", "/networks/create", r#"{"Name":"n-x","ConfigOnly":true}"#),
    ("GET", "/networks/host", ""),
    ("POST", "/networks/host/connect", r#"{"Container":"x"}"#),
    ("GET", "/plugins/x/json", ""),
    ("POST", "/plugins/pull?remote=x", "[]"),
    ("POST", "/swarm/init", "{}"),
    ("GET", "/swarm", ""),
    ("GET", "/nodes", ""),
    ("GET", "/services", ""),
    ("GET", "/tasks", ""),
    ("POST", "/secrets/create", "{}"),
    ("GET", "/configs", ""),
    ("GET", "/debug/pprof/", ""),
    ("GET", "/debug/vars", ""),
    ("GET", "/metrics", ""),
    ("OPTIONS", "/info", ""),
    ("PATCH", "/info", ""),
    ("TRACE", "/info", ""),
    // Of a container of the job's own, named `mine`.
    ("POST", "/containers/mine/exec", r#"{"Cmd":["id"],"Privileged":true}"#),
    ("POST", "/containers/mine/exec", r#"{"Cmd":["id"],"privileged":true}"#),
    ("POST", "/containers/mine/start", r#"{"Privileged":true}"#),
    ("POST", "/containers/mine/start?checkpoint=x", ""),
    ("POST", "/containers/mine/update", r#"{"Memory":-1}"#),
    ("POST", "/containers/mine/update", r#"{"CpuPeriod":1000000}"#),
    ("POST", "/containers/mine/update", r#"{"Devices":[{"PathOnHost":"/dev/sda"}]}"#),
    ("POST", "/containers/mine/copy", r#"{"Resource":"/etc/shadow"}"#),
    ("POST", "/containers/mine/rename?name=runner-7-project-1", ""),
    ("POST", "/containers/mine/rename?name=0123456789abcdef", ""),
    ("GET", "/containers/mine/top?ps_args=eww", ""),
    ("GET", "/containers/mine/attach/ws", ""),
    ("DELETE", "/containers/mine?link=1", ""),
    ("POST", "/commit?container=mine&repo=busybox&tag=latest", "{}"),
    ("POST", "/commit?container=mine&changes=LABEL%20longshore.guard=x", "{}"),
    ("POST", "/commit?container=mine", r#"{"Labels":{"longshore.guard":"x"}}"#),
    ("POST", "/containers/create?name=longshore-x", r#"{"Image":"busybox"}"#),
    // Of a container of the runner's, by its id.
    ("POST", "/containers/self/exec", r#"{"Cmd":["id"]}"#),
    ("DELETE", "/containers/self?force=1", ""),
    ("GET", "/containers/self/archive?path=/", ""),
    ("POST", "/containers/self/attach?stream=1", ""),
    ("POST", "/containers/create", r#"{"Image":"busybox","HostConfig":{"VolumesFrom":["self"]}}"#),
    ("POST", "/commit?container=self", "{}"),
    // One request, two readings.
    ("POST", "/v1.23/containers/mine/start", r#"{"Privileged":true}"#),
    ("GET", "/v1.99/info", ""),
    ("GET", "/v1.41.0/info", ""),
    ("GET", "/v01.41/info", ""),
    ("GET", "//info", ""),
    ("GET", "/./info", ""),
    ("GET", "/x/../info", ""),
    ("GET", "/%2e%2e/info", ""),
    ("GET", "/containers/x%2f..%2fmine/json", ""),
    ("GET", "/Info", ""),
    ("GET", "http://docker/info", ""),
    ("POST", "/containers/mine/kill?signal=HUP&signal=KILL", ""),
    ("POST", "/containers/mine/kill?%73ignal=HUP&signal=KILL", ""),
    ("GET", "/containers/json?all=1;limit=1", ""),
    ("GET", "/containers/json?evil=1", ""),
    ("GET", "/containers/json?filters=%7B%22label%22%3A%5B%5D%2C%22label%22%3A%5B%5D%7D", ""),
    (
        "POST",
        "/containers/create",
        r#"{"Image":"busybox","HostConfig":{"Privileged":false,"Privileged":true}}"#,
    ),
    ("POST", "/containers/create", r#"{"Image":"busybox"}{"HostConfig":{"Privileged":true}}"#),
    ("POST", "/containers/create", r#"{"Image":"busybox","HostConfig":{"Privileged":"true"}}"#),
    (
        "POST",
        "/containers/create",
        r#"{"Image":"busybox","HostConfig":{"Binds":["/builds/g/p:/x"],"Binds":["/:/x"]}}"#,
    ),
];

/// Heads that another parser would read differently.
const HEADS: &[&str] = &[
    "GET /info HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "GET /info HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na",
    "GET /info HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost: x\r\nX: a\r\n folded\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost : x\r\n\r\n",
    "GET /info HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "GET /info HTTP/3.0\r\n\r\n",
    "GET\t/info HTTP/1.1\r\n\r\n",
    "POST /containers/prune HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
     Content-Length: 10\r\n\r\nfilters={}",
    "POST /containers/prune HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n\
     Content-Length: 0\r\n\r\n",
    "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "POST /build HTTP/1.1\r\nHost: x\r\nX-Registry-Config: !!\r\nContent-Length: 0\r\n\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn g_1_every_escape_is_refused() {
    let case = Case::start().await;
    // Names are the engine's, and other tests may run.
    let mine = format!("mine-{}", &case.identity[..8]);
    std::os::unix::fs::symlink("/", case.workspace().join("link")).unwrap();
    case.docker(&["run", "-d", "--name", &mine, "busybox", "sleep", "600"]).await;
    let own = case.docker(&["run", "-d", "busybox", "sleep", "600"]).await;
    case.guard.adopt(&own, "self");
    let mut passed = Vec::new();
    let mut table = Vec::new();
    for (name, body) in creations() {
        let body = body.to_string();
        let (status, answer) = case.ask("POST", "/v1.41/containers/create", &body).await;
        let line = format!("create {name} {body} -> {status} {}", answer.trim());
        if !(400..500).contains(&status) || !answer.contains("\"message\"") {
            passed.push(line.clone());
        }
        table.push(line);
    }
    for (method, path, body) in REQUESTS {
        let path = if *method == "GET" || path.contains("mine") {
            (*path).to_owned()
        } else {
            path.replace("self", &own)
        };
        let path = path.replace("mine", &mine);
        let (status, answer) = case.ask(method, &path, body).await;
        let line = format!("{method} {path} {body} -> {status} {}", answer.trim());
        if !(400..500).contains(&status) {
            passed.push(line.clone());
        }
        table.push(line);
    }
    for head in HEADS {
        // Where the head itself passes, its body or type is refused, and the connection stays.
        let closing = if head.contains("Connection:") {
            (*head).to_owned()
        } else {
            head.replacen("\r\nHost: x", "\r\nConnection: close\r\nHost: x", 1)
        };
        let (status, answer) = case.raw(closing.as_bytes()).await;
        let line = format!("{head:?} -> {status} {}", answer.trim());
        // Closed without an answer is refused, too.
        if status != 0 && !(400..500).contains(&status) {
            passed.push(line.clone());
        }
        table.push(line);
    }
    println!("{}", table.join("\n"));
    assert!(passed.is_empty(), "{}", passed.join("\n"));
    // Nothing of it had an effect.
    assert_eq!(case.docker(&["ps", "-aq"]).await.lines().count(), 2);
    assert_eq!(case.docker(&["volume", "ls", "-q"]).await, "");
    assert_eq!(case.docker(&["network", "ls", "-q"]).await.lines().count(), 2);
    let owned = super::engine();
    tokio::task::spawn_blocking(move || drop(owned.docker(&["rm", "-f", &own]))).await.unwrap();
    case.stop().await;
}

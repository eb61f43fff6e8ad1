//! Two jobs that use the same names at once (G-49).

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{COMMAND, Case, patient};

/// A line of each of `docker`'s answers, sorted.
async fn lines(case: &Case, arguments: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = case.docker(arguments).await.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Lists, details and errors of a job have its own things, by its own names.
async fn see_their_own(case: &Case) {
    assert_eq!(lines(case, &["ps", "--format", "{{.Names}} {{.Networks}}"]).await, ["db net"]);
    for (filter, count) in [
        ("name=db", 1),
        ("name=^/db$", 1),
        ("name=^db", 1),
        ("name=^g[0-9a-f]{16}", 0),
        ("volume=data", 1),
        ("volume=/data", 1),
        ("volume=dat", 0),
        ("network=net", 1),
    ] {
        let found = lines(case, &["ps", "-q", "--filter", filter]).await;
        assert_eq!(found.len(), count, "{filter}");
    }
    let volumes = lines(case, &["volume", "ls", "-q"]).await;
    assert_eq!(volumes.len(), 3, "{volumes:?}");
    assert!(volumes.contains(&"data".to_owned()) && volumes.contains(&"more".to_owned()));
    assert_eq!(lines(case, &["volume", "ls", "-q", "--filter", "name=^dat"]).await, ["data"]);
    assert_eq!(case.docker(&["volume", "inspect", "-f", "{{.Name}}", "data"]).await, "data");
    let networks = lines(case, &["network", "ls", "--format", "{{.Name}}"]).await;
    assert_eq!(networks, ["bridge", "net", "none"]);
    let only = ["network", "ls", "--filter", "name=^net$", "--format", "{{.Name}}"];
    assert_eq!(lines(case, &only).await, ["net"]);
    let inside = "{{range .Containers}}{{.Name}}{{end}}";
    assert_eq!(case.docker(&["network", "inspect", "-f", inside, "net"]).await, "db");
    // What the client did not say it is not told: compose would take it for a change.
    for (kind, name) in [("network", "net"), ("volume", "data")] {
        let said = ["inspect", "-f", "{{len .Options}} {{len .Labels}}", "--type", kind, name];
        assert_eq!(case.docker(&said).await, "0 0", "{kind}");
    }
    let inspected: Value = serde_json::from_str(&case.docker(&["inspect", "db"]).await).unwrap();
    let shown = inspected[0].to_string();
    assert_eq!(inspected[0]["Name"], "/db");
    assert_eq!(inspected[0]["HostConfig"]["Binds"][0], "data:/data:rw");
    assert_eq!(inspected[0]["HostConfig"]["Mounts"][0]["Source"], "more");
    assert_eq!(inspected[0]["HostConfig"]["NetworkMode"], "net");
    assert!(inspected[0]["NetworkSettings"]["Networks"]["net"].is_object());
    let Names { prefix } = Names::of(case);
    assert!(!shown.contains(&prefix), "{shown}");
    assert!(case.docker(&["stats", "--no-stream"]).await.contains(" db "));
    // Errors have the job's names.
    let said = case.fails(&["run", "--name", "db", "busybox"]).await;
    assert!(said.contains("The container name \"/db\" is already in use"), "{said}");
    let said = case.fails(&["volume", "rm", "data"]).await;
    assert!(said.contains("data") && !said.contains(&prefix), "{said}");
    let said = case.fails(&["network", "rm", "net"]).await;
    assert!(said.contains("net") && !said.contains(&prefix), "{said}");
    let said = case.fails(&["volume", "create", &format!("{prefix}-data")]).await;
    assert!(said.contains("G-48"), "{said}");
    let said = case.fails(&["network", "create", "net"]).await;
    assert!(said.contains("network with name net already exists"), "{said}");
}

/// Names resolve to the job's own containers: on a network of its own, on the default one, and on
/// one that was joined later.
async fn resolve_and_go(case: &Case) {
    let own = case.docker(&["exec", "db", "hostname", "-i"]).await;
    let ping = ["run", "--rm", "--network", "net", "busybox", "ping", "-c", "1", "db"];
    assert!(case.docker(&ping).await.contains(&own));
    case.docker(&["run", "-d", "--name", "web", "busybox", "sleep", "600"]).await;
    case.docker(&["run", "--rm", "busybox", "ping", "-c", "1", "web"]).await;
    case.docker(&["network", "connect", "net", "web"]).await;
    case.docker(&["exec", "db", "ping", "-c", "1", "web"]).await;
    case.docker(&["rename", "web", "site"]).await;
    assert_eq!(lines(case, &["ps", "--format", "{{.Names}}"]).await, ["db", "site"]);
    assert_eq!(case.docker(&["inspect", "-f", "{{.Name}}", "site"]).await, "/site");
    case.docker(&["rm", "-f", "site", "db"]).await;
    assert_eq!(lines(case, &["network", "prune", "-f"]).await.last().unwrap(), "net");
    let pruned = case.docker(&["volume", "prune", "-f"]).await;
    let named = case.docker(&["volume", "ls", "-q"]).await;
    // Newer engines prune only volumes without a name.
    assert!(format!("{pruned}\n{named}").lines().any(|line| line == "data"), "{pruned}");
    case.output(&["volume", "rm", "data", "more"]).await;
    let named = ["volume", "ls", "-q", "--filter", "name=^data$", "--filter", "name=^more$"];
    assert_eq!(case.docker(&named).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn g_49_two_jobs_use_the_same_names_at_once_and_see_their_own() {
    let jobs = [Case::start().await, Case::start().await];
    let mut seen = Vec::new();
    for case in &jobs {
        let mut events = case
            .command(&["events", "--format", "{{json .}}"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(events.stdout.take().unwrap()).lines();
        seen.push((events, out));
    }
    for case in &jobs {
        assert_eq!(case.docker(&["volume", "create", "data"]).await, "data");
        assert_eq!(case.docker(&["volume", "create", "data"]).await, "data");
        case.docker(&["network", "create", "net"]).await;
        case.docker(&[
            "run",
            "-d",
            "--name",
            "db",
            "--network",
            "net",
            "-v",
            "data:/data",
            "--mount",
            "type=volume,source=more,target=/more",
            "-v",
            "/anonymous",
            "busybox",
            "sh",
            "-c",
            "echo $$ > /data/pid; sleep 600",
        ])
        .await;
    }
    for case in &jobs {
        see_their_own(case).await;
    }
    for case in &jobs {
        resolve_and_go(case).await;
    }
    for ((mut events, mut out), case) in seen.into_iter().zip(&jobs) {
        let prefix = Names::of(case).prefix;
        let mut kinds = Vec::new();
        // All of it was before this.
        case.docker(&["volume", "create", "last"]).await;
        loop {
            let line =
                tokio::time::timeout(patient(COMMAND), out.next_line()).await.unwrap().unwrap();
            let line = line.expect("events ended");
            assert!(!line.contains(&prefix), "{line}");
            let event: Value = serde_json::from_str(&line).unwrap();
            let (kind, action) = (&event["Type"], &event["Action"]);
            let name = event["Actor"]["Attributes"]["name"].as_str().unwrap_or_default();
            kinds.push(format!("{} {} {name}", kind.as_str().unwrap(), action.as_str().unwrap()));
            if event["Actor"]["ID"] == "last" {
                break;
            }
        }
        events.kill().await.unwrap();
        for wanted in ["container create db", "container rename site", "network create net"] {
            assert!(kinds.iter().any(|kind| kind == wanted), "{wanted}: {kinds:?}");
        }
    }
    for case in jobs {
        case.stop().await;
    }
}

/// What the guard puts before names.
struct Names {
    prefix: String,
}

impl Names {
    fn of(case: &Case) -> Self {
        let identity = ("longshore.guard".to_owned(), case.identity.clone());
        match longshore::guard::Names::of(&identity) {
            longshore::guard::Names::Scoped(prefix) => Self { prefix },
            longshore::guard::Names::Plain => panic!("scoped is the default"),
        }
    }
}

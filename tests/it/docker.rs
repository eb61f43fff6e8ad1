//! Containers as the engine makes them: networks, services, volumes, limits, labels.

use std::fs;

use serde_json::{Value, json};

use crate::{
    counter::Counter,
    engine::engine,
    gitlab::job,
    longshore::{Case, Options},
    scripts::web,
};

/// What a script says once the test may look at the job's containers.
const STARTED: &str = "echo started; while sleep 1; do echo tick; done";

/// A label of ours.
fn label<'a>(thing: &'a Value, name: &str) -> Option<&'a str> {
    let labels =
        if thing["Labels"].is_object() { &thing["Labels"] } else { &thing["Config"]["Labels"] };
    labels[format!("com.gitlab.gitlab-runner.{name}")].as_str()
}

/// A service without ports that serves nothing: `settle`d at once, as it has ended.
fn service(command: &str) -> Value {
    json!({"name": "busybox:latest", "alias": "s", "entrypoint": ["sh", "-c"], "command": [command]})
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_26_27_28_29_33_98_names_labels_and_privileges_are_the_settings() {
    let case = Case::with(Options {
        docker: r#"
            hostname = "given-name"
            privileged = true
            services_privileged = false
            [runners.docker.container_labels]
            extra = "job-$CI_JOB_ID"
            "#,
        ..Options::default()
    })
    .await;
    let sha = case.gitlab.commit("group/labels", &[("a.txt", "1\n")]);
    let spec = job(&["hostname", STARTED]).service(web()).sources("group/labels", &sha);
    let id = case.gitlab.submit(spec);
    case.gitlab.until_output(id, "started").await;
    let project = case.gitlab.project_id;
    let things = engine().inspect(|line| line.contains(&id.to_string()));
    let name = regex::Regex::new(&format!(
        "^/runner-integrati-project-{project}-concurrent-0-[0-9a-f]{{16}}-(build|predefined|busybox-0)$"
    ))
    .unwrap();
    let job_id = id.to_string();
    let mut types = Vec::new();
    for thing in &things {
        types.push(label(thing, "type").unwrap_or_default());
        assert_eq!(label(thing, "managed"), Some("true"), "{thing:#}");
        assert_eq!(label(thing, "job.id"), Some(&*job_id), "{thing:#}");
        assert_eq!(label(thing, "job.ref"), Some("main"), "{thing:#}");
        assert_eq!(label(thing, "job.sha"), Some(&*sha), "{thing:#}");
        assert_eq!(label(thing, "job.timeout"), Some("5m0s"), "{thing:#}");
        assert_eq!(label(thing, "project.id"), Some(&*project.to_string()), "{thing:#}");
        assert_eq!(label(thing, "runner.id"), Some("integrati"), "{thing:#}");
        let host = &thing["HostConfig"];
        if host.is_null() {
            continue;
        }
        assert!(name.is_match(thing["Name"].as_str().unwrap()), "{}", thing["Name"]);
        assert_eq!(host["RestartPolicy"]["Name"], "no");
        assert_eq!(thing["Config"]["Labels"]["extra"], format!("job-{id}"), "{thing:#}");
        let is_service = label(thing, "type") == Some("service");
        assert_eq!(host["Privileged"], !is_service, "{thing:#}");
        if is_service {
            assert_eq!(label(thing, "service"), Some("busybox"));
            assert_eq!(label(thing, "service.version"), Some("latest"));
        }
    }
    types.sort_unstable();
    assert_eq!(types, ["build", "network", "predefined", "service"]);
    case.gitlab.set_status(id, "canceled");
    engine().nothing_left_of(id).await;
    case.gitlab.result_so_far(id).assert_lines(&["given-name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_87_on_the_default_bridge_services_are_reached_by_their_aliases() {
    let case = Case::on_bridge().await;
    let hosts = "grep -c '[[:space:]][0-9a-f]\\{12\\}$' /etc/hosts";
    let fetch =
        "wget -q -O - http://web:8000/index.html && wget -q -O - http://busybox:8000/index.html";
    let ended =
        case.run(job(&[fetch, hosts, "echo net=[$CI_BUILD_NETWORK_NAME]"]).service(web())).await;
    ended.assert_success();
    ended.assert_lines(&["served", "net=[]"]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_115_116_118_the_jobs_network_has_its_options_and_its_name_is_a_variable() {
    let options = Options { docker: "network_mtu = 1400", ..Options::default() };
    let case = Case::with(options).await;
    let spec = job(&["cat /sys/class/net/eth0/mtu", "echo net=$CI_BUILD_NETWORK_NAME", STARTED]);
    let id = case.gitlab.submit(spec.service(web()));
    case.gitlab.until_output(id, "started").await;
    let things = engine().inspect(|line| line.contains(&id.to_string()));
    let network = things.iter().find(|thing| label(thing, "type") == Some("network")).unwrap();
    let name = network["Name"].as_str().unwrap();
    assert_eq!(network["Options"]["com.docker.network.driver.mtu"], "1400");
    assert_eq!(network["EnableIPv6"], false);
    for container in things.iter().filter(|thing| thing["HostConfig"].is_object()) {
        let networks = container["NetworkSettings"]["Networks"].as_object().unwrap();
        assert_eq!(networks.keys().collect::<Vec<_>>(), [name], "{container:#}");
    }
    case.gitlab.set_status(id, "canceled");
    engine().nothing_left_of(id).await;
    case.gitlab.result_so_far(id).assert_lines(&["1400", &format!("net={name}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_117_the_hosts_network_is_taken_as_it_is() {
    let options = Options { docker: "network_mode = \"host\"", ..Options::default() };
    let case = Case::with(options).await;
    let sha = case.gitlab.commit("group/host", &[("a.txt", "1\n")]);
    let inode = fs::read_link("/proc/self/ns/net").unwrap();
    let look = "test \"$(ls -1 /sys/class/net | wc -l)\" -gt 2 && echo interfaces";
    let spec = job(&["cat a.txt", "readlink /proc/self/ns/net", look]).sources("group/host", &sha);
    let ended = case.run(spec.service(service("true"))).await;
    ended.assert_success();
    ended.assert_lines(&["1", inode.to_str().unwrap()]);
    engine().nothing_left_of(ended.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_88_119_a_given_network_is_used_with_aliases_and_stays() {
    let network = engine().network();
    let mode = format!("network_mode = \"{}\"", network.name);
    let case = Case::with(Options { docker: mode.leak(), ..Options::default() }).await;
    let fetch =
        "wget -q -O - http://web:8000/index.html && ping -c 1 -W 5 build > /dev/null && echo me";
    let ended = case.run_over(job(&[fetch]).service(web())).await;
    let users = ["network", "inspect", "--format", "{{len .Containers}}", &network.name];
    assert_eq!(engine().docker(&users).trim(), "0");
    ended.assert_success();
    ended.assert_lines(&["served", "me"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_198_unrelated_networks_cost_a_job_nothing() {
    let counter = Counter::start(engine().socket());
    let options = Options { engine: Some(counter.host()), ..Options::default() };
    let case = Case::with(options).await;
    let mut costs = Vec::new();
    let mut unrelated = Vec::new();
    for round in 0..3 {
        if round == 2 {
            unrelated.extend((0..3).map(|_| engine().network()));
        }
        let before = counter.count();
        case.run_over(job(&["true"])).await.assert_success();
        costs.push(counter.count().since(&before).requests);
    }
    assert_eq!(costs[1].len(), costs[2].len(), "{costs:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_40_limits_hold_in_the_build_and_not_in_the_services() {
    let case = Case::with(Options {
        docker: r#"
            memory = "96m"
            shm_size = 12582912
            cap_drop = ["CHOWN"]
            service_memory = "64m"
            [runners.docker.ulimit]
            nofile = "321:654"
            [runners.docker.tmpfs]
            "/scratch" = "rw,size=1m"
            [runners.docker.sysctls]
            "net.ipv4.ip_unprivileged_port_start" = "77"
            "#,
        ..Options::on_bridge()
    })
    .await;
    let memory = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || :";
    let limits = format!(
        "{memory}; ulimit -Sn; ulimit -Hn; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
    );
    let tell = format!("({limits}; grep -c scratch /proc/mounts) > /builds/told 2>&1");
    let spec = job(&[
        &limits,
        "df -k /dev/shm | tail -n 1 | awk '{print \"shm=\" $2}'",
        "df -k /scratch | tail -n 1 | awk '{print \"scratch=\" $2}'",
        "touch f; if chown 1:1 f 2>/dev/null; then echo chowned; else echo refused; fi",
        "echo told; cat /builds/told | sed 's/^/told-/'",
    ]);
    let ended = case.run(spec.service(service(&tell))).await;
    ended.assert_success();
    let build = ["100663296", "321", "654", "77", "shm=12288", "scratch=1024", "refused"];
    ended.assert_lines(&build);
    ended.assert_lines(&["told-67108864", "told-0"]);
    ended.assert_lacks("told-321");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_181_a_script_over_its_memory_is_reported_as_137() {
    let options =
        Options { docker: "memory = \"32m\"\nmemory_swap = \"32m\"", ..Options::on_bridge() };
    let case = Case::with(options).await;
    // Of a subshell's memory, so that what is killed is not the shell.
    let grow = "echo growing; sh -c 'x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done'";
    let ended = case.run(job(&[grow])).await;
    ended.assert_failed("script_failure", Some(137));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_104_109_volumes_are_open_to_all_and_apart_for_protected_refs() {
    let case = Case::with(Options {
        docker: "user = \"1234\"",
        volumes: Some(r#"["/cache", "/deep/$CI_PROJECT_NAME/dir"]"#.to_owned()),
        ..Options::on_bridge()
    })
    .await;
    let script = [
        "stat -c '%n %a' /cache /builds /deep/none/dir",
        "echo mine > /cache/f; echo mine > /deep/none/dir/f; cat /cache/f",
    ];
    // The fake GitLab's refs are protected.
    let ended = case.run_over(job(&script)).await;
    ended.assert_success();
    ended.assert_lines(&["/cache 777", "/builds 777", "/deep/none/dir 777", "mine"]);
    let project = case.gitlab.project_id.to_string();
    let volumes = || engine().inspect(|line| line.contains(&project) && line.contains("-cache-"));
    let protected = volumes();
    assert_eq!(protected.len(), 2, "{protected:#?}");
    for volume in &protected {
        assert!(volume["Name"].as_str().unwrap().ends_with("-protected"), "{volume:#}");
        assert_eq!(label(volume, "protected"), Some("true"), "{volume:#}");
        assert_eq!(label(volume, "reusable"), Some("true"), "{volume:#}");
    }
    let spec = job(&["cat /cache/f /deep/none/dir/f 2>/dev/null || echo apart"]).unprotected();
    let ended = case.run_over(spec).await;
    ended.assert_success();
    ended.assert_lines(&["apart"]);
    assert_eq!(volumes().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_105_cache_dir_keeps_caches_in_a_directory_of_the_host() {
    let host = tempfile::tempdir().unwrap();
    let dir = format!("cache_dir = \"{}\"", host.path().display());
    let case = Case::with(Options { docker: dir.leak(), ..Options::on_bridge() }).await;
    let cache = json!({"key": "k", "paths": ["deps"], "policy": "pull-push", "when": "on_success"});
    let spec = |script: &str| job(&[script]).cache(cache.clone());
    case.run_over(spec("mkdir deps; echo warm > deps/f")).await.assert_success();
    let ended = case.run_over(spec("cat deps/f; stat -c '%n %a' /cache")).await;
    ended.assert_success();
    ended.assert_lines(&["warm", "/cache 777"]);
    let zips = walkdir::WalkDir::new(host.path());
    let zips: Vec<_> =
        zips.into_iter().filter(|e| e.as_ref().unwrap().file_name() == "cache.zip").collect();
    assert_eq!(zips.len(), 1, "{zips:?}");
    let project = case.gitlab.project_id.to_string();
    let volumes = engine().docker(&["volume", "ls", "--format", "{{.Name}} {{.Labels}}"]);
    assert!(!volumes.contains(&project), "{volumes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_156_two_jobs_that_save_one_key_at_once_do_not_tear_it() {
    let case = Case::on_bridge().await;
    let cache = json!({"key": "k", "paths": ["deps"], "policy": "pull-push", "when": "on_success"});
    let fill = "mkdir -p deps; head -c 8000000 /dev/urandom > deps/big; md5sum deps/big > deps/sum";
    let jobs: Vec<i64> =
        (0..3).map(|_| case.gitlab.submit(job(&[fill, "hostname"]).cache(cache.clone()))).collect();
    for id in jobs {
        let ended = case.gitlab.ended(id).await;
        ended.assert_success();
        ended.assert_lacks("Failed to create");
    }
    let ended =
        case.run(job(&["md5sum -c deps/sum", "ls -A /cache/group/none/k*"]).cache(cache)).await;
    ended.assert_success();
    ended.assert_lines(&["deps/big: OK", "cache.zip"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_89_95_a_service_is_waited_for_at_an_exposed_port_and_shares_the_volumes() {
    let image = engine().image("busybox:latest", &["EXPOSE 8000 9000"]);
    let case = Case::start().await;
    // Its first port never opens.
    let serve = "sleep 2; echo of-service > /builds/f; mkdir /w; echo served > /w/i; exec httpd -f -p 9000 -h /w";
    let service = json!({"name": image.name, "alias": "slow,other", "entrypoint": ["sh", "-c"],
        "command": [serve]});
    let ended =
        case.run(job(&["cat /builds/f; wget -q -O - http://other:9000/i"]).service(service)).await;
    ended.assert_success();
    ended.assert_lines(&["of-service", "served"]);
    ended.assert_lacks("probably didn't start");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_77_78_83_two_services_of_one_image_have_their_own_aliases_and_variables() {
    let case = Case::start().await;
    let service = |alias: &str, text: &str| {
        let mut service = web();
        service["alias"] = json!(alias);
        service["command"] = json!([
            "mkdir /w && echo \"$TEXT,$PLAIN,$HIDDEN\" > /w/i && exec httpd -f -p 8000 -h /w"
        ]);
        let variables = service["variables"].as_array_mut().unwrap();
        variables.push(json!({"key": "TEXT", "value": text, "public": true}));
        service
    };
    let fetch = [
        "wget -q -O - http://one:8000/i",
        "wget -q -O - http://two:8000/i",
        "wget -q -O - http://three:8000/i",
    ];
    let spec = job(&fetch)
        .service(service("one", "first"))
        .service(service("two three", "second-$HIDDEN"))
        .variable("PLAIN", "plain")
        .variable_as(json!({"key": "HIDDEN", "value": "hidden"}));
    let ended = case.run(spec).await;
    ended.assert_success();
    ended.assert_lines(&["first,plain,", "second-hidden,plain,"]);
}

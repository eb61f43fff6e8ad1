//! What else of the docker CLI must work: registries and terminals.

use super::{Case, engine, patient};

/// A registry at an address of this host that the engine asks without TLS.
struct Registry {
    container: String,
    host: String,
}

impl Registry {
    fn start() -> Self {
        engine().needs_buildx();
        let run = ["run", "--detach", "--publish", "127.0.0.1::5000", "registry:2"];
        let container = engine().docker(&run).trim().to_owned();
        let host = engine().docker(&["port", &container, "5000"]).trim().to_owned();
        Self { container, host }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        engine().docker(&["rm", "--force", "--volumes", &self.container]);
        // What jobs have pulled stays.
        let images = engine().docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        for image in images.lines().filter(|image| image.starts_with(&self.host)) {
            engine().docker(&["rmi", image]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn g_12_1_images_are_pushed_to_and_pulled_from_allowed_registries_alone() {
    let registry = tokio::task::spawn_blocking(Registry::start).await.unwrap();
    let host = registry.host.clone();
    let allowed = |host: &str| {
        let host = host.to_owned();
        move |settings: &mut longshore::guard::GuardSettings| {
            settings.images.registries = vec![host];
        }
    };
    let (case, other) = tokio::join!(Case::with(allowed(&host)), Case::with(allowed(&host)));
    let image = format!("{host}/it-{}:1", case.identity);

    // Until something answers there.
    let login = ["login", "--username", "u", "--password", "p", &host];
    let mut said = case.output(&login).await;
    for _ in 0..20 {
        if said.status.success() {
            break;
        }
        said = case.output(&login).await;
    }
    assert!(String::from_utf8_lossy(&said.stdout).contains("Login Succeeded"), "{said:?}");

    case.docker(&["tag", "busybox", &image]).await;
    let pushed = case.docker(&["push", &image]).await;
    assert!(pushed.contains("digest: sha256:"), "{pushed}");
    case.docker(&["rmi", &image]).await;
    assert!(case.docker(&["pull", &image]).await.contains("Status: "));
    assert_eq!(
        case.docker(&["run", "--rm", "--pull", "never", &image, "echo", "pulled"]).await,
        "pulled"
    );

    // What is on the engine because of one job is not there for another, until that has pulled it.
    let said = other.fails(&["run", "--rm", "--pull", "never", &image, "true"]).await;
    assert!(said.contains("No such image"), "{said}");
    let said = other.fails(&["push", &image]).await;
    assert!(said.contains("does not exist locally"), "{said}");
    assert_eq!(other.docker(&["run", "--rm", "--quiet", &image, "echo", "mine"]).await, "mine");

    // The same registry by a name that is not allowed.
    let elsewhere = host.replace("127.0.0.1", "localhost");
    for arguments in [
        &["pull", &format!("{elsewhere}/x:1")][..],
        &["login", "--username", "u", "--password", "p", &elsewhere],
    ] {
        let said = case.fails(arguments).await;
        assert!(said.contains("(G-65)"), "{said}");
    }
    other.stop().await;
    case.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_12_1_a_terminal_is_one_and_has_its_clients_size() {
    let case = Case::start().await;
    let docker = "docker run --rm --interactive --tty busybox sh -c \
                  'tty; until [ \"$(stty size)\" = \"33 77\" ]; do sleep 0.1; done; echo sized'";
    let mut command = tokio::process::Command::new("script");
    command
        .args(["--quiet", "--return", "--command"])
        .arg(format!("stty rows 33 cols 77; {docker}"))
        .arg("/dev/null")
        .envs(case.command(&[]).as_std().get_envs().filter_map(|(k, v)| Some((k, v?))))
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output =
        tokio::time::timeout(patient(super::COMMAND), command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("/dev/pts/0") && text.contains("sized"), "{text}");
    case.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g_15_layers_that_are_kept_from_pruning_go_with_the_job() {
    let case = Case::start().await;
    let label = format!("it={}", case.identity);
    let dockerfile = format!("FROM busybox\nLABEL {label}\nRUN touch /made\n");
    let built = case.fed(&["build", "--tag", "layers:1", "-"], dockerfile.as_bytes()).await;
    assert!(built.status.success(), "{built:?}");
    // As compose does it.
    case.docker(&["rmi", "--no-prune", "layers:1"]).await;
    case.stop().await;
    let filter = format!("label={label}");
    let left = engine().docker(&["images", "--all", "--quiet", "--filter", &filter]);
    assert_eq!(left, "");
}

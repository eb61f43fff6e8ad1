use std::{path::Path, process::Stdio};

use axum::{
    body::Body as Answer,
    extract::Request,
    response::{IntoResponse as _, Response},
};
use bollard::query_parameters::InspectContainerOptions;
use tokio::{io::AsyncWriteExt as _, process::Command, task::JoinSet};

use super::{
    super::{
        credential_helper::find_in,
        testing::{self, create, engine, finish, run_in},
    },
    *,
};
use crate::base::ids::random_hex;

/// A host whose images are the test's own.
fn host(executable: impl Into<PathBuf>) -> Host {
    Host {
        executable: executable.into(),
        path: PATH.into(),
        repository: format!("longshore-helper-test-{}", random_hex::<16>()),
    }
}

async fn remove(engine: &Engine, reference: &str) {
    engine.client().remove_image(reference, None::<RemoveImageOptions>, None).await.unwrap();
}

#[tokio::test]
async fn the_image_runs_our_executable_and_knows_its_user() {
    let engine = engine().await;
    let image = ensure_from(&engine, host(ourselves())).await.unwrap();
    let inspected = engine.client().inspect_image(&image.reference).await.unwrap();
    assert_eq!(inspected.id.as_ref(), Some(&image.id));
    let config = inspected.config.unwrap();
    assert_eq!(config.entrypoint.unwrap_or_default(), Vec::<String>::new());
    assert_eq!(config.env, Some(vec![format!("PATH={PATH}")]));
    assert_eq!(config.labels.unwrap()[HELPER_LABEL], "true");
    let said = run_in(
        &engine,
        &image.reference,
        "longshore engine::helper_image --list | sed -n '/knows_its_user/p'; id -un; ls -ld /tmp; \
         echo $HOME",
    )
    .await;
    remove(&engine, &image.reference).await;
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].contains("the_image_runs_our_executable"), "{said}");
    assert_eq!(lines[1], "root");
    assert!(lines[2].starts_with("drwxrwxrwt"), "{said}");
    assert_eq!(lines[3], "/root");
}

#[tokio::test]
async fn git_works_in_the_image_with_files_submodules_and_http() {
    let repositories = tempfile::tempdir().unwrap();
    let on_host = repositories.path().to_owned();
    make_repositories(&on_host).await;
    let engine = engine().await;
    let image = ensure_from(&engine, host("/bin/true")).await.unwrap();
    let gateway = gateway(&engine).await;
    let listener = tokio::net::TcpListener::bind((gateway.as_str(), 0)).await.unwrap();
    let url = format!("http://{gateway}:{}", listener.local_addr().unwrap().port());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let app = axum::Router::new().fallback(move |r: Request| backend(on_host.clone(), r));
        axum::serve(listener, app).await.unwrap();
    });
    let said = run_in(
        &engine,
        &image.reference,
        &format!(
            "git --version
             cd /tmp
             git init --quiet plain 2>&1
             git -C plain -c user.name=a -c user.email=a@b commit --quiet --allow-empty -m x
             git ls-remote --heads file:///tmp/plain | sed 's/^.*refs/refs/'
             git clone --quiet {url}/main.git main
             cd main
             git submodule --quiet update --init --recursive
             git submodule foreach --recursive --quiet 'echo in $sm_path'
             cat part/file
             git clean -ffdx
             git -c http.sslVerify=true ls-remote https://127.0.0.1:1/x 2>&1 | tail -1 || true"
        ),
    )
    .await;
    remove(&engine, &image.reference).await;
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("git version"), "{said}");
    assert!(matches!(lines[1], "refs/heads/master" | "refs/heads/main"), "{said}");
    assert_eq!(&lines[2..4], ["in part", "content of the part"], "{said}");
    assert!(lines[4].contains("Failed to connect"), "{said}");
}

/// Address of this host in the engine's default network: the subnet's first, unless it says.
async fn gateway(engine: &Engine) -> String {
    let none = None::<bollard::query_parameters::InspectNetworkOptions>;
    let network = engine.client().inspect_network("bridge", none).await.unwrap();
    let config = network.ipam.unwrap().config.unwrap().remove(0);
    config.gateway.filter(|gateway| !gateway.is_empty()).unwrap_or_else(|| {
        let subnet = config.subnet.unwrap();
        let network: std::net::Ipv4Addr = subnet.split('/').next().unwrap().parse().unwrap();
        std::net::Ipv4Addr::from(u32::from(network) + 1).to_string()
    })
}

/// `part.git`, and `main.git` with it as a submodule at a relative address.
async fn make_repositories(root: &Path) {
    let script = r#"
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init --quiet part; echo content of the part >part/file
        git -C part add file; git -C part commit --quiet -m part
        git clone --quiet --bare part part.git
        git init --quiet main
        printf '[submodule "part"]\n\tpath = part\n\turl = ../part.git\n' >main/.gitmodules
        git -C main add .gitmodules
        git -C main update-index --add --cacheinfo "160000,$(git -C part rev-parse HEAD),part"
        git -C main commit --quiet -m main
        git clone --quiet --bare main main.git"#;
    let status = Command::new("sh").args(["-ec", script]).current_dir(root).status().await.unwrap();
    assert!(status.success());
}

/// `git http-backend` behind HTTP (git-http-backend(1), RFC 3875).
async fn backend(root: PathBuf, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let header = |name: &str| {
        parts.headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&body).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap().stdout;
    let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let mut answer = Response::builder();
    for line in std::str::from_utf8(&output[..end]).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        answer = match name {
            "Status" => answer.status(value[..3].parse::<u16>().unwrap()),
            _ => answer.header(name, value),
        };
    }
    answer.body(Answer::from(output[end + 4..].to_vec())).unwrap()
}

#[tokio::test]
async fn an_image_that_is_there_is_not_sent_again_and_old_ones_go_unless_used() {
    let engine = engine().await;
    let host = host("/bin/true");
    let first = ensure_from(&engine, host.clone()).await.unwrap();
    forget(&engine);
    // Were it sent again, it would have another id.
    assert_eq!(ensure_from(&engine, host.clone()).await.unwrap(), first);
    // Another executable is another image.
    forget(&engine);
    let second = Host { executable: "/bin/cat".into(), ..host };
    let second = ensure_from(&engine, second).await.unwrap();
    assert_ne!(second.reference, first.reference);
    let exists = async |reference: &str| present(&engine, reference).await.unwrap().is_some();
    assert!(exists(&first.reference).await, "a young image stays");

    let user = create(&engine, &first.reference, vec!["/usr/bin/longshore".into()]).await;
    remove_others(&engine, &second.reference, Duration::ZERO).await;
    assert!(exists(&first.reference).await, "an image in use stays");
    finish(&engine, &user).await;
    remove_others(&engine, &second.reference, Duration::ZERO).await;
    assert!(!exists(&first.reference).await);
    assert!(exists(&second.reference).await);
    remove(&engine, &second.reference).await;
}

#[tokio::test]
async fn the_portable_helper_runs_in_an_image_that_lacks_its_libraries() {
    let engine = engine().await;
    let helper = portable_helper(&engine).await.unwrap();
    let mut command = helper.command().to_vec();
    command.extend(["engine::helper_image", "--list"].map(str::to_owned));
    let container = create(&engine, "busybox:latest", command).await;
    helper.put_into(&engine, &container).await.unwrap();
    let said = finish(&engine, &container).await;
    assert!(said.contains("the_portable_helper_runs_in_an_image"), "{said}");
    let gone = engine.client().inspect_container(&container, None::<InspectContainerOptions>).await;
    assert!(gone.is_err());
}

#[tokio::test]
async fn an_engine_of_another_architecture_needs_an_image_of_its_own() {
    let fake = testing::FakeEngine::start(|_| async {
        testing::version("1.41", "1.12", "linux", "riscv64").into_response()
    });
    let engine = fake.connect().await;
    fake.take();
    let error = ensure(&engine).await.unwrap_err();
    assert!(error.to_string().starts_with("the engine runs on riscv64, this host's programs"));
    assert!(error.hint().unwrap().contains("helper_image"));
    assert!(matches!(portable_helper(&engine).await, Err(HelperImageError::Architecture { .. })));
    assert_eq!(fake.lines(), Vec::<String>::new());
}

#[test]
fn a_host_without_git_is_told_what_to_install() {
    let empty = tempfile::tempdir().unwrap();
    let host = Host { path: empty.path().into(), ..host("/bin/true") };
    let error = compose(&host).unwrap_err();
    assert_eq!(
        error.to_string(),
        "git is not installed on this host, and the helper image is made of it"
    );
    let hint = error.hint().unwrap();
    assert!(hint.contains("package `git`") && hint.contains("`helper_image`"), "{hint}");
}

#[test]
fn what_the_host_lacks_is_said() {
    let (_, warnings) = compose(&host("/bin/true")).unwrap();
    let lfs = warnings.iter().any(|w| w.contains("`git-lfs`"));
    assert_eq!(lfs, find_in(PATH.as_ref(), Path::new("git-lfs")).is_none(), "{warnings:?}");
}

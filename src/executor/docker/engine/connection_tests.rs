use crate::base::error_chain;
use std::process::Command;

use axum::response::Response;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls::server::WebPkiClientVerifier};

use super::{
    super::{
        helper_image, image,
        testing::{self, FakeEngine, Recorded, version},
    },
    *,
};

fn env(host: &str) -> EngineEnv {
    EngineEnv { host: Some(host.to_owned()), ..EngineEnv::default() }
}

fn fake(about: impl Fn() -> Response + Clone + Send + Sync + 'static) -> FakeEngine {
    FakeEngine::start(move |_: Recorded| {
        let answer = about();
        async move { answer }
    })
}

async fn refusal(about: impl Fn() -> Response + Clone + Send + Sync + 'static) -> String {
    let fake = fake(about);
    let error = Engine::connect(&EngineAddress::default(), &env(&fake.host())).await.unwrap_err();
    error.to_string().replace(&fake.host(), "HOST")
}

#[tokio::test]
async fn docker_23_engines_of_other_systems_are_refused() {
    assert_eq!(
        refusal(|| version("1.41", "1.24", "windows", "amd64")).await,
        "the engine at `HOST` runs windows containers, only linux is supported"
    );
}

#[tokio::test]
async fn engines_that_are_too_old_are_refused() {
    assert_eq!(
        refusal(|| version("1.29", "1.12", "linux", "amd64")).await,
        "the engine at `HOST` speaks API 1.29, the oldest supported is 1.30"
    );
}

#[test]
fn docker_24_without_a_host_address_and_tls_come_from_the_environment() {
    let variables = |name: &str| {
        let value = match name {
            "DOCKER_HOST" => "tcp://engine.example:2376",
            "DOCKER_CERT_PATH" => "/certs",
            "DOCKER_TLS_VERIFY" => "1",
            _ => "",
        };
        Some(value.to_owned())
    };
    let env = EngineEnv::of(variables);
    assert_eq!((&env.api_version, &env.home), (&None, &None));
    let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
    let from_env = Endpoint::of(&EngineAddress::default(), &env).unwrap();
    assert_eq!(
        from_env,
        Endpoint {
            host: "tcp://engine.example:2376".into(),
            address: tcp("engine.example", 2376),
            tls: Some("/certs".into()),
        }
    );
    // The file's host brings the file's TLS settings with it.
    let config =
        EngineAddress { host: Some("tcp://other.example".into()), ..EngineAddress::default() };
    let from_file = Endpoint::of(&config, &env).unwrap();
    assert_eq!((from_file.address, from_file.tls), (tcp("other.example", 2375), None));
    let nothing = Endpoint::of(&EngineAddress::default(), &EngineEnv::default()).unwrap();
    assert_eq!(nothing.address, Address::Unix("/var/run/docker.sock".into()));
    for off in ["", "0", "false"] {
        assert!(!EngineEnv::of(|_| Some(off.to_owned())).tls_verify);
    }
}

#[test]
fn addresses_of_other_kinds_are_refused() {
    for host in [
        "npipe:////./pipe/docker_engine",
        "ssh://host",
        "host:2375",
        "unix://x",
        "tcp://",
        "https://host",
    ] {
        let error = Endpoint::of(&EngineAddress::default(), &env(host)).unwrap_err();
        assert!(matches!(error, ConnectError::Address { .. }), "{host}: {error}");
    }
}

#[tokio::test]
async fn docker_25_certificates_are_read_only_with_tls_verify() {
    let host = || Some("tcp://127.0.0.1:1".to_owned());
    let missing = EngineAddress {
        host: host(),
        tls_cert_path: Some("/nonexistent".into()),
        ..EngineAddress::default()
    };
    let error = Engine::connect(&missing, &EngineEnv::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    let verified = EngineAddress { tls_verify: true, ..missing };
    let error = Engine::connect(&verified, &EngineEnv::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot read `/nonexistent/ca.pem`");
    let nowhere = EngineAddress { host: host(), tls_verify: true, ..EngineAddress::default() };
    let error = Engine::connect(&nowhere, &EngineEnv::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoCertPath), "{error}");
}

/// A CA, and a certificate of it for `subject` in `<name>.pem` with its `<name>-key.pem`.
fn mint(directory: &Path, ca: &str, names: &[&str]) {
    let openssl = |args: &str| {
        let output =
            Command::new("openssl").args(args.split(' ')).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!("req -x509 {key} -keyout {ca}-key.pem -out {ca}.pem -subj /CN={ca} -days 2"));
    for name in names {
        openssl(&format!(
            "req -x509 {key} -keyout {name}-key.pem -out {name}.pem -subj /CN={name} -days 2 \
             -CA {ca}.pem -CAkey {ca}-key.pem -addext subjectAltName=IP:127.0.0.1 \
             -addext basicConstraints=critical,CA:FALSE"
        ));
    }
}

#[tokio::test]
async fn tls_shows_the_clients_certificate_and_trusts_the_engines_ca_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    mint(path, "ca", &["server", "client"]);
    mint(path, "stranger", &[]);
    for (from, to) in [("client.pem", "cert.pem"), ("client-key.pem", "key.pem")] {
        std::fs::copy(path.join(from), path.join(to)).unwrap();
    }
    let pem = |name: &str| std::fs::read(path.join(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(&pem("server.pem")).unwrap()],
            PrivateKeyDer::from_pem_slice(&pem("server-key.pem")).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("tcp://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let body = r#"{"ApiVersion":"1.41","Os":"linux","Arch":"amd64"}"#;
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    let config =
        EngineAddress { host: Some(host), tls_verify: true, tls_cert_path: Some(path.to_owned()) };
    let engine = Engine::connect(&config, &EngineEnv::default()).await.unwrap();
    assert_eq!(engine.architecture(), "amd64");

    std::fs::copy(path.join("stranger.pem"), path.join("ca.pem")).unwrap();
    let error = Engine::connect(&config, &EngineEnv::default()).await.unwrap_err();
    assert!(error_chain(&error).contains("UnknownIssuer"), "{error:?}");

    std::fs::write(path.join("key.pem"), "no key").unwrap();
    let error = Engine::connect(&config, &EngineEnv::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::TlsContent { what: "key", .. }), "{error}");
}

#[tokio::test]
async fn all_requests_name_the_version_and_share_a_connection() {
    let fake = FakeEngine::start(|r: Recorded| async move {
        match r.line.as_str() {
            "GET /version" => version("1.43", "1.12", "linux", "arm64"),
            _ => axum::response::IntoResponse::into_response(axum::Json(serde_json::json!([]))),
        }
    });
    let engine = fake.connect().await;
    assert_eq!(engine.api_version().to_string(), "1.43");
    assert_eq!(engine.architecture(), "arm64");
    assert_eq!(engine.host(), fake.host());
    for _ in 0..3 {
        let other_job = engine.clone();
        let none = None::<bollard::query_parameters::ListImagesOptions>;
        other_job.client().list_images(none).await.unwrap();
    }
    let requests = fake.take();
    let seen: Vec<_> = requests.iter().map(|r| format!("{} {}", r.version, r.line)).collect();
    assert_eq!(
        seen,
        [
            " GET /version",
            "/v1.43 GET /images/json",
            "/v1.43 GET /images/json",
            "/v1.43 GET /images/json"
        ]
    );
    assert_eq!(fake.connections(), 1);
}

#[tokio::test]
async fn the_environment_may_choose_a_version_that_both_speak() {
    let fake = fake(|| version("1.99", "1.24", "linux", "amd64"));
    let wanting =
        |version: &str| EngineEnv { api_version: Some(version.to_owned()), ..env(&fake.host()) };
    let newest = Engine::connect(&EngineAddress::default(), &env(&fake.host())).await.unwrap();
    let known = bollard::API_DEFAULT_VERSION.to_string();
    assert_eq!(newest.api_version().to_string(), known);
    let chosen = Engine::connect(&EngineAddress::default(), &wanting("1.40")).await.unwrap();
    assert_eq!(chosen.api_version().to_string(), "1.40");
    let error = Engine::connect(&EngineAddress::default(), &wanting("1.29")).await.unwrap_err();
    assert_eq!(
        error.to_string().replace(&fake.host(), "HOST"),
        "DOCKER_API_VERSION asks for API 1.29, \
         but the engine at `HOST` can be used with 1.30 to 1.53"
    );
    let error = Engine::connect(&EngineAddress::default(), &wanting("new")).await.unwrap_err();
    assert_eq!(error.to_string(), "`new` is not an API version such as 1.41");
}

#[tokio::test]
async fn a_real_engine_is_reached_and_its_absence_is_said() {
    let engine = testing::engine().await;
    assert!(engine.api_version() >= ApiVersion::OLDEST);
    let none = None::<bollard::query_parameters::InspectContainerOptions>;
    let missing = engine.client().inspect_container("longshore-test-missing", none).await;
    let missing = missing.map_err(Error::of("inspect the container", "x")).unwrap_err();
    assert!(missing.is_not_found() && !missing.is_gone(), "{missing:?}");

    let error = Engine::connect(&EngineAddress::default(), &env("unix:///nonexistent/s"))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "no Docker engine answers at `unix:///nonexistent/s`");
    let ConnectError::Unreachable { source, .. } = error else { panic!("{error}") };
    assert!(source.is_gone());
}

#[tokio::test]
async fn a_container_is_attached_to_in_both_directions() {
    use bollard::query_parameters as q;
    use futures_util::StreamExt as _;
    let engine = testing::engine().await;
    let client = engine.client();
    let body = bollard::models::ContainerCreateBody {
        image: Some("busybox:latest".into()),
        cmd: Some(["sh", "-c", "read line; echo got $line"].map(str::to_owned).to_vec()),
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        ..Default::default()
    };
    let none = None::<q::CreateContainerOptions>;
    let id = client.create_container(none, body).await.unwrap().id;
    let options =
        q::AttachContainerOptions { stream: true, stdin: true, stdout: true, ..Default::default() };
    let mut attached = client.attach_container(&id, Some(options)).await.unwrap();
    client.start_container(&id, None::<q::StartContainerOptions>).await.unwrap();
    attached.input.write_all(b"this\n").await.unwrap();
    attached.input.flush().await.unwrap();
    let said: Vec<_> = attached.output.map(|piece| piece.unwrap().to_string()).collect().await;
    let options = q::RemoveContainerOptions { force: true, ..Default::default() };
    client.remove_container(&id, Some(options)).await.unwrap();
    assert_eq!(said, ["got this\n"]);
}

#[test]
fn connecting_and_getting_images_can_be_done_by_a_task_of_its_own() {
    fn is_send(_: impl Send) {}
    let (config, env) = (EngineAddress::default(), EngineEnv::default());
    is_send(Engine::connect(&config, &env));
    let with = |engine: &'static Engine, request: &'static image::ImageRequest| {
        is_send(helper_image::ensure(engine));
        is_send(helper_image::portable_helper(engine));
        is_send(async move { image::ensure(engine, request, &mut |_| {}).await });
    };
    let _: fn(&'static Engine, &'static image::ImageRequest) = with;
}

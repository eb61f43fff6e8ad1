use std::{collections::BTreeMap, net::TcpListener};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio_rustls::rustls::{
    self, ServerConfig, pki_types::PrivatePkcs8KeyDer, server::WebPkiClientVerifier,
};

use super::*;
use crate::gitlab::{
    api::{
        Client, JobReply, info,
        testing::{client, settings},
    },
    test_server::{Reply, Server},
};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca(name: &str) -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn named(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).unwrap()
}

/// A certificate of its own making that calls itself a CA, as `openssl req -x509` makes them.
fn self_signed(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn key(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

fn server_config(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(builder.with_single_cert(vec![certificate], key).unwrap())
}

/// A server whose certificate for `localhost` is signed by this CA.
async fn signed_by(ca: &Ca) -> Server {
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = named("localhost").signed_by(&leaf_key, ca).unwrap();
    let config = server_config(leaf.der().clone(), key(&leaf_key));
    Server::tls(config, |_, _| Reply::status(204)).await
}

async fn with_own(ca: &Ca) -> Server {
    let config = server_config(ca.as_ref().der().clone(), key(ca.key()));
    Server::tls(config, |_, _| Reply::status(204)).await
}

fn local(server: &Server) -> ClientSettings {
    settings(&format!("https://localhost:{}", server.address.port()))
}

async fn poll(client: &Client) -> JobReply {
    client.request_job(&info("docker", "bash", "", &BTreeMap::new()), "s").await
}

fn file(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn api_19_an_unknown_ca_is_refused_with_what_to_do() {
    let server = signed_by(&ca("private")).await;
    let dir = tempfile::tempdir().unwrap();
    // Some other CA, so that the test does not need the system's.
    let other = file(&dir, "ca.pem", &ca("other").pem());
    let client = client(ClientSettings { tls_ca_file: Some(other), ..local(&server) });
    let reply = poll(&client).await;
    assert!(reply.healthy && reply.status.is_none());
    let problem = reply.problem.unwrap();
    assert!(problem.contains("is not trusted") && problem.contains("`tls-ca-file`"), "{problem}");
    assert!(problem.contains("UnknownIssuer"), "{problem}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn api_20_the_ca_is_found_by_the_servers_name_and_handed_to_jobs_as_it_is() {
    let ca = ca("private");
    let server = signed_by(&ca).await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!("# ours\n{}\n\n", ca.pem());
    file(&dir, "localhost.crt", &text);
    let client =
        client(ClientSettings { certs_dir: Some(dir.path().to_owned()), ..local(&server) });
    assert_eq!(poll(&client).await.status, Some(204));
    assert_eq!(client.server_ca(), Some(text));
    assert_eq!(client.client_certificate(), None);
}

#[tokio::test]
async fn api_21_a_replaced_ca_file_counts_from_the_next_request_on() {
    let ours = ca("private");
    let server = signed_by(&ours).await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "ca.pem", &ca("other").pem());
    let client = client(ClientSettings { tls_ca_file: Some(path), ..local(&server) });
    assert_eq!(poll(&client).await.status, None);
    file(&dir, "ca.pem", &format!("{}{}", ca("third").pem(), ours.pem()));
    assert_eq!(poll(&client).await.status, Some(204));
    file(&dir, "ca.pem", &ca("fourth").pem());
    assert_eq!(poll(&client).await.status, None);
}

#[test]
fn api_22_the_verified_chain_has_the_leaf_and_the_root() {
    let root = ca("root");
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
    let middle = Ca::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
    let leaf = named("localhost").signed_by(&KeyPair::generate().unwrap(), &middle).unwrap();
    let stray = ca("stray");
    let mut roots = RootCertStore::empty();
    roots.add(stray.der().clone()).unwrap();
    roots.add(root.der().clone()).unwrap();
    let chain = verified_chain(
        leaf.der(),
        &[stray.der().clone(), middle.der().clone()],
        &roots,
        &provider(),
        UnixTime::now(),
        || vec![stray.der().clone(), root.der().clone()],
    )
    .unwrap();
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    assert_eq!(found, [leaf.der().clone(), middle.der().clone(), root.der().clone()]);
    assert_eq!(chain.trim_end(), chain);
}

#[test]
fn api_22_without_a_ca_file_the_chain_of_the_servers_own_connection_is_kept() {
    let ca = ca("private");
    let leaf = CertificateParams::new(vec!["gitlab.example.com".to_owned(), "s3".to_owned()]);
    let leaf = leaf.unwrap().signed_by(&KeyPair::generate().unwrap(), &ca).unwrap();
    let verifier = |own| {
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        Verifier::new(roots, own, &provider(), &Url::parse("https://gitlab.example.com").unwrap())
    };
    let verify = |verifier: &Verifier, name: &'static str| {
        let name = ServerName::try_from(name).unwrap();
        verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now())
    };
    let from_system = verifier(Vec::new());
    verify(&from_system, "s3").unwrap();
    assert_eq!(from_system.chain(), None);
    verify(&from_system, "gitlab.example.com").unwrap();
    assert_eq!(from_system.chain().unwrap(), pem(leaf.der()));
    verify(&from_system, "other.example.com").unwrap_err();
    let from_file = verifier(vec![ca.der().clone()]);
    verify(&from_file, "gitlab.example.com").unwrap();
    assert_eq!(from_file.chain(), None);
}

#[tokio::test]
async fn api_23_plain_http_hands_nothing_to_jobs() {
    let server = Server::start(|_, _| Reply::status(204)).await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "ca.pem", &ca("private").pem());
    let client = client(ClientSettings { tls_ca_file: Some(path), ..settings(server.url()) });
    assert_eq!(poll(&client).await.status, Some(204));
    assert_eq!((client.server_ca(), client.client_certificate()), (None, None));
}

#[tokio::test]
async fn api_24_tls_1_1_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 4096];
        let _ = stream.read(&mut hello).await.unwrap();
        // ServerHello, TLS 1.1, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, no compression.
        let mut answer = vec![0x16, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2];
        answer.extend([7; 32]);
        answer.extend([0, 0xc0, 0x13, 0]);
        stream.write_all(&answer).await.unwrap();
        let mut alert = Vec::new();
        let _ = stream.read_to_end(&mut alert).await;
        alert
    });
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "ca.pem", &ca("private").pem());
    let settings = settings(&format!("https://localhost:{port}"));
    let client = client(ClientSettings { tls_ca_file: Some(path), ..settings });
    let reply = poll(&client).await;
    assert_eq!(reply.status, None);
    let alert = tasks.join_next().await.unwrap().unwrap();
    // An alert record: fatal, protocol_version.
    assert_eq!((alert[0], &alert[5..7]), (0x15, &[2, 70][..]), "{:?}", reply.problem);
}

#[tokio::test]
async fn a_self_signed_certificate_that_calls_itself_a_ca_is_trusted_when_named() {
    let own = self_signed("localhost", |_| ());
    let server = with_own(&own).await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "ca.pem", &own.pem());
    let client = client(ClientSettings { tls_ca_file: Some(path), ..local(&server) });
    let reply = poll(&client).await;
    assert_eq!(reply.status, Some(204), "{:?}", reply.problem);
    assert_eq!(client.server_ca(), Some(own.pem()));
}

#[tokio::test]
async fn a_self_signed_certificate_is_still_checked_for_name_and_dates() {
    let dir = tempfile::tempdir().unwrap();
    let future = date_time_ymd(2999, 1, 1);
    for (own, reason) in [
        (self_signed("gitlab.example.com", |_| ()), "not valid for name"),
        (
            self_signed("localhost", |params| params.not_after = date_time_ymd(2020, 1, 1)),
            "expired",
        ),
        (self_signed("localhost", |params| params.not_before = future), "not valid yet"),
    ] {
        let server = with_own(&own).await;
        let path = file(&dir, "ca.pem", &own.pem());
        let client = client(ClientSettings { tls_ca_file: Some(path), ..local(&server) });
        let reply = poll(&client).await;
        assert_eq!(reply.status, None, "{reason}");
        let problem = reply.problem.unwrap();
        assert!(problem.contains("not trusted") && problem.contains(reason), "{problem}");
        assert!(server.seen().is_empty());
    }
}

#[tokio::test]
async fn a_self_signed_certificate_of_another_key_is_refused() {
    let (own, other) = (self_signed("localhost", |_| ()), self_signed("localhost", |_| ()));
    let server = with_own(&other).await;
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "ca.pem", &own.pem());
    let client = client(ClientSettings { tls_ca_file: Some(path), ..local(&server) });
    assert_eq!(poll(&client).await.status, None);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_server_and_handed_to_jobs() {
    let ca = ca("private");
    let (leaf_key, own_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let leaf = named("localhost").signed_by(&leaf_key, &ca).unwrap();
    let own = named("runner").signed_by(&own_key, &ca).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![leaf.der().clone()], key(&leaf_key))
        .unwrap();
    let server = Server::tls(Arc::new(config), |_, _| Reply::status(204)).await;
    let dir = tempfile::tempdir().unwrap();
    file(&dir, "localhost.crt", &ca.pem());
    let settings = ClientSettings { certs_dir: Some(dir.path().to_owned()), ..local(&server) };
    let client = client(settings);
    assert_eq!(poll(&client).await.status, None);

    file(&dir, "localhost.auth.crt", &own.pem());
    file(&dir, "localhost.auth.key", "not a key");
    assert_eq!(poll(&client).await.status, None);

    file(&dir, "localhost.auth.key", &own_key.serialize_pem());
    let reply = poll(&client).await;
    assert_eq!(reply.status, Some(204), "{:?}", reply.problem);
    let (certificate, secret) = client.client_certificate().unwrap();
    assert_eq!((certificate, secret.expose()), (own.pem(), own_key.serialize_pem().as_str()));
}

#[tokio::test]
async fn a_ca_file_that_is_missing_or_broken_leaves_the_system_alone() {
    let server = Server::start(|_, _| Reply::status(204)).await;
    let dir = tempfile::tempdir().unwrap();
    let broken = file(&dir, "ca.pem", "-----BEGIN CERTIFICATE-----\nnothing\n");
    for path in [broken, dir.path().join("missing.pem")] {
        let settings = ClientSettings { tls_ca_file: Some(path), ..settings(server.url()) };
        assert_eq!(poll(&client(settings)).await.status, Some(204));
    }
}

#[test]
fn pem_lines_have_64_characters() {
    let ca = ca("private");
    let ours = pem(ca.der());
    assert_eq!(ours.replace('\n', ""), ca.pem().replace(['\r', '\n'], ""));
    assert!(ours.lines().all(|line| line.len() <= 64));
    assert!(ours.ends_with("-----END CERTIFICATE-----"));
}

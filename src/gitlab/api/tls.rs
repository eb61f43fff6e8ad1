//! Whom a client trusts, and who it is: the system's roots plus a CA file, a client certificate,
//! and what of this jobs are told. Files are read here; when they change, `transport` asks again.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use url::Url;

use super::{address::clean, error::ClientError, settings::ClientSettings};
use crate::base::secret::Secret;

/// The files of one server, whether they exist or not.
#[derive(Debug, Clone, Default)]
pub(super) struct TlsFiles {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Files that the configuration names: their absence is worth a line in the log.
    named: Vec<PathBuf>,
}

impl TlsFiles {
    /// The files that the settings name, or else `<host>.crt`, `<host>.auth.crt` and
    /// `<host>.auth.key` in the directory of certificates.
    pub(super) fn of(settings: &ClientSettings, base: &Url) -> Self {
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let found =
            |suffix: &str| Some(settings.certs_dir.as_ref()?.join(format!("{host}{suffix}")));
        let given = [&settings.tls_ca_file, &settings.tls_cert_file, &settings.tls_key_file];
        Self {
            ca: settings.tls_ca_file.clone().or_else(|| found(".crt")),
            cert: settings.tls_cert_file.clone().or_else(|| found(".auth.crt")),
            key: settings.tls_key_file.clone().or_else(|| found(".auth.key")),
            named: given.into_iter().flatten().cloned().collect(),
        }
    }

    /// Changes whenever one of the files does.
    pub(super) fn stamp(&self) -> Stamp {
        let stamp = |path: &Option<PathBuf>| {
            let metadata = std::fs::metadata(path.as_ref()?).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        Stamp([stamp(&self.ca), stamp(&self.cert), stamp(&self.key)])
    }

    /// The text of a file; `None` when it is not there or cannot be read.
    fn read(&self, path: Option<&Path>) -> Option<String> {
        let path = path?;
        match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if self.named.iter().any(|named| named == path) {
                    tracing::warn!(path = %path.display(), "a TLS file of the configuration is missing");
                }
                None
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot read a TLS file");
                None
            }
        }
    }
}

/// See [`TlsFiles::stamp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp([Option<(SystemTime, u64)>; 3]);

/// TLS towards one server, as its files said when it was made.
#[derive(Debug)]
pub(super) struct Tls {
    config: ClientConfig,
    verifier: Arc<Verifier>,
    ca: Option<String>,
    client: Option<(String, Secret)>,
}

impl Tls {
    /// Reads the files. A file that cannot be used is logged and left out, as is one that is not
    /// there (GitLab Runner: `network/client.go`).
    pub(super) fn load(files: &TlsFiles, base: &Url) -> Result<Self, ClientError> {
        let address = || clean(base);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        let (mut ca, mut own) = (None, Vec::new());
        if let Some(text) = files.read(files.ca.as_deref()) {
            let certificates = CertificateDer::pem_slice_iter(text.as_bytes());
            own = certificates.filter_map(Result::ok).collect();
            let (added, _) = roots.add_parsable_certificates(own.iter().cloned());
            if added > 0 {
                ca = Some(text);
            } else {
                let path = files.ca.as_deref().unwrap_or(Path::new(""));
                tracing::error!(path = %path.display(), "the CA file holds no certificate that can be used");
            }
        }
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() && base.scheme() == "https" {
            return Err(ClientError::NoRoots { url: address() });
        }
        let verifier = Arc::new(Verifier::new(roots, own, &provider, base));
        let builder = || {
            ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map(|builder| {
                    builder.dangerous().with_custom_certificate_verifier(verifier.clone())
                })
                .map_err(|source| ClientError::Tls { url: address(), source })
        };
        let cert = files.read(files.cert.as_deref());
        let client = cert.zip(files.read(files.key.as_deref()).map(Secret::new));
        let mut config = None;
        if let Some((cert, key)) = &client {
            match identity(cert, key).and_then(|(chain, key)| {
                let builder = builder().map_err(|error| error.to_string())?;
                builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
            }) {
                Ok(made) => config = Some(made),
                Err(error) => {
                    let path = files.cert.as_deref().unwrap_or(Path::new(""));
                    tracing::error!(path = %path.display(), error, "cannot use the client certificate");
                }
            }
        }
        let config = match config {
            Some(config) => config,
            None => builder()?.with_no_client_auth(),
        };
        Ok(Self { config, verifier, ca, client })
    }

    /// For reqwest.
    pub(super) fn config(&self) -> ClientConfig {
        self.config.clone()
    }

    /// What jobs trust the server by: the CA file as it is, or else the chain that the last
    /// connection was verified by.
    pub(super) fn server_ca(&self) -> Option<String> {
        self.ca.clone().or_else(|| self.verifier.chain())
    }

    /// Certificate and key, as they are in their files.
    pub(super) fn client_certificate(&self) -> Option<(String, Secret)> {
        self.client.clone()
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client's certificate; errors say nothing of the key.
fn identity(cert: &str, key: &Secret) -> Result<Identity, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert.as_bytes()).collect();
    let chain = chain.map_err(|error| format!("certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
        .map_err(|_| "the key file holds no key in PEM form".to_owned())?;
    Ok((chain, key))
}

/// webpki's rules, plus one: a certificate that is in the CA file itself is the server's, even if
/// it calls itself a CA. `openssl req -x509` makes such certificates, and Go's client accepts them.
#[derive(Debug)]
struct Verifier {
    /// `None` when there are no roots; then nothing is trusted.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    roots: Arc<RootCertStore>,
    /// What the CA file holds.
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    /// Whose chain jobs are told; others (storage behind a redirect) are none of theirs.
    host: String,
    chain: Mutex<Option<String>>,
}

impl Verifier {
    fn new(
        roots: RootCertStore,
        own: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
        base: &Url,
    ) -> Self {
        let roots = Arc::new(roots);
        let webpki =
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        Self {
            webpki: webpki.ok(),
            roots,
            own,
            provider: provider.clone(),
            host: base.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            chain: Mutex::new(None),
        }
    }

    fn chain(&self) -> Option<String> {
        self.chain.lock().clone()
    }

    fn is_host(&self, name: &ServerName<'_>) -> bool {
        match name {
            ServerName::DnsName(name) => name.as_ref().eq_ignore_ascii_case(&self.host),
            ServerName::IpAddress(ip) => self.host.parse() == Ok(IpAddr::from(*ip)),
            _ => false,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(webpki) = &self.webpki else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        match webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            Ok(verified) => {
                if self.own.is_empty() && self.is_host(server_name) {
                    let chain = verified_chain(
                        end_entity,
                        intermediates,
                        &self.roots,
                        &self.provider,
                        now,
                        || rustls_native_certs::load_native_certs().certs,
                    );
                    *self.chain.lock() = chain;
                }
                Ok(verified)
            }
            // webpki looks at this after the dates, so those are good; the name is not checked yet.
            Err(error) if is_ca_as_end_entity(&error) && self.own.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            Err(error) => Err(error),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn is_ca_as_end_entity(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        return false;
    };
    other.0.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
}

/// PEM of the chain from the server's certificate to the root that it was verified by.
fn verified_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    now: UnixTime,
    system: impl FnOnce() -> Vec<CertificateDer<'static>>,
) -> Option<String> {
    let leaf = webpki::EndEntityCert::try_from(end_entity).ok()?;
    let path = leaf
        .verify_for_usage(
            provider.signature_verification_algorithms.all,
            &roots.roots,
            intermediates,
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .ok()?;
    let mut chain = vec![end_entity.clone()];
    chain.extend(path.intermediate_certificates().map(webpki::Cert::der));
    // The store keeps only name and key of a root, so its certificate is looked up again.
    let anchor = path.anchor();
    let system = system();
    let root = system.iter().find(|certificate| {
        webpki::anchor_from_trusted_cert(certificate).is_ok_and(|candidate| {
            candidate.subject == anchor.subject
                && candidate.subject_public_key_info == anchor.subject_public_key_info
        })
    });
    if let Some(root) = root
        && !chain.contains(root)
    {
        chain.push(root.clone());
    }
    let pem: Vec<_> = chain.iter().map(|certificate| pem(certificate)).collect();
    Some(pem.join("\n"))
}

/// A certificate in PEM form, without a newline at its end.
fn pem(certificate: &[u8]) -> String {
    let text = STANDARD.encode(certificate);
    let mut lines = vec!["-----BEGIN CERTIFICATE-----"];
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        lines.push(line);
        rest = more;
    }
    lines.push("-----END CERTIFICATE-----");
    lines.join("\n")
}

#[cfg(test)]
mod tests;

//! Certificates for a job's daemon and its clients: made anew for each job, and gone with it.
//!
//! The image would make three RSA keys of 4096 bits in seconds to minutes; it takes what it finds
//! when `server/{ca,cert,key}.pem` are there and `ca/key.pem` is not (docker-library/docker,
//! `_tls_generate_certs`). The CA's key is dropped here, so nobody can sign with it later.

use std::sync::Arc;

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::workload::access::CertificatePlan;

use super::files::Files;

/// How long they are valid: longer than any job.
const DAYS: i64 = 90;

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The library refuses a name or a key.
    #[error("cannot make certificates for the job's Docker daemon")]
    Make(#[from] rcgen::Error),
    /// They cannot be used by ourselves.
    #[error("cannot use the certificates of the job's Docker daemon")]
    Use(#[from] rustls::Error),
}

/// Certificates and keys, PEM.
pub(super) struct Certificates {
    ca: String,
    server: Pair,
    client: Pair,
}

struct Pair {
    certificate: String,
    key: String,
}

impl Certificates {
    /// Makes them.
    pub(super) fn mint(names: &[String]) -> Result<Self, CertificateError> {
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let mut params = params("longshore: CA of one job", Vec::new(), today)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let pair = |name: &str, names: &[String], usage: ExtendedKeyUsagePurpose| {
            let mut params = self::params(name, names.to_vec(), today)?;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &ca)?;
            Ok::<_, CertificateError>(Pair {
                certificate: certificate.pem(),
                key: key.serialize_pem(),
            })
        };
        Ok(Self {
            ca: ca.pem(),
            server: pair("docker", names, ExtendedKeyUsagePurpose::ServerAuth)?,
            client: pair("client of the job", &[], ExtendedKeyUsagePurpose::ClientAuth)?,
        })
    }

    /// Adds the files where the image looks for them. The client's can be read by any user of the
    /// job's image; the server's by the daemon alone.
    pub(super) fn add_to(&self, files: &mut Files, plan: &CertificatePlan) {
        let root = &plan.directory;
        let mut add = |path: &str, mode: u32, owner: u32, content: Option<&str>| {
            let path = format!("{root}/{path}");
            match content {
                Some(content) => files.file(&path, mode, owner, content),
                None => files.directory(&path, owner),
            }
        };
        for directory in ["", "ca", "server", "client"] {
            add(directory, 0o755, plan.owner, None);
        }
        // Empty, it counts as absent; one from before, in a volume of the operator, would have the
        // image make all anew.
        add("ca/key.pem", 0o644, plan.owner, Some(""));
        for (directory, pair, mode, owner) in
            [("server", &self.server, 0o600, plan.owner), ("client", &self.client, 0o644, 0)]
        {
            add(&format!("{directory}/ca.pem"), 0o644, owner, Some(&self.ca));
            add(&format!("{directory}/cert.pem"), 0o644, owner, Some(&pair.certificate));
            add(&format!("{directory}/key.pem"), mode, owner, Some(&pair.key));
        }
    }

    /// TLS as the job's tools have it.
    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, CertificateError> {
        let certificate = |pem: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes())
                .map_err(|error| rustls::Error::General(error.to_string()))
        };
        let key = PrivateKeyDer::from_pem_slice(self.client.key.as_bytes())
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.ca)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate(&self.client.certificate)?], key)?;
        Ok(Arc::new(config))
    }
}

fn params(
    name: &str,
    names: Vec<String>,
    today: Date,
) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    let day = |date: Date| {
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(today.saturating_sub(1.day()));
    params.not_after = day(today.saturating_add(DAYS.days()));
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn archive(certificates: &Certificates, plan: &CertificatePlan) -> Vec<u8> {
        let mut files = Files::new();
        certificates.add_to(&mut files, plan);
        files.finish().unwrap().unwrap()
    }

    fn unpacked(owner: u32) -> (tempfile::TempDir, Certificates) {
        let names = ["docker", "127.0.0.1", "reg__docker"].map(str::to_owned).to_vec();
        let certificates = Certificates::mint(&names).unwrap();
        let plan = CertificatePlan { directory: "/certs".to_owned(), names, owner };
        let directory = tempfile::tempdir().unwrap();
        let archive = archive(&certificates, &plan);
        tar::Archive::new(archive.as_slice()).unpack(directory.path()).unwrap();
        (directory, certificates)
    }

    #[test]
    fn docker_100_the_images_entrypoint_finds_a_set_that_it_takes_as_it_is() {
        let (directory, certificates) = unpacked(0);
        let at = |path: &str| directory.path().join("certs").join(path);
        for file in ["ca", "cert", "key"] {
            for side in ["server", "client"] {
                assert_ne!(at(&format!("{side}/{file}.pem")).metadata().unwrap().len(), 0);
            }
        }
        assert_eq!(at("ca/key.pem").metadata().unwrap().len(), 0);
        let mode = |path: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            at(path).metadata().unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("server/key.pem"), mode("client/key.pem")), (0o600, 0o644));
        certificates.client().unwrap();
        // What the entrypoint does itself.
        let verified = Command::new("openssl")
            .args(["verify", "-CAfile"])
            .args([at("server/ca.pem"), at("server/cert.pem")])
            .output();
        if let Ok(output) = verified {
            assert!(output.status.success(), "{output:?}");
        }
    }

    #[test]
    fn a_daemon_without_root_owns_what_it_must_read() {
        let names = vec!["docker".to_owned()];
        let certificates = Certificates::mint(&names).unwrap();
        let plan = CertificatePlan { directory: "/certs".to_owned(), names, owner: 1000 };
        let archive = archive(&certificates, &plan);
        let mut archive = tar::Archive::new(archive.as_slice());
        let key = archive
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .find(|entry| entry.path().unwrap().ends_with("server/key.pem"))
            .unwrap();
        assert_eq!((key.header().uid().unwrap(), key.header().mode().unwrap()), (1000, 0o600));
    }
}

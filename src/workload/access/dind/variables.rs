//! What a job is told of its daemon, and what of its own variables contradicts it.

use super::{
    super::{
        address::{Address, PLAIN_PORT},
        inputs::Inputs,
    },
    certificates::CertificatePlan,
    reach::Reach,
};

/// Variables for a job, by name.
type JobVariables = Vec<(&'static str, String)>;

/// The job's side of a daemon.
pub(super) struct JobSide<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) reach: &'a Reach,
    pub(super) port: u16,
    pub(super) certificates: Option<&'a CertificatePlan>,
    /// The daemon's socket, where the job names it in `DOCKER_HOST`.
    pub(super) asked_socket: Option<&'a str>,
}

impl JobSide<'_> {
    /// Variables that the job does not set itself, and notes on those that lead elsewhere.
    pub(super) fn variables(&self) -> (JobVariables, Vec<String>) {
        let Reach { host, address, asked_port, .. } = self.reach;
        let mut variables = Vec::new();
        match address {
            Address::Unset => {
                variables.push(("DOCKER_HOST", format!("tcp://{host}:{}", self.port)));
            }
            Address::Tcp { .. } if asked_port.is_some() => {}
            Address::Unix(_) if self.asked_socket.is_some() => {
                return (variables, self.note_tls_on_a_socket());
            }
            Address::Tcp { .. } | Address::Unix(_) | Address::Other(_) => {
                let note = format!(
                    "DOCKER_HOST is {}, which is not the job's daemon: that is at \
                     tcp://{host}:{}; without the variable it is found",
                    self.inputs.variable("DOCKER_HOST").unwrap_or_default(),
                    self.port,
                );
                return (variables, vec![note]);
            }
        }
        if let Some(certificates) = self.certificates {
            let client = certificates.client();
            for (name, value) in [("DOCKER_TLS_VERIFY", "1"), ("DOCKER_CERT_PATH", &client)] {
                if self.inputs.variable(name).is_none() {
                    variables.push((name, value.to_owned()));
                }
            }
        }
        (variables, Vec::new())
    }

    fn note_tls_on_a_socket(&self) -> Vec<String> {
        let note = "DOCKER_TLS_VERIFY is set, but DOCKER_HOST is a unix socket, which has no TLS: \
                    docker fails with both, so remove one of the two";
        self.inputs.variable("DOCKER_TLS_VERIFY").map(|_| note.to_owned()).into_iter().collect()
    }

    /// Contradictions between the job's variables; `port` when its address has the port without
    /// TLS though it asks for TLS.
    pub(super) fn contradictions(&self, port: bool) -> Vec<String> {
        let mut notes = Vec::new();
        let Some(certificates) = self.certificates else {
            let verifies = self.inputs.variable("DOCKER_TLS_VERIFY").is_some();
            if verifies && self.asked_socket.is_none() {
                notes.push(
                    "DOCKER_TLS_VERIFY is set, but DOCKER_TLS_CERTDIR is empty, and so the job's \
                     daemon has no TLS: remove one of the two"
                        .to_owned(),
                );
            }
            return notes;
        };
        let client = certificates.client();
        let path = self.inputs.variable("DOCKER_CERT_PATH");
        let path = path.map(|path| path.trim_end_matches('/'));
        if let Some(path) = path.filter(|path| *path != client) {
            notes.push(format!(
                "DOCKER_CERT_PATH is {path}, but DOCKER_TLS_CERTDIR has the job's certificates in \
                 {client}"
            ));
        }
        if port {
            notes.push(format!(
                "DOCKER_HOST has the port without TLS, but DOCKER_TLS_CERTDIR is set: the job's \
                 daemon has TLS on port {PLAIN_PORT} too, and DOCKER_TLS_VERIFY is set for it"
            ));
        }
        notes
    }
}

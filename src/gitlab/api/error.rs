//! What can go wrong between longshore and GitLab. No message contains a token, a body or the
//! query of an address.

use std::time::Duration;

/// No client can be made of the settings: nothing was sent, and nothing ever will be until they
/// change.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address.
    #[error(
        "cannot use `url = \"{value}\"`: {reason}; write GitLab's address, as in `https://gitlab.example.com`"
    )]
    Address {
        /// As in the file, without user and query.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to trust an `https` server by.
    #[error(
        "cannot use `url = \"{url}\"`: this machine has no CA certificates; install the system's CA \
         bundle, or name the server's CA in `tls-ca-file`"
    )]
    NoRoots {
        /// The address, without user and query.
        url: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS for `url = \"{url}\"`; check `tls-cert-file` and `tls-key-file`")]
    Tls {
        /// The address, without user and query.
        url: String,
        /// From rustls.
        source: tokio_rustls::rustls::Error,
    },
    /// The HTTP client cannot be made.
    #[error(
        "cannot set up the connection to `url = \"{url}\"`; check the proxy settings in the environment"
    )]
    Http {
        /// The address, without user and query.
        url: String,
        /// From reqwest.
        source: reqwest::Error,
    },
}

/// A call that brought no answer that can be used ("-1" of the job API).
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The network or the server's HTTP.
    #[error("cannot reach {address}")]
    Http {
        /// Without user and query.
        address: String,
        /// Without its address.
        source: reqwest::Error,
    },
    /// The server's certificate.
    #[error(
        "the certificate of {address} is not trusted; if its CA is not a public one, name it in \
         `tls-ca-file`"
    )]
    Untrusted {
        /// Without user and query.
        address: String,
        /// Without its address.
        source: reqwest::Error,
    },
    /// The caller could not say what to send.
    #[error("nothing to send to {address}")]
    NoBody {
        /// Without user and query.
        address: String,
    },
    /// No answer in time.
    #[error("no answer from {address} within {}", seconds(*.after))]
    TimedOut {
        /// Without user and query.
        address: String,
        /// The deadline.
        after: Duration,
    },
    /// A loop, most likely.
    #[error("more than {limit} redirects from {address}")]
    TooManyRedirects {
        /// Where the call began, without user and query.
        address: String,
        /// Hops that are followed.
        limit: usize,
    },
    /// `Location` leads nowhere.
    #[error("{address} redirects to something that is no http address")]
    BadRedirect {
        /// Without user and query.
        address: String,
    },
    /// An answer of the expected status, but not JSON: a login page, a proxy's page.
    #[error(
        "{address} answered {status} with {media_type} where JSON is needed; is `url` GitLab's own address?"
    )]
    NotJson {
        /// Without user and query.
        address: String,
        /// The status.
        status: u16,
        /// `Content-Type`, or words saying that there is none.
        media_type: String,
    },
    /// JSON that cannot be understood.
    #[error("cannot understand the answer of {address}: {reason}")]
    Undecodable {
        /// Without user and query.
        address: String,
        /// Without any value of the answer.
        reason: String,
    },
    /// An answer without end.
    #[error("the answer of {address} is longer than {limit} bytes")]
    TooLong {
        /// Without user and query.
        address: String,
        /// The limit.
        limit: usize,
    },
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

/// A call for a runner (register, unregister, reset) that failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// 403.
    #[error("the server refuses the token: {message}")]
    Forbidden {
        /// Rendered answer.
        message: String,
    },
    /// Any other status.
    #[error("the server refuses: {message}")]
    Refused {
        /// The status.
        status: u16,
        /// Rendered answer.
        message: String,
    },
    /// No answer.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Why JSON does not fit, without the values that serde puts in its messages.
pub(super) fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!("line {} column {}", error.line(), error.column());
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early".to_owned(),
        serde_json::error::Category::Syntax => "it is not JSON".to_owned(),
        serde_json::error::Category::Io => "it cannot be read".to_owned(),
        serde_json::error::Category::Data => {
            match (text.split_once(':'), text.rsplit_once(", expected ")) {
                (
                    Some((kind @ ("invalid type" | "invalid value" | "invalid length"), _)),
                    Some((_, expected)),
                ) => {
                    let expected = expected.split(" at line ").next().unwrap_or_default();
                    format!("{kind}, expected {expected}")
                }
                _ => match text.strip_prefix("missing field `").and_then(|t| t.split_once('`')) {
                    Some((field, _)) => format!("missing field `{field}`"),
                    None => "a value does not fit".to_owned(),
                },
            }
        }
    };
    format!("{what} ({place})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_problems_show_no_values() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only decoding matters")]
        struct Sample {
            id: i64,
        }
        let problem = |text: &str| json_problem(&serde_json::from_str::<Sample>(text).unwrap_err());
        let wrong = problem(r#"{"id": "hunter2, expected hunter3"}"#);
        assert_eq!(wrong, "invalid type, expected i64 (line 1 column 34)");
        assert_eq!(problem("{}"), "missing field `id` (line 1 column 2)");
        assert_eq!(problem(r#"{"id": 1.5}"#), "invalid type, expected i64 (line 1 column 10)");
        assert!(problem("{\"id\": ").starts_with("it ends too early"));
        assert!(problem("<html>").starts_with("it is not JSON"));
    }
}

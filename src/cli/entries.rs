//! What the commands about registered runners share: which entries are meant, and a client for
//! each.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{Timestamp, Unit};

use super::exit::Failure;
use crate::{
    base::ids::ShortToken,
    config::{
        edit::{Editor, Entry, TokenUpdate},
        system_id,
    },
    gitlab::api::{Client, ClientError, ClientSettings, info, wire::Info},
};

/// What a command needs besides its own arguments.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The configuration file.
    pub config: PathBuf,
    /// Looks up variables of the process.
    pub env: fn(&str) -> Option<String>,
}

impl Setting {
    /// The runners of the file, as written.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, Failure> {
        Ok(crate::config::edit::entries(&self.config, &self.env)?)
    }

    /// Opens the file for a change.
    pub(super) fn editor(&self) -> Result<Editor, Failure> {
        Ok(Editor::open(&self.config)?)
    }

    /// The directory of TLS material beside the file.
    #[must_use]
    pub(super) fn certs_dir(&self) -> PathBuf {
        self.config.parent().unwrap_or(Path::new(".")).join("certs")
    }

    /// The id of this installation; why it cannot be kept goes to the log.
    pub(super) fn system_id(&self) -> Result<String, Failure> {
        let loaded = system_id::load_or_create(&self.config)?;
        if let Some((path, error)) = loaded.not_saved {
            let path = path.display();
            tracing::warn!(%path, error = %error, "Cannot keep the system id");
        }
        Ok(loaded.id.as_str().to_owned())
    }

    /// A client for an entry.
    pub(super) fn client(&self, entry: &Entry) -> Result<Client, ClientError> {
        Client::new(ClientSettings {
            url: entry.url.clone(),
            token: entry.token.clone(),
            tls_ca_file: entry.tls_ca_file.clone(),
            tls_cert_file: entry.tls_cert_file.clone(),
            tls_key_file: entry.tls_key_file.clone(),
            certs_dir: Some(self.certs_dir()),
            connection_max_age: Duration::from_mins(15),
        })
    }
}

/// The `info` object of an entry, for its server.
#[must_use]
pub(super) fn info_of(executor: &str, shell: &str) -> Info {
    let shell = if shell.is_empty() { "bash" } else { shell };
    info(executor, shell, "", &std::collections::BTreeMap::new())
}

/// The token and what goes into the file beside it, issued now.
#[must_use]
pub(super) fn token_update(
    token: crate::base::secret::Secret,
    expires_at: Option<String>,
) -> TokenUpdate {
    TokenUpdate { token, obtained_at: now(), expires_at }
}

/// Now, in whole seconds, RFC 3339.
#[must_use]
pub(super) fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}

/// How messages name a runner: never by its whole token.
#[must_use]
pub(super) fn label(entry: &Entry) -> String {
    format!("`{}` ({})", entry.name, ShortToken::of(entry.token.expose()))
}

/// Whether this is a token of a runner made in GitLab's UI or API: then only this machine's record
/// belongs to us, not the runner.
#[must_use]
pub(super) fn is_created_runner(token: &str) -> bool {
    token.starts_with("glrt-")
}

/// Selects runners of the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Selector {
    /// Name of the runner in the file
    #[arg(short = 'n', long, env = "RUNNER_NAME")]
    pub name: Option<String>,
    /// GitLab's address
    #[arg(short = 'u', long, env = "CI_SERVER_URL")]
    pub url: Option<String>,
    /// The runner's authentication token
    #[arg(short = 't', long, env = "CI_SERVER_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

impl Selector {
    /// Whether no criterion is given.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.name.is_none() && self.url.is_none() && self.token.is_none()
    }

    /// Whether an entry is selected: all criteria must match.
    #[must_use]
    pub(super) fn fits(&self, entry: &Entry) -> bool {
        let same_url = |url: &str| url.trim_end_matches('/') == entry.url.trim_end_matches('/');
        self.name.as_ref().is_none_or(|name| *name == entry.name)
            && self.url.as_deref().is_none_or(same_url)
            && self.token.as_ref().is_none_or(|token| token == entry.token.expose())
    }

    /// The failure of a selection without a match.
    #[must_use]
    pub(super) fn no_match(&self, config: &Path) -> Failure {
        let mut wanted = Vec::new();
        for (what, value) in [("name", &self.name), ("url", &self.url)] {
            wanted.extend(value.as_ref().map(|value| format!("{what} `{value}`")));
        }
        wanted.extend(self.token.as_ref().map(|token| format!("token {}", ShortToken::of(token))));
        let message = format!("no runner with {} in `{}`", wanted.join(" and "), config.display());
        Failure::new(message).hint("`longshore list` shows the runners of the file")
    }
}

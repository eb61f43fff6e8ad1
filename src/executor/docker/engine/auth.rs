//! Credentials of registries: where they come from, and which one an image gets.
//!
//! Sources in order: the job's `DOCKER_AUTH_CONFIG`, the configuration file of the user that
//! longshore runs as, the job's server. The first that knows a registry path wins; an image gets the
//! credentials of the longest path that leads to it.

use std::{collections::BTreeMap, ffi::OsString, fmt, path::PathBuf};

use base64::Engine as _;
use bollard::auth::DockerCredentials;
use serde::Deserialize;

use super::credential_helper::{Credential, HELPER_DEADLINE, HelperError, Helpers};
use crate::{
    base::{image_ref::ImageRef, secret::Secret},
    workload::spec::RegistryCredentials,
};

/// Everything credentials are taken from.
#[derive(Debug, Clone, Default)]
pub struct AuthSources<'a> {
    /// Text of the job's `DOCKER_AUTH_CONFIG`.
    pub variable: Option<&'a str>,
    /// `DOCKER_CONFIG` of this process: the directory of `config.json`.
    pub docker_config: Option<PathBuf>,
    /// `HOME` of this process.
    pub home: Option<PathBuf>,
    /// Credentials that the job's server has given it.
    pub server: &'a [RegistryCredentials],
    /// `PATH` of this process; helpers are found through it.
    pub path: Option<OsString>,
}

/// Credentials that cannot be used, and that must not be passed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A helper's name that would lead out of `PATH`.
    #[error("credential helper `{name}` in {origin} has a path separator in its name")]
    HelperName {
        /// The name.
        name: String,
        /// Where it is written.
        origin: Origin,
    },
}

/// Where credentials were found, as the trace names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `DOCKER_AUTH_CONFIG`.
    Variable,
    /// A file.
    File(PathBuf),
    /// The job's server.
    Server,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable => f.write_str("$DOCKER_AUTH_CONFIG"),
            Self::File(path) => path.display().fmt(f),
            Self::Server => f.write_str("job payload (GitLab Registry)"),
        }
    }
}

/// The credentials that an image gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where they come from.
    pub origin: Origin,
    /// The registry path that led to them.
    pub registry: String,
    credential: Credential,
}

impl Found {
    /// As the engine takes them.
    pub(super) fn for_engine(&self) -> DockerCredentials {
        let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let secret = |s: &Secret| text(s.expose());
        let host = self.registry.split('/').next().unwrap_or_default();
        // Docker Hub is known to engines by its first API alone.
        let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
        DockerCredentials {
            username: text(&self.credential.username),
            password: secret(&self.credential.password),
            identitytoken: secret(&self.credential.identity_token),
            registrytoken: secret(&self.credential.registry_token),
            serveraddress: Some(server.to_owned()),
            ..DockerCredentials::default()
        }
    }
}

/// All credentials of a job, by registry path.
#[derive(Debug, Clone, Default)]
pub struct Auths {
    by_path: BTreeMap<String, (Origin, Credential)>,
}

impl Auths {
    /// Reads all sources. A source, or a part of one, that cannot be read is left out; the texts
    /// say which and why.
    ///
    /// # Errors
    /// When a helper's name has a path separator.
    pub async fn load(sources: &AuthSources<'_>) -> Result<(Self, Vec<String>), AuthError> {
        let mut auths = Self::default();
        let mut warnings = Vec::new();
        if let Some(text) = sources.variable.filter(|text| !text.trim().is_empty()) {
            auths.read(text, Origin::Variable, sources, &mut warnings).await?;
        }
        if let Some((path, read)) = config_file(sources).await {
            match read {
                Ok(text) => auths.read(&text, Origin::File(path), sources, &mut warnings).await?,
                Err(error) => warnings.push(format!(
                    "registry credentials in {} are not used: {error}",
                    path.display()
                )),
            }
        }
        for credentials in sources.server {
            let credential = Credential {
                username: credentials.username.clone(),
                password: credentials.password.clone(),
                ..Credential::default()
            };
            auths.add(stored_path(&credentials.url), Origin::Server, credential);
        }
        Ok((auths, warnings))
    }

    /// The credentials for `image`, if there are any.
    #[must_use]
    pub fn for_image(&self, image: &str) -> Option<Found> {
        let path = ImageRef::of(image).registry_path();
        let mut path = path.as_str();
        loop {
            if let Some((origin, credential)) = self.by_path.get(path) {
                return Some(Found {
                    origin: origin.clone(),
                    registry: path.to_owned(),
                    credential: credential.clone(),
                });
            }
            path = path.rsplit_once('/')?.0;
        }
    }

    fn add(&mut self, path: String, origin: Origin, credential: Credential) {
        if !credential.is_empty() {
            self.by_path.entry(path).or_insert((origin, credential));
        }
    }

    /// Takes in one configuration: `auths`, then what `credsStore` has, then `credHelpers`, each
    /// overriding the one before, and all of it only where no earlier source spoke.
    async fn read(
        &mut self,
        text: &str,
        origin: Origin,
        sources: &AuthSources<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<(), AuthError> {
        let file: ConfigFile = match ConfigFile::parse(text) {
            Ok(file) => file,
            Err(error) => {
                // serde's messages quote values, which may be secret; where is enough.
                let (line, column) = (error.line(), error.column());
                warnings.push(format!(
                    "registry credentials in {origin} are not used: \
                     not a Docker configuration (line {line}, column {column})"
                ));
                return Ok(());
            }
        };
        for name in file.creds_store.iter().chain(file.cred_helpers.values()) {
            if name.contains(['/', '\\']) {
                return Err(AuthError::HelperName { name: name.clone(), origin });
            }
        }
        let mut own = BTreeMap::new();
        for (key, entry) in file.auths {
            match entry.credential() {
                Some(credential) => {
                    own.insert(stored_path(&key), credential);
                }
                None => warnings.push(format!(
                    "credentials of `{key}` in {origin} are not used: \
                     `auth` is not the base64 text of `user:password`"
                )),
            }
        }
        let mut broken = |error: HelperError| {
            warnings.push(format!("some registry credentials in {origin} are not used: {error}"));
        };
        let helpers = Helpers { path: sources.path.clone(), deadline: HELPER_DEADLINE };
        if let Some(store) = file.creds_store.as_deref().filter(|name| !name.is_empty()) {
            match helpers.list(store).await {
                Err(error) => broken(error),
                Ok(servers) => {
                    let all = servers.iter().map(|server| helpers.get(store, server));
                    for (server, got) in
                        servers.iter().zip(futures_util::future::join_all(all).await)
                    {
                        match got {
                            Ok(credential) => drop(own.insert(stored_path(server), credential)),
                            Err(error) => broken(error),
                        }
                    }
                }
            }
        }
        let all = file.cred_helpers.iter().map(|(server, name)| helpers.get(name, server));
        let all = futures_util::future::join_all(all).await;
        for (server, got) in file.cred_helpers.keys().zip(all) {
            match got {
                Ok(credential) => drop(own.insert(stored_path(server), credential)),
                Err(error) => broken(error),
            }
        }
        for (path, credential) in own {
            self.add(path, origin.clone(), credential);
        }
        Ok(())
    }
}

/// The first configuration file that is there, and its text.
async fn config_file(
    sources: &AuthSources<'_>,
) -> Option<(PathBuf, Result<String, std::io::Error>)> {
    let directory = sources.docker_config.clone();
    let in_home = |name: &str| sources.home.as_ref().map(|home| home.join(name));
    let first = directory.map(|d| d.join("config.json")).or_else(|| in_home(".docker/config.json"));
    for path in [first, in_home(".dockercfg")].into_iter().flatten() {
        match tokio::fs::read_to_string(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            read => return Some((path, read)),
        }
    }
    None
}

/// A key of a configuration as [`Auths::for_image`] looks it up. One with a scheme stands for
/// its host.
fn stored_path(key: &str) -> String {
    let lower = key.to_ascii_lowercase();
    let without = ["https://", "http://"].iter().find_map(|scheme| lower.strip_prefix(scheme));
    let path = match without {
        Some(rest) => rest.split('/').next().unwrap_or(rest).to_owned(),
        None => match key.trim_end_matches('/').split_once('/') {
            Some((host, path)) => format!("{}/{path}", host.to_ascii_lowercase()),
            None => lower.trim_end_matches('/').to_owned(),
        },
    };
    match path.strip_prefix("index.docker.io") {
        // `index.docker.io/v1` is how Docker itself names the Hub.
        Some("" | "/v1" | "/v2") => "docker.io".to_owned(),
        Some(rest) if rest.starts_with('/') => format!("docker.io{rest}"),
        _ => path,
    }
}

/// `config.json`, as far as it concerns credentials (docker/cli, `configfile.ConfigFile`).
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

impl ConfigFile {
    /// Reads a `config.json`, or a `.dockercfg`, which is the inside of `auths` alone.
    fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let file: Self = serde_json::from_str(text)?;
        if file.auths.is_empty()
            && file.creds_store.is_none()
            && file.cred_helpers.is_empty()
            && let Ok(auths) = serde_json::from_str::<BTreeMap<String, Entry>>(text)
        {
            return Ok(Self { auths, ..Self::default() });
        }
        Ok(file)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Secret,
    username: String,
    password: Secret,
    identitytoken: Secret,
    registrytoken: Secret,
}

impl Entry {
    /// `None` when `auth` cannot be read.
    fn credential(self) -> Option<Credential> {
        let mut credential = Credential {
            username: self.username,
            password: self.password,
            identity_token: self.identitytoken,
            registry_token: self.registrytoken,
        };
        if !self.auth.is_empty() {
            let text = base64::engine::general_purpose::STANDARD
                .decode(self.auth.expose().trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())?;
            let (username, password) = text.split_once(':')?;
            username.clone_into(&mut credential.username);
            credential.password = Secret::new(password.trim_matches('\0'));
        }
        Some(credential)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::credential_helper::tests::helper, *};

    fn encoded(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    fn registry(url: &str, username: &str, password: &str) -> RegistryCredentials {
        RegistryCredentials {
            url: url.into(),
            username: username.into(),
            password: Secret::new(password),
        }
    }

    fn who(auths: &Auths, image: &str) -> Option<(String, String)> {
        let found = auths.for_image(image)?;
        Some((found.credential.username, found.origin.to_string()))
    }

    #[tokio::test]
    async fn docker_127_the_variable_beats_the_file_beats_the_payload() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        let file = home.path().join(".docker/config.json");
        let auths = |entries: &[(&str, &str)]| {
            let entries: BTreeMap<_, _> = entries
                .iter()
                .map(|(k, user)| (*k, serde_json::json!({"auth": encoded(&format!("{user}:p:w"))})))
                .collect();
            serde_json::json!({ "auths": entries }).to_string()
        };
        std::fs::write(&file, auths(&[("a.example", "file"), ("b.example", "file")])).unwrap();
        let variable = auths(&[("a.example", "variable"), ("https://index.docker.io/v1/", "hub")]);
        let payload = [
            registry("a.example", "payload", "x"),
            registry("b.example", "payload", "x"),
            registry("c.example:5050", "payload", "x"),
        ];
        let sources = AuthSources {
            variable: Some(&variable),
            home: Some(home.path().to_owned()),
            server: &payload,
            ..AuthSources::default()
        };
        let (auths, warnings) = Auths::load(&sources).await.unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let pair = |user: &str, origin: &str| Some((user.to_owned(), origin.to_owned()));
        let from_file = file.display().to_string();
        assert_eq!(who(&auths, "a.example/x:1"), pair("variable", "$DOCKER_AUTH_CONFIG"));
        assert_eq!(who(&auths, "b.example/x"), pair("file", &from_file));
        assert_eq!(
            who(&auths, "C.example:5050/g/x"),
            pair("payload", "job payload (GitLab Registry)")
        );
        assert_eq!(who(&auths, "d.example/x"), None);
        assert_eq!(who(&auths, "alpine"), pair("hub", "$DOCKER_AUTH_CONFIG"));
        let hub = auths.for_image("group/x").unwrap().for_engine();
        assert_eq!(hub.serveraddress.as_deref(), Some("https://index.docker.io/v1/"));
        assert_eq!(hub.password.as_deref(), Some("p:w"));
        assert!(!format!("{auths:?}").contains("p:w"));
    }

    #[tokio::test]
    async fn docker_127_the_longest_path_wins() {
        let variable = serde_json::json!({"auths": {
            "r.example": {"username": "all", "password": "1"},
            "r.example/group": {"username": "group", "password": "2"},
            "R.example/group/image/": {"username": "image", "password": "3"},
        }})
        .to_string();
        let sources = AuthSources { variable: Some(&variable), ..AuthSources::default() };
        let (auths, _) = Auths::load(&sources).await.unwrap();
        for (image, user) in [
            ("r.example/other:1", "all"),
            ("r.example/group2/image", "all"),
            ("r.example/group/other", "group"),
            ("r.example/group/image@sha256:00", "image"),
            ("r.example/group/image/sub:1", "image"),
        ] {
            assert_eq!(auths.for_image(image).unwrap().credential.username, user, "{image}");
        }
        assert_eq!(auths.for_image("example/group/image"), None);
    }

    #[tokio::test]
    async fn docker_128_stores_and_helpers_are_run() {
        let path = helper(
            "vault",
            r#"case $1 in
list) echo '{"https://s.example/v1/":"u","a.example":"u"}';;
get) read server || true
  case $server in
  h.example) echo '{"ServerURL":"h","Username":"<token>","Secret":"t0ken"}';;
  *) echo "{\"ServerURL\":\"s\",\"Username\":\"for $server\",\"Secret\":\"x\"}";;
  esac;;
esac"#,
        );
        let variable = serde_json::json!({
            "auths": {"a.example": {"username": "plain", "password": "1"}, "s.example": {}},
            "credsStore": "vault",
            "credHelpers": {"h.example": "vault", "g.example": "missing"},
        })
        .to_string();
        let sources = AuthSources {
            variable: Some(&variable),
            path: Some(path.path().into()),
            ..AuthSources::default()
        };
        let (auths, warnings) = Auths::load(&sources).await.unwrap();
        let user = |image| auths.for_image(image).map(|f| f.credential.username);
        assert_eq!(user("s.example/x").as_deref(), Some("for https://s.example/v1/"));
        assert_eq!(user("a.example/x").as_deref(), Some("for a.example"));
        let token = auths.for_image("h.example/x").unwrap().for_engine();
        assert_eq!((token.identitytoken.as_deref(), token.username), (Some("t0ken"), None));
        assert_eq!(user("g.example/x"), None);
        assert_eq!(
            warnings,
            ["some registry credentials in $DOCKER_AUTH_CONFIG are not used: \
              docker-credential-missing is not in PATH"]
        );
    }

    #[tokio::test]
    async fn docker_128_helper_names_with_separators_are_refused() {
        for text in [r#"{"credsStore":"../evil"}"#, r#"{"credHelpers":{"r.example":"a/b"}}"#] {
            let sources = AuthSources { variable: Some(text), ..AuthSources::default() };
            let error = Auths::load(&sources).await.unwrap_err();
            assert!(matches!(error, AuthError::HelperName { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_broken_source_is_a_warning_that_shows_no_secret() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".dockercfg"), "{\"r.example\": {\"auth\": 12345}}")
            .unwrap();
        let payload = [registry("r.example", "payload", "x")];
        let sources = AuthSources {
            variable: Some("{\"auths\": \"s3cret\"}"),
            home: Some(home.path().to_owned()),
            server: &payload,
            ..AuthSources::default()
        };
        let (auths, warnings) = Auths::load(&sources).await.unwrap();
        assert_eq!(who(&auths, "r.example/x").unwrap().0, "payload");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("registry credentials in $DOCKER_AUTH_CONFIG"));
        assert!(!warnings[0].contains("s3cret"));
    }

    #[tokio::test]
    async fn the_old_file_is_read_when_the_new_one_is_missing() {
        let home = tempfile::tempdir().unwrap();
        let old = serde_json::json!({"r.example": {"auth": encoded("old:x"), "email": "a@b"}});
        std::fs::write(home.path().join(".dockercfg"), old.to_string()).unwrap();
        let sources = AuthSources { home: Some(home.path().to_owned()), ..AuthSources::default() };
        let (auths, _) = Auths::load(&sources).await.unwrap();
        assert_eq!(who(&auths, "r.example/x").unwrap().0, "old");
    }
}

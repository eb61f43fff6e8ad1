//! Git's credentials for a job: configuration beside the project that is removed when the job ends
//! (docs/compatibility.md, "Git credentials").
//!
//! The job's own `git fetch origin` authenticates too, in another container: so the configuration is
//! a file that `.git/config` includes, and never a part of `.git/config` itself. With
//! `FF_GIT_URLS_WITHOUT_TOKENS` no file has the token: a credential helper takes it from
//! `CI_JOB_TOKEN`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::files;
use super::git::{Environment, quoted};
use crate::workload::transfer::Sources;

/// Name of the file under `temp_dir` that `.git/config` includes.
pub const EXTERNAL: &str = ".gitlab-runner.ext.conf";

/// See [`crate::workload::transfer::GIT_SEED`].
pub use crate::workload::transfer::GIT_SEED as SEED;

const CA: &str = ".gitlab-runner.ca.pem";
const CERTIFICATE: &str = ".gitlab-runner.cert.pem";
const KEY: &str = ".gitlab-runner.key.pem";

/// Everything under `temp_dir` that is removed when the job ends.
pub(super) const FILES: [&str; 5] = [EXTERNAL, SEED, CA, CERTIFICATE, KEY];

/// `GLR_EXT_GIT_CONFIG_PATH`: hooks and jobs know the file by this name.
pub(super) const EXTERNAL_VARIABLE: &str = "GLR_EXT_GIT_CONFIG_PATH";

const USER: &str = "gitlab-ci-token";

/// A credential helper that has no secret of its own.
const HELPER: &str = "!f() { test \"$1\" = get && test -n \"$CI_JOB_TOKEN\" && \
                      printf 'username=gitlab-ci-token\\npassword=%s\\n' \"$CI_JOB_TOKEN\"; :; }; f";

/// Writes the files, and sets the variables that git needs as well. Returns the path of the file to
/// include.
pub(super) fn write(task: &Sources, environment: &mut Environment) -> Result<PathBuf, Error> {
    let temp = Path::new(&task.temp_dir);
    for name in FILES {
        files::remove(&temp.join(name))?;
    }
    if let Some(pem) = &task.ca {
        files::write_fresh(&temp.join(CA), pem.as_bytes())?;
    }
    if let Some((certificate, key)) = &task.client_certificate {
        files::write_fresh(&temp.join(CERTIFICATE), certificate.as_bytes())?;
        files::write_fresh(&temp.join(KEY), key.expose().as_bytes())?;
    }
    let external = temp.join(EXTERNAL);
    files::write_fresh(&external, external_text(task).as_bytes())?;
    environment.set(EXTERNAL_VARIABLE, external.to_string_lossy());
    if task.tokens_in_environment_only {
        let seed = temp.join(SEED);
        let before = environment.value("GIT_CONFIG_GLOBAL");
        let before = before.filter(|path| Path::new(path) != seed);
        files::write_fresh(&seed, seed_text(before.as_deref(), &external).as_bytes())?;
        environment.set("GIT_CONFIG_GLOBAL", seed.to_string_lossy());
        environment.set("CI_JOB_TOKEN", task.token.expose());
    }
    Ok(external)
}

/// The substitute for the user's own global configuration: it includes that, and ours. Git ignores
/// included files that do not exist.
fn seed_text(global: Option<&str>, external: &Path) -> String {
    let mut text = String::from("[include]\n");
    let own = match global {
        Some(path) => vec![path],
        None => vec!["~/.config/git/config", "~/.gitconfig"],
    };
    for path in own.into_iter().chain([external.to_string_lossy().as_ref()]) {
        let _ = writeln!(text, "\tpath = {}", quoted(path));
    }
    text
}

fn external_text(task: &Sources) -> String {
    let temp = Path::new(&task.temp_dir);
    let mut text = String::new();
    if task.bundle_uri {
        text.push_str("[transfer]\n\tbundleURI = true\n");
    }
    let Some(server) = http_server(task) else { return text };
    let mut http = String::new();
    if let Some(id) = &task.correlation_id {
        let header = format!("X-Gitaly-Correlation-ID: {id}");
        let _ = writeln!(http, "\textraHeader = {}", quoted(&header));
    }
    let mut file = |key: &str, name: &str| {
        let _ = writeln!(http, "\t{key} = {}", quoted(&temp.join(name).to_string_lossy()));
    };
    if task.ca.is_some() {
        file("sslCAInfo", CA);
    }
    if task.client_certificate.is_some() {
        file("sslCert", CERTIFICATE);
        file("sslKey", KEY);
    }
    // Git before 2.46 does not know the key, and passes over it.
    if task.proactive_auth && !task.token.is_empty() {
        http.push_str("\tproactiveAuth = basic\n");
    }
    if !http.is_empty() {
        let _ = write!(text, "[http {}]\n{http}", quoted(server));
    }

    // The slash at the end matters: these are prefixes, and another host's name may begin with
    // this one's.
    let base = format!("{}/", base(task, server));
    let server_url = format!("{server}/");
    let mut rewrites: Vec<(&str, String)> = Vec::new();
    if task.token.is_empty() {
        // A public project, or a server that asks for nothing.
    } else if task.tokens_in_environment_only {
        let _ = write!(
            text,
            "[credential {}]\n\thelper =\n\thelper = {}\n",
            quoted(server),
            quoted(HELPER)
        );
    } else {
        if task.url.starts_with(&server_url) {
            rewrites.push((&task.url, task.url.clone()));
        }
        rewrites.push((&server_url, server_url.clone()));
    }
    if task.submodules.force_https {
        rewrites.extend(ssh_forms(task, server).into_iter().map(|form| (base.as_str(), form)));
    }
    for (target, prefix) in rewrites {
        let target = if task.tokens_in_environment_only {
            target.to_owned()
        } else {
            with_token(target, task.token.expose())
        };
        let _ = write!(text, "[url {}]\n\tinsteadOf = {}\n", quoted(&target), quoted(&prefix));
    }
    text
}

/// The server, when it is one that credentials can be sent to.
fn http_server(task: &Sources) -> Option<&str> {
    let server = task.server.as_deref()?.trim_end_matches('/');
    (server.starts_with("http://") || server.starts_with("https://")).then_some(server)
}

/// The prefix of projects' addresses: the server, with the path that it is installed under.
fn base<'a>(task: &'a Sources, server: &'a str) -> &'a str {
    variable(task, "CI_PROJECT_PATH")
        .and_then(|path| task.url.strip_suffix(&format!("/{path}.git")))
        .filter(|base| base.starts_with(server))
        .unwrap_or(server)
}

/// The addresses of the same server over ssh.
fn ssh_forms(task: &Sources, server: &str) -> Vec<String> {
    let name = server.split_once("://").map_or(server, |(_, authority)| authority);
    let name = match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => name,
    };
    let host = variable(task, "CI_SERVER_SHELL_SSH_HOST").unwrap_or(name);
    match variable(task, "CI_SERVER_SHELL_SSH_PORT").unwrap_or("22") {
        "22" => vec![format!("git@{host}:"), format!("ssh://git@{host}/")],
        port => vec![format!("ssh://git@{host}:{port}/")],
    }
}

fn variable<'a>(task: &'a Sources, name: &str) -> Option<&'a str> {
    let found = task.env.iter().rev().find(|(key, _)| key == name);
    found.map(|(_, value)| value.expose()).filter(|value| !value.is_empty())
}

fn with_token(url: &str, token: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let mut text = format!("{scheme}://{USER}:");
    for byte in token.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text.push('@');
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::helper::testing::task;

    fn job() -> Sources {
        let mut task = task("/b/p", "https://git.example/sub/group/project.git", "0123456789");
        task.server = Some("https://git.example".into());
        task.token = Secret::new("glcbt-1/2");
        task.env.push(("CI_PROJECT_PATH".into(), Secret::new("group/project")));
        task
    }

    #[test]
    fn the_token_is_sent_to_the_server_and_to_no_host_whose_name_begins_like_it() {
        assert_eq!(
            external_text(&job()),
            "[url \"https://gitlab-ci-token:glcbt-1%2F2@git.example/sub/group/project.git\"]\n\
             \tinsteadOf = \"https://git.example/sub/group/project.git\"\n\
             [url \"https://gitlab-ci-token:glcbt-1%2F2@git.example/\"]\n\
             \tinsteadOf = \"https://git.example/\"\n"
        );
    }

    #[test]
    fn docker_142_ssh_forms_are_those_of_the_port() {
        let mut task = job();
        task.submodules.force_https = true;
        let text = external_text(&task);
        let target = "[url \"https://gitlab-ci-token:glcbt-1%2F2@git.example/sub/\"]\n\tinsteadOf";
        assert!(text.contains(&format!("{target} = \"git@git.example:\"\n")), "{text}");
        assert!(text.contains(&format!("{target} = \"ssh://git@git.example/\"\n")), "{text}");

        task.env.push(("CI_SERVER_SHELL_SSH_HOST".into(), Secret::new("ssh.example")));
        task.env.push(("CI_SERVER_SHELL_SSH_PORT".into(), Secret::new("2222")));
        let text = external_text(&task);
        assert!(text.contains(&format!("{target} = \"ssh://git@ssh.example:2222/\"\n")), "{text}");
        assert!(!text.contains("\"git@"), "{text}");
    }

    #[test]
    fn docker_148_no_text_has_the_token_when_it_must_not() {
        let mut task = job();
        task.tokens_in_environment_only = true;
        task.submodules.force_https = true;
        let text = external_text(&task);
        assert!(!text.contains("glcbt-1"), "{text}");
        assert!(text.contains("[credential \"https://git.example\"]\n\thelper =\n"), "{text}");
    }

    #[test]
    fn credentials_go_first_where_that_is_wanted_and_there_are_any() {
        let mut task = job();
        task.proactive_auth = true;
        let text = external_text(&task);
        let expected = "[http \"https://git.example\"]\n\tproactiveAuth = basic\n";
        assert!(text.contains(expected), "{text}");
        task.token = Secret::default();
        assert!(!external_text(&task).contains("proactiveAuth"));
    }

    #[test]
    fn a_bundle_has_no_credentials() {
        let mut task = job();
        task.server = None;
        task.url = "/cache/project.bundle".into();
        assert_eq!(external_text(&task), "");
    }

    #[test]
    fn settings_of_the_connection_are_for_the_server_only() {
        let mut task = job();
        task.token = Secret::default();
        task.bundle_uri = true;
        task.correlation_id = Some("01H".into());
        task.ca = Some("pem".into());
        task.client_certificate = Some(("cert".into(), Secret::new("key")));
        assert_eq!(
            external_text(&task),
            "[transfer]\n\tbundleURI = true\n\
             [http \"https://git.example\"]\n\
             \textraHeader = \"X-Gitaly-Correlation-ID: 01H\"\n\
             \tsslCAInfo = \"/b/p.tmp/.gitlab-runner.ca.pem\"\n\
             \tsslCert = \"/b/p.tmp/.gitlab-runner.cert.pem\"\n\
             \tsslKey = \"/b/p.tmp/.gitlab-runner.key.pem\"\n"
        );
    }
}

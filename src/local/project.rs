//! The project as jobs see it: what GitLab would know, told from the local repository, as the
//! predefined variables (GitLab: `doc/ci/variables/predefined_variables.md`).

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::worktree::Facts;
use crate::{
    base::ids::ProjectId,
    workload::{spec::PipelineId, variable::Variable},
};

/// A project, in one pipeline.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) facts: Facts,
    /// The same for every run in this directory, so that its caches are found again.
    pub(crate) id: ProjectId,
    /// Grows from run to run.
    pub(crate) pipeline_id: PipelineId,
    /// Last part of its path.
    pub(crate) name: String,
    /// Its path at the server.
    pub(crate) path: String,
    /// The server it came from, without a slash at the end.
    pub(crate) server: String,
    created: Timestamp,
}

impl Project {
    /// The project of these facts, in a pipeline made at `created`.
    pub(crate) fn new(facts: Facts, created: Timestamp) -> Self {
        let digest = Sha256::digest(facts.root.as_os_str().as_encoded_bytes());
        let id = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) >> 1;
        let (server, path) = facts.remote.as_deref().and_then(origin).unwrap_or_else(|| {
            let name = facts.root.file_name().map_or("project".into(), |n| n.to_string_lossy());
            ("https://localhost".to_owned(), format!("local/{name}"))
        });
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let (id, pipeline_id) = (ProjectId(i64::from(id)), PipelineId(created.as_second()));
        Self { facts, id, pipeline_id, name, path, server, created }
    }

    /// Five hex digits that are the same for every run in this directory.
    pub(crate) fn mark(&self) -> String {
        format!("{:05x}", self.id.0 & 0xf_ffff)
    }

    /// The variables that all jobs have, for a pipeline of the commit `sha` from the file `file`.
    pub(crate) fn variables(&self, sha: &str, file: &str) -> Vec<Variable> {
        let mut out = Vec::new();
        let mut add = |key: &str, value: &str| out.push(public(key, value));
        add("CI", "true");
        add("GITLAB_CI", "true");
        add("CI_CONFIG_PATH", file);
        self.server_variables(&mut add);
        self.project_variables(&mut add);
        self.commit_variables(sha, &mut add);
        let id = self.pipeline_id.to_string();
        add("CI_PIPELINE_ID", &id);
        add("CI_PIPELINE_IID", &id);
        add("CI_PIPELINE_SOURCE", "push");
        add("CI_PIPELINE_URL", &format!("{}/{}/-/pipelines/{id}", self.server, self.path));
        add("CI_PIPELINE_CREATED_AT", &self.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let (name, email) = &self.facts.user;
        add("GITLAB_USER_NAME", name);
        add("GITLAB_USER_EMAIL", email);
        add("GITLAB_USER_LOGIN", email.split('@').next().unwrap_or_default());
        out
    }

    fn server_variables(&self, add: &mut impl FnMut(&str, &str)) {
        let url = url::Url::parse(&self.server).ok();
        let host = url.as_ref().and_then(url::Url::host_str).unwrap_or_default();
        let port = url.as_ref().and_then(url::Url::port_or_known_default).unwrap_or(443);
        add("CI_SERVER", "yes");
        add("CI_SERVER_NAME", "GitLab");
        add("CI_SERVER_URL", &self.server);
        add("CI_SERVER_HOST", host);
        add("CI_SERVER_FQDN", self.server.split("://").nth(1).unwrap_or(host));
        add("CI_SERVER_PORT", &port.to_string());
        add("CI_SERVER_PROTOCOL", url.as_ref().map_or("https", url::Url::scheme));
        add("CI_API_V4_URL", &format!("{}/api/v4", self.server));
        if host == "gitlab.com" {
            add("CI_REGISTRY", "registry.gitlab.com");
            let image = format!("registry.gitlab.com/{}", self.path.to_lowercase());
            add("CI_REGISTRY_IMAGE", &image);
        }
    }

    fn project_variables(&self, add: &mut impl FnMut(&str, &str)) {
        let namespace = self.path.rsplit_once('/').map_or("", |(namespace, _)| namespace);
        add("CI_PROJECT_ID", &self.id.to_string());
        add("CI_PROJECT_NAME", &self.name);
        add("CI_PROJECT_TITLE", &self.name);
        add("CI_PROJECT_PATH", &self.path);
        add("CI_PROJECT_PATH_SLUG", &slug(&self.path));
        add("CI_PROJECT_NAMESPACE", namespace);
        add("CI_PROJECT_ROOT_NAMESPACE", namespace.split('/').next().unwrap_or_default());
        add("CI_PROJECT_URL", &format!("{}/{}", self.server, self.path));
        add("CI_PROJECT_VISIBILITY", "private");
        add("CI_DEFAULT_BRANCH", &self.facts.default_branch);
    }

    fn commit_variables(&self, sha: &str, add: &mut impl FnMut(&str, &str)) {
        let commit = &self.facts.commit;
        let (title, description) =
            commit.message.trim_end().split_once('\n').unwrap_or((commit.message.trim_end(), ""));
        add("CI_COMMIT_SHA", sha);
        add("CI_COMMIT_SHORT_SHA", sha.get(..8).unwrap_or(sha));
        // GitLab sends zeros for a commit without one before it.
        add("CI_COMMIT_BEFORE_SHA", &"0".repeat(sha.len().max(40)));
        add("CI_COMMIT_REF_NAME", self.facts.reference());
        add("CI_COMMIT_REF_SLUG", &slug(self.facts.reference()));
        match &self.facts.tag {
            Some(tag) => add("CI_COMMIT_TAG", tag),
            None => add("CI_COMMIT_BRANCH", self.facts.reference()),
        }
        add("CI_COMMIT_REF_PROTECTED", "false");
        add("CI_COMMIT_MESSAGE", &commit.message);
        add("CI_COMMIT_TITLE", title);
        add("CI_COMMIT_DESCRIPTION", description.trim_start());
        add("CI_COMMIT_TIMESTAMP", &commit.timestamp);
        add("CI_COMMIT_AUTHOR", &format!("{} <{}>", commit.author_name, commit.author_email));
    }
}

/// A variable that services see too.
pub(crate) fn public(key: &str, value: &str) -> Variable {
    Variable { key: key.to_owned(), value: value.to_owned(), public: true, ..Variable::default() }
}

/// Lower case, with a dash for all but letters and digits, at most 63 bytes
/// (GitLab: `Gitlab::Utils.slugify`).
pub(crate) fn slug(text: &str) -> String {
    let dashed: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(63)
        .collect();
    dashed.trim_matches('-').to_owned()
}

/// Server and path of a remote; credentials in it are left out.
fn origin(remote: &str) -> Option<(String, String)> {
    let (server, path) = if remote.contains("://") {
        let url = url::Url::parse(remote).ok()?;
        let host = url.host_str()?.to_owned();
        let server = match (url.scheme(), url.port()) {
            ("http", Some(port)) => format!("http://{host}:{port}"),
            ("http", None) => format!("http://{host}"),
            ("https", Some(port)) => format!("https://{host}:{port}"),
            _ => format!("https://{host}"),
        };
        (server, url.path().to_owned())
    } else {
        // `user@host:path`, unless a slash before the colon makes it a file.
        let (host, path) = remote.split_once(':').filter(|(host, _)| !host.contains('/'))?;
        let host = host.rsplit('@').next()?;
        (format!("https://{host}"), path.to_owned())
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    (path.contains('/') && !server.ends_with('/')).then(|| (server, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_give_server_and_path_and_no_credentials() {
        for (remote, expected) in [
            (
                "git@git.example.net:group/sub/p.git",
                Some(("https://git.example.net", "group/sub/p")),
            ),
            ("ssh://git@git.example.net:2222/a/b", Some(("https://git.example.net", "a/b"))),
            ("https://u:secret@h.example:8443/a/b.git", Some(("https://h.example:8443", "a/b"))),
            ("http://h/a/b/", Some(("http://h", "a/b"))),
            ("/srv/git/a.git", None),
            ("../a:b", None),
            ("file:///srv/a/b", None),
        ] {
            let found = origin(remote);
            let found = found.as_ref().map(|(server, path)| (server.as_str(), path.as_str()));
            assert_eq!(found, expected, "{remote}");
        }
    }

    #[test]
    fn slugs_are_those_of_gitlab() {
        assert_eq!(slug("Feature/Añb_c-"), "feature-a-b-c");
        assert_eq!(slug(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn variables_tell_of_a_branch_or_of_a_tag() {
        let mut facts = Facts {
            root: "/home/ann/my project".into(),
            branch: Some("topic/x".into()),
            ..Facts::default()
        };
        facts.commit.message = "Title\n\nMore\n".into();
        let value = |project: &Project, key: &str| {
            let variables = project.variables("0123456789abcdef", ".gitlab-ci.yml");
            variables.into_iter().find(|v| v.key == key).map(|v| v.value)
        };
        let project = Project::new(facts.clone(), Timestamp::from_second(1_800_000_000).unwrap());
        for (key, expected) in [
            ("CI_COMMIT_BRANCH", Some("topic/x")),
            ("CI_COMMIT_TAG", None),
            ("CI_COMMIT_REF_SLUG", Some("topic-x")),
            ("CI_COMMIT_SHORT_SHA", Some("01234567")),
            ("CI_COMMIT_TITLE", Some("Title")),
            ("CI_COMMIT_DESCRIPTION", Some("More")),
            ("CI_PROJECT_PATH", Some("local/my project")),
            ("CI_PIPELINE_CREATED_AT", Some("2027-01-15T08:00:00Z")),
            ("CI_REGISTRY", None),
        ] {
            assert_eq!(value(&project, key).as_deref(), expected, "{key}");
        }
        (facts.branch, facts.tag) = (None, Some("v1".into()));
        facts.remote = Some("git@gitlab.com:A/b.git".into());
        let project = Project::new(facts, Timestamp::UNIX_EPOCH);
        assert_eq!(value(&project, "CI_COMMIT_TAG").as_deref(), Some("v1"));
        assert_eq!(value(&project, "CI_COMMIT_BRANCH"), None);
        let image = value(&project, "CI_REGISTRY_IMAGE");
        assert_eq!(image.as_deref(), Some("registry.gitlab.com/a/b"));
        assert_eq!(project.mark().len(), 5);
    }
}

//! What a job may ask for: images, services, users, pull policies, privileges.

use globset::GlobBuilder;

use crate::config::{DockerConfig, PullPolicy};

/// Something the runner does not allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Image.
    #[error(
        "image `{name}` is not among the runner's allowed_images: {}",
        allowed.join(", ")
    )]
    Image {
        /// The image.
        name: String,
        /// The globs.
        allowed: Vec<String>,
    },
    /// Service.
    #[error(
        "service `{name}` is not among the runner's allowed_services: {}",
        allowed.join(", ")
    )]
    Service {
        /// The service.
        name: String,
        /// The globs.
        allowed: Vec<String>,
    },
    /// User.
    #[error("user `{name}` is not among the runner's allowed_users: {}", allowed.join(", "))]
    User {
        /// The user.
        name: String,
        /// The users.
        allowed: Vec<String>,
    },
    /// No pull policy is left.
    #[error(
        "image `{image}`: pull_policy ({}) is not among the runner's allowed_pull_policies ({})",
        words(asked),
        words(allowed)
    )]
    PullPolicy {
        /// The image.
        image: String,
        /// What was asked for.
        asked: Vec<PullPolicy>,
        /// What is allowed.
        allowed: Vec<PullPolicy>,
    },
}

impl Refusal {
    /// Whether the incumbent calls it a configuration error; the others are system failures there
    /// (docker-executor.md §15), and so here, as pipelines retry by reason.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::PullPolicy { .. } => true,
            Self::Image { .. } | Self::Service { .. } | Self::User { .. } => false,
        }
    }
}

fn words(policies: &[PullPolicy]) -> String {
    policies.iter().map(|p| p.as_str()).collect::<Vec<_>>().join(", ")
}

/// Whether `name` matches one of `globs`: `*` stops at `/`, `**` crosses (docker-executor.md
/// §10.1). The configuration's check refuses globs that do not parse.
fn matches(name: &str, globs: &[String]) -> bool {
    globs.iter().any(|glob| {
        GlobBuilder::new(glob)
            .literal_separator(true)
            .build()
            .is_ok_and(|glob| glob.compile_matcher().is_match(name))
    })
}

/// The runner's default image is always allowed.
pub(super) fn check_image(name: &str, default: &str, allowed: &[String]) -> Result<(), Refusal> {
    if name == default || allowed.is_empty() || matches(name, allowed) {
        return Ok(());
    }
    Err(Refusal::Image { name: name.to_owned(), allowed: allowed.to_vec() })
}

pub(super) fn check_service(name: &str, allowed: &[String]) -> Result<(), Refusal> {
    if allowed.is_empty() || matches(name, allowed) {
        return Ok(());
    }
    Err(Refusal::Service { name: name.to_owned(), allowed: allowed.to_vec() })
}

/// With only `user` configured, that user is the list; with neither, everyone is allowed.
pub(super) fn check_user(
    user: Option<&str>,
    configured: Option<&str>,
    allowed: &[String],
) -> Result<(), Refusal> {
    let Some(user) = user else { return Ok(()) };
    let allowed: Vec<String> = match (allowed, configured) {
        ([], None) => return Ok(()),
        ([], Some(configured)) => vec![configured.to_owned()],
        (allowed, _) => allowed.to_vec(),
    };
    if allowed.iter().any(|a| a == user) {
        return Ok(());
    }
    Err(Refusal::User { name: user.to_owned(), allowed })
}

/// The policies that count: the job's, else the runner's, as far as they are allowed.
pub(super) fn pull_policies(
    image: &str,
    asked: &[PullPolicy],
    docker: &DockerConfig,
) -> Result<Vec<PullPolicy>, Refusal> {
    let configured = if docker.pull_policy.is_empty() {
        vec![PullPolicy::Always]
    } else {
        docker.pull_policy.clone()
    };
    let asked = if asked.is_empty() { configured.clone() } else { asked.to_vec() };
    let allowed = docker.allowed_pull_policies.clone().unwrap_or(configured);
    let effective: Vec<_> = asked.iter().copied().filter(|p| allowed.contains(p)).collect();
    if effective.is_empty() {
        return Err(Refusal::PullPolicy { image: image.to_owned(), asked, allowed });
    }
    Ok(effective)
}

/// Whether the helper may be privileged: it has no name that a glob could mean.
#[must_use]
pub fn allows_privileged(allowed: &[String]) -> bool {
    allowed.is_empty()
}

/// Whether `name` matches `glob`.
#[must_use]
pub fn matches_one(name: &str, glob: &str) -> bool {
    matches(name, &[glob.to_owned()])
}

/// Whether a name may be privileged: an empty list means all.
pub(super) fn is_privileged(name: &str, allowed: &[String]) -> bool {
    allowed.is_empty() || matches(name, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(list: &[&str]) -> Vec<String> {
        list.iter().map(|g| (*g).to_owned()).collect()
    }

    #[test]
    fn docker_120_the_default_image_is_always_allowed() {
        assert!(check_image("ruby", "ruby", &globs(&["python:*"])).is_ok());
        let error = check_image("perl", "ruby", &globs(&["python:*"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "image `perl` is not among the runner's allowed_images: python:*"
        );
    }

    #[test]
    fn docker_121_a_star_stops_at_a_slash() {
        assert!(matches("reg/a", &globs(&["reg/*"])));
        assert!(!matches("reg/a/b", &globs(&["reg/*"])));
        assert!(matches("reg/a/b", &globs(&["reg/**"])));
        assert!(matches("b:1", &globs(&["{a,b}:[0-9]"])));
        assert!(!matches("a", &globs(&["!b"])));
    }

    #[test]
    fn docker_37_38_users_are_the_listed_ones() {
        assert!(check_user(Some("u"), None, &[]).is_ok());
        assert!(check_user(None, Some("u"), &[]).is_ok());
        let error = check_user(Some("root"), Some("u"), &[]).unwrap_err();
        assert_eq!(error.to_string(), "user `root` is not among the runner's allowed_users: u");
        assert!(check_user(Some("a"), Some("u"), &globs(&["a"])).is_ok());
    }

    #[test]
    fn docker_97_99_privileges_go_by_glob() {
        assert!(is_privileged("any", &[]));
        assert!(!is_privileged("ruby", &globs(&["docker:*"])));
        assert!(is_privileged("docker:dind", &globs(&["docker:*"])));
        assert!(!is_privileged("", &globs(&["docker:*"])));
    }
}

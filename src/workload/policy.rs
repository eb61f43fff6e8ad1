//! What a job may ask of the engine: pull policies, images, services, users. Pure; the refusals'
//! texts are for the job's author.

use crate::{
    base::glob::{self, Wildcards},
    config::{ContainerConfig, PullPolicy},
};

/// A wish of the job that the runner's settings forbid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No wanted policy is allowed.
    #[error(
        "pull_policy [{wanted}] {origin} is not one of the allowed_pull_policies [{allowed}]",
        wanted = list(wanted),
        allowed = list(allowed),
    )]
    NoPolicyLeft {
        /// What was asked for.
        wanted: Vec<PullPolicy>,
        /// Where.
        origin: PolicyOrigin,
        /// What the settings allow.
        allowed: Vec<PullPolicy>,
    },
    /// The image matches no pattern.
    #[error("{what} `{name}` is not allowed by {key}: {patterns}", patterns = patterns.join(", "))]
    Image {
        /// `image` or `service`.
        what: &'static str,
        /// The image.
        name: String,
        /// The key of the settings.
        key: &'static str,
        /// Its patterns.
        patterns: Vec<String>,
    },
    /// The user is not in the list.
    #[error("user `{user}` is not one of the allowed users: {allowed}", allowed = allowed.join(", "))]
    User {
        /// The user.
        user: String,
        /// Who is allowed.
        allowed: Vec<String>,
    },
}

/// Where pull policies were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyOrigin {
    /// `pull_policy` of the job's image or service.
    Job,
    /// `pull_policy` of the runner.
    Runner,
}

impl std::fmt::Display for PolicyOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Job => "in the job",
            Self::Runner => "in the runner's configuration",
        })
    }
}

/// Policies as messages show them.
#[must_use]
pub fn list(policies: &[PullPolicy]) -> String {
    policies.iter().map(|p| p.as_str()).collect::<Vec<_>>().join(", ")
}

/// The policies to try, in order; duplicates are tries of their own. `wanted` is what the image
/// or service of the job asks for, empty when it does not.
///
/// # Errors
/// When nothing that is wanted is allowed.
pub fn effective(
    wanted: &[PullPolicy],
    config: &ContainerConfig,
) -> Result<Vec<PullPolicy>, Refusal> {
    let or_always = |policies: &[PullPolicy]| match policies {
        [] => vec![PullPolicy::Always],
        some => some.to_vec(),
    };
    let configured = or_always(&config.images.pull_policies);
    let (candidates, origin) = if wanted.is_empty() {
        (configured.clone(), PolicyOrigin::Runner)
    } else {
        (wanted.to_vec(), PolicyOrigin::Job)
    };
    let allowed = match &config.images.allowed_pull_policies {
        Some(allowed) if !allowed.is_empty() => allowed.clone(),
        _ => configured,
    };
    let left: Vec<_> = candidates.iter().copied().filter(|p| allowed.contains(p)).collect();
    if left.is_empty() {
        return Err(Refusal::NoPolicyLeft { wanted: candidates, origin, allowed });
    }
    Ok(left)
}

/// Whether a job may have `image`. `default` is the runner's own image, expanded, which always
/// may be used.
///
/// # Errors
/// When `allowed_images` has patterns and none matches.
pub fn check_image(image: &str, default: &str, config: &ContainerConfig) -> Result<(), Refusal> {
    if image == default {
        return Ok(());
    }
    check("image", image, "allowed_images", &config.images.allowed)
}

/// Whether a job may have `service`. `configured` are the images of the runner's own services,
/// expanded.
///
/// # Errors
/// When `allowed_services` has patterns and none matches.
pub fn check_service(
    service: &str,
    configured: &[String],
    config: &ContainerConfig,
) -> Result<(), Refusal> {
    if configured.iter().any(|own| own == service) {
        return Ok(());
    }
    check("service", service, "allowed_services", &config.images.allowed_services)
}

fn check(
    what: &'static str,
    name: &str,
    key: &'static str,
    patterns: &[String],
) -> Result<(), Refusal> {
    if patterns.is_empty() || matches_any(patterns, name) {
        return Ok(());
    }
    Err(Refusal::Image { what, name: name.to_owned(), key, patterns: patterns.to_vec() })
}

/// Whether a container may run as `user`, the one that was chosen of the runner's and the job's.
///
/// # Errors
/// When there is a list and `user` is not in it.
pub fn check_user(user: &str, config: &ContainerConfig) -> Result<(), Refusal> {
    let allowed = match &config.users.allowed[..] {
        [] => config.users.user.iter().filter(|u| !u.is_empty()).cloned().collect(),
        some => some.to_vec(),
    };
    if user.is_empty() || allowed.is_empty() || allowed.iter().any(|u| u == user) {
        return Ok(());
    }
    Err(Refusal::User { user: user.to_owned(), allowed })
}

/// Whether one of `patterns` matches all of `name`, as the doublestar package reads them: `*` and
/// `?` stop at `/`, `**` does not when it is a whole path component, `{a,b}` and `[…]` work. A
/// pattern that cannot be read matches nothing.
#[must_use]
pub fn matches_any(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| {
        let matches = |pattern: &str| glob::matches(pattern, Wildcards::WithinComponent, name);
        matches(pattern) || pattern.strip_suffix("/**").is_some_and(matches)
    })
}

/// Whether a container may be privileged: an empty list means all. `name` is the image as the job
/// writes it, which is empty for the runner's default.
#[must_use]
pub fn is_privileged(name: &str, allowed: &[String]) -> bool {
    allowed.is_empty() || matches_any(allowed, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ImagePolicy, UserPolicy};

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|&s| s.to_owned()).collect()
    }

    fn with_images(images: ImagePolicy) -> ContainerConfig {
        ContainerConfig { images, ..ContainerConfig::default() }
    }

    #[test]
    fn docker_120_the_default_image_needs_no_permission() {
        let config =
            with_images(ImagePolicy { allowed: strings(&["ruby:*"]), ..ImagePolicy::default() });
        check_image("internal/base", "internal/base", &config).unwrap();
        check_image("ruby:3.3", "internal/base", &config).unwrap();
        let refusal = check_image("alpine", "internal/base", &config).unwrap_err();
        assert_eq!(refusal.to_string(), "image `alpine` is not allowed by allowed_images: ruby:*");
        check_image("alpine", "", &ContainerConfig::default()).unwrap();
    }

    #[test]
    fn docker_121_globs_of_images_stop_at_slashes() {
        for (pattern, name, expected) in [
            ("ruby:*", "ruby:3.3", true),
            ("ruby:*", "library/ruby:3.3", false),
            ("registry.example.com/*", "registry.example.com/group/image:1", false),
            ("registry.example.com/*/*", "registry.example.com/group/image:1", true),
            ("registry.example.com/**", "registry.example.com/a/b/c:1", true),
            ("registry.example.com/**", "registry.example.com", true),
            ("registry.example.com/**/c:*", "registry.example.com/c:1", true),
            ("**", "any/thing:1", true),
            ("**/*", "alpine", true),
            ("re**e:1", "re/gi/e:1", false),
            ("alpine:3.?", "alpine:3.9", true),
            ("alpine:3.?", "alpine:3./", false),
            ("alpine:3.[0-4]", "alpine:3.4", true),
            ("alpine:3.[^0-4]", "alpine:3.4", false),
            ("{alpine,debian}:*", "debian:12", true),
            ("!alpine", "debian", false),
            ("[", "[", false),
        ] {
            assert_eq!(matches_any(&strings(&[pattern]), name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn services_of_the_runner_need_no_permission() {
        let config = with_images(ImagePolicy {
            allowed_services: strings(&["redis:*"]),
            ..ImagePolicy::default()
        });
        check_service("postgres:16", &strings(&["postgres:16"]), &config).unwrap();
        assert!(check_service("postgres:16", &[], &config).is_err());
    }

    #[test]
    fn docker_123_policies_outside_the_allowed_ones_are_refused_with_both_lists() {
        use PullPolicy::{Always, IfNotPresent, Never};
        let config = |pull: &[PullPolicy], allowed: Option<&[PullPolicy]>| {
            with_images(ImagePolicy {
                pull_policies: pull.to_vec(),
                allowed_pull_policies: allowed.map(<[_]>::to_vec),
                ..ImagePolicy::default()
            })
        };
        assert_eq!(effective(&[], &config(&[], None)), Ok(vec![Always]));
        assert_eq!(
            effective(&[], &config(&[Always, Always, IfNotPresent], None)),
            Ok(vec![Always, Always, IfNotPresent])
        );
        let wide = config(&[Always], Some(&[Never, IfNotPresent]));
        assert_eq!(effective(&[IfNotPresent, Always, Never], &wide), Ok(vec![IfNotPresent, Never]));
        let refusal = effective(&[Never], &config(&[Always, IfNotPresent], None));
        let refusal = refusal.unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "pull_policy [never] in the job is not one of the allowed_pull_policies \
             [always, if-not-present]"
        );
        assert_eq!(
            effective(&[], &wide).unwrap_err().to_string(),
            "pull_policy [always] in the runner's configuration is not one of the \
             allowed_pull_policies [never, if-not-present]"
        );
    }

    #[test]
    fn docker_37_38_users_are_checked_against_the_list_or_else_the_runners_own() {
        let config = |user: Option<&str>, allowed: &[&str]| ContainerConfig {
            users: UserPolicy { user: user.map(str::to_owned), allowed: strings(allowed) },
            ..ContainerConfig::default()
        };
        check_user("anyone", &config(None, &[])).unwrap();
        check_user("", &config(Some("ci"), &["ci"])).unwrap();
        check_user("ci", &config(Some("ci"), &[])).unwrap();
        assert!(check_user("root", &config(Some("ci"), &[])).is_err());
        check_user("1000", &config(None, &["1000", "ci"])).unwrap();
        assert_eq!(
            check_user("root", &config(None, &["1000", "ci"])).unwrap_err().to_string(),
            "user `root` is not one of the allowed users: 1000, ci"
        );
    }

    #[test]
    fn docker_97_99_privileges_go_by_glob() {
        assert!(is_privileged("any", &[]));
        assert!(!is_privileged("ruby", &strings(&["docker:*"])));
        assert!(is_privileged("docker:dind", &strings(&["docker:*"])));
        assert!(!is_privileged("", &strings(&["docker:*"])));
    }
}

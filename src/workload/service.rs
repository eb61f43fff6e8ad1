//! Services: containers beside the job's.

use crate::{
    base::image_ref::ImageRef,
    config::{ContainerConfig, PullPolicy, ServiceConfig},
};

use super::{
    image,
    names::Names,
    policy::{self, Refusal},
    spec::{ImageSpec, JobSpec, ServiceSpec},
    variable::{Expanded, Variable, Variables},
};

/// A service that will run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePlan {
    /// Container.
    pub container: String,
    /// Image as the job writes it, with variables replaced.
    pub written: String,
    /// Image, with a tag or digest.
    pub image: String,
    /// The image's name without tag, as labels and messages have it.
    pub name: String,
    /// Tag, or `@` and digest.
    pub version: String,
    /// Names under which the job reaches it; at least one.
    pub aliases: Vec<String>,
    /// Policies, tried in order.
    pub policies: Vec<PullPolicy>,
    /// Platform, when the job asks for one.
    pub platform: Option<String>,
    /// Override of the command; empty for the image's.
    pub command: Vec<String>,
    /// Override of the entrypoint; empty for the image's.
    pub entrypoint: Vec<String>,
    /// Environment, `KEY=value`, each name once.
    pub environment: Vec<String>,
    /// Names of variables that are written for it, not for the job.
    pub declared: Vec<String>,
    /// Whether it is privileged.
    pub privileged: bool,
    /// Whether the engine's filters (seccomp, `AppArmor`, hidden paths) are off for it.
    pub unconfined: bool,
}

impl ServicePlan {
    /// A variable of its environment.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        let mut pairs = self.environment.iter().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// Why services cannot be planned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The reference is empty or no reference.
    #[error("service `{name}` is no image reference")]
    Name {
        /// What it is.
        name: String,
    },
    /// More than the runner allows.
    #[error("the job asks for {asked} services and [runners.docker] services_limit is {limit}")]
    TooMany {
        /// How many the job asks for.
        asked: usize,
        /// How many it may have.
        limit: usize,
    },
    /// The runner forbids its image or its pull policies.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The services of the runner, then those of the job.
pub(super) fn plan(
    job: &JobSpec,
    containers: &ContainerConfig,
    variables: &Expanded,
    names: &Names,
    warnings: &mut Vec<String>,
) -> Result<Vec<ServicePlan>, ServiceError> {
    let asked = containers.services.entries.len() + job.services.len();
    if let Some(limit) = containers.services.limit.filter(|limit| asked > *limit) {
        return Err(ServiceError::TooMany { asked, limit });
    }
    let configured: Vec<ServiceSpec> =
        containers.services.entries.iter().map(from_config).collect();
    let configured_images: Vec<String> =
        configured.iter().map(|s| variables.expand(&s.image.name)).collect();
    let mut planner = Planner { containers, variables, names, taken: Vec::new(), warnings };
    let mut plans = Vec::with_capacity(asked);
    for (index, service) in configured.iter().chain(&job.services).enumerate() {
        let is_configured = index < configured.len();
        let written = variables.expand(&service.image.name);
        if !is_configured {
            policy::check_service(&written, &configured_images, containers)?;
        }
        plans.extend(planner.service(service, written, index, is_configured)?);
    }
    Ok(plans)
}

/// Plans one service after another.
struct Planner<'a> {
    containers: &'a ContainerConfig,
    variables: &'a Expanded,
    names: &'a Names,
    /// Aliases of services before.
    taken: Vec<String>,
    warnings: &'a mut Vec<String>,
}

impl Planner<'_> {
    /// A service, unless services before it have all of its names.
    fn service(
        &mut self,
        service: &ServiceSpec,
        written: String,
        index: usize,
        is_configured: bool,
    ) -> Result<Option<ServicePlan>, ServiceError> {
        let Self { containers, variables, names, .. } = *self;
        let parsed =
            Parsed::parse(&written).ok_or_else(|| ServiceError::Name { name: written.clone() })?;
        let aliases = self.aliases(&parsed, service, &written);
        let Some(slug) = aliases.first() else {
            self.warnings.push(format!(
                "service {written} is not started: all its names are taken by earlier services; \
                 give it an alias"
            ));
            return Ok(None);
        };
        let entrypoint = if is_configured {
            service.image.entrypoint.clone()
        } else {
            image::entrypoint(
                &service.image,
                containers,
                &format!("service {written}"),
                self.warnings,
            )
        };
        Ok(Some(ServicePlan {
            container: names.service(slug, index),
            policies: policy::effective(&service.image.pull_policy, containers)?,
            platform: image::platform(&service.image, variables),
            command: service.command.clone(),
            entrypoint: entrypoint.unwrap_or_default(),
            environment: environment(service, variables),
            declared: service.variables.iter().map(|variable| variable.key.clone()).collect(),
            privileged: containers.privileges.services.unwrap_or(containers.privileges.privileged)
                && policy::is_privileged(&written, &containers.privileges.allowed_services),
            unconfined: false,
            written,
            image: parsed.image,
            name: parsed.name,
            version: parsed.version,
            aliases,
        }))
    }

    /// The names of a service that are not another's yet.
    fn aliases(&mut self, parsed: &Parsed, service: &ServiceSpec, written: &str) -> Vec<String> {
        let asked = split_aliases(&self.variables.expand(&service.alias));
        let mut aliases = Vec::new();
        for alias in parsed.aliases.iter().cloned().chain(asked) {
            if aliases.contains(&alias) {
                continue;
            }
            if self.taken.contains(&alias) {
                self.warnings.push(format!(
                    "service {written}: the alias {alias} is taken by an earlier service"
                ));
            } else {
                self.taken.push(alias.clone());
                aliases.push(alias);
            }
        }
        aliases
    }
}

fn from_config(service: &ServiceConfig) -> ServiceSpec {
    ServiceSpec {
        image: ImageSpec {
            name: service.name.clone(),
            entrypoint: Some(service.entrypoint.clone()).filter(|e| !e.is_empty()),
            ..ImageSpec::default()
        },
        alias: service.alias.clone(),
        command: service.command.clone(),
        variables: service
            .environment
            .iter()
            .map(|(key, value)| Variable {
                key: key.clone(),
                value: value.clone(),
                ..Default::default()
            })
            .collect(),
    }
}

fn split_aliases(text: &str) -> Vec<String> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|alias| !alias.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Public and the runner's own variables, then the service's, which may refer to all of the job's.
fn environment(service: &ServiceSpec, variables: &Expanded) -> Vec<String> {
    let mut own = Variables::default();
    for variable in variables.iter() {
        own.push(Variable {
            key: variable.key.clone(),
            value: variable.value.clone(),
            raw: true,
            ..Default::default()
        });
    }
    for variable in &service.variables {
        own.push(variable.clone());
    }
    let declared = |key: &str| service.variables.iter().any(|v| v.key == key);
    let visible = |key: &str| variables.iter().any(|v| v.key == key && v.for_services);
    own.expand("")
        .iter()
        .filter(|v| declared(&v.key) || visible(&v.key))
        .map(|v| format!("{}={}", v.key, v.file.as_deref().unwrap_or(&v.value)))
        .collect()
}

/// An image's reference, taken apart for aliases (docs/compatibility.md, "Image references and service
/// aliases").
struct Parsed {
    image: String,
    name: String,
    version: String,
    aliases: Vec<String>,
}

impl Parsed {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || text.contains(char::is_whitespace) {
            return None;
        }
        let parts = ImageRef::of(text);
        let repository = parts.name;
        let (version, image) = match (parts.digest, parts.tag) {
            (Some(digest), _) => (format!("@{digest}"), text.to_owned()),
            (None, Some(tag)) => (tag.to_owned(), text.to_owned()),
            (None, None) => ("latest".to_owned(), format!("{text}:latest")),
        };
        if repository.is_empty() || version.is_empty() {
            return None;
        }
        // The registry's port is no part of the name.
        let name = match repository.split_once('/') {
            Some((registry, rest)) => {
                let host = registry.split_once(':').map_or(registry, |(host, _)| host);
                format!("{host}/{rest}")
            }
            None => repository.to_owned(),
        };
        let mut aliases = vec![name.replace('/', "__")];
        if name.contains('/') {
            aliases.push(name.replace('/', "-"));
        }
        Some(Self { image, name, version, aliases })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String, String, Vec<String>) {
        let p = Parsed::parse(text).unwrap();
        (p.image, p.name, p.version, p.aliases)
    }

    #[test]
    fn docker_82_names_give_implicit_aliases() {
        let of = |image: &str, name: &str, version: &str, aliases: &[&str]| {
            (
                image.to_owned(),
                name.to_owned(),
                version.to_owned(),
                aliases.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(),
            )
        };
        assert_eq!(parsed("redis"), of("redis:latest", "redis", "latest", &["redis"]));
        assert_eq!(parsed("redis:7"), of("redis:7", "redis", "7", &["redis"]));
        assert_eq!(
            parsed("ns/app"),
            of("ns/app:latest", "ns/app", "latest", &["ns__app", "ns-app"])
        );
        assert_eq!(
            parsed("reg:5000/ns/app:1"),
            of("reg:5000/ns/app:1", "reg/ns/app", "1", &["reg__ns__app", "reg-ns-app"])
        );
        let digest = "app@sha256:0123";
        assert_eq!(parsed(digest), of(digest, "app", "@sha256:0123", &["app"]));
        assert!(Parsed::parse("").is_none() && Parsed::parse("a b").is_none());
    }

    #[test]
    fn docker_83_an_alias_may_be_several() {
        assert_eq!(split_aliases("a,b  c,"), ["a", "b", "c"]);
    }
}

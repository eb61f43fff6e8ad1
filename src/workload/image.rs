//! The job's image.

use crate::config::{ContainerConfig, PullPolicy};

use super::{
    policy::{self, Refusal},
    spec::ImageSpec,
    variable::Expanded,
};

/// The job's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlan {
    /// Reference.
    pub name: String,
    /// Policies, tried in order.
    pub policies: Vec<PullPolicy>,
    /// Platform, when the job asks for one.
    pub platform: Option<String>,
    /// User, when job or runner name one.
    pub user: Option<String>,
    /// Override of the entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Whether its container is privileged.
    pub privileged: bool,
}

/// Plans the image; `None` when neither job nor runner name one.
pub(super) fn plan(
    image: &ImageSpec,
    containers: &ContainerConfig,
    variables: &Expanded,
    warnings: &mut Vec<String>,
) -> Result<Option<ImagePlan>, Refusal> {
    let asked = variables.expand(&image.name);
    let default = variables.expand(&containers.images.default);
    let name = if asked.is_empty() { default.clone() } else { asked.clone() };
    if name.is_empty() {
        return Ok(None);
    }
    policy::check_image(&name, &default, containers)?;
    let user = containers
        .users
        .user
        .clone()
        .or_else(|| image.user.as_deref().map(|user| variables.expand(user)))
        .filter(|user| !user.is_empty());
    policy::check_user(user.as_deref().unwrap_or_default(), containers)?;
    Ok(Some(ImagePlan {
        policies: policy::effective(&image.pull_policy, containers)?,
        platform: platform(image, variables),
        user,
        entrypoint: entrypoint(image, containers, "image", warnings),
        privileged: containers.privileges.privileged
            && policy::is_privileged(&asked, &containers.privileges.allowed_images),
        name,
    }))
}

/// The platform that an image is asked for, if any.
pub(super) fn platform(image: &ImageSpec, variables: &Expanded) -> Option<String> {
    let platform = variables.expand(image.platform.as_deref()?);
    (!platform.is_empty()).then_some(platform)
}

/// The entrypoint that a job asks for, where it may; `what` is `image` or the service.
pub(super) fn entrypoint(
    image: &ImageSpec,
    containers: &ContainerConfig,
    what: &str,
    warnings: &mut Vec<String>,
) -> Option<Vec<String>> {
    let asked = image.entrypoint.clone().filter(|words| !words.is_empty())?;
    if containers.disable_entrypoint_overwrite {
        warnings.push(format!(
            "{what}: the entrypoint of the job is not used, as this runner sets \
             disable_entrypoint_overwrite"
        ));
        return None;
    }
    Some(asked)
}

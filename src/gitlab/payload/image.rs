//! Images of a payload, with their options for executors.

use serde_json::{Map, Value};

use crate::{config::PullPolicy, gitlab::api::wire::Image, workload::spec::ImageSpec};

use super::error::InvalidJob;

/// The image of a job or of a service; `section` is where it stands in the payload.
pub(super) fn image_spec(image: &Image, section: &str) -> Result<ImageSpec, InvalidJob> {
    let pull_policy = image
        .pull_policy
        .iter()
        .map(|policy| match policy.as_str() {
            "always" => Ok(PullPolicy::Always),
            "if-not-present" => Ok(PullPolicy::IfNotPresent),
            "never" => Ok(PullPolicy::Never),
            _ => Err(InvalidJob::PullPolicy { image: image.name.clone(), policy: policy.clone() }),
        })
        .collect::<Result<_, _>>()?;
    let section = format!("{section}.executor_opts");
    only_keys(&image.executor_opts, &section, &["docker", "kubernetes"])?;
    let docker = options(&image.executor_opts, "docker", &section)?;
    only_keys(&docker, &format!("{section}.docker"), &["platform", "user"])?;
    let kubernetes = options(&image.executor_opts, "kubernetes", &section)?;
    only_keys(&kubernetes, &format!("{section}.kubernetes"), &["user"])?;
    Ok(ImageSpec {
        name: image.name.clone(),
        entrypoint: image.entrypoint.clone(),
        pull_policy,
        platform: text(&docker, "platform", &section)?,
        user: text(&docker, "user", &section)?,
    })
}

fn only_keys(
    options: &Map<String, Value>,
    section: &str,
    supported: &'static [&'static str],
) -> Result<(), InvalidJob> {
    match options.keys().find(|key| !supported.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(InvalidJob::ExecutorOption {
            section: section.to_owned(),
            key: key.clone(),
            supported,
        }),
    }
}

fn options(
    of: &Map<String, Value>,
    key: &str,
    section: &str,
) -> Result<Map<String, Value>, InvalidJob> {
    match of.get(key) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(other) => Err(InvalidJob::OptionType {
            key: format!("{section}.{key}"),
            expected: "a map",
            found: other.to_string(),
        }),
    }
}

/// Text, or a number written without quotes, as `user: 1000` is.
fn text(of: &Map<String, Value>, key: &str, section: &str) -> Result<Option<String>, InvalidJob> {
    match of.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(InvalidJob::OptionType {
            key: format!("{section}.docker.{key}"),
            expected: "text or a number",
            found: other.to_string(),
        }),
    }
}

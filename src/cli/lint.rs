//! `lint`: the strict check of the file. Every finding counts, unknown and unsupported keys too.

use super::{
    console::Console,
    entries::Setting,
    exit::{Exit, Failure, Outcome},
};
use crate::config::check::check;

/// Shows all that is wrong with the file or has no effect; fails when there is anything.
pub(super) fn lint(setting: &Setting, console: &mut Console) -> Outcome {
    let path = &setting.config;
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::from(error).context(format!("cannot read `{}`", path.display()))
    })?;
    let (warnings, problems) = match check(&text, path, &setting.env) {
        Ok(checked) => (checked.warnings, None),
        Err(problems) => (problems.warnings.clone(), Some(problems)),
    };
    for warning in &warnings {
        console.say(format!("warning: {warning}"))?;
    }
    if let Some(problems) = &problems {
        console.say(problems)?;
    }
    if !warnings.is_empty() || problems.is_some() {
        return Ok(Exit::Failure);
    }
    console.say(format!("{} is in order", path.display()))?;
    Ok(Exit::Success)
}
